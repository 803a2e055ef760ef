"""Record the runs of notebook 09: a healthy one, eight that have exactly one problem each, and one that is only noisy.

    python scripts/record_runs.py --output-dir runs/recording
    python scripts/record_runs.py --output-dir runs/recording --only A,E    some of them

Every run is GRPO on Countdown with the tiny model at tier cpu. Seed and number of steps are the same for all. They are
trained in OUTPUT_DIR, where a finished run is not trained again. What ships goes to notebooks/recorded/runs: the run
directories without their models, with rounded metrics and a few of the completions.

RECORDINGS below gives the problem of each run away. To find out yourself, read notebook 09 first.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from lab_utils import exit_status  # before torch: it says how torch's threads wait

# isort: split
import pandas as pd
import torch

from lab_utils import rewards
from lab_utils.config import RunConfig, load
from lab_utils.runs import RunDirectory, write_atomically
from lab_utils.sampling.local import rollout
from lab_utils.tasks import completion_text, load_task
from lab_utils.tasks.countdown import LARGEST_RESULT, all_attempts
from lab_utils.training import grpo, rl
from lab_utils.training.stages import finished_run

RECIPE, HARDWARE, SEED, STEPS = "countdown-grpo", "cpu", 0, 24
SHIPPED = Path(__file__).resolve().parents[1] / "notebooks" / "recorded" / "runs"
SHIPPED_ROWS = (0, 1, 2, 3, 16, 17, 18, 19)  # of a step's completions: four to each of its first two problems
EASY_PROBLEMS = 64


def format_reward(completions, **columns):
    """Return 1.0 for the format that the prompt asks for, else 0.0."""
    pattern = r"<reasoning>.*?</reasoning>\s*<answer>.*?</answer>"
    return [1.0 if re.fullmatch(pattern, completion_text(text)) else 0.0 for text in completions]


def style_reward(completions, **columns):
    """Return 1.0 for an answer that multiplies, in the style that a judge once liked, else 0.0."""
    answers = [completion_text(text).rpartition("<answer>")[2] for text in completions]
    return [1.0 if "*" in answer else 0.0 for answer in answers]


def stale_rollout() -> Callable:
    """Return a sampler (TRL's `rollout_func`) that keeps the weights it got before the first step."""
    old: dict[str, torch.Tensor] = {}

    def sample_with_old_weights(prompts, trainer):
        model = trainer.accelerator.unwrap_model(trainer.model)
        new = copy.deepcopy(model.state_dict())
        if not old:
            old.update(new)
        model.load_state_dict(old)
        completions = rollout(prompts, trainer)
        model.load_state_dict(new)
        return completions

    return sample_with_old_weights


@dataclass(frozen=True)
class Recording:
    """A run's problem, by its name in lab_utils/teaching/diagnosis.py, and the change that causes it."""

    problem: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    reward_funcs: tuple[Callable, Callable] | None = None  # instead of the recipe's format and equation reward
    stale_sampler: bool = False


RECORDINGS = {
    "healthy": Recording(None),
    "A": Recording("completions cut off", {"grpo.max_completion_length": 32}),
    "B": Recording("learning rate too high", {"grpo.learning_rate": 5e-3}),
    "C": Recording("problems too easy", {"model.name": "easy/model", "task.source": "easy.jsonl"}),
    "D": Recording("hacked reward", reward_funcs=(rewards.format_reward, style_reward)),
    "E": Recording("learning rate too low", {"grpo.learning_rate": 1e-6}),
    "F": Recording("nothing to reward", {"model.name": "tiny"}),
    "G": Recording("dead reward function", reward_funcs=(format_reward, rewards.equation_reward)),
    "H": Recording("sampler not updated", stale_sampler=True),
    "I": Recording("only noise", {"grpo.per_device_train_batch_size": 64}),  # 4 problems per step instead of 16
}

# Run C starts from the model of this run, on the same easy problems.
BEFORE_C = Recording(None, {"model.name": "healthy/model", "task.source": "easy.jsonl", "grpo.beta": 0.0,
                            "grpo.learning_rate": 3e-4})


def config_of(recording: Recording, folder: Path) -> RunConfig:
    """Return the run's configuration. Paths in `settings` are relative to `folder`."""
    settings = {"model.name": "sft/model", **recording.settings}
    for key in ("model.name", "task.source"):
        if key in settings and settings[key] != "tiny":
            settings[key] = str(folder / settings[key])
    length = {"seed": SEED, "grpo.max_steps": STEPS, "grpo.log_completions_steps": 4}
    return load(RECIPE, HARDWARE, {**length, **settings})


def train(name: str, folder: Path) -> RunDirectory:
    """Return the finished run in FOLDER/NAME. If it is missing, train it, after the run that it starts from."""
    run, recording = RunDirectory(folder / name), {"easy": BEFORE_C, **RECORDINGS}[name]
    if run.has_model:
        return run
    config = config_of(recording, folder)
    if name == "C":
        write_easy_problems(folder / "easy.jsonl")
        train("easy", folder)
    elif name == "easy":
        train("healthy", folder)
    else:
        finished_run(load(RECIPE, HARDWARE, {"seed": SEED}), folder, "sft")
    shutil.rmtree(run.path, ignore_errors=True)
    with mock.patch.object(rl, "rollout", stale_rollout() if recording.stale_sampler else rollout):
        return grpo.train(config, run.path, reward_funcs=recording.reward_funcs)


def write_easy_problems(path: Path) -> None:
    """Write the easiest training problems: those that the largest share of all possible attempts solves."""
    def share(row: dict) -> float:
        attempts = all_attempts(tuple(sorted(row["nums"])), LARGEST_RESULT)
        return sum(value == row["target"] for _, _, value in attempts) / len(attempts)

    easiest = sorted(load_task("countdown").synthetic_rows("train", None), key=share, reverse=True)[:EASY_PROBLEMS]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in easiest))


