"""Where time and memory of a GRPO or PPO step go: the worker of `python scripts/benchmark.py gpu`.

The model has random weights, so nothing is downloaded. It hardly ever ends its turn, so completions are about as long
as they may be: the worst case, and the same for all cases. A step is split into

    rollout   sampling the completions
    scoring   reward functions; log-probabilities before the update and under the reference; PPO's values and advantages
    update    forward and backward passes, optimizer
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from .. import REPOSITORY
from ..config import RunConfig, load
from ..models import load_tokenizer
from ..runs import describe_environment
from ..training import grpo, ppo
from .memory import architecture, memory

STAGES = {"grpo": (grpo, grpo.RLTrainer), "ppo": (ppo, ppo.PPOTrainer)}


@dataclasses.dataclass(frozen=True)
class Case:
    """What is timed: a stage on a tier with a back end for sampling and a number of rows in a forward pass."""

    stage: str  # "grpo" or "ppo"
    engine: str  # "transformers" or "vllm"
    batch_size: int  # rows in a forward and backward pass
    rollout: int  # completions in a rollout, all of one update
    completion: int  # tokens of each completion
    steps: int  # timed steps, after one that warms up
    hardware: str
    model: str
    settings: tuple[str, ...] = ()


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


def run_config(case: Case) -> RunConfig:
    """Return the configuration of a case: the tier's settings for gsm8k-grpo, with the case's sizes."""
    settings = {
        "stages": [case.stage], "task.source": "synthetic", "task.train_limit": 256, "model.name": case.model,
        "tracking.tensorboard": False}
    settings |= {f"{case.stage}.{key}": value for key, value in {
        "num_generations": 8, "max_completion_length": case.completion, "max_steps": case.steps + 1,
        "per_device_train_batch_size": case.batch_size, "steps_per_generation": case.rollout // case.batch_size,
        "gradient_accumulation_steps": case.rollout // case.batch_size, "num_iterations": 1,
        "use_vllm": case.engine == "vllm", "save_steps": 10**6, "log_completions_steps": 10**6}.items()}
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return load("gsm8k-grpo", case.hardware, [*overrides, *case.settings])


class Clock(TrainerCallback):
    """Measure the seconds of every step, and of the calls that `part` wraps."""

    def __init__(self):
        self.steps: list[dict[str, float]] = []

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
        whole, before = self.now() - self.start, self.times["before the update"]
        rollout = self.times["rollout"]
        self.steps.append({"rollout": rollout, "scoring": before - rollout, "update": whole - before, "step": whole})


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


def measure(case: Case) -> dict[str, float | str | int]:
    """Train for the case's steps and return medians of the seconds per step, tokens per second and peak memory.

    This takes the whole process: memory is counted from its start, and vLLM does not give all of its own back.
    """
    config, clock = run_config(case), Clock()
    module, trainer = STAGES[case.stage]
    with ExitStack() as stack:
        for method, name in (("_generate", "rollout"), ("_generate_and_score_completions", "before the update")):
            wrapped = clock.part(name, getattr(trainer, method))
            stack.enter_context(mock.patch.object(trainer, method, wrapped))
        folder, used = stack.enter_context(tempfile.TemporaryDirectory()), stack.enter_context(PeakMemory())
        lengths = module.train(config, Path(folder) / "run", callbacks=[clock]).metrics()["completions/mean_length"]
    medians = {name: statistics.median(step[name] for step in clock.steps[1:]) for name in clock.steps[0]}
    tokens, expected = case.rollout * float(lengths.iloc[1:].mean()), memory(config, case.stage)
    return {
        "stage": case.stage, "engine": case.engine, "batch_size": case.batch_size, "rollout_rows": case.rollout,
        "mean_length": round(tokens / case.rollout, 1),
        **{f"{name}_seconds": round(seconds, 4) for name, seconds in medians.items()},
        "sampled_tokens_per_second": round(tokens / medians["rollout"], 1),
        "trained_tokens_per_second": round(tokens / medians["step"], 1),
        "peak_gb": round(used.peak, 2), "estimated_gb": f"{expected.low:.1f} to {expected.high:.1f}",
    }


def measure_alone(case: Case) -> dict[str, float | str | int]:
    """Run `measure` in a separate process; a case that fails, such as out of memory, has a column `error`."""
    command = [sys.executable, "-m", "lab_utils.machine.step_times", json.dumps(dataclasses.asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode == 0:
        return json.loads(done.stdout.strip().splitlines()[-1])
    reason = next((line for line in reversed(done.stderr.strip().splitlines()) if ": " in line), "no message")
    return {"stage": case.stage, "engine": case.engine, "batch_size": case.batch_size, "error": reason[:300]}


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


def write(rows: list[dict], folder: Path, title: str) -> None:
    """Write the cases as gpu_benchmark.csv, .md and .png, a bar for each case."""
    frame = pd.DataFrame(rows)
    frame.to_csv(folder / "gpu_benchmark.csv", index=False)
    cells = [[str(name).replace("_", " ") for name in frame],
             *frame.astype(object).where(frame.notna(), "").values.tolist()]
    (folder / "gpu_benchmark.md").write_text(f"{title}\n\n{table(cells)}\n", encoding="utf-8")
    if "step_seconds" not in frame:
        return
    frame = frame.dropna(subset=["step_seconds"])
    frame.index = [f"{row.stage.upper()}, {row.engine}, {row.batch_size} rows" for row in frame.itertuples()]
    parts = ["rollout_seconds", "scoring_seconds", "update_seconds"]
    ax = frame[parts].plot.barh(stacked=True, figsize=(11, 2 + 0.75 * len(frame)), title=title)
    ax.set_xlabel("seconds of a step")
    ax.bar_label(ax.containers[-1], [f" {row.trained_tokens_per_second:,.0f} tokens/s, {row.peak_gb:.1f} GB"
                                     for row in frame.itertuples()])
    ax.margins(x=0.4)
    ax.invert_yaxis()
    ax.figure.savefig(folder / "gpu_benchmark.png", bbox_inches="tight")


if __name__ == "__main__":
    values = json.loads(sys.argv[1])  # the case that `measure_alone` gives; its result is the last line
    print(json.dumps(measure(Case(**values | {"settings": tuple(values["settings"])}))))
