"""Compare variants of GRPO: one start model, the same prompts in order and the same number of generated tokens.

    python scripts/compare_variants.py --seeds 0 1 2 --set task.test_limit=200 --output-dir runs/variants

The default is countdown-grpo as the tier has it. A variant changes the settings listed under its name below, and no
others. Its run ends with the rollout in which it has generated as many tokens as the default run of the same seed. Each
of its rollouts has the learning rate that the default had after as many tokens. All models answer the same held-out
problems. A difference to the default is paired by problem, and its 95% interval covers the choice of problems only.

With one optimizer step per rollout the probability ratio is 1, and nothing is clipped. Variants of clipping therefore
make two passes over each rollout, and are also compared with plain GRPO that does.

Not measured: DAPO's dynamic sampling, which TRL does not have. It would replace the share of groups under `no signal`.

Runs are in OUTPUT_DIR/countdown/seed-N, with SFT and the default where scripts/measure_learning.py has them. Finished
runs are not trained again: after an interruption give the same command once more. Results: OUTPUT_DIR/variants.json,
.md and .png. Notebook 13 shows the recorded copy, notebooks/recorded/variants.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure_learning
import numpy as np
import pandas as pd
from measure_learning import StopAtTokens, evaluated, generated_tokens, steps_of, with_equal_tokens

from lab_utils import exit_status
from lab_utils.config import RunConfig, load, with_overrides
from lab_utils.evaluation import Evaluation, PairedDifference, paired_bootstrap
from lab_utils.figures import plot_differences
from lab_utils.runs import RunDirectory, write_atomically
from lab_utils.training.rl import steps_per_rollout

RECIPE, DEFAULT, TWO_PASSES = "countdown-grpo", "GRPO", "2 passes"


def variants(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Return the changed settings of each variant, by its name. The default has DAPO's token-level loss already."""
    group = config.grpo.num_generations
    two_passes = {"grpo.num_iterations": 2}  # µ of DeepSeekMath's algorithm 1
    return {
        # GRPO as published (DeepSeekMath, arXiv 2402.03300, equation 3): the mean of each response first.
        "per-response loss": {"grpo.loss_type": "grpo"},
        # Dr. GRPO (arXiv 2503.20783, section 3) divides neither by the length nor by the standard deviation.
        "Dr. GRPO": {"grpo.loss_type": "dr_grpo", "grpo.scale_rewards": "none"},
        "no scaling": {"grpo.scale_rewards": "none"},  # the second half of Dr. GRPO alone
        # RLOO (arXiv 2402.14740). Without scaling, a reward minus the mean of the *others* is G / (G - 1) times the
        # reward minus the mean of all (notebook 04). So larger weights of the rewards give the same advantages.
        "leave-one-out": {"grpo.scale_rewards": "none", "rewards": {
            name: weight * group / (group - 1) for name, weight in config.rewards.items()}},
        "no KL": {"grpo.beta": 0.0},  # DAPO (arXiv 2503.14476, section 2.3), and Dr. GRPO
        "overlong filtering": {"grpo.mask_truncated_completions": True},  # DAPO, section 3.4
        TWO_PASSES: two_passes,
        "2 passes, clip-higher": {**two_passes, "grpo.epsilon_high": 0.28},  # DAPO, section 3.1
        # GSPO (arXiv 2507.18071): the ratio of section 4.1, the clipping range of section 5.1. The KL term stays, but
        # TRL's correction of it is exact only for ratios of tokens.
        "2 passes, GSPO": {**two_passes, "grpo.importance_sampling_level": "sequence", "grpo.loss_type": "grpo",
                           "grpo.epsilon": 3e-4, "grpo.epsilon_high": 4e-4},
    }


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--hardware", default="cpu", help="the tier (default: cpu)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings",
                        help="change a setting of the default and of all variants; may be repeated")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.set_defaults(recipe=RECIPE, controls=False, tokens_of=None)  # what measure_learning reads as well
    return parser.parse_args(argv)


class FollowDefault(StopAtTokens):
    """Also gives each rollout the learning rate that the run `other` had after as many generated tokens."""

    def __init__(self, other: RunDirectory):
        super().__init__(other)
        tokens = generated_tokens(other)
        self.tokens = [0.0, *tokens.iloc[:-1]]  # before each rollout
        self.rates = other.metrics().set_index("step").loc[tokens.index, "learning_rate"].to_numpy()

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        if state.global_step % steps_per_rollout(args) == 0:
            self.rate = float(np.interp(self.generated, self.tokens, self.rates))
        for group in optimizer.param_groups:
            group["lr"] = self.rate

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "learning_rate" in logs:
            logs["learning_rate"] = self.rate  # the trainer logs the rate of its own schedule
        super().on_log(args, state, control, logs=logs, **kwargs)


