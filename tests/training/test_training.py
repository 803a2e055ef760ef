"""SFT and GRPO on the tiny model: a run directory as designed, SIGKILL and resume, LoRA, rewards that misbehave."""

import json
import os
import shutil
import signal
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from commands import KILLED, run_copy
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import Trainer, TrainerCallback

from lab_utils import TINY_MODEL, WorkshopError
from lab_utils import config as configuration
from lab_utils.config import ConfigError
from lab_utils.models import adapter_base, load_model, load_tokenizer
from lab_utils.runs import TIMING_COLUMNS, RunDirectory, RunDirectoryError
from lab_utils.tasks import completion_text
from lab_utils.teaching.metrics import meaning
from lab_utils.training import grpo, sft
from lab_utils.training.stages import TRAIN
from lab_utils.training.stopping import StopAfter, TrainingInterrupted

pytestmark = pytest.mark.component


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)


class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def assert_same_run(first: RunDirectory, second: RunDirectory) -> None:
    """Check for the same completions, and for metrics equal to 1e-5 except for those of the clock."""
    if first.completions_path.exists():
        pd.testing.assert_frame_equal(first.completions(), second.completions())
    a, b = (run.metrics().drop(columns=list(TIMING_COLUMNS), errors="ignore") for run in (first, second))
    assert list(a["step"]) == list(b["step"])
    numeric = [name for name in a.columns if pd.api.types.is_numeric_dtype(a[name])]
    assert {"step", "loss", "grad_norm"} <= set(numeric)
    for name in numeric:
        np.testing.assert_allclose(a[name], b[name], atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_killed_run_resumes_and_ends_like_an_uninterrupted_one(tmp_path, stage):
    overrides = {f"{stage}.max_steps": 4, f"{stage}.save_steps": 2, f"{stage}.logging_steps": 1}
    config = configuration.load("countdown-grpo", "smoke", overrides)
    first = TRAIN[stage](config, tmp_path / "whole")
    folder = tmp_path / "killed"
    assert run_copy(lambda: bool(TRAIN[stage](config, folder, callbacks=[Kill()])), folder) == KILLED
    assert not (tmp_path / "killed" / "model").exists()
    second = TRAIN[stage](config, tmp_path / "killed", resume=True)
    assert_same_run(first, second)
    weights = [load_model(run.model_dir).state_dict() for run in (first, second)]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-5) for name in weights[0])


def test_a_run_leaves_what_the_design_says(tmp_path):
    config = configuration.load("countdown-grpo", "smoke", {"grpo.max_steps": 2, "grpo.log_completions_steps": 1})
    run = grpo.train(config, tmp_path / "run")
    metrics = run.metrics()
    assert list(metrics["step"]) == [1, 2]
    assert {"reward", "rewards/equation_reward/mean", "accuracy", "attempts", "completions/mean_length", "entropy",
            "completions/clipped_ratio", "frac_reward_zero_std", "learning_rate", "grad_norm"} <= set(metrics.columns)
    assert [name for name in metrics if name != "step" and not meaning(name)] == []
    completions = run.completions()
    assert list(completions.columns) == ["step", "question", "gold", "completion", "extracted", "correct", "reward",
                                         "rewards", "advantage", "tokens"]
    assert metrics["accuracy"].iloc[0] == pytest.approx(completions[completions["step"] == 1]["correct"].mean())
    assert run.config() == config
    tokenizer, model = load_tokenizer(run.model_dir), load_model(run.model_dir)
    assert tokenizer.chat_template == load_tokenizer(TINY_MODEL).chat_template
    assert model.generation_config.eos_token_id == sorted({tokenizer.convert_tokens_to_ids("<|im_end|>"),
                                                           tokenizer.convert_tokens_to_ids("<|endoftext|>")})
    with pytest.raises(RunDirectoryError, match="not empty"):
        grpo.train(config, tmp_path / "run")


