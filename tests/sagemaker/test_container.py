"""The container for real: recorded jobs run in a folder that stands for /opt/ml, without AWS and without docker.

One request is recorded and its job run to the end. The other tests look at its outputs, or change the job's files.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pandas as pd
import pytest
import yaml
from account import PLACE
from safetensors.torch import load_file

from lab_utils import REPOSITORY
from lab_utils import config as configuration
from lab_utils.evaluation import Evaluation
from lab_utils.machine.environment import read_pins
from lab_utils.runs import TIMING_COLUMNS, RunDirectory
from lab_utils.sagemaker import container, emulation
from lab_utils.sagemaker.session import SageMakerError

pytest.importorskip("sagemaker.train", reason="the SageMaker SDK is not installed: setup/requirements/sagemaker.txt")

from lab_utils.sagemaker.job import EvaluationJob, TrainingJob, evaluation_request, training_request  # noqa: E402

pytestmark = [pytest.mark.component, pytest.mark.timeout(400)]  # each job imports torch twice, at least

SECRET = "hf_not_a_real_token"
FAST = ("sft.max_steps=2", "grpo.max_steps=4", "grpo.max_completion_length=32", "task.train_limit=16",
        "tracking.tensorboard=false", "evaluation.max_new_tokens=32", "task.test_limit=4")


@pytest.fixture(scope="module", autouse=True)
def threads():
    """Every job computes with one thread, like the tests, so that the metrics of two jobs can be compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> tuple[dict, Path]:
    """Return the request of a small SFT → GRPO job with its own recipe, and the folder that stands for S3."""
    folder = tmp_path_factory.mktemp("recorded")
    recipe = folder / "mine.yaml"
    recipe.write_text((configuration.RECIPES / "countdown-grpo.yaml").read_text())
    job = TrainingJob(recipe=str(recipe), overrides=FAST, environment={"HF_TOKEN": SECRET}, hardware="smoke", **PLACE)
    return training_request(job, folder), folder


@pytest.fixture(scope="module")
def finished(recorded, tmp_path_factory) -> emulation.EmulatedJob:
    """Return the job, run to its end."""
    return emulation.start(*recorded, tmp_path_factory.mktemp("finished with spaces") / "ml").wait()


def changed(recorded, tmp_path: Path, **changes) -> tuple[dict, Path]:
    """Return the same request with another job.yaml."""
    request, folder = recorded
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    (path,) = copy.rglob("job.yaml")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    return request, copy


def equal_metrics(a: Path, b: Path) -> None:
    frames = [RunDirectory(run).metrics().drop(columns=list(TIMING_COLUMNS), errors="ignore") for run in (a, b)]
    pd.testing.assert_frame_equal(*frames, check_like=True)


# A job that goes well


def test_the_jobs_own_entry_point_ran(finished):
    assert finished.exit_status == 0 and finished.failure is None, finished.log[-3000:]
    assert "Starting training script" in finished.log and "install_requirements.py requirements.txt" in finished.log
    assert SECRET not in finished.log and not Path("/opt/ml").exists()


def test_sft_then_grpo_leave_their_run_directories_without_checkpoints(finished):
    for stage, steps in (("sft", 2), ("grpo", 4)):
        run = RunDirectory(finished.output_dir / stage)
        assert run.config().recipe == "mine", "the code of the channel, not that of this repository"
        assert run.metrics()["step"].tolist()[-1] == steps
        assert run.evaluation_path.exists() and not run.checkpoints_dir.exists()
    assert len(RunDirectory(finished.output_dir / "grpo").completions()) > 0


def test_the_model_directory_holds_a_whole_model_with_its_tokenizer(finished):
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
            "chat_template.jinja"} <= {path.name for path in finished.model_dir.iterdir()}
    exported, trained = (load_file(folder / "model.safetensors")
                         for folder in (finished.model_dir, finished.output_dir / "grpo" / "model"))
    assert exported.keys() == trained.keys() and all(exported[name].equal(trained[name]) for name in trained)


def test_secrets_are_replaced_by_their_names(monkeypatch):
    for name, value in {"WANDB_API_KEY": "w" * 40, "AWS_SESSION_TOKEN": "session-secret", "HF_TOKEN": SECRET,
                        "AWS_REGION": "us-east-1", "TOKENIZERS_PARALLELISM": "default"}.items():
        monkeypatch.setenv(name, value)
    assert container.redact(f"key {'w' * 40}, {SECRET} and session-secret in us-east-1 by default") == (
        "key [WANDB_API_KEY], [HF_TOKEN] and [AWS_SESSION_TOKEN] in us-east-1 by default")


