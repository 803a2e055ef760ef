"""The results of an evaluation: every answer, the numbers computed from them, and tables that compare models.

Every question is asked `num_samples` times. Accuracy is the mean over questions of the share of correct samples. Its
interval comes from the spread between questions, because the questions are the random sample.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import WorkshopError
from ..runs import write_atomically
from .statistics import Interval, bootstrap_interval, maj_at_k, paired_bootstrap, pass_at_k, wilson_interval


@dataclass
class Evaluation:
    """Every answer of a model to a set of questions, and the numbers computed from them.

    examples: one dictionary per question: question, prompt, gold and `completions`, a list of dictionaries with
        text, extracted, correct (strict), correct_lenient, has_format, finished, num_tokens, attempts, and `rewards`,
        the value of each reward function (missing in files of earlier versions).
    settings: how the completions were sampled, and the weights of the rewards.
    """

    examples: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        counts = {len(example["completions"]) for example in self.examples}
        if len(counts) != 1 or 0 in counts:
            raise WorkshopError(
                f"There are {len(self.examples)} questions with {sorted(counts)} completions: give at least one "
                "question, and the same number of completions for each."
            )

    @property
    def num_samples(self) -> int:
        return len(self.examples[0]["completions"])

    def scores(self, name: str = "correct") -> np.ndarray:
        """Return one field of every completion as numbers, shape (questions, num_samples)."""
        return np.array([[float(c[name]) for c in example["completions"]] for example in self.examples])

    @property
    def per_problem(self) -> np.ndarray:
        """Return the share of correct samples per question (strict), shape (questions,)."""
        return self.scores().mean(axis=1)

    @property
    def accuracy(self) -> float:
        """Return the mean over questions of the share of samples that `task.is_correct` accepts."""
        return float(self.per_problem.mean())

    @property
    def accuracy_in_format(self) -> float:
        """Return the share of samples that are correct (strict) and have the whole response format."""
        return float((self.scores() * self.scores("has_format")).mean())

    @property
    def accuracy_lenient(self) -> float:
        """Return the accuracy by `task.is_correct_lenient`: lenient minus strict is the cost of the format."""
        return float(self.scores("correct_lenient").mean())

    @cached_property
    def accuracy_interval(self) -> Interval:
        return _interval(self.per_problem)

    @cached_property
    def accuracy_lenient_interval(self) -> Interval:
        return _interval(self.scores("correct_lenient").mean(axis=1))

    @property
    def format_rate(self) -> float:
        return float(self.scores("has_format").mean())

    @cached_property
    def format_interval(self) -> Interval:
        return _interval(self.scores("has_format").mean(axis=1))

    @property
    def truncation_rate(self) -> float:
        """Return the share of completions that were cut off at `max_new_tokens`."""
        return 1.0 - float(self.scores("finished").mean())

    @property
    def mean_length(self) -> float:
        """Return the mean number of tokens per completion."""
        return float(self.scores("num_tokens").mean())

    @property
    def mean_attempts(self) -> float:
        return float(self.scores("attempts").mean())

    @property
    def ks(self) -> list[int]:
        """Return 1, 2, 4, 8, … up to the number of samples."""
        return [2**i for i in range(self.num_samples.bit_length())]

    def pass_per_problem(self, k: int) -> np.ndarray:
        """Return pass@k of every question, shape (questions,)."""
        n = self.num_samples
        return np.array([pass_at_k(n, int(c), k) for c in self.scores().sum(axis=1)])

    @cached_property
    def pass_at(self) -> dict[int, float]:
        """Return k -> pass@k, the probability that at least one of k samples is correct."""
        return {k: float(self.pass_per_problem(k).mean()) for k in self.ks}

    @cached_property
    def pass_at_intervals(self) -> dict[int, Interval]:
        return {k: _interval(self.pass_per_problem(k)) for k in self.ks}

    @cached_property
    def maj_at(self) -> dict[int, float]:
        """Return k -> maj@k, the probability that the most frequent of k answers is correct."""
        answers = [[c["extracted"] for c in example["completions"]] for example in self.examples]
        correct = [[c["correct"] for c in example["completions"]] for example in self.examples]
        return {k: float(np.mean([maj_at_k(a, c, k) for a, c in zip(answers, correct, strict=True)])) for k in self.ks}

    @property
    def has_rewards(self) -> bool:
        return "rewards" in self.settings

    def contributions(self) -> dict[str, np.ndarray]:
        """Return value × weight of each reward function for every completion, shape (questions, num_samples).

        The last entry, "total", is their sum: what training would pay.

        Raises:
            WorkshopError: the evaluation has no values of rewards.
        """
        if not self.has_rewards:
            raise WorkshopError("This evaluation has no values of the rewards (an earlier version wrote none): delete "
                                "its eval.json and evaluate again.")
        parts = {name: weight * np.array([[one["rewards"][name] for one in example["completions"]]
                                          for example in self.examples])
                 for name, weight in self.settings["rewards"].items()}
        return parts | {"total": sum(parts.values())}

    def summary(self) -> dict[str, Any]:
        """Return the numbers of the evaluation as in eval.json."""
        rewards = {"rewards": {name: float(part.mean()) for name, part in self.contributions().items()}} \
            if self.has_rewards else {}
        return rewards | {
            "questions": len(self.examples),
            "num_samples": self.num_samples,
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            "accuracy_in_format": self.accuracy_in_format,
            "accuracy_lenient": self.accuracy_lenient,
            "accuracy_lenient_interval": list(self.accuracy_lenient_interval),
            "format_rate": self.format_rate,
            "truncation_rate": self.truncation_rate,
            "mean_length": self.mean_length,
            "mean_attempts": self.mean_attempts,
            "pass_at": {str(k): value for k, value in self.pass_at.items()},
            "maj_at": {str(k): value for k, value in self.maj_at.items()},
        }

    def save(self, path: str | Path) -> None:
        """Write eval.json: settings, summary and every example."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        content = {"settings": self.settings, "summary": self.summary(), "examples": self.examples}
        write_atomically(Path(path), json.dumps(content, ensure_ascii=False, indent=1))

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read eval.json, for example `Evaluation.load(run.evaluation_path)`, and compute the numbers again.

        Raises:
            WorkshopError: the file does not exist.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            evaluation = cls(content["examples"], content["settings"])
            evaluation.summary()
            return evaluation
        except FileNotFoundError:
            raise WorkshopError(f"There is no evaluation at {path}: evaluate the run first with python "
                                f"scripts/evaluate.py {Path(path).parent}.") from None
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise WorkshopError(f"{path} is damaged or not an evaluation ({type(error).__name__}): evaluate again with "
                                f"python scripts/evaluate.py {Path(path).parent}.") from None

    def __str__(self) -> str:
        low, high = self.accuracy_interval
        passes = ", ".join(f"pass@{k} {value:.1%}" for k, value in self.pass_at.items() if k > 1)
        return (
            f"accuracy {self.accuracy:.1%} [{low:.1%}, {high:.1%}] (lenient {self.accuracy_lenient:.1%}), "
            f"format {self.format_rate:.1%}, cut off {self.truncation_rate:.1%}, {self.mean_length:.0f} tokens, "
            f"{self.mean_attempts:.1f} attempts{', ' + passes if passes else ''} "
            f"({len(self.examples)} questions × {self.num_samples})"
        )


