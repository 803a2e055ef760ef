"""Show what a recipe makes of its data before anything is trained: rows as the model sees them, and what is left out.

    python scripts/preview.py --recipe examples/own/recipe.yaml --hardware cpu
    python scripts/preview.py --recipe gsm8k-grpo --hardware cpu --set task.source=my.csv --set task.columns.answer=key

It also tries rewards and a task of your own on sample completions. It loads no model and writes nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from lab_utils import config as configuration
from lab_utils import exit_status
from lab_utils.config import RunConfig
from lab_utils.models import load_tokenizer
from lab_utils.rewards.own import try_own_code
from lab_utils.sampling.local import encode_prompts
from lab_utils.tasks import RowReport, Task, load_task, visible
from lab_utils.tasks.base import WHERE, as_dataset

SHOWN = 5  # places and problems of each kind


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--recipe", required=True, help="the name of a recipe, or your own .yaml file")
    parser.add_argument("--hardware", default="auto", help="the hardware tier; default: %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings",
                        help="change a setting, such as task.columns.answer=solution; may be repeated")
    parser.add_argument("--rows", type=int, default=3, help="how many rows to show; default: %(default)s")
    return parser.parse_args(argv)


def counts(split: str, report: RowReport, other: RowReport | None = None) -> list[str]:
    """Return how many rows of a split are used, and how many are left out for which reason, with places.

    What was left out of the `other` split too, because both are parts of one file, is not repeated.
    """
    lines = [f"{split}: {len(report.rows):,} of {report.total:,} rows are used"]
    lines += [f"  {report.beyond:,} more are good, but task.{split}_limit is {len(report.rows)}"] * bool(report.beyond)
    if other and (report.total, report.repeated, report.bad) == (other.total, other.repeated, other.bad):
        return lines
    for what, places in (("repeat an earlier row", report.repeated),
                         ("have a question of the test split", report.in_test),
                         ("cannot be used", report.bad)):
        if places:
            lines += [f"  {len(places):,} {what}:", *(f"    {visible(place)}" for place in places[:SHOWN])]
            lines += [f"    … and {len(places) - SHOWN:,} more"] if len(places) > SHOWN else []
    return lines + ([f"  {report.note}"] if report.note else [])


def lengths(config: RunConfig, task: Task, rows: list[dict], tokenizer) -> list[str]:
    """Return how long prompts and demonstrations are in tokens, and how many are too long for the stages."""
    prompts = [len(ids) for ids in encode_prompts(tokenizer, (row["prompt"] for row in rows))]
    whole = [length + len(tokenizer(task.demonstration(row))["input_ids"]) + 1
             for length, row in zip(prompts, rows, strict=True)]
    lines = [f"prompt: {min(prompts)} to {max(prompts)} tokens, median {statistics.median(prompts):g}; with its "
             f"demonstration {min(whole)} to {max(whole)}"]
    for stage in config.stages:
        key, most, found = ("max_length", config.sft.max_length, whole) if stage == "sft" else \
            ("max_prompt_length", getattr(config, stage).max_prompt_length, prompts)
        done = "cut off" if stage == "sft" else "left out"
        if long := [row[WHERE] for row, length in zip(rows, found, strict=True) if length > most]:
            remedy = "shorten them" if max(found) > tokenizer.model_max_length else \
                f"--set {stage}.{key}={max(found)} keeps all"
            lines.append(f"  {stage}: {len(long):,} of {len(found):,} are longer than {stage}.{key} = {most} and are "
                         f"{done}, such as {long[0]}; {remedy}")
    return lines


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    config = configuration.load(arguments.recipe, arguments.hardware, arguments.settings)
    task, tokenizer = load_task(config.task), load_tokenizer(config.model.name)
    limits = {"train": config.task.train_limit, "test": config.task.test_limit}
    reports = {split: task.report(split, limit, config.task.source) for split, limit in limits.items()}
    rows = reports["train"].rows
    for number, row in enumerate(rows[:max(0, arguments.rows)], 1):
        chat = not isinstance(row["prompt"], str)
        asked = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False) if chat else \
            row["prompt"]
        print(f"--- row {number}: the prompt{', with the chat template' * chat}\n{visible(asked)}")
        print(f"--- row {number}: the demonstration that SFT imitates\n{visible(task.demonstration(row))}")
        print(f"--- row {number}: the gold answer\n{visible(task.gold(row))}\n")
    print("\n".join([*counts("train", reports["train"]), *counts("test", reports["test"], reports["train"])]))
    if not rows:
        print("Training would stop here: there is no row to train on.")
        return 2
    datasets = [as_dataset(report.rows, config.task.source) for report in reports.values()]
    print("\n".join([*lengths(config, task, rows, tokenizer),
                     *try_own_code(config, task, [row for dataset in datasets for row in dataset])]))
    unusable = any(report.bad for report in reports.values()) and not config.task.drop_bad_rows
    if unusable:
        print("Training would stop here: correct these rows, or leave them out with --set task.drop_bad_rows=true")
    return 2 if unusable else 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