def test_wandb_gets_metrics_and_tables_of_completions_and_no_file_gets_the_key(tmp_path, monkeypatch):
    key = "0123456789" * 4
    for name, value in (("WANDB_API_KEY", key), ("WANDB_MODE", "offline"), ("WANDB_PROJECT", "w")):
        monkeypatch.setenv(name, value)
    config = configuration.load("countdown-grpo", "smoke")  # the key alone turns it on
    sft.train(config, tmp_path / "sft")
    assert list((tmp_path / "sft" / "wandb").rglob("*.wandb"))
    run = grpo.train(config, tmp_path / "grpo")  # its own W&B run, in its own directory
    tables = [json.loads(path.read_text()) for path in (run.path / "wandb").rglob("*.table.json")]
    sent = {table["data"][0][0]: pd.DataFrame(table["data"], columns=table["columns"]) for table in tables}
    for step, recorded in run.completions().groupby("step"):
        assert sent[step]["completion"].tolist() == recorded["completion"].tolist()
        assert {"question", "gold", "extracted", "reward", "equation_reward", "advantage"} <= set(sent[step].columns)
    assert set(sent) == set(run.completions()["step"]) == {1, 2}
    log, = (run.path / "wandb").rglob("*.wandb")
    assert b"train/rewards/equation_reward/mean" in log.read_bytes()
    assert [path for path in tmp_path.rglob("*") if path.is_file() and key.encode() in path.read_bytes()] == []


MOVES = {"grpo.learning_rate": 1e-2, "grpo.lr_scheduler_type": "constant", "rewards.format_reward": None}


def length(completions, **columns):
    """Give rewards that differ within every group, so that each step changes the model."""
    return [float(len(completion_text(completion))) for completion in completions]


def test_recorded_tokens_tell_what_the_update_changed(tmp_path):
    asked = []

    def every_other(completions, prompts, completion_ids, **columns):
        asked.extend(zip(prompts, completion_ids, strict=True))
        return [float(i % 2) for i in range(len(completions))]

    config = configuration.load("countdown-grpo", "smoke", {**MOVES, "grpo.max_steps": 1})
    run = grpo.train(config, tmp_path / "run", reward_funcs=[every_other])
    tokenizer, models = load_tokenizer("tiny"), [load_model("tiny"), load_model(run.model_dir)]
    for (prompt, ids), row in zip(asked, run.completions().to_dict("records"), strict=True):
        start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = torch.tensor([start + ids])
        with torch.no_grad():
            logits = (model(whole).logits[0, len(start) - 1:-1] / config.grpo.temperature for model in models)
            before, after = (one.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0] for one in logits)
        change = np.array(row["tokens"]["logp_change"])
        np.testing.assert_allclose(change, after - before, rtol=0.01, atol=1e-4)
        assert change.any() and row["rewards"] == {"every_other": row["reward"]}
        assert row["tokens"]["text"] == [tokenizer.decode(token) for token in ids]
        assert row["advantage"] * (row["reward"] - 0.5) > 0


def test_lora_trains_an_adapter_that_the_next_stage_starts_from(tmp_path):
    lora = {"model.lora": {"r": 16, "alpha": 32}}
    config = configuration.load("countdown-grpo", "smoke", lora)
    first = sft.train(config, tmp_path / "sft")
    assert adapter_base(str(first.model_dir)) == str(TINY_MODEL)
    merged, base = load_model(first.model_dir), load_model("tiny")
    changed = [name for name, weight in merged.state_dict().items() if not torch.equal(weight, base.state_dict()[name])]
    assert changed and all("proj" in name for name in changed), "all-linear touches the projections only"

    class Watch(TrainerCallback):  # on_train_end, because the trained model of the trainer itself is what must be saved
        def on_train_end(self, args, state, control, model=None, **kwargs):
            with torch.no_grad():
                self.logits = model.eval()(ids).logits

    watch, ids = Watch(), torch.tensor([load_tokenizer("tiny")("Use each of the numbers 3, 7")["input_ids"]])
    for name, changes in {"no KL": {}, "KL": {"grpo.beta": 0.1}}.items():
        config = configuration.load("countdown-grpo", "smoke", {**lora, **MOVES, **changes})
        second = grpo.train(config, tmp_path / name, model=first.model_dir, reward_funcs=[length], callbacks=[watch])
        assert adapter_base(str(second.model_dir)) == str(TINY_MODEL)
        reloaded = load_model(second.model_dir)
        with torch.no_grad():
            assert torch.allclose(reloaded(ids).logits, watch.logits, atol=1e-4), "both stages are in what was saved"
            assert not torch.allclose(reloaded(ids).logits, merged(ids).logits, atol=1e-3), "and the second did train"


