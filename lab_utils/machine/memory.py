"""How much memory and time a run will take, before it starts; what to change where it does not fit.

    python scripts/estimate.py                                        every recipe on every GPU tier
    python scripts/estimate.py --recipe gsm8k-grpo --hardware a10g    one run, part by part

The parts of a training run's memory, each counted from the model's shape:

    weights       frozen ones in the model's dtype or in 4 bits; trained ones in float32 (common.train_in_float32)
    optimizer     Adam's two moments, float32, of what is trained
    gradients     float32, of what is trained; twice with several processes: DistributedDataParallel sends a copy
    activations   what the backward pass needs: of all layers; with gradient checkpointing their inputs and one layer's
    logits        a tile of 4,096 tokens × 32,768 of the vocabulary: TRL's fused output layer never holds all of them
    KV cache      keys and values of the completions being sampled, where transformers samples
    vLLM          its share of the GPU, with weights and KV cache of its own

`tests/test_estimate.py` compares parameters and activations with exact counts; `scripts/benchmark.py gpu` puts the
estimate beside the memory of a real run. Nothing was measured on a GPU yet: OVERHEAD_GB, VLLM_WORKSPACE_GB, EFFICIENCY
and DECODE_MS are assumptions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, Qwen2Config, Qwen3Config

from ..config import ConfigError, LoraSettings, RunConfig, hardware_names, load_tier
from ..models import ModelLoadError, adapter_base, model_location

GB = 1e9
HEADROOM = 0.93  # share of a GPU's nominal memory that a run may plan with: the driver and ECC take theirs
OVERHEAD_GB = 1.5  # CUDA context, cuBLAS workspaces, fragmentation; assumed
PROCESS_GB = 0.5  # a CPU process after importing torch, transformers and TRL: measured, 0.51
TOKEN_TILE, VOCABULARY_TILE = 4096, 32768  # trl/kernels/chunked_logprob.py, trl/trainer/utils.py
CPU_TILES = 6  # without Triton the tile is folded by torch operations, which hold this many of its size in float32
FOUR_BIT = 4.127 / 8  # bytes a weight: NF4 and doubly quantised constants (QLoRA, arXiv 2305.14314, section 3)
VLLM_WORKSPACE_GB = 1.5  # vLLM's own activations and CUDA graphs; assumed
EFFICIENCY = 0.3  # share of the peak rate that training reaches; assumed
DECODE_MS = {"transformers": 30.0, "vllm": 8.0}  # one token of every row costs at least this much; assumed
TRAIN_ROWS = {"gsm8k": 7473, "countdown": 1000}  # openai/gsm8k, predibase/countdown

# From each model's config.json on the Hub, huggingface.co/Qwen (Qwen2.5: arXiv 2412.15115, Qwen3: arXiv 2505.09388).
# The "-Instruct" and "-Base" versions have the same numbers.
_QWEN2 = {"vocab_size": 151936, "max_position_embeddings": 32768, "num_key_value_heads": 2, "tie_word_embeddings": True}
_QWEN3 = _QWEN2 | {"max_position_embeddings": 40960, "num_key_value_heads": 8, "head_dim": 128}
ARCHITECTURES: dict[str, PretrainedConfig] = {
    "Qwen/Qwen2.5-0.5B": Qwen2Config(
        **_QWEN2, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14),
    "Qwen/Qwen2.5-1.5B": Qwen2Config(
        **_QWEN2, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12),
    "Qwen/Qwen2.5-3B": Qwen2Config(
        **_QWEN2, hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16),
    "Qwen/Qwen2.5-7B": Qwen2Config(
        vocab_size=152064, tie_word_embeddings=False, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4),
    "Qwen/Qwen3-0.6B": Qwen3Config(
        **_QWEN3, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16),
    "Qwen/Qwen3-1.7B": Qwen3Config(
        **_QWEN3, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16),
}


# --- The model's shape -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that memory and time follow from."""

    parameters: int  # tied weights once
    linear: tuple[tuple[str, int, int], ...]  # last part of the name, inputs and outputs of every projection in a layer
    layers: int
    hidden: int
    query: int  # heads × head size
    key: int  # key-value heads × head size
    intermediate: int
    vocabulary: int
    normalises_queries: bool  # Qwen3 has a norm on queries and keys

    def adapter_parameters(self, lora: LoraSettings) -> int:
        """Parameters of a LoRA adapter: r × (inputs + outputs) of every projection that it is on."""
        wanted = lora.target_modules
        return lora.r * sum(i + o for name, i, o in self.linear if wanted == "all-linear" or name in wanted)

    def kv_bytes(self, bytes_per_number: int) -> int:
        """Bytes of keys and values of one token."""
        return 2 * self.layers * self.key * bytes_per_number

    def layer_activations(self, bytes_per_number: int) -> int:
        """Bytes that the backward pass of one layer needs of one token: the inputs of its norms, projections, attention
        and MLP. In half precision the norms keep float32 copies. LoRA on few projections needs less."""
        numbers = 6 * self.hidden + 4 * self.query + 4 * self.intermediate
        if self.normalises_queries:
            numbers += 2 * self.query + 2 * self.key
        return numbers * bytes_per_number + (12 * self.hidden if bytes_per_number < 4 else 0)


