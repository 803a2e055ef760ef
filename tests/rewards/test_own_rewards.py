"""Rewards and tasks in files of the user's own: references, checks before training, copies in the run directory."""

import time

import pytest
import yaml

from lab_utils import REPOSITORY, WorkshopError, exit_status, rewards
from lab_utils.config import ConfigError, load, read_config
from lab_utils.rewards import __main__ as rewards_command
from lab_utils.rewards import own
from lab_utils.rewards.own import try_own_code
from lab_utils.runs import RunDirectory
from lab_utils.tasks import load_task

RECIPE = """
task: {name: TASK, response_format: think, source: data.jsonl}
model: {name: Qwen/Qwen2.5-0.5B-Instruct}
stages: [sft, grpo]
rewards: {accuracy_reward: 1.0, my_rewards.py:brevity: 0.2}
"""
BREVITY = """
from lab_utils.tasks import completion_text

def brevity(completions, **columns):
    return [1 / (1 + len(completion_text(completion))) for completion in completions]
"""
TASK = """
from lab_utils.tasks import Task

class Close(Task):
    def is_correct(self, completion, row):
        return self.extract(completion) in (row["answer"], "about " + row["answer"])
"""


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a recipe, rewards, a task and data."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "recipe.yaml").write_text(RECIPE.replace("TASK", "my_task.py"))
    (mine / "my_rewards.py").write_text(BREVITY)
    (mine / "my_task.py").write_text(TASK)
    (mine / "data.jsonl").write_text("".join(f'{{"question": "{i}?", "answer": {i}}}\n' for i in range(20)))
    return mine


def tried(folder, reward: str | None = None, task: str | None = None, overrides=()) -> list[str]:
    """Return what is printed about the user's own code, with the given text in its files."""
    if reward is not None:
        (folder / "my_rewards.py").write_text(reward)
    if task is not None:
        (folder / "my_task.py").write_text(task)
    config = load(folder / "recipe.yaml", "smoke", overrides)
    task = load_task(config.task)
    return try_own_code(config, task, list(task.dataset("train", None, config.task.source)))


def test_a_recipe_finds_its_files_from_any_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load("mine/recipe.yaml", "cpu")
    assert config.task.name == str(folder / "my_task.py")
    assert list(config.rewards)[1] == f"{folder}/my_rewards.py:brevity"
    assert config.task.source == str(folder / "data.jsonl"), "the tier's synthetic problems do not replace own data"
    task = load_task(config.task)
    assert (task.name, task.own) == ("my_task", True)
    assert task.is_correct("<answer>about 7</answer>", {"answer": "7"})
    assert task.prompt({"question": "7?"})[-1]["content"] == "7?"
    found = tried(folder)
    assert found[0].startswith("my_task.py: 18 of 18 demonstrations are correct")
    assert found[1].startswith("my_rewards.py:brevity: 0.0001 to 1 on 16 sample completions")


def test_an_override_counts_from_the_current_folder(folder, tmp_path, monkeypatch):
    (tmp_path / "other.py").write_text(BREVITY.replace("brevity", "short"))
    monkeypatch.chdir(tmp_path)
    config = load("mine/recipe.yaml", "cpu", ["rewards.other.py:short=0.5", "rewards.mine/my_rewards.py:brevity=null"])
    assert config.rewards == {"accuracy_reward": 1.0, f"{tmp_path}/other.py:short": 0.5}


def test_the_run_keeps_copies_and_notices_changes(folder, tmp_path):
    config = load(folder / "recipe.yaml", "smoke")
    run = RunDirectory.create(config, tmp_path / "run")
    written = run.config_path.read_text()
    assert "code/my_rewards.py:brevity" in written and f"{folder}/my" not in written
    assert run.changed_settings(config) == []
    (folder / "my_rewards.py").write_text(BREVITY + "# changed\n")
    (folder / "my_task.py").unlink()
    again = read_config(run.config_path)
    assert load_task(again.task).name == "my_task", "from the run's own copy"
    (folder / "my_task.py").write_text(TASK)
    assert run.changed_settings(load(folder / "recipe.yaml", "smoke"), "grpo") == ["rewards.my_rewards.py"]
    assert run.changed_settings(again) == []


