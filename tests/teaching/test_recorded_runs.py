"""The recorded runs of notebook 09 are complete, say nothing about a machine, and each shows its problem."""

import re
from types import SimpleNamespace

import pytest
import record_runs
import torch

from lab_utils.runs import RunDirectory
from lab_utils.teaching.diagnosis import PROBLEMS, what_was_changed

RECORDINGS, RECORDED = record_runs.RECORDINGS, record_runs.SHIPPED

every_run = pytest.mark.parametrize("name", RECORDINGS)


def run_of(name: str) -> RunDirectory:
    return RunDirectory(RECORDED / name)


@every_run
def test_it_reads_like_any_run_directory(name):
    run = run_of(name)
    metrics, completions = run.metrics(), run.completions()
    assert list(metrics["step"]) == list(range(1, record_runs.STEPS + 1))
    assert completions["step"].nunique() >= 6 and completions.groupby("step").size().eq(8).all()
    assert list(completions.columns) == ["step", "question", "gold", "completion", "extracted", "correct", "reward",
                                         "rewards", "advantage"]
    assert run.environment()["packages"]["trl"]


@every_run
def test_only_what_the_script_says_was_changed(name):
    recording, changes = RECORDINGS[name], what_was_changed(run_of(name), run_of("healthy"))
    assert set(re.findall(r"^(\w+\.\w+): ", changes, re.M)) == set(recording.settings)
    functions = [*(recording.reward_funcs or ()), *([record_runs.stale_rollout] if recording.stale_sampler else ())]
    own = {function.__name__ for function in functions if function.__module__ == "record_runs"}
    assert set(re.findall(r"^def (\w+)", changes, re.M)) == own
    assert bool(recording.settings) + bool(own) == (name != "healthy"), "one change each"


@every_run
def test_it_says_nothing_about_the_machine(name):
    for file in run_of(name).path.iterdir():
        assert not re.search(r"""(^|[\s"'=:])(/\w+/|~/|[A-Z]:\\)""", file.read_text(encoding="utf-8")), file
    assert set(run_of(name).environment()) == {"python", "packages"}


@every_run
def test_its_metrics_show_its_problem_and_no_other(name):
    metrics, healthy = run_of(name).metrics(), run_of("healthy").metrics()
    seen = [shown for shown, problem in PROBLEMS.items() if problem.is_seen(metrics, healthy)]
    assert seen == ([RECORDINGS[name].problem] if RECORDINGS[name].problem else [])


# The script that records them


def test_the_stale_sampler_samples_with_the_first_weights_and_training_keeps_its_own(monkeypatch):
    model = torch.nn.Linear(1, 1)
    trainer = SimpleNamespace(model=model, accelerator=SimpleNamespace(unwrap_model=lambda model: model))
    monkeypatch.setattr(record_runs, "rollout", lambda prompts, trainer: trainer.model.weight.item())
    sampler, first = record_runs.stale_rollout(), model.weight.item()
    for step in range(3):
        torch.nn.init.constant_(model.weight, first + step)
        assert sampler(["prompt"], trainer) == first
        assert model.weight.item() == pytest.approx(first + step)


def test_the_rewards_of_the_recipe_and_of_the_runs_with_a_problem():
    good = "<think>9 * 5 = 45 yes</think><answer>9 * 5</answer>"
    assert record_runs.rewards.format_reward([good]) == [1.0] and record_runs.format_reward([good]) == [0.0]
    assert record_runs.style_reward([good, good.replace("*", "+"), "9 * 5 <answer>9 + 5</answer>"]) == [1.0, 0.0, 0.0]
