"""scripts/fast_forward.py: finished runs are put in place, and a learner's own stay."""

import shutil

import fast_forward
import pytest

from lab_utils import WorkshopError
from lab_utils.runs import RunDirectory, RunDirectoryError


@pytest.fixture
def yesterday(run, tmp_path):
    """Return an OUTPUT_DIR in which notebooks 03 and 06 were run."""
    for name in ("sft", "grpo"):
        shutil.copytree(run.path, tmp_path / "yesterday" / "countdown" / name)
    (tmp_path / "yesterday" / "countdown" / "grpo" / ".lock").touch()
    return tmp_path / "yesterday"


def forward(source, target, notebook):
    fast_forward.main(["--from", str(source), "--to", str(target), "--notebook", str(notebook)])


def test_the_runs_up_to_the_notebook_are_copied(yesterday, tmp_path, capsys):
    forward(yesterday, tmp_path / "outputs", 3)
    assert [path.name for path in (tmp_path / "outputs" / "countdown").iterdir()] == ["sft"]
    forward(yesterday, tmp_path / "outputs", 6)
    copy = RunDirectory(tmp_path / "outputs" / "countdown" / "grpo")
    assert copy.has_model and copy.config().recipe == "countdown-grpo" and not (copy.path / ".lock").exists()
    assert "kept" in capsys.readouterr().out


def test_a_finished_run_of_the_learner_stays_and_an_unfinished_one_is_replaced(yesterday, tmp_path):
    own = tmp_path / "outputs" / "countdown"
    shutil.copytree(yesterday / "countdown" / "sft", own / "sft")
    (own / "sft" / "mine.txt").touch()
    shutil.copytree(yesterday / "countdown" / "grpo", own / "grpo")
    shutil.rmtree(own / "grpo" / "model")
    (own / "grpo" / "metrics.jsonl").write_text("")
    forward(yesterday, tmp_path / "outputs", 6)
    assert (own / "sft" / "mine.txt").exists()
    assert RunDirectory(own / "grpo").has_model and not (own / "grpo" / "metrics.jsonl").exists()


def test_a_run_that_is_training_now_is_left_alone(yesterday, tmp_path):
    with RunDirectory(tmp_path / "outputs" / "countdown" / "sft").locked():
        with pytest.raises(RunDirectoryError, match="Another process is training"):
            forward(yesterday, tmp_path / "outputs", 3)


def test_a_missing_run_is_named_with_the_command_that_makes_it_and_nothing_is_copied(yesterday, tmp_path):
    (yesterday / "countdown" / "grpo" / "model" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(WorkshopError, match=r"countdown/grpo, .*--only 06,07,08,10"):
        forward(yesterday, tmp_path / "outputs", 10)
    assert not (tmp_path / "outputs").exists()
    with pytest.raises(WorkshopError, match="choose --notebook 3 or higher"):
        forward(yesterday, tmp_path / "outputs", 2)
