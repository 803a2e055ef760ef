"""Ask a model questions and judge its answers with the task's own definition of correct."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trl.import_utils import is_vllm_available

from .. import WorkshopError
from ..config import RunConfig, short_name
from ..models import load_model, load_tokenizer
from ..rewards.own import reward_values
from ..runs import RunDirectory, model_of, progress_bar
from ..sampling import vllm as vllm_sampling
from ..sampling.local import Completion, sample
from ..tasks import Task, load_task
from .results import Evaluation


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
    config: RunConfig | None = None,
) -> Evaluation:
    """Ask the model every question of `dataset` (rows of `task.dataset`) and judge the answers with the task.

    Args:
        num_samples: completions per question; pass@k needs at least k.
        temperature: 0 for greedy decoding, which needs only one sample.
        batch_size: completions sampled at once.
        sampler: `sampling.local.sample`, or `sampling.vllm.sample` with a vLLM engine as the model.
        config: a run's configuration; the values of its rewards are kept for every completion.

    Raises:
        WorkshopError: several samples at temperature 0, or no questions.
    """
    if temperature == 0 and num_samples > 1:
        raise WorkshopError(f"num_samples={num_samples} at temperature 0 would repeat one answer: use num_samples=1.")
    rows = list(dataset)
    settings = {
        "task": task.name, "response_format": task.response_format, "num_samples": num_samples,
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed,
        "sampler": f"{sampler.__module__}.{sampler.__name__}",
    }
    completions: list[list[Completion]] = []
    at_once = max(1, batch_size // num_samples)
    with progress_bar(total=len(rows), desc="evaluating", unit="question") as bar:
        for start in range(0, len(rows), at_once):
            prompts = [row["prompt"] for row in rows[start : start + at_once]]
            completions += sampler(model, tokenizer, prompts, num_samples=num_samples, max_new_tokens=max_new_tokens,
                                   temperature=temperature, top_p=top_p, seed=seed + start, batch_size=batch_size)
            bar.update(len(prompts))
    return judge(task, rows, completions, settings, config)


def judge(
    task: Task,
    rows: Sequence[dict[str, Any]],
    completions: Sequence[Sequence[Completion]],
    settings: dict[str, Any] | None = None,
    config: RunConfig | None = None,
) -> Evaluation:
    """Judge completions (a list per row) from any source; with the configuration of a run, also by its rewards."""
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
        examples.append({"question": task.question(row), "prompt": row["prompt"], "gold": task.gold(row),
                         "completions": judged})
    evaluation = Evaluation(examples, settings or {})
    if config is not None and config.rewards:
        try:
            _add_reward_values(evaluation, config, rows, completions)
        except WorkshopError as error:  # sampling took minutes: keep everything else
            warnings.warn(f"The evaluation has no values of the rewards. {error}", stacklevel=2)
    return evaluation


def _add_reward_values(evaluation: Evaluation, config: RunConfig, rows: Sequence[dict[str, Any]],
                       completions: Sequence[Sequence[Completion]]) -> None:
    pairs = [(row, one) for row, samples in zip(rows, completions, strict=True) for one in samples]
    values = reward_values(config, [row for row, _ in pairs], [one.text for _, one in pairs],
                           [one.token_ids for _, one in pairs])
    judged = [one for example in evaluation.examples for one in example["completions"]]
    for one, *each in zip(judged, *values.values(), strict=True):
        one["rewards"] = dict(zip(values, each, strict=True))
    evaluation.settings["rewards"] = {short_name(name): weight for name, weight in config.rewards.items()}


def evaluate_run(source: RunDirectory | str | Path, config: RunConfig, *, plain_text: bool = False) -> Evaluation:
    """Load a model and evaluate it on the test split of the configuration's task as `config.evaluation` says.

    Args:
        source: a run directory (its model is evaluated, and eval.json is written there), or a model's path or name.
        plain_text: ask without chat and response format, which a base model has never seen.
    """
    source = source.path if isinstance(source, RunDirectory) else source
    model = model_of(source)
    task = load_task(config.task, "plain" if plain_text else None)
    dataset = task.dataset("test", config.task.test_limit, config.task.source)
    settings = config.evaluation
    how = {name: getattr(settings, name) for name in ("num_samples", "max_new_tokens", "temperature", "top_p", "seed")}
    tokenizer = load_tokenizer(model)
    if settings.use_vllm and is_vllm_available():
        with vllm_sampling.vllm_engine(model, config.model) as engine:
            evaluation = evaluate(engine, tokenizer, task, dataset, batch_size=len(dataset) * settings.num_samples,
                                  sampler=vllm_sampling.sample, config=config, **how)
    else:
        if settings.use_vllm:
            print("evaluation.use_vllm = True, but vLLM is not installed: transformers samples, which is slower.")
        policy = load_model(model, config.model)
        evaluation = evaluate(policy, tokenizer, task, dataset, batch_size=settings.batch_size, config=config,
                              **how)
    if model != str(source):
        evaluation.save(RunDirectory(source).evaluation_path)
    return evaluation
