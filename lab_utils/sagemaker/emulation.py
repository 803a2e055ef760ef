"""A SageMaker job on your own machine, without AWS and without docker: the recorded request, run for real.

    request = training_request(job, folder)     # what AWS would be sent; what would be uploaded lies in folder/s3
    run = emulate(request, folder)
    print(run.log)

The job's own entry point runs, at SageMaker's own paths: its channels lie under an /opt/ml that only the job sees, a
mount in a user namespace (Linux). Where namespaces are blocked (Colab, macOS, many containers) the same module has
its paths redirected to a folder, by SageMaker's own environment variables.

What it does not do: it downloads no image and installs no packages. The job finds the packages of this environment, and
its requirements.txt is laid there empty. It has no GPUs but this machine's, and no limit of time, memory or disk.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

# $1: the folder that becomes /opt/ml; the rest: the command. Where there is no /opt/ml to mount it on, /opt is
# replaced by a copy made of mounts that has one more entry. Only this process and its children see any of it.
MOUNT = """
set -eu
ml=$1; shift
if [ ! -d /opt/ml ]; then
    mount -t tmpfs none "$ml"
    mkdir "$ml/ml"
    for entry in /opt/* /opt/.[!.]*; do
        copy=$ml/${entry##*/}
        if [ -L "$entry" ]; then cp -P "$entry" "$copy"
        elif [ -d "$entry" ]; then mkdir "$copy"; mount --rbind "$entry" "$copy"
        elif [ -e "$entry" ]; then touch "$copy"; mount --bind "$entry" "$copy"
        fi
    done
    mount --rbind "$ml" /opt
    umount -l "$ml"
