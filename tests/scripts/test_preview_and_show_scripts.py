"""scripts/preview.py: what a recipe makes of its data. scripts/show.py: completions that a run recorded."""

import json
import shutil

import preview as preview_script
import pytest
import show as show_script

from lab_utils import REPOSITORY, exit_status
from lab_utils.runs import RunDirectory


def status_of(script, *arguments) -> int:
    return exit_status(lambda: script.main([*map(str, arguments)]))


@pytest.fixture
def folder(tmp_path):
    """Return a copy of the example that the README names."""
    return shutil.copytree(REPOSITORY / "examples" / "own", tmp_path / "own")


def test_the_example_of_the_readme_can_be_used_as_it_is(folder, capsys):
    assert status_of(preview_script, "--recipe", folder / "recipe.yaml", "--hardware", "cpu") == 0
    text = capsys.readouterr().out
    assert text.count("the prompt, with the chat template") == 3 and "<|im_start|>user\nAdd 13, 25 and 14." in text
    assert "<think>13 + 25 = 38, 38 + 14 = 52</think><answer>52</answer>" in text
    assert "train: 270 of 300 rows are used\ntest: 30 of 300 rows are used" in text
    assert "my_task.py: 300 of 300 demonstrations are correct" in text and "my_rewards.py:brevity: 0 to 1 on 16" in text


def test_the_preview_counts_what_is_left_out(folder, capsys):
    with (folder / "data.jsonl").open("a") as file:
        file.write('{"prompt": "no answer"}\n' + json.dumps({"prompt": "long " * 200, "answer": 1}) + "\n")
        file.write((folder / "data.jsonl").read_text().splitlines()[0] + "\n")
    arguments = ["--recipe", folder / "recipe.yaml", "--hardware", "cpu"]
    assert status_of(preview_script, *arguments) == 2
    text = capsys.readouterr().out
    assert "1 repeat an earlier row:\n    data.jsonl, line 303" in text
    assert "1 cannot be used:\n    data.jsonl, line 301: the column 'answer' is missing" in text
    assert text.count("data.jsonl, line 301") == 1, "not once more for the tests, which are of the same file"
    assert "longer than grpo.max_prompt_length = 128 and are left out, such as data.jsonl, line 302; short" in text
    assert "Training would stop here" in text
    limited = [*arguments, "--set", "task.drop_bad_rows=true", "--set", "task.train_limit=99"]
    assert status_of(preview_script, *limited) == 0
    assert "train: 99 of 303 rows are used\n  172 more are good, but task.train_limit is 99" in capsys.readouterr().out


def test_the_preview_fails_where_training_would(folder, capsys):
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("completion: solution}", "completion: solution, level: level}"))
    lines = (folder / "data.jsonl").read_text().splitlines()
    rows = [{**json.loads(line), "level": number or "easy"} for number, line in enumerate(lines)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert status_of(preview_script, "--recipe", recipe, "--hardware", "cpu") == 2
    assert "because of level (str in data.jsonl, line 1, int in data.jsonl, line 2): give" in capsys.readouterr().err
    (folder / "data.jsonl").write_text("")
    assert status_of(preview_script, "--recipe", recipe, "--hardware", "cpu") == 2
    assert capsys.readouterr().out.endswith("test: 0 of 0 rows are used\nTraining would stop here: there is no row to "
                                            "train on.\n")


def test_a_reward_sees_in_the_preview_the_columns_that_it_gets_in_training(folder, capsys):
    (folder / "my_rewards.py").write_text("def brevity(completions, level, **columns):\n    return [0.0]\n")
    assert status_of(preview_script, "--recipe", folder / "recipe.yaml", "--hardware", "cpu") == 2
    assert "The columns are question, answer, completion, prompts, completions, completion_ids; take" in \
        capsys.readouterr().err


def completion(step, question, text, reward, **more) -> dict:
    return {"step": step, "question": question, "gold": "4", "completion": text or "", "extracted": text,
            "correct": text == "4", "reward": reward, **more}


def test_show_finds_steps_groups_and_rewards(tmp_path, capsys):
    run = RunDirectory(tmp_path)
    assert status_of(show_script, tmp_path) == 2
    assert "such as OUTPUT_DIR/grpo or OUTPUT_DIR/ppo." in capsys.readouterr().err, "SFT records none"
    for step in (1, 5):
        run.append_completions([
            completion(step, "2 + 2?", "4", 1.0, rewards={"accuracy": 1.0, "brevity": 0.1}),
            completion(step, "2 + 2?", "five\x1b[2J", 0.2, rewards={"accuracy": 0.0, "brevity": 0.9}),
            completion(step, "1 + 3?", None, 0.0, rewards={"accuracy": 0.0, "brevity": 0.0})])
    assert status_of(show_script, tmp_path) == 0
    best, worst = capsys.readouterr().out.split("--- group ")[1:]
    assert best.startswith("1\nstep 5  question: 2 + 2?  gold: 4\n4\nextracted: 4 (correct)  reward: 1 = accuracy 1")
    assert worst.startswith("2\nstep 5  question: 1 + 3?") and "extracted: nothing (wrong)" in worst
    assert status_of(show_script, tmp_path, "--step", "2", "--group", "1") == 0
    text = capsys.readouterr().out
    assert text.count("step 1 ") == 2 and "five\\x1b[2J" in text
    assert status_of(show_script, tmp_path, "--reward", "brevity") == 0
    assert "five" in capsys.readouterr().out.split("--- group ")[1]
    assert status_of(show_script, tmp_path, "--reward", "length") == 2
    assert "--reward length was not recorded: choose from accuracy, brevity." in capsys.readouterr().err
    assert status_of(show_script, tmp_path, "--group", "3") == 2
    assert "--group 3 does not exist at step 5: choose 1 to 2." in capsys.readouterr().err
