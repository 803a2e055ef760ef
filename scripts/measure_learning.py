"""Measures what training buys, seed by seed: SFT, then GRPO or PPO, controls under the same budget, paired differences.

    python scripts/measure_learning.py --recipe countdown-grpo --seeds 0 1 2 --controls --output-dir runs/measured
    python scripts/measure_learning.py --recipe countdown-ppo --seeds 0 1 2 --output-dir runs/measured
    python scripts/measure_learning.py --recipe countdown-ppo --seeds 0 1 2 --tokens-of grpo --output-dir runs/measured
    python scripts/measure_learning.py --recipe gsm8k-grpo --seeds 0 --set grpo.max_steps=60 --output-dir runs/words

Every model answers the same held-out problems, and every difference is to the SFT model of the same seed, paired by
problem. Two controls start from that SFT model as well:

    random reward   the same training, but right or wrong is decided by a coin instead of the task
    extra SFT       more of the same demonstrations, for as many seconds as the reinforcement learning took

`--tokens-of grpo` compares two methods on one budget: the run ends with the rollout in which it has generated as many
tokens as the GRPO run of the same seed, which started from the same SFT model and sees the same prompts in order.

Runs lie in OUTPUT_DIR/TASK/seed-N: countdown-grpo and countdown-ppo share their SFT models. What is there already is
not done again; after an interruption give the same command once more. Results: OUTPUT_DIR/learning-RECIPE.json, .png.
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

from lab_utils import rewards as reward_functions
from lab_utils.config import ConfigError, RunConfig, load, with_overrides
from lab_utils.evaluation import Evaluation, evaluate_run, format_results, paired_bootstrap, results_table
from lab_utils.figures import plot_training
from lab_utils.models import ModelLoadError
from lab_utils.runs import RunDirectory, RunDirectoryError
from lab_utils.training.rl import steps_per_rollout
from lab_utils.training.stages import TRAIN, finished_run


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--recipe", default="countdown-grpo", help="its last stage, grpo or ppo, is what is measured")
    parser.add_argument("--hardware", default="auto", help="the tier (default: auto)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    besides = parser.add_mutually_exclusive_group()  # the controls have the budget of a whole run
    besides.add_argument("--controls", action="store_true", help="also train the two controls")
    besides.add_argument("--tokens-of", choices=("grpo", "ppo"), metavar="STAGE",
                         help="generate as many tokens as this stage's run of the same seed (trained if missing)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings",
                        help="change a setting, such as task.test_limit=1000; may be repeated")
    parser.add_argument("--output-dir", type=Path, required=True)
    return parser.parse_args(arguments)


def random_reward(completions: list, **columns: Any) -> list[float]:
    """1.0 or 0.0 by the toss of a coin. The trainer seeds `random`, so the same seed tosses the same coins."""
    return [float(random.random() < 0.5) for _ in completions]


def with_random_correctness(config: RunConfig) -> list[Callable]:
    """The reward functions of a run, its correctness reward replaced by the coin."""
    return [random_reward if name in reward_functions.CORRECTNESS else getattr(reward_functions, name)
            for name in config.rewards]


def generated_tokens(run: RunDirectory) -> pd.Series:
    """Tokens that a run of one process has generated up to the end of each rollout, by the rollout's first step."""
    config = run.config()
    completions = (config.ppo if run.path.name.startswith("ppo") else config.grpo).rollout_size
    return (run.metrics().set_index("step")["completions/mean_length"].dropna() * completions).cumsum()


class StopAtTokens(TrainerCallback):
    """Ends training after the rollout that comes closest to a number of generated tokens. Needs logging_steps = 1."""

    def __init__(self, budget: float):
        self.budget, self.generated, self.last = budget, 0.0, 0.0

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "completions/mean_length" in logs:  # the first step of a rollout
            self.last = logs["completions/mean_length"] * args.per_device_train_batch_size * args.steps_per_generation
            self.generated += self.last
        if self.generated + self.last / 2 >= self.budget and state.global_step % steps_per_rollout(args) == 0:
            control.should_training_stop = True


