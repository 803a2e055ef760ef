"""One validated configuration per run: recipe ⊕ hardware tier ⊕ overrides. Nothing else configures anything.

    config = load("countdown-grpo", hardware="cpu", overrides={"grpo.beta": 0.04})

A *recipe* (recipes/*.yaml) says what is learned, a *tier* (hardware/*.yaml) how it fits the machine. The dataclasses
below list every key with its default, TRL's own where TRL has the key. Later wins:

    defaults < recipe < the tier's `set` < the tier's `recipes: <this recipe>` < overrides

Everything is checked, by config_rules.py, before any model is loaded.
"""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from .config_rules import ConfigError, Rule, build, check_known, problems
from .environment import is_installed

__all__ = ["ConfigError", "RunConfig", "Tier", "detect_hardware", "hardware_names", "load", "load_tier", "recipe_names"]

RECIPES = Path(__file__).parent / "recipes"
HARDWARE = Path(__file__).parent / "hardware"

# --- Types of values, with their ranges ------------------------------------------------------------------------------

Count = Annotated[int, Rule("at least 1", lambda n: n >= 1)]
CountOrZero = Annotated[int, Rule("at least 0", lambda n: n >= 0)]
Steps = Annotated[int, Rule("at least 1, or -1 to go by num_train_epochs", lambda n: n == -1 or n >= 1)]
GroupSize = Annotated[int, Rule("at least 2 (completions are compared within their group)", lambda n: n >= 2)]
PromptLength = Annotated[int, Rule("at least 32 (tokens of a system prompt and a question)", lambda n: n >= 32)]
LearningRate = Annotated[float, Rule("greater than 0 and less than 1", lambda x: 0 < x < 1)]
Positive = Annotated[float, Rule("greater than 0", lambda x: x > 0)]
NonNegative = Annotated[float, Rule("at least 0", lambda x: x >= 0)]
Share = Annotated[float, Rule("greater than 0 and at most 1", lambda x: 0 < x <= 1)]
UnitInterval = Annotated[float, Rule("at least 0 and at most 1", lambda x: 0 <= x <= 1)]
BelowOne = Annotated[float, Rule("at least 0 and less than 1", lambda x: 0 <= x < 1)]
ServerUrl = Annotated[
    str, Rule("such as http://127.0.0.1:8000", lambda url: re.fullmatch(r"http://[\w.-]+:\d+", url) is not None)]
Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup"]

# --- The sections ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskSettings:
    name: Literal["gsm8k", "countdown"]
    response_format: Literal["reasoning", "think", "hash"]
    source: str = "hub"  # "hub", "synthetic", or the path of a .jsonl file or of a folder with train.jsonl, test.jsonl
    train_limit: Count | None = None  # at most this many training problems; null: all
    test_limit: Count | None = None


@dataclass(frozen=True)
class LoraSettings:
    r: Count = 16  # rank of the update
    alpha: Count = 32  # the update is scaled by alpha / r
    dropout: BelowOne = 0.0
    target_modules: Literal["all-linear"] | list[str] = "all-linear"


@dataclass(frozen=True)
class ModelSettings:
    name: str  # a Hub id, a path, or "tiny" for the model that ships with the workshop
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    device: Literal["auto", "cpu"] = "auto"  # auto: a GPU where there is one
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    load_in_4bit: bool = False
    lora: LoraSettings | None = None  # null: all weights are trained


@dataclass(frozen=True)
class SFTSettings:
    learning_rate: LearningRate = 2e-5
    lr_scheduler_type: Schedule = "linear"
    warmup_ratio: BelowOne = 0.0  # share of the steps in which the learning rate rises
    num_train_epochs: Positive = 1.0  # ignored where max_steps is given
    max_steps: Steps = -1  # optimiser steps
    per_device_train_batch_size: Count = 8
    gradient_accumulation_steps: Count = 1
    max_length: Count = 1024  # tokens of prompt and completion
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive = 1.0
    gradient_checkpointing: bool = True  # recompute activations: slower, far less memory
    logging_steps: Count = 10
    save_steps: Count = 100
    train_limit: Count | None = None  # at most this many demonstrations; null: all


