"""What the stages share: the run directory, the start model, and the settings that every TRL trainer takes alike."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_callback import ProgressCallback as TransformersProgressCallback
from trl import GRPOConfig

from .. import estimate
from .. import rewards as reward_functions
from ..config import ConfigError, RunConfig
from ..environment import check_machine
from ..models import adapter_base, lora_config, on_gpu
from ..tasks import Task, load_task
from ..tracking import MetricsCallback, PrintMetricsCallback, ProgressCallback, RunDirectory, wandb_environment
from . import TrainingStopped
from .stopping import StopOnSIGTERM


def task_of(config: RunConfig) -> Task:
    """Return the task of a run."""
    return load_task(config.task.name, config.task.response_format)


def check_start(start: str | Path, config: RunConfig) -> None:
    """Raise ConfigError, before anything is written, where a stage cannot be trained from a start model.

    The machine must have room for it (GPU tiers), and a start model that is a LoRA adapter, which stays on its base and
    is trained on, must have the rank and alpha of `model.lora`. It stays on the layers that it is on.
    """
    check_machine(dataclasses.replace(config, model=dataclasses.replace(config.model, name=str(start))))
    if adapter_base(str(start)) is None:
        return
    if config.model.lora is None:
        raise ConfigError(f"model.lora = None trains all weights, and the start model {start} is a LoRA adapter. Merge "
                          "it first (python scripts/export.py RUN --output-dir FOLDER, then --model FOLDER), or give "
                          "model.lora.")
    found = json.loads((Path(start) / "adapter_config.json").read_text(encoding="utf-8"))
    for key, there in (("r", found["r"]), ("alpha", found["lora_alpha"])):
        here = getattr(config.model.lora, key)
        if here != there:
            raise ConfigError(f"model.lora.{key} = {here}, and the adapter {start}, which is trained on, has {there}. "
                              f"Give --set model.lora.{key}={there}.")


def trainer_arguments(config: RunConfig, run: RunDirectory, settings: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the arguments that SFTConfig and GRPOConfig share; `names` are copied from the stage's settings."""
    gpu = on_gpu(config.model)
    arguments = {name: getattr(settings, name) for name in names}
    return arguments | {
        "output_dir": str(run.checkpoints_dir),
        "seed": config.seed,
        "use_cpu": not gpu,
        "bf16": config.model.dtype == "bfloat16" and gpu,
        "fp16": config.model.dtype == "float16" and gpu,
        "logging_first_step": True,
        "save_total_limit": 2,
        "report_to": wandb_environment(config),
        "disable_tqdm": True,
        "dataloader_pin_memory": gpu,
    }


def new_adapter(model: PreTrainedModel | PeftModel, config: RunConfig) -> LoraConfig | None:
    """Return the adapter to add to a start model: none if all weights are trained or it brings its own."""
    return None if isinstance(model, PeftModel) else lora_config(config.model)


def train_in_float32(model: PreTrainedModel | PeftModel) -> None:
    """Keep the weights that are trained in float32, whatever the model's dtype: 16 bits round small updates away.

    Forward passes stay in the model's dtype (autocast). TRL puts adapters on a 4-bit base in bfloat16, which float16's
    gradient scaler cannot unscale. On the CPU tiers everything is float32 already.
    """
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def steps_per_rollout(arguments: GRPOConfig) -> int:
    """Return after how many optimiser steps a new rollout falls together with a new step."""
    micro_batches = arguments.steps_per_generation * arguments.num_iterations
    return math.lcm(micro_batches, arguments.gradient_accumulation_steps) // arguments.gradient_accumulation_steps


def checkpoint_between_rollouts(arguments: GRPOConfig) -> GRPOConfig:
    """Round `save_steps` up to whole rollouts: a resumed run begins with a new one."""
    steps = steps_per_rollout(arguments)
    arguments.save_steps = math.ceil(arguments.save_steps / steps) * steps
    return arguments


