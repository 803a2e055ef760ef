"""The benchmark of GRPO on the CPU at tier smoke: three ways do the same work, and every part is reported."""

import json
import subprocess
import sys

import benchmark
import pytest
import torch
from transformers import GenerationMixin

from lab_utils import WorkshopError
from lab_utils.config import RunConfig, load
from lab_utils.machine import cpu_benchmark
from lab_utils.machine.cpu_benchmark import PARTS
from lab_utils.models import load_model

pytestmark = pytest.mark.component


def smoke(*settings: str) -> RunConfig:
    return load("countdown-grpo", "smoke", ["tracking.tensorboard=false", "grpo.max_completion_length=32", *settings])


def test_three_ways_are_measured_and_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_benchmark, "measure_alone", cpu_benchmark.measure)  # here, which saves the imports
    monkeypatch.setattr(cpu_benchmark, "PROBE_PROBLEMS", 4)
    monkeypatch.setattr(cpu_benchmark, "GAIN", -1.0)  # nothing is learned in two steps
    monkeypatch.setattr(cpu_benchmark, "SIZES", {"group size": [2], "completion length": [32], "hidden size": [64]})
    options = "--hardware smoke --set grpo.max_completion_length=32 --model tiny --pairs 2 --seeds 1 --output-dir"
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "cpu", *options.split(), str(tmp_path)])
    benchmark.main()
    results = json.loads((tmp_path / "cpu_benchmark.json").read_text())
    steps = results["steps"]["rows"]
    assert [(row["pair"], row["method"]) for row in steps] == [
        (0, "this project"), (0, "TRL"), (0, "plain loop"), (1, "TRL"), (1, "plain loop"), (1, "this project")]
    for row in steps:
        assert sum(row[part] for part in PARTS) == pytest.approx(row["step_seconds"])
        assert all(row[part] > 0 for part in PARTS) and row["share_of_ceiling"] > 0
        assert 16 <= row["sampled_tokens"] <= 16 * 32 and row["updated_tokens"] > row["sampled_tokens"]
    learning = results["learning"]["rows"]
    here = "this project"
    assert [row["method"] for row in learning] == [here, "TRL", here, "plain loop", here]
    assert len({row["curve"][0][1] for row in learning}) == 1
    medians = cpu_benchmark.by_method(learning, "learning", "seconds_to_gain").loc[1]
    assert medians[here] == sorted(row["seconds_to_gain"] for row in learning if row["method"] == here)[1]
    assert all(len(row["curve"]) == 2 and row["seconds_to_gain"] == row["curve"][1][0] for row in learning)
    assert len(results["scaling"]["rows"]) == 9
    text = (tmp_path / "cpu_benchmark.md").read_text()
    assert "| this project / TRL |" in text and "| hidden size | 64 | plain loop |" in text
    assert (tmp_path / "cpu_benchmark.png").is_file()


def test_a_run_is_a_process_whose_failure_is_reported(monkeypatch):
    config = smoke("model.name=tiny", "grpo.max_steps=1")
    assert cpu_benchmark.measure_alone("plain loop", config)["step_seconds"] > 0
    trace = "Traceback (most recent call last):\n  File ...\nKeyError: 'no way'\n\n"
    failed = subprocess.CompletedProcess([], 1, "", trace)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: failed)
    with pytest.raises(WorkshopError, match="no way failed: KeyError"):
        cpu_benchmark.measure_alone("no way", config)


def test_with_the_same_completions_the_plain_loop_and_trl_end_at_the_same_weights(monkeypatch):
    generate, end, weights = GenerationMixin.generate, cpu_benchmark.StepClock.on_step_end, []

    def same_completions(self, *args, **kwargs):
        torch.manual_seed(0)
        return generate(self, *args, **kwargs)

    def remember(clock, *event, **kwargs):
        weights.append(torch.cat([weight.detach().flatten() for weight in clock.model.parameters()]))
        end(clock, *event, **kwargs)

    monkeypatch.setattr(GenerationMixin, "generate", same_completions)
    monkeypatch.setattr(cpu_benchmark.StepClock, "on_step_end", remember)
    start = torch.cat([weight.flatten() for weight in load_model("tiny").parameters()])
    config = smoke("model.name=tiny", "grpo.max_steps=1", "grpo.warmup_ratio=0", "grpo.max_completion_length=64",
                   "rewards={format_reward: 0.1, conciseness_reward: 1.0}")
    for method in ("TRL", "plain loop"):
        cpu_benchmark.measure(method, config)
    trl, plain = (found - start for found in weights)
    assert trl.norm() > 0 and (plain - trl).norm() < 1e-2 * trl.norm()