@dataclass(frozen=True)
class RLSettings:
    """What GRPO and PPO share: how completions are sampled, and how far an update may go."""

    learning_rate: LearningRate = 1e-6
    lr_scheduler_type: Schedule = "linear"
    warmup_ratio: BelowOne = 0.0
    max_grad_norm: Positive = 1.0
    num_train_epochs: Positive = 1.0
    max_steps: Steps = -1
    gradient_accumulation_steps: Count = 1
    num_generations: GroupSize = 8  # completions per prompt: the group
    max_prompt_length: PromptLength = 512  # longer prompts are left out
    max_completion_length: Count = 512
    temperature: Positive = 1.0
    top_p: Share = 1.0
    beta: NonNegative = 0.0  # KL coefficient; 0 needs no reference model
    epsilon: Positive = 0.2  # the probability ratio is clipped to 1 ± epsilon
    gradient_checkpointing: bool = True
    use_vllm: bool = False
    vllm_mode: Literal["colocate", "server"] = "colocate"
    vllm_gpu_memory_utilization: Share = 0.3
    vllm_enable_sleep_mode: bool = False
    vllm_tensor_parallel_size: Count = 1
    vllm_server_url: ServerUrl = "http://127.0.0.1:8000"  # of vllm_mode server
    logging_steps: Count = 1
    save_steps: Count = 100
    log_completions_steps: Count = 10


@dataclass(frozen=True)
class GRPOSettings(RLSettings):
    adam_beta1: BelowOne = 0.9
    adam_beta2: BelowOne = 0.999
    weight_decay: NonNegative = 0.0
    per_device_train_batch_size: Count = 8  # completions, not prompts, as in TRL
    steps_per_generation: Count | None = None  # micro-batches per rollout; null: gradient_accumulation_steps
    num_iterations: Count = 1  # passes over each rollout (µ of DeepSeekMath)
    epsilon_high: Positive | None = None  # upper clip where it is not epsilon (DAPO's clip-higher)
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    mask_truncated_completions: bool = False


@dataclass(frozen=True)
class PPOSettings(RLSettings):
    """Defaults are those of the PPO trainers that TRL once had. Batch sizes count completions on one process."""

    learning_rate: LearningRate = 1.41e-5
    critic_learning_rate: LearningRate = 1e-4
    batch_size: Count = 16  # one rollout
    mini_batch_size: Count = 4  # one forward pass; times gradient_accumulation_steps: one optimiser step
    ppo_epochs: Count = 4  # passes over each rollout
    num_generations: GroupSize = 2
    beta: NonNegative = 0.05
    gamma: UnitInterval = 1.0  # discount
    lam: UnitInterval = 0.95  # λ of generalised advantage estimation
    epsilon_value: Positive = 0.2  # a value is clipped to the old value ± epsilon_value
    vf_coef: NonNegative = 0.1  # weight of the value loss
    whiten_advantages: bool = True
    critic_warmup_steps: CountOrZero = 0  # optimiser steps in which only the critic learns
    separate_critic: bool = False  # a second model of its own, in place of a value head on the policy's hidden states


@dataclass(frozen=True)
class EvaluationSettings:
    num_samples: Count = 1  # completions per question
    temperature: NonNegative = 0.0  # 0: greedy
    top_p: Share = 1.0
    max_new_tokens: Count = 512
    use_vllm: bool = False  # where it is installed; transformers answers otherwise
    batch_size: Count = 64  # completions at once, without vLLM
    limit: Count | None = None  # at most this many test questions; null: all
    seed: CountOrZero = 0


