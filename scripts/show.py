"""Show completions that a run recorded while it trained: question, gold, response, extracted answer, rewards.

    python scripts/show.py runs/first/grpo                          # the best and the worst completion of the last step
    python scripts/show.py runs/first/grpo --step 1 --group 2       # all completions of one question
    python scripts/show.py runs/first/grpo --reward format_reward   # the best and the worst by one reward

`--step` takes the recorded step that is the nearest.
"""

from __future__ import annotations

import argparse
import sys

import pandas as pd

from lab_utils import WorkshopError, exit_status
from lab_utils.runs import RunDirectory, completion_in_words


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("run", help="the run directory of a stage that samples, such as OUTPUT_DIR/grpo")
    parser.add_argument("--step", type=int, help="the training step; default: the last one")
    parser.add_argument("--group", type=int, help="all completions of the group with this number, from 1")
    parser.add_argument("--reward", help="order by this reward instead of the weighted sum")
    return parser.parse_args(argv)


def chosen(frame: pd.DataFrame, step: int | None, group: int | None, reward: str | None) -> pd.DataFrame:
    """Return the completions to show, with the columns `group` and `score`."""
    steps = sorted(set(frame["step"]))
    nearest = steps[-1] if step is None else min(steps, key=lambda known: abs(known - step))
    rows = frame[frame["step"] == nearest].reset_index(drop=True)
    rows["group"] = (rows["question"] != rows["question"].shift()).cumsum()
    if reward is None:
        rows["score"] = rows["reward"]
    else:
        parts = rows.get("rewards", pd.Series([{}] * len(rows)))
        known = sorted({name for part in parts if isinstance(part, dict) for name in part})
        if reward not in known:
            raise WorkshopError(f"--reward {reward} was not recorded: choose from {', '.join(known)}." if known else
                                "This run recorded only the sum of its rewards: leave out --reward.")
        rows["score"] = [part[reward] for part in parts]
    if group is None:
        return rows.loc[list(dict.fromkeys([rows["score"].idxmax(), rows["score"].idxmin()]))]
    if group not in set(rows["group"]):
        raise WorkshopError(f"--group {group} does not exist at step {nearest}: choose 1 to {rows['group'].max()}.")
    return rows[rows["group"] == group].sort_values("score", ascending=False)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    frame = RunDirectory(arguments.run).completions()
    if frame.empty:
        raise WorkshopError(f"{arguments.run} has no recorded completion yet: wait for the first step, or resume it.")
    rows = chosen(frame, arguments.step, arguments.group, arguments.reward)
    for row in rows.to_dict("records"):
        print(f"--- group {row['group']}\n{completion_in_words(row, most=100_000)}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
