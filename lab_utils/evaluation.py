"""How good is a model, and is it better than another one: accuracy, pass@k, maj@k, intervals and paired tests.

Every question is asked `num_samples` times. Accuracy is the mean over questions of the share of right samples. Its
interval comes from the spread between questions, because the questions are what was drawn at random.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm
from trl.import_utils import is_vllm_available

from . import vllm_sampling
from .answers import parse_number
from .config import RunConfig
from .generation import Completion, sample
from .models import load_model, load_tokenizer
from .tasks import Task, load_task
from .tracking import RunDirectory, model_of, write_atomically

Interval = tuple[float, float]


# --- Estimates for one model -------------------------------------------------------------------------------------


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k samples is right, from n samples of which c are right.

    Unbiased: 1 - C(n-c, k) / C(n, k), as a product that stays exact for large n (Chen et al. 2021, arXiv 2107.03374,
    section 2.1).

    Raises:
        ValueError: unless 0 <= c <= n and 1 <= k <= n.

    >>> pass_at_k(n=4, c=1, k=2)
    0.5
    """
    if n < 1 or not 0 <= c <= n:
        raise ValueError(f"{c} right samples of {n}: give at least one sample, and between 0 and n={n} right ones.")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs between 1 and n={n} samples to draw from; sample more or choose k <= {n}.")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def maj_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int | None = None) -> float:
    """Probability that the most frequent of k extracted answers is right (self-consistency, arXiv 2203.11171).

    Averages over the disjoint groups of k samples (all samples by default). None does not vote, equal numbers vote
    together ("72" and "72.0"), and a tie counts by the share of right answers among those that lead.

    >>> maj_at_k(["72", "72.0", "9", None], [True, True, False, False])
    1.0
    """
    if len(answers) != len(correct):
        raise ValueError(f"{len(answers)} answers and {len(correct)} correctness flags: give one flag per answer.")
    k = len(answers) if k is None else k
    if not 1 <= k <= len(answers):
        raise ValueError(f"maj@{k} needs between 1 and {len(answers)} answers; sample more or choose a smaller k.")
    groups = [range(start, start + k) for start in range(0, len(answers) - k + 1, k)]
    return float(np.mean([_vote([answers[i] for i in group], [correct[i] for i in group]) for group in groups]))


def _vote(answers: list[str | None], correct: list[bool]) -> float:
    votes: Counter[Fraction | str] = Counter()
    is_right = {}
    for answer, right in zip(answers, correct, strict=True):
        if answer is not None:
            number = parse_number(answer)
            key = "".join(answer.split()) if number is None else number  # an expression is no number
            votes[key] += 1
            is_right[key] = right
    leaders = [key for key, count in votes.items() if count == max(votes.values())]
    return sum(is_right[key] for key in leaders) / len(leaders) if leaders else 0.0


