"""Measure what training gains, seed by seed: SFT, then GRPO or PPO, controls on the same budget, paired differences.

    python scripts/measure_learning.py --recipe countdown-grpo --seeds 0 1 2 --controls --output-dir runs/measured
    python scripts/measure_learning.py --recipe countdown-ppo --seeds 0 1 2 --output-dir runs/measured
    python scripts/measure_learning.py --recipe countdown-ppo --seeds 0 1 2 --tokens-of grpo --output-dir runs/measured
    python scripts/measure_learning.py --recipe gsm8k-grpo --seeds 0 --set grpo.max_steps=60 --output-dir runs/words

Every model answers the same held-out problems. Every difference in the table is to the SFT model of the same seed,
paired by problem. The base model is asked in plain text, because it has never seen a chat, and the gain of the
reinforcement learning is reported over the better of base and SFT. Two controls start from the SFT model as well:

    random reward   the same training, but a coin instead of the task decides what is correct
    extra SFT       more of the same demonstrations, for as many seconds as the reinforcement learning took

`--tokens-of grpo` compares two methods on one budget: the run ends with the rollout in which it has generated as many
tokens as the GRPO run of the same seed, which started from the same SFT model and sees the same prompts in order.

Runs are in OUTPUT_DIR/TASK/seed-N: countdown-grpo and countdown-ppo share their SFT models. Finished runs are not
trained again: after an interruption give the same command once more. Results: OUTPUT_DIR/learning-RECIPE.json, .png.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import TrainerCallback

from lab_utils import exit_status
from lab_utils import rewards as reward_functions
from lab_utils.config import ConfigError, RunConfig, load, short_name, with_overrides
from lab_utils.evaluation import (
    Evaluation,
    PairedDifference,
    evaluate_run,
    format_results,
    paired_bootstrap,
    results_table,
)
from lab_utils.figures import plot_training
from lab_utils.rewards.own import load_reward
from lab_utils.runs import RunDirectory, write_atomically
from lab_utils.training.rl import steps_per_rollout
from lab_utils.training.stages import TRAIN


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--recipe", default="countdown-grpo", help="its last stage, grpo or ppo, is measured")
    parser.add_argument("--hardware", default="auto", help="the tier (default: auto)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    compared = parser.add_mutually_exclusive_group()  # the controls have the budget of a whole run
    compared.add_argument("--controls", action="store_true", help="also train the two controls")
    compared.add_argument("--tokens-of", choices=("grpo", "ppo"), metavar="STAGE",
                          help="generate as many tokens as this stage's run of the same seed (trained if missing)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings",
                        help="change a setting, such as task.test_limit=1000; may be repeated")
    parser.add_argument("--output-dir", type=Path, required=True)
    return parser.parse_args(argv)


def random_reward(completions: list, **columns: Any) -> list[float]:
    """Return 1.0 or 0.0 by the toss of a coin. The trainer seeds `random`, so the same seed tosses the same coins."""
    return [float(random.random() < 0.5) for _ in completions]


def with_random_correctness(config: RunConfig) -> list[Callable]:
    """Return the reward functions of a run, with the coin instead of each reward that stands for correctness."""
    return [random_reward if name in reward_functions.CORRECTNESS else load_reward(name)
            for name in config.rewards]


def finished(run: RunDirectory, stage: str, config: RunConfig) -> bool:
    """Say whether a run has its trained model; raise ConfigError if it was trained with other settings."""
    if run.has_model and (changed := run.changed_settings(config, stage)):
        raise ConfigError(f"{run.path} was trained with other settings ({', '.join(changed)}), and its results would "
                          "be reported under these: choose another --output-dir, or delete it.")
    return run.has_model


def trained(path: Path, stage: str, config: RunConfig, **arguments: Any) -> RunDirectory:
    """Return the run in `path`; train it first, or resume it, unless it is finished."""
    run = RunDirectory(path)
    if not finished(run, stage, config):
        TRAIN[stage](config, path, resume=True, **arguments)
    return run


def generated_tokens(run: RunDirectory) -> pd.Series:
    """Return the tokens that a run of one process has generated after each rollout, by the rollout's first step."""
    config = run.config()
    completions = (config.ppo if run.path.name.startswith("ppo") else config.grpo).rollout_size
    return (run.metrics().set_index("step")["completions/mean_length"].dropna() * completions).cumsum()


