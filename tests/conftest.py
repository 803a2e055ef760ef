"""Settings for every test: no network, no prompts, one thread. A test without a marker is a unit test."""

import gc
import os
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest  # noqa: E402

TIERS = ("unit", "component", "notebook", "slow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests without a tier as `unit`. Put files with slower tests first, so that two workers finish together."""
    slow = {item.path for item in items if any(item.get_closest_marker(tier) for tier in TIERS[1:])}
    notebooks = {item.path for item in items if item.get_closest_marker("notebook")}  # the longest of all
    items.sort(key=lambda item: (item.path not in notebooks, item.path not in slow))
    for item in items:
        if not any(item.get_closest_marker(tier) for tier in TIERS):
            item.add_marker("unit")


def pytest_collection_finish() -> None:
    """Leave the imported packages out of garbage collections, which take a quarter of a run of three steps."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def light_processes():
    """Let processes that tests start run started/sitecustomize.py; a fixture, so that pytest's workers do not."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parent / "started")


@pytest.fixture
def run(tmp_path):
    """Return a run directory whose trained model is the tiny one."""
    from lab_utils import TINY_MODEL, config
    from lab_utils.runs import RunDirectory

    few = {"evaluation.num_samples": 2, "evaluation.max_new_tokens": 32}
    run = RunDirectory.create(config.load("countdown-grpo", "smoke", few), tmp_path / "runs" / "grpo")
    shutil.copytree(TINY_MODEL, run.model_dir)
    return run
