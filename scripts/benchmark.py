"""Timings. `generation` and `ppo` are paired: A and B take turns on the same inputs, so that drift hits both alike.

    python scripts/benchmark.py generation --model runs/measured/countdown/seed-0/grpo/model
    python scripts/benchmark.py ppo --model runs/measured/countdown/seed-0/grpo/model
    python scripts/benchmark.py cpu --output-dir runs/cpu-benchmark

`cpu` compares this project's GRPO with TRL's and with a plain loop, in turn too. scripts/gpu_check.sh measures a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

from lab_utils import exit_status  # before torch: it says how torch's threads wait

# isort: split
import torch
from transformers import TrainerCallback
from trl.import_utils import is_vllm_available

from lab_utils import config as configuration
from lab_utils.machine import cpu_benchmark
from lab_utils.machine.step_times import spread
from lab_utils.models import end_token_ids, load_model, load_tokenizer
from lab_utils.sampling import vllm as vllm_sampling
from lab_utils.sampling.local import encode_prompts, rollout, sample_token_ids
from lab_utils.tasks import load_task
from lab_utils.training import grpo, ppo


def timed(function: Callable) -> tuple[float, object]:
    """Return the seconds that a call took, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def generation(options: argparse.Namespace) -> None:
    """Compare useful tokens per second and memory of transformers.generate, our sampler and vLLM (if installed).

    Without a GPU the seconds are CPU seconds of all threads, which other programs do not affect.
    """
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    with ExitStack() as stack:
        if options.alone:
            before = memory()
            generator(options.alone, options, stack)()
            print(f"{memory(peak=True) - before:.0f}")
            return
        names = ["generate", "sampler", *(["vLLM"] if is_vllm_available() else [])]
        generators = {name: generator(name, options, stack) for name in names}
        rates: dict[str, list[float]] = {name: [] for name in names}
        lengths: list[int] = []
        for pair in range(options.pairs + 1):  # the first round warms up
            torch.manual_seed(pair)
            for name in names if pair % 2 else names[::-1]:
                start = clock()
                found = generators[name]()
                if pair:
                    rates[name].append(sum(found) / (clock() - start))
                    lengths += found
    second = "second" if torch.cuda.is_available() else "CPU second"
    print(f"{options.prompts * options.group} completions per rollout, {options.pairs} rounds, "
          f"{torch.get_num_threads()} thread(s); completion length: mean {statistics.mean(lengths):.0f}, longest "
          f"{max(lengths)} tokens\n\n"
          f"| | useful tokens per {second} | times generate | MB added |\n|---|---|---|---|")
    for name in names:
        alone = [sys.executable, __file__, *sys.argv[1:], "--alone", name]  # memory is counted from a process's start
        added = subprocess.run(alone, capture_output=True, text=True, check=True).stdout.split()[-1]
        ratios = [a / b for a, b in zip(rates[name], rates["generate"], strict=True)]
        print(f"| {name} | {spread(rates[name], 0)} | {spread(ratios)} | {added} |")


def generator(name: str, options: argparse.Namespace, stack: ExitStack) -> Callable[[], list[int]]:
    """Return a function that samples one rollout with the back end `name` and returns the completions' lengths."""
    prompts = load_task(options.task).dataset("test", options.prompts)["prompt"]
    tokenizer = load_tokenizer(options.model)
    config = configuration.load("countdown-grpo", "a100" if torch.cuda.is_available() else "cpu")  # device and dtype
    if name == "vLLM":
        engine = stack.enter_context(vllm_sampling.vllm_engine(options.model, config.model, own_process=False))
        return lambda: [len(completion.token_ids) for completions in vllm_sampling.sample(
            engine, tokenizer, prompts, num_samples=options.group, max_new_tokens=options.max_new_tokens)
            for completion in completions]

    model = load_model(options.model, config.model).eval()
    ids = encode_prompts(tokenizer, prompts)
    ends = end_token_ids(model.config, tokenizer)
    if name == "sampler":
        return lambda: [len(tokens) for tokens, _ in sample_token_ids(
            model, ids, [options.group] * len(ids), end_ids=ends, max_new_tokens=options.max_new_tokens)]

    copies = [prompt for prompt in ids for _ in range(options.group)]
    width = max(map(len, ids))
    batch = {"input_ids": torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in copies]),
             "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in copies])}

    def generate() -> list[int]:
        rows = model.generate(**{key: value.to(model.device) for key, value in batch.items()},
                              max_new_tokens=options.max_new_tokens, do_sample=True, temperature=1.0, top_k=0)
        is_end = torch.isin(rows[:, width:], torch.tensor(ends, device=rows.device))
        return [int(row.nonzero()[0]) + 1 if row.any() else len(row) for row in is_end]

    return generate