@pytest.mark.parametrize("reward, parts", [
    ("def brevity(completions, **columns):\n    return [0.5]", ["returned 1 values for 16 completions"]),
    ("def brevity(completions, **columns):\n    return 0.5", ["returned 0.5, not a list"]),
    ("def brevity(completions, **columns):\n    return ['1'] * len(completions)", ["returned '1'", "return 0.0"]),
    ("def brevity(completions, **columns):\n    return [1e999] * len(completions)", ["inf", "not a finite number"]),
    ("def brevity(completions, **columns):\n    return [None] * len(completions)", ["None", "not a finite number"]),
    ("def brevity(completions, **columns):\n    pass", ["returned None, not a list"]),
    ("def brevity(completions, **columns):\n\n    return [1 / 0]", ["my_rewards.py, line 3", "ZeroDivisionError"]),
    ("def brevity(completions):\n    return [1.0]", ["TypeError", "answer", "end the parameters with **columns"]),
    ("def brevity(completions, level, **columns):\n    return [1.0]", ["'level'", "--set task.columns.NAME=COLUMN"]),
    ("import sys\ndef brevity(completions, **columns):\n    sys.exit()", ["line 3", "SystemExit"]),
])
def test_a_reward_that_cannot_work_is_found_before_training(folder, reward, parts):
    with pytest.raises(WorkshopError) as caught:
        tried(folder, reward)
    message = str(caught.value)
    assert [part for part in ["my_rewards.py:brevity", *parts] if part not in message] == [], message


def test_a_reward_that_fails_later_names_its_line(folder):
    (folder / "my_rewards.py").write_text("def brevity(completions, **columns):\n    raise ValueError('offline')")
    config = load(folder / "recipe.yaml", "smoke")
    rows = list(load_task(config.task).dataset("train", 1, config.task.source))
    with pytest.raises(WorkshopError, match=r"'brevity' \(my_rewards.py, line 2\) raised ValueError: offline"):
        own.reward_values(config, rows, ["4"], [[1]])


def test_an_endless_reward_is_stopped(folder, monkeypatch):
    monkeypatch.setattr(own, "LONGEST_SECONDS", 0.05)
    with pytest.raises(WorkshopError, match="brevity takes longer than 0.05 s .* endless loop"):
        tried(folder, "import time\ndef brevity(completions, **columns):\n    time.sleep(0.5)")


def test_equal_values_are_noted(folder):
    lines = tried(folder, "def brevity(completions, **columns):\n    return [len(c) for c in completions]")
    assert "They are all equal" in lines[1] and "completion_text" in lines[1]


@pytest.mark.parametrize("text, parts", [
    ("def brevity(:", ["line 1", "SyntaxError"]), ("\nimport nothing_like_it", ["line 2", "ModuleNotFoundError"]),
    ("x = 1\nx / 0", ["line 2", "ZeroDivisionError"]), ("import sys\nsys.exit(3)", ["line 2", "SystemExit"]),
    ("a = '\0'", ["SyntaxError", "null bytes"]), ("brevity = 5", ["has no function 'brevity'"]),
    ("def brevty(**c): pass", ["has no function 'brevity'. Did you mean brevty?", "It has: brevty"]),
])
def test_a_file_that_cannot_be_imported_is_named_with_its_line(folder, text, parts):
    with pytest.raises(ConfigError) as caught:
        tried(folder, text)
    assert [part for part in ["my_rewards.py", *parts] if part not in str(caught.value)] == [], caught.value