class StopAtTokens(TrainerCallback):
    """Ends training after the rollout that comes closest to the tokens of the run `other`. Needs logging_steps = 1."""

    def __init__(self, other: RunDirectory):
        self.budget, self.generated, self.last = generated_tokens(other).iloc[-1], 0.0, 0.0

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "completions/mean_length" in logs:  # the first step of a rollout
            self.last = logs["completions/mean_length"] * args.per_device_train_batch_size * args.steps_per_generation
            self.generated += self.last
        if self.generated + self.last / 2 >= self.budget and state.global_step % steps_per_rollout(args) == 0:
            control.should_training_stop = True


def with_equal_tokens(config: RunConfig, path: Path, stage: str, start: Path, other: RunDirectory,
                      stop: type[StopAtTokens] = StopAtTokens) -> RunDirectory:
    """Return the run in `path`, which generates as many tokens as the run `other`; train it if it is not finished."""
    run = RunDirectory(path)
    config = with_overrides(config, {f"{stage}.max_steps": 10 * getattr(config, stage).max_steps})  # the budget ends it
    if not finished(run, stage, config):
        shutil.rmtree(run.path, ignore_errors=True)  # the tokens before an interruption would not be counted
        TRAIN[stage](config, run.path, model=start, callbacks=[stop(other)])
    return run


def seconds_of(run: RunDirectory) -> float:
    return float(run.metrics()["seconds"].iloc[-1])


def steps_of(run: RunDirectory) -> int:
    return int(run.metrics()["step"].iloc[-1])


def evaluated(run: RunDirectory, config: RunConfig) -> Evaluation:
    """Return the evaluation of a run's model; make it unless there is one with the same questions and sampling."""
    if run.evaluation_path.exists():
        found = Evaluation.load(run.evaluation_path)
        sampling = ("num_samples", "max_new_tokens", "temperature", "top_p", "seed")
        same = all(found.settings.get(name) == getattr(config.evaluation, name) for name in sampling)
        if same and config.task.test_limit in (None, len(found.examples)):
            return found
    return evaluate_run(run, config)


def runs_of_seed(arguments: argparse.Namespace, seed: int) -> dict[str, RunDirectory]:
    """Train everything of one seed and return run by label, SFT first."""
    settings = [*arguments.settings, f"seed={seed}"]
    config = load(arguments.recipe, arguments.hardware, settings)
    stage = config.stages[-1]
    folder = arguments.output_dir / short_name(config.task.name) / f"seed-{seed}"
    runs = {"SFT": trained(folder / "sft", "sft", config)}
    start = runs["SFT"].model_dir
    if arguments.tokens_of:
        other = load(f"{config.task.name}-{arguments.tokens_of}", arguments.hardware, settings)
        compared = trained(folder / arguments.tokens_of, arguments.tokens_of, other, model=start)
        runs[arguments.tokens_of.upper()] = compared
        runs[stage.upper()] = with_equal_tokens(config, folder / f"{stage}-equal-tokens", stage, start, compared)
    else:
        runs[stage.upper()] = trained(folder / stage, stage, config, model=start)
    if arguments.controls:
        runs["random reward"] = trained(folder / f"{stage}-random", stage, config, model=start,
                                        reward_funcs=with_random_correctness(config))
        # SFT for as many steps as fit into the seconds that the reinforcement learning took.
        steps = round(steps_of(runs["SFT"]) / seconds_of(runs["SFT"]) * seconds_of(runs[stage.upper()]))
        extra = with_overrides(config, {"sft.max_steps": max(1, steps)})
        runs["extra SFT"] = trained(folder / f"{stage}-extra-sft", "sft", extra, model=start)
    return runs


def rows_of(seed: int, evaluations: dict[str, Evaluation], runs: dict[str, RunDirectory]) -> pd.DataFrame:
    """Return `results_table` with the columns seed, training steps and minutes beside the model."""
    table = results_table(evaluations).reset_index()
    table.insert(0, "seed", seed)
    table.insert(2, "steps", [steps_of(runs[label]) if label in runs else 0 for label in table["model"]])
    table.insert(3, "minutes", [seconds_of(runs[label]) / 60 if label in runs else 0.0 for label in table["model"]])
    return table


