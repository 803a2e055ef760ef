"""Train the stages of a recipe one after the other, each from the model of the one before.

    python scripts/train.py --recipe countdown-grpo --hardware cpu --evaluate
    python scripts/train.py --recipe countdown-grpo --stages sft --output-dir outputs/a
    python scripts/train.py --recipe countdown-grpo --stages grpo --output-dir outputs/a --model outputs/a/sft/model
    python scripts/train.py --recipe countdown-grpo --evaluate-only --output-dir outputs/a

Every stage has its own run directory: OUTPUT_DIR/sft, OUTPUT_DIR/grpo and so on. SIGTERM ends training after a
checkpoint, with status 0. Under `accelerate launch` send it to the training processes: the launcher kills them after
30 seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import get_args

from lab_utils import WorkshopError, exit_status
from lab_utils import config as configuration
from lab_utils.config import RunConfig
from lab_utils.config.schema import Stage


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    recipes, tiers = ", ".join(configuration.recipe_names()), ", ".join(configuration.hardware_names())
    parser.add_argument("--recipe", required=True, help=f"what is learned: {recipes}, or your own .yaml file")
    parser.add_argument("--hardware", default="auto", help=f"the hardware tier: auto (default), {tiers}")
    parser.add_argument("--stages", help="only these stages, such as sft or sft,grpo; default: those of the recipe")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings",
                        help="change a setting, such as grpo.beta=0.04; may be repeated")
    parser.add_argument("--limit", help="at most this many training problems, demonstrations and test questions")
    parser.add_argument("--output-dir", type=Path, help="where the run directories go; default: outputs/RECIPE")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run in --output-dir")
    parser.add_argument("--model", help="start model: a RUN/model folder, a Hub id or 'tiny'; default: the recipe's")
    parser.add_argument("--export", type=Path, metavar="DIR",
                        help="also write the last stage's model to DIR for serving: merged, with its tokenizer")
    after = parser.add_mutually_exclusive_group()
    after.add_argument("--evaluate", action="store_true", help="after training, evaluate the model of every stage")
    after.add_argument("--evaluate-only", action="store_true",
                       help="do not train; evaluate --model or the last stage in --output-dir, and write eval.json")
    return parser.parse_args(argv)


def load_config(arguments: argparse.Namespace) -> RunConfig:
    overrides = list(arguments.settings)
    if arguments.stages is not None:
        overrides.append(f"stages=[{arguments.stages}]")
    if arguments.limit is not None:
        overrides += [f"{key}={arguments.limit}" for key in ("task.train_limit", "task.test_limit")]
    config = configuration.load(arguments.recipe, arguments.hardware, overrides)
    if arguments.model and not arguments.evaluate_only and not Path(arguments.model).exists():
        # A Hub id or "tiny" becomes the run's model, which its model card names.
        config = configuration.with_overrides(config, {"model.name": arguments.model})
    return config


def check_output(output_dir: Path, stages: list[str], resume: bool) -> None:
    """Raise WorkshopError if results cannot be written or would be overwritten; other stages' runs may be there."""
    from lab_utils.runs import holds_files

    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise WorkshopError(f"Cannot write to the output directory {output_dir} ({error.strerror}): set "
                            "--output-dir to a writable directory.") from None
    others = set(get_args(Stage)) - set(stages)
    found = sorted(path.name for path in output_dir.iterdir()
                   if path.name not in others and (path.is_file() or holds_files(path)))
    if found and not resume:
        raise WorkshopError(f"The output directory {output_dir} is not empty; it holds {', '.join(found[:5])}: "
                            "continue the run in it with --resume, or choose another --output-dir.")


def evaluate(config: RunConfig, output_dir: Path, model: str | None, resume: bool) -> None:
    """Evaluate `model`, or the trained model of the last stage."""
    from lab_utils.evaluation import evaluate_run
    from lab_utils.runs import RunDirectory

    source = model or output_dir / config.stages[-1]
    if model:
        check_output(output_dir, [], resume)
    elif not RunDirectory(source).has_model:
        raise WorkshopError(f"No trained model in {source}: pass --output-dir (and --stages) of a finished run, "
                            "or pass --model MODEL.")
    evaluation = evaluate_run(source, config)
    print(f"{source}: {evaluation}")
    if model:  # evaluate_run writes the eval.json of a run directory itself
        evaluation.save(output_dir / "eval.json")


def train(config: RunConfig, output_dir: Path, arguments: argparse.Namespace, first_process: bool) -> None:
    """Train the stages; then export and evaluate, if requested. Of several processes, the first one does all else."""
    from lab_utils.evaluation import evaluate_run
    from lab_utils.models import export_model
    from lab_utils.rewards.own import try_own_code
    from lab_utils.tasks import load_task
    from lab_utils.training.stages import TRAIN

    if first_process:
        check_output(output_dir, config.stages, arguments.resume)
    task = load_task(config.task)
    own = task.own or Path(config.task.source).exists()  # then every row is tried: all problems are found now
    rows = list(task.dataset("train", config.task.train_limit if own else 4, config.task.source))
    if own or arguments.evaluate:
        rows += task.dataset("test", config.task.test_limit if own else 4, config.task.source)
    tried = try_own_code(config, task, rows)
    if first_process:
        print(*tried, sep="\n", end="\n" * bool(tried))
    model = arguments.model
    for stage in config.stages:
        run = TRAIN[stage](config, output_dir / stage, model=model, resume=arguments.resume)
        model = str(run.model_dir)
        if first_process:
            print(f"{stage}: the trained model is in {model}")
    if arguments.export and first_process:
        print(f"The merged model is in {export_model(model, arguments.export, config.model)}")
    if arguments.evaluate and first_process:
        for stage in config.stages:
            print(f"{output_dir / stage}: {evaluate_run(output_dir / stage, config)}")


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    config = load_config(arguments)
    output_dir = arguments.output_dir or Path("outputs") / config.recipe
    first_process = os.environ.get("RANK", "0") == "0"  # of those that `accelerate launch` started
    if first_process:
        print(f"Recipe {arguments.recipe} on hardware tier {config.hardware} ({config.hardware_reason}).")
    if configuration.load_tier(config.hardware).gpus:
        from lab_utils.machine import memory  # imported late, like everything that takes seconds
        from lab_utils.machine.gpu import check_machine

        trained = config.model.name if arguments.evaluate_only else arguments.model or config.model.name
        sized = configuration.with_overrides(config, {"model.name": trained})
        check_machine(sized)
        if first_process:
            print(f"Estimated, untested on hardware:\n{memory.describe(sized)}")
    if arguments.evaluate_only:
        evaluate(config, output_dir, arguments.model, arguments.resume)
    else:
        train(config, output_dir, arguments, first_process)


if __name__ == "__main__":
    sys.exit(exit_status(main))
