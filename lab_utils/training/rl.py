"""What training shares: the start model, TRL's arguments, the trainer that GRPO and PPO build on, and a run.

A run is read in three files: config/ says what to do, sft.py, grpo.py or ppo.py what is special about the method, and
this one does the rest.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch.nn.functional import pad
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import ProgressCallback as TransformersProgressCallback
from trl import GRPOConfig, GRPOTrainer

from .. import TrainingStopped, WorkshopError
from ..config import ConfigError, PPOSettings, RLSettings, RunConfig
from ..models import adapter_base, load_model, load_tokenizer, lora_config, on_gpu
from ..rewards.own import rewards_of
from ..runs import (
    MetricsCallback,
    PrintMetricsCallback,
    ProgressCallback,
    RunDirectory,
    RunDirectoryError,
    report_to,
    send_completions,
    wandb_run,
    written_whole,
)
from ..sampling.local import encode_prompts, rollout, sample
from ..sampling.vllm import launcher_variables_restored, policy_weights, stop_engine
from ..tasks import Task, completion_text, load_task
from .shared_prompt import completion_states, token_logps
from .stopping import StopOnSIGTERM, TrainingInterrupted

# Settings of ours that TRL's GRPOConfig does not have; all others carry TRL's names and are passed on.
OURS = {"warmup_ratio", "max_prompt_length", "log_completions_steps", "probe_rollouts",
        *PPOSettings.model_fields.keys() - RLSettings.model_fields.keys()}
PROBE_PROBLEMS, PROBE_SAMPLES = 100, 2
RECORDED, TOKENS_RECORDED = 64, 16  # completions of a rollout: how many are recorded, and how many token by token
# lm_head shares the embeddings' weights, and a checkpoint holds them once: nothing to warn of.
logging.getLogger("transformers.trainer").addFilter(lambda record: "['lm_head.weight']" not in record.getMessage())

# --- Arguments -------------------------------------------------------------------------------------------------------


def trainer_arguments(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Return the arguments that do not depend on the method."""
    gpu = on_gpu(config.model)
    if not gpu and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # its own choice, cpu:0, is one to which torch.load loads nothing
    return {
        "output_dir": str(run.checkpoints_dir),
        "seed": config.seed,
        "use_cpu": not gpu,
        "bf16": config.model.dtype == "bfloat16" and gpu,
        "fp16": config.model.dtype == "float16" and gpu,
        "logging_first_step": True,
        "report_to": report_to(config, run),
        "disable_tqdm": True,
        "dataloader_pin_memory": gpu,
    }


def rl_arguments(config: RunConfig, run: RunDirectory, settings: RLSettings, **method: Any) -> GRPOConfig:
    """Translate the settings of GRPO or PPO, and the reward weights, to TRL's configuration.

    `save_steps` is rounded up to whole rollouts, because a resumed run begins with a new one.
    """
    arguments = GRPOConfig(
        **trainer_arguments(config, run),
        **settings.model_dump(exclude=OURS),
        warmup_steps=settings.warmup_ratio,
        vllm_max_model_length=settings.max_prompt_length + settings.max_completion_length,
        reward_weights=list(config.rewards.values()),
        disable_dropout=True,  # an adapter's dropout would make the policy differ from its own sampler
        **method,
    )
    steps = steps_per_rollout(arguments)
    arguments.save_steps = math.ceil(arguments.save_steps / steps) * steps
    return arguments


def steps_per_rollout(arguments: GRPOConfig) -> int:
    """Return the optimizer steps between rollout boundaries, where a new rollout begins together with a new step."""
    micro_batches = arguments.steps_per_generation * arguments.num_iterations
    return math.lcm(micro_batches, arguments.gradient_accumulation_steps) // arguments.gradient_accumulation_steps


# --- Start model, dataset --------------------------------------------------------------------------------------------


def check_start(start: str | Path, config: RunConfig) -> None:
    """Raise ConfigError, before anything is written, if a stage cannot be trained from a start model.

    A LoRA start adapter is trained further, so it must have the rank and alpha of `model.lora`. It stays on the layers
    that it is on.
    """
    if adapter_base(str(start)) is None:
        return
    if config.model.lora is None:
        raise ConfigError(f"model.lora = None trains all weights, but the start model {start} is a LoRA adapter: merge "
                          "it first (python scripts/export.py RUN --output-dir FOLDER, then --model FOLDER), or set "
                          "model.lora.")
    found = json.loads((Path(start) / "adapter_config.json").read_text(encoding="utf-8"))
    for key, there in (("r", found["r"]), ("alpha", found["lora_alpha"])):
        here = getattr(config.model.lora, key)
        if here != there:
            raise ConfigError(f"model.lora.{key} = {here}, but the start adapter {start} has {there}: add "
                              f"--set model.lora.{key}={there}.")