def as_text(table: pd.DataFrame) -> str:
    text = format_results(table.set_index("model")).reset_index()
    text.insert(0, "seed", list(table["seed"]))
    text.insert(2, "minutes", [f"{value:.1f}" for value in table["minutes"]])
    return text.to_string(index=False)


def in_points(paired: PairedDifference) -> str:
    return f"{100 * paired.difference:+.1f} percentage points [{100 * paired.low:+.1f}, {100 * paired.high:+.1f}]"


def curve_of(run: RunDirectory, label: str, seed: int) -> dict[str, Any]:
    """Return the training curves of a run, one point per rollout: tokens generated so far, and its metrics."""
    metrics = run.metrics().set_index("step")
    tokens = generated_tokens(run)
    columns = [name for name in ("accuracy", "explained_variance") if name in metrics]
    return {"seed": seed, "model": label, "tokens": [round(count) for count in tokens],
            **{name: metrics.loc[tokens.index, name].round(4).tolist() for name in columns}}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    config = load(arguments.recipe, arguments.hardware, arguments.settings)
    if config.stages[0] != "sft" or len(config.stages) != 2:
        raise ConfigError(f"stages = {config.stages} cannot be measured, because sft and then grpo or ppo are needed: "
                          "add --set stages=[sft,grpo], or choose a tier that puts SFT first, such as cpu.")
    if arguments.tokens_of == config.stages[-1]:
        raise ConfigError(f"--tokens-of {arguments.tokens_of} compares {config.recipe} with itself: name the other "
                          "method, or leave it out.")
    tables, by_label, head_to_head, gains = [], {}, [], []
    base = evaluate_run(config.model.name, config, plain_text=config.model.name == "tiny")
    for seed in arguments.seeds:
        runs = runs_of_seed(arguments, seed)
        evaluations = {label: evaluated(run, config) for label, run in runs.items()} | {"base": base}
        tables.append(rows_of(seed, evaluations, runs))
        for label in runs.keys() - {"SFT", "extra SFT"}:
            by_label.setdefault(label, []).append(runs[label])
        print(f"\n{as_text(pd.concat(tables))}\n", flush=True)
        method = config.stages[-1].upper()
        best = max(("base", "SFT"), key=lambda label: evaluations[label].accuracy)
        paired = paired_bootstrap(evaluations[best].per_problem, evaluations[method].per_problem)
        gains.append({"seed": seed, "models": f"{method} − {best}", **paired._asdict()})
        print(f"seed {seed}, {method} less the better of base and SFT ({best}): {in_points(paired)}", flush=True)
        if arguments.tokens_of:
            first, second = arguments.tokens_of.upper(), config.stages[-1].upper()
            paired = paired_bootstrap(evaluations[first].per_problem, evaluations[second].per_problem)
            head_to_head.append({"seed": seed, "models": f"{second} − {first}", **paired._asdict()})
            print(f"seed {seed}, {second} − {first}: {in_points(paired)}", flush=True)
    table = pd.concat(tables, ignore_index=True)
    path = arguments.output_dir / f"learning-{arguments.recipe}.json"
    content = {
        "recipe": config.recipe, "hardware": config.hardware, "settings": arguments.settings,
        "evaluation": config.model_dump()["evaluation"], "rows": json.loads(table.to_json(orient="records")),
        "gains": gains, "head_to_head": head_to_head,
        "curves": [curve_of(run, label, seed) for label, runs in by_label.items()
                   for seed, run in zip(arguments.seeds, runs, strict=True)],
    }
    write_atomically(path, json.dumps(content, indent=1) + "\n")
    figure = path.with_suffix(".png")
    plot_training(by_label, figure, metrics=("accuracy", "completions/mean_length", "attempts", "reward"), x="minutes")
    means = table.groupby("model", sort=False)[["accuracy", "difference", "attempts", "tokens", "minutes"]].mean()
    print(f"Mean over {len(arguments.seeds)} seed(s):\n{means.round(3).to_string(na_rep='')}")
    print(f"\nWritten: {path} and {figure}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
