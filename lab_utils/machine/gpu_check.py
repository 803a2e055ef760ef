"""Check a GPU: what trains there, how fast, with how much memory. `scripts/gpu_check.sh` starts it.

Every case runs in a worker process (gpu_cases.py) that is replaced when it dies or takes too long. What could not run
is part of the result. The files are written after every case, so whatever ends the check leaves what was found so far.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from .. import REPOSITORY, exit_status
from ..config import Tier, hardware_names, load, load_tier, recipe_names

SHAPES = ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B")
COLUMNS = {"step_seconds": "s per step", "rollout_seconds": "rollout", "scoring_seconds": "scoring",
           "update_seconds": "update", "trained_tokens_per_second": "tokens/s", "peak_gb": "peak GB",
           "estimated_gb": "estimated GB", "ceiling_share": "share of ceiling"}


class Case(NamedTuple):
    """A measurement: a function of gpu_cases.py with its arguments, or why it is not made."""

    name: str
    function: str = ""
    arguments: dict[str, Any] = {}
    not_run: str = ""
    alone: bool = False  # in a worker of its own, because vLLM does not give all of its memory back


class Worker:
    """A process that answers cases."""

    PROGRAM = ("-m", "lab_utils.machine.gpu_cases")

    def __init__(self, log: Path):
        self.log = log.open("a", encoding="utf-8")
        answers, theirs = os.pipe()
        self.answers = os.fdopen(answers, encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, *self.PROGRAM, str(theirs)], cwd=REPOSITORY, text=True, stdin=subprocess.PIPE,
            stdout=self.log, stderr=subprocess.STDOUT, pass_fds=[theirs])
        os.close(theirs)  # so that the pipe ends when the worker dies

    def answer(self, case: Case, seconds: float) -> dict[str, Any]:
        """Return what a case finds, or {"not run": why} if the worker dies or the seconds are over."""
        try:
            self.process.stdin.write(json.dumps({"function": case.function, "arguments": case.arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it died: there is no answer to read
        if not select.select([self.answers], [], [], max(seconds, 0))[0]:
            self.stop()
            return {"not run": f"stopped after {max(seconds, 0):.0f} s"}
        line = self.answers.readline()
        if not line:
            self.stop()
            return {"not run": f"its process died; {self.log.name} says why"}
        return json.loads(line)

    @property
    def usable(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.answers.close()
        self.log.close()


class Check:
    """The results so far, and the time that is left."""

    def __init__(self, folder: Path, minutes: float):
        self.folder, self.deadline = folder, time.monotonic() + 60 * minutes
        self.found: dict[str, Any] = {"cases": {}}
        self.worker: Worker | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, case: Case, most: float = 150) -> dict[str, Any]:
        """Run a case in the common worker, or in one of its own, and write what it found."""
        left = self.deadline - time.monotonic()
        if case.not_run or left < 5:
            result = {"not run": case.not_run or "no time was left"}
        elif case.alone:
            result = self.in_own_worker(case, min(most, left))
        else:
            if self.worker is None or not self.worker.usable:
                self.worker = Worker(self.folder / "log.txt")
            result = self.worker.answer(case, min(most, left))
        self.keep(case, result)
        return result

    def in_own_worker(self, case: Case, seconds: float) -> dict[str, Any]:
        worker = Worker(self.folder / "log.txt")
        result = worker.answer(case, seconds)
        if worker.usable:
            worker.stop()
        return result

    def side_by_side(self, cases: list[Case], most: float) -> None:
        """Run cases at the same time, in a worker each."""
        seconds = min(most, self.deadline - time.monotonic())
        with ThreadPoolExecutor(max_workers=max(1, len(cases))) as pool:
            results = pool.map(lambda case: self.in_own_worker(case, seconds), cases)
            for case, result in zip(cases, results, strict=True):
                self.keep(case, result)

    def keep(self, case: Case, result: dict[str, Any]) -> None:
        self.found["cases"][case.name] = result
        print(f"{case.name}: " + ", ".join(f"{key} {_short(value)}" for key, value in result.items()), flush=True)
        (self.folder / "gpu_check.json").write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        (self.folder / "gpu_check.md").write_text(as_markdown(self.found["cases"]), encoding="utf-8")

    def close(self) -> None:
        if self.worker is not None and self.worker.usable:
            self.worker.stop()


def learning_cases(machine: dict[str, Any]) -> list[Case]:
    """Return runs that must learn as on a CPU; without a GPU only a few steps, in which nothing is learned."""
    hardware, problems = ("cpu", 200) if machine["gpu"] else ("smoke", 4)
    seeds = range(2 if machine["gpu"] and machine["cores"] >= 8 else 1)
    return [Case(f"learning, {stage}, seed {seed}", "learn",
                 {"stage": stage, "seed": seed, "hardware": hardware, "problems": problems})
            for stage in ("grpo", "ppo") for seed in seeds]


def cases(machine: dict[str, Any], folder: Path) -> Iterator[Case]:
    """Yield all other cases for a machine, the most important first: its own tier, then the other tiers that fit."""
    shapes = SHAPES if machine["gpu"] else ("tiny",)
    models = {shape: str(folder / shape.rpartition("/")[2]) for shape in shapes}
    for shape, path in models.items():
        yield Case(f"random weights, {shape}", "make_model", {"shape": shape, "folder": path})
    yield Case("resume", "resume")
    rows, tokens = (256, 512) if machine["gpu"] else (16, 16)
    rollout = {"model": models[shapes[0]], "rows": rows, "tokens": tokens}
    name = f"rollout of {rows} × {tokens} tokens, {shapes[0]}"
    yield Case(f"{name}, transformers", "rollout", {"engine": "transformers", **rollout})
    yield Case(f"{name}, vLLM", "rollout", {"engine": "vllm", **rollout}, without_vllm(machine), alone=True)

    own, with_vllm = machine["tier"] if machine["gpu"] else "smoke", []
    tiers = [load_tier(name) for name in hardware_names()]
    for tier in sorted(tiers, key=lambda tier: (tier.name != own, tier.name != "t4", -tier.memory_gb)):  # t4: float16
        if tier.gpus == 0 and (machine["gpu"] or tier.name != own):
            continue
        if reason := does_not_fit(tier, machine):
            yield Case(tier.name, not_run=reason)
            continue
        for recipe in recipe_names() if machine["gpu"] else ("countdown-grpo", "gsm8k-sft-ppo"):
            for case in step_cases(tier, recipe, tier.name == own, models, machine):
                if case.alone:
                    with_vllm.append(case)  # last, because vLLM takes a minute to start
                else:
                    yield case
    yield from with_vllm


def step_cases(tier: Tier, recipe: str, own: bool, models: dict[str, str], machine: dict[str, Any]) -> Iterator[Case]:
    """Yield the steps of a recipe's stages on a tier; on the machine's own tier also with vLLM, if the tier uses it.

    Other tiers than the machine's own differ in how a batch is split, which short completions show too.
    """
    config = load(recipe, tier.name)
    quantized = config.model.load_in_4bit or not machine["gpu"] and recipe == "gsm8k-sft-ppo"
    model = next((path for shape, path in models.items() if config.model.name.startswith(shape)), [*models.values()][0])
    for stage in config.stages:
        settings = {"model.load_in_4bit": True, "model.lora": {"r": 16}} if quantized else {}
        if stage != "sft":
            settings[f"{stage}.max_completion_length"] = 128 if own and machine["gpu"] else 32
        arguments = {
            "recipe": recipe, "hardware": tier.name, "stage": stage, "model": model, "rollouts": 2 if own else 1,
            "ceiling_tflops": {dtype: machine[f"{dtype}_tflops"] for dtype in ("bfloat16", "float16", "float32")}}
        name = f"{tier.name}, {recipe}, {stage}"
        missing = "bitsandbytes is not installed" if quantized and not machine["bitsandbytes"] else ""
        yield Case(name, "steps", arguments | {"settings": settings}, missing)
        if own and stage != "sft" and getattr(config, stage).use_vllm:
            settings = settings | {f"{stage}.use_vllm": True}
            yield Case(f"{name}, vLLM", "steps", arguments | {"settings": settings}, without_vllm(machine), alone=True)


def does_not_fit(tier: Tier, machine: dict[str, Any]) -> str:
    """Return why a tier cannot be tried on a machine; nothing if it can."""
    if tier.gpus > 1:
        return f"it takes {tier.gpus} GPUs and accelerate launch"
    if tier.gpus and machine["memory_gb"] < 0.93 * tier.memory_gb:
        return f"it takes a GPU of {tier.memory_gb:g} GB"
    if tier.gpus and tier.name != "t4" and not machine["bfloat16"]:
        return "this GPU has no bfloat16"
    return ""


def without_vllm(machine: dict[str, Any]) -> str:
    return "" if machine["vllm"] else "vLLM is not installed"


def as_markdown(found: dict[str, dict[str, Any]]) -> str:
    """Return the results as text: the machine, a table of steps, and a list of everything else."""
    machine = found.get("machine", {})
    timed = {name: result for name, result in found.items() if "step_seconds" in result}
    rows = [["tier, recipe, stage", *COLUMNS.values()], ["---"] * (1 + len(COLUMNS)),
            *([name, *(_short(result.get(column, "")) for column in COLUMNS)] for name, result in timed.items())]
    lines = [f"{machine.get('machine', 'unknown machine')}{'' if machine.get('gpu') else '; not a GPU'}", "",
             *(f"| {' | '.join(row)} |" for row in rows), ""]
    lines += [f"- {name}: " + ", ".join(f"{key.replace('_', ' ')} {_short(value)}" for key, value in result.items())
              for name, result in found.items() if name not in timed]
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/gpu-check"))
    parser.add_argument("--minutes", type=float, default=8.5, help="what has not run by then is marked")
    options = parser.parse_args(argv)
    check = Check(options.output_dir.resolve(), options.minutes)
    try:
        machine = check.run(Case("machine", "describe"))
        if "tier" not in machine:
            return 1  # the reason is in the files
        check.side_by_side(learning_cases(machine), most=240)
        with tempfile.TemporaryDirectory() as folder:
            for case in cases(machine, Path(folder)):
                check.run(case)
    finally:
        check.close()
    print(f"Written to {check.folder}: gpu_check.json, gpu_check.md, log.txt")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
