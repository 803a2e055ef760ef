"""The benchmark of GRPO on the CPU at tier smoke: three ways do the same work, and every part is reported."""

import io
import json

import pytest
import torch
from transformers import GenerationMixin

from lab_utils import WorkshopError
from lab_utils.machine import cpu_benchmark
from lab_utils.machine.cpu_benchmark import METHODS, PARTS, Case
from lab_utils.models import load_model

pytestmark = pytest.mark.component


class WorkerHere:
    """A worker in this process, which saves the imports: all steps are taken first, and then reported in turn."""

    cases: list[Case] = []

    def __init__(self, case: Case):
        answers = io.StringIO()
        cpu_benchmark.work(case, io.StringIO("\n" * case.steps), answers)
        self.rows = iter(answers.getvalue().splitlines())
        self.case = case
        self.cases.append(case)

    def step(self) -> dict:
        return {"method": self.case.method, **json.loads(next(self.rows))}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def test_three_ways_are_measured_and_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_benchmark, "Worker", WorkerHere)
    monkeypatch.setattr(cpu_benchmark, "GAIN", -1.0)  # nothing is learned in two steps
    results = cpu_benchmark.benchmark(tmp_path, list(cpu_benchmark.SECTIONS), model="tiny", pairs=1, seeds=[1],
                                      to_the_end=False, quick=True)
    steps = results["steps"]["rows"]
    assert [(row["pair"], row["method"]) for row in steps] == [
        (0, "this project"), (0, "TRL"), (0, "plain loop"), (1, "TRL"), (1, "plain loop"), (1, "this project")]
    for row in steps:
        assert sum(row[f"{part}_seconds"] for part in PARTS) == pytest.approx(row["seconds"])
        assert all(row[f"{part}_seconds"] > 0 for part in PARTS) and row["cpu_seconds"] > 0
        assert 16 <= row["sampled_tokens"] <= 16 * 32 and row["updated_tokens"] > row["sampled_tokens"]
    learning = results["learning"]["rows"]
    assert {row["method"] for row in learning} == set(METHODS) and len({row["curve"][0][1] for row in learning}) == 1
    assert all(row["seconds_to_gain"] <= row["seconds"] for row in learning)
    assert len(results["scaling"]["rows"]) == 9 and results["ceiling"]["rows"]["1"] > 0
    assert json.loads((tmp_path / "cpu_benchmark.json").read_text()) == results
    text = (tmp_path / "cpu_benchmark.md").read_text()
    assert "| this project / TRL |" in text and "| hidden size | 64 |" in text and "GFLOP/s with 1 thread" in text
    assert (tmp_path / "cpu_benchmark.png").is_file()


def test_a_worker_is_a_process_that_takes_a_step_when_asked():
    with cpu_benchmark.Worker(Case("plain loop", "tiny", "smoke", steps=1)) as worker:
        assert worker.step()["step"] == 1
        with pytest.raises(WorkshopError, match="plain loop ended"):
            worker.step()


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_ends_when_no_more_steps_are_wanted(method):
    with pytest.raises(SystemExit):
        cpu_benchmark.work(Case(method, "tiny", "smoke", steps=1), io.StringIO(), io.StringIO())


def test_with_the_same_completions_the_plain_loop_and_trl_end_at_the_same_weights(monkeypatch):
    generate, end, weights = GenerationMixin.generate, cpu_benchmark.StepClock.end, []

    def same_completions(self, *args, **kwargs):
        torch.manual_seed(0)
        return generate(self, *args, **kwargs)

    def remember(clock):
        weights.append(torch.cat([weight.detach().flatten() for weight in clock.model.parameters()]))
        return end(clock)

    monkeypatch.setattr(GenerationMixin, "generate", same_completions)
    monkeypatch.setattr(cpu_benchmark.StepClock, "end", remember)
    start = torch.cat([weight.flatten() for weight in load_model("tiny").parameters()])
    settings = ("grpo.max_completion_length=64", "rewards={format_reward: 0.1, conciseness_reward: 1.0}")
    for method in ("TRL", "plain loop"):
        WorkerHere(Case(method, "tiny", "smoke", steps=1, settings=settings))
    trl, plain = (found - start for found in weights)
    assert trl.norm() > 0 and (plain - trl).norm() < 1e-2 * trl.norm()
