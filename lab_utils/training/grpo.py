"""Group-relative policy optimisation (DeepSeekMath, arXiv 2402.03300) with TRL's GRPOTrainer."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn.functional import pad
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from ..config import RunConfig
from ..generation import rollout
from ..models import load_model, load_tokenizer
from ..tasks import Task, completion_text
from ..tracking import RunDirectory
from .common import (
    check_start,
    checkpoint_between_rollouts,
    filter_long_prompts,
    is_finished,
    memory_explained,
    new_adapter,
    rewards_of,
    run_trainer,
    steps_per_rollout,
    task_of,
    trainer_arguments,
)
from .vllm_rollouts import vllm_arguments

COPIED = ("learning_rate", "lr_scheduler_type", "adam_beta1", "adam_beta2", "weight_decay", "max_grad_norm",
          "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
          "steps_per_generation", "num_generations", "num_iterations", "max_completion_length", "temperature", "top_p",
          "beta", "epsilon", "epsilon_high", "loss_type", "scale_rewards", "mask_truncated_completions",
          "gradient_checkpointing", "logging_steps", "save_steps")
ROWS = 32  # completions in one forward pass on the CPU


def grpo_arguments(config: RunConfig, run: RunDirectory) -> GRPOConfig:
    """Translate a run's `grpo` settings and reward weights to TRL's configuration."""
    return checkpoint_between_rollouts(
        GRPOConfig(**trainer_arguments(config, run, config.grpo, COPIED), **vllm_arguments(config.grpo),
                   warmup_steps=config.grpo.warmup_ratio, reward_weights=list(config.rewards.values()),
                   disable_dropout=True))  # an adapter's dropout would make the policy differ from its own sampler


class RecordingGRPOTrainer(GRPOTrainer):
    """GRPOTrainer that also logs accuracy and attempts, keeps sample completions, and refuses rewards that are NaN."""

    def __init__(self, *args, task: Task, run: RunDirectory, log_completions_steps: int, **kwargs):
        super().__init__(*args, **kwargs)
        if self.use_vllm:  # it reads a checkpoint's own end token only, and a chat turn may end with another
            self.vllm_generation.generation_kwargs["stop_token_ids"] = self.eos_token_ids
        self.task, self.run, self.log_completions_steps = task, run, log_completions_steps

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards_per_function = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        broken = (~torch.isfinite(rewards_per_function)).any(dim=0).nonzero()
        if len(broken):
            name = self.reward_func_names[int(broken[0])]
            values = rewards_per_function[:, int(broken[0])]
            raise ValueError(
                f"The reward function {name!r} returned None, NaN or infinity for "
                f"{int((~torch.isfinite(values)).sum())} of {len(values)} completions. A reward must be a finite "
                "number for every completion: return 0.0 where there is nothing to reward.")
        scores = rewards_per_function @ self.reward_weights.to(rewards_per_function)  # of all processes
        first = self.accelerator.process_index * len(prompts)
        self.scores_B = scores[first:first + len(prompts)]
        self._record(inputs, completions, self.scores_B)
        return rewards_per_function

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save without the reference adapter: TRL makes it anew from the start model, and transformers would, when it
        resumes, load it in place of the adapter that was trained."""
        super()._save(output_dir, state_dict)
        shutil.rmtree(Path(output_dir or self.args.output_dir) / "ref", ignore_errors=True)

    def _record(self, rows: list[dict], completions: list, rewards: torch.Tensor) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        correct = [self.task.is_correct(completion, row) for completion, row in zip(completions, rows, strict=True)]
        attempts = [self.task.attempts(completion) for completion in completions]
        for name, values in (("accuracy", correct), ("attempts", attempts)):
            gathered = self.accelerator.gather(torch.tensor(values, dtype=torch.float, device=self.accelerator.device))
            metrics[name].append(gathered.mean().item())
        step = self.state.global_step + 1
        if self.accelerator.is_main_process and (step - 1) % self.log_completions_steps < steps_per_rollout(self.args):
            self.run.append_completions([
                {"step": step, "question": row["prompt"][-1]["content"], "gold": self.task.gold(row),
                 "completion": completion_text(completion), "extracted": self.task.extract(completion),
                 "correct": right, "reward": reward}
                for row, completion, right, reward in zip(rows, completions, correct, rewards.tolist(), strict=True)
            ][:64])

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, batch_size=None,
                                           **kwargs):
        """TRL's forward pass. On the CPU, completions of similar length go together, cut to the longest of them.

        TRL pads every completion to the longest of the rollout, which is most of the work while lengths vary. A GPU
        does not mind, and data parallelism wants one forward pass a step.
        """
        if input_ids.device.type != "cpu" or self.accelerator.num_processes > 1:
            return self._forward(model, input_ids, attention_mask, logits_to_keep, batch_size, **kwargs)
        lengths = attention_mask[:, -logits_to_keep:].sum(1)
        order = lengths.argsort(stable=True)
        chunks = []
        for rows in order.split(ROWS):
            start = int(attention_mask[rows].argmax(1).min())  # where the longest prompt begins
            cut = logits_to_keep - max(1, int(lengths[rows].max()))
            used = slice(start, input_ids.shape[1] - cut)
            outputs = self._forward(model, input_ids[rows, used], attention_mask[rows, used], logits_to_keep - cut,
                                    **kwargs)
            chunks.append([output if output is None else pad(output, (0, cut)) for output in outputs])
        restore = order.argsort()
        return tuple(None if outputs[0] is None else torch.cat(outputs)[restore]
                     for outputs in zip(*chunks, strict=True))

    def _forward(self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **kwargs) -> tuple:
        return super()._get_per_token_logps_and_entropies(model, input_ids, attention_mask, logits_to_keep, batch_size,
                                                          **kwargs)


def train(config: RunConfig, output_dir: str | Path, *, model: str | Path | None = None, resume: bool = False,
          reward_funcs: Sequence[Callable] | None = None, callbacks: Sequence[TrainerCallback] = ()) -> RunDirectory:
    """Train with GRPO on the task's prompts.

    Args:
        config: the run's configuration; this stage reads `task`, `model`, `rewards` and `grpo`.
        output_dir: the run directory to write.
        model: the start model, for example an SFT run's `model` folder; `config.model.name` when None.
        resume: go on from the run directory's last checkpoint.
        reward_funcs: your own reward functions, weighted by `config.rewards` in this order, in place of the named ones.

    Returns:
        The run directory; the trained model (an adapter with LoRA) is in its `model` folder.
    """
    task = task_of(config)
    start = model or config.model.name
    check_start(start, config)
    tokenizer = load_tokenizer(start)
    run = RunDirectory.create(config, output_dir, resume)
    arguments = grpo_arguments(config, run)
    if resume and is_finished(run, arguments):
        return run
    dataset = task.dataset("train", config.task.train_limit, config.task.source)
    with memory_explained(config, "grpo"):
        policy = load_model(start, config.model, train_adapter=True)
        trainer = RecordingGRPOTrainer(
            model=policy,
            reward_funcs=rewards_of(config, reward_funcs, config.grpo.max_completion_length),
            args=arguments,
            train_dataset=filter_long_prompts(dataset, tokenizer, config.grpo.max_prompt_length),
            processing_class=tokenizer,
            peft_config=new_adapter(policy, config),
            rollout_func=None if config.grpo.use_vllm else rollout,
            callbacks=list(callbacks),
            task=task,
            run=run,
            log_completions_steps=config.grpo.log_completions_steps,
        )
        return run_trainer(trainer, config, run, resume, "GRPO")