@dataclass(frozen=True)
class TrackingSettings:
    tensorboard: bool = True
    wandb: bool = False  # offline unless WANDB_API_KEY is set
    print_metrics: bool = False  # a line a logged step in place of the progress bar, for a log that a program reads


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Every setting of a run, validated. Made by `load` or `RunConfig.from_yaml`."""

    recipe: str
    hardware: str
    hardware_reason: str = "chosen by name"
    seed: CountOrZero = 0
    task: TaskSettings
    model: ModelSettings
    stages: list[Literal["sft", "grpo", "ppo"]]
    rewards: dict[str, float | None] = field(default_factory=dict)  # weight by name of the reward function
    sft: SFTSettings = SFTSettings()
    grpo: GRPOSettings = GRPOSettings()
    ppo: PPOSettings = PPOSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    tracking: TrackingSettings = TrackingSettings()

    def to_dict(self) -> dict[str, Any]:
        """The settings as nested dictionaries."""
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        """The settings as they stand in the config.yaml of a run directory."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike) -> RunConfig:
        """Read the config.yaml of a run directory; raises ConfigError where it is not valid."""
        return _validated(_read_yaml(Path(path)))


@dataclass(frozen=True)
class Tier:
    """A hardware tier, as its file says."""

    name: str
    description: str
    gpus: CountOrZero  # each is trained on by a process of its own
    memory_gb: Positive  # of one GPU, or of the machine where gpus is 0
    tflops: Positive | None = None  # peak rate of one GPU in half precision (dense), from its data sheet
    bandwidth: Positive | None = None  # GB/s between one GPU and its memory, from its data sheet
    server_gpus: CountOrZero = 0  # besides them, those of a vLLM server that samples for training
    based_on: str | None = None  # another tier, whose settings this one changes
    base_model_needs_sft: bool = False  # an sft stage is put first where the recipe has none
    set: dict[str, Any] = field(default_factory=dict)
    recipes: dict[str, Any] = field(default_factory=dict)

    @property
    def processes(self) -> int:
        """One for each GPU; on a CPU as many as `accelerate launch` has started."""
        return self.gpus or int(os.environ.get("WORLD_SIZE", "1"))

    def layers(self, recipe: str) -> list[dict[str, Any]]:
        """What this tier changes in a recipe, in the order in which it is merged."""
        before = load_tier(self.based_on).layers(recipe) if self.based_on else []
        return [*before, self.set, self.recipes.get(recipe, {})]


# --- Loading ---------------------------------------------------------------------------------------------------------


def load(
    recipe: str | os.PathLike,
    hardware: str = "auto",
    overrides: Mapping[str, Any] | Iterable[str] | None = None,
) -> RunConfig:
    """Merge recipe, hardware tier and overrides into one validated RunConfig.

    Args:
        recipe: one of `recipe_names()`, or the path of your own .yaml file of the same shape.
        hardware: one of `hardware_names()`, or "auto" to choose by what the machine has (see `hardware_reason`).
        overrides: {"grpo": {"beta": 0.04}}, {"grpo.beta": 0.04}, or ["grpo.beta=0.04"] as on the command line.
            `rewards.NAME=null` takes a reward away. Overriding `stages` gives exactly those stages, without the sft
            stage that the tiers of the tiny model put first.

    Raises:
        ConfigError: a name does not exist, or a value has the wrong type or range or does not fit the others.
    """
    reason, missing = "chosen by name", {}
    if hardware == "auto":
        hardware, reason = detect_hardware()
        if load_tier(hardware).gpus and not is_installed("vllm"):
            missing = {stage: {"use_vllm": False} for stage in ("grpo", "ppo")}
            reason += "; vLLM is not installed, so transformers samples, which takes longer"
    tier = load_tier(hardware)
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        path = RECIPES / f"{check_known('recipe', str(recipe), recipe_names())}.yaml"
    changes = _nested(overrides or {})

    values: dict[str, Any] = {}
    for layer in (_read_yaml(path), *tier.layers(path.stem), missing, changes):
        for key in ("recipe", "hardware", "hardware_reason"):
            if key in layer:
                raise ConfigError(f"{key} = {layer[key]!r} cannot be set here, only by load(recipe, hardware) or "
                                  "--recipe and --hardware.")
        values = _merge(values, layer)
    stages = values.get("stages")
    if tier.base_model_needs_sft and "stages" not in changes and isinstance(stages, list) and "sft" not in stages:
        values["stages"] = ["sft", *stages]
    return _validated({"recipe": path.stem, "hardware": tier.name, "hardware_reason": reason, **values})