def new_adapter(model: PreTrainedModel | PeftModel, config: RunConfig) -> LoraConfig | None:
    """Return the adapter to add to a start model: none if all weights are trained or the model has its own."""
    return None if isinstance(model, PeftModel) else lora_config(config.model)


def train_in_float32(model: PreTrainedModel | PeftModel) -> None:
    """Keep the weights that are trained in float32, whatever the model's dtype: 16 bits round small updates away.

    Forward passes stay in the model's dtype (autocast). TRL puts adapters on a 4-bit base in bfloat16, which float16's
    gradient scaler cannot unscale. On the CPU tiers everything is float32 already.
    """
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def filter_long_prompts(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_prompt_length: int) -> Dataset:
    """Keep the rows whose chat prompt has at most `max_prompt_length` tokens (TRL no longer does it)."""
    lengths = [len(ids) for ids in encode_prompts(tokenizer, dataset["prompt"])]
    kept = dataset.select([i for i, length in enumerate(lengths) if length <= max_prompt_length])
    if len(kept) == 0:
        raise ConfigError(f"max_prompt_length = {max_prompt_length} leaves no prompt (the shortest has {min(lengths)} "
                          f"tokens): set it to {max(lengths)} to keep all.")
    return kept


# --- The trainer that GRPO and PPO build on --------------------------------------------------------------------------


