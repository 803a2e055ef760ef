"""Every setting of a run, with its type, range and default. Defaults are TRL's own where TRL has the key."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .errors import ConfigError, did_you_mean, shown
from .own_code import portable

# --- Types of values, with their ranges ------------------------------------------------------------------------------


def _number_in_text(value: Any) -> Any:
    """Accept 1e-5, which YAML reads as text, as well as 1.0e-5."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_number_in_text)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
LearningRate = Annotated[Number, Field(ge=1e-12, lt=1)]  # float32 rounds smaller steps away
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(gt=0, le=1)]
UnitInterval = Annotated[Number, Field(ge=0, le=1)]
BelowOne = Annotated[Number, Field(ge=0, lt=1)]
Steps = Annotated[
    Literal[-1] | Count, Field(description="a whole number of at least 1, or -1 to use num_train_epochs instead")]
GroupSize = Annotated[
    int, Field(ge=2, description="a whole number of at least 2: completions are compared within their group")]
TargetModules = Annotated[
    Literal["all-linear"] | Annotated[list[str], Field(min_length=1)],
    Field(description="'all-linear' or a list of layer names, such as [q_proj, v_proj]"),
]
TaskName = Annotated[
    Literal["countdown", "gsm8k", "qa"] | Annotated[str, Field(pattern=r"\.py(:\w+)?$")],
    Field(description="'countdown', 'gsm8k', 'qa' (questions and answers of your own) or a Python file of your own, "
          "such as my_task.py"),
]
Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup"]
Stage = Literal["sft", "grpo", "ppo"]

# --- The sections ----------------------------------------------------------------------------------------------------


class Section(BaseModel):
    """Settings that cannot be changed after loading; an unknown key is an error and no type is converted silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TaskSettings(Section):
    name: TaskName
    response_format: Literal["reasoning", "think", "hash"]
    # "hub" (the task's own dataset), "synthetic", OWNER/NAME or OWNER/NAME:CONFIG on the Hub, or a path: a .jsonl, .csv
    # or .parquet file, of which one row in ten is for tests, or a folder with train.* and test.*
    source: str = "hub"
    columns: dict[str, str] = {}  # the task's column -> that of the dataset: {question: prompt, answer: solution}
    drop_bad_rows: bool = False  # leave out rows that cannot be used, instead of an error
    train_limit: Count | None = None  # at most this many training rows, in every stage; null: all
    test_limit: Count | None = None  # at most this many test questions; null: all


class LoraSettings(Section):
    r: Count = 16  # rank of the update
    alpha: Count = 32  # the update is scaled by alpha / r
    dropout: BelowOne = 0.0
    target_modules: TargetModules = "all-linear"


class ModelSettings(Section):
    name: str  # a Hub id, a path, or "tiny" for the model that ships with the workshop
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    device: Literal["auto", "cpu"] = "auto"  # auto: a GPU if there is one
    load_in_4bit: bool = False
    lora: LoraSettings | None = None  # null: all weights are trained


class TrainingSettings(Section):
    """Keys that every stage has, with TRL's names."""

    learning_rate: LearningRate
    lr_scheduler_type: Schedule = "linear"
    warmup_ratio: BelowOne = 0.0  # share of the steps in which the learning rate rises
    max_grad_norm: Positive = 1.0
    num_train_epochs: Positive = 1.0  # ignored if max_steps is given
    max_steps: Steps = -1  # optimizer steps
    per_device_train_batch_size: Count = 8  # rows in one forward and backward pass; in RL a row is one completion
    gradient_accumulation_steps: Count = 1
    dataloader_num_workers: CountOrZero = 0  # processes that prepare batches; 0: the training process does
    gradient_checkpointing: bool = True  # recompute activations: slower, far less memory
    logging_steps: Count = 1
    save_steps: Count = 100


class SFTSettings(TrainingSettings):
    learning_rate: LearningRate = 2e-5
    max_length: Count = 1024  # tokens of prompt and completion
    weight_decay: NonNegative = 0.0
    logging_steps: Count = 10