def _interval(per_problem: np.ndarray) -> Interval:
    """Return Wilson's interval if every question is simply correct or wrong, else a bootstrap over the questions."""
    if set(np.unique(per_problem)) <= {0.0, 1.0}:
        return wilson_interval(int(per_problem.sum()), len(per_problem))
    return bootstrap_interval(per_problem)


def results_table(evaluations: dict[str, Evaluation]) -> pd.DataFrame:
    """Compare models on the same questions, one row per label; the first model is the one to compare with.

    Returns:
        A table with the columns accuracy, low, high, in_format (correct and in the format), lenient, format, truncated,
        pass@k (the largest k), tokens and attempts, and for the paired difference from the first model: difference,
        difference_low, difference_high and p_value. Rates are shares, not percentages.

    Raises:
        WorkshopError: the evaluations did not ask the same questions.
    """
    first_label, first = next(iter(evaluations.items()))
    rows = []
    for label, evaluation in evaluations.items():
        k = evaluation.ks[-1]
        row = {
            "model": label,
            "accuracy": evaluation.accuracy,
            "low": evaluation.accuracy_interval[0],
            "high": evaluation.accuracy_interval[1],
            "in_format": evaluation.accuracy_in_format,
            "lenient": evaluation.accuracy_lenient,
            "format": evaluation.format_rate,
            "truncated": evaluation.truncation_rate,
            f"pass@{k}": evaluation.pass_at[k],
            "tokens": evaluation.mean_length,
            "attempts": evaluation.mean_attempts,
        }
        if evaluation is not first:
            _check_questions(first_label, first, label, evaluation)
            paired = paired_bootstrap(first.per_problem, evaluation.per_problem)
            row |= dict(zip(("difference", "difference_low", "difference_high", "p_value"), paired, strict=True))
        rows.append(row)
    return pd.DataFrame(rows).set_index("model")


