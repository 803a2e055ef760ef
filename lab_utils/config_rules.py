"""The rules of the configuration: what each value may be, what must fit together, and how to say so.

`build` makes a settings dataclass from a mapping and checks key by key; `problems` checks what several values must
agree on. Used by config.py only.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import operator
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml

if TYPE_CHECKING:
    from .config import RunConfig, Tier


class ConfigError(ValueError):
    """A setting that cannot work; the message names the key, its value, the rule and a value that would do."""


@dataclass(frozen=True)
class Rule:
    """A condition on one value, as a test and as text for the error message."""

    text: str
    holds: Callable[[Any], bool]


# --- Checking single values ------------------------------------------------------------------------------------------


def check_known(what: str, name: Any, names: list[str]) -> str:
    if name not in names:
        raise ConfigError(f"There is no {what} {name!r}.{_did_you_mean(name, names)} Choose one of {', '.join(names)}.")
    return name


def _did_you_mean(name: Any, names: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(str(name), list(names), n=1)
    return f" Did you mean {prefix}{close[0]}?" if close else ""


def build(cls: type, values: Any, prefix: str) -> Any:
    """Make the dataclass `cls` from a mapping whose keys and values are all checked; `prefix` is like "grpo."."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    kinds = typing.get_type_hints(cls, include_extras=True)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix[:-1]} = {values!r} must be a section with keys: {', '.join(fields)}.")
    for key in values:
        if key not in fields:
            sections = [name for name, kind in kinds.items() if key in getattr(kind, "__dataclass_fields__", ())]
            inside = " or ".join(f"{name}.{key}" for name in sections)
            hint = f" Did you mean {inside}?" if inside else _did_you_mean(key, fields, prefix)
            raise ConfigError(f"There is no key {prefix}{key} (its value: {values[key]!r}).{hint} "
                              f"Keys here are {', '.join(fields)}.")
    arguments = {}
    for name, f in fields.items():
        if name in values:
            arguments[name] = _convert(kinds[name], values[name], prefix + name, f.default)
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{prefix}{name} is missing; it must be {_describe(kinds[name])}.")
    return cls(**arguments)


