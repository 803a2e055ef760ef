"""Models from elsewhere: their code never runs, and damaged or incomplete files are refused with a message."""

import io
import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from lab_utils import TINY_MODEL
from lab_utils.config import load
from lab_utils.machine import memory
from lab_utils.models import ModelLoadError, load_model, load_tokenizer
from lab_utils.runs import RunDirectory
from lab_utils.sharing import serving

FOREIGN = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import PretrainedConfig, Qwen2ForCausalLM, Qwen2Tokenizer
class Config(PretrainedConfig):
    model_type = "foreign"
class Model(Qwen2ForCausalLM):
    config_class = Config
class Tokenizer(Qwen2Tokenizer):
    pass
"""


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(TINY_MODEL, tmp_path / "model")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_code_in_a_model_folder_never_runs_even_if_the_answer_is_yes(folder, tmp_path, monkeypatch):
    marker = tmp_path / "it ran"
    (folder / "foreign_code.py").write_text(FOREIGN.format(marker=str(marker)))
    edit(folder / "config.json", model_type="foreign", architectures=["Model"],
         auto_map={"AutoConfig": "foreign_code.Config", "AutoModelForCausalLM": "foreign_code.Model"})
    edit(folder / "tokenizer_config.json", tokenizer_class="Tokenizer",
         auto_map={"AutoTokenizer": ["foreign_code.Tokenizer", None]})
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(TINY_MODEL, run.model_dir, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    (run.model_dir / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder), "r": 2}))
    run.config_path.write_text(load("countdown-grpo", "smoke").to_yaml())
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 50))
    monkeypatch.setattr(serving, "is_vllm_available", lambda: True)
    refused = 0
    for use in (lambda: load_tokenizer(folder), lambda: load_model(folder), lambda: load_model(run.model_dir),
                lambda: memory.skeleton(str(folder)), lambda: serving.server_command(run)):
        try:
            use()
        except Exception as error:
            refused += "trust_remote_code" in str(error) or "never runs" in str(error)
        assert not marker.exists()
    assert refused >= 4


def damage_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


LAYER = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("change, problem", [
    (lambda weights: weights.pop(LAYER), f"1 missing weights, such as {LAYER}"),
    (lambda weights: weights.update({"model.layers.99.bias": torch.ones(2)}), "1 unexpected weights"),
    (lambda weights: weights[LAYER].fill_(float("nan")), f"{LAYER} has values that are NaN"),
    (lambda weights: weights.update({LAYER: torch.ones(2, 2)}), "could not be loaded"),
])
def test_weights_that_do_not_fit_are_refused(folder, change, problem):
    damage_weights(folder, change)
    with pytest.raises(ModelLoadError, match=problem):
        load_model(folder)


@pytest.mark.parametrize("written_out", [False, True])
def test_a_tied_output_layer_may_be_in_the_file_or_not(folder, written_out):
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    embedding = "model.embed_tokens.weight"
    damage_weights(folder, lambda weights: weights.update({"lm_head.weight": weights[embedding].clone()})
                   if written_out else weights.pop("lm_head.weight", None))
    assert load_model(folder).lm_head.weight.isfinite().all()


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_truncated_files_are_a_message(folder, file):
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[:len(content) // 2])
    with pytest.raises(ModelLoadError, match="could not be loaded"):
        load_model(folder)


def test_a_tokenizer_of_another_model_is_refused_and_one_without_template_gets_paragraphs(folder):
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens([f"<new-{i}>" for i in range(500)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelLoadError, match=f"tokenizer has {len(tokenizer)} tokens and the model "):
        load_model(folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.warns(UserWarning, match="no chat template: system message, question and response are joined"):
        tokenizer = load_tokenizer(folder)
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 2"}]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert asked == "Add.\n\n1 + 2\n\n"
    answered = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": "3"}], tokenize=False)
    assert answered == f"{asked}3{tokenizer.eos_token}"


def test_an_adapter_that_is_damaged_is_refused(folder, tmp_path):
    adapter = tmp_path / "adapter"
    get_peft_model(load_model("tiny"), LoraConfig(r=2, task_type="CAUSAL_LM")).save_pretrained(adapter)
    load_tokenizer("tiny").save_pretrained(adapter)
    load_model(adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    weights.popitem()
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelLoadError, match="missing adapter keys"):
        load_model(adapter)
    for content in ("", "{}", "[]", "{"):
        (adapter / "adapter_config.json").write_text(content)
        with pytest.raises(ModelLoadError, match="is damaged, or does not name its base model"):
            load_model(adapter)
