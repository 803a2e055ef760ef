"""Train the stages of a recipe one after the other, each from the model of the one before.

    python scripts/train.py --recipe countdown-grpo --hardware cpu --evaluate
    python scripts/train.py --recipe countdown-grpo --stages sft --output-dir outputs/a
    python scripts/train.py --recipe countdown-grpo --stages grpo --output-dir outputs/a --model outputs/a/sft/model
    python scripts/train.py --recipe countdown-grpo --evaluate-only --output-dir outputs/a

Every stage has its own run directory, OUTPUT_DIR/sft, OUTPUT_DIR/grpo and so on. The exit status is 2, with one message
and no traceback, where something that you gave cannot work. SIGTERM ends training after a checkpoint, with status 0
(under `accelerate launch` send it to the training processes: the launcher kills them after 30 seconds).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import lab_utils
from lab_utils import TrainingStopped
from lab_utils import config as configuration
from lab_utils.config import ConfigError, RunConfig

if TYPE_CHECKING:
    from lab_utils.evaluation import Evaluation
    from lab_utils.runs import RunDirectory

STAGES = ("sft", "grpo", "ppo")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    recipes, tiers = ", ".join(configuration.recipe_names()), ", ".join(configuration.hardware_names())
    parser.add_argument("--recipe", required=True, help=f"what is learned: {recipes}, or your own .yaml file")
    parser.add_argument("--hardware", default="auto", help=f"how it fits: auto (default), {tiers}")
    parser.add_argument("--stages", help="only these stages, such as sft or sft,grpo; those of the recipe by default")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings",
        help="change a setting, such as grpo.beta=0.04; may be repeated",
    )
    parser.add_argument("--limit", help="at most this many training problems, demonstrations and test questions")
    parser.add_argument("--output-dir", type=Path, help="where the run directories go; outputs/RECIPE by default")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run in --output-dir")
    parser.add_argument("--model", help="start model: a RUN/model folder, a Hub id or 'tiny'; default: the recipe's")
    parser.add_argument("--export", type=Path, metavar="DIR", help="write the last stage's model there as servers load "
                        "it: merged, with its tokenizer")
    after = parser.add_mutually_exclusive_group()
    after.add_argument("--evaluate", action="store_true", help="evaluate the model of every stage when all are trained")
    after.add_argument("--evaluate-only", action="store_true", help="train nothing; evaluate --model, or else the last "
                       "stage in --output-dir, and write eval.json")
    return parser.parse_args(argv)


def load_config(arguments: argparse.Namespace) -> RunConfig:
    overrides = list(arguments.settings)
    if arguments.stages is not None:
        overrides.append(f"stages=[{arguments.stages}]")
    if arguments.limit is not None:
        overrides += [f"{key}={arguments.limit}" for key in ("task.train_limit", "task.test_limit")]
    return configuration.load(arguments.recipe, arguments.hardware, overrides)


def is_first_process() -> bool:
    """Of several processes that `accelerate launch` started, the first one prints, checks and evaluates."""
    return os.environ.get("RANK", "0") == "0"


def check_output(output_dir: Path, stages: list[str], resume: bool) -> None:
    """Raise where results would be overwritten or cannot be written. Run directories of other stages may be there."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise ConfigError(f"Cannot write to the output directory {output_dir} ({error.strerror}). "
                          "Choose a directory that you may write to as --output-dir.") from None
    others = set(STAGES) - set(stages)
    found = sorted(path.name for path in output_dir.iterdir() if path.name not in others)
    if found and not resume:
        raise FileExistsError(f"The output directory {output_dir} is not empty: it holds {', '.join(found[:5])}. "
                              "Continue the run in it with --resume, or choose another --output-dir.")


def train(config: RunConfig, output_dir: Path, model: str | None, resume: bool) -> RunDirectory:
    """Train the stages and return the last one's run."""
    from lab_utils.training.stages import TRAIN

    for stage in config.stages:
        run = TRAIN[stage](config, output_dir / stage, model=model, resume=resume)
        model = str(run.model_dir)
        if is_first_process():
            print(f"{stage}: the trained model is in {model}")
    return run


def evaluate(config: RunConfig, source: Path | str) -> Evaluation:
    """Evaluate a run directory (which gets an eval.json) or any other model."""
    from lab_utils.evaluation import evaluate_run

    evaluation = evaluate_run(source, config)
    print(f"{source}: {evaluation}")
    return evaluation


def run(argv: list[str] | None) -> None:
    arguments = parse_arguments(argv)
    config = load_config(arguments)
    output_dir = arguments.output_dir or Path("outputs") / config.recipe
    first_process = is_first_process()
    if first_process:
        print(f"Recipe {config.recipe} on hardware tier {config.hardware} ({config.hardware_reason}).")
    if arguments.model and not arguments.evaluate_only and not Path(arguments.model).exists():
        # A Hub id or "tiny" stands in the run's configuration from here on, and so in its model card.
        config = configuration.with_overrides(config, {"model.name": arguments.model})
    start = None if arguments.evaluate_only else arguments.model  # it must fit, where it is not the recipe's
    sized = configuration.with_overrides(config, {"model.name": start or config.model.name})
    if configuration.load_tier(config.hardware).gpus:
        from lab_utils.machine.gpu import check_machine  # imported late, like everything that takes seconds

        check_machine(sized)
    if first_process and configuration.load_tier(config.hardware).gpus:
        from lab_utils.machine import memory as estimate

        print(f"Estimated, untested on hardware:\n{estimate.describe(sized)}")

    if arguments.evaluate_only:
        last = output_dir / config.stages[-1]
        if arguments.model:
            check_output(output_dir, [], arguments.resume)
            evaluate(config, arguments.model).save(output_dir / "eval.json")
        elif (last / "model").is_dir():
            evaluate(config, last)
        else:
            raise ConfigError(f"No trained model in {last}. Give --output-dir (and --stages) of a finished run, "
                              "or a model as --model.")
        return

    if first_process:  # the others would find what this one has written by then
        check_output(output_dir, config.stages, arguments.resume)
    from lab_utils.tasks import load_task  # imported late, like all that takes seconds

    load_task(config.task.name, config.task.response_format).dataset("train", limit=1, source=config.task.source)
    trained = train(config, output_dir, arguments.model, arguments.resume)
    if arguments.export and first_process:
        from lab_utils.models import export_model

        print(f"The merged model is in {export_model(trained.model_dir, arguments.export, config.model)}")
    if arguments.evaluate and first_process:
        for stage in config.stages:
            evaluate(config, output_dir / stage)


def main(argv: list[str] | None = None) -> int:
    try:
        run(argv)
    except (ValueError, FileExistsError) as error:
        # Errors that the workshop's own code raises are written for the learner; others keep their traceback.
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        if raised_in != Path(__file__).resolve() and Path(lab_utils.__file__).parent not in raised_in.parents:
            raise
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except TrainingStopped as stopped:
        print(stopped)
    return 0


if __name__ == "__main__":
    sys.exit(main())
