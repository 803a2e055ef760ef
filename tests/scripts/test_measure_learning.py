"""Tests of scripts/measure_learning.py and of the runs that notebooks and it share."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import measure_learning
import pytest

from lab_utils.config import ConfigError, load
from lab_utils.models import export_model
from lab_utils.runs import RunDirectory
from lab_utils.training import stages


@pytest.fixture
def trained(monkeypatch):
    """Replaces training by a note of what would have been trained: (stage, start model)."""
    calls = []

    def train(stage):
        def note(config, path, model=None, resume=False):
            assert resume, "an interrupted run goes on"
            calls.append((stage, Path(model).parts[-2:] if Path(model).is_absolute() else model))
            export_model("tiny", RunDirectory(path).model_dir, load("countdown-grpo", "smoke").model)

        return note

    monkeypatch.setattr(stages, "TRAIN", {stage: train(stage) for stage in stages.TRAIN})
    return calls


def test_a_missing_stage_is_trained_after_those_before_it_and_only_once(trained, tmp_path, capsys):
    config = load("countdown-grpo", "smoke")
    for _ in range(2):
        run = stages.finished_run(config, tmp_path, "grpo")
        assert run.path == tmp_path / "grpo"
    assert trained == [("sft", "tiny"), ("grpo", ("sft", "model"))]
    assert str(tmp_path / "sft") in capsys.readouterr().out


def test_a_recipe_without_warm_up_starts_from_its_own_model(trained, tmp_path):
    config = load("gsm8k-grpo", "a100")
    assert stages.start_model(config, tmp_path, "grpo") == "Qwen/Qwen2.5-0.5B-Instruct"
    assert trained == []


@pytest.mark.component
@pytest.mark.parametrize("recipe", ["countdown-grpo", "countdown-ppo"])
def test_a_seed_is_measured_with_its_controls_and_not_done_twice(recipe, tmp_path, capsys):
    arguments = ["--recipe", recipe, "--hardware", "smoke", "--seeds", "3", "--controls", "--output-dir", str(tmp_path),
                 "--set", "task.test_limit=4"]
    measure_learning.main(arguments)
    path = tmp_path / f"learning-{recipe}.json"
    rows = json.loads(path.read_text())["rows"]
    method = recipe.split("-")[1].upper()
    assert [row["model"] for row in rows] == ["SFT", method, "random reward", "extra SFT"]
    assert all(row["seed"] == 3 and row["steps"] >= 1 and 0 <= row["accuracy"] <= 1 for row in rows)
    assert rows[0]["difference"] is None and rows[1]["difference_low"] <= rows[1]["difference_high"]
    random_run = RunDirectory(tmp_path / "countdown" / "seed-3" / f"{method.lower()}-random").metrics()
    assert "rewards/random_reward/mean" in random_run and "rewards/equation_reward/mean" not in random_run

    models = sorted(tmp_path.glob("countdown/*/*/model/model.safetensors"))
    before = [model.stat().st_mtime_ns for model in models]
    measure_learning.main(arguments)
    assert [model.stat().st_mtime_ns for model in models] == before and len(models) == 4
    assert json.loads(path.read_text())["rows"] == rows


@pytest.mark.component
def test_what_was_made_with_other_settings_is_not_reported_under_these(tmp_path):
    run = RunDirectory.create(load("countdown-grpo", "smoke"), tmp_path / "sft")
    export_model("tiny", run.model_dir, run.config().model)
    assert measure_learning.is_there(run, "sft", load("countdown-grpo", "smoke", {"grpo.beta": 0.5}))
    with pytest.raises(ConfigError, match=r"trained with other settings \(seed, sft\).*another --output-dir"):
        measure_learning.is_there(run, "sft", load("countdown-grpo", "smoke", {"seed": 1, "sft.max_steps": 9}))
    weights = run.model_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert not run.has_model and not measure_learning.is_there(run, "sft", load("countdown-grpo", "smoke", {"seed": 1}))

    made = []
    measured = partial(measure_learning.evaluated, run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_learning, "evaluate_run", lambda run, config: made.append(config.task.test_limit))
        settings = {"num_samples": 2, "max_new_tokens": 192, "temperature": 1.0, "top_p": 1.0, "seed": 0}
        there = SimpleNamespace(settings=settings, examples=[None] * 16)
        patch.setattr(RunDirectory, "evaluation", lambda self: there)
        run.evaluation_path.touch()
        assert measured(load("countdown-grpo", "smoke")) is there and made == []
        measured(load("countdown-grpo", "smoke", {"task.test_limit": 8}))
        measured(load("countdown-grpo", "smoke", {"evaluation.temperature": 0.5}))
        assert made == [8, 16]


@pytest.mark.component
def test_ppo_gets_as_many_generated_tokens_as_grpo_has_used(tmp_path, capsys):
    measure_learning.main([
        "--recipe", "countdown-ppo", "--hardware", "smoke", "--seeds", "3", "--tokens-of", "grpo", "--output-dir",
        str(tmp_path), "--set", "task.test_limit=4", "--set", "grpo.max_steps=5", "--set", "ppo.num_iterations=2"])
    content = json.loads((tmp_path / "learning-countdown-ppo.json").read_text())
    assert [row["model"] for row in content["rows"]] == ["SFT", "GRPO", "PPO"]
    tokens = {curve["model"]: curve["tokens"] for curve in content["curves"]}
    assert len(tokens["GRPO"]) == 5
    longest_rollout = max(b - a for curve in tokens.values() for a, b in zip([0, *curve], curve, strict=False))
    assert abs(tokens["PPO"][-1] - tokens["GRPO"][-1]) <= longest_rollout / 2
    run = RunDirectory(tmp_path / "countdown" / "seed-3" / "ppo-equal-tokens")
    assert len(run.metrics()) == 2 * len(tokens["PPO"]), "both epochs of the last rollout are trained"
    runs = tmp_path / "countdown" / "seed-3"
    asked = [RunDirectory(runs / name).completions().query("step == 1")["question"].tolist()
             for name in ("grpo", "ppo-equal-tokens")]
    assert asked[0] == asked[1], "the same prompts"
    (comparison,) = content["head_to_head"]
    assert comparison["models"] == "PPO less GRPO"
    assert comparison["low"] <= comparison["difference"] <= comparison["high"]


def test_a_recipe_without_sft_cannot_be_measured(tmp_path):
    with pytest.raises(ConfigError, match=r"stages=\[sft,grpo\]"):
        measure_learning.main(["--recipe", "gsm8k-grpo", "--hardware", "a100", "--output-dir", str(tmp_path)])


def test_a_method_is_not_compared_with_itself(tmp_path):
    with pytest.raises(ConfigError, match="compares countdown-grpo with itself"):
        measure_learning.main(["--recipe", "countdown-grpo", "--hardware", "smoke", "--tokens-of", "grpo",
                               "--output-dir", str(tmp_path)])


def test_controls_and_an_equal_budget_exclude_each_other(tmp_path, capsys):
    with pytest.raises(SystemExit):
        measure_learning.main(["--controls", "--tokens-of", "grpo", "--output-dir", str(tmp_path)])
    assert "not allowed with" in capsys.readouterr().err