def runs_of_seed(arguments: argparse.Namespace, seed: int) -> dict[str, RunDirectory]:
    """Train everything of one seed and return run by name: SFT, the default, and its variants."""
    runs = measure_learning.runs_of_seed(arguments, seed)
    config = load(RECIPE, arguments.hardware, [*arguments.settings, f"seed={seed}"])
    folder = runs[DEFAULT].path.parent / "variants"
    for name, changes in variants(config).items():
        path = folder / name.lower().replace(",", "").replace(" ", "-")
        runs[name] = with_equal_tokens(with_overrides(config, changes), path, "grpo", runs["SFT"].model_dir,
                                       runs[DEFAULT], FollowDefault)
    return runs


def measured(run: RunDirectory, evaluation: Evaluation) -> dict[str, float]:
    """Return the numbers of one run: of its evaluation, and, unless it is SFT, of its training."""
    found = {"accuracy": evaluation.accuracy, "format": evaluation.format_rate, "length": evaluation.mean_length,
             "steps": steps_of(run)}
    metrics, passes = run.metrics(), run.config().grpo.num_iterations
    if "clip_ratio/region_mean" in metrics:
        found |= {"generated": generated_tokens(run).iloc[-1], "no_signal": metrics["frac_reward_zero_std"].mean(),
                  "clipped": metrics["clip_ratio/region_mean"][passes - 1::passes].mean()}  # in the last pass
    return found


def difference(before: Sequence[Evaluation], after: Sequence[Evaluation]) -> PairedDifference:
    """Return the difference of the means over seeds, paired by problem."""
    return paired_bootstrap(*(np.mean([one.per_problem for one in seeds], axis=0) for seeds in (before, after)))


def summary(name: str, rows: pd.DataFrame, evaluations: dict[str, list[Evaluation]]) -> dict[str, Any]:
    """Return the means over the seeds of one variant, and its difference to the default: pooled, and seed by seed."""
    found = {"variant": name, **rows.drop(columns=["seed", "variant"]).mean().dropna().to_dict()}
    if name not in ("SFT", DEFAULT):
        found |= difference(evaluations[DEFAULT], evaluations[name])._asdict()
        found["seeds"] = [difference([a], [b]).difference
                          for a, b in zip(evaluations[DEFAULT], evaluations[name], strict=True)]
    if name.startswith(f"{TWO_PASSES},"):
        found["from_two_passes"] = difference(evaluations[TWO_PASSES], evaluations[name])._asdict()
    return found


def as_text(row: dict[str, Any]) -> dict[str, str]:
    """Return a `summary` for people: percentages, and differences in percentage points."""
    def number(name: str, form: str, scale: float = 1.0) -> str:
        return format(scale * row[name], form) if name in row else ""

    def points(paired: dict[str, Any]) -> str:
        return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * paired[key] for key in ("difference", "low", "high")))

    return {
        "variant": row["variant"], "accuracy": number("accuracy", ".1%"),
        "− GRPO (points)": points(row) if "difference" in row else "",
        "each seed": ", ".join(f"{100 * value:+.1f}" for value in row.get("seeds", [])),
        "− 2 passes (points)": points(row["from_two_passes"]) if "from_two_passes" in row else "",
        "format": number("format", ".1%"), "tokens per response": number("length", ".0f"),
        "clipped": number("clipped", ".1%"), "no signal": number("no_signal", ".0%"),
        "generated (thousand)": number("generated", ".0f", 1e-3), "steps": number("steps", ".0f"),
    }


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    config = load(RECIPE, arguments.hardware, arguments.settings)
    rows, evaluations = [], {}
    for seed in arguments.seeds:
        for name, run in runs_of_seed(arguments, seed).items():
            evaluation = evaluated(run, config)
            evaluations.setdefault(name, []).append(evaluation)
            rows.append({"seed": seed, "variant": name, **measured(run, evaluation)})
            print(f"seed {seed}, {name}: {evaluation}", flush=True)
    by_run = pd.DataFrame(rows)
    summaries = [summary(name, by_run[by_run["variant"] == name], evaluations) for name in evaluations]
    table = [as_text(row) for row in summaries]
    content = {
        "recipe": RECIPE, "hardware": config.hardware, "settings": arguments.settings, "seeds": arguments.seeds,
        "problems": len(evaluation.examples), "samples": evaluation.num_samples, "default": config.model_dump()["grpo"],
        "variants": variants(config), "rows": rows, "summaries": summaries, "table": table,
    }
    path = arguments.output_dir / "variants.json"
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    lines = [table[0].keys(), ["---"] * len(table[0]), *(row.values() for row in table)]
    write_atomically(path.with_suffix(".md"), "".join(f"| {' | '.join(line)} |\n" for line in lines))
    plot_differences(summaries, DEFAULT, path.with_suffix(".png"))
    print(f"\n{pd.DataFrame(table).to_string(index=False)}\n\nWritten: {path}, with .md and .png beside it")


if __name__ == "__main__":
    sys.exit(exit_status(main))