def with_equal_tokens(config: RunConfig, runs: Path, stage: str, other: str) -> RunDirectory:
    """The finished run STAGE-equal-tokens, which generates as many tokens as the run `other`; trained if missing."""
    run = RunDirectory(runs / f"{stage}-equal-tokens")
    config = with_overrides(config, {f"{stage}.max_steps": 10 * getattr(config, stage).max_steps})  # the budget ends it
    if not is_there(run, stage, config):
        budget = generated_tokens(RunDirectory(runs / other)).iloc[-1]
        shutil.rmtree(run.path, ignore_errors=True)  # the tokens before an interruption would not be counted
        TRAIN[stage](config, run.path, model=runs / "sft" / "model", callbacks=[StopAtTokens(budget)])
    return run


def control(path: Path, stage: str, config: RunConfig, **arguments: Any) -> RunDirectory:
    """The finished run in `path`; trains it first, or goes on with it, where it is not finished."""
    run = RunDirectory(path)
    if not is_there(run, stage, config):
        TRAIN[stage](config, path, resume=True, **arguments)
    return run


def trained(config: RunConfig, runs: Path, stage: str) -> RunDirectory:
    """The finished run of a stage; trained if missing."""
    is_there(RunDirectory(runs / stage), stage, config)
    return finished_run(config, runs, stage)


def is_there(run: RunDirectory, stage: str, config: RunConfig) -> bool:
    """Whether a run has its trained model; raises ConfigError where that was made with other settings than these."""
    if not run.has_model:
        return False
    there, here = run.config().model_dump(), config.model_dump()
    changed = [key for key in ("seed", "task", "model", stage) if there[key] != here[key]]
    if changed:
        raise ConfigError(f"{run.path} was trained with other settings ({', '.join(changed)}), and its results would "
                          "be reported under these. Choose another --output-dir, or delete it.")
    return True


def evaluated(run: RunDirectory, config: RunConfig) -> Evaluation:
    """The evaluation of a run's model; made where there is none, or one of other questions or other sampling."""
    if run.evaluation_path.exists():
        found, asked = Evaluation.load(run.evaluation_path), config.evaluation
        sampling = ("num_samples", "max_new_tokens", "temperature", "top_p", "seed")
        same = all(found.settings.get(name) == getattr(asked, name) for name in sampling)
        if same and asked.limit in (None, len(found.examples)):
            return found
    return evaluate_run(run, config)


def seconds_of(run: RunDirectory) -> float:
    """Seconds of training."""
    return float(run.metrics()["seconds"].iloc[-1])


def steps_of(run: RunDirectory) -> int:
    """Optimiser steps."""
    return int(run.metrics()["step"].iloc[-1])


def extra_sft_config(arguments: argparse.Namespace, config: RunConfig, runs: Path, stage: str) -> RunConfig:
    """SFT for as many steps as fit into the seconds that `stage` took."""
    warm_up = RunDirectory(runs / "sft")
    steps = max(1, round(steps_of(warm_up) / seconds_of(warm_up) * seconds_of(RunDirectory(runs / stage))))
    return load(arguments.recipe, arguments.hardware, [*arguments.settings, f"seed={config.seed}",
                                                       f"sft.max_steps={steps}"])


def measure_seed(arguments: argparse.Namespace, seed: int) -> tuple[dict[str, Evaluation], dict[str, RunDirectory]]:
    """Train and evaluate everything of one seed; {label: evaluation}, SFT first, and {label: run}."""
    config = load(arguments.recipe, arguments.hardware, [*arguments.settings, f"seed={seed}"])
    stage = config.stages[-1]
    runs = arguments.output_dir / config.task.name / f"seed-{seed}"
    done = {"SFT": trained(config, runs, "sft")}
    start = done["SFT"].model_dir
    if arguments.tokens_of:
        other = load(f"{config.task.name}-{arguments.tokens_of}", arguments.hardware,
                     [*arguments.settings, f"seed={seed}"])
        done[arguments.tokens_of.upper()] = trained(other, runs, arguments.tokens_of)
        done[stage.upper()] = with_equal_tokens(config, runs, stage, arguments.tokens_of)
    else:
        done[stage.upper()] = trained(config, runs, stage)
    if arguments.controls:
        done["random reward"] = control(
            runs / f"{stage}-random", stage, config, model=start, reward_funcs=with_random_correctness(config)
        )
        more = extra_sft_config(arguments, config, runs, stage)
        done["extra SFT"] = control(runs / f"{stage}-extra-sft", "sft", more, model=start)
    return {label: evaluated(run, config) for label, run in done.items()}, done