def test_a_file_is_read_again_after_a_change_within_the_same_second(folder):
    for value in (0.25, 0.75):
        lines = tried(folder, f"def brevity(completions, **columns):\n    return [{value}] * len(completions)")
        assert f"{value} to {value} " in lines[1]
    assert not list(folder.glob("__pycache__"))


@pytest.mark.parametrize("task, parts", [
    ("x = 1", ["my_task.py must define one subclass of lab_utils.tasks.Task, and it has 0"]),
    (TASK + TASK.replace("Close", "Other"), ["it has 2 (Close, Other)", "my_task.py:NAME"]),
    (TASK.replace("return", "return 1 or"), ["is_correct returned 1 for the completion", "return bool"]),
    (TASK.replace('row["answer"]', 'row["level"]'), ["KeyError: 'level'. The columns are prompt, question, answer. "]),
    (TASK.replace('return', 'return row["answer"] == "19" and ">0<" in completion and 1 / 0 or'), [
        "is_correct for the question '19?', gold answer '19', (my_task.py, line 6) raised ZeroDivisionError"]),
    (TASK + "    def __init__(self):\n        pass", ["__init__() takes 1", "super().__init__(*arguments)"]),
    (TASK + "    def extract(self, completion):\n        return None", ["0 of 18 demonstrations are correct", "SFT"]),
    (TASK + "    def prompt(self, row):\n        return [{'user': '4?'}]", ["line 1: Close", "prompt must return"]),
    (TASK + "    def system_prompt(self):\n        return 'Answer.'", ["prompt must return", "Close.system_prompt"]),
])
def test_a_task_that_cannot_work_is_found_before_training(folder, task, parts):
    with pytest.raises(WorkshopError) as caught:
        tried(folder, task=task)
    assert [part for part in parts if part not in str(caught.value)] == [], caught.value


def test_what_looks_wrong_is_noted(folder):
    text = (folder / "data.jsonl").read_text()
    wrong = '{"question": "8 + 8?", "answer": 16, "completion": "<think>8 + 8</think><answer>17</answer>"}\n'
    (folder / "data.jsonl").write_text(wrong + text)
    easy = tried(folder, task=TASK.replace("return", 'return completion == "banana" or'))[0]
    assert "18 of 19 demonstrations are correct (the first wrong one ends" in easy and "It accepts 'banana'." in easy
    assert "<answer>17</answer>' for the question '8 + 8?', gold answer '16')" in easy
    assert "mine: 18 of 19" in tried(folder, overrides=["task.name=qa"])[0].replace("qa:", "mine:")
    slow = tried(folder, "import time\ndef brevity(completions, **columns):\n    time.sleep(1)\n    return [1.0] * 16")
    assert " Slow: a step may wait " in slow[1]


def test_an_exception_in_own_code_is_one_message_for_a_command_and_no_traceback(folder, capsys):
    task = load_task(str(folder / "my_task.py"))
    assert exit_status(lambda: task.is_correct("<answer>4</answer>", {})) == 2
    assert f"{folder / 'my_task.py'}, line 6: KeyError: 'answer'. Correct this file" in capsys.readouterr().err


def test_a_task_that_fails_for_a_row_names_the_row(folder):
    task = TASK + '\n    def question(self, row):\n        return str(10 / (int(row["answer"]) - 4))\n'
    with pytest.raises(WorkshopError, match="data.jsonl, line 5: Close raised ZeroDivisionError"):
        tried(folder, task=task)