def test_a_start_adapter_is_trained_further_as_it_is(tmp_path):
    config = configuration.load("countdown-grpo", "smoke", {"model.lora": {"r": 4, "alpha": 8}, "sft.max_steps": 1})
    first = sft.train(config, tmp_path / "sft")
    for changes, message in (({"model.lora": {"r": 8, "alpha": 8}}, r"model.lora.r = 8.*--set model.lora.r=4"),
                             ({"model.lora": {"r": 4, "alpha": 16}}, r"model.lora.alpha = 16.*has 8"),
                             ({}, "model.lora = None trains all weights.*scripts/export.py")):
        with pytest.raises(ConfigError, match=message):
            grpo.train(configuration.load("countdown-grpo", "smoke", changes), tmp_path / "grpo", model=first.model_dir)
    assert not (tmp_path / "grpo").exists()


def test_a_killed_run_of_a_start_adapter_resumes_with_it(tmp_path):
    """With a KL term TRL keeps a copy of the start adapter beside the trained one. A resumed run must not take that."""
    overrides = {"model.lora": {"r": 4, "alpha": 8}, "grpo.beta": 0.1, "grpo.max_steps": 3, **MOVES}
    config = configuration.load("countdown-grpo", "smoke", overrides)
    start = sft.train(config, tmp_path / "sft").model_dir
    whole = grpo.train(config, tmp_path / "whole", model=start, reward_funcs=[length])
    shorter = configuration.load("countdown-grpo", "smoke", {**overrides, "grpo.max_steps": 2})
    grpo.train(shorter, tmp_path / "halves", model=start, reward_funcs=[length])
    assert not (tmp_path / "halves" / "checkpoints" / "checkpoint-2" / "ref").exists()
    halves = grpo.train(config, tmp_path / "halves", model=start, resume=True, reward_funcs=[length])
    assert_same_run(whole, halves)
    adapters = [load_file(run.model_dir / "adapter_model.safetensors") for run in (whole, halves)]
    assert all(torch.allclose(adapters[0][name], adapters[1][name], atol=1e-5) for name in adapters[0])


def test_a_finished_run_is_left_alone_unless_more_steps_are_requested(tmp_path, capsys, monkeypatch):
    config = configuration.load("countdown-grpo", "smoke", {"sft.max_steps": 2, "sft.logging_steps": 1})
    run = sft.train(config, tmp_path / "sft")
    assert [name for name in run.metrics() if name != "step" and not meaning(name)] == []
    written = (run.model_dir / "model.safetensors").stat().st_mtime_ns
    assert sft.train(config, tmp_path / "sft", resume=True).metrics()["step"].tolist() == [1, 2]
    assert (run.model_dir / "model.safetensors").stat().st_mtime_ns == written
    said = capsys.readouterr()
    assert "SFT: 2 steps, a checkpoint every " in said.out
    assert said.out.endswith(f"The run in {run.path} is finished already; nothing was trained. Delete it to train it "
                             "again.\n")
    assert "Tokenizing" not in said.err, "one bar a run"

    before = load_model(run.model_dir).state_dict()
    shutil.rmtree(run.model_dir)  # as if killed right after the last checkpoint
    (run.path / "metrics.csv").unlink()
    again = sft.train(config, tmp_path / "sft", resume=True)
    assert again.metrics()["step"].tolist() == [1, 2] and (run.path / "metrics.csv").exists()
    assert all(torch.equal(weight, before[name]) for name, weight in load_model(again.model_dir).state_dict().items())

    record = run.config_path.read_bytes()
    for other in ({"seed": 5}, {"sft.learning_rate": 1e-3}, {"sft.max_steps": 1}):
        changed = configuration.load("countdown-grpo", "smoke", {"sft.max_steps": 2, "sft.logging_steps": 1, **other})
        with pytest.raises(RunDirectoryError, match=f"finished, .* with other settings .*{next(iter(other))}"):
            sft.train(changed, tmp_path / "sft", resume=True)
    of_others = {"grpo.beta": 0.1, "evaluation.num_samples": 2, "task.test_limit": 3, "rewards.format_reward": 0.5}
    sft.train(configuration.with_overrides(config, of_others), tmp_path / "sft", resume=True)
    shutil.move(run.checkpoints_dir, tmp_path / "checkpoints")
    sft.train(config, tmp_path / "sft", resume=True)  # to save space: the model is finished without them
    shutil.move(tmp_path / "checkpoints", run.checkpoints_dir)
    assert run.config_path.read_bytes() == record

    longer = configuration.load("countdown-grpo", "smoke", {"sft.max_steps": 4, "sft.logging_steps": 1})
    with pytest.raises(TrainingInterrupted, match="^SFT stopped at step 3 of 4: run it again to resume from step 2.$"):
        sft.train(longer, tmp_path / "sft", resume=True, callbacks=[Interrupt()])
    assert not tqdm._instances, "an open bar would spoil every later one"
    with monkeypatch.context() as patch, pytest.raises(TrainingInterrupted, match="^SFT stopped while it prepared"):
        patch.setattr(sft, "demonstrations", Mock(side_effect=KeyboardInterrupt))
        sft.train(longer, tmp_path / "sft", resume=True)
    assert not run.has_model, "the model of 2 steps must not pass for one of 4"
    assert sft.train(longer, tmp_path / "sft", resume=True).metrics()["step"].tolist() == [1, 2, 3, 4]
    with pytest.raises(RunDirectoryError, match="start model .*model is in .* replaces it"):
        sft.train(config, tmp_path / "sft", model=run.model_dir, resume=True)

    run.metrics_path.unlink()
    config = configuration.with_overrides(longer, {"sft.max_steps": 5})
    with pytest.warns(UserWarning, match="metrics.jsonl is missing or empty: it will hold only the steps after 4"):
        assert sft.train(config, tmp_path / "sft", resume=True).metrics()["step"].tolist() == [5]


