"""The commands that the tests of faults interrupt, in copies of this process, and what must be equal in the end."""

import gc
import io
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import evaluate
import measure_learning
import pandas as pd
import torch
import train

from lab_utils import exit_status
from lab_utils.runs import TIMING_COLUMNS

STAGES = ("sft", "grpo", "ppo")
SMALL = {"task.train_limit": 16, "task.test_limit": 4, "evaluation.max_new_tokens": 32, "tracking.tensorboard": "false",
         "rewards": "{repetition_penalty_reward: 1.0}",  # differs between completions of a model that learned nothing
         **{f"{stage}.{name}": value for stage in STAGES[1:]
            for name, value in (("max_completion_length", 32), ("probe_rollouts", 2))},
         **{f"{stage}.{name}": value for stage in STAGES
            for name, value in (("max_steps", 3), ("save_steps", 1), ("logging_steps", 1))}}
TRAIN = ["train.py", "--recipe", "countdown-ppo", "--resume", "--evaluate"]
START = "PARENT/SFT/sft/model"
COMMANDS = {  # PARENT holds the output of the earlier commands, under their names here
    "SFT": [*TRAIN, "--stages", "sft", "--export", "OUTPUT/export"],
    "GRPO": [*TRAIN, "--stages", "grpo", "--model", START],
    "PPO": [*TRAIN, "--stages", "ppo", "--model", START],
    "GRPO, LoRA": [*TRAIN, "--stages", "grpo", "--model", START, "--set", "model.lora={r: 2, alpha: 4}"],
    "evaluate.py": ["evaluate.py", "base=tiny", f"SFT={START}", "--recipe", "countdown-ppo"],
    "measure_learning.py": ["measure_learning.py", "--recipe", "countdown-grpo", "--seeds", "0"],
}
MAIN = {"train.py": train.main, "evaluate.py": evaluate.main, "measure_learning.py": measure_learning.main}
KILLED = -signal.SIGKILL

WRITES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
written = multiprocessing.RawValue("i")  # the writes of the last copy, which shares this memory


def run(name: str, output: Path, **when) -> int:
    """Run a command in a copy of this process, as a user gives it for the first time and again; return its status."""
    script, *words = [word.replace("PARENT", str(output.parent)).replace("OUTPUT", str(output))
                      for word in COMMANDS[name]]
    words += ["--hardware", "smoke", "--output-dir", str(output)]
    for setting in SMALL.items():
        words += ["--set", "{}={}".format(*setting)]
    return run_copy(lambda: exit_status(lambda: MAIN[script](words)), output, **when)


def run_copy(act: Callable[[], int | None], folder: Path, *, writes: int | None = None, seconds: float = 120) -> int:
    """Run `act` in a copy of this process. Return its status, 1 after an exception, or KILLED.

    Args:
        folder: only what Python opens, renames and removes below it counts as a write.
        writes: kill the copy when it would write once more than this.
        seconds: kill the copy after so long.
    """
    written.value = 0
    copy = os.fork()
    if copy == 0:
        status = 1
        try:
            gc.freeze()  # the objects of this process need no collecting in its copies
            sys.addaudithook(lambda event, arguments: _count(event, arguments, str(folder), writes))
            status = act() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    end = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(copy, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(copy, signal.SIGKILL)
            end = float("inf")
        time.sleep(0.002)


def _count(event: str, arguments: tuple, folder: str, writes: int | None) -> None:
    reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if event in WRITES and not reads and str(arguments[0]).startswith(folder):
        if written.value == writes:
            os.kill(os.getpid(), signal.SIGKILL)
        written.value += 1


def contents(folder: Path) -> dict:
    """Return by name what must be equal: every file, without what depends on the clock."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name == ".lock" or ".json.tmp-" in path.name:  # an unfinished evaluation is not used
            continue
        content = path.read_bytes()
        if path.suffix == ".jsonl":
            content = [without_timings(json.loads(line)) for line in content.splitlines()]
        elif path.name == "metrics.csv":
            table = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
            content = without_timings(table.to_dict("list"))
        elif path.name == "trainer_state.json":
            state = json.loads(content)
            content = state | {"log_history": list(map(without_timings, state["log_history"]))}
        elif path.name.startswith("learning-"):
            content = path.suffix == ".json" and list(map(without_timings, json.loads(content)["rows"]))
        elif path.name == "environment.json":
            content = json.loads(content) | {"git_commit": None}  # a commit may be made meanwhile
        elif path.suffix in (".pt", ".pth"):
            content = str(torch.load(path, weights_only=False))
        found[path.relative_to(folder).as_posix()] = content
    return found


def without_timings(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in (*TIMING_COLUMNS, "minutes")}


def differences(one: dict, other: dict) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