def _check_questions(first_label: str, first: Evaluation, label: str, evaluation: Evaluation) -> None:
    if [e["question"] for e in evaluation.examples] != [e["question"] for e in first.examples]:
        raise WorkshopError(f"{label!r} and {first_label!r} were not asked the same questions: evaluate both "
                            "with the same task, source and test_limit.")


def rewards_table(evaluations: dict[str, Evaluation]) -> pd.DataFrame:
    """Split the mean reward of models on the same questions into the parts of its reward functions, as text.

    Returns:
        A row per reward function and one for the total, their sum. The columns are each model's mean of value × weight
        and its paired difference from the first model, with the 95% interval.

    Raises:
        WorkshopError: an evaluation has no values, or the evaluations differ in their rewards or in their questions.
    """
    first_label, first = next(iter(evaluations.items()))
    before = first.contributions()
    weights = first.settings["rewards"]
    table = pd.DataFrame({"weight": [*(f"{weight:g}" for weight in weights.values()), ""]}, index=list(before))
    for label, evaluation in evaluations.items():
        after = evaluation.contributions()
        if evaluation.settings["rewards"] != weights:
            raise WorkshopError(f"{label!r} and {first_label!r} were scored by different rewards: evaluate both with "
                                "the same recipe.")
        table[label] = [f"{part.mean():.3f}" for part in after.values()]
        if evaluation is not first:
            _check_questions(first_label, first, label, evaluation)
            gains = [paired_bootstrap(before[name].mean(axis=1), after[name].mean(axis=1)) for name in before]
            table[f"{label} − {first_label}"] = [
                f"{gain.difference:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]".replace("-0.000", "+0.000")
                for gain in gains]
    return table


def format_results(table: pd.DataFrame) -> pd.DataFrame:
    """Return a `results_table` as text for people: percentages, intervals in brackets, differences in points."""
    shown = pd.DataFrame(index=table.index)
    shown["accuracy"] = [f"{r.accuracy:.1%} [{r.low:.1%}, {r.high:.1%}]" for r in table.itertuples()]
    for name in ["in_format", "lenient", "format", "truncated", *(c for c in table.columns if c.startswith("pass@"))]:
        shown[name.replace("_", " ")] = ["" if math.isnan(value) else f"{value:.1%}" for value in table[name]]
    shown["tokens"] = [f"{value:.0f}" for value in table["tokens"]]
    shown["attempts"] = [f"{value:.2f}" for value in table["attempts"]]
    if "difference" in table:
        shown["difference (points)"] = [
            "" if math.isnan(r.difference) else
            f"{100 * r.difference:+.1f} [{100 * r.difference_low:+.1f}, {100 * r.difference_high:+.1f}]"
            for r in table.itertuples()
        ]
        shown["p"] = [_format_p(value) for value in table["p_value"]]
    return shown


def _format_p(value: float) -> str:
    if math.isnan(value):
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"
