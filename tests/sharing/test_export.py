"""Exports load without the workshop and answer as the run does, the card is honest, and no message shows the token."""

import json
import shutil
import zipfile
from pathlib import Path
from unittest import mock

import export as script
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lab_utils import config as configuration
from lab_utils import exit_status
from lab_utils.evaluation import Evaluation
from lab_utils.models import end_token_ids, load_model, load_tokenizer
from lab_utils.runs import RunDirectory
from lab_utils.sharing import export
from lab_utils.sharing.export import ExportError, describe, export_run, model_card, push_to_hub, zip_folder

TOKEN = "hf_thisIsASecret"


def make_run(folder: Path, **overrides) -> RunDirectory:
    return RunDirectory.create(configuration.load("countdown-grpo", "smoke", overrides), folder / "grpo")


@pytest.fixture
def folder(tmp_path):
    """Return an exported folder, for tests that do not load it."""
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"0" * 2000)
    (folder / "README.md").write_text("card")
    return folder


def evaluation(**change) -> Evaluation:
    completion = {"text": "", "extracted": None, "correct": False, "correct_lenient": True, "has_format": True,
                  "finished": True, "num_tokens": 10, "attempts": 1}
    examples = [{"question": str(i), "prompt": [], "gold": "", "completions": [completion | {"correct": i < 3}]}
                for i in range(4)]
    return Evaluation(examples, {"max_new_tokens": 192, "temperature": 0.0})


@pytest.mark.component
def test_an_adapter_is_merged_and_the_export_loads_by_itself(tmp_path):
    run = make_run(tmp_path / "runs")
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(load_model("tiny"), lora).eval()
    adapted.save_pretrained(run.model_dir)
    load_tokenizer("tiny").save_pretrained(run.model_dir)

    folder = export_run(run, tmp_path / "out")
    merged, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        wanted, got, base = (model(input_ids=ids).logits for model in (adapted, merged, load_model("tiny")))
    assert torch.allclose(got, wanted, atol=1e-4) and not torch.allclose(got, base, atol=1e-1)
    ends = set(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))
    assert set(merged.generation_config.eos_token_id) == set(end_token_ids(merged.config, tokenizer)) == ends
    assert merged.generation_config.repetition_penalty in (None, 1.0)
    assert tokenizer.chat_template == load_tokenizer("tiny").chat_template
    assert not list(folder.glob("adapter*")) and not list(folder.glob("*.bin")), "whole, and nothing pickled"
    assert "a LoRA adapter, merged" in (folder / "README.md").read_text()
    assert all(file["what it is for"] for file in describe(folder))

    with zipfile.ZipFile(zip_folder(folder)) as archive:
        assert {f"out/{path.name}" for path in folder.iterdir()} <= set(archive.namelist())


def test_a_failed_export_does_not_block_the_next_one(run, tmp_path, monkeypatch):
    def fails(model, folder, settings):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(export, "export_model", fails)
        with pytest.raises(ExportError, match="Cannot write to .*No space left.*free space"):
            export_run(run, tmp_path / "out")
    assert not list(tmp_path.glob("out*")) and (export_run(run, tmp_path / "out") / "README.md").exists()


def test_an_export_overwrites_nothing_and_needs_a_trained_model(run, tmp_path, folder):
    with pytest.raises(ExportError, match="not empty"):
        export_run(run, folder)
    with pytest.raises(ExportError, match="Cannot write to"):
        export_run(run, folder / "README.md" / "below a file")
    shutil.rmtree(run.model_dir)
    with pytest.raises(ExportError, match="has no trained model"):
        export_run(run, tmp_path / "out")


def test_the_card_reports_data_recipe_metrics_and_limits(run):
    evaluation().save(run.evaluation_path)
    _, metadata, text = model_card(run).split("---\n", 2)
    metadata = yaml.safe_load(metadata)
    assert metadata["license"] == "mit" and metadata["tags"] == ["trl", "grpo", "countdown"]
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.75
    for part in ("# countdown-grpo\n", "SFT and then GRPO", "synthetic Countdown problems, at most 64 problems",
                 "exactly once, with", "> **user:** ", "\n- reward: ", "\nmax_steps: ",
                 "0.1 · format_reward + 1 · equation_reward", "tier `smoke`, seed 0", "| 75.0% [", "| 100.0% |",
                 "4 problems of the test split", "No figure here carries over", "it has learned nothing"):
        assert part in text, part


