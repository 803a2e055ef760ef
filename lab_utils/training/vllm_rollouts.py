"""Rollouts by vLLM, which TRL runs and keeps supplied with the policy's weights: its settings, and what must be there.

`colocate`: every training process has a vLLM of its own on its GPU. `server`: one vLLM on GPUs of its own, started
beforehand with `server_command`, samples for all processes; TRL sends it the weights over NCCL, so it needs GPUs.
"""

from __future__ import annotations

import shlex
from typing import Any
from urllib.parse import urlsplit

import requests
from trl.import_utils import is_vllm_available

from .. import estimate
from ..config import ConfigError, RLSettings, RunConfig, load_tier
from ..models import adapter_base, model_location

COPIED = ("use_vllm", "vllm_mode", "vllm_gpu_memory_utilization", "vllm_enable_sleep_mode",
          "vllm_tensor_parallel_size")


def vllm_arguments(settings: RLSettings) -> dict[str, Any]:
    """Return TRL's settings of vLLM, none without it. vLLM has room for the longest prompt and completion."""
    if not settings.use_vllm:
        return {}
    arguments = {name: getattr(settings, name) for name in COPIED}
    return arguments | {"vllm_max_model_length": _longest(settings), "vllm_server_base_url": settings.vllm_server_url}


def server_command(config: RunConfig, stage: str) -> str:
    """Return the shell command that starts the vLLM server of a stage ("grpo" or "ppo") with `vllm_mode: server`.

    The tier's first GPUs train, those after them serve. The server starts with the recipe's model; TRL replaces its
    weights before the first rollout. The options beyond the sizes are those that TRL's client needs
    (trl/scripts/vllm_serve.py), and `--generation-config vllm`: no sampling defaults of the model's own.
    """
    settings, tier, location = getattr(config, stage), load_tier(config.hardware), model_location(config.model.name)
    url = urlsplit(settings.vllm_server_url)
    gpus = ",".join(str(tier.gpus + i) for i in range(settings.vllm_tensor_parallel_size))
    words = [
        "vllm", "serve", adapter_base(location) or location, "--host", url.hostname, "--port", str(url.port),
        "--dtype", config.model.dtype, "--tensor-parallel-size", str(settings.vllm_tensor_parallel_size),
        "--gpu-memory-utilization", str(settings.vllm_gpu_memory_utilization),
        "--max-model-len", str(_longest(settings)), "--generation-config", "vllm",
        "--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1", "--enable-scale-out",
        "--weight-transfer-config", '{"backend": "nccl"}',
    ]  # fmt: skip
    return f"VLLM_SERVER_DEV_MODE=1 CUDA_VISIBLE_DEVICES={gpus} {shlex.join(words)}"


def check_vllm(config: RunConfig, stage: str) -> None:
    """Raise ConfigError where a stage is to generate with vLLM and it is not installed, or its server is not there."""
    settings = getattr(config, stage)
    if not settings.use_vllm:
        return
    if not is_vllm_available():
        raise ConfigError("use_vllm = True, and vLLM is not installed. Install it with bash setup/create_env.sh (Linux "
                          "with an NVIDIA GPU), or sample without it: --set grpo.use_vllm=false or ppo.use_vllm=false.")
    if settings.vllm_mode == "server":
        _check_server(config, stage)


def _check_server(config: RunConfig, stage: str) -> None:
    settings = getattr(config, stage)
    url, longest = settings.vllm_server_url, _longest(settings)
    start = ("start it in another terminal, and train when it says that the startup is complete:\n\n"
             f"    {server_command(config, stage)}\n")
    try:
        answer = requests.get(f"{url}/v1/models", timeout=10)
        answer.raise_for_status()
        served = answer.json()["data"][0]
        root, room = served["root"], served["max_model_len"]
    except (requests.RequestException, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{stage}.vllm_mode = 'server', and no vLLM server answers at {stage}.vllm_server_url = "
                          f"{url!r} ({type(error).__name__}): {start}") from None
    if room < longest:
        raise ConfigError(f"The vLLM server at {url} takes {room} tokens, and {stage} needs {longest}, "
                          f"{stage}.max_prompt_length + max_completion_length. Stop it, {start}")
    if estimate.model_shape(root) != estimate.model_shape(config.model.name):
        raise ConfigError(f"The vLLM server at {url} serves {root}, whose weights have other sizes than those of "
                          f"{config.model.name}. Stop it, {start}")


def _longest(settings: RLSettings) -> int:
    return settings.max_prompt_length + settings.max_completion_length
