"""Where time and memory of a training step go, by part; gpu_check.py and cpu_benchmark.py use it.

The model has random weights, so nothing is downloaded. It hardly ever ends its turn, so completions are about as long
as they may be: the worst case, and the same for all cases. A step is split into

    rollout   sampling the completions (GRPO and PPO)
    scoring   reward functions; log-probabilities before the update and under the reference; PPO's values and advantages
    update    forward and backward passes, optimizer
"""

from __future__ import annotations

import datetime
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from ..config import RunConfig
from ..models import load_tokenizer
from ..runs import describe_environment
from ..training import grpo, ppo, sft
from .memory import architecture, memory, skeleton

STAGES = {"sft": (sft, None), "grpo": (grpo, grpo.RLTrainer), "ppo": (ppo, ppo.PPOTrainer)}


def random_model(name: str, folder: Path, **sizes: int) -> Path:
    """Write a model of the shape of `name` with random weights, and the tiny model's tokenizer, to `folder`.

    `sizes` change the shape, for example `hidden_size`.
    """
    torch.manual_seed(0)
    shape = architecture(name)
    shape.update(sizes)
    AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16).save_pretrained(folder)
    load_tokenizer("tiny").save_pretrained(folder)
    return folder


class Clock(TrainerCallback):
    """Measure the seconds of every step, and of the calls that `part` wraps."""

    def __init__(self):
        self.steps: list[dict[str, float]] = []
        self.times: dict[str, float] = {}

    @staticmethod
    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def part(self, name: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            start = self.now()
            result = function(*args, **kwargs)
            self.times[name] = self.times.get(name, 0.0) + self.now() - start
            return result

        return call

    def on_step_begin(self, args, state, control, **kwargs):
        self.times, self.start = {}, self.now()

    def on_step_end(self, args, state, control, **kwargs):
        whole = self.now() - self.start
        before, rollout = self.times.get("before the update", 0.0), self.times.get("rollout", 0.0)
        self.steps.append({"rollout": rollout, "scoring": before - rollout, "update": whole - before})


class PeakMemory:
    """Measure the most memory in use, in GB: of the whole GPU while inside the `with` block, or of this process."""

    def __enter__(self) -> PeakMemory:
        self.peak, self.done = 0.0, threading.Event()
        if torch.cuda.is_available():
            self.thread = threading.Thread(target=self._watch, daemon=True)
            self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.02):
            free, total = torch.cuda.mem_get_info()
            self.peak = max(self.peak, (total - free) / 1e9)

    def __exit__(self, *error) -> None:
        self.done.set()
        if torch.cuda.is_available():
            self.thread.join()
        else:
            self.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(config: RunConfig, stage: str, ceiling_tflops: float) -> dict[str, float | str]:
    """Train a stage for its `max_steps`; return seconds per step by part, tokens per second and peak memory.

    The first rollout warms up, if there are two or more. `ceiling_share` is the share of `ceiling_tflops` that the
    updates reach.
    """
    (module, trainer), settings, clock = STAGES[stage], getattr(config, stage), Clock()
    with ExitStack() as stack:
        for method, name in (("_generate", "rollout"), ("_generate_and_score_completions", "before the update")):
            if trainer:
                wrapped = clock.part(name, getattr(trainer, method))
                stack.enter_context(mock.patch.object(trainer, method, wrapped))
        folder, used = stack.enter_context(tempfile.TemporaryDirectory()), stack.enter_context(PeakMemory())
        tokens = module.train(config, Path(folder) / "run", callbacks=[clock]).metrics()["num_tokens"]
    begins = [number for number, step in enumerate(clock.steps) if step["rollout"] or not trainer]
    timed = clock.steps[begins[1] if len(begins) > 1 else 0:]
    seconds = {name: sum(step[name] for step in timed) / len(timed) for name in timed[0]}
    whole, expected = sum(seconds.values()), memory(config, stage)
    trained = tokens.max() / len(clock.steps) * (settings.num_iterations if trainer else 1)
    operations = (6 + 2 * settings.gradient_checkpointing) * skeleton(config.model.name).num_parameters() * trained
    return {
        **{f"{name}_seconds": round(value, 3) for name, value in seconds.items() if value or name == "update"},
        "step_seconds": round(whole, 3), "trained_tokens_per_second": round(trained / whole),
        "peak_gb": round(used.peak, 2), "estimated_gb": f"{expected.low:.1f} to {expected.high:.1f}",
        "ceiling_share": round(operations / seconds["update"] / ceiling_tflops / 1e12, 3),
    }


def machine() -> str:
    """Return the machine in words, for a table's heading: GPU or processor, versions, date."""
    found = describe_environment()
    device = found["gpus"][0] if found["gpus"] else f"{found['cpu']}, {torch.get_num_threads()} thread(s)"
    versions = [f"{name} {found['packages'][name]}" for name in ("torch", "trl", "vllm") if found["packages"][name]]
    return ", ".join([device, *versions, str(datetime.date.today())])


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median with minimum and maximum."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def table(rows: Sequence[Sequence]) -> str:
    """Return a Markdown table; the first row is its heading."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])