def wilson_interval(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion: k successes in n independent trials (Wilson 1927).

    Unlike p ± 1.96 sqrt(p(1-p)/n) it stays inside [0, 1] and keeps its coverage near 0 and 1.

    >>> [round(bound, 4) for bound in wilson_interval(5, 10)]
    [0.2366, 0.7634]
    """
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"{k} successes in {n} trials: give at least one trial, and between 0 and n={n} successes.")
    z = _normal_quantile(confidence)
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return (0.0 if k == 0 else centre - half_width, 1.0 if k == n else centre + half_width)


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: give a number between 0 and 1, such as 0.95.")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval for the mean of one value per question (Efron 1979): redraw the questions."""
    _normal_quantile(confidence)
    means = _bootstrap_means(_checked(values, "values"), resamples, seed)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def _bootstrap_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    # Redrawing n questions and counting how often each distinct value came is one multinomial draw: fast, and exact.
    distinct, counts = np.unique(values, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=resamples)
    return draws @ distinct / len(values)


def _checked(values: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}: give a list of at least one number, one per question.")
    if np.isnan(array).any():
        raise ValueError(f"{name}[{int(np.isnan(array).argmax())}] is NaN: every question needs a score.")
    return array


# --- Comparing two models on the same questions --------------------------------------------------------------------


class PairedDifference(NamedTuple):
    """Mean of b minus mean of a, its interval, and the two-sided p-value of "no difference"."""

    difference: float
    low: float
    high: float
    p_value: float


class McNemar(NamedTuple):
    """Questions that only a, or only b, got right, and the exact two-sided p-value."""

    only_a: int
    only_b: int
    p_value: float


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> PairedDifference:
    """How much better is b than a, on the same questions? Redraws questions, keeping each pair together.

    Args:
        a, b: scores per question (such as `Evaluation.per_problem`), in the same order of questions. Pass the model
            before training as `a` and the one after as `b`: a gain is positive.

    Returns:
        difference (mean of b - a), percentile interval, and the two-sided p-value of a randomisation test: if the
        models were equally good, each question's difference could as well have had the other sign (Fisher 1935). With
        few questions believe the p-value: an interval of the bootstrap is too narrow then.

    Raises:
        ValueError: different lengths, no scores, NaN.
    """
    _normal_quantile(confidence)
    differences = _differences(a, b)
    mean = float(differences.mean())
    means = _bootstrap_means(differences, resamples, seed)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(resamples, len(differences)))
    as_far = np.count_nonzero(np.abs((signs * differences).mean(axis=1)) >= abs(mean) - 1e-12)
    return PairedDifference(mean, float(low), float(high), (1 + int(as_far)) / (1 + resamples))


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> McNemar:
    """Exact McNemar test: of the questions on which the models disagree, does one win more than a fair coin would?

    For one answer a question (right or wrong); with several samples use `paired_bootstrap`.

    Raises:
        ValueError: different lengths, no scores, NaN, or scores other than 0 and 1.

    >>> mcnemar([1, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1])
    McNemar(only_a=1, only_b=5, p_value=0.21875)
    """
    differences = _differences(a, b)
    if not set(np.unique([a, b])) <= {0, 1}:
        raise ValueError("McNemar's test needs one answer a question, right (1) or wrong (0); use paired_bootstrap.")
    only_a, only_b = int((differences < 0).sum()), int((differences > 0).sum())
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1))
    return McNemar(only_a, only_b, min(1.0, 2 * tail / 2**n))


def _differences(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    a, b = _checked(a, "a"), _checked(b, "b")
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} scores and b has {len(b)}: a paired test needs the same questions in both.")
    return b - a


# --- Evaluating a model --------------------------------------------------------------------------------------------