def architecture(name: str) -> PretrainedConfig:
    """Return a model's configuration: from the table above, a folder, or the Hub (config.json only, no weights).

    Raises:
        ModelLoadError: it is in none of them.
    """
    known = ARCHITECTURES.get(name.removesuffix("-Instruct").removesuffix("-Base"))
    if known is not None:
        return known
    location = model_location(name)
    try:
        return AutoConfig.from_pretrained(model_location(adapter_base(location) or location))
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"The size of the model {name!r} is not known: {str(error).strip().splitlines()[0][:200]}\n"
            f"Known without a network: {', '.join(ARCHITECTURES)}, their -Instruct versions, 'tiny' and folders."
        ) from error


def model_shape(name: str) -> Shape:
    """Return the sizes of a model, counted on the meta device, where parameters take no memory."""
    return shape_of(architecture(name))


@lru_cache
def _shape(cls: type[PretrainedConfig], values: str) -> Shape:
    config = cls(**json.loads(values))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        parameters=sum(weight.numel() for weight in model.parameters()),
        linear=tuple((path.rsplit(".")[-1], module.in_features, module.out_features)
                     for path, module in model.named_modules()
                     if isinstance(module, nn.Linear) and path != "lm_head"),
        layers=config.num_hidden_layers, hidden=config.hidden_size, query=head * config.num_attention_heads,
        key=head * config.num_key_value_heads, intermediate=config.intermediate_size, vocabulary=config.vocab_size,
        normalises_queries=config.model_type == "qwen3")


def shape_of(config: PretrainedConfig) -> Shape:
    """Return the sizes of a model of this configuration."""
    return _shape(type(config), config.to_json_string())


