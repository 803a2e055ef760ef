"""Measure best of n, imitation of own answers, DPO, a reward model and GRPO over several seeds: notebook 14, repeated.

    python scripts/compare_alternatives.py --seeds 0 1 2 --output-dir runs/what-else

Each seed has a warm-up and a GRPO run of its own, in OUTPUT_DIR/seed-N beside the executed notebook. Finished runs are
not trained again: after an interruption give the same command once more. OUTPUT_DIR/what_else.json holds all seeds;
notebook 14 shows the copy in notebooks/recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from run_notebooks import execute

from lab_utils import REPOSITORY, WorkshopError, exit_status
from lab_utils.evaluation import format_results
from lab_utils.runs import write_atomically

NOTEBOOK = REPOSITORY / "notebooks" / "14_what_else.ipynb"


def result_of_seed(seed: int, arguments: argparse.Namespace) -> dict:
    """Execute the notebook with a seed; return what it has written: the seed and the rows of its table."""
    folder = (arguments.output_dir / f"seed-{seed}").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / NOTEBOOK.name
    failure = execute(NOTEBOOK, copy, {"HARDWARE": arguments.hardware, "OUTPUT_DIR": str(folder), "SEED": seed,
                                       "QUESTIONS": arguments.questions})
    if failure:
        raise WorkshopError(f"Seed {seed} failed, and the seeds after it were not run: correct what {copy} shows, and "
                            f"give the same command again. It failed in {failure}")
    return json.loads((folder / "countdown" / "what_else.json").read_text(encoding="utf-8"))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--questions", type=int, default=500, help="test problems per evaluation (default: 500)")
    parser.add_argument("--hardware", choices=("cpu", "smoke"), default="cpu", help="the tier (default: cpu)")
    parser.add_argument("--output-dir", type=Path, required=True)
    arguments = parser.parse_args(argv)
    os.environ.setdefault("WANDB_MODE", "offline")  # the notebook's process inherits it
    results = []
    for seed in arguments.seeds:
        results.append(result_of_seed(seed, arguments))
        print(f"seed {seed}:\n{format_results(pd.DataFrame(results[-1]['rows']).set_index('model')).to_string()}\n",
              flush=True)
    write_atomically(arguments.output_dir / "what_else.json", json.dumps(results, indent=1) + "\n")
    rows = pd.concat([pd.DataFrame(result["rows"]) for result in results])
    names = ["accuracy", "difference", "format", "attempts", "tokens, training", "tokens, answer", "seconds"]
    print(f"Mean over {len(results)} seed(s):\n{rows.groupby('model', sort=False)[names].mean().round(3).to_string()}")
    print(f"\nWritten: {arguments.output_dir / 'what_else.json'}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