class RLTrainer(GRPOTrainer):
    """GRPOTrainer that also logs accuracy and attempts, keeps sample completions, and refuses rewards that are NaN.

    A step's accuracy is that of a few training problems, which change from step to step. The *probe* asks the same
    held-out problems every time.
    """

    def __init__(self, *args, task: Task, run: RunDirectory, settings: RLSettings, probe: Sequence[dict] = (),
                 **kwargs):
        super().__init__(*args, **kwargs)
        if self.use_vllm:  # it reads only a checkpoint's own end token, and a chat turn may end with another
            self.vllm_generation.generation_kwargs["stop_token_ids"] = self.eos_token_ids
            if isinstance(self.model, PeftModel):
                self.vllm_generation._iter_named_params = functools.partial(policy_weights, self.model)
        self.task, self.run, self.settings, self.probe = task, run, settings, probe
        self.recording: list[dict] = []  # the rows of the rollout that is being scored
        self.unwritten: list[tuple[list[dict], dict]] = []  # rows whose updates are not done, and tensors of the first
        self.add_callback(WriteCompletions(self))

    def _generate_and_score_completions(self, inputs):
        if self.probe and self.model.training:
            rollouts = self.state.global_step // steps_per_rollout(self.args)
            if rollouts % self.settings.probe_rollouts == 0:
                shares = self._probe_problems()
                self._metrics["train"]["probe/accuracy"].append(statistics.fmean(shares))
                self._metrics["train"]["probe/stderr"].append(statistics.pstdev(shares) / math.sqrt(len(shares)))
                self._metrics["train"]["probe/problems"].append(len(shares))
        rollout = self._with_advantages(super()._generate_and_score_completions(inputs))
        if self.recording:
            self._keep_until_updated(rollout)
        return rollout

    def _with_advantages(self, rollout: dict) -> dict:
        """Return the rollout with the method's advantages; TRL's are those of GRPO."""
        return rollout

    def _probe_problems(self) -> list[float]:
        """Return for each held-out problem the share of correct answers, before this step's update."""
        found = sample(self.accelerator.unwrap_model(self.model), self.processing_class,
                       [row["prompt"] for row in self.probe], num_samples=PROBE_SAMPLES, seed=self.args.seed,
                       max_new_tokens=self.settings.max_completion_length, temperature=self.settings.temperature)
        return [statistics.fmean(self.task.is_correct(one.text, row) for one in completions)
                for row, completions in zip(self.probe, found, strict=True)]

    def close(self) -> None:
        """Stop vLLM if it samples. Training's own memory goes first, because a sleeping vLLM must wake to stop."""
        if self.use_vllm:
            self.optimizer = self.lr_scheduler = None
            self.model.zero_grad()
            self.accelerator.free_memory()
            stop_engine(self.vllm_generation)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards_per_function = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        broken = (~torch.isfinite(rewards_per_function)).any(dim=0).nonzero()
        if len(broken):
            name = self.reward_func_names[int(broken[0])]
            values = rewards_per_function[:, int(broken[0])]
            raise WorkshopError(
                f"The reward function {name!r} returned None, NaN or infinity for "
                f"{int((~torch.isfinite(values)).sum())} of {len(values)} completions: return a finite number for "
                "every completion, 0.0 if there is nothing to reward.")
        scores = rewards_per_function @ self.reward_weights.to(rewards_per_function)  # of all processes
        first = self.accelerator.process_index * len(prompts)
        self.scores_B = scores[first:first + len(prompts)]
        self._record(inputs, completions, self.scores_B, rewards_per_function[first:first + len(prompts)])
        return rewards_per_function

    def _record(self, rows: list[dict], completions: list, rewards: torch.Tensor, each: torch.Tensor) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        correct = [self.task.is_correct(completion, row) for completion, row in zip(completions, rows, strict=True)]
        attempts = [self.task.attempts(completion) for completion in completions]
        for name, values in (("accuracy", correct), ("attempts", attempts)):
            gathered = self.accelerator.gather(torch.tensor(values, dtype=torch.float, device=self.accelerator.device))
            metrics[name].append(gathered.mean().item())
        step, every = self.state.global_step + 1, self.settings.log_completions_steps
        if self.accelerator.is_main_process and (step - 1) % every < steps_per_rollout(self.args):
            self.recording = [
                {"step": step, "question": self.task.question(row), "gold": self.task.gold(row),
                 "completion": completion_text(completion), "extracted": self.task.extract(completion),
                 "correct": right, "reward": reward, "rewards": dict(zip(self.reward_func_names, values, strict=True))}
                for row, completion, right, reward, values in zip(
                    rows, completions, correct, rewards.tolist(), each.tolist(), strict=True)
            ][:RECORDED]

    def _keep_until_updated(self, rollout: dict) -> None:
        """Complete the recorded rows but for what the updates will change: keep the tensors of the first until then."""
        mask_BT = rollout["completion_mask"]
        advantages_B = rollout["advantages"]
        if advantages_B.dim() == 2:  # one per token
            advantages_B = (advantages_B * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)
        for row, advantage in zip(self.recording, advantages_B.tolist(), strict=False):
            row["advantage"] = _three_digits(advantage)
        first = {name: tensor[:TOKENS_RECORDED] for name, tensor in rollout.items()
                 if isinstance(tensor, torch.Tensor) and tensor.dim()}
        if "old_per_token_logps" not in first:  # TRL omits them if the update learns from its own samples
            first["old_per_token_logps"] = self._first_logps(first)
        self.unwritten.append((self.recording, first))
        self.recording = []

    def write_completions(self) -> None:
        """Write the recorded completions; for the first of them, also what was learned about each token."""
        for rows, first in self.unwritten:
            by_token = {"logp_change": self._first_logps(first) - first["old_per_token_logps"]}
            if "old_values" in first:  # PPO
                by_token |= {"value": first["old_values"], "advantage": first["advantages"]}
            for i, (row, mask) in enumerate(zip(rows[:TOKENS_RECORDED], first["completion_mask"].bool(), strict=False)):
                text = [self.processing_class.decode(token) for token in first["completion_ids"][i][mask].tolist()]
                numbers = {name: list(map(_three_digits, x[i][mask].tolist())) for name, x in by_token.items()}
                row["tokens"] = {"text": text, **numbers}
            self.run.append_completions(rows)
            if "wandb" in self.args.report_to:
                send_completions(rows)
        self.unwritten.clear()

    @torch.no_grad()
    def _first_logps(self, first: dict) -> torch.Tensor:
        """Return the log-probabilities of some tokens, without the other processes, which do not record."""
        return self._logps(self.accelerator.unwrap_model(self.model), first)

    def _logps(self, model: torch.nn.Module, rollout: dict) -> torch.Tensor:
        return self._get_per_token_logps_and_entropies(
            model, torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1),
            torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1), rollout["completion_ids"].shape[1],
            batch_size=self.args.per_device_train_batch_size)[0]

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, batch_size=None,
                                           **kwargs):
        """Return what TRL's pass returns, without its work on padding and, on the CPU, on prompts that rows share.

        Sharing prompts needs a cache, which gradient checkpointing does not allow, and it bypasses the model's own
        forward method, in which data parallelism averages gradients.
        """
        shared = (input_ids.device.type == "cpu" and self.accelerator.num_processes == 1
                  and not self.args.gradient_checkpointing)
        forward = self._shared_prompt_chunks if shared else self._micro_batches
        rows, outputs = zip(*forward(model, input_ids, attention_mask, logits_to_keep, batch_size, **kwargs),
                            strict=True)
        restore, mask = torch.cat(rows).argsort(), attention_mask[:, -logits_to_keep:] == 1
        return tuple(_joined(chunks, restore, mask) for chunks in zip(*outputs, strict=True))

    def _shared_prompt_chunks(self, model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy=False,
                              **kwargs) -> Iterator[tuple[torch.Tensor, tuple]]:
        model = self.accelerator.unwrap_model(model)
        for rows, states in completion_states(model, input_ids, attention_mask, logits_to_keep):
            ids = input_ids[rows, -logits_to_keep:][:, :states.shape[1]]
            yield rows, self._score(model, states, ids, compute_entropy)

    def _micro_batches(self, model, input_ids, attention_mask, logits_to_keep, batch_size,
                       **kwargs) -> Iterator[tuple[torch.Tensor, tuple]]:
        """TRL's pass in micro-batches, each cut to its own longest prompt and completion."""
        for rows in torch.arange(len(input_ids), device=input_ids.device).split(batch_size or len(input_ids)):
            mask = attention_mask[rows]
            cut = logits_to_keep - max(1, int(mask[:, -logits_to_keep:].sum(1).max()))
            used = slice(int(mask.argmax(1).min()), input_ids.shape[1] - cut)
            yield rows, self._forward(model, input_ids[rows, used], mask[:, used], logits_to_keep - cut, **kwargs)

    def _score(self, model, states, completion_ids, compute_entropy) -> tuple:
        """Return what `_forward` does, from the hidden states before each token of the completions."""
        return *token_logps(model, states, completion_ids, self.temperature, compute_entropy), None

    def _forward(self, model, input_ids, attention_mask, logits_to_keep, **kwargs) -> tuple:
        return super()._get_per_token_logps_and_entropies(model, input_ids, attention_mask, logits_to_keep, **kwargs)

    def _save_checkpoint(self, model, trial) -> None:
        """Save, and keep the checkpoint with the best reward since the one before: a way back if the run collapses."""
        rewards = [log["reward"] for log in self.state.log_history
                   if "reward" in log and log["step"] > self.state.global_step - self.args.save_steps]
        if rewards and (self.state.best_metric is None or statistics.fmean(rewards) > self.state.best_metric):
            self.state.best_metric = statistics.fmean(rewards)
            self.state.best_model_checkpoint = str(self.run.checkpoints_dir / f"checkpoint-{self.state.global_step}")
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save without the reference adapter: TRL makes it anew from the start model, and transformers would load it on
        resume instead of the adapter that was trained."""
        super()._save(output_dir, state_dict)
        shutil.rmtree(Path(output_dir or self.args.output_dir) / "ref", ignore_errors=True)


class WriteCompletions(TrainerCallback):
    """Writes the recorded completions when the last update on their rollout is done, and before a checkpoint."""

    def __init__(self, trainer: RLTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        # the last step of a run may lie within a rollout; a run killed after its checkpoint does not take it again
        if state.global_step % steps_per_rollout(args) == 0 or control.should_save:
            self.trainer.write_completions()

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.write_completions()


def _three_digits(number: float) -> float:
    return float(f"{number:.3g}")


def _joined(chunks: Sequence[torch.Tensor | None], restore: torch.Tensor, mask: torch.Tensor) -> torch.Tensor | None:
    """Join the outputs of several forward passes in the order `restore` of their rows, with 0 at padding."""
    if chunks[0] is None:
        return None
    if chunks[0].dim() == 0:  # the auxiliary loss of mixture-of-experts models
        return torch.stack(chunks).mean()
    return torch.cat([pad(chunk, (0, mask.shape[1] - chunk.shape[1])) for chunk in chunks])[restore].where(mask, 0)


# --- A run -----------------------------------------------------------------------------------------------------------


def train_rl(stage: str, trainer_class: type[RLTrainer], arguments_of: Callable[[RunConfig, RunDirectory], GRPOConfig],
             config: RunConfig, output_dir: str | Path, *, model: str | Path | None, resume: bool,
             reward_funcs: Sequence[Callable] | None, callbacks: Sequence[TrainerCallback]) -> RunDirectory:
    """Train with GRPO or PPO on the task's prompts; `grpo.train` and `ppo.train` explain the arguments."""
    start, run = start_run(config, output_dir, model, resume)
    arguments = arguments_of(config, run)
    if resume and is_finished(run, arguments, config, stage):
        return run
    with stops_explained(stage), launcher_variables_restored():
        trainer = make_trainer(stage, trainer_class, config, arguments, run, start, reward_funcs, callbacks)
        with closing(trainer):
            return run_trainer(trainer, config, run, resume, stage.upper())


