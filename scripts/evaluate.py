"""Evaluate models on a task's test split and compare them on the same questions.

    python scripts/evaluate.py outputs/countdown-grpo                      # each stage of a run
    python scripts/evaluate.py base=tiny SFT=outputs/a/sft GRPO=outputs/a/grpo --plain-text base --limit 200
    python scripts/evaluate.py Qwen/Qwen2.5-0.5B-Instruct --recipe gsm8k-grpo --hardware a100

Every run directory gets its eval.json; --output-dir gets one JSON file per model, the table and the figures.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import get_args

from lab_utils import WorkshopError, exit_status
from lab_utils import config as configuration
from lab_utils.config import RunConfig
from lab_utils.config.schema import Stage
from lab_utils.evaluation import evaluate_run, format_results, results_table, rewards_table
from lab_utils.figures import plot_accuracy_bars, plot_attempts, plot_pass_at_k, plot_rewards
from lab_utils.runs import RunDirectory


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("models", nargs="+", metavar="[LABEL=]MODEL",
                        help="run directory, model folder, Hub id or 'tiny'; the others are compared with the first")
    parser.add_argument("--recipe", help="default: the configuration of the first run directory")
    parser.add_argument("--hardware", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings",
                        help="change a setting, such as evaluation.num_samples=8; may be repeated, needs --recipe")
    parser.add_argument("--plain-text", action="append", default=[], metavar="LABEL",
                        help="ask this model without chat and response format; may be repeated")
    parser.add_argument("--limit", help="at most this many test questions")
    parser.add_argument("--output-dir", type=Path, help="where results.csv, the JSON files and the figures go")
    return parser.parse_args(argv)


def labeled_models(arguments: list[str]) -> dict[str, str]:
    """Return model by label, from LABEL=MODEL or MODEL; a directory of stages stands for each of them."""
    stages, models = get_args(Stage), {}
    for argument in arguments:
        label, _, source = argument.rpartition("=")
        path = Path(source)
        found = {stage.upper(): str(path / stage) for stage in stages if RunDirectory(path / stage).has_model}
        if label or not found:
            found = {label or (path.name.upper() if path.name in stages else path.name): source}
        for new, place in found.items():
            if new in models:
                raise WorkshopError(f"{models[new]} and {place} would both be called {new!r}: name them, such as "
                                    f"{new}-seed1={place}.")
            models[new] = place
    return models


def load_config(arguments: argparse.Namespace, models: dict[str, str]) -> RunConfig:
    if arguments.recipe:
        config = configuration.load(arguments.recipe, arguments.hardware, arguments.settings)
    elif arguments.settings:
        raise WorkshopError(f"--set {arguments.settings[0]} needs a recipe: pass --recipe.")
    else:
        runs = [run for run in map(RunDirectory, models.values()) if run.config_path.exists()]
        if not runs:
            raise WorkshopError(f"None of {', '.join(models.values())} is a run directory with a configuration: name "
                                f"the task with --recipe ({', '.join(configuration.recipe_names())}, or your own "
                                ".yaml file).")
        config = runs[0].config()
    limit = [] if arguments.limit is None else [f"task.test_limit={arguments.limit}"]
    return configuration.with_overrides(config, limit)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    models = labeled_models(arguments.models)
    config = load_config(arguments, models)
    folder = arguments.output_dir
    if folder:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkshopError(f"Cannot write to --output-dir {folder} ({error.strerror}): choose another.") from None
    if unknown := set(arguments.plain_text) - set(models):
        raise WorkshopError(f"--plain-text {min(unknown)} is no label of a model: choose from {', '.join(models)}.")
    evaluations = {}
    for label, source in models.items():
        evaluations[label] = evaluate_run(source, config, plain_text=label in arguments.plain_text)
        print(f"{label}: {evaluations[label]}")
        if folder:
            evaluations[label].save(folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', label)}.json")
    table = results_table(evaluations)
    print(f"\n{format_results(table).to_string()}")
    has_rewards = all(evaluation.has_rewards for evaluation in evaluations.values())
    if has_rewards:
        print(f"\nMean of each reward × its weight:\n{rewards_table(evaluations).to_string()}")
    if folder:
        table.to_csv(folder / "results.csv")
        plot_accuracy_bars(evaluations, folder / "accuracy.png")
        plot_attempts(evaluations, folder / "attempts.png")
        if has_rewards:
            plot_rewards(evaluations, folder / "rewards.png")
        if config.evaluation.num_samples > 1:
            plot_pass_at_k(evaluations, folder / "pass_at_k.png")


if __name__ == "__main__":
    sys.exit(exit_status(main))