def memory(peak: bool = False) -> float:
    """Return this process's memory in MB, now or at its peak since the last call: the GPU's or, without one, RAM."""
    if torch.cuda.is_available():
        found = torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return found / 1e6
    lines = Path("/proc/self/status").read_text().splitlines()  # Linux only
    kilobytes = next(line.split()[1] for line in lines if line.startswith("VmHWM" if peak else "VmRSS"))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    return int(kilobytes) * 1024 / 1e6


class RolloutClock(TrainerCallback):
    """Times each rollout in seconds, from its start to the end of its last update."""

    def __init__(self, steps: int):
        self.steps, self.seconds = steps, []

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0:
            self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0:
            self.seconds.append(time.perf_counter() - self.start)


def ppo_step(options: argparse.Namespace) -> None:
    """Measure what a critic costs: a PPO step against a GRPO step with the same completions and settings."""
    config = configuration.load("countdown-ppo", options.hardware, options.settings)
    settings = config.ppo
    steps = settings.num_iterations * settings.steps_per_generation // settings.gradient_accumulation_steps
    shared = settings.model_dump(include=set(configuration.RLSettings.model_fields))
    shared |= {"max_steps": steps * (options.rollouts + 1), "save_steps": 10**6, "probe_rollouts": 0}
    config = configuration.with_overrides(config, {"tracking.tensorboard": False, "grpo": shared, "ppo": shared})

    sampled: list[tuple[float, dict]] = []  # seconds and completions of each rollout of a pair

    def sample(prompts, trainer):
        seconds, found = timed(lambda: rollout(prompts, trainer))
        sampled.append((seconds, found))
        return found

    updates: dict[str, list[float]] = {"GRPO": [], "PPO": []}
    sampling: list[float] = []
    for pair in range(options.pairs):
        order = [("GRPO", grpo), ("PPO", ppo)]
        for name, stage in order if pair % 2 == 0 else order[::-1]:
            replay = iter([found for _, found in sampled])  # the second run of a pair gets the first one's completions
            clock = RolloutClock(steps)
            function = (lambda prompts, trainer, replay=replay: next(replay)) if sampled else sample
            with mock.patch("lab_utils.training.rl.rollout", function), tempfile.TemporaryDirectory() as folder:
                stage.train(config, f"{folder}/run", model=options.model, callbacks=[clock])
            first = function is sample
            updates[name] += [total - (seconds if first else 0) for total, (seconds, _)
                              in zip(clock.seconds[1:], sampled[1:], strict=True)]  # the first rollout warms up
        sampling += [seconds for seconds, _ in sampled[1:]]
        sampled.clear()
    alone = [p / g for p, g in zip(updates["PPO"], updates["GRPO"], strict=True)]
    whole = [(p + s) / (g + s) for p, g, s in zip(updates["PPO"], updates["GRPO"], sampling, strict=True)]
    print(f"{settings.rollout_size} completions per rollout, {steps} updates of it, {len(whole)} pairs")
    print(f"seconds of sampling {spread(sampling)}")
    for name, seconds in updates.items():
        print(f"seconds of updates, {name:4} {spread(seconds)}")
    print(f"ratio PPO / GRPO: {spread(whole)} with sampling, {spread(alone)} without")


def cpu(options: argparse.Namespace) -> None:
    """Compare GRPO on the CPU by this project, TRL's trainer and a plain loop: steps, learning, growth with size."""
    config = configuration.load("countdown-grpo", options.hardware, options.settings)
    results = cpu_benchmark.benchmark(config, options.output_dir, options.parts, model=options.model,
                                      pairs=options.pairs, seeds=options.seeds)
    print(f"{cpu_benchmark.as_markdown(results)}\nWritten to {options.output_dir}: cpu_benchmark.json, .md, .png")


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
    command.add_argument("--pairs", type=int, default=7, help="rounds, in each of which every back end takes a turn")
    command.add_argument("--alone", metavar="BACK-END", help="only sample one rollout, and print the MB that it took")
    command.set_defaults(run=generation)
    command = commands.add_parser("ppo", help=ppo_step.__doc__, allow_abbrev=False)
    command.add_argument("--model", required=True, help="a model that knows the format: RUN/model")
    command.add_argument("--hardware", default="cpu")
    command.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings")
    command.add_argument("--rollouts", type=int, default=3, help="timed rollouts per run")
    command.add_argument("--pairs", type=int, default=3, help="pairs of runs")
    command.set_defaults(run=ppo_step)
    command = commands.add_parser("cpu", help=cpu.__doc__, allow_abbrev=False)
    command.add_argument("--output-dir", type=Path, default=Path("outputs/cpu-benchmark"))
    command.add_argument("--parts", nargs="+", choices=cpu_benchmark.SECTIONS, default=list(cpu_benchmark.SECTIONS))
    command.add_argument("--hardware", default="cpu")
    command.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings")
    command.add_argument("--model", help="start model; by default SFT makes it, and 15 GRPO steps for all but learning")
    command.add_argument("--pairs", type=int, default=3, help="runs of each of the three ways in `steps`")
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of `learning`")
    command.set_defaults(run=cpu)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    sys.exit(exit_status(main))