@dataclass
class Evaluation:
    """Every answer of a model to a set of questions, and what follows from them.

    examples: one dictionary per question: question, prompt, gold and `completions`, a list of dictionaries with
        text, extracted, correct (strict), correct_lenient, has_format, finished, num_tokens, attempts.
    settings: how the completions were sampled.
    """

    examples: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        counts = {len(example["completions"]) for example in self.examples}
        if len(counts) != 1 or 0 in counts:
            raise ValueError(
                f"An evaluation needs at least one question, and the same number of completions for each; "
                f"got {len(self.examples)} questions with {sorted(counts)} completions."
            )

    @property
    def num_samples(self) -> int:
        return len(self.examples[0]["completions"])

    def scores(self, name: str = "correct") -> np.ndarray:
        """One field of every completion as numbers, shape (questions, num_samples)."""
        return np.array([[float(c[name]) for c in example["completions"]] for example in self.examples])

    @property
    def per_problem(self) -> np.ndarray:
        """Share of right samples per question (strict), shape (questions,)."""
        return self.scores().mean(axis=1)

    @property
    def accuracy(self) -> float:
        """Mean over questions of the share of samples that `task.is_correct` accepts."""
        return float(self.per_problem.mean())

    @property
    def accuracy_lenient(self) -> float:
        """The same with the answer found wherever it stands: lenient minus strict is what the format costs."""
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

    @property
    def truncation_rate(self) -> float:
        """Share of completions that were cut at `max_new_tokens`."""
        return 1.0 - float(self.scores("finished").mean())

    @property
    def mean_length(self) -> float:
        """Tokens per completion."""
        return float(self.scores("num_tokens").mean())

    @property
    def mean_attempts(self) -> float:
        return float(self.scores("attempts").mean())

    @property
    def ks(self) -> list[int]:
        """1, 2, 4, 8, … up to the number of samples."""
        return [2**i for i in range(self.num_samples.bit_length())]

    def pass_per_problem(self, k: int) -> np.ndarray:
        """pass@k of every question, shape (questions,)."""
        n = self.num_samples
        return np.array([pass_at_k(n, int(c), k) for c in self.scores().sum(axis=1)])

    @cached_property
    def pass_at(self) -> dict[int, float]:
        """k -> pass@k: at least one of k samples is right."""
        return {k: float(self.pass_per_problem(k).mean()) for k in self.ks}

    @cached_property
    def pass_at_intervals(self) -> dict[int, Interval]:
        return {k: _interval(self.pass_per_problem(k)) for k in self.ks}

    @cached_property
    def maj_at(self) -> dict[int, float]:
        """k -> maj@k: the most frequent of k answers is right."""
        answers = [[c["extracted"] for c in example["completions"]] for example in self.examples]
        correct = [[c["correct"] for c in example["completions"]] for example in self.examples]
        return {
            k: float(np.mean([maj_at_k(a, c, k) for a, c in zip(answers, correct, strict=True)])) for k in self.ks
        }

    def summary(self) -> dict[str, Any]:
        """The figures of the evaluation, as they stand in eval.json."""
        return {
            "questions": len(self.examples),
            "num_samples": self.num_samples,
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            "accuracy_lenient": self.accuracy_lenient,
            "accuracy_lenient_interval": list(self.accuracy_lenient_interval),
            "format_rate": self.format_rate,
            "truncation_rate": self.truncation_rate,
            "mean_length": self.mean_length,
            "mean_attempts": self.mean_attempts,
            "pass_at": {str(k): value for k, value in self.pass_at.items()},
            "maj_at": {str(k): value for k, value in self.maj_at.items()},
        }

    def to_json(self) -> str:
        content = {"settings": self.settings, "summary": self.summary(), "examples": self.examples}
        return json.dumps(content, ensure_ascii=False, indent=1)

    def save(self, path: str | Path) -> None:
        """Write eval.json: settings, summary and every example."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read eval.json. The figures are worked out again from the examples."""
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(content["examples"], content["settings"])

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
    """Wilson's interval where every question is simply right or wrong, else a bootstrap over the questions."""
    if set(np.unique(per_problem)) <= {0.0, 1.0}:
        return wilson_interval(int(per_problem.sum()), len(per_problem))
    return bootstrap_interval(per_problem)


