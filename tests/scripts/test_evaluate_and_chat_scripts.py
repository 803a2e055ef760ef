"""scripts/evaluate.py and scripts/chat.py: what they ask, write and refuse."""

import json
import re
import shutil

import chat as chat_script
import evaluate as evaluate_script
import pytest

from lab_utils import TINY_MODEL, WorkshopError, exit_status
from lab_utils.evaluation import Evaluation
from lab_utils.sharing.chat import QuestionError, as_prompt, in_tiny_model_range, reasoning_of
from lab_utils.tasks import load_task


def status_of(script, *arguments) -> int:
    return exit_status(lambda: script.main([*map(str, arguments)]))


def test_models_are_labeled_by_their_stage_or_name(tmp_path):
    for stage in ("sft", "grpo"):
        shutil.copytree(TINY_MODEL, tmp_path / "out" / stage / "model")
    sft, grpo = str(tmp_path / "out" / "sft"), str(tmp_path / "out" / "grpo")
    assert evaluate_script.labeled_models([str(tmp_path / "out")]) == {"SFT": sft, "GRPO": grpo}
    assert evaluate_script.labeled_models(["tiny", f"mine={sft}", grpo]) == {"tiny": "tiny", "mine": sft, "GRPO": grpo}
    assert evaluate_script.labeled_models(["Qwen/Qwen3-0.6B"]) == {"Qwen3-0.6B": "Qwen/Qwen3-0.6B"}
    with pytest.raises(WorkshopError, match="both be called 'SFT'.*SFT-seed1="):
        evaluate_script.labeled_models([sft, "elsewhere/sft"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["tiny"], "name the task with --recipe"),
        (["tiny", "--set", "evaluation.seed=1"], "needs a recipe: pass --recipe"),
        (["tiny", "--recipe", "countdown-grpo", "--hardware", "cpu", "--limit", "0"], "task.test_limit = 0"),
    ],
)
def test_evaluate_refuses_what_cannot_work(arguments, message, capsys):
    assert status_of(evaluate_script, *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.component
def test_evaluate_compares_models_and_writes_everything(run, tmp_path, capsys):
    results = tmp_path / "results"
    assert status_of(evaluate_script, "base=tiny", run.path, "--limit", 5, "--output-dir", results) == 0
    assert Evaluation.load(run.evaluation_path).summary() == json.loads((results / "GRPO.json").read_text())["summary"]
    saved = Evaluation.load(run.evaluation_path)
    assert saved.num_samples == 2 and len(saved.examples) == 5
    written = {"base.json", "GRPO.json", "results.csv", "accuracy.png", "attempts.png", "rewards.png",
               "pass_at_k.png"}
    assert {path.name for path in results.iterdir()} == written
    # the same model, the same questions and the same seed: the same answers
    printed = capsys.readouterr().out
    assert "+0.0 [+0.0, +0.0]" in printed
    assert re.search(r"equation_reward +1 +\d\.\d{3} +\d\.\d{3} +\+0\.000 \[\+0\.000, \+0\.000\]", printed)


def test_plain_text_is_for_models_that_are_evaluated(capsys):
    arguments = ["base=tiny", "--recipe", "countdown-grpo", "--hardware", "smoke", "--plain-text", "bsae"]
    assert status_of(evaluate_script, *arguments) == 2
    assert "bsae is no label of a model: choose from base" in capsys.readouterr().err


def test_countdown_questions_are_numbers_and_a_target():
    task = load_task("countdown")
    asked = task.prompt({"nums": [3, 7, 25], "target": 46})
    assert as_prompt(task, "3 7 25 46") == asked
    assert as_prompt(task, asked[-1]["content"]) == asked
    with pytest.raises(QuestionError, match="at least two numbers"):
        as_prompt(task, "hello")


@pytest.mark.parametrize("name, query, inside", [
    ("countdown", "3 7 25 46", True), ("countdown", "3 7 26 46", False), ("countdown", "2 5 9 1", False),
    ("countdown", "1 2 3 4 10", False), ("gsm8k", "Anna has 3 pens and buys 4 more.", True),
    ("gsm8k", "3 + 400?", False)])
def test_questions_outside_the_tiny_models_range_are_known(name, query, inside):
    assert in_tiny_model_range(load_task(name), query) is inside


@pytest.mark.parametrize(
    "response_format, response, reasoning",
    [
        ("think", "<think>3 + 4 = 7</think><answer>7</answer>", "3 + 4 = 7"),
        ("reasoning", "<reasoning>\n3 + 4\n</reasoning>\n<answer>\n7\n</answer>", "3 + 4"),
        ("hash", "3 + 4 = 7\n#### 7", "3 + 4 = 7"),
        ("think", "3 + 4 = 7 <answer>7</answer>", "3 + 4 = 7"),
    ],
)
def test_reasoning_is_the_text_before_the_answer(response_format, response, reasoning):
    assert reasoning_of(load_task("gsm8k", response_format), response) == reasoning


@pytest.mark.component
def test_chat_asks_both_models_and_appends(run, tmp_path, capsys):
    output = tmp_path / "chats" / "chat.jsonl"
    arguments = [chat_script, run.path, "--question", "3 7 25 46", "--max-new-tokens", 8, "--output", output,
                 "--temperature", 0]
    assert status_of(*arguments) == status_of(*arguments) == 0
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["model"] for record in records] == ["tiny", str(run.path)] * 2
    assert set(records[0]) == {"query", "model", "reasoning", "answer", "response"}
    assert records[0]["response"] == records[1]["response"] and "trained" in capsys.readouterr().out
    assert status_of(chat_script, run.path, "--question", "3 7 25 46", "--output", tmp_path) == 2
    assert "Cannot write to" in capsys.readouterr().err