def test_a_job_finds_no_module_that_did_not_travel_with_it(tmp_path, monkeypatch):
    """Neither does the emulation pass this machine's PYTHONPATH or keys on, nor does the container pass on its own."""
    for name in ("PYTHONPATH", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, str(tmp_path))
    environment = emulation.environment_of({"TrainingJobName": "job", "Environment": {"OWN": "1"}}, Path("/env/python"))
    assert environment["OWN"] == "1" and str(tmp_path) not in environment.values()

    monkeypatch.chdir("/")
    child = container.Child([sys.executable, "-c", "import os; print(os.environ['PYTHONPATH'])"], launched=False)
    assert child.run() == 0 and list(child.lines) == ["/"]


def test_an_entry_point_of_your_own_arrives_and_runs(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("import sys, lab_utils\nprint('mine', sys.argv[1:], lab_utils.__file__)\n")
    monkeypatch.chdir(tmp_path)
    job = TrainingJob(recipe="countdown-grpo", hardware="smoke", entry_point="mine.py --fast", **PLACE)
    run = emulation.start(training_request(job, tmp_path / "s3"), tmp_path / "s3", tmp_path / "ml").wait(120)
    assert run.exit_status == 0 and f"mine ['--fast'] {run.ml}/input/data/code/lab_utils/" in run.log


# Evaluation as a processing job


def test_evaluation_is_a_processing_job_on_what_a_training_job_leaves_in_s3(finished, tmp_path):
    archive = tmp_path / "s3" / "s3" / "trained" / "model.tar.gz"
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as files:
        files.add(finished.model_dir, arcname=".")
    job = EvaluationJob(recipe="countdown-grpo", model="s3://trained/model.tar.gz", limit=3,
                        overrides=("evaluation.max_new_tokens=32",), hardware="smoke", **PLACE)
    run = emulation.start(evaluation_request(job, tmp_path / "s3"), tmp_path / "s3", tmp_path / "ml").wait(300)
    assert run.exit_status == 0, run.log[-3000:]
    evaluation = Evaluation.load(run.output_dir / "eval.json")
    assert (len(evaluation.examples), evaluation.num_samples) == (3, 2)
    assert {"results.csv", "accuracy.png", "attempts.png"} <= {path.name for path in run.output_dir.iterdir()}


def test_a_failed_evaluation_says_why(tmp_path):
    """A processing job's reason belongs into /opt/ml/output/message, which becomes its ExitMessage."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    job = EvaluationJob(recipe="countdown-grpo", model=str(tmp_path / "model"), hardware="smoke", **PLACE)
    request = evaluation_request(job, tmp_path / "s3")
    (script,) = (tmp_path / "s3").rglob("scripts/evaluate.py")
    script.write_text("raise ValueError('no weights')")
    run = emulation.start(request, tmp_path / "s3", tmp_path / "ml").wait(300)
    assert run.exit_status == 1 and (run.ml / "output" / "message").read_text() == run.failure
    assert run.failure.splitlines()[0] == "ValueError: no weights" in run.log
    assert not (run.ml / "output" / "failure").exists()


# A spot interruption


def test_sigterm_saves_and_the_restarted_job_ends_like_an_uninterrupted_one(finished, recorded, tmp_path):
    first = emulation.start(*recorded, tmp_path / "first")
    first.watch(until="metrics grpo step=2 ")
    first.interrupt()
    first.wait(300)
    assert first.exit_status == 0 and first.failure is None, first.log[-3000:]
    assert "GRPO was stopped by SIGTERM after step" in first.log
    assert not any(first.model_dir.iterdir()), "an unfinished model must not look like a finished one"
    stopped_at = max(int(path.name.split("-")[1]) for path in first.checkpoints_dir.glob("grpo/checkpoints/*-*"))
    assert 2 <= stopped_at < 4

    damaged = first.checkpoints_dir / "grpo" / "checkpoints" / "checkpoint-9"
    damaged.mkdir()  # S3 got a part of it only
    second = emulation.start(*recorded, tmp_path / "second", checkpoints=first.checkpoints_dir).wait(300)
    assert second.exit_status == 0, second.log[-3000:]
    assert "container: resuming from" in second.log and "checkpoint-9: " in second.log
    assert "metrics sft" not in second.log, "the finished stage is not trained again"
    for stage in ("sft", "grpo"):
        equal_metrics(second.output_dir / stage, finished.output_dir / stage)
    assert (second.model_dir / "model.safetensors").read_bytes() == (
        finished.model_dir / "model.safetensors").read_bytes()


# Failures


def test_a_failure_file_has_the_traceback_and_the_error_first(recorded, tmp_path):
    request, folder = changed(recorded, tmp_path)
    (script,) = folder.rglob("scripts/train.py")
    script.write_text("import os\nraise RuntimeError('no such key: ' + os.environ['HF_TOKEN'])")
    run = emulation.start(request, folder, tmp_path / "ml").wait(300)
    assert run.exit_status == 1
    first, *rest = run.failure.splitlines()
    assert first == "RuntimeError: no such key: [HF_TOKEN]"
    assert "Traceback (most recent call last):" in rest and any("scripts/train.py" in line for line in rest)
    assert SECRET not in run.log + run.failure


def test_an_error_in_what_was_given_has_no_traceback(recorded, tmp_path):
    request, folder = changed(recorded, tmp_path, overrides=["grpo.bata=1"])
    run = emulation.start(request, folder, tmp_path / "ml").wait(300)
    assert run.exit_status == 1
    assert run.failure.startswith("train.py: ") and "Did you mean grpo.beta?" in run.failure
    assert "Traceback" not in run.failure


# What a failure file says

TRACE = ["Traceback (most recent call last):", '  File "/opt/ml/input/data/code/scripts/train.py", line 9', "    run()"]
CHAINED = [*TRACE, "KeyError: 'a'", "During handling of the above exception, another exception occurred:", "", *TRACE]
TORCHRUN = ["E1121 06:17:00.1 7 torch/distributed/elastic/multiprocessing/api.py:1] failed (exitcode: 1)", *TRACE,
            "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:"]
RANKS = [f"[rank1]: {TRACE[0]}", f"[rank0]: {TRACE[0]}", f"[rank1]: {TRACE[1]}", "[rank1]: ValueError: mine",
         "[rank0]: ValueError: later", "[rank1]:[W1121 06:17:00.1 7] Warning: destroy_process_group() was not called"]


@pytest.mark.parametrize(
    ("lines", "first", "absent"),
    [
        ([*TRACE, "ValueError: a message", "of two lines"], "ValueError: a message", "Recipe"),
        ([*CHAINED, "RuntimeError: b"], "RuntimeError: b", "Recipe"),
        ([*RANKS, *TORCHRUN], "ValueError: mine", "later"),
        ([*TRACE, "OSError: no file", *TORCHRUN], "OSError: no file", "ChildFailed"),
        (["train.py: There is no key grpo.bata.", "Keys: beta."], "train.py: There is no key grpo.bata.", "Recipe"),
        ([], "The script ended with signal 9; 9 usually means out of memory. The end of its output:", "Traceback"),
    ],
    ids=["one", "chained", "ranks", "torchrun", "given", "killed"],
)
def test_what_a_failure_file_says(lines, first, absent):
    message = container.failure_message(["Recipe countdown-grpo on hardware tier smoke", *lines], -9)
    assert message.splitlines()[0] == first
    assert absent not in message


# Two ranks


def test_two_ranks_by_torchrun(recorded, tmp_path):
    """Training with several ranks is in test_machines.py."""
    request, folder = changed(recorded, tmp_path, processes=2)
    (script,) = folder.rglob("scripts/train.py")
    line = "'rank {RANK} of {WORLD_SIZE}\\n'.format_map(os.environ)"
    script.write_text(f"import os\nos.write(1, {line}.encode())")  # at once, so that the ranks' lines do not mix
    run = emulation.start(request, folder, tmp_path / "ml").wait(300)
    assert run.exit_status == 0, run.log[-3000:]
    assert "torchrun --standalone --nproc-per-node=2 scripts/train.py" in run.log
    assert "rank 0 of 2" in run.log and "rank 1 of 2" in run.log


@pytest.mark.slow
@pytest.mark.skipif("RUN_INSTALL" not in os.environ, reason="installs a job's environment for 4 minutes: RUN_INSTALL=1")
@pytest.mark.timeout(1800)
def test_a_job_installs_its_requirements_beside_torch_and_trains(recorded, tmp_path):
    """In a new environment with torch only, like AWS's image. Needs the network and takes minutes."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "image"], check=True)
    python = tmp_path / "image" / "bin" / "python"
    torch = f"torch=={read_pins(REPOSITORY / 'setup/requirements/cpu.txt')['torch']}"
    install = [python, "-m", "pip", "install", "-q", "--extra-index-url", "https://download.pytorch.org/whl/cpu", torch]
    if subprocess.run(install).returncode:
        pytest.skip("torch cannot be installed: no package index can be reached")
    request, folder = changed(recorded, tmp_path, stages=["grpo"], evaluate=False)
    run = emulation.start(request, folder, tmp_path / "ml", python=python).wait(1200)
    assert run.exit_status == 0, run.failure or run.log[-3000:]
    assert (run.model_dir / "model.safetensors").exists()


def test_a_channel_that_is_not_here_is_named(recorded, tmp_path):
    request = json.loads(json.dumps(recorded[0]))
    request["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"] = "s3://elsewhere/data"
    with pytest.raises(SageMakerError, match="s3://elsewhere/data is not on this machine"):
        emulation.start(request, recorded[1], tmp_path / "ml")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(SageMakerError, match="is not empty"):
        emulation.start(recorded[0], recorded[1], tmp_path / "full")
