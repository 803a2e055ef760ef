"""Supervised fine-tuning: imitate demonstrations, with the loss on completions only (TRL's SFTTrainer)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from ..config import RunConfig
from ..models import END_OF_TURN, load_model, load_tokenizer
from ..tasks import Task
from ..tracking import RunDirectory
from .common import (
    check_start,
    is_finished,
    memory_explained,
    new_adapter,
    run_trainer,
    task_of,
    trainer_arguments,
)

COPIED = ("learning_rate", "lr_scheduler_type", "num_train_epochs", "max_steps", "per_device_train_batch_size",
          "gradient_accumulation_steps", "max_length", "weight_decay", "max_grad_norm", "gradient_checkpointing",
          "logging_steps", "save_steps")


def sft_arguments(config: RunConfig, run: RunDirectory) -> SFTConfig:
    """Translate a run's `sft` settings to TRL's configuration."""
    return SFTConfig(**trainer_arguments(config, run, config.sft, COPIED), warmup_steps=config.sft.warmup_ratio,
                     completion_only_loss=True, eos_token=END_OF_TURN)


def demonstrations(task: Task, dataset: Dataset) -> Dataset:
    """Return the columns `prompt` and `completion`, both as messages: what SFTTrainer takes."""
    return Dataset.from_list([
        {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": task.demonstration(row)}]}
        for row in dataset])


class GoOnCounting(TrainerCallback):
    """TRL counts the tokens of a resumed run from 0 again; this lets `num_tokens` go on from its last logged value."""

    def __init__(self, trainer: SFTTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        counts = [log["num_tokens"] for log in state.log_history if "num_tokens" in log]
        self.trainer._total_train_tokens = int(counts[-1]) if counts else 0


def train(config: RunConfig, output_dir: str | Path, *, model: str | Path | None = None, resume: bool = False,
          callbacks: Sequence[TrainerCallback] = ()) -> RunDirectory:
    """Fine-tune on the task's demonstrations.

    Args:
        config: the run's configuration; this stage reads `task`, `model` and `sft`.
        output_dir: the run directory to write.
        model: the start model, `config.model.name` when None.
        resume: go on from the run directory's last checkpoint.

    Returns:
        The run directory; the trained model (an adapter with LoRA) is in its `model` folder.
    """
    task = task_of(config)
    start = model or config.model.name
    check_start(start, config)
    tokenizer = load_tokenizer(start)
    run = RunDirectory.create(config, output_dir, resume)
    arguments = sft_arguments(config, run)
    if resume and is_finished(run, arguments):
        return run
    limits = [limit for limit in (config.sft.train_limit, config.task.train_limit) if limit is not None]
    dataset = task.dataset("train", min(limits, default=None), config.task.source)
    with memory_explained(config, "sft"):
        policy = load_model(start, config.model, train_adapter=True)
        trainer = SFTTrainer(
            model=policy,
            args=arguments,
            train_dataset=demonstrations(task, dataset),
            processing_class=tokenizer,
            peft_config=new_adapter(policy, config),
            callbacks=list(callbacks),
        )
        trainer.add_callback(GoOnCounting(trainer))
        return run_trainer(trainer, config, run, resume, "SFT")
