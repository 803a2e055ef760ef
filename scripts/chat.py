"""Ask the base model and the trained model the same question, side by side.

    python scripts/chat.py outputs/countdown-grpo/grpo
    python scripts/chat.py outputs/gsm8k-grpo/grpo --question "Anna has 3 pens and buys 4 more. How many has she?"
    python scripts/chat.py outputs/countdown-grpo/grpo --server http://127.0.0.1:8000     # started by scripts/serve.py

For Countdown type the numbers and, last, the target: 3 7 25 46. Every answer is appended to a JSON Lines file: query,
model, reasoning, answer and the whole response.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from lab_utils.config import ConfigError, RunConfig
from lab_utils.models import ModelLoadError, load_model, load_tokenizer
from lab_utils.runs import RunDirectory, RunDirectoryError, model_of
from lab_utils.sampling.local import sample
from lab_utils.sharing.chat import QuestionError, append_jsonl, as_prompt, chat_records
from lab_utils.sharing.serving import ServingError, ask, served_models
from lab_utils.tasks import load_task
from lab_utils.teaching.inspection import side_by_side

Speaker = Callable[[list[dict[str, str]]], str]  # prompt -> response


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, help="the run directory of a trained model")
    parser.add_argument("--base", help="the model to compare with; default: the one that the run's configuration names")
    parser.add_argument("--server", metavar="URL", help="ask a server that scripts/serve.py started in place of "
                        "loading the trained model, and the base model where the server has it too")
    parser.add_argument("--question", action="append", help="ask this and leave; may be given more than once")
    parser.add_argument("--output", type=Path, default=Path("chat.jsonl"), help="appended to; default: chat.jsonl")
    parser.add_argument("--temperature", type=float, help="0 takes the likeliest token; default: the evaluation's")
    parser.add_argument("--max-new-tokens", type=int, help="default: that of the run's evaluation")
    return parser.parse_args(arguments)


def questions(given: list[str] | None):
    """The questions from the command line, or those that someone types until an empty line."""
    if given:
        yield from given
        return
    while True:
        try:
            query = input("\nquestion (empty to leave)> ").strip()
        except EOFError:
            return
        if not query:
            return
        yield query


def loaded(name: str, config: RunConfig, max_new_tokens: int, temperature: float) -> Speaker:
    """A model in this process."""
    model, tokenizer = load_model(model_of(name), config.model), load_tokenizer(model_of(name))

    def speak(prompt: list[dict[str, str]]) -> str:
        [[completion]] = sample(model, tokenizer, [prompt], temperature=temperature, max_new_tokens=max_new_tokens)
        return completion.text

    return speak


def served(url: str, name: str, max_new_tokens: int, temperature: float) -> Speaker:
    """A model on a server."""
    return lambda prompt: ask(url, prompt, model=name, max_new_tokens=max_new_tokens, temperature=temperature)


def run(arguments: list[str] | None) -> None:
    options = parse_arguments(arguments)
    config = RunDirectory(options.run).config()
    task = load_task(config.task.name, config.task.response_format)
    names = {"base": options.base or config.model.name, "trained": str(options.run)}
    temperature = config.evaluation.temperature if options.temperature is None else options.temperature
    how = (options.max_new_tokens or config.evaluation.max_new_tokens, temperature)
    on_server = set(served_models(options.server)) if options.server else set()
    if options.base:
        on_server -= {"base"}
    speakers = {label: served(options.server, label, *how) if label in on_server else loaded(name, config, *how)
                for label, name in names.items()}
    for query in questions(options.question):
        try:
            prompt = as_prompt(task, query)
        except QuestionError as error:
            if options.question:
                raise
            print(error)
            continue
        responses = {label: speak(prompt) for label, speak in speakers.items()}
        print("\n" + side_by_side(responses, shutil.get_terminal_size((120, 24)).columns))
        by_name = {names[label]: response for label, response in responses.items()}
        append_jsonl(options.output, chat_records(task, query, by_name))
    print(f"\nappended to {options.output}")


def main(arguments: list[str] | None = None) -> int:
    try:
        run(arguments)
    except (ConfigError, ModelLoadError, QuestionError, RunDirectoryError, ServingError) as error:
        print(f"chat.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
