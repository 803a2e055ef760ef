"""Settings for every test: no network, no prompts, one thread. A test without a marker is a unit test."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest  # noqa: E402

TIERS = ("unit", "component", "notebook", "slow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests without a tier as `unit`. Put files with slower tests first, so that two workers finish together."""
    slow = {item.path for item in items if any(item.get_closest_marker(tier) for tier in TIERS[1:])}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        if not any(item.get_closest_marker(tier) for tier in TIERS):
            item.add_marker("unit")
