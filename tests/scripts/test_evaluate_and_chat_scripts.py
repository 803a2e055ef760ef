"""scripts/evaluate.py and scripts/chat.py: what they ask, write and refuse."""

import json
import shutil

import chat as chat_script
import evaluate as evaluate_script
import pytest

from lab_utils import TINY_MODEL
from lab_utils import config as configuration
from lab_utils.evaluation import Evaluation
from lab_utils.runs import RunDirectory, RunDirectoryError
from lab_utils.sharing.chat import reasoning_of
from lab_utils.tasks import load_task


@pytest.fixture
def run(tmp_path):
    """A run directory whose trained model is the tiny one."""
    few = {"evaluation.num_samples": 2, "evaluation.max_new_tokens": 32}
    config = configuration.load("countdown-grpo", "smoke", few)
    run = RunDirectory.create(config, tmp_path / "out" / "grpo")
    shutil.copytree(TINY_MODEL, run.model_dir)
    return run


# --- evaluate.py -----------------------------------------------------------------------------------------------------


def test_models_are_called_by_their_stage_or_name(tmp_path):
    for stage in ("sft", "grpo"):
        (tmp_path / "out" / stage / "model").mkdir(parents=True)
    sft, grpo = str(tmp_path / "out" / "sft"), str(tmp_path / "out" / "grpo")
    assert evaluate_script.labelled_models([str(tmp_path / "out")]) == {"SFT": sft, "GRPO": grpo}
    assert evaluate_script.labelled_models(["tiny", f"mine={sft}", grpo]) == {"tiny": "tiny", "mine": sft, "GRPO": grpo}
    assert evaluate_script.labelled_models(["Qwen/Qwen3-0.6B"]) == {"Qwen3-0.6B": "Qwen/Qwen3-0.6B"}
    with pytest.raises(RunDirectoryError, match="both be called 'SFT'.*SFT-seed1="):
        evaluate_script.labelled_models([sft, "elsewhere/sft"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["tiny"], "name the task with --recipe"),
        (["tiny", "--set", "evaluation.seed=1"], "name it with --recipe"),
        (["tiny", "--recipe", "countdown-grpo", "--hardware", "cpu", "--limit", "0"], "--limit = 0"),
        (["tiny", "--recipe", "cuontdown"], "countdown-grpo"),
    ],
)
def test_evaluate_refuses_what_cannot_work(arguments, message, capsys):
    assert evaluate_script.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_evaluate_refuses_unknown_options():
    with pytest.raises(SystemExit) as stopped:
        evaluate_script.main(["tiny", "--lim", "3"])
    assert stopped.value.code == 2


@pytest.mark.component
def test_evaluate_compares_models_and_writes_everything(run, tmp_path, capsys):
    results = tmp_path / "results"
    arguments = ["base=tiny", str(run.path), "--limit", "5", "--output-dir", str(results)]
    assert evaluate_script.main(arguments) == 0
    assert Evaluation.load(run.evaluation_path).summary() == json.loads((results / "GRPO.json").read_text())["summary"]
    saved = Evaluation.load(run.evaluation_path)
    assert saved.num_samples == 2 and len(saved.examples) == 5
    written = {"base.json", "GRPO.json", "results.csv", "accuracy.png", "attempts.png", "pass_at_k.png"}
    assert {path.name for path in results.iterdir()} == written
    # the same model, the same questions and the same seed: the same answers
    assert "+0.0 [+0.0, +0.0]" in capsys.readouterr().out


# --- chat.py ---------------------------------------------------------------------------------------------------------


def test_countdown_questions_are_numbers_and_a_target():
    task = load_task("countdown")
    asked = task.prompt({"nums": [3, 7, 25], "target": 46})
    assert chat_script.as_prompt(task, "3 7 25 46") == asked
    assert chat_script.as_prompt(task, asked[-1]["content"]) == asked
    with pytest.raises(chat_script.QuestionError, match="at least two numbers"):
        chat_script.as_prompt(task, "hello")


@pytest.mark.parametrize(
    "response_format, response, reasoning",
    [
        ("think", "<think>3 + 4 = 7</think><answer>7</answer>", "3 + 4 = 7"),
        ("reasoning", "<reasoning>\n3 + 4\n</reasoning>\n<answer>\n7\n</answer>", "3 + 4"),
        ("hash", "3 + 4 = 7\n#### 7", "3 + 4 = 7"),
        ("think", "3 + 4 = 7 <answer>7</answer>", "3 + 4 = 7"),
    ],
)
def test_reasoning_is_what_stands_before_the_answer(response_format, response, reasoning):
    assert reasoning_of(load_task("gsm8k", response_format), response) == reasoning


def test_responses_stand_side_by_side():
    shown = chat_script.side_by_side({"base": "one two three", "trained": "four\nfive six"}, width=17)
    rule = "─" * 7
    assert shown.splitlines() == [
        "base    │ trained", f"{rule} │ {rule}", "one two │ four", "three   │ five", "        │ six"
    ]


@pytest.mark.component
def test_chat_asks_both_models_and_appends(run, tmp_path, capsys):
    output = tmp_path / "chats" / "chat.jsonl"
    arguments = [str(run.path), "--question", "3 7 25 46", "--max-new-tokens", "8", "--output", str(output),
                 "--temperature", "0"]
    assert chat_script.main(arguments) == chat_script.main(arguments) == 0
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["model"] for record in records] == ["tiny", str(run.path)] * 2
    assert set(records[0]) == {"query", "model", "reasoning", "answer", "response"}
    assert records[0]["response"] == records[1]["response"] and "trained" in capsys.readouterr().out
    assert chat_script.main([str(run.path), "--question", "hello"]) == 2
