"""Supervised fine-tuning: imitate demonstrations, with the loss on completions only (TRL's SFTTrainer)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, disable_progress_bars
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from ..config import ConfigError, RunConfig
from ..models import END_OF_TURN, load_model, load_tokenizer
from ..runs import RunDirectory
from ..sampling.idle_cores import use_idle_cores
from ..tasks import Task, load_task
from .rl import is_finished, new_adapter, run_trainer, start_run, stops_explained, trainer_arguments

disable_progress_bars()  # TRL prepares the demonstrations in four quick steps, each with a bar


def sft_arguments(config: RunConfig, run: RunDirectory) -> SFTConfig:
    """Translate a run's `sft` settings to TRL's configuration."""
    return SFTConfig(**trainer_arguments(config, run), **config.sft.model_dump(exclude={"warmup_ratio"}),
                     warmup_steps=config.sft.warmup_ratio, completion_only_loss=True)


def demonstrations(task: Task, dataset: Dataset) -> Dataset:
    """Return the columns `prompt` and `completion`, both as messages: what SFTTrainer takes."""
    return Dataset.from_list([
        {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": task.demonstration(row)}]}
        for row in dataset])


class UseIdleCores(TrainerCallback):
    """Does for SFT what the sampler does for GRPO and PPO."""

    def on_step_begin(self, args, state, control, **kwargs):
        use_idle_cores()


class ContinueTokenCount(TrainerCallback):
    """Sets `num_tokens` of a resumed run to its last logged value; TRL would count from 0 again."""

    def __init__(self, trainer: SFTTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        counts = [log["num_tokens"] for log in state.log_history if "num_tokens" in log]
        self.trainer._total_train_tokens = int(counts[-1]) if counts else 0


def train(config: RunConfig, output_dir: str | Path, *, model: str | Path | None = None, resume: bool = False,
          callbacks: Sequence[TrainerCallback] = (), examples: Dataset | None = None) -> RunDirectory:
    """Fine-tune on the task's demonstrations, or on other examples.

    Args:
        config: the run's configuration; this stage reads `task`, `model` and `sft`.
        output_dir: the run directory to write.
        model: the start model, `config.model.name` when None.
        resume: continue from the run directory's last checkpoint.
        examples: imitate these instead, such as a model's own correct completions; columns as in `demonstrations`.

    Returns:
        The run directory; the trained model (an adapter with LoRA) is in its `model` folder.
    """
    start, run = start_run(config, output_dir, model, resume)
    arguments = sft_arguments(config, run)
    if resume and is_finished(run, arguments, config, "sft"):
        return run
    with stops_explained("sft"):
        if examples is None:
            task = load_task(config.task)
            examples = demonstrations(task, task.dataset("train", config.task.train_limit, config.task.source))
        tokenizer = load_tokenizer(start)
        if END_OF_TURN in tokenizer.get_vocab():  # otherwise a turn ends with the tokenizer's own end token
            arguments.eos_token = END_OF_TURN
        policy = load_model(start, config.model, train_adapter=True)
        trainer = SFTTrainer(
            model=policy,
            args=arguments,
            train_dataset=examples,
            processing_class=tokenizer,
            peft_config=new_adapter(policy, config),
            callbacks=list(callbacks),
        )
        if len(trainer.train_dataset) == 0:
            raise ConfigError(f"sft.max_length = {config.sft.max_length} leaves no demonstration, because every prompt "
                              "is longer: set it to 512 or more.")
        trainer.add_callback(ContinueTokenCount(trainer))
        trainer.add_callback(UseIdleCores())
        return run_trainer(trainer, config, run, resume, "SFT")
