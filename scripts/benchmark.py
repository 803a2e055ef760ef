"""Paired timings: A and B in turn on the same inputs, the ratio pair by pair: a drifting machine does not decide.

    python scripts/benchmark.py generation --model runs/measured/countdown/seed-0/grpo/model
    python scripts/benchmark.py ppo --model runs/measured/countdown/seed-0/grpo/model
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from unittest import mock

import torch
from transformers import TrainerCallback

from lab_utils import config as configuration
from lab_utils.generation import end_token_ids, rollout, sample_token_ids
from lab_utils.models import load_model, load_tokenizer
from lab_utils.tasks import load_task
from lab_utils.training import grpo, ppo


def timed(function: Callable) -> tuple[float, object]:
    """Return the seconds that a call took, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def spread(values: list[float]) -> str:
    """Return the median with minimum and maximum."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def generation(options: argparse.Namespace) -> None:
    """Useful tokens per second of the project's sampler against transformers.generate, on one rollout's prompts."""
    model, tokenizer = load_model(options.model).eval(), load_tokenizer(options.model)
    prompts = load_task(options.task).dataset("test", options.prompts)["prompt"]
    ids = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
           for prompt in prompts]
    ends = end_token_ids(model, tokenizer)
    copies = [prompt for prompt in ids for _ in range(options.group)]
    width = max(map(len, ids))
    batch = {"input_ids": torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in copies]),
             "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in copies])}

    def ours() -> list[int]:
        return [len(tokens) for tokens, _ in sample_token_ids(
            model, ids, [options.group] * len(ids), end_ids=ends, max_new_tokens=options.max_new_tokens)]

    def theirs() -> list[int]:
        rows = model.generate(**batch, max_new_tokens=options.max_new_tokens, do_sample=True, temperature=1.0, top_k=0)
        is_end = torch.isin(rows[:, width:], torch.tensor(ends))
        return [int(row.nonzero()[0]) + 1 if row.any() else len(row) for row in is_end]

    rates: dict[str, list[float]] = {"sampler": [], "generate": []}
    lengths: list[int] = []
    for pair in range(options.pairs + 1):  # the first pair warms up
        torch.manual_seed(pair)
        for name, function in (("sampler", ours), ("generate", theirs)):
            seconds, found = timed(function)
            if pair:
                rates[name].append(sum(found) / seconds)
                lengths += found
    ratios = [a / b for a, b in zip(rates["sampler"], rates["generate"], strict=True)]
    print(f"{len(copies)} completions a rollout, {options.pairs} pairs; completion length: mean "
          f"{statistics.mean(lengths):.0f}, longest {max(lengths)} tokens")
    for name, values in rates.items():
        print(f"{name:9} useful tokens per second: {spread(values)}")
    print(f"ratio sampler / generate: {spread(ratios)}")


class RolloutClock(TrainerCallback):
    """Seconds from the start of a rollout to the end of its last update, rollout by rollout."""

    def __init__(self, steps: int):
        self.steps, self.seconds = steps, []

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0:
            self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0:
            self.seconds.append(time.perf_counter() - self.start)


def ppo_step(options: argparse.Namespace) -> None:
    """What a critic costs: a PPO step against a GRPO step with the same completions, mini-batches and epochs."""
    config = configuration.load("countdown-ppo", options.hardware, options.settings)
    settings = config.ppo
    micro_batches = settings.ppo_epochs * settings.batch_size // settings.mini_batch_size
    steps = micro_batches // settings.gradient_accumulation_steps
    shared = {"max_steps": steps * (options.rollouts + 1), "save_steps": 10**6}
    same = ("learning_rate", "gradient_accumulation_steps", "num_generations", "max_completion_length", "beta",
            "epsilon")
    config = dataclasses.replace(
        config,
        tracking=dataclasses.replace(config.tracking, tensorboard=False),
        ppo=dataclasses.replace(settings, **shared),
        grpo=dataclasses.replace(
            config.grpo, **shared, **{name: getattr(settings, name) for name in same},
            per_device_train_batch_size=settings.mini_batch_size, num_iterations=settings.ppo_epochs,
            steps_per_generation=settings.batch_size // settings.mini_batch_size))

    sampled: list[tuple[float, dict]] = []  # seconds and completions of the rollouts of a pair

    def sample(prompts, trainer):
        seconds, found = timed(lambda: rollout(prompts, trainer))
        sampled.append((seconds, found))
        return found

    updates: dict[str, list[float]] = {"GRPO": [], "PPO": []}
    sampling: list[float] = []
    for pair in range(options.pairs):
        order = [("GRPO", grpo), ("PPO", ppo)]
        for name, stage in order if pair % 2 == 0 else order[::-1]:
            replay = iter([found for _, found in sampled])  # the second of a pair gets the completions of the first
            clock = RolloutClock(steps)
            function = (lambda prompts, trainer, replay=replay: next(replay)) if sampled else sample
            with mock.patch.object(stage, "rollout", function), tempfile.TemporaryDirectory() as folder:
                stage.train(config, f"{folder}/run", model=options.model, callbacks=[clock])
            first = function is sample
            updates[name] += [total - (seconds if first else 0) for total, (seconds, _)
                              in zip(clock.seconds[1:], sampled[1:], strict=True)]  # the first rollout warms up
        sampling += [seconds for seconds, _ in sampled[1:]]
        sampled.clear()
    alone = [p / g for p, g in zip(updates["PPO"], updates["GRPO"], strict=True)]
    whole = [(p + s) / (g + s) for p, g, s in zip(updates["PPO"], updates["GRPO"], sampling, strict=True)]
    print(f"{settings.batch_size} completions a rollout, {steps} updates of it, {len(whole)} pairs")
    print(f"seconds of sampling {spread(sampling)}")
    for name, seconds in updates.items():
        print(f"seconds of updates, {name:4} {spread(seconds)}")
    print(f"ratio PPO / GRPO: {spread(whole)} with sampling, {spread(alone)} without")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("generation", help=generation.__doc__, allow_abbrev=False)
    command.add_argument("--model", required=True, help="a model that knows the format: RUN/model")
    command.add_argument("--task", default="countdown", choices=["countdown", "gsm8k"])
    command.add_argument("--prompts", type=int, default=16)
    command.add_argument("--group", type=int, default=16, help="completions of each prompt")
    command.add_argument("--max-new-tokens", type=int, default=128)
    command.add_argument("--pairs", type=int, default=7)
    command.set_defaults(run=generation)
    command = commands.add_parser("ppo", help=ppo_step.__doc__, allow_abbrev=False)
    command.add_argument("--model", required=True, help="a model that knows the format: RUN/model")
    command.add_argument("--hardware", default="cpu")
    command.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings")
    command.add_argument("--rollouts", type=int, default=3, help="timed rollouts of each run")
    command.add_argument("--pairs", type=int, default=3, help="pairs of runs")
    command.set_defaults(run=ppo_step)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
