"""What each logged metric means, and a table of a run's metrics at two points: the one place that explains them."""

from __future__ import annotations

from fnmatch import fnmatch

import pandas as pd

from ..runs import RunDirectory

# Texts of at most 50 characters: pandas cuts off longer ones in a table.
MEANINGS = {
    "seconds": "time trained so far",
    "epoch": "passes over the training rows",
    "num_tokens": "tokens seen so far, prompts included",
    "step_time": "seconds of one step",
    "learning_rate": "size of the optimizer's steps",
    "loss": "what the optimizer minimizes; no guide in RL",
    "grad_norm": "length of the gradient, before it is clipped",
    "mean_token_accuracy": "share of tokens that were the likeliest",
    "reward": "weighted sum of the reward functions, mean",
    "reward_std": "standard deviation of that sum",
    "rewards/*/mean": "one reward function, before its weight",
    "rewards/*/std": "its standard deviation",
    "frac_reward_zero_std": "share of groups with equal rewards: no signal",
    "accuracy": "share of correct responses",
    "probe/accuracy": "the same share for fixed held-out problems",
    "probe/stderr": "standard error of that share",
    "probe/problems": "number of these problems",
    "attempts": "attempts per response (word problems: steps)",
    "completions/mean_length": "tokens per response, mean",
    "completions/min_length": "tokens of the shortest response",
    "completions/max_length": "tokens of the longest response",
    "completions/clipped_ratio": "share of responses cut off at the limit",
    "completions/mean_terminated_length": "tokens per response that was not cut off, mean",
    "completions/min_terminated_length": "tokens of the shortest of those",
    "completions/max_terminated_length": "tokens of the longest of those",
    "entropy": "how undecided the policy is at a token, nats",
    "kl": "distance from the start model, nats per token",
    "approx_kl": "distance from the policy that sampled",
    "clip_ratio/region_mean": "share of tokens whose ratio is clipped",
    "clip_ratio/low_mean": "those below 1 − ε",
    "clip_ratio/high_mean": "those above 1 + ε",
    "clip_ratio/low_min": "those below 1 − ε, in the response with fewest",
    "clip_ratio/high_max": "those above 1 + ε, in the response with most",
    "policy_loss": "PPO's clipped loss, without the critic's",
    "value_loss": "the critic's squared error",
    "clip_ratio/value": "share of the critic's values that are clipped",
    "explained_variance": "share of its targets' variance the critic explains",
    "explained_variance/lambda_1": "the same for actual returns",
    "values/mean": "the critic's mean prediction",
    "returns/mean": "the mean of its targets",
    "advantages/mean": "mean advantage per token, before whitening",
    "advantages/std": "its standard deviation",
    "sampling/sampling_logp_difference/*": "gap in log-probability, vLLM to trainer",
    "sampling/importance_sampling_ratio/*": "weight that corrects this gap",
}


def meaning(name: str) -> str:
    """Return what a metric means, or an empty text for an unknown one.

    >>> meaning("rewards/format_reward/mean")
    'one reward function, before its weight'
    """
    return next((text for pattern, text in MEANINGS.items() if fnmatch(name, pattern)), "")


def metrics_table(run: RunDirectory) -> pd.DataFrame:
    """Return every logged metric of a run with its meaning and its values at a quarter of the run and at the end.

    A metric that was not logged at such a step has its latest value before it.
    """
    frame = run.metrics().set_index("step").ffill()
    names = list(dict.fromkeys(name for pattern in [*MEANINGS, "*"] for name in frame if fnmatch(name, pattern)))
    end = frame.index[-1]
    quarter = frame.index[frame.index >= end / 4][0]
    table = pd.DataFrame({"meaning": map(meaning, names)}, index=names)
    for step in (quarter, end):
        table[f"step {step}"] = frame.loc[step, names].map(_short)
    return table


def _short(value: float) -> str:
    return "" if pd.isna(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
