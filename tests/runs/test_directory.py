"""Run directories: what they refuse, what they keep, and that a resumed run leaves the same files."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from lab_utils import TINY_MODEL
from lab_utils import config as configuration
from lab_utils.runs import (
    MetricsCallback,
    ProgressCallback,
    RunDirectory,
    RunDirectoryError,
    model_of,
    report_to,
    write_atomically,
    written_whole,
)
from lab_utils.teaching.inspection import show_completions


@pytest.fixture(scope="module")
def config():
    return configuration.load("countdown-grpo", "cpu")


@pytest.fixture
def run(config, tmp_path):
    return RunDirectory.create(config, tmp_path / "outputs" / "grpo")


# --- creating --------------------------------------------------------------------------------------------------------


def test_create_writes_config_and_environment(run, config):
    assert run.config() == config
    environment = run.environment()
    assert environment["packages"]["torch"] == torch.__version__ and environment["cpu_count"] >= 1
    assert str(run.path) not in json.dumps(environment) and "/home" not in json.dumps(environment)
    assert not list(run.path.glob("*.tmp-*"))


def test_create_refuses_a_directory_that_holds_something_and_leaves_it_alone(config, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunDirectoryError, match="is not empty.*--resume"):
        RunDirectory.create(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_create_says_why_it_cannot_write(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="Cannot write to the output directory .*: set --output-dir"):
        RunDirectory.create(config, tmp_path / "file" / "run")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_second_process_is_refused_until_the_first_ends_however_it_ends(config, tmp_path):
    run = RunDirectory(tmp_path / "run")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with run.locked():
            os.write(writer, b"locked")
            signal.pause()
    os.read(reader, 6)
    with pytest.raises(RunDirectoryError, match="Another process is training in .*run: wait"), run.locked():
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with run.locked():
        RunDirectory.create(config, run.path)  # the lock itself does not count as a result
    with pytest.raises(RunDirectoryError, match="is not empty"):
        run.check_free()


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / "eval.json"
    with written_whole(path) as first, written_whole(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["eval.json"]


def test_a_failed_write_leaves_the_old_content(tmp_path):
    path = tmp_path / "config.yaml"
    write_atomically(path, "old")
    with pytest.raises(OSError, match="No space"), written_whole(path) as temporary:
        temporary.write_text("new")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["config.yaml"]


def test_of_several_processes_only_the_first_writes(config, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    RunDirectory.create(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resuming_with_other_settings_warns_and_names_them(run, config, recwarn):
    RunDirectory.create(config, run.path, resume=True)
    assert not recwarn.list
    other = configuration.load("countdown-grpo", "cpu", {"grpo.learning_rate": 1e-5, "seed": 3})
    with pytest.warns(UserWarning, match="changed since it started: seed, grpo.learning_rate"):
        RunDirectory.create(other, run.path, resume=True)


def test_reading_what_is_not_there_says_so(tmp_path):
    with pytest.raises(RunDirectoryError, match="has no metrics.jsonl.*OUTPUT_DIR/grpo"):
        RunDirectory(tmp_path).metrics()


def test_model_of_a_run_and_of_anything_else(run):
    assert model_of(run.path) == str(run.path)  # not trained yet
    shutil.copytree(TINY_MODEL, run.model_dir)
    assert model_of(run.path) == str(run.model_dir)
    assert model_of("tiny") == "tiny"


# --- metrics and completions -----------------------------------------------------------------------------------------


def test_metrics_may_appear_later_and_be_absent(run):
    run.append_metrics(1, {"loss": 0.5, "reward": 0.25})
    run.append_metrics(2, {"loss": 0.25, "reward": None, "kl": 0.125})
    run.append_metrics(3, {"loss": 0.125})
    assert run.metrics()["kl"].isna().tolist() == [True, False, True]
    second = run.metrics_path.read_text().splitlines()[1]
    assert json.loads(second) == {"step": 2, "loss": 0.25, "reward": None, "kl": 0.125}
    run.write_metrics_table()
    table = (run.path / "metrics.csv").read_text()
    assert table == "step,loss,reward,kl\n1,0.5,0.25,\n2,0.25,,0.125\n3,0.125,,\n"


def test_metrics_have_one_row_a_step_in_order(run):
    for step, loss in [(1, 1.0), (3, 3.0), (2, 2.0), (3, 3.5)]:
        run.append_metrics(step, {"loss": loss})
    frame = run.metrics()
    assert frame["step"].tolist() == [1, 2, 3] and frame["loss"].tolist() == [1.0, 2.0, 3.5]


def completion_row(step, text="<answer>3 + 4</answer>"):
    return {"step": step, "question": "make 7", "gold": "7", "completion": text, "extracted": "3 + 4",
            "correct": True, "reward": 1.1}


def test_a_resumed_run_does_not_write_into_a_checkpoint_that_a_killed_process_left_unfinished(run):
    for name in ("checkpoint-2/trainer_state.json", "checkpoint-4/.tmpAbCdEf"):  # safetensors writes to the second
        (run.checkpoints_dir / name).parent.mkdir(parents=True)
        (run.checkpoints_dir / name).write_text("{}")
    run.discard_after(2)
    assert [path.name for path in run.checkpoints_dir.iterdir()] == ["checkpoint-2"]


def test_discard_after_forgets_later_steps_and_half_written_lines(run):
    for step in (1, 2, 3):
        run.append_metrics(step, {"loss": 1 / step})
        run.append_completions([completion_row(step), completion_row(step, "line\nbreak \u2028 ü")])
    with open(run.metrics_path, "a") as file:
        file.write('{"step": 4, "lo')
    with open(run.completions_path, "a") as file:
        file.write('{"step": 4, "ques')
    assert run.metrics()["step"].tolist() == [1, 2, 3] and len(run.completions()) == 6
    run.discard_after(2)
    assert run.metrics()["loss"].tolist() == [1.0, 0.5]
    assert run.completions()["step"].tolist() == [1, 1, 2, 2]
    assert run.completions()["completion"].iloc[-1] == "line\nbreak \u2028 ü"


def test_show_completions_shows_the_nearest_recorded_step(run):
    run.append_completions([completion_row(1), completion_row(11), completion_row(11), completion_row(11)])
    assert show_completions(run, n=2).count("step 11 · correct · reward 1.10") == 2
    shown = show_completions(run, step=4)
    assert shown.count("Question:  make 7") == 1 and "Extracted: 3 + 4" in shown and "step 1 " in shown


# --- callbacks, in a real Trainer ------------------------------------------------------------------------------------


class Interrupt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def forward(self, x, labels):
        return {"loss": (self.linear(x) - labels).square().mean()}


def fit(run, interrupt_at=None):
    torch.manual_seed(0)
    rows = [{"x": torch.tensor([i / 8]), "labels": torch.tensor([i / 4])} for i in range(32)]
    arguments = TrainingArguments(
        str(run.checkpoints_dir), max_steps=6, save_steps=2, logging_steps=1, per_device_train_batch_size=4,
        report_to=[], use_cpu=True, disable_tqdm=True, learning_rate=0.05,
    )
    callbacks = [MetricsCallback(run), ProgressCallback("line"), Interrupt(interrupt_at)]
    trainer = Trainer(Line(), arguments, train_dataset=rows, callbacks=callbacks)
    trainer.remove_callback(PrinterCallback)
    checkpoint = run.last_checkpoint()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def test_a_resumed_run_continues_steps_and_clock(run, config):
    with pytest.raises(KeyboardInterrupt):
        fit(run, interrupt_at=6)
    RunDirectory.create(config, run.path, resume=True)
    fit(run)
    assert run.metrics()["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert run.metrics()["seconds"].is_monotonic_increasing


@pytest.mark.parametrize(
    "name, damage, problem",
    [
        ("trainer_state.json", None, "trainer_state.json is missing"),
        ("trainer_state.json", lambda b: b[:-3], "trainer_state.json is not valid JSON"),
        ("model.safetensors", None, "model file .* is missing"),
        ("model.safetensors", lambda b: b[:-1], "model.safetensors is truncated"),
        ("optimizer.pt", lambda b: b[: len(b) // 2], "optimizer.pt is truncated"),
    ],
)
def test_a_damaged_checkpoint_is_skipped(config, tmp_path, name, damage, problem):
    run = RunDirectory.create(config, tmp_path / "run")
    fit(run)
    assert run.last_checkpoint().name == "checkpoint-6"
    broken = run.checkpoints_dir / "checkpoint-6" / name
    content = broken.read_bytes()
    broken.unlink()
    if damage is not None:
        broken.write_bytes(damage(content))
    with pytest.warns(UserWarning, match=f"checkpoint-6 is skipped: .*{problem}"):
        assert run.last_checkpoint().name == "checkpoint-4"
    for checkpoint in run.checkpoints_dir.iterdir():
        (checkpoint / "optimizer.pt").write_text("{")
    with pytest.warns(UserWarning), pytest.raises(RunDirectoryError, match="None of the 2 checkpoints .* is complete"):
        run.last_checkpoint()


@pytest.mark.parametrize("state", [None, "", '{"global_st'])
def test_a_run_killed_in_its_first_checkpoint_starts_over(run, state):
    with pytest.raises(KeyboardInterrupt):
        fit(run, interrupt_at=3)
    [checkpoint] = run.checkpoints_dir.iterdir()
    (checkpoint / "trainer_state.json").unlink()
    if state is not None:
        (checkpoint / "trainer_state.json").write_text(state)
    with pytest.warns(UserWarning, match="was stopped in its first checkpoint: it starts over"):
        fit(run)
    assert run.metrics()["step"].tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("best, kept", [(None, {"checkpoint-9", "checkpoint-10"}),
                                        ("elsewhere/checkpoint-8", {"checkpoint-8", "checkpoint-10"})])
def test_the_last_checkpoint_and_the_best_stay_although_the_clock_was_set_back(run, best, kept):
    for step in (8, 9, 10):
        folder = run.checkpoints_dir / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": best}))
        os.utime(folder, (1e9 - step, 1e9 - step))
    run.finish_checkpoint(run.checkpoints_dir / "checkpoint-10")
    assert {folder.name for folder in run.checkpoints_dir.iterdir()} == kept


# --- Weights & Biases ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key, mode, expected", [(None, None, "offline"), (None, "online", "offline"),
                                                 ("secret", None, None), (None, "disabled", "disabled")])
def test_wandb_never_asks_for_a_key(config, run, monkeypatch, key, mode, expected):
    for name, value in (("WANDB_API_KEY", key), ("WANDB_MODE", mode), ("WANDB_PROJECT", None)):
        monkeypatch.setenv(name, value or "")
        if value is None:
            monkeypatch.delenv(name)
    assert report_to(configuration.with_overrides(config, {"tracking.wandb": True, "tracking.tensorboard": False}),
                     run) == ["wandb"]
    assert os.environ.get("WANDB_MODE") == expected


@pytest.mark.parametrize("key, mode, setting, on", [
    ("secret", None, None, True), (None, "online", None, True), (None, None, None, False),
    (None, "offline", None, False), ("secret", "disabled", None, False), ("secret", None, False, False)])
def test_a_key_in_the_environment_turns_wandb_on(config, run, monkeypatch, key, mode, setting, on):
    monkeypatch.setattr("lab_utils.runs.callbacks.installed_version", lambda package: "1")
    for name, value in (("WANDB_API_KEY", key), ("WANDB_MODE", mode), ("WANDB_PROJECT", "")):
        monkeypatch.setenv(name, value or "")
    config = configuration.with_overrides(config, {"tracking.wandb": setting, "tracking.tensorboard": False})
    assert report_to(config, run) == ["wandb"] * on
    assert "secret" not in config.to_yaml()


def test_trackers_are_imported_only_if_they_are_on(config, run):
    assert report_to(config, run) == ["tensorboard"]
    assert report_to(configuration.with_overrides(config, {"tracking.tensorboard": False}), run) == []
    code = ("import sys\nfrom lab_utils.training import stages\n"
            "print(sorted({'wandb', 'tensorboard', 'torch.utils.tensorboard'} & set(sys.modules)))\nimport wandb")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