def make_trainer(stage: str, trainer_class: type[RLTrainer], config: RunConfig, arguments: GRPOConfig,
                 run: RunDirectory, start: str | Path, reward_funcs: Sequence[Callable] | None = None,
                 callbacks: Sequence[TrainerCallback] = ()) -> RLTrainer:
    """Return the trainer of a run from the model `start`, ready to train."""
    settings: RLSettings = getattr(config, stage)
    task = load_task(config.task)
    tokenizer = load_tokenizer(start)
    dataset = task.dataset("train", config.task.train_limit, config.task.source)
    probe = []
    if settings.probe_rollouts:
        number = min(PROBE_PROBLEMS, config.task.test_limit or PROBE_PROBLEMS)
        probe = list(task.dataset("test", number, config.task.source))
    policy = load_model(start, config.model, train_adapter=True)
    return trainer_class(
        model=policy,
        reward_funcs=rewards_of(config, reward_funcs, settings.max_completion_length, task),
        args=arguments,
        train_dataset=filter_long_prompts(dataset, tokenizer, settings.max_prompt_length),
        processing_class=tokenizer,
        peft_config=new_adapter(policy, config),
        rollout_func=None if settings.use_vllm else rollout,
        callbacks=list(callbacks),
        task=task,
        run=run,
        settings=settings,
        probe=probe,
    )