# --- Memory ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """GB of one GPU (or of the machine, on a CPU tier): parts by phase, `rollout` (not for SFT) and `update`."""

    phases: dict[str, dict[str, float]]
    available: float

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def peak(self) -> float:
        return sum(self.phases[self.peak_phase].values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.available


def micro_batch(config: RunConfig, stage: str) -> int:
    """Completions (SFT: demonstrations) in one forward and backward pass of one process."""
    return getattr(config, stage).per_device_train_batch_size


def rollout_rows(config: RunConfig, stage: str) -> int:
    """Completions that one process samples at once."""
    return getattr(config, stage).rollout_size


def memory(config: RunConfig, stage: str, shape: Shape | None = None) -> Memory:
    """Estimate the memory of a stage ("sft", "grpo" or "ppo") at its longest prompts and completions.

    Args:
        shape: the model's sizes, when it is another one than `config.model.name`.

    Raises:
        ModelLoadError: the model's size is not known here.
    """
    tier, settings, model = load_tier(config.hardware), getattr(config, stage), config.model
    shape = shape or model_shape(model.name)
    on_gpu = tier.gpus > 0
    number = {"float32": 4}.get(model.dtype, 2)  # bytes of a number in a forward pass
    full = model.lora is None
    trained = shape.parameters if full else shape.adapter_parameters(model.lora)
    stay: dict[str, float] = {"weights": trained * 4 + (0 if full else _frozen_bytes(shape, config, number))}
    critic = 0
    if stage == "ppo":
        critic = 2 * shape.hidden + 1
        stay["critic"] = critic * 4
    if stage != "sft" and settings.beta > 0 and full:
        stay["reference"] = shape.parameters * number  # with LoRA it is the model with the adapter switched off
    stay["optimizer"] = (trained + critic) * 8
    stay["overhead"] = (OVERHEAD_GB if on_gpu else PROCESS_GB) * GB

    rows = micro_batch(config, stage)
    scored = settings.max_length if stage == "sft" else settings.max_completion_length
    length = settings.max_length if stage == "sft" else settings.max_prompt_length + scored
    tokens = rows * length
    layer = tokens * shape.layer_activations(number)
    inputs = tokens * shape.hidden * (4 if full else number) * shape.layers
    kept = inputs + layer if settings.gradient_checkpointing else shape.layers * layer
    update = {
        "gradients": (trained + critic) * 4 * (2 if tier.processes > 1 else 1),
        "activations": kept + layer,  # one more layer's worth for the gradients of activations
        "logits": min(rows * scored, TOKEN_TILE) * min(VOCABULARY_TILE, shape.vocabulary)
        * (number if on_gpu else 4 * CPU_TILES) + (shape.vocabulary * shape.hidden * 4 if full else 0),
    }
    if full and number < 4:
        update["half-precision copies"] = shape.parameters * number  # autocast's, of float32 weights

    phases = {"update": stay | update}
    if stage != "sft":
        vllm = settings.vllm_gpu_memory_utilization * tier.memory_gb * GB
        if settings.use_vllm:
            if not settings.vllm_enable_sleep_mode:
                stay["vLLM"] = vllm
                phases["update"] = stay | update
            phases["rollout"] = stay | {"vLLM": vllm}
        else:
            rows = rollout_rows(config, stage)
            phases["rollout"] = stay | {
                "KV cache": 1.5 * rows * length * shape.kv_bytes(number),  # half more while it grows
                "logits": rows * shape.vocabulary * 4 * 4,  # of one position: logits, log-softmax, softmax, sample
            }
    in_gb = {phase: {name: size / GB for name, size in parts.items()} for phase, parts in phases.items()}
    return Memory(in_gb, tier.memory_gb * (HEADROOM if on_gpu else 1.0))


def _frozen_bytes(shape: Shape, config: RunConfig, number: int) -> float:
    if not config.model.load_in_4bit:
        return shape.parameters * number
    linear = sum(i * o for _, i, o in shape.linear)
    return linear * FOUR_BIT + (shape.parameters - linear) * number


def vllm_cache_tokens(config: RunConfig, stage: str, shape: Shape | None = None) -> int:
    """Tokens of KV cache that vLLM's share leaves after its own copy of the weights; negative where they do not fit."""
    shape, settings = shape or model_shape(config.model.name), getattr(config, stage)
    share = settings.vllm_gpu_memory_utilization * load_tier(config.hardware).memory_gb * GB
    left = share - shape.parameters * 2 - VLLM_WORKSPACE_GB * GB
    return int(left / (shape.kv_bytes(2)))


# --- Time ------------------------------------------------------------------------------------------------------------


def optimizer_steps(config: RunConfig, stage: str) -> int | None:
    """Steps of a stage: max_steps, or from the number of training problems; None where that is not known beforehand."""
    settings = getattr(config, stage)
    if settings.max_steps > 0:
        return settings.max_steps
    rows = TRAIN_ROWS[config.task.name] if config.task.source == "hub" else None
    limits = [rows, config.task.train_limit]
    rows = min((limit for limit in limits if limit is not None), default=None)
    if rows is None:
        return None
    samples = rows * settings.num_train_epochs
    if stage != "sft":
        samples *= settings.num_generations * settings.num_iterations
    processes = load_tier(config.hardware).processes
    return math.ceil(samples / (micro_batch(config, stage) * settings.gradient_accumulation_steps * processes))


def step_seconds(config: RunConfig, stage: str) -> float | None:
    """Estimate the seconds of an optimiser step on a GPU tier, rollouts included; None on a CPU. Right to a factor of
    two or three at best: completions are taken to be half as long as they may be, and EFFICIENCY is assumed."""
    tier, settings, shape = load_tier(config.hardware), getattr(config, stage), model_shape(config.model.name)
    if tier.tflops is None or tier.bandwidth is None:
        return None
    rows = micro_batch(config, stage) * settings.gradient_accumulation_steps
    # Forward 2, backward 4 operations a parameter and token (arXiv 2001.08361, section 2.1); the gradients of frozen
    # weights are left out, and gradient checkpointing repeats the forward pass.
    per_token = (6 if config.model.lora is None else 4) + (2 if settings.gradient_checkpointing else 0)
    if stage == "sft":
        tokens = rows * settings.max_length / 2
        return tokens * shape.parameters * per_token / (tier.tflops * 1e12 * EFFICIENCY)
    per_token += (2 if settings.use_vllm else 0) + (2 if settings.beta > 0 else 0)
    tokens = rows * (settings.max_prompt_length + settings.max_completion_length) / 2
    update = tokens * shape.parameters * per_token / (tier.tflops * 1e12 * EFFICIENCY)
    sampled = rollout_rows(config, stage)
    engine = "vllm" if settings.use_vllm else "transformers"
    read = 2 * shape.parameters + sampled * settings.max_completion_length / 2 * shape.kv_bytes(2)
    decode = settings.max_completion_length * max(DECODE_MS[engine] / 1e3, read / (tier.bandwidth * GB))
    return update + decode * rows / (sampled * settings.num_iterations)


def hours(config: RunConfig, stage: str, seconds: float | None = None) -> float | None:
    """Hours of a stage, from the seconds of an optimiser step where you have timed one; None where it is not known."""
    steps, seconds = optimizer_steps(config, stage), seconds or step_seconds(config, stage)
    return None if steps is None or seconds is None else steps * seconds / 3600


# --- What the learner sees -------------------------------------------------------------------------------------------


def check_memory(config: RunConfig) -> None:
    """Raise ConfigError, with settings that would do, where a stage does not fit on the run's tier."""
    tier = load_tier(config.hardware)
    for stage in config.stages:
        needed, settings = memory(config, stage), getattr(config, stage)
        if not needed.fits:
            parts = needed.phases[needed.peak_phase]
            largest = sorted(parts, key=parts.get, reverse=True)[:3]
            raise ConfigError(
                f"{stage} with {config.model.name} needs about {needed.peak:.1f} GB, and the tier {tier.name} has "
                f"{tier.memory_gb:g} GB ({', '.join(f'{name} {parts[name]:.1f}' for name in largest)}, ...). "
                + advice(config, stage))
        if not vllm_fits(config, stage):
            shape, length = model_shape(config.model.name), settings.max_prompt_length + settings.max_completion_length
            least = (2 * shape.parameters + length * shape.kv_bytes(2)) / GB + VLLM_WORKSPACE_GB
            raise ConfigError(
                f"{stage}.vllm_gpu_memory_utilization = {settings.vllm_gpu_memory_utilization} gives vLLM "
                f"{settings.vllm_gpu_memory_utilization * tier.memory_gb:.1f} GB, and {config.model.name} with one "
                f"completion of {length} tokens needs {least:.1f} GB. A value that would do: "
                f"{math.ceil(100 * least / tier.memory_gb) / 100}, or {stage}.use_vllm=false.")


def vllm_fits(config: RunConfig, stage: str) -> bool:
    """Whether vLLM's share of its GPUs holds the weights and one completion at least."""
    settings = getattr(config, stage)
    if stage == "sft" or not settings.use_vllm:
        return True
    return vllm_cache_tokens(config, stage) >= settings.max_prompt_length + settings.max_completion_length


def _fits(config: RunConfig, stage: str) -> bool:
    return memory(config, stage).fits and vllm_fits(config, stage)


def advice(config: RunConfig, stage: str) -> str:
    """Say which settings would make a stage fit, as train.py takes them: the mildest that suffice together."""
    savings = list(_savings(config, stage))
    enough = next((n for n in range(1, len(savings) + 1) if _fits(_changed(config, savings[:n]), stage)), None)
    if enough is None:
        tiers = [load_tier(name) for name in hardware_names()]
        for tier in sorted((tier for tier in tiers if tier.gpus == 1), key=lambda tier: tier.memory_gb):
            if _fits(config.model_copy(update={"hardware": tier.name}), stage):
                return f"No setting saves enough: take a smaller model or the tier {tier.name}, {tier.memory_gb:g} GB."
        return "No tier has room for it: take a smaller model."
    needed = savings[:enough]
    for saving in savings[:enough]:
        without = [other for other in needed if other is not saving]
        if _fits(_changed(config, without), stage):
            needed = without
    return f"This would fit: {as_options(needed)}"


def first_saving(config: RunConfig, stage: str) -> str:
    """Say what to try first where a stage ran out of memory although it was estimated to fit."""
    saving = next(_savings(config, stage), None)
    return f"This saves memory: {as_options([saving])}." if saving else "Take a smaller model or shorter completions."


def as_options(savings: list[dict[str, Any]]) -> str:
    """Settings as options of train.py."""
    settings = {key: value for saving in savings for key, value in saving.items()}
    texts = {key: "'{r: 16, alpha: 32}'" if isinstance(value, LoraSettings) else str(value).lower()
             for key, value in settings.items()}
    return " ".join(f"--set {key}={text}" for key, text in texts.items())


def _savings(config: RunConfig, stage: str) -> Iterator[dict[str, Any]]:
    """Changes that save memory: first those that cost only time, then smaller pieces, then less to train."""
    settings, model = getattr(config, stage), config.model
    if not settings.gradient_checkpointing:
        yield {f"{stage}.gradient_checkpointing": True}
    vllm = stage != "sft" and settings.use_vllm
    if vllm and not settings.vllm_enable_sleep_mode:
        yield {f"{stage}.vllm_enable_sleep_mode": True}
    key = f"{stage}.per_device_train_batch_size"
    rows, accumulation = micro_batch(config, stage), settings.gradient_accumulation_steps
    while rows % 2 == 0:
        rows, accumulation = rows // 2, accumulation * 2
        yield {key: rows, f"{stage}.gradient_accumulation_steps": accumulation}
    if model.lora is None:
        yield {"model.lora": LoraSettings()}
    if vllm:
        yield {f"{stage}.use_vllm": False}
    if not model.load_in_4bit:
        using = [other for other in ("grpo", "ppo", "evaluation") if getattr(config, other).use_vllm]
        yield {"model.load_in_4bit": True} | {f"{other}.use_vllm": False for other in using}


def _changed(config: RunConfig, savings: list[dict[str, Any]]) -> RunConfig:
    for name, value in (item for saving in savings for item in saving.items()):
        section, key = name.split(".")
        config = config.model_copy(update={section: getattr(config, section).model_copy(update={key: value})})
    return config


def spoken(hours: float) -> str:
    """Hours in words: "40 min", "3.1 h"."""
    return f"{hours:.1f} h" if hours >= 1 else f"{math.ceil(60 * hours)} min"


def describe(config: RunConfig) -> str:
    """Say in a line for each stage what it will take: GB by parts, and hours on a GPU tier."""
    tier = load_tier(config.hardware)
    what = f"of {tier.memory_gb:g} GB{' on each GPU' if tier.gpus > 1 else ''}"
    lines = []
    for stage in config.stages:
        needed = memory(config, stage)
        parts = needed.phases[needed.peak_phase]
        shown = ", ".join(f"{name} {parts[name]:.1f}" for name in sorted(parts, key=parts.get, reverse=True)
                          if parts[name] >= 0.05)
        time = hours(config, stage)
        tail = f"; roughly {spoken(time)}" if time else ""
        lines.append(f"{stage}: about {needed.peak:.1f} {what} ({shown}){tail}")
    return "\n".join(lines)
