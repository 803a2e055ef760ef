"""Ask the base model and the trained model the same question, side by side.

    python scripts/chat.py outputs/countdown-grpo/grpo
    python scripts/chat.py outputs/gsm8k-grpo/grpo --question "Anna has 3 pens and buys 4 more. How many has she?"

For Countdown type the numbers and, last, the target: 3 7 25 46. Every answer is appended to a JSON Lines file: query,
model, reasoning, answer and the whole response.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import textwrap
from itertools import zip_longest
from pathlib import Path

from lab_utils.answers import extract_xml_answer
from lab_utils.config import ConfigError
from lab_utils.generation import sample
from lab_utils.models import ModelLoadError, load_model, load_tokenizer
from lab_utils.tasks import Task, load_task
from lab_utils.tracking import RunDirectory, RunDirectoryError, model_of


class QuestionError(ValueError):
    """A question that the task cannot ask; the message says how to put it."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, help="the run directory of a trained model")
    parser.add_argument("--base", help="the model to compare with; default: the one that the run's configuration names")
    parser.add_argument("--question", action="append", help="ask this and leave; may be given more than once")
    parser.add_argument("--output", type=Path, default=Path("chat.jsonl"), help="appended to; default: chat.jsonl")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (the default) takes the likeliest token")
    parser.add_argument("--max-new-tokens", type=int, help="default: that of the run's evaluation")
    return parser.parse_args(arguments)


def as_prompt(task: Task, query: str) -> list[dict[str, str]]:
    """The chat prompt that the model was trained on, for a question that someone typed."""
    if task.name != "countdown":
        return task.prompt({"question": query})
    *nums, target = [int(number) for number in re.findall(r"\d+", query)] or [0]
    if len(nums) < 2:
        raise QuestionError(f"{query!r}: type at least two numbers and then the target, such as: 3 7 25 46")
    return task.prompt({"nums": nums, "target": target})


def reasoning_of(task: Task, response: str) -> str:
    """What the response says before its answer."""
    tagged = extract_xml_answer(response, "reasoning" if task.response_format == "reasoning" else "think")
    return re.split(r"<answer>|####", response)[0].strip() if tagged is None else tagged


def side_by_side(texts: dict[str, str], width: int) -> str:
    """Columns of equal width, one per model, under their names."""
    column = (width - 3 * (len(texts) - 1)) // len(texts)
    columns = []
    for title, text in texts.items():
        lines = [part for line in text.splitlines() for part in textwrap.wrap(line, column) or [""]]
        columns.append([title[:column], "─" * column, *lines])
    return "\n".join(
        " │ ".join(cell.ljust(column) for cell in row).rstrip() for row in zip_longest(*columns, fillvalue="")
    )


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


def run(arguments: list[str] | None) -> None:
    options = parse_arguments(arguments)
    config = RunDirectory(options.run).config()
    task = load_task(config.task.name, config.task.response_format)
    names = {"base": options.base or config.model.name, "trained": str(options.run)}
    models = {label: load_model(model_of(name), config.model) for label, name in names.items()}
    tokenizers = {label: load_tokenizer(model_of(name)) for label, name in names.items()}
    for query in questions(options.question):
        try:
            prompt = as_prompt(task, query)
        except QuestionError as error:
            if options.question:
                raise
            print(error)
            continue
        responses = {}
        for label, model in models.items():
            [[completion]] = sample(
                model, tokenizers[label], [prompt], temperature=options.temperature,
                max_new_tokens=options.max_new_tokens or config.evaluation.max_new_tokens,
            )  # fmt: skip
            responses[label] = completion.text
        print("\n" + side_by_side(responses, shutil.get_terminal_size((120, 24)).columns))
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with open(options.output, "a", encoding="utf-8") as file:
            for label, response in responses.items():
                record = {
                    "query": query, "model": names[label], "reasoning": reasoning_of(task, response),
                    "answer": task.extract(response), "response": response,
                }  # fmt: skip
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    print(f"\nappended to {options.output}")


def main(arguments: list[str] | None = None) -> int:
    try:
        run(arguments)
    except (ConfigError, ModelLoadError, QuestionError, RunDirectoryError) as error:
        print(f"chat.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
