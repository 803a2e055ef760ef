"""scripts/train.py: which stages it runs and from which model, and what it refuses before anything is trained."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import train as train_script

from lab_utils import TINY_MODEL, TrainingStopped, exit_status
from lab_utils.config import RunConfig, read_config
from lab_utils.runs import RunDirectory
from lab_utils.training import stages


@pytest.fixture
def calls(monkeypatch):
    """Replace the stages and the evaluation by recorders: (what, directory, start model or None, resume)."""
    recorded = []

    def stage(name):
        def train(config, output_dir, *, model=None, resume=False):
            assert isinstance(config, RunConfig)
            recorded.append((name, Path(output_dir), model, resume))
            shutil.copytree(TINY_MODEL, Path(output_dir) / "model", dirs_exist_ok=True)
            return RunDirectory(output_dir)

        return train

    def evaluate_run(source, config):
        recorded.append(("evaluate", Path(source)))
        return SimpleNamespace(save=lambda path: recorded.append(("saved", Path(path))))

    monkeypatch.setattr(stages, "TRAIN", {name: stage(name) for name in stages.TRAIN})
    monkeypatch.setattr("lab_utils.evaluation.evaluate_run", evaluate_run)
    return recorded


def train(*arguments) -> int:
    words = ["--recipe", "countdown-grpo", "--hardware", "smoke", *map(str, arguments)]
    return exit_status(lambda: train_script.main(words))


def test_each_stage_starts_from_the_model_of_the_one_before(calls, tmp_path):
    out = tmp_path / "new" / "out"
    assert train("--output-dir", out) == 0
    assert calls == [("sft", out / "sft", None, False), ("grpo", out / "grpo", str(out / "sft" / "model"), False)]
    assert train("--output-dir", out, "--resume") == 0
    assert [resume for _, _, _, resume in calls] == [False, False, True, True]


def test_a_stop_is_no_failure_and_ends_the_script(calls, tmp_path, capsys, monkeypatch):
    def stopped(config, output_dir, *, model=None, resume=False):
        raise TrainingStopped("SFT was stopped by SIGTERM after step 2 of 6.")

    monkeypatch.setitem(stages.TRAIN, "sft", stopped)
    assert train("--output-dir", tmp_path / "out", "--evaluate", "--export", tmp_path / "export") == 0
    assert "stopped by SIGTERM after step 2 of 6" in capsys.readouterr().out
    assert calls == [] and not (tmp_path / "export").exists()


def test_export_writes_the_last_stages_model_before_the_evaluation(calls, tmp_path, monkeypatch):
    def export(source, directory, settings):
        calls.append(("export", Path(source), Path(directory)))
        return directory

    monkeypatch.setattr("lab_utils.models.export_model", export)
    out = tmp_path / "out"
    assert train("--output-dir", out, "--evaluate", "--export", tmp_path / "export") == 0
    assert calls[2:] == [("export", out / "grpo" / "model", tmp_path / "export"), ("evaluate", out / "sft"),
                         ("evaluate", out / "grpo")]


def test_evaluation_only(calls, tmp_path, capsys):
    assert train("--output-dir", tmp_path / "a", "--evaluate-only", "--model", "tiny") == 0
    assert calls == [("evaluate", Path("tiny")), ("saved", tmp_path / "a" / "eval.json")]
    assert train("--output-dir", tmp_path / "b") == 0
    del calls[:]
    assert train("--output-dir", tmp_path / "b", "--evaluate-only", "--stages", "sft") == 0
    assert calls == [("evaluate", tmp_path / "b" / "sft")], "evaluate_run writes eval.json into a run directory itself"
    assert train("--output-dir", tmp_path / "c", "--evaluate-only") == 2
    assert "No trained model in" in capsys.readouterr().err and not (tmp_path / "c").exists()


def test_set_limit_and_stages_reach_the_configuration():
    arguments = train_script.parse_arguments(
        ["--recipe", "gsm8k-grpo", "--hardware", "cpu", "--set", "grpo.beta=0.04", "--set", "grpo.learning_rate=1e-5",
         "--limit", "100", "--stages", "sft,grpo"]
    )
    config = train_script.load_config(arguments)
    assert (config.grpo.beta, config.grpo.learning_rate, config.stages) == (0.04, 1e-5, ["sft", "grpo"])
    assert (config.task.train_limit, config.task.test_limit) == (100, 100)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--set", "grpo.bata=1"], ["grpo.bata", "Did you mean grpo.beta?"]),
        (["--stages", "sft,gppo"], ["'gppo'", "Did you mean"]),
        (["--stages", ""], ["stages = []"]),
        (["--limit", "0"], ["task.train_limit = 0", "at least 1"]),
        (["--set", "task.source=nowhere.jsonl"], ["nowhere.jsonl", "hub"]),
    ],
)
def test_wrong_arguments_give_one_message_and_status_2(calls, tmp_path, capsys, arguments, parts):
    assert train("--output-dir", tmp_path, *arguments) == 2
    message = capsys.readouterr().err
    assert [part for part in parts if part not in message] == [], message
    assert calls == [] and "Traceback" not in message


@pytest.mark.parametrize("arguments", [["--stage", "sft"], ["--beta", "1"], ["extra"]])
def test_unknown_options_are_errors(calls, tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        train("--output-dir", tmp_path, *arguments)
    assert exit_.value.code == 2 and "unrecognized arguments" in capsys.readouterr().err and calls == []


def test_a_directory_with_results_is_left_alone(calls, tmp_path, capsys):
    (tmp_path / "sft" / "checkpoints").mkdir(parents=True)  # left by a failed start: nothing to lose
    (tmp_path / "grpo").mkdir()
    for file in ("grpo/config.yaml", "notes.txt"):
        (tmp_path / file).write_text("mine")
    assert train("--output-dir", tmp_path) == 2
    message = capsys.readouterr().err
    assert "not empty" in message and "it holds grpo, notes.txt:" in message and "--resume" in message
    assert calls == [] and (tmp_path / "notes.txt").read_text() == "mine"


def test_an_output_directory_that_cannot_be_written(calls, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert train("--output-dir", tmp_path / "file" / "out") == 2
    assert train("--output-dir", tmp_path / "file") == 2
    assert capsys.readouterr().err.count("Cannot write to the output directory") == 2 and calls == []


def test_a_gpu_run_checks_the_machine_once_and_prints_the_estimate(calls, tmp_path, capsys, monkeypatch):
    checked = []
    monkeypatch.setattr("lab_utils.machine.gpu.check_machine", lambda config: checked.append(config.hardware))
    assert train("--output-dir", tmp_path, "--hardware", "a10g", "--set", "task.source=synthetic") == 0
    printed = capsys.readouterr().out
    assert checked == ["a10g"] and "Estimated" in printed and "grpo: " in printed


@pytest.mark.component
def test_a_recipe_runs_from_the_command_line(tmp_path):
    assert train("--output-dir", tmp_path, "--evaluate") == 0
    for stage in ("sft", "grpo"):
        run = RunDirectory(tmp_path / stage)
        assert read_config(run.config_path).hardware == "smoke"
        assert run.model_dir.is_dir() and run.evaluation_path.is_file() and len(run.metrics())