def rows_of(seed: int, evaluations: dict[str, Evaluation], runs: dict[str, RunDirectory]) -> pd.DataFrame:
    """`results_table` with the columns seed, model, training steps and minutes in front."""
    table = results_table(evaluations).reset_index()
    table.insert(0, "seed", seed)
    table.insert(2, "steps", [steps_of(runs[label]) for label in table["model"]])
    table.insert(3, "minutes", [seconds_of(runs[label]) / 60 for label in table["model"]])
    return table


def curve_of(run: RunDirectory, label: str, seed: int) -> dict[str, Any]:
    """Training curves of a run, one point a rollout: tokens generated so far, and what was sampled in that rollout."""
    metrics = run.metrics().set_index("step")
    tokens = generated_tokens(run)
    columns = [name for name in ("accuracy", "explained_variance") if name in metrics]
    return {"seed": seed, "model": label, "tokens": [round(count) for count in tokens],
            **{name: metrics.loc[tokens.index, name].round(4).tolist() for name in columns}}


def show(table: pd.DataFrame) -> str:
    """The table as text."""
    text = format_results(table.set_index("model")).reset_index()
    text.insert(0, "seed", list(table["seed"]))
    text.insert(2, "minutes", [f"{value:.1f}" for value in table["minutes"]])
    return text.to_string(index=False)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    config = load(arguments.recipe, arguments.hardware, arguments.settings)
    if config.stages[0] != "sft" or len(config.stages) != 2:
        raise ConfigError(
            f"stages = {config.stages} cannot be measured: sft and then grpo or ppo are needed. "
            "Add --set stages=[sft,grpo], or choose a tier that puts SFT first, such as cpu."
        )
    if arguments.tokens_of == config.stages[-1]:
        raise ConfigError(f"--tokens-of {arguments.tokens_of} compares {config.recipe} with itself. "
                          "Name the other method, or leave it out.")
    tables, by_label, head_to_head = [], {}, []
    for seed in arguments.seeds:
        evaluations, runs = measure_seed(arguments, seed)
        tables.append(rows_of(seed, evaluations, runs))
        for label in runs.keys() - {"SFT", "extra SFT"}:
            by_label.setdefault(label, []).append(runs[label])
        print(f"\n{show(pd.concat(tables))}\n", flush=True)
        if arguments.tokens_of:
            first, second = arguments.tokens_of.upper(), config.stages[-1].upper()
            paired = paired_bootstrap(evaluations[first].per_problem, evaluations[second].per_problem)
            head_to_head.append({"seed": seed, "models": f"{second} less {first}", **paired._asdict()})
            print(f"seed {seed}, {second} less {first}: {100 * paired.difference:+.1f} points "
                  f"[{100 * paired.low:+.1f}, {100 * paired.high:+.1f}]", flush=True)
    table = pd.concat(tables, ignore_index=True)
    path = arguments.output_dir / f"learning-{arguments.recipe}.json"
    content = {
        "recipe": config.recipe, "hardware": config.hardware, "settings": arguments.settings,
        "evaluation": config.model_dump()["evaluation"], "rows": json.loads(table.to_json(orient="records")),
        "head_to_head": head_to_head,
        "curves": [curve_of(run, label, seed) for label, runs in by_label.items()
                   for seed, run in zip(arguments.seeds, runs, strict=True)],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    figure = path.with_suffix(".png")
    plot_training(by_label, figure, metrics=("accuracy", "completions/mean_length", "attempts", "reward"), x="minutes")
    means = table.groupby("model", sort=False)[["accuracy", "difference", "attempts", "tokens", "minutes"]].mean()
    print(f"Mean over {len(arguments.seeds)} seed(s):\n{means.round(3).to_string(na_rep='')}")
    print(f"\nWritten: {path} and {figure}")


if __name__ == "__main__":
    try:
        main()
    except (ConfigError, ModelLoadError, RunDirectoryError) as error:
        sys.exit(f"error: {error}")
