"""Two processes (gloo) against one on the same global batch: SFT, GRPO and PPO give the same numbers and weights.

What cannot be equal: which random numbers a process samples with, and how it shuffles its part of a rollout. Both are
fixed by process_runs.py. Everything else must be: rewards, group advantages that need the other process's rewards,
whitened advantages, losses weighted by the tokens of all processes, averaged gradients, and so the weights.
"""

import multiprocessing
import os
import socket

import numpy as np
import process_runs
import pytest
import torch

from lab_utils.models import load_model
from lab_utils.runs import TIMING_COLUMNS, RunDirectory

pytestmark = [pytest.mark.component, pytest.mark.timeout(300),
              pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folders of the runs in one process and in two, copies of this one, and what these printed."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    copies = [multiprocessing.get_context("fork").Process(target=process_runs.run_rank, args=(rank, 2, port, two))
              for rank in (0, 1)]
    for copy in copies:
        copy.start()
    process_runs.run_all(one)
    for copy in copies:
        copy.join(250)
        copy.kill()
    output = "".join((two / f"{rank}.log").read_text() for rank in (0, 1))
    assert [copy.exitcode for copy in copies] == [0, 0], output
    return one, two, output


# TRL weighs these by the tokens of the processes, but not by those of micro-batches: as logged they cannot be equal.
WEIGHED = {"sft": {"entropy", "mean_token_accuracy"}, "grpo": {"entropy", "kl"}, "ppo": {"entropy"}}


@pytest.mark.parametrize("stage, columns", [
    ("sft", {"loss", "grad_norm"}),
    ("grpo", {"loss", "grad_norm", "reward", "reward_std", "accuracy", "frac_reward_zero_std", "clip_ratio/region_mean",
              "completions/mean_length", "rewards/spaces_reward/mean"}),
    ("ppo", {"loss", "grad_norm", "reward", "accuracy", "kl", "policy_loss", "value_loss", "explained_variance",
             "values/mean", "returns/mean", "advantages/std", "approx_kl"})])
def test_the_metrics_of_every_step_are_equal(runs, stage, columns):
    one, two = (RunDirectory(folder / stage).metrics() for folder in runs[:2])
    assert columns <= set(one.columns) and list(one.columns) == list(two.columns)
    assert len(one) == len(two) == process_runs.STEPS, "only the first process writes"
    for name in set(one.columns) - set(TIMING_COLUMNS) - WEIGHED[stage]:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)
    if stage != "sft":
        assert (one["reward"] > 0).all() and (one["grad_norm"] > 0).all(), "there was something to learn"


@pytest.mark.parametrize("stage", ["sft", "grpo", "ppo"])
def test_the_trained_weights_are_equal(runs, stage):
    one, first, second = (torch.load(path)["weights"] for path in (
        runs[0] / f"{stage}.0.pt", runs[1] / f"{stage}.0.pt", runs[1] / f"{stage}.1.pt"))
    start = load_model("tiny").state_dict()
    assert all(torch.equal(weight, second[name]) for name, weight in first.items()), "the processes have stayed in step"
    assert any(not torch.allclose(weight, one[name], atol=1e-4) for name, weight in start.items())
    for name, weight in one.items():
        torch.testing.assert_close(first[name], weight, atol=2e-5, rtol=1e-3, msg=name)
    saved = load_model(runs[1] / stage / "model").state_dict()
    assert all(torch.equal(weight, first[name]) for name, weight in saved.items())


def test_the_processes_sample_with_different_seeds(runs):
    """The same seed would give the two halves of a group the same completions."""
    seeds = [torch.load(runs[1] / f"grpo.{rank}.pt")["seed"] for rank in (0, 1)]
    assert seeds[0] != seeds[1]


def test_completions_and_progress_come_from_the_first_process_only(runs):
    one, two = (RunDirectory(folder / "grpo").completions() for folder in runs[:2])
    mine = one.groupby("step").head(process_runs.ROWS // 2).reset_index(drop=True)
    rounded = ["reward", "rewards", "advantage", "tokens"]  # sums over processes differ in the last digits
    assert mine.drop(columns=rounded).equals(two.drop(columns=rounded))
    np.testing.assert_allclose(mine["reward"], two["reward"])
    np.testing.assert_allclose(mine["advantage"], two["advantage"], rtol=0.01, atol=1e-3)
    assert [tokens["text"] for tokens in mine["tokens"]] == [tokens["text"] for tokens in two["tokens"]]
    for stage in ("SFT", "GRPO", "PPO"):
        assert runs[2].count(f"{stage}:   0%") == 1, runs[2]
