"""Models without a run directory: a recipe gives task and response format to chat.py, serve.py and export.py."""

import json
import shutil

import chat as chat_script
import export as export_script
import pytest

from lab_utils import TINY_MODEL, exit_status
from lab_utils.models import load_tokenizer
from lab_utils.runs import RunDirectoryError, config_of
from lab_utils.sharing import serving
from lab_utils.sharing.chat import QuestionError, as_prompt
from lab_utils.tasks import Task, load_task

RECIPE = ["--recipe", "countdown-grpo", "--hardware", "smoke"]


def test_the_configuration_is_that_of_the_run_or_of_the_recipe(run):
    assert config_of(run.path) == config_of(run.model_dir) == run.config()
    found = config_of("Qwen/Qwen2.5-0.5B-Instruct", "gsm8k-grpo", "smoke")
    assert (found.task.name, found.model.name) == ("gsm8k", "Qwen/Qwen2.5-0.5B-Instruct")
    assert config_of(run.path, "gsm8k-grpo", "smoke").model.name == "tiny", "the base of a run stays what it is"
    with pytest.raises(RunDirectoryError, match="Qwen/Qwen3-0.6B has no config.yaml: .* with --recipe"):
        config_of("Qwen/Qwen3-0.6B")


@pytest.mark.component
def test_chat_continues_a_conversation_with_any_model(tmp_path, capsys):
    folder, output = tmp_path / "exported", tmp_path / "chat.jsonl"
    assert exit_status(lambda: export_script.main(["tiny", *RECIPE, "--output-dir", str(folder)])) == 0
    assert not (folder / "README.md").exists() and (folder / "model.safetensors").exists()
    words = [str(folder), *RECIPE, "--multi-turn", "--output", str(output), "--max-new-tokens", "8"]
    asked = ["--question", "3 7 25 46", "--question", "2 3 6"]
    assert exit_status(lambda: chat_script.main([*words, *asked])) == 0
    first, second = [json.loads(line) for line in output.read_text().splitlines()]
    assert (first["query"], second["query"]) == ("3 7 25 46", "2 3 6") and first["model"] == str(folder)
    assert exit_status(lambda: chat_script.main([*words, "--max-new-tokens", "500", *asked])) == 2
    assert "does not fit into the 512 of" in capsys.readouterr().err


def test_the_second_question_brings_no_second_system_message(monkeypatch, tmp_path):
    prompts = []

    def load_local(name, *_):
        return lambda prompt: prompts.append(prompt) or f"response {len(prompts)}"

    monkeypatch.setattr(chat_script, "load_local", load_local)
    chat_script.main(["tiny", *RECIPE, "--multi-turn", "--output", str(tmp_path / "chat.jsonl"),
                      "--question", "3 7 25 46", "--question", "2 3 6"])
    assert [message["role"] for message in prompts[1]] == ["system", "user", "assistant", "user"]
    assert prompts[1][2]["content"] == "response 1" and prompts[1][:2] == prompts[0]


def test_any_model_can_be_served(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serving, "backend", lambda: "transformers")
    shutil.copytree(TINY_MODEL, tmp_path / "mine")
    server = serving.server_command(None, 8000, config_of(tmp_path / "mine", "countdown-grpo", "smoke"))
    assert server.cwd == tmp_path / "outputs" / "served" / "mine"
    assert load_tokenizer(server.cwd / "trained").chat_template


def test_a_task_of_ones_own_may_need_more_than_a_typed_question():
    class Levels(Task):
        own = True

        def question(self, row):
            return f"{row['question']} ({row['level']})"

    with pytest.raises(QuestionError, match="KeyError: 'level'.*typed_row"):
        as_prompt(Levels(), "1 + 1?")
    assert as_prompt(load_task("qa"), "1 + 1?")[-1]["content"] == "1 + 1?"
