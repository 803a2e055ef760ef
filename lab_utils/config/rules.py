"""What several settings must agree on, and how to say so. Single values are checked by schema.py."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator
from typing import Any

from .errors import did_you_mean, shown
from .own_code import is_own
from .own_code import problems as own_code_problems
from .schema import RLSettings, RunConfig, Tier

XML = {"reasoning", "think"}  # formats with the answer in <answer>
ANY = XML | {"hash"}
ALL = {"gsm8k", "countdown", "qa"}
REWARDS: dict[str, tuple[set[str], set[str]]] = {  # the tasks and response formats in which each can be earned
    "correctness_reward": ({"gsm8k"}, XML),
    "int_reward": ({"gsm8k"}, XML),
    "strict_format_reward": ({"gsm8k", "qa"}, {"reasoning"}),
    "soft_format_reward": ({"gsm8k", "qa"}, {"reasoning"}),
    "xmlcount_reward": ({"gsm8k", "qa"}, {"reasoning"}),
    "numeric_match_reward": ({"gsm8k"}, {"hash"}),
    "accuracy_reward": (ALL, ANY),
    "format_reward": (ALL, {"think"}),
    "equation_reward": ({"countdown"}, {"think"}),
    "cosine_scaled_accuracy_reward": ({"gsm8k"}, XML),
    "reasoning_reward": (ALL, ANY),
    "conciseness_reward": (ALL, ANY),
    "repetition_penalty_reward": (ALL, ANY),
}
FORMAT_TOKENS = {"reasoning": 32, "think": 32, "hash": 8}  # the shortest completion, in Qwen's tokens, rounded up
PROMPT_TOKENS = 32
LORA = "{r: 16, alpha: 32}"


def problems(config: RunConfig, tier: Tier) -> list[str]:
    """Return what does not fit together, one or two sentences each; empty for a configuration that can run."""
    return [*_task_problems(config), *_batch_problems(config, tier), *_model_problems(config, tier)]


def _problem(config: RunConfig, key: str, rule: str, works: Any) -> str:
    value = operator.attrgetter(key)(config)
    return f"{key} = {shown(value)} must be {rule}: use {works}."


def _task_problems(config: RunConfig) -> Iterator[str]:
    """Check stages, response format, rewards and lengths."""
    stages, task = config.stages, config.task
    ordered = [stage for stage in ("sft", "grpo", "ppo") if stage in stages]
    if len(stages) > len(ordered) or "sft" in stages[1:]:
        yield _problem(config, "stages", "different stages, with sft first", ordered)
    if task.name == "countdown" and task.response_format != "think":
        yield _problem(config, "task.response_format", "'think' for the task countdown", "think")
        return

    kind = "qa" if is_own(task.name) else task.name
    if kind == "qa" and not is_own(task.name) and task.source in ("hub", "synthetic"):
        rule = "your own questions and answers for the task 'qa', which has none"
        yield _problem(config, "task.source", rule, "the path of a file, or OWNER/NAME of a dataset on the Hub")
    yield from own_code_problems(config.model_dump())
    fitting = [name for name in REWARDS if kind in REWARDS[name][0] and task.response_format in REWARDS[name][1]]
    for name, weight in config.rewards.items():
        if is_own(name):
            continue
        if name not in REWARDS:
            yield (f"There is no reward {name!r} (weight {weight:g}).{did_you_mean(name, REWARDS)} "
                   f"Choose from {', '.join(fitting)}.")
        elif name not in fitting:
            column = "nums and target" if name == "equation_reward" else "answer"
            needs = "" if kind in REWARDS[name][0] else f" (it needs the column {column})"
            if kind == "qa":
                needs = " (accuracy_reward fits every task)"
            yield (f"rewards.{name} = {weight} cannot be earned with the task {task.name!r}{needs} in the response "
                   f"format {task.response_format!r}: remove it (rewards.{name}=null), and choose from "
                   f"{', '.join(fitting)}.")
    if ordered != ["sft"] and not any(config.rewards.values()):
        rule = f"weights with at least one that is not 0, for the stages {stages}"
        yield _problem(config, "rewards", rule, {fitting[0]: 1.0})

    shortest = FORMAT_TOKENS[task.response_format]
    for key, least in (
        ("sft.max_length", PROMPT_TOKENS + shortest),
        ("grpo.max_completion_length", shortest),
        ("ppo.max_completion_length", shortest),
        ("evaluation.max_new_tokens", shortest),
    ):
        if operator.attrgetter(key)(config) < least:
            rule = f"at least {least} tokens, to hold a completion in the format {task.response_format!r}"
            yield _problem(config, key, rule, max(128, least))
    if config.evaluation.temperature == 0 and config.evaluation.num_samples > 1:
        rule = "1 with evaluation.temperature = 0, at which all samples are equal"
        yield _problem(config, "evaluation.num_samples", rule, 1)


def _batch_problems(config: RunConfig, tier: Tier) -> Iterator[str]:
    """Check that a rollout holds whole groups (TRL's rule), and for PPO whole optimizer steps."""
    for stage in ("grpo", "ppo"):
        settings: RLSettings = getattr(config, stage)
        batches = settings.steps_per_generation or settings.gradient_accumulation_steps
        rollout = settings.rollout_size * tier.processes
        if rollout % settings.num_generations:
            rule = (f"a divisor of the {rollout} completions in a rollout, so that groups stay whole. That is "
                    f"per_device_train_batch_size {settings.per_device_train_batch_size} × steps_per_generation "
                    f"{batches} × processes {tier.processes}")
            divisors = [n for n in range(2, rollout + 1) if rollout % n == 0]
            near = f"{min(divisors, key=lambda n: abs(n - settings.num_generations))}, or " if divisors else ""
            sizes = itertools.count(settings.per_device_train_batch_size)
            enough = next(n for n in sizes if n * batches * tier.processes % settings.num_generations == 0)
            works = f"{near}{settings.num_generations} with {stage}.per_device_train_batch_size={enough}"
            yield _problem(config, f"{stage}.num_generations", rule, works)
    ppo = config.ppo
    if rest := (ppo.steps_per_generation or 0) % ppo.gradient_accumulation_steps:
        size = ppo.per_device_train_batch_size
        rule = (f"divisible by gradient_accumulation_steps {ppo.gradient_accumulation_steps}, so that a rollout is a "
                f"whole number of updates (rollout {ppo.rollout_size} % ({size} × {ppo.gradient_accumulation_steps}) "
                f"= {rest * size})")
        works = math.ceil(ppo.steps_per_generation / ppo.gradient_accumulation_steps) * ppo.gradient_accumulation_steps
        yield _problem(config, "ppo.steps_per_generation", rule, works)


def _model_problems(config: RunConfig, tier: Tier) -> Iterator[str]:
    """Check what the machine and the libraries can do with the model."""
    model, where = config.model, f"on the tier {tier.name!r}"
    if tier.gpus == 0 and model.dtype != "float32":
        yield _problem(config, "model.dtype", f"float32 {where}, because half precision needs a GPU", "float32")
    if tier.gpus and model.device == "cpu":
        yield _problem(config, "model.device", f"auto {where}", "auto, or --hardware cpu")
    if tier.name == "t4" and model.dtype == "bfloat16":
        yield _problem(config, "model.dtype", f"float16 {where}, whose GPU has no bfloat16", "float16")
    if model.load_in_4bit and model.lora is None:
        yield _problem(config, "model.lora", "set with load_in_4bit, because weights in 4 bits cannot be trained", LORA)
    if model.dtype == "float16" and model.lora is None:
        yield _problem(config, "model.lora", "set with dtype float16, in which small updates are lost", LORA)
    if config.evaluation.use_vllm and (tier.gpus == 0 or model.load_in_4bit):
        why = f"{where}, because vLLM needs a GPU" if tier.gpus == 0 else "with load_in_4bit, as vLLM merges adapters"
        yield _problem(config, "evaluation.use_vllm", f"false {why}", "false")
    for stage in ("grpo", "ppo"):
        settings = getattr(config, stage)
        if settings.use_vllm and tier.gpus == 0:
            yield _problem(config, f"{stage}.use_vllm", f"false {where}, because vLLM needs a GPU", "false")
        if settings.use_vllm and model.load_in_4bit and stage in config.stages:
            rule = "false with model.load_in_4bit, because TRL cannot pass quantized weights to vLLM"
            yield _problem(config, f"{stage}.use_vllm", rule, "false, or true with model.load_in_4bit=false")