def test_a_notebook_shows_an_interrupt_in_one_line_and_says_that_a_run_without_a_checkpoint_starts_again(tmp_path):
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    shown = []
    shell._showtraceback = lambda kind, error, lines: shown.extend(lines)
    config = configuration.load("countdown-grpo", "smoke", {"sft.max_steps": 2})
    shell.push({"train": lambda: sft.train(config, tmp_path / "sft", resume=True, callbacks=[Interrupt()])})
    shell.run_cell("train()")
    assert shown == ["SFT stopped at step 1 of 2: run it again and it starts from step 0, because it had no checkpoint "
                     "yet."]
    sft.train(config, tmp_path / "sft", resume=True)
    shown.clear()
    changed = configuration.with_overrides(config, {"seed": 5})
    shell.push({"train": lambda: sft.train(changed, tmp_path / "sft", resume=True)})
    shell.run_cell("train()")
    assert len(shown) == 1 and "is finished, and was trained with other settings (seed). Nothing was" in shown[0]


def test_the_probe_asks_held_out_problems_and_changes_nothing_else(tmp_path):
    metrics = []
    for every in (0, 2):
        config = configuration.load("countdown-grpo", "smoke", {"grpo.probe_rollouts": every, "grpo.max_steps": 3})
        metrics.append(grpo.train(config, tmp_path / str(every)).metrics().drop(columns=[*TIMING_COLUMNS]))
    without, with_probe = metrics
    probe = pd.DataFrame({name: with_probe.pop(f"probe/{name}") for name in ("accuracy", "stderr", "problems")})
    assert probe.notna().all(axis=1).tolist() == [True, False, True]
    assert probe["accuracy"].dropna().between(0, 1).all() and set(probe["problems"].dropna()) == {16}
    pd.testing.assert_frame_equal(without, with_probe)


def test_stopping_early_keeps_the_learning_rates_of_the_whole_run(tmp_path):
    config = configuration.load("countdown-grpo", "smoke", {"sft.max_steps": 4})
    whole = sft.train(config, tmp_path / "whole").metrics()
    short = sft.train(config, tmp_path / "short", callbacks=[StopAfter(2)]).metrics()
    assert short["learning_rate"].tolist() == whole["learning_rate"].tolist()[:2]


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    config = configuration.load("countdown-grpo", "smoke", {"sft.weight_decay": 1e300, "sft.max_steps": 2})
    with pytest.raises(WorkshopError, match="Training diverged: .* NaN or infinite, so no model is saved"):
        sft.train(config, tmp_path / "sft")
    assert not RunDirectory(tmp_path / "sft").model_dir.exists()