class RLSettings(TrainingSettings):
    """What GRPO and PPO share: how completions are sampled, and how far an update may go."""

    steps_per_generation: Count | None = None  # batches in one rollout; null: gradient_accumulation_steps
    num_iterations: Count = 1  # passes over each rollout (µ in DeepSeekMath, "PPO epochs")
    num_generations: GroupSize = 8  # completions per prompt: the group
    max_prompt_length: Annotated[int, Field(ge=32)] = 512  # tokens; longer prompts are left out
    max_completion_length: Count = 512
    temperature: Positive = 1.0
    top_p: Share = 1.0
    beta: NonNegative = 0.0  # KL coefficient; 0 needs no reference model
    epsilon: Positive = 0.2  # the probability ratio is clipped to 1 ± epsilon
    use_vllm: bool = False
    vllm_gpu_memory_utilization: Share = 0.3
    vllm_enable_sleep_mode: bool = False
    # Correction of the gap between vLLM's and the trainer's probabilities: per token, weights cut off at the maximum.
    # TRL's own mode masks whole completions by the product of their weights. Gaps of 0.05 per token, as measured in
    # bfloat16 (TRL issue 6789), then halve the effective sample at 512 tokens; per token they cost less than 1%.
    vllm_importance_sampling_mode: Literal[
        "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = "token_truncate"
    vllm_importance_sampling_clip_max: Positive = 3.0
    log_completions_steps: Count = 10
    probe_rollouts: CountOrZero = 0  # ask the same held-out problems before every so many rollouts; 0: never

    @property
    def rollout_size(self) -> int:
        """Return the number of completions that one process samples before it updates."""
        return self.per_device_train_batch_size * (self.steps_per_generation or self.gradient_accumulation_steps)


class GRPOSettings(RLSettings):
    learning_rate: LearningRate = 1e-6
    adam_beta1: BelowOne = 0.9
    adam_beta2: BelowOne = 0.999
    weight_decay: NonNegative = 0.0
    epsilon_high: Positive | None = None  # upper clip if it differs from epsilon (DAPO's clip-higher)
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    importance_sampling_level: Literal["token", "sequence"] = "token"  # one ratio per what (GSPO)
    mask_truncated_completions: bool = False


class PPOSettings(RLSettings):
    """Defaults are those of the PPO trainer that TRL once had: a rollout of 16 in batches of 4, four passes."""

    learning_rate: LearningRate = 1.41e-5
    critic_learning_rate: LearningRate = 1e-4
    per_device_train_batch_size: Count = 4
    steps_per_generation: Count | None = 4
    num_iterations: Count = 4
    num_generations: GroupSize = 2
    beta: NonNegative = 0.05
    gamma: UnitInterval = 1.0  # discount
    lam: UnitInterval = 0.95  # λ of generalized advantage estimation
    epsilon_value: Positive = 0.2  # a value is clipped to the old value ± epsilon_value
    vf_coef: NonNegative = 0.1  # weight of the value loss
    whiten_advantages: bool = True
    critic_warmup_steps: CountOrZero = 0  # optimizer steps in which only the critic learns


class EvaluationSettings(Section):
    num_samples: Count = 1  # completions per question
    temperature: NonNegative = 0.0  # 0: greedy
    top_p: Share = 1.0
    max_new_tokens: Count = 512
    use_vllm: bool = False  # if it is installed; otherwise transformers samples
    batch_size: Count = 64  # completions at once, without vLLM
    seed: CountOrZero = 0


class TrackingSettings(Section):
    tensorboard: bool = True
    wandb: bool | None = None  # offline unless WANDB_API_KEY is set; null: on if that is set or WANDB_MODE is online
    print_metrics: bool = False  # one line per logged step instead of the progress bar, for logs that a program reads


class RunConfig(Section):
    """Every setting of a run, validated. Made by `load` or, from a run directory, by `read_config`."""

    recipe: str
    hardware: str
    hardware_reason: str = "chosen by name"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    task: TaskSettings
    model: ModelSettings
    stages: Annotated[list[Stage], Field(min_length=1)]
    rewards: dict[str, Number] = {}  # weight by name of the reward function, or by FILE.py:FUNCTION for your own
    sft: SFTSettings = SFTSettings()
    grpo: GRPOSettings = GRPOSettings()
    ppo: PPOSettings = PPOSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    tracking: TrackingSettings = TrackingSettings()

    def to_yaml(self) -> str:
        """Return the settings as they stand in the config.yaml of a run directory, which has copies of own code."""
        return yaml.safe_dump(portable(self.model_dump()), sort_keys=False, allow_unicode=True)


class Tier(Section):
    """A hardware tier, as its file describes it."""

    name: str
    description: str
    gpus: CountOrZero  # one training process each
    memory_gb: Positive  # of one GPU, or of the machine if gpus is 0
    tflops: Positive | None = None  # peak rate of one GPU in half precision (dense), from its data sheet
    based_on: str | None = None  # another tier, whose settings this one changes
    base_model_needs_sft: bool = False  # put an sft stage first if the recipe has none
    set: dict[str, Any] = {}
    recipes: dict[str, Any] = {}

    @property
    def processes(self) -> int:
        """Return one process per GPU of every machine; on CPUs as many as were started. torchrun counts both."""
        on_a_machine = self.gpus or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return on_a_machine * int(os.environ.get("GROUP_WORLD_SIZE", "1"))


# --- Errors in words -------------------------------------------------------------------------------------------------

WORDS = {  # pydantic's words -> ours
    "a valid integer": "a whole number", "a valid number": "a finite number", "a valid string": "text",
    "a valid boolean": "true or false", "a valid list": "a list, such as [sft, grpo]", "List should have": "a list of",
    "greater than or equal to": "at least", "less than or equal to": "at most", " after validation, not 0": "",
}

AnySection = TypeVar("AnySection", bound=Section)


def validate(section: type[AnySection], values: Mapping[str, Any]) -> AnySection:
    """Make a section from a mapping; raise ConfigError with one line per wrong key or value."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        places: dict[str, str] = {}
        for found in error.errors(include_url=False):
            key, text = _explain(section, found)
            places.setdefault(key, text)  # a union reports once for each of its members
        raise ConfigError("\n".join([*places.values()][:20])) from None


def _explain(section: type[Section], error: Mapping[str, Any]) -> tuple[str, str]:
    """Return the key that a pydantic error is about, and a sentence that says what is wrong and what to do."""
    key, field, kind = _locate(section, error["loc"])
    value, fields = shown(error["input"]), getattr(kind, "model_fields", {})
    if error["type"] == "extra_forbidden":
        prefix, name = f"{key}." if key else "", str(error["loc"][-1])
        sections = [f"{outer}.{name}" for outer, inner in section.model_fields.items()
                    if name in getattr(_section_in(inner.annotation), "model_fields", {})]
        hint = did_you_mean(name, fields, prefix) if key or not sections else f" Did you mean {' or '.join(sections)}?"
        return prefix + name, (f"There is no key {prefix}{name} (its value: {value}).{hint} "
                               f"Keys here: {', '.join(fields)}.")
    if error["type"] == "missing":
        return key, f"{key} is missing: add it{_one_of(field.annotation)}."
    if error["type"] in ("model_type", "dict_type"):
        example = f"with the keys {', '.join(fields)}" if fields else "such as {equation_reward: 1.0}"
        return key, f"{key} = {value} must be a section {example}."

    rule = field.description or error["msg"].removeprefix("Input should be ")
    for in_pydantic, here in WORDS.items():
        rule = rule.replace(in_pydantic, here)
    hint = did_you_mean(error["input"], re.findall("'(.*?)'", rule)) if error["type"] == "literal_error" else ""
    if not field.is_required() and not isinstance(field.default, (Section, dict)):
        hint += f" Default: {yaml.safe_dump(field.default).split()[0]}."
    return key, f"{key} = {value} must be {rule}.{hint}"


def _locate(section: type[Section], location: tuple) -> tuple[str, Any, Any]:
    """Return the key at a pydantic location in words, and the field and type there; members of a union are no keys."""
    key, field, kind = "", None, section
    for part in location:
        if part in getattr(kind, "model_fields", {}):
            field = kind.model_fields[part]
            kind = _section_in(field.annotation) or field.annotation
            key += f".{part}"
        elif get_origin(kind) is list and isinstance(part, int):
            key += f"[{part}]"
        elif get_origin(kind) is dict:
            key += f".{part}"
    return key.lstrip("."), field, kind


def _section_in(annotation: Any) -> type[Section] | None:
    """Return the section class in an annotation such as `LoraSettings | None`."""
    options = get_args(annotation) or (annotation,)
    return next((kind for kind in options if isinstance(kind, type) and issubclass(kind, Section)), None)


def _one_of(annotation: Any) -> str:
    if get_origin(annotation) is list:
        return ", a list" + _one_of(get_args(annotation)[0]).replace("one of", "of")
    names = [option for option in get_args(annotation) if isinstance(option, str)]
    return f", one of {', '.join(names)}" if names else ""
