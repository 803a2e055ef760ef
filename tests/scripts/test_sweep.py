"""scripts/sweep.py: the search space, pruning, resuming, and questions of the test split that no trial has seen."""

import json
from types import SimpleNamespace

import pytest
import sweep
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lab_utils import WorkshopError
from lab_utils.config import ConfigError, load
from lab_utils.runs import RunDirectory
from lab_utils.tasks import load_task
from lab_utils.training.rl import TrainingDiverged


def test_ranges_and_choices_are_read():
    assert sweep.parse_search(["grpo.learning_rate=5e-5..5e-4:log", "grpo.beta=0.0..1", "grpo.num_iterations=1..4",
                               "grpo.scale_rewards=group,none", "rewards.format_reward=0,0.5"], "grpo") == {
        "grpo.learning_rate": FloatDistribution(5e-5, 5e-4, log=True),
        "grpo.beta": FloatDistribution(0.0, 1.0),
        "grpo.num_iterations": IntDistribution(1, 4),
        "grpo.scale_rewards": CategoricalDistribution(["group", "none"]),
        "rewards.format_reward": CategoricalDistribution([0, 0.5]),
    }


@pytest.mark.parametrize("text", ["grpo.beta", "grpo.beta=0.1", "grpo.beta=0..0.1:log", "grpo.beta=0.2..0.1",
                                  "grpo.beta=a..b", "grpo.beta=0.1..", "grpo.loss_type=[a", "grpo.beta=0.1..0.1"])
def test_a_range_that_cannot_be_searched_is_refused_with_the_syntax(text):
    with pytest.raises(ConfigError, match="(?s)--search grpo.*cannot be searched.*KEY=LOW..HIGH:log"):
        sweep.parse_search([text], "grpo")


def test_what_the_common_start_model_depends_on_cannot_be_searched():
    with pytest.raises(ConfigError, match=r"sft.max_steps=1..9: all trials start from one model.*grpo.KEY"):
        sweep.parse_search(["sft.max_steps=1..9"], "grpo")


@pytest.mark.parametrize("recipe", ["countdown-grpo", "countdown-ppo", "gsm8k-grpo"])
@pytest.mark.parametrize("tier", ["cpu", "smoke", "a100"])
def test_the_default_search_is_valid_and_has_the_recipes_own_values(recipe, tier):
    config = load(recipe, tier)
    space = sweep.parse_search(sweep.default_search(config), config.stages[-1])
    own = sweep.own_values(config, space)
    assert load(recipe, tier, own).model_dump() == config.model_dump() and len(own) >= 3
    space["grpo.beta"] = FloatDistribution(0.5, 1.0)
    assert sweep.own_values(config, space) is None


def test_an_end_that_the_run_refuses_is_an_error_before_the_search(tmp_path):
    with pytest.raises(ConfigError, match="grpo.num_generations = 3"):
        sweep.main(["--hardware", "smoke", "--search", "grpo.num_generations=4,3", "--output-dir", str(tmp_path / "a")])
    with pytest.raises(ConfigError, match="end with sft"):
        sweep.main(["--hardware", "smoke", "--set", "stages=[sft]", "--output-dir", str(tmp_path / "a")])
    assert not (tmp_path / "a").exists()


def test_validation_questions_come_from_the_training_rows_in_the_columns_of_the_data(tmp_path):
    rows = [{"frage": f"What is {n} + {n}?", "loesung": 2 * n, "level": n % 3} for n in range(60)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"task.name": "qa", "task.response_format": "think", "task.source": str(tmp_path / "mine.jsonl"),
              "task.columns": {"question": "frage", "answer": "loesung"}, "rewards": {"equation_reward": None}}
    config = load("countdown-grpo", "smoke", recipe)
    asked = set(load_task(config.task).dataset("test", None, config.task.source)["question"])

    found = load("countdown-grpo", "smoke", {**recipe, **sweep.without_test_questions(config, tmp_path / "validation")})
    splits = {split: load_task(found.task).dataset(split, None, found.task.source) for split in ("train", "test")}
    questions = {split: set(rows["question"]) for split, rows in splits.items()}
    assert len(questions["test"]) == found.task.test_limit >= 10
    assert len(questions["train"] | questions["test"] | asked) == sum(map(len, (*questions.values(), asked))) == 60
    assert splits["test"][0].keys() == {"prompt", "question", "answer"}


def test_too_few_rows_for_validation_questions_are_an_error(tmp_path):
    (tmp_path / "few.jsonl").write_text("".join(f'{{"question": "q{n}", "answer": "{n}"}}\n' for n in range(9)))
    config = load("countdown-grpo", "smoke", {"task.name": "qa", "task.source": str(tmp_path / "few.jsonl"),
                                              "rewards.equation_reward": None})
    with pytest.warns(UserWarning), pytest.raises(ConfigError, match="9 training rows"):
        sweep.without_test_questions(config, tmp_path / "validation")


