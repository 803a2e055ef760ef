"""Models that cannot be loaded, and a GPU that is full: each says what to do. Errors of the Hub and CUDA are put in."""

import re

import httpx
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from lab_utils import TINY_MODEL, WorkshopError, models
from lab_utils.config import load
from lab_utils.models import ModelLoadError, load_model, load_tokenizer, loading
from lab_utils.runs import RunDirectory
from lab_utils.training import grpo, rl

ANSWER = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co/x"))


@pytest.mark.parametrize("cause, expected", [
    (GatedRepoError("403", response=ANSWER), ["ask on https://huggingface.co/owner/name", "hf auth login"]),
    (RepositoryNotFoundError("404", response=ANSWER), ["no such model on the Hub", "OWNER/NAME"]),
    (LocalEntryNotFoundError("not cached"), ["cannot be reached", "HF_HUB_OFFLINE", "hf download owner/name"]),
    (OfflineModeIsEnabled("offline"), ["cannot be reached", "--hardware cpu"]),
    (httpx.ConnectTimeout("timed out"), ["cannot be reached", "proxy"]),
    (None, ["'tiny'", "RUN/model"])])
@pytest.mark.parametrize("loader, boundary", [(load_tokenizer, "AutoTokenizer"), (load_model, "AutoModelForCausalLM")])
def test_what_to_do_about_a_model_that_cannot_be_loaded(monkeypatch, loader, boundary, cause, expected):
    def fails(*args, **kwargs):
        raise OSError("transformers wraps it") from cause

    monkeypatch.setattr(getattr(loading, boundary), "from_pretrained", fails)
    with pytest.raises(ModelLoadError) as caught:
        loader("owner/name")
    message = str(caught.value)
    assert "'owner/name' could not be loaded: transformers wraps it" in message
    assert all(part in message for part in expected), message


@pytest.mark.parametrize("error, expected", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried ..."), "GPU has no room for it: free what another process"),
    (ImportError("Using `bitsandbytes` 4-bit quantization requires ..."), "model.load_in_4bit to false"),
    (ImportError("cannot import name 'AutoModel' from 'timm'"), "timm'\nA package is missing .*check_environment")])
def test_a_model_that_the_machine_cannot_hold(monkeypatch, error, expected):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", fails)
    with pytest.raises(ModelLoadError, match=expected):
        load_model("tiny")


def test_an_adapter_finds_the_tiny_model_on_another_machine_and_names_a_base_that_is_missing(tmp_path):
    adapter = tmp_path / "adapter_config.json"
    adapter.write_text('{"base_model_name_or_path": "/opt/ml/code/lab_utils/models/tiny-qwen2"}')
    assert models.adapter_base(str(tmp_path)) == str(TINY_MODEL)
    adapter.write_text('{"base_model_name_or_path": "/opt/ml/start_model"}')
    with pytest.raises(ModelLoadError, match="adapter on the model /opt/ml/start_model, which is missing here"):
        load_model(tmp_path)


def test_a_token_is_never_part_of_a_message(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    with pytest.raises(ModelLoadError) as caught:
        load_tokenizer("owner/name")
    assert "hf_abcdefghijklmnop" not in str(caught.value) and "cannot be reached" in str(caught.value)


@pytest.mark.component
def test_a_full_gpu_says_which_setting_saves_memory(monkeypatch, tmp_path):
    def runs_out(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ...")

    monkeypatch.setattr(rl.RLTrainer, "train", runs_out)
    message = "grpo ran out of memory: CUDA out of memory. Halve grpo.per_device_train_batch_size and double"
    with pytest.raises(WorkshopError, match=re.escape(message)):
        grpo.train(load("countdown-grpo", "smoke"), tmp_path / "run")
    assert not RunDirectory(tmp_path / "run").model_dir.exists()


def test_trained_weights_are_float32_and_frozen_ones_stay():
    """A step of 1e-5 is lost in bfloat16, where the next number after 1 is 1.0078."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)).bfloat16()
    model[0].requires_grad_(False)
    rl.train_in_float32(model)
    assert [layer.weight.dtype for layer in model] == [torch.bfloat16, torch.float32]
    assert torch.ones(1, dtype=torch.bfloat16) - 1e-5 == 1 and torch.ones(1) - 1e-5 != 1