def start_run(config: RunConfig, output_dir: str | Path, model: str | Path | None,
              resume: bool) -> tuple[str, RunDirectory]:
    """Check the start model (`model`, or the recipe's own) and the run directory; return both. Nothing is written yet.

    A start that fails, because of the model, the data or the GPU, then leaves nothing that blocks the next one.
    """
    start, run = str(model or config.model.name), RunDirectory(output_dir)
    if Path(start).exists() and run.path.resolve() in Path(start).resolve().parents:
        raise RunDirectoryError(f"The start model {start} is in {run.path}, where the trained model replaces it: "
                                "choose another output directory.")
    check_start(start, config)
    load_tokenizer(start)
    run.check_free(resume)
    return start, run


def run_trainer(trainer: Trainer, config: RunConfig, run: RunDirectory, resume: bool, description: str) -> RunDirectory:
    """Train with the workshop's progress bar and metrics file, then save model and tokenizer in RUN/model.

    With `resume`, the run continues from its last complete checkpoint, or starts if there is none yet.

    Raises:
        TrainingStopped: SIGTERM came; the run has a checkpoint of its last step.
    """
    train_in_float32(trainer.model)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(TransformersProgressCallback)
    trainer.add_callback(MetricsCallback(run))
    progress = ProgressCallback(description, run)
    trainer.add_callback(PrintMetricsCallback(description.lower()) if config.tracking.print_metrics else progress)
    rollout_steps = steps_per_rollout(trainer.args) if isinstance(trainer.args, GRPOConfig) else 1
    stop = StopOnSIGTERM(every=math.lcm(rollout_steps, int(trainer.args.logging_steps)))
    trainer.add_callback(stop)
    with run.locked(), closing(progress):
        RunDirectory.create(config, run.path, resume)
        checkpoint = run.last_checkpoint() if resume else None
        with stop.listening():
            if checkpoint is not None and is_last(checkpoint, trainer.args):  # killed before the model was saved
                if trainer.args.should_save:
                    run.finish_checkpoint(checkpoint)
                trainer._load_from_checkpoint(str(checkpoint))  # train() would take one more step
            else:
                trackers = trainer.args.report_to if trainer.args.process_index == 0 else []
                try:
                    with wandb_run(trackers, run):
                        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
                except KeyboardInterrupt:
                    raise TrainingInterrupted.at_step(description, trainer.state, run.last_checkpoint()) from None
        state = trainer.state
        if not stop.stopped or state.global_step == state.max_steps:
            check_weights(trainer.model)
            if config.model.lora is None:  # float32 was for the optimizer's small updates
                for name, weight in trainer.model.named_parameters():
                    if not name.startswith("critic."):
                        weight.data = weight.data.to(getattr(torch, config.model.dtype))
            save_model(trainer, run)
            send_model(trainer, run)
            trainer.accelerator.wait_for_everyone()  # the first process writes; the others would read too early
    if stop.stopped:
        raise TrainingStopped(f"{description} was stopped by SIGTERM after step {state.global_step} of "
                              f"{state.max_steps}. Its checkpoint is in {run.checkpoints_dir}: resume with --resume.")
    return run