def recipe_names() -> list[str]:
    """The recipes that ship with the workshop."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def hardware_names() -> list[str]:
    """The hardware tiers."""
    return sorted(path.stem for path in HARDWARE.glob("*.yaml"))


def load_tier(name: str) -> Tier:
    """Read a hardware tier; raises ConfigError for an unknown name."""
    check_known("hardware tier", name, [*hardware_names(), "auto"])
    return build(Tier, _read_yaml(HARDWARE / f"{name}.yaml"), "")


def detect_hardware() -> tuple[str, str]:
    """Choose the tier for this machine: its name, and the reason in words for the learner."""
    import torch  # only "auto" needs it, and importing it takes seconds

    if not torch.cuda.is_available():
        return "cpu", "auto: no CUDA GPU found, so the tiny model trains on the processor"
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    memory = min(gpu.total_memory for gpu in gpus) / 2**30
    found = f"auto: found {len(gpus)} × {gpus[0].name} with {memory:.0f} GiB"
    # A GPU sold with 16 GB reports a little less, hence nine tenths.
    fitting = [name for name in ("t4", "a10g", "a100", "h200") if memory >= 0.9 * load_tier(name).memory_gb]
    if not fitting:
        return "cpu", f"{found}; the smallest GPU tier needs 16 GB"
    if gpus[0].major < 8:
        return "t4", f"{found}; GPUs before the Ampere generation have no bfloat16"
    if fitting[-1] == "a10g" and len(gpus) >= 4:
        return "a10g-x4", f"{found}; start with: {launch_command('a10g-x4')} ..."
    return fitting[-1], found + ("; show torch one of them by CUDA_VISIBLE_DEVICES=0" if len(gpus) > 1 else "")


def launch_command(tier: str) -> str:
    """How scripts/train.py is started on a tier of several GPUs: one process for each."""
    return f"accelerate launch --config_file setup/accelerate/{tier}.yaml scripts/train.py"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}). Give a YAML file, or one of {', '.join(recipe_names())}."
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold sections such as 'task:' and 'grpo:', not {values!r}.")
    return values


def _nested(overrides: Mapping[str, Any] | Iterable[str]) -> dict[str, Any]:
    """Overrides in any of their three forms as nested dictionaries."""
    if isinstance(overrides, Mapping):
        pairs = list(overrides.items())
    else:
        pairs = []
        for text in [overrides] if isinstance(overrides, str) else overrides:
            key, equals, value = text.partition("=")
            if not key or not equals:
                raise ConfigError(f"The override {text!r} must have the form KEY=VALUE, such as grpo.beta=0.04.")
            try:
                pairs.append((key.strip(), yaml.safe_load(value)))
            except yaml.YAMLError:
                raise ConfigError(f"The value in {text!r} is not valid YAML. Quote it: {key}='...'.") from None
    nested: dict[str, Any] = {}
    for key, value in pairs:
        for part in reversed(str(key).split(".")):
            value = {part: value}
        nested = _merge(nested, value)
    return nested


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` changed by `over`: mappings are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _validated(values: dict[str, Any]) -> RunConfig:
    config = build(RunConfig, values, "")
    weights = {name: weight for name, weight in config.rewards.items() if weight is not None}
    config = dataclasses.replace(config, rewards=weights)
    tier = load_tier(config.hardware)
    if found := problems(config, tier):
        raise ConfigError("\n".join(found))
    if tier.gpus == 0 and config.task.source == "hub":
        warnings.warn("task.source = 'hub' needs a network for its download; 'synthetic' needs none.", stacklevel=3)
    return config