def rewards_of(config: RunConfig, reward_funcs: Sequence[Callable] | None, max_length: int) -> list[Callable]:
    """Return the reward functions of a run, yours or those that the configuration names; one that fails is named.

    A reward that scales with length, one with a parameter `max_length`, gets the run's longest completion.
    """

    def named(function: Callable) -> Callable:
        scale = {"max_length": max_length} if "max_length" in inspect.signature(function).parameters else {}

        @functools.wraps(function)
        def call(*args, **kwargs):
            try:
                return function(*args, **kwargs, **scale)
            except Exception as error:
                raise ValueError(f"The reward function {function.__name__!r} raised {type(error).__name__}: {error}. A "
                                 "reward must be a number for any completion, however broken its text is.") from error
        return call

    return list(map(named, reward_funcs or [getattr(reward_functions, name) for name in config.rewards]))


def filter_long_prompts(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_prompt_length: int) -> Dataset:
    """Keep the rows whose chat prompt has at most `max_prompt_length` tokens (TRL no longer does it)."""
    lengths = [len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])
               for prompt in dataset["prompt"]]
    kept = dataset.select([i for i, length in enumerate(lengths) if length <= max_prompt_length])
    if len(kept) == 0:
        raise ValueError(f"max_prompt_length={max_prompt_length} leaves no prompt: the shortest has {min(lengths)} "
                         f"tokens. Set it to {max(lengths)} to keep all of them.")
    return kept


@contextmanager
def memory_explained(config: RunConfig, stage: str) -> Iterator[None]:
    """Raise ConfigError, with a setting that saves memory, where the GPU runs out of it inside the `with` block."""
    try:
        yield
    except (torch.OutOfMemoryError, ValueError) as error:
        if isinstance(error, ValueError) and "Free memory on device" not in str(error):  # vLLM's words
            raise
        raise ConfigError(f"{stage} ran out of the GPU's memory: {str(error).split('. ')[0]}. "
                          f"{estimate.first_saving(config, stage)} Go on with --resume.") from error


def run_trainer(trainer: Trainer, config: RunConfig, run: RunDirectory, resume: bool, description: str) -> RunDirectory:
    """Train with the workshop's progress bar and metrics file, then save model and tokenizer in RUN/model.

    With `resume`, the run goes on from its last complete checkpoint, or starts where there is none yet.

    Raises:
        TrainingStopped: SIGTERM came; the run has a checkpoint of its last step.
    """
    train_in_float32(trainer.model)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(TransformersProgressCallback)
    trainer.add_callback(MetricsCallback(run, tensorboard=config.tracking.tensorboard))
    if config.tracking.print_metrics:
        trainer.add_callback(PrintMetricsCallback(description.lower()))
    else:
        trainer.add_callback(ProgressCallback(description))
    rollout = steps_per_rollout(trainer.args) if isinstance(trainer.args, GRPOConfig) else 1
    stop = StopOnSIGTERM(every=math.lcm(rollout, int(trainer.args.logging_steps)))
    trainer.add_callback(stop)
    checkpoint = run.last_checkpoint() if resume else None
    with stop.listening():
        if checkpoint is not None and is_last(checkpoint, trainer.args):  # killed before the model was saved
            trainer._load_from_checkpoint(str(checkpoint))  # train() would take one more step
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    state = trainer.state
    if not stop.stopped or state.global_step == state.max_steps:
        if config.model.lora is None:  # float32 was for the optimizer's small updates
            for name, weight in trainer.model.named_parameters():
                if not name.startswith("critic."):
                    weight.data = weight.data.to(getattr(torch, config.model.dtype))
        trainer.save_model(str(run.model_dir))
        trainer.accelerator.wait_for_everyone()  # the first process writes; the others would read too early
    if stop.stopped:
        raise TrainingStopped(f"{description} was stopped by SIGTERM after step {state.global_step} of "
                              f"{state.max_steps}. That step is saved in {run.checkpoints_dir}: go on with --resume.")
    return run


def is_finished(run: RunDirectory, arguments: TrainingArguments) -> bool:
    """Say whether a run has its trained model, after as many steps as are asked for now."""
    checkpoint = run.last_checkpoint()
    return checkpoint is not None and run.has_model and is_last(checkpoint, arguments)


def is_last(checkpoint: Path, arguments: TrainingArguments) -> bool:
    """Say whether a checkpoint is that of the last step."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    if arguments.max_steps > 0:
        return state["global_step"] >= arguments.max_steps
    as_before = state["num_train_epochs"] == math.ceil(arguments.num_train_epochs)
    return as_before and state["global_step"] >= state["max_steps"]