class TrainingDiverged(WorkshopError):
    """Training has led to weights that are not finite."""


def check_weights(model: torch.nn.Module) -> None:
    """Raise TrainingDiverged if trained weights have values that are not finite: no model is saved then."""
    for name, weight in model.named_parameters():
        if weight.requires_grad and not weight.isfinite().all():
            raise TrainingDiverged(f"Training diverged: {name} has values that are NaN or infinite, so no model is "
                                   "saved. Train again in another directory with a lower learning rate.")


def save_model(trainer: Trainer, run: RunDirectory) -> None:
    """Write RUN/model with all of its files, or leave it as it was; of several processes, the first writes."""
    if trainer.args.should_save:
        with written_whole(run.model_dir) as folder:
            trainer.save_model(str(folder))


def send_model(trainer: Trainer, run: RunDirectory) -> None:
    """Copy RUN/model to the other machines of the training, which start the next stage from it and share no disk."""
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) == 1:  # torchrun's number of machines
        return
    sends = trainer.args.process_index == 0
    receives = not sends and trainer.args.local_process_index == 0
    group = torch.distributed.new_group(backend="gloo")  # in the machine's memory, not the GPU's
    names = [sorted(path.name for path in run.model_dir.iterdir()) if sends else None]
    torch.distributed.broadcast_object_list(names, group=group)
    with written_whole(run.model_dir) if receives else nullcontext() as folder:
        if receives:
            folder.mkdir()
        for name in names[0]:
            content = [(run.model_dir / name).read_bytes() if sends else None]
            torch.distributed.broadcast_object_list(content, group=group)
            if receives:
                (folder / name).write_bytes(content[0])
    torch.distributed.destroy_process_group(group)


def is_finished(run: RunDirectory, arguments: TrainingArguments, config: RunConfig, stage: str) -> bool:
    """Say whether a run has its trained model, after as many steps as are requested now.

    Raises:
        RunDirectoryError: it has, but was trained with other settings. Its config.yaml says with which, and stays.
    """
    checkpoint = run.last_checkpoint() if run.has_model else None
    if not run.has_model or checkpoint is not None and not is_last(checkpoint, arguments):
        return False
    if changed := run.changed_settings(config, stage):
        later = ",".join(config.stages[config.stages.index(stage) + 1:]) if stage in config.stages else ""
        keep = f" To continue from its model: --stages {later} --model {run.model_dir} --resume" if later else ""
        raise RunDirectoryError(
            f"The run in {run.path} is finished, and was trained with other settings ({', '.join(changed)}). Nothing "
            "was trained: choose another directory for these settings, or delete that run to train it again." + keep)
    print(f"The run in {run.path} is finished already; nothing was trained. Delete it to train it again.")
    return True


def is_last(checkpoint: Path, arguments: TrainingArguments) -> bool:
    """Say whether a checkpoint is that of the last step."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    if arguments.max_steps > 0:
        return state["global_step"] >= arguments.max_steps
    as_before = state["num_train_epochs"] == math.ceil(arguments.num_train_epochs)
    return as_before and state["global_step"] >= state["max_steps"]


@contextmanager
def stops_explained(stage: str) -> Iterator[None]:
    """Say what to do if memory runs out inside the `with` block, or if the user interrupts it."""
    try:
        yield
    except TrainingInterrupted:  # during the steps
        raise
    except KeyboardInterrupt:
        raise TrainingInterrupted(
            f"{stage.upper()} stopped while it prepared or saved something: run it again.") from None
    except (RuntimeError, ValueError) as error:
        words = ("Free memory on device", "can't allocate memory")  # vLLM's words, and torch's for a CPU
        if not isinstance(error, torch.OutOfMemoryError) and not any(text in str(error) for text in words):
            raise
        batch = f"{stage}.per_device_train_batch_size"
        raise WorkshopError(
            f"{stage} ran out of memory: {str(error).split('. ')[0]}. Halve {batch} and double "
            f"{stage}.gradient_accumulation_steps, set {stage}.gradient_checkpointing=true, or shorten completions; "
            "python scripts/estimate.py shows what uses the memory. Then resume with --resume.") from error
