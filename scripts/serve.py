"""Serve a trained model over the OpenAI API, and swap its LoRA adapter while it runs.

    python scripts/serve.py start outputs/countdown-grpo/grpo            # until you interrupt it
    python scripts/chat.py outputs/countdown-grpo/grpo --server http://127.0.0.1:8000
    python scripts/serve.py swap outputs/another/grpo                    # a running server, without a restart

With vLLM, which serves many at once and can swap adapters; without it with `transformers serve`, one question at a
time. The exit status is 2, with one message, where something that you gave cannot work.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from lab_utils.config import ConfigError
from lab_utils.models import ModelLoadError
from lab_utils.runs import RunDirectory, RunDirectoryError, model_of
from lab_utils.sharing.serving import ServingError, server_command, swap_adapter


def start(options: argparse.Namespace) -> int:
    """Serve a run's model until interrupted."""
    server = server_command(RunDirectory(options.run), options.port)
    if server.backend != "vLLM":
        print("vLLM is not installed, so transformers serves: one question at a time, and no swapping of adapters.")
    url = f"http://127.0.0.1:{options.port}"
    print(f"Starting {server.backend}; when it is up, ask it in another terminal:\n\n"
          f"    python scripts/chat.py {options.run} --server {url}\n\n"
          f"or any client of the OpenAI API with the base URL {url}/v1 and the model 'trained'. Interrupt to stop.\n")
    sys.stdout.flush()
    try:
        return subprocess.run(server.command, cwd=server.cwd, env={**os.environ, **server.environment}).returncode
    except KeyboardInterrupt:
        return 0


def swap(options: argparse.Namespace) -> int:
    """Give a running vLLM server another adapter of the same base model."""
    swap_adapter(options.server, model_of(options.run))
    print(f"{options.server} now answers with {options.run}.")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("start", help=start.__doc__, allow_abbrev=False)
    command.add_argument("run", type=Path, help="the run directory of a trained model")
    command.add_argument("--port", type=int, default=8000)
    command.set_defaults(call=start)
    command = commands.add_parser("swap", help=swap.__doc__, allow_abbrev=False)
    command.add_argument("run", type=Path, help="the run directory (or model folder) of the other adapter")
    command.add_argument("--server", default="http://127.0.0.1:8000", help="default: %(default)s")
    command.set_defaults(call=swap)
    options = parser.parse_args(arguments)
    try:
        return options.call(options)
    except (ConfigError, ModelLoadError, RunDirectoryError, ServingError) as error:
        print(f"serve.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
