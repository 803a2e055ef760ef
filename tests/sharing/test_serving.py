"""Serving with transformers' own server, its errors, and vLLM's command; tests/vllm_cpu runs vLLM."""

import json
import shutil
from pathlib import Path

import chat as chat_script
import pytest
import serve as serve_script
from transformers.utils.import_utils import is_serve_available
from trl.import_utils import is_vllm_available

from lab_utils import TINY_MODEL, exit_status
from lab_utils.models import load_model, load_tokenizer
from lab_utils.sampling.local import sample
from lab_utils.sharing import serving
from lab_utils.sharing.serving import ServingError
from lab_utils.tasks import load_task


@pytest.mark.component
@pytest.mark.skipif(not is_serve_available() or is_vllm_available(), reason="needs requirements/serve.txt, no vLLM")
def test_a_served_model_answers_as_it_does_here(run, tmp_path, capsys):
    prompt = load_task("countdown").prompt({"nums": [3, 7, 25], "target": 46})
    [[here]] = sample(load_model("tiny"), load_tokenizer("tiny"), [prompt], temperature=0.0, max_new_tokens=32)
    with serving.serving(run) as url:
        assert serving.served_models(url) == ["trained"]
        assert serving.ask(url, prompt, max_new_tokens=32).rstrip() == here.text.rstrip()
        output = tmp_path / "chat.jsonl"
        arguments = [str(run.path), "--server", url, "--question", "3 7 25 46", "--output", str(output),
                     "--temperature", "0"]
        chat_script.main(arguments)
        with pytest.raises(ServingError, match="refused /v1/chat/completions"):
            serving.ask(url, [], model="another/model", max_new_tokens=32)
        with pytest.raises(ServingError, match="not a LoRA adapter"):
            serving.swap_adapter(url, run.model_dir)
    base, trained = (json.loads(line) for line in output.read_text().splitlines())
    assert (base["model"], trained["model"]) == ("tiny", str(run.path))
    assert base["response"] == here.text and trained["response"].rstrip() == here.text.rstrip(), "the same model"


def test_transformers_does_not_take_the_reasoning_out_of_the_response(run, monkeypatch):
    """First check that it removes the reasoning of Qwen models by default."""
    from transformers.cli.serving.utils import _RESPONSE_TEMPLATE_FALLBACKS

    monkeypatch.setattr(serving, "backend", lambda: "transformers")
    tokenizer = load_tokenizer(serving.server_command(run).cwd / "trained")
    text = "<think>7 * 6 = 42 yes</think>\n<answer>7 * 6</answer>"
    ids = tokenizer(text + "<|im_end|>")["input_ids"]
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "6 7 42"}], add_generation_prompt=True,
                                           tokenize=False)
    [template] = [template for models, template in _RESPONSE_TEMPLATE_FALLBACKS.items() if "qwen2" in models]
    assert "<think>" not in tokenizer.parse_response(ids, template, prefix=prompt)["content"]
    assert tokenizer.parse_response(ids, prefix=prompt)["content"] == text


def test_vllm_serves_an_adapter_beside_its_base_and_can_swap_it(run, monkeypatch):
    monkeypatch.setattr(serving, "is_vllm_available", lambda: True)
    shutil.rmtree(run.model_dir)
    shutil.copytree(TINY_MODEL, run.model_dir, ignore=shutil.ignore_patterns("model.safetensors", "config.json"))
    (run.model_dir / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "tiny", "r": 16}))
    server = serving.server_command(run, port=8001)
    options = dict(zip(server.command[3:], server.command[4:], strict=False))
    assert server.backend == "vLLM" and server.environment == {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    assert (options["--model"], options["--served-model-name"]) == (str(TINY_MODEL), "base")
    assert options["--lora-modules"] == f"trained={run.model_dir.resolve()}" and options["--max-lora-rank"] == "16"
    assert options["--dtype"] == "float32" and options["--port"] == "8001" and options["--host"] == "127.0.0.1"
    # Both ends of a completion, and no sampling defaults.
    written = json.loads((Path(options["--generation-config"]) / "generation_config.json").read_text())
    ends = load_tokenizer("tiny").convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert written["eos_token_id"] == ends and not {"temperature", "top_p", "repetition_penalty"} & set(written)


def test_without_a_server_the_message_says_what_to_install(run, monkeypatch, capsys):
    monkeypatch.setattr(serving, "is_vllm_available", lambda: False)
    monkeypatch.setattr(serving, "is_serve_available", lambda: False)
    assert exit_status(lambda: serve_script.main(["start", str(run.path)])) == 2
    assert "pip install -r setup/requirements/serve.txt" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://127.0.0.1:port", "no-protocol"])  # 9: discard
def test_a_server_that_does_not_answer_is_named(run, tmp_path, capsys, url):
    output = str(tmp_path / "chat.jsonl")
    chat = [str(run.path), "--server", url, "--question", "3 7 25 46", "--output", output]
    assert exit_status(lambda: chat_script.main(chat)) == 2
    assert f"No server answers at {url}" in capsys.readouterr().err
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "tiny"}')
    assert exit_status(lambda: serve_script.main(["swap", str(tmp_path), "--server", url])) == 2
    assert f"No server answers at {url}" in capsys.readouterr().err


def test_a_server_that_does_not_start_shows_its_log(run, monkeypatch):
    broken = serving.ServerCommand("none", ["bash", "-c", "echo out of memory; exit 1"], {}, run.path)
    monkeypatch.setattr(serving, "server_command", lambda run, port: broken)
    with pytest.raises(ServingError, match="out of memory"):
        with serving.serving(run):
            pass
