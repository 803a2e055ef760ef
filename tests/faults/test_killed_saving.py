"""A process killed at any write while it saves leaves no model or a whole one, and the run can be finished."""

import os
import shutil

import pytest
import torch
from commands import KILLED, run_copy

from lab_utils import TINY_MODEL
from lab_utils import config as configuration
from lab_utils.models import export_model, load_model
from lab_utils.runs import RunDirectory, RunDirectoryError, model_of
from lab_utils.training import ppo, rl


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.component
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("adapter", [None, {"r": 2, "alpha": 4}])
def test_a_model_is_saved_whole_or_not_at_all(tmp_path, adapter):
    """PPO saves the most: weights or adapter, tokenizer, template and the value head."""
    config = configuration.load("countdown-ppo", "smoke", {"model.lora": adapter, "ppo.max_steps": 1})
    run = RunDirectory(tmp_path / "ppo")
    arguments = ppo.ppo_arguments(config, run)
    trainer = rl.make_trainer("ppo", ppo.PPOTrainer, config, arguments, run, "tiny")
    rl.save_model(trainer, run)
    whole = files_of(run.model_dir)
    assert run.has_model and {"value_head.safetensors", "chat_template.jinja", "tokenizer.json"} <= set(whole)
    with torch.no_grad():
        trainer.critic.head.bias += 1.0  # training longer saves another model over the first
    trainer.save_model(str(tmp_path / "other"))
    other = files_of(tmp_path / "other")
    for earlier in (False, True):
        writes = 0
        while True:
            shutil.rmtree(run.path)
            if earlier:
                shutil.copytree(tmp_path / "first", run.model_dir)
            (run.path / "checkpoints").mkdir(parents=True)
            killed = run_copy(lambda: rl.save_model(trainer, run), run.path, writes=writes) == KILLED
            left = files_of(run.model_dir)
            assert run.has_model == bool(left) and left in ({}, whole, other), f"killed after {writes} writes"
            if not killed:
                break
            writes += 1
        assert writes > 8 and left == other
        (tmp_path / "first").mkdir(exist_ok=True)
        for name, content in whole.items():
            (tmp_path / "first" / name).write_bytes(content)


@pytest.mark.component
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_an_export_is_a_model_only_if_it_is_whole(tmp_path):
    settings, folder, writes = configuration.load("countdown-grpo", "smoke").model, tmp_path / "export", 0
    while run_copy(lambda: bool(export_model("tiny", folder, settings)) - 1, folder, writes=writes) == KILLED:
        names = {path.name for path in folder.glob("*")}
        assert "config.json" not in names or {"model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
        writes += 1
    assert writes > 3 and load_model(folder) and not (folder / ".unfinished").exists()


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json",
                                     "chat_template.jinja", "value_head.safetensors"])
def test_a_model_without_one_of_its_files_is_not_finished(tmp_path, missing):
    run = RunDirectory(tmp_path / "ppo")
    shutil.copytree(TINY_MODEL, run.model_dir)
    for folder in (run.model_dir, run.checkpoints_dir / "checkpoint-1"):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(TINY_MODEL / "model.safetensors", folder / "value_head.safetensors")
    assert run.has_model and model_of(run.path) == str(run.model_dir)
    (run.model_dir / missing).unlink()
    assert not run.has_model
    with pytest.raises(RunDirectoryError, match="is not complete .*missing.*--resume"):
        model_of(run.path)