def test_the_checkpoint_with_the_best_reward_stays_when_the_run_collapses(tmp_path):
    rewards = iter([0.0, 5.0, 1.0, 0.0, 0.0])

    def reward(completions, **columns):
        return [next(rewards)] * len(completions)

    config = configuration.load("countdown-grpo", "smoke", {
        "grpo.max_steps": 5, "grpo.save_steps": 1, "rewards.format_reward": None})
    run = grpo.train(config, tmp_path / "grpo", reward_funcs=[reward])
    assert {folder.name for folder in run.checkpoints_dir.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-5"}
    assert load_model(run.checkpoints_dir / "checkpoint-2")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device"),
                                   RuntimeError("PytorchStreamWriter failed writing file data/0")])
def test_a_full_disk_says_how_to_continue_and_loses_nothing(tmp_path, monkeypatch, error):
    """The first checkpoint is saved; the disk is full at the second."""
    def fails(trainer, folder):
        if trainer.state.global_step == 2:
            raise error
        save(trainer, folder)

    config = configuration.load("countdown-grpo", "smoke", {"sft.max_steps": 3, "sft.save_steps": 1})
    save = Trainer._save_optimizer_and_scheduler
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_optimizer_and_scheduler", fails)
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(RunDirectoryError, match="is full: free space, then continue with --resume"):
            sft.train(config, tmp_path / "sft")
    with pytest.warns(UserWarning, match="checkpoint-2 is skipped"):
        run = sft.train(config, tmp_path / "sft", resume=True)
    assert run.has_model and run.last_checkpoint().name == "checkpoint-3"


@pytest.mark.parametrize("overrides, cause", [
    ({"task.source": "missing.jsonl"}, "no file missing.jsonl"),
    ({"grpo.max_prompt_length": 32}, "max_prompt_length = 32 leaves no prompt .*: set it to"),
    ({"model.name": "no/such-model"}, "(?s)no/such-model.*could not be loaded.*(Hub id|Hub cannot be reached)"),
])
def test_a_failed_start_does_not_block_the_next_one(tmp_path, overrides, cause):
    config = configuration.load("countdown-grpo", "smoke", overrides)
    with pytest.raises(WorkshopError, match=cause):
        grpo.train(config, tmp_path / "grpo")
    assert not (tmp_path / "grpo").exists()


def test_fewer_demonstrations_than_the_tier_has_when_the_task_is_limited(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(sft, "demonstrations", lambda task, dataset: asked.append(len(dataset)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sft.train(configuration.load("countdown-grpo", "smoke", {"task.train_limit": 5}), tmp_path / "sft")
    assert asked == [5], "the smoke tier has 64"


def test_other_examples_replace_the_demonstrations(tmp_path):
    example = {"prompt": [{"role": "user", "content": "3 7"}],
               "completion": [{"role": "assistant", "content": "7 - 3"}]}
    config = configuration.load("countdown-grpo", "smoke", {"sft.max_steps": 1})
    metrics = sft.train(config, tmp_path / "sft", examples=Dataset.from_list([example])).metrics()
    chat = load_tokenizer("tiny").apply_chat_template([*example["prompt"], *example["completion"]], tokenize=False)
    assert metrics["num_tokens"].tolist() == [len(load_tokenizer("tiny")(chat)["input_ids"])]


def raises(completions, **columns):
    return [1 / 0 for _ in completions]


def returns_nan(completions, **columns):
    return [float("nan")] + [0.0] * (len(completions) - 1)


def returns_none(completions, **columns):
    return [None] * len(completions)


def returns_too_few(completions, **columns):
    return [0.0]


@pytest.mark.parametrize("reward, message", [
    (raises, "'raises' raised ZeroDivisionError"), (returns_nan, "'returns_nan' returned None, NaN"),
    (returns_none, "'returns_none' returned None, NaN"), (returns_too_few, "returns_too_few")])
def test_a_broken_reward_stops_the_run_and_is_named(tmp_path, reward, message):
    config = configuration.load("countdown-grpo", "smoke", {"rewards.format_reward": None})
    with pytest.raises(ValueError, match=message):
        grpo.train(config, tmp_path / "run", reward_funcs=[reward])