@pytest.mark.parametrize("overrides, parts", [
    (["rewards.my_reward.py:brevity=1"], ["my_reward.py:brevity", "does not exist", "Did you mean my_rewards.py?"]),
    (["rewards.my_rewards.py=1"], ["names a file without a function", "my_rewards.py:FUNCTION"]),
    (["rewards.twice/my_rewards.py:other=1"], ["have one file name", "rename one"]),
    (["rewards.more.py:format_reward=1", "rewards.format_reward=1"], ["both be logged as format_reward"]),
    (["rewards.correctness_reward=1"], ["cannot be earned", "accuracy_reward fits every task"]),
    (["task.name=qa", "task.source=hub"], ["task.source = 'hub'", "the path of a file"]),
    (["task.name=my_taks.py"], ["my_taks.py", "Did you mean my_task.py?"]),
])
def test_a_reference_that_cannot_work_is_explained(folder, monkeypatch, overrides, parts):
    monkeypatch.chdir(folder)
    (folder / "twice").mkdir()
    for name in ("twice/my_rewards.py", "more.py"):
        (folder / name).write_text("")
    with pytest.raises(ConfigError) as caught:
        load("recipe.yaml", "smoke", overrides)
    assert [part for part in parts if part not in str(caught.value)] == [], caught.value


def test_trying_own_code_takes_milliseconds(folder):
    started = time.perf_counter()
    tried(folder)
    assert time.perf_counter() - started < 5


def test_own_files_and_data_travel_with_a_sagemaker_job(folder, tmp_path, monkeypatch):
    from lab_utils.sagemaker import preflight
    from lab_utils.sagemaker.job import TrainingJob, own_files, package_source
    from lab_utils.sagemaker.preflight import job_problems

    job = TrainingJob(recipe=str(folder / "recipe.yaml"), hardware="cpu", role="r", bucket="b", region="us-east-1")
    source = package_source(job, tmp_path / "source")
    recipes = source / "lab_utils/config/recipes"
    assert (recipes / "code/my_task.py").read_text() == TASK and (recipes / "code/my_rewards.py").read_text() == BREVITY
    monkeypatch.chdir(source)
    config = load(recipes / "recipe.yaml", "cpu", yaml.safe_load((source / "job.yaml").read_text())["overrides"])
    assert config.task.name == str(recipes / "code/my_task.py")
    assert len(load_task(config.task).dataset("train", None, config.task.source)) == 18
    assert "task.source" not in "\n".join(job_problems(job))
    assert own_files(job) == ["data.jsonl", "my_task.py", "my_rewards.py"]
    monkeypatch.setattr(preflight, "MOST_DATA_MB", 0)
    assert f"task.source = {folder / 'data.jsonl'} has 0 MB, and at most 0 travel" in "\n".join(job_problems(job))
    here = TrainingJob(recipe="countdown-grpo", hardware="cpu", role="r", bucket="b", region="us-east-1",
                       overrides=(f"rewards.{folder}/my_rewards.py:brevity=1",))
    assert "names a file on this machine: write the settings into your own recipe file" in "\n".join(job_problems(here))


# --- python -m lab_utils.rewards -------------------------------------------------------------------------------------


def test_the_command_runs_the_examples_of_every_reward(capsys):
    assert exit_status(lambda: rewards_command.main([])) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[1].rstrip(":") for line in lines} == set(rewards.__all__) - {"CORRECTNESS"}
    assert all(line.startswith("ok ") for line in lines)


FUNCTIONS_WITH_EXAMPLES = '''
from lab_utils.rewards import int_reward


def good(completions, **columns):
    """
    >>> good(["a"])
    [1.0]
    """
    return [1.0 for _ in completions]


def bad(completions, **columns):
    """
    >>> bad(["a"])
    [1.0]
    """
    return []
'''


def test_the_command_names_what_fails_in_a_file_of_ones_own(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(FUNCTIONS_WITH_EXAMPLES)
    assert exit_status(lambda: rewards_command.main([str(file)])) == 2
    told = capsys.readouterr()
    assert "ok          good: 1 examples" in told.out and "FAILED      bad: 1 examples" in told.out
    assert "int_reward" not in told.out and "1 of 2 examples fail: correct" in told.err
    assert exit_status(lambda: rewards_command.main([str(tmp_path / "missing.py")])) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_example_of_the_recipe_of_ones_own_passes(capsys):
    assert exit_status(lambda: rewards_command.main([str(REPOSITORY / "examples/own/my_rewards.py")])) == 0
