"""How much memory and time a run takes, before it starts; `python scripts/estimate.py` prints it.

What a run must hold is exact, at the longest prompts and completions that its settings allow. Only this lower bound
refuses a run. Everything else is a range that follows from the assumptions below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from ..config import ConfigError, RunConfig, load_tier
from ..models import ModelLoadError, adapter_base, model_location

# Assumptions, as (low, high). None of them was measured on a GPU; KEPT was counted with autograd on a CPU.
LENGTH = (0.5, 1.0)  # of prompts and completions, as a share of the longest that the settings allow
KEPT = {True: (2, 6), False: (25, 40)}  # numbers per token, layer and hidden unit, with and without checkpointing
OVERHEAD_GB = (0.5, 4.0)  # CUDA context, workspaces, fragmentation, pieces of the logits, vLLM's CUDA graphs
EFFICIENCY = (0.45, 0.15)  # share of the GPU's peak rate that training reaches
# Sampling one token of every row of a rollout. Published figures of transformers are 50 to 100 ms; an unmerged adapter,
# 4 bits or autocast, of which training always has one, add to every layer. The speed of the GPU hardly matters there.
TOKEN_MS = {"transformers": (50.0, 150.0), "vllm": (5.0, 15.0)}

GB = 1e9
FOUR_BIT = 4.127 / 8  # bytes of a weight: NF4 and doubly quantized constants (QLoRA, arXiv 2305.14314, section 3)
TRAIN_ROWS = {"gsm8k": 7473, "countdown": 1000}  # openai/gsm8k, predibase/countdown
FIXES = {  # by the largest part of what a stage must hold
    "weights": "pass --set model.load_in_4bit=true (without vLLM), or take a smaller model",
    "optimizer": "pass --set model.lora='{{r: 16, alpha: 32}}', or take a smaller model",
    "KV cache": "lower {stage}.max_completion_length or {stage}.per_device_train_batch_size",
    "vLLM": "lower {stage}.vllm_gpu_memory_utilization, or pass --set {stage}.use_vllm=false",
}
# hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads from each config.json on
# the Hub (Qwen2.5: arXiv 2412.15115, Qwen3: arXiv 2505.09388); the -Instruct and -Base versions have the same.
QWEN = {
    "Qwen/Qwen2.5-0.5B": (896, 4864, 24, 14, 2),
    "Qwen/Qwen2.5-1.5B": (1536, 8960, 28, 12, 2),
    "Qwen/Qwen2.5-3B": (2048, 11008, 36, 16, 2),
    "Qwen/Qwen3-0.6B": (1024, 3072, 28, 16, 8),
    "Qwen/Qwen3-1.7B": (2048, 6144, 28, 16, 8),
}


def architecture(name: str) -> PretrainedConfig:
    """Return a model's configuration: by the table above, from a folder, or from the Hub (config.json only)."""
    base = name.removesuffix("-Instruct").removesuffix("-Base")
    if base in QWEN:
        hidden, intermediate, layers, heads, key_heads = QWEN[base]
        kind, head = (Qwen3Config, 128) if "Qwen3" in base else (Qwen2Config, hidden // heads)
        return kind(hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, vocab_size=151936,
                    num_attention_heads=heads, num_key_value_heads=key_heads, head_dim=head, tie_word_embeddings=True)
    location = model_location(name)
    try:
        return AutoConfig.from_pretrained(model_location(adapter_base(location) or location),
                                          trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"The size of the model {name!r} is not known ({str(error).strip().splitlines()[0][:200]}): choose a "
            f"folder, 'tiny', or one that is known without a network: {', '.join(QWEN)}.") from error


@lru_cache
def skeleton(name: str) -> PreTrainedModel:
    """Return a model on the meta device, where its parameters take no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(architecture(name))


def projections(model: PreTrainedModel, targets: str | list[str] = "all-linear") -> list[tuple[int, int]]:
    """Return inputs and outputs of the projections in all layers, or of those with a name in `targets`."""
    return [(module.in_features, module.out_features) for path, module in model.named_modules()
            if isinstance(module, nn.Linear) and path != "lm_head"
            and (targets == "all-linear" or path.rsplit(".")[-1] in targets)]


def cached_numbers(model: PreTrainedModel) -> int:
    """Return how many numbers the KV cache holds for one token: the keys and values of all layers."""
    return sum(o for _, o in projections(model, ["k_proj", "v_proj"]))


def longest(config: RunConfig, stage: str) -> int:
    settings = getattr(config, stage)
    return settings.max_length if stage == "sft" else settings.max_prompt_length + settings.max_completion_length


@dataclass(frozen=True)
class Memory:
    """What a stage takes of one GPU (on a CPU tier, of the machine), in GB."""

    held: dict[str, float]  # exact, by part, in the phase that holds most: the rollout or the update
    least: float  # the sum of these: the exact lower bound
    low: float  # the peak, with everything else
    high: float

    def __str__(self) -> str:
        parts = sorted(self.held, key=self.held.get, reverse=True)
        return f"{self.least:.1f} GB ({', '.join(f'{part} {self.held[part]:.1f}' for part in parts)})"


def memory(config: RunConfig, stage: str) -> Memory:
    """Return what a stage ("sft", "grpo" or "ppo") must hold, and the range of its peak."""
    tier, settings, lora = load_tier(config.hardware), getattr(config, stage), config.model.lora
    model, length = skeleton(config.model.name), longest(config, stage)
    number = 4 if config.model.dtype == "float32" else 2  # bytes of a number in a forward pass
    trained, frozen, parameters = model.num_parameters(), 0.0, model.num_parameters()
    if lora is not None:
        trained, frozen = lora.r * sum(i + o for i, o in projections(model, lora.target_modules)), parameters * number
    if config.model.load_in_4bit:
        frozen += (FOUR_BIT - number) * sum(i * o for i, o in projections(model))
    stay = {"weights": trained * 4 + frozen, "optimizer": trained * 8}  # float32; Adam has two moments
    if stage != "sft" and settings.beta > 0 and lora is None:  # with LoRA it is the model without its adapter
        stay["reference"] = parameters * number
    # With several processes DistributedDataParallel holds the gradients twice.
    update, rollout = stay | {"gradients": trained * (8 if tier.processes > 1 else 4)}, stay
    if stage != "sft" and settings.use_vllm:
        rollout = stay | {"vLLM": settings.vllm_gpu_memory_utilization * tier.memory_gb * GB}
        update = update if settings.vllm_enable_sleep_mode else update | rollout
    elif stage != "sft":
        rollout = stay | {"KV cache": settings.rollout_size * length * cached_numbers(model) * number}

    units = settings.per_device_train_batch_size * length * model.config.num_hidden_layers * model.config.hidden_size
    copies = parameters * number if lora is None and number < 4 else 0  # autocast's, of float32 weights

    def peak(share: float, kept: int, overhead: float) -> float:
        updating = sum(update.values()) + copies + units * share * kept * number
        return max(updating, sum(rollout.values())) / GB + overhead

    low, high = map(peak, LENGTH, KEPT[settings.gradient_checkpointing], OVERHEAD_GB)
    held = max(update, rollout, key=lambda parts: sum(parts.values()))
    return Memory({part: size / GB for part, size in held.items()}, sum(held.values()) / GB, low, high)


def check_memory(config: RunConfig) -> None:
    """Raise ConfigError if a stage must hold more than its tier has."""
    tier, name, model = load_tier(config.hardware), config.model.name, skeleton(config.model.name)
    for stage in config.stages:
        needed, settings = memory(config, stage), getattr(config, stage)
        if needed.least > tier.memory_gb:
            fix = FIXES[max(needed.held, key=needed.held.get)].format(stage=stage)
            raise ConfigError(f"{stage} with {name} needs {needed}, but the tier {tier.name} has "
                              f"{tier.memory_gb:g} GB: {fix}.")
        if stage != "sft" and settings.use_vllm:
            share = settings.vllm_gpu_memory_utilization
            least = 2 * (model.num_parameters() + longest(config, stage) * cached_numbers(model)) / GB / tier.memory_gb
            if share < least:
                raise ConfigError(
                    f"{stage}.vllm_gpu_memory_utilization = {share} leaves no room for {name} and one completion: "
                    f"raise it well above {least:.2f}, or pass --set {stage}.use_vllm=false.")


def optimizer_steps(config: RunConfig, stage: str) -> int | None:
    """Return the steps of a stage: max_steps, or from the number of training problems; None if that is not known."""
    settings, task = getattr(config, stage), config.task
    if settings.max_steps > 0:
        return settings.max_steps
    rows = min(task.train_limit or math.inf, TRAIN_ROWS.get(task.name, math.inf) if task.source == "hub" else math.inf)
    if rows == math.inf:
        return None
    each = 1 if stage == "sft" else settings.num_generations * settings.num_iterations
    batch = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    return math.ceil(rows * settings.num_train_epochs * each / (batch * load_tier(config.hardware).processes))


def hours(config: RunConfig, stage: str) -> tuple[float, float] | None:
    """Return the least and most hours of a stage; None on a CPU, or if the number of steps is not known."""
    settings, steps, tflops = getattr(config, stage), optimizer_steps(config, stage), load_tier(config.hardware).tflops
    if steps is None or tflops is None:
        return None
    engine = "vllm" if stage != "sft" and settings.use_vllm else "transformers"
    rows = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    # A parameter and token take 2 operations forward and 4 backward (arXiv 2001.08361, section 2.1), 2 more if
    # gradient checkpointing repeats the forward pass, and 2 for the log-probabilities of a rollout.
    operations = 6 + 2 * settings.gradient_checkpointing + 2 * (stage != "sft")
    operations *= rows * longest(config, stage) * skeleton(config.model.name).num_parameters()

    def total(share: float, efficiency: float, token_ms: float) -> float:
        seconds = operations * share / (tflops * 1e12 * efficiency)
        if stage != "sft":  # a rollout serves several steps
            rollouts = rows / (settings.rollout_size * settings.num_iterations)
            seconds += rollouts * settings.max_completion_length * share * token_ms / 1000
        return steps * seconds / 3600

    return tuple(map(total, LENGTH, EFFICIENCY, TOKEN_MS[engine]))


def in_words(config: RunConfig, stage: str) -> str:
    """Return the ranges of a stage as text, such as "13.6 to 17.1 GB, 3.3 to 20.0 h"."""
    needed, time = memory(config, stage), hours(config, stage)
    text = f"{needed.low:.1f} to {needed.high:.1f} GB"
    if time is not None:
        size, unit = (1, "h") if time[1] >= 1 else (60, "min")
        text += f", {size * time[0]:.1f} to {size * time[1]:.1f} {unit}"
    return text


def describe(config: RunConfig) -> str:
    """Return a line for each stage: the ranges, and what it must hold."""
    lines = [f"{stage}: {in_words(config, stage)}; needs at least {memory(config, stage)}" for stage in config.stages]
    return "\n".join(lines)
