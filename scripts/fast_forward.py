"""Put finished runs in place, so that a learner who lost an hour continues with the class.

    python scripts/run_notebooks.py --output-dir runs/yesterday                        the day before, once
    python scripts/fast_forward.py --from runs/yesterday --to outputs --notebook 6     in class, in seconds

It copies what notebook 6 and those before it leave for later notebooks. The learner's own finished runs stay.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from lab_utils import WorkshopError, exit_status
from lab_utils.runs import RunDirectory, written_whole

LEAVES = {  # by notebook: the run directories in its OUTPUT_DIR
    3: ("countdown/sft",),
    6: ("countdown/grpo",),
    7: ("gsm8k/sft", "gsm8k/grpo-honest", "gsm8k/grpo-short", "gsm8k/grpo-closed"),
    8: ("countdown/base", "countdown/grpo-random", "countdown/sft-extra"),
    10: ("countdown/ppo",),
}
NOT_COPIED = shutil.ignore_patterns(".lock", "*.tmp-*", "served")  # of another process, unfinished, made again in 12


def is_finished(path: Path) -> bool:
    """Say whether a run has its model; that of a base model, which was not trained, has only its evaluation."""
    run = RunDirectory(path)
    return run.has_model or (run.evaluation_path.exists() and not run.config_path.exists())


def fast_forward(source: Path, target: Path, notebook: int) -> None:
    """Copy the runs that notebooks up to `notebook` leave from `source` to `target`, unless `target` has them.

    Raises:
        WorkshopError: a run is missing in `source`; nothing was copied.
    """
    names = {name: number for number, them in LEAVES.items() if number <= notebook for name in them}
    if missing := {name: number for name, number in names.items() if not is_finished(source / name)}:
        numbers = ",".join(f"{number:02}" for number in sorted(set(missing.values())))
        raise WorkshopError(f"{source} has no finished run {', '.join(missing)}: make it with python "
                            f"scripts/run_notebooks.py --only {numbers} --output-dir {source}. Nothing was copied.")
    for name in names:
        place = RunDirectory(target / name)
        if is_finished(place.path):
            print(f"kept    {place.path} (finished)")
            continue
        with place.locked():  # raises an error if a notebook trains there now
            pass
        with written_whole(place.path) as copy:
            shutil.copytree(source / name, copy, ignore=NOT_COPIED)
        print(f"copied  {place.path}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--from", type=Path, required=True, dest="source", help="a folder of finished runs")
    parser.add_argument("--to", type=Path, default=Path("outputs"), dest="target",
                        help="the learner's OUTPUT_DIR (default: outputs)")
    parser.add_argument("--notebook", type=int, required=True, help="the last notebook to skip, such as 6")
    arguments = parser.parse_args(argv)
    if arguments.notebook < min(LEAVES):
        raise WorkshopError(f"Notebook {arguments.notebook:02} and those before it leave no runs: open the next one, "
                            f"or choose --notebook {min(LEAVES)} or higher.")
    fast_forward(arguments.source, arguments.target, arguments.notebook)
    print(f"Open the notebook after {arguments.notebook:02}, with OUTPUT_DIR = {str(arguments.target)!r}.")


if __name__ == "__main__":
    sys.exit(exit_status(main))