def test_a_card_without_evaluation_claims_nothing(run):
    card = model_card(run)
    assert "None: this run was not evaluated." in card and "model-index" not in card and "%" not in card


def test_a_card_names_the_base_on_the_hub_and_no_local_path(tmp_path):
    run = make_run(tmp_path, **{"model.name": "Qwen/Qwen2.5-0.5B-Instruct"})
    assert "base_model: Qwen/Qwen2.5-0.5B-Instruct" in model_card(run)
    run = make_run(tmp_path / "other", **{"model.name": str(tmp_path / "secret-place" / "my-model")})
    assert "secret-place" not in model_card(run) and "my-model, fine-tuned" in model_card(run)


@pytest.mark.parametrize("source, data, listed", [
    ("secret-place/mine.jsonl", "a local dataset", None), ("me/my-data:small", "me/my-data", "me/my-data")])
def test_a_card_names_data_on_the_hub_and_no_local_path(run, source, data, listed):
    run.config_path.write_text(configuration.with_overrides(run.config(), {"task.source": source}).to_yaml())
    evaluation().save(run.evaluation_path)
    card = model_card(run)
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert "secret-place" not in card and f"fine-tuned by SFT and then GRPO on {data}." in card
    assert metadata.get("datasets") == listed


@pytest.fixture
def hub(monkeypatch):
    """Stand in for huggingface_hub.HfApi."""
    hub = mock.Mock()
    monkeypatch.setattr(export, "HfApi", lambda token: hub)
    monkeypatch.setattr(export, "get_token", lambda: TOKEN)
    return hub


def test_a_dry_run_lists_the_files_and_sends_nothing(hub, folder):
    told = push_to_hub(folder, "me/my-model", dry_run=True)
    assert hub.mock_calls == []
    assert "would upload to the private repository https://huggingface.co/me/my-model" in told
    assert "model.safetensors                    2.0 kB" in told and "a token was found" in told and TOKEN not in told


def test_a_push_makes_the_repository_and_uploads_the_folder(hub, folder):
    told = push_to_hub(folder, "me/my-model", private=False)
    hub.create_repo.assert_called_once_with("me/my-model", private=False, exist_ok=True)
    assert hub.upload_folder.call_args.kwargs["folder_path"] == folder
    assert told.startswith("uploaded to the public repository") and TOKEN not in told


def test_a_refusal_does_not_show_the_token(hub, folder):
    hub.create_repo.side_effect = OSError(f"401: the token {TOKEN} may not write")
    with pytest.raises(ExportError, match=r"the token \(token\) may not write") as refused:
        push_to_hub(folder, "me/my-model")
    assert refused.value.__suppress_context__ and TOKEN not in str(refused.value)


@pytest.mark.parametrize("name, message", [("my-model", "YOUR-NAME/MODEL-NAME"), ("me/my model", "not a valid name"),
                                           ("a/b/c", "not a valid name")])
def test_a_bad_name_is_refused_before_anything_is_sent(hub, folder, name, message):
    with pytest.raises(ExportError, match=message):
        push_to_hub(folder, name)
    assert hub.mock_calls == []


def test_a_missing_token_or_model_is_reported(hub, folder, monkeypatch):
    monkeypatch.setattr(export, "get_token", lambda: None)
    with pytest.raises(ExportError, match="hf auth login"):
        push_to_hub(folder, "me/my-model")
    assert "no token was found" in push_to_hub(folder, "me/my-model", dry_run=True)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ExportError, match="no model"):
        push_to_hub(folder, "me/my-model", dry_run=True)


@pytest.mark.component
def test_the_script_exports_zips_and_lists_what_it_would_push(run, tmp_path, hub, capsys):
    arguments = [str(run.path), "--output-dir", str(tmp_path / "out"), "--zip", "--push-to", "me/it", "--dry-run"]
    script.main(arguments)
    told = capsys.readouterr().out
    assert "the model card" in told and "out.zip" in told and "would upload" in told and hub.mock_calls == []
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "qwen2"
    assert exit_status(lambda: script.main(arguments)) == 2
    assert "not empty" in capsys.readouterr().err
