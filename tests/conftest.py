"""Settings for every test: no network, no questions, one thread; a test without a marker is a unit test."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, so it stands before every import of it
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest  # noqa: E402

TIERS = ("unit", "component", "notebook", "slow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `unit` what has no other tier. Files with slower tests come first: two workers then end together."""
    slow = {item.path for item in items if any(item.get_closest_marker(tier) for tier in TIERS[1:])}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        if not any(item.get_closest_marker(tier) for tier in TIERS):
            item.add_marker("unit")