def evaluate(
    model: Any,
    tokenizer: Any,
    task: Task,
    dataset: Sequence[dict[str, Any]],
    *,
    num_samples: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 256,
    sampler: Callable[..., list[list[Completion]]] = sample,
) -> Evaluation:
    """Ask the model every question of `dataset` (rows of `task.dataset`) and judge the answers with the task.

    Args:
        num_samples: completions per question; pass@k needs at least k.
        temperature: 0 for greedy decoding, with which one sample says it all.
        batch_size: completions in flight at once.
        sampler: `generation.sample`, or `vllm_sampling.sample` with a vLLM engine as the model.

    Raises:
        ValueError: several samples of a greedy answer, or no questions.
    """
    if temperature == 0 and num_samples > 1:
        raise ValueError(f"num_samples={num_samples} at temperature 0 would repeat one answer: use num_samples=1.")
    rows = list(dataset)
    settings = {
        "task": task.name, "response_format": task.response_format, "num_samples": num_samples,
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed,
        "sampler": f"{sampler.__module__}.{sampler.__name__}",
    }  # fmt: skip
    completions: list[list[Completion]] = []
    at_once = max(1, batch_size // num_samples)
    with tqdm(total=len(rows), desc="evaluating", unit="question", dynamic_ncols=True) as bar:
        for start in range(0, len(rows), at_once):
            prompts = [row["prompt"] for row in rows[start : start + at_once]]
            completions += sampler(
                model,
                tokenizer,
                prompts,
                num_samples=num_samples,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed + start,
                batch_size=batch_size,
            )
            bar.update(len(prompts))
    return judge(task, rows, completions, settings)


def judge(
    task: Task,
    rows: Sequence[dict[str, Any]],
    completions: Sequence[Sequence[Completion]],
    settings: dict[str, Any] | None = None,
) -> Evaluation:
    """Judge sampled completions (a list per row), wherever they come from."""
    examples = []
    for row, samples in zip(rows, completions, strict=True):
        judged = [
            {
                "text": completion.text,
                "extracted": task.extract(completion.text),
                "correct": task.is_correct(completion.text, row),
                "correct_lenient": task.is_correct_lenient(completion.text, row),
                "has_format": task.has_format(completion.text),
                "finished": completion.finished,
                "num_tokens": len(completion.token_ids),
                "attempts": task.attempts(completion.text),
            }
            for completion in samples
        ]
        examples.append(
            {
                "question": row["prompt"][-1]["content"],
                "prompt": row["prompt"],
                "gold": task.gold(row),
                "completions": judged,
            }
        )
    return Evaluation(examples, settings or {})


def evaluate_run(source: RunDirectory | str | Path, config: RunConfig) -> Evaluation:
    """Load a model and evaluate it on the test split of the configuration's task, as `config.evaluation` says.

    Args:
        source: a run directory (its model is evaluated and eval.json written there), or a model's path or name.
    """
    source = source.path if isinstance(source, RunDirectory) else source
    model = model_of(source)
    task = load_task(config.task.name, config.task.response_format)
    limits = [limit for limit in (config.task.test_limit, config.evaluation.limit) if limit is not None]
    dataset = task.dataset("test", limit=min(limits, default=None), source=config.task.source)
    settings = config.evaluation
    how = {name: getattr(settings, name) for name in ("num_samples", "max_new_tokens", "temperature", "top_p", "seed")}
    tokenizer = load_tokenizer(model)
    if settings.use_vllm and is_vllm_available():
        with vllm_sampling.vllm_engine(model, config.model) as engine:
            evaluation = evaluate(engine, tokenizer, task, dataset, batch_size=len(dataset) * settings.num_samples,
                                  sampler=vllm_sampling.sample, **how)
    else:
        if settings.use_vllm:
            print("evaluation.use_vllm is on, and vLLM is not installed: transformers answers, which takes longer.")
        policy = load_model(model, config.model)
        evaluation = evaluate(policy, tokenizer, task, dataset, batch_size=settings.batch_size, **how)
    if model != str(source):
        evaluation.save(RunDirectory(source).evaluation_path)
    return evaluation


def results_table(evaluations: dict[str, Evaluation]) -> pd.DataFrame:
    """Compare models on the same questions, one row per label; the first one is what the others are compared to.

    Returns:
        columns accuracy, low, high, lenient, format, truncated, pass@k (the largest k), tokens, attempts, and for the
        paired difference to the first: difference, difference_low, difference_high, p_value. Rates are shares, not %.

    Raises:
        ValueError: the evaluations did not ask the same questions.
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
            "lenient": evaluation.accuracy_lenient,
            "format": evaluation.format_rate,
            "truncated": evaluation.truncation_rate,
            f"pass@{k}": evaluation.pass_at[k],
            "tokens": evaluation.mean_length,
            "attempts": evaluation.mean_attempts,
        }
        if evaluation is not first:
            if [e["question"] for e in evaluation.examples] != [e["question"] for e in first.examples]:
                raise ValueError(
                    f"{label!r} and {first_label!r} were not asked the same questions: evaluate both with the same "
                    "task, source and limit."
                )
            paired = paired_bootstrap(first.per_problem, evaluation.per_problem)
            row |= dict(
                zip(("difference", "difference_low", "difference_high", "p_value"), paired, strict=True)
            )
        rows.append(row)
    return pd.DataFrame(rows).set_index("model")


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A `results_table` as text for people: percentages, intervals in brackets, differences in points."""
    shown = pd.DataFrame(index=table.index)
    shown["accuracy"] = [f"{r.accuracy:.1%} [{r.low:.1%}, {r.high:.1%}]" for r in table.itertuples()]
    for name in ["lenient", "format", "truncated", *(c for c in table.columns if c.startswith("pass@"))]:
        shown[name] = ["" if math.isnan(value) else f"{value:.1%}" for value in table[name]]
    shown["tokens"] = [f"{value:.0f}" for value in table["tokens"]]
    shown["attempts"] = [f"{value:.2f}" for value in table["attempts"]]
    if "difference" in table:
        shown["difference (points)"] = [
            "" if math.isnan(r.difference) else
            f"{100 * r.difference:+.1f} [{100 * r.difference_low:+.1f}, {100 * r.difference_high:+.1f}]"
            for r in table.itertuples()
        ]  # fmt: skip
        shown["p"] = [_readable_p(value) for value in table["p_value"]]
    return shown


def _readable_p(value: float) -> str:
    if math.isnan(value):
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"