@pytest.fixture
def pretended(monkeypatch):
    """Replace training and evaluation: a trial with a higher beta is better, and what was trained is noted."""
    trained = []

    def train(path, stage, config, model, callbacks=()):
        trained.append(path.name)
        for step in (1, 5):
            for callback in callbacks:
                callback.on_log(None, SimpleNamespace(global_step=step), None, {"probe/accuracy": config.grpo.beta})
        if config.grpo.learning_rate > 0.5:
            raise TrainingDiverged("Training diverged")
        if "stop" in trained:
            raise KeyboardInterrupt
        return SimpleNamespace(checkpoints_dir=path / "checkpoints")

    monkeypatch.setattr(sweep, "trained", train)
    monkeypatch.setattr(sweep, "evaluated", lambda run, config: SimpleNamespace(accuracy=config.grpo.beta))
    return trained


def searched(folder, trials, *space):
    arguments = sweep.parse_arguments(["--hardware", "smoke", "--trials", str(trials), "--output-dir", str(folder)])
    space = sweep.parse_search(space or ["grpo.beta=0.0..1.0", "grpo.learning_rate=1e-5..1e-3:log"], "grpo")
    study = sweep.open_study(folder / "study.db", {"recipe": "countdown-grpo"}, {"grpo.beta": 0.9})
    sweep.search(study, space, "tiny", {}, arguments)
    return [(trial.state.name, trial.params, trial.value) for trial in study.trials]


def test_a_bad_trial_is_pruned_or_has_failed_and_the_search_continues(pretended, tmp_path):
    trials = searched(tmp_path, 12)
    assert [state for state, _, _ in trials[:5]] == ["COMPLETE"] * 5
    assert trials[0][1]["grpo.beta"] == trials[0][2] == 0.9, "the first trial has the values that were given"
    pruned = [value for state, _, value in trials if state == "PRUNED"]
    assert pruned and max(pruned) < max(value for state, _, value in trials if state == "COMPLETE")
    assert {state for state, _, _ in searched(tmp_path / "..", 3, "grpo.learning_rate=0.6..0.9")} == {"FAIL"}


def test_an_interrupted_search_makes_the_trials_that_it_would_have_made(pretended, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = searched(tmp_path / "a", 8)
    searched(tmp_path / "b", 3)
    pretended.append("stop")
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "b", 8)
    interrupted = pretended[-1]
    pretended.clear()
    with pytest.warns(UserWarning, match="already reported"):  # the steps before the interruption
        assert searched(tmp_path / "b", 8) == whole
    assert pretended[0] == interrupted == "003"


def test_another_search_and_a_damaged_study_are_refused(tmp_path):
    sweep.open_study(tmp_path / "study.db", {"recipe": "countdown-grpo", "search": ["a"]}, None)
    with pytest.raises(ConfigError, match=r"search = \['a'\], not \['b'\].*another --output-dir"):
        sweep.open_study(tmp_path / "study.db", {"recipe": "countdown-grpo", "search": ["b"]}, None)
    (tmp_path / "study.db").write_text("no database" * 100)
    with pytest.raises(WorkshopError, match="study.db is damaged or not a study"):
        sweep.open_study(tmp_path / "study.db", {"recipe": "countdown-grpo"}, None)


@pytest.mark.component
def test_the_best_setting_is_compared_on_fresh_seeds_and_the_same_command_repeats_nothing(tmp_path, capsys):
    arguments = ["--recipe", "countdown-grpo", "--hardware", "smoke", "--trials", "2", "--fresh-seeds", "1",
                 "--search", "grpo.learning_rate=1e-5..1e-2:log", "--set", "task.test_limit=4", "--set",
                 "grpo.max_steps=1", "--output-dir", str(tmp_path)]
    sweep.main(arguments)
    result = json.loads((tmp_path / "sweep.json").read_text())
    assert [trial["state"] for trial in result["trials"]] == ["complete"] * 2
    assert result["trials"][0]["settings"] == {"grpo.learning_rate": load("countdown-grpo", "smoke").grpo.learning_rate}
    assert list(result["trials"][0]["probe"]) == ["1"] and result["test_questions"] == 4
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    runs = [RunDirectory(path.parent) for path in sorted(tmp_path.glob("**/config.yaml"))]
    assert {run.config().seed for run in runs if "fresh" in run.path.parts} == {1}
    assert {run.config().seed for run in runs if "trials" in run.path.parts} == {0}
    assert {run.config().task.source for run in runs} == {str(tmp_path / "validation")}, "none trains on other rows"

    capsys.readouterr()
    sweep.main(arguments)
    assert "steps" not in capsys.readouterr().err and json.loads((tmp_path / "sweep.json").read_text()) == result
