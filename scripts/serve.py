"""Serve a trained model over the OpenAI API, and swap its LoRA adapter while the server runs.

    python scripts/serve.py start outputs/countdown-grpo/grpo            # until you interrupt it
    python scripts/chat.py outputs/countdown-grpo/grpo --server http://127.0.0.1:8000
    python scripts/serve.py swap outputs/another/grpo                    # on a running server, without a restart
    python scripts/serve.py start Qwen/Qwen2.5-0.5B-Instruct --recipe gsm8k-grpo      # or a model folder, an adapter

vLLM serves if it is installed: many questions at once, and adapters can be swapped. Otherwise `transformers serve`
does, one question at a time.

Both listen on 127.0.0.1 only, because neither has an option that bounds the size of a request. vLLM refuses prompts
that are longer than the model's context; `transformers serve` refuses none. Before you let others ask, put a proxy with
a bound in front, such as nginx with client_max_body_size.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from lab_utils import exit_status
from lab_utils.runs import RunDirectory, config_of, model_of
from lab_utils.sharing.chat import tiny_model_range
from lab_utils.sharing.serving import server_command, swap_adapter
from lab_utils.tasks import load_task


def start(options: argparse.Namespace) -> None:
    """Serve a run's model, or with --recipe any model, until interrupted."""
    config = config_of(options.run, options.recipe, options.hardware)
    server = server_command(RunDirectory(options.run), options.port, config if options.recipe else None)
    if server.backend != "vLLM":
        print("vLLM is not installed, so transformers serves the model: it answers one question at a time and "
              "cannot swap adapters.")
    if config.model.name == "tiny" and config.task.source == "synthetic":
        task = load_task(config.task)
        print(f"The tiny model knows only {tiny_model_range(task)}.")
    recipe = f"--recipe {options.recipe} " if options.recipe else ""
    url = f"http://127.0.0.1:{options.port}"
    print(f"Starting {server.backend}. When it is ready, ask it from another terminal:\n\n"
          f"    python scripts/chat.py {options.run} {recipe}--server {url}\n\n"
          f"or use any client of the OpenAI API with the base URL {url}/v1 and the model 'trained'. Press Ctrl-C to "
          "stop.\n", flush=True)
    os.chdir(server.cwd)
    os.execvpe(server.command[0], server.command, {**os.environ, **server.environment})  # so signals reach the server


def swap(options: argparse.Namespace) -> None:
    """Give a running vLLM server another adapter of the same base model."""
    swap_adapter(options.server, model_of(options.run))
    print(f"{options.server} now answers with {options.run}.")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("start", help=start.__doc__, allow_abbrev=False)
    command.add_argument("run", help="the run directory of a trained model; or, with --recipe, a model folder, an "
                         "adapter or a Hub id")
    command.add_argument("--recipe", help="for a model without a run directory: task, response format and dtype")
    command.add_argument("--hardware", default="auto", help="with --recipe: the hardware tier; default: %(default)s")
    command.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    command.set_defaults(call=start)
    command = commands.add_parser("swap", help=swap.__doc__, allow_abbrev=False)
    command.add_argument("run", type=Path, help="the run directory (or model folder) of the other adapter")
    command.add_argument("--server", default="http://127.0.0.1:8000", help="default: %(default)s")
    command.set_defaults(call=swap)
    options = parser.parse_args(argv)
    options.call(options)


if __name__ == "__main__":
    sys.exit(exit_status(main))