fi
mount --bind "$ml" /opt/ml
exec "$@"
"""
NOTHING_TO_INSTALL = "# Emulated job: nothing is installed, the packages are those of the environment that runs it.\n"
STEP = re.compile(r"^metrics (\w+) step=(\d+) of=(\d+) ", re.MULTILINE)
INHERITED = ("HOME", "LANG", "TMPDIR", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "HF_HOME")


class EmulationError(RuntimeError):
    """The emulated job cannot be started; the message says why and what to do."""


@functools.cache
def namespaces_blocked() -> str | None:
    """Why this machine does not let us mount an /opt/ml of our own, or None where it does."""
    if shutil.which("unshare") is None:
        return "there is no program 'unshare' (it is part of Linux's util-linux)"
    try:
        probe = subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/opt"], capture_output=True,
                               text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return "'unshare -Urm mount' did not answer"
    return probe.stderr.strip().splitlines()[-1] if probe.returncode else None


@dataclass
class EmulatedJob:
    """A job that runs, or has run. Its folders have the names that they have in the container."""

    ml: Path  # what the job sees as /opt/ml
    process: subprocess.Popen
    log_path: Path
    redirected: str | None  # why /opt/ml was not mounted, or None

    @property
    def log(self) -> str:
        """Everything that the job has printed so far: what CloudWatch would show."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    @property
    def exit_status(self) -> int | None:
        return self.process.poll()

    @property
    def failure(self) -> str | None:
        """The failure file: what SageMaker shows as the reason, or None where the job wrote none."""
        path = self.ml / "output" / "failure"
        return path.read_text(encoding="utf-8") if path.exists() else None

    @property
    def model_dir(self) -> Path:
        return self.ml / "model"

    @property
    def output_dir(self) -> Path:
        """The run directories of a training job, the results of a processing job."""
        processing = self.ml / "processing" / "output"
        return processing if processing.is_dir() else self.ml / "output" / "data"

    @property
    def checkpoints_dir(self) -> Path:
        return self.ml / "checkpoints"

    def interrupt(self) -> None:
        """Send SIGTERM to the job's first process, as SageMaker does two minutes before it takes a spot instance."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float | None = None) -> EmulatedJob:
        """Wait for the end; raises subprocess.TimeoutExpired after `timeout` seconds, and ends the job then."""
        try:
            self.process.wait(timeout)
        except BaseException:  # a notebook's interrupt, too
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        return self

    def watch(self, until: str | None = None) -> EmulatedJob:
        """Wait for the end, or for `until` in the log, with a progress bar of the training steps.

        Raises:
            EmulationError: the job has ended without `until`, or with an error.
        """
        bar = None
        try:
            while True:
                ended = self.exit_status is not None  # before the log is read, which is whole then
                for stage, step, total in STEP.findall(self.log)[-1:]:
                    bar = bar or tqdm(desc=f"{stage.upper()} in the job", total=int(total), unit="step")
                    bar.update(int(step) - bar.n)
                if until is not None and until in self.log:
                    return self
                if ended:
                    break
                time.sleep(0.1)
        except KeyboardInterrupt:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        finally:
            if bar is not None:
                bar.close()
        if self.exit_status or until is not None:
            reason = self.failure or f"it ended without {until!r} in its log:\n{self.log[-2000:]}"
            raise EmulationError(f"The job ended with exit status {self.exit_status}: {reason}")
        return self


def emulate(request: dict[str, Any], folder: Path, ml: Path, checkpoints: Path | None = None) -> EmulatedJob:
    """Run a job to its end; see `start`."""
    return start(request, folder, ml, checkpoints).wait()


def start(request: dict[str, Any], folder: Path, ml: Path, checkpoints: Path | None = None) -> EmulatedJob:
    """Start a recorded training or processing job.

    Args:
        request: the body of CreateTrainingJob or CreateProcessingJob, from `training_request` or `evaluation_request`.
        folder: the one that was given there: what would be uploaded lies in folder/s3/BUCKET/KEY.
        ml: a new folder, which the job sees as /opt/ml.
        checkpoints: the checkpoints of an earlier job, which this one finds in /opt/ml/checkpoints, as after a spot
            interruption.

    Raises:
        EmulationError: a channel is not in `folder`, or `ml` holds files.
    """
    ml = Path(ml).resolve()
    if ml.is_dir() and any(ml.iterdir()):
        raise EmulationError(f"{ml} is not empty: a job starts with a new /opt/ml. Choose another folder.")
    training = "TrainingJobName" in request
    (lay_training_job if training else lay_processing_job)(request, Path(folder), ml)
    if checkpoints is not None:
        shutil.copytree(checkpoints, ml / "checkpoints", dirs_exist_ok=True)
    specification = request["AlgorithmSpecification" if training else "AppSpecification"]
    command = [*specification["ContainerEntrypoint"], *specification.get("ContainerArguments", [])]
    environment = environment_of(request)
    reason = namespaces_blocked()
    cwd = ml
    if reason is None:
        command = ["unshare", "-Urm", "bash", "-c", MOUNT, "mount", str(ml), *command]
    else:  # the command names /opt/ml, so the module that it ends in is run directly
        kind = "train" if training else "evaluate"
        command = [sys.executable, "-m", "lab_utils.sagemaker.container", kind]
        cwd = code_folder(ml, training)
        environment |= {"SAGEMAKER_BASE_DIR": str(ml), "SM_MODEL_DIR": str(ml / "model"),
                        "SM_OUTPUT_DATA_DIR": str(ml / "output/data"), "SM_OUTPUT_FAILURE": str(ml / "output/failure")}
    log_path = ml.with_name(f"{ml.name}.log")
    with open(log_path, "wb") as log:
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=log,
                                   stderr=subprocess.STDOUT, start_new_session=True)
    return EmulatedJob(ml, process, log_path, reason)


def lay_training_job(request: dict[str, Any], folder: Path, ml: Path) -> None:
    """The channels, and the files in /opt/ml/input/config that SageMaker writes."""
    for name in ("model", "output/data", "checkpoints", "input/config"):
        (ml / name).mkdir(parents=True)
    channels = {channel["ChannelName"]: channel for channel in request["InputDataConfig"]}
    for name, channel in channels.items():
        lay(channel["DataSource"]["S3DataSource"]["S3Uri"], folder, ml / "input" / "data" / name)
    empty_requirements(ml, training=True)
    resources = request["ResourceConfig"]
    config = {
        "hyperparameters": request.get("HyperParameters", {}),
        "inputdataconfig": {name: {"TrainingInputMode": "File"} for name in channels},
        "resourceconfig": {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "lo",
                           "current_instance_type": resources["InstanceType"],
                           "current_group_name": "homogeneousCluster", "instance_groups": []},
    }
    for name, content in config.items():
        (ml / "input" / "config" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def lay_processing_job(request: dict[str, Any], folder: Path, ml: Path) -> None:
    """The inputs and the output folder of a processing job."""
    for item in request["ProcessingInputs"]:
        lay(item["S3Input"]["S3Uri"], folder, inside(ml, item["S3Input"]["LocalPath"]))
    for item in request["ProcessingOutputConfig"]["Outputs"]:
        inside(ml, item["S3Output"]["LocalPath"]).mkdir(parents=True)
    empty_requirements(ml, training=False)


def lay(uri: str, folder: Path, target: Path) -> None:
    """Copy what an S3 URI stands for to where the job finds it: a folder's content, or one file in a folder."""
    source = folder / "s3" / uri.removeprefix("s3://")
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.is_file():
        target.mkdir(parents=True)
        shutil.copy2(source, target)
    else:
        raise EmulationError(f"{uri} is not on this machine: {source} does not exist. The emulation cannot fetch from "
                             "S3: give the job a local folder.")


def inside(ml: Path, path: str) -> Path:
    """A path of the container under /opt/ml, as it is on this machine."""
    return ml / Path(path).relative_to("/opt/ml")


def code_folder(ml: Path, training: bool) -> Path:
    return ml / ("input/data/code" if training else "processing/input/code")


def empty_requirements(ml: Path, training: bool) -> None:
    (code_folder(ml, training) / "requirements.txt").write_text(NOTHING_TO_INSTALL, encoding="utf-8")


def environment_of(request: dict[str, Any]) -> dict[str, str]:
    """The job's environment: what a container has, and what the request sets; nothing else of this machine's.

    The network is as it is here, but the Hub is not asked: an emulated job must not wait for downloads.
    """
    python = str(Path(sys.executable).parent)
    own = {name: os.environ[name] for name in INHERITED if name in os.environ}
    threads = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE") if name in os.environ}
    name = {"TRAINING_JOB_NAME": request["TrainingJobName"]} if "TrainingJobName" in request else {}
    return own | threads | {"PATH": f"{python}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"} | name | request.get(
        "Environment", {})