def _convert(kind: Any, value: Any, key: str, default: Any = MISSING, rule: str | None = None) -> Any:
    """Return `value` if it is of type `kind`, or raise. A whole number will do as a float, and so will the text "1e-5":
    YAML takes only 1.0e-5 for a number."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    rule = rule or _describe(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return build(kind, value, key + ".")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        lists = [option for option in inner if typing.get_origin(option) is list and isinstance(value, list)]
        return _convert((lists or inner)[0], value, key, default, rule)
    if origin is list and isinstance(value, list) and value:
        return [_convert(inner[0], item, f"{key}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {name: _convert(inner[1], item, f"{key}.{name}") for name, item in value.items()}

    base, condition = inner if origin is Annotated else (kind, None)
    if base is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            value = float(value)
        except ValueError:
            pass
    good = value in inner if origin is Literal else origin in (None, Annotated) and type(value) is base
    if good and base is float:
        good = math.isfinite(value)
    if not good or (condition and not condition.holds(value)):
        hint = _did_you_mean(value, inner) if origin is Literal else ""
        would_do = "" if default is MISSING else f" A value that would do: {yaml.safe_dump(default).split()[0]}."
        raise ConfigError(f"{key} = {value!r} must be {rule}.{hint}{would_do}")
    return value


def _describe(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return f"{_describe(inner[0])}, {inner[1].text}"
    if origin is Literal:
        return f"one of {', '.join(inner)}" if len(inner) > 1 else repr(inner[0])
    if origin is list:
        return f"a list [A, B, ...], each {_describe(inner[0])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_describe, inner))
    names = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(kind, "a section, such as {key: value}")


# --- Checking what must fit together ---------------------------------------------------------------------------------

XML = {"reasoning", "think"}  # formats with the answer in <answer>
ANY = XML | {"hash"}
REWARDS: dict[str, tuple[set[str], set[str]]] = {  # the tasks and response formats in which each can be earned
    "correctness_reward": ({"gsm8k"}, XML),
    "int_reward": ({"gsm8k"}, XML),
    "strict_format_reward": ({"gsm8k"}, {"reasoning"}),
    "soft_format_reward": ({"gsm8k"}, {"reasoning"}),
    "xmlcount_reward": ({"gsm8k"}, {"reasoning"}),
    "numeric_match_reward": ({"gsm8k"}, {"hash"}),
    "format_reward": ({"gsm8k", "countdown"}, {"think"}),
    "equation_reward": ({"countdown"}, {"think"}),
    "cosine_scaled_accuracy_reward": ({"gsm8k"}, XML),
    "reasoning_reward": ({"gsm8k", "countdown"}, ANY),
    "conciseness_reward": ({"gsm8k", "countdown"}, ANY),
    "repetition_penalty_reward": ({"gsm8k", "countdown"}, ANY),
}
FORMAT_TOKENS = {"reasoning": 32, "think": 32, "hash": 8}  # the shortest completion, in Qwen's tokens, rounded up
PROMPT_TOKENS = 32
LORA = "{r: 16, alpha: 32}"


def problems(config: RunConfig, tier: Tier) -> list[str]:
    """What does not fit together, one sentence or two each; empty for a configuration that can run."""
    return [*_task_problems(config), *_batch_problems(config, tier), *_model_problems(config, tier)]


def _problem(config: RunConfig, key: str, rule: str, would_do: Any) -> str:
    value = operator.attrgetter(key)(config)
    return f"{key} = {value!r} must be {rule}. A value that would do: {would_do}."


def _task_problems(config: RunConfig) -> Iterator[str]:
    """Stages, response format, rewards and lengths."""
    stages, task = config.stages, config.task
    ordered = [stage for stage in ("sft", "grpo", "ppo") if stage in stages]
    if len(stages) > len(ordered) or "sft" in stages[1:]:
        yield _problem(config, "stages", "different stages, with sft first", ordered)
    if task.name == "countdown" and task.response_format != "think":
        yield _problem(config, "task.response_format", "'think' for the task countdown", "think")
        return

    fitting = [name for name in REWARDS if task.name in REWARDS[name][0] and task.response_format in REWARDS[name][1]]
    for name, weight in config.rewards.items():
        if name not in REWARDS:
            yield (f"rewards.{name} = {weight}: there is no such reward.{_did_you_mean(name, REWARDS)} "
                   f"Choose from {', '.join(fitting)}.")
        elif name not in fitting:
            column = "nums and target" if name == "equation_reward" else "answer"
            lacking = "" if task.name in REWARDS[name][0] else f" (it needs the column {column})"
            yield (f"rewards.{name} = {weight}: it cannot be earned with the task {task.name!r}{lacking} in the "
                   f"response format {task.response_format!r}. Remove it (rewards.{name}=null) and choose from "
                   f"{', '.join(fitting)}.")
    if ordered != ["sft"] and not any(config.rewards.values()):
        rule = f"weights of which at least one is not 0, for the stages {stages}"
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
        yield _problem(config, "evaluation.num_samples", "1 with evaluation.temperature = 0: all would be equal", 1)


def _batch_problems(config: RunConfig, tier: Tier) -> Iterator[str]:
    """The algebra of batches: TRL's rule for GRPO, and that of TRL's former PPO trainer."""
    grpo, ppo = config.grpo, config.ppo
    processes = tier.processes
    steps = grpo.steps_per_generation or grpo.gradient_accumulation_steps
    rollout = grpo.per_device_train_batch_size * steps * processes
    if rollout % grpo.num_generations:
        rule = (f"a divisor of the {rollout} completions in a rollout, so that groups stay whole: that is "
                f"per_device_train_batch_size {grpo.per_device_train_batch_size} × steps_per_generation {steps} × "
                f"processes {processes}")
        divisors = [n for n in range(2, rollout + 1) if rollout % n == 0]
        near = f"{min(divisors, key=lambda n: abs(n - grpo.num_generations))}, or " if divisors else ""
        sizes = itertools.count(grpo.per_device_train_batch_size)
        enough = next(size for size in sizes if size * steps * processes % grpo.num_generations == 0)
        would_do = f"{near}{grpo.num_generations} with grpo.per_device_train_batch_size={enough}"
        yield _problem(config, "grpo.num_generations", rule, would_do)
    update = ppo.mini_batch_size * ppo.gradient_accumulation_steps
    unit = math.lcm(update, ppo.num_generations // math.gcd(ppo.num_generations, processes))
    if ppo.batch_size % unit:
        rule = (f"divisible by mini_batch_size × gradient_accumulation_steps = {ppo.mini_batch_size} × "
                f"{ppo.gradient_accumulation_steps} = {update}, and by num_generations = {ppo.num_generations}"
                + (f" when multiplied by {processes} processes" if processes > 1 else ""))
        yield _problem(config, "ppo.batch_size", rule, math.ceil(ppo.batch_size / unit) * unit)


def _model_problems(config: RunConfig, tier: Tier) -> Iterator[str]:
    """What the machine and the libraries can do with the model."""
    model, where = config.model, f"on the tier {tier.name!r}"
    if tier.gpus == 0 and model.dtype != "float32":
        yield _problem(config, "model.dtype", f"float32 {where}: half precision is for GPUs", "float32")
    if tier.gpus and model.device == "cpu":
        yield _problem(config, "model.device", f"auto {where}", "auto, or --hardware cpu")
    if tier.gpus == 0 and model.load_in_4bit:
        yield _problem(config, "model.load_in_4bit", f"false {where}: bitsandbytes needs a GPU", "false")
    if tier.name == "t4" and model.dtype == "bfloat16":
        yield _problem(config, "model.dtype", f"float16 {where}, whose GPU has no bfloat16", "float16")
    if (tier.gpus == 0 or tier.name == "t4") and model.attn_implementation == "flash_attention_2":
        yield _problem(config, "model.attn_implementation", f"sdpa or eager {where}: it needs an Ampere GPU", "sdpa")
    if model.load_in_4bit and model.lora is None:
        yield _problem(config, "model.lora", "given with load_in_4bit: weights in 4 bits cannot be trained", LORA)
    if model.dtype == "float16" and model.lora is None:
        yield _problem(config, "model.lora", "given with dtype float16, in which small updates are lost", LORA)
    if config.evaluation.use_vllm and (tier.gpus == 0 or model.load_in_4bit):
        why = f"{where}: vLLM needs a GPU" if tier.gpus == 0 else "with model.load_in_4bit: vLLM merges adapters"
        yield _problem(config, "evaluation.use_vllm", f"false {why}", "false")
    for stage in ("grpo", "ppo"):
        settings = getattr(config, stage)
        if settings.use_vllm and tier.gpus == 0:
            yield _problem(config, f"{stage}.use_vllm", f"false {where}: vLLM needs a GPU", "false")
        if settings.use_vllm and model.load_in_4bit and stage in config.stages:
            rule = "false with model.load_in_4bit: TRL cannot pass quantised weights on to vLLM"
            yield _problem(config, f"{stage}.use_vllm", rule, "false, or true with model.load_in_4bit=false")
        server = settings.vllm_mode == "server" and tier.server_gpus
        whole, whose = (tier.server_gpus, "GPUs of the server") if server else (tier.processes, "processes")
        if whole % settings.vllm_tensor_parallel_size:
            rule = f"a divisor of the {whole} {whose} {where}"
            yield _problem(config, f"{stage}.vllm_tensor_parallel_size", rule, 1)
