"""Kill training at random moments, resume it, and compare every file with those of an uninterrupted run.

    FAULTS_KILLS=40 FAULTS_SEED=7 python -m pytest -s tests/faults/test_random_kills.py

The seed is printed. Every run trains SFT and then PPO at tier smoke, and evaluates; a kill can come at any moment.
"""

import json
import os
import random
import signal
import time
import traceback

import pytest

from lab_utils.config import load
from lab_utils.evaluation import evaluate_run
from lab_utils.runs import TIMING_COLUMNS, RunDirectory
from lab_utils.training.stages import TRAIN

KILLS = int(os.environ.get("FAULTS_KILLS", "2"))
SEED = int(os.environ.get("FAULTS_SEED", random.randrange(10**6)))
SETTINGS = {"stages": ["sft", "ppo"], "task.test_limit": 4, "tracking.tensorboard": False,
            **{f"{stage}.{key}": value for stage in ("sft", "ppo")
               for key, value in (("max_steps", 4), ("save_steps", 1), ("logging_steps", 1))}}


def work(folder):
    config, model = load("countdown-ppo", "smoke", SETTINGS), None
    for stage in config.stages:
        run = TRAIN[stage](config, folder / stage, model=model, resume=True)
        model = run.model_dir
        evaluate_run(run.path, config)


def finishes(folder, seconds: float) -> bool:
    """Run `work` in a copy of this process, kill it after so many seconds, and say whether it had finished."""
    child = os.fork()
    if child == 0:
        try:
            work(folder)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    end = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert status == 0, "a resumed run failed; its traceback is above"
            return True
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.01)


def contents(folder) -> dict:
    """Return what must be equal: all files except timings, and pickles that hold paths; their names count."""
    found = {}
    for path in sorted(file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"):
        name = path.relative_to(folder).as_posix()
        if path.name == "metrics.jsonl":
            rows = map(json.loads, path.read_text().splitlines())
            found[name] = [{key: value for key, value in row.items() if key not in TIMING_COLUMNS} for row in rows]
        elif path.suffix in (".safetensors", ".yaml", ".jinja") or "/model/" in name and path.suffix == ".json" or (
                path.name in ("completions.jsonl", "eval.json")):
            found[name] = path.read_bytes()
        else:
            found[name] = "exists"
    return found


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_at_random_moments_ends_with_the_files_of_an_uninterrupted_one(tmp_path):
    draw = random.Random(SEED)
    print(f"\nFAULTS_SEED={SEED} FAULTS_KILLS={KILLS}")
    start = time.monotonic()
    assert finishes(tmp_path / "whole", 600)
    duration = time.monotonic() - start
    whole, kills, runs = contents(tmp_path / "whole"), 0, 0
    assert RunDirectory(tmp_path / "whole" / "ppo").has_model
    while kills < KILLS:
        runs += 1
        folder = tmp_path / f"killed-{runs}"
        while not finishes(folder, draw.uniform(0, duration) if kills < KILLS else 600):
            kills += 1
        found = contents(folder)
        assert set(found) == set(whole)
        assert [name for name in whole if found[name] != whole[name]] == [], f"FAULTS_SEED={SEED}, run {runs}"
    print(f"{kills} kills in {runs} runs of {duration:.0f} s: all files are equal")
