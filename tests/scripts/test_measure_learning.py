"""scripts/measure_learning.py: the runs of a seed and their controls; and the stages that notebooks share."""

import json
from pathlib import Path
from types import SimpleNamespace

import measure_learning
import pytest

from lab_utils import rewards
from lab_utils.config import ConfigError, load
from lab_utils.models import export_model
from lab_utils.runs import RunDirectory
from lab_utils.training import stages


@pytest.fixture
def trained(monkeypatch):
    """Replace training by a note of what would have been trained: (stage, start model)."""
    calls = []

    def train(stage):
        def note(config, path, model=None, resume=False):
            assert resume, "an interrupted run is resumed"
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


def test_a_reward_whose_value_depends_on_correctness_is_declared_to_do_so():
    pairs = [  # a correct completion of each response format, and a wrong one that differs in nothing else
        ("<reasoning>\n48 + 24 = 72\n</reasoning>\n<answer>\n{}\n</answer>", "72", "73"),
        ("<think>48 + 24 = 72</think>\n<answer>{}</answer>", "72", "73"),
        ("48 + 24 = 72\n#### {}", "72", "73"),
        ("<think>48 + 24 = 72</think>\n<answer>{}</answer>", "48 + 24", "48 - 24"),
    ]
    columns = {"answer": ["72"] * 2, "nums": [[48, 24]] * 2, "target": [72] * 2, "completion_ids": [[0] * 20] * 2}
    depends = set()
    for name in set(rewards.__all__) - {"CORRECTNESS", "combine_rewards"}:
        values = [getattr(rewards, name)([text.format(correct), text.format(wrong)], **columns)
                  for text, correct, wrong in pairs]
        if any(correct != wrong for correct, wrong in values):
            depends.add(name)
    assert depends == set(rewards.CORRECTNESS)


@pytest.mark.component
def test_a_seed_is_measured_with_its_controls_and_not_trained_twice(tmp_path):
    arguments = ["--recipe", "countdown-ppo", "--hardware", "smoke", "--seeds", "3", "--controls", "--output-dir",
                 str(tmp_path), "--set", "task.test_limit=4"]
    measure_learning.main(arguments)
    path = tmp_path / "learning-countdown-ppo.json"
    found = json.loads(path.read_text())
    rows = found["rows"]
    assert [row["model"] for row in rows] == ["SFT", "PPO", "random reward", "extra SFT", "base"]
    assert all(row["seed"] == 3 and row["steps"] >= (row["model"] != "base") and 0 <= row["accuracy"] <= 1
               for row in rows)
    better = max(rows[0]["accuracy"], rows[-1]["accuracy"])
    assert found["gains"][0]["difference"] == pytest.approx(rows[1]["accuracy"] - better)
    assert rows[0]["difference"] is None and rows[1]["difference_low"] <= rows[1]["difference_high"]
    random_run = RunDirectory(tmp_path / "countdown" / "seed-3" / "ppo-random").metrics()
    assert "rewards/random_reward/mean" in random_run and "rewards/equation_reward/mean" not in random_run

    models = sorted(tmp_path.glob("countdown/*/*/model/model.safetensors"))
    before = [model.stat().st_mtime_ns for model in models]
    measure_learning.main(arguments)
    assert [model.stat().st_mtime_ns for model in models] == before and len(models) == 4
    assert json.loads(path.read_text())["rows"] == rows


@pytest.mark.component
def test_results_of_other_settings_are_not_reported_under_these(tmp_path, monkeypatch):
    run = RunDirectory.create(load("countdown-grpo", "smoke"), tmp_path / "sft")
    export_model("tiny", run.model_dir, run.config().model)
    others = {"grpo.beta": 0.5, "task.test_limit": 9}  # what SFT does not depend on
    assert measure_learning.finished(run, "sft", load("countdown-grpo", "smoke", others))
    with pytest.raises(ConfigError, match=r"trained with other settings \(seed, sft.max_steps\).*another --output-dir"):
        measure_learning.finished(run, "sft", load("countdown-grpo", "smoke", {"seed": 1, "sft.max_steps": 9}))
    weights = run.model_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert not measure_learning.finished(run, "sft", load("countdown-grpo", "smoke", {"seed": 1}))

    made = []
    monkeypatch.setattr(measure_learning, "evaluate_run", lambda run, config: made.append(config.task.test_limit))
    settings = {"num_samples": 2, "max_new_tokens": 64, "temperature": 0.8, "top_p": 1.0, "seed": 0}
    old = SimpleNamespace(settings=settings, examples=[None] * 16)
    monkeypatch.setattr(measure_learning.Evaluation, "load", lambda path: old)
    run.evaluation_path.touch()
    assert measure_learning.evaluated(run, load("countdown-grpo", "smoke")) is old and made == []
    for change in ({"task.test_limit": 8}, {"evaluation.temperature": 0.5}):
        measure_learning.evaluated(run, load("countdown-grpo", "smoke", change))
    assert made == [8, 16]


@pytest.mark.component
def test_ppo_gets_as_many_generated_tokens_as_grpo_has_used(tmp_path, capsys):
    measure_learning.main([
        "--recipe", "countdown-ppo", "--hardware", "smoke", "--seeds", "3", "--tokens-of", "grpo", "--output-dir",
        str(tmp_path), "--set", "task.test_limit=4", "--set", "grpo.max_steps=5", "--set", "ppo.num_iterations=2"])
    content = json.loads((tmp_path / "learning-countdown-ppo.json").read_text())
    assert [row["model"] for row in content["rows"]] == ["SFT", "GRPO", "PPO", "base"]
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
    assert comparison["models"] == "PPO − GRPO"
    assert comparison["low"] <= comparison["difference"] <= comparison["high"]


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"stages=\[sft,grpo\]"):
        measure_learning.main(["--recipe", "gsm8k-grpo", "--hardware", "a100", "--output-dir", str(tmp_path)])
    with pytest.raises(ConfigError, match="compares countdown-grpo with itself"):
        measure_learning.main(["--recipe", "countdown-grpo", "--hardware", "smoke", "--tokens-of", "grpo",
                               "--output-dir", str(tmp_path)])
