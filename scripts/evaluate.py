"""Evaluate models on a task's test split and compare them on the same questions.

    python scripts/evaluate.py outputs/countdown-grpo                      # each stage of a run
    python scripts/evaluate.py base=tiny SFT=outputs/a/sft GRPO=outputs/a/grpo --limit 200 --output-dir results
    python scripts/evaluate.py Qwen/Qwen2.5-0.5B-Instruct --recipe gsm8k-grpo --hardware a100

Every run directory gets its eval.json; --output-dir gets one JSON per model, the table and the figures.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from lab_utils import config as configuration
from lab_utils.config import ConfigError, RunConfig
from lab_utils.evaluation import evaluate_run, format_results, results_table
from lab_utils.figures import plot_accuracy_bars, plot_attempts, plot_pass_at_k
from lab_utils.models import ModelLoadError
from lab_utils.runs import RunDirectory, RunDirectoryError
from lab_utils.tasks import RowError

STAGES = ("sft", "grpo", "ppo")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("models", nargs="+", metavar="[LABEL=]MODEL",
                        help="run directory, model folder, Hub id or 'tiny'; the others are compared with the first")
    parser.add_argument("--recipe", help="default: the configuration of the first run directory")
    parser.add_argument("--hardware", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings",
                        help="change a setting, such as evaluation.num_samples=8; may be repeated, needs --recipe")
    parser.add_argument("--limit", type=int, help="at most this many test questions")
    parser.add_argument("--output-dir", type=Path, help="where results.csv, one JSON per model and the figures go")
    return parser.parse_args(arguments)


def labelled_models(arguments: list[str]) -> dict[str, str]:
    """LABEL=MODEL, or MODEL with a label made from its name; a directory of stages stands for each of them."""
    models = {}
    for argument in arguments:
        label, _, source = argument.rpartition("=")
        stages = [stage for stage in STAGES if RunDirectory(Path(source) / stage).model_dir.is_dir()]
        if stages and not label:
            found = {stage.upper(): str(Path(source) / stage) for stage in stages}
        else:
            name = Path(source).name
            found = {label or (name.upper() if name in STAGES else name): source}
        for new, place in found.items():
            if new in models:
                raise RunDirectoryError(
                    f"{models[new]} and {place} would both be called {new!r}: name them, such as {new}-seed1={place}."
                )
            models[new] = place
    return models


def load_config(arguments: argparse.Namespace, models: dict[str, str]) -> RunConfig:
    if arguments.recipe:
        config = configuration.load(arguments.recipe, arguments.hardware, arguments.settings)
    elif arguments.settings:
        raise ConfigError(f"--set {arguments.settings[0]} changes a recipe: name it with --recipe.")
    else:
        runs = [run for run in map(RunDirectory, models.values()) if run.config_path.exists()]
        if not runs:
            raise ConfigError(
                f"None of {', '.join(models.values())} is a run directory, so there is no configuration to go by: "
                f"name the task with --recipe ({', '.join(configuration.recipe_names())})."
            )
        config = runs[0].config()
    if arguments.limit is not None:
        if arguments.limit < 1:
            raise ConfigError(f"--limit = {arguments.limit} leaves no questions: give at least 1.")
        config = configuration.with_overrides(config, {"task.test_limit": arguments.limit})
    return config


def run(arguments: list[str] | None) -> None:
    options = parse_arguments(arguments)
    models = labelled_models(options.models)
    config = load_config(options, models)
    if options.output_dir:
        try:
            options.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--output-dir = {options.output_dir} cannot be made ({error.strerror}): choose another."
            ) from None
    evaluations = {}
    for label, source in models.items():
        evaluations[label] = evaluate_run(source, config)
        print(f"{label}: {evaluations[label]}")
        if options.output_dir:
            evaluations[label].save(options.output_dir / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', label)}.json")
    table = results_table(evaluations)
    print(f"\n{format_results(table).to_string()}")
    if options.output_dir:
        table.to_csv(options.output_dir / "results.csv")
        plot_accuracy_bars(evaluations, options.output_dir / "accuracy.png")
        plot_attempts(evaluations, options.output_dir / "attempts.png")
        if evaluations[next(iter(evaluations))].num_samples > 1:
            plot_pass_at_k(evaluations, options.output_dir / "pass_at_k.png")


def main(arguments: list[str] | None = None) -> int:
    try:
        run(arguments)
    except (ConfigError, ModelLoadError, RowError, RunDirectoryError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