def ship(name: str, run: RunDirectory, folder: Path) -> None:
    """Copy what the notebook reads to SHIPPED/NAME: rounded, with few completions and nothing about this machine."""
    recording, target = RECORDINGS[name], RunDirectory(SHIPPED / name)
    shutil.rmtree(target.path, ignore_errors=True)
    target.path.mkdir(parents=True)
    write_atomically(target.config_path, run.config().to_yaml().replace(f"{folder}/", ""))
    versions = {key: value for key, value in run.environment().items() if key in ("python", "packages")}
    write_atomically(target.path / "environment.json", json.dumps(versions, indent=2) + "\n")
    for row in run.metrics().to_dict("records"):
        step = int(row.pop("step"))
        target.append_metrics(step, {key: float(f"{value:.5g}") for key, value in row.items() if value == value})
    completions = run.completions().drop(columns="tokens").round({"reward": 4})
    chosen = pd.concat([step.iloc[list(SHIPPED_ROWS)] for _, step in completions.groupby("step")])
    target.append_completions(json.loads(chosen.to_json(orient="records", force_ascii=False)))
    code = [*(recording.reward_funcs or ()), *([stale_rollout] if recording.stale_sampler else ())]
    own = [textwrap.dedent(inspect.getsource(function)) for function in code if function.__module__ == __name__]
    if own:
        write_atomically(target.path / "own_code.txt", "\n\n".join(own))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="the folder to train the runs in")
    parser.add_argument("--only", default=",".join(RECORDINGS), help=f"some of {','.join(RECORDINGS)} (default: all)")
    arguments = parser.parse_args(argv)
    names = arguments.only.split(",")
    if unknown := set(names) - set(RECORDINGS):
        parser.error(f"--only names unknown recordings {', '.join(sorted(unknown))}: "
                     f"choose from {', '.join(RECORDINGS)}")
    for name in names:
        run = train(name, arguments.output_dir)
        ship(name, run, arguments.output_dir)
        last = run.metrics().iloc[-5:].mean()
        print(f"{name}: reward {last['reward']:.2f}, accuracy {last['accuracy']:.2f} in the last five steps; "
              f"{run.metrics()['seconds'].iloc[-1]:.0f} s")


if __name__ == "__main__":
    sys.exit(exit_status(main))
