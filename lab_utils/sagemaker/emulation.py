"""A SageMaker job on this machine, without AWS and without docker: the recorded request, run for real.

    request = training_request(job, folder)      # the request that AWS would get; what it would upload is in folder/s3
    run = start(request, folder, ml).watch()
    print(run.log)

The job's own entry point runs. A folder stands for /opt/ml: its path replaces /opt/ml in the command and in the scripts
of the channels.

Not emulated: the image (the job uses the packages of this environment, and its requirements.txt is emptied), GPUs that
this machine does not have, and limits of time, memory and disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from .session import SageMakerError, local_copy

NOTHING_TO_INSTALL = "# Emulated job: nothing is installed, the packages are those of the environment that runs it.\n"
CODE = {True: "input/data/code", False: "processing/input/code"}  # of a training job, of a processing job
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
STEP = re.compile(r"^metrics (\w+) step=(\d+) of=(\d+) ", re.MULTILINE)
INHERITED = ("HOME", "LANG", "TMPDIR", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "HF_HOME", "HF_HUB_OFFLINE",
             "OMP_NUM_THREADS")


@dataclass
class EmulatedJob:
    """A job that runs, or has run."""

    ml: Path  # stands for /opt/ml
    process: subprocess.Popen
    log_path: Path

    @property
    def log(self) -> str:
        """Everything that the job has printed so far, as CloudWatch would show it."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    @property
    def exit_status(self) -> int | None:
        return self.process.poll()

    @property
    def failure(self) -> str | None:
        """The content of the file that SageMaker shows as the reason of a failure; None without one."""
        path = self.ml / "output" / ("message" if (self.ml / "processing").is_dir() else "failure")
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
        """Wait for the end. After `timeout` seconds kill the job and raise subprocess.TimeoutExpired."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self

    def kill(self) -> None:
        """End all processes of the job at once; torchrun's are in sessions of their own."""
        if self.exit_status is None:
            main = psutil.Process(self.process.pid)
            for process in [main, *main.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()

    def watch(self, until: str | None = None) -> EmulatedJob:
        """Wait for the end, or for `until` in the log, with a progress bar of the training steps.

        Raises:
            SageMakerError: the job ended without `until`, or with an error.
        """
        bar = None
        try:
            while True:
                ended = self.exit_status is not None  # asked first, so that the log is complete when it is read
                for stage, step, total in STEP.findall(self.log)[-1:]:
                    description = f"{stage.upper()} in the job"
                    if bar is None or bar.desc != description:
                        if bar is not None:
                            bar.close()
                        bar = tqdm(desc=description, total=int(total), file=sys.stdout)
                    bar.update(int(step) - bar.n)
                if until is not None and until in self.log:
                    return self
                if ended:
                    break
                time.sleep(0.1)
        except KeyboardInterrupt:  # in a notebook
            self.kill()
            raise
        finally:
            if bar is not None:
                bar.close()
        if self.exit_status or until is not None:
            reason = self.failure or f"no {until!r} in its log, which ends:\n{self.log[-2000:]}"
            raise SageMakerError(f"The job ended with exit status {self.exit_status}: {reason}")
        return self


def start_machines(request: dict[str, Any], folder: Path, place: Path,
                   checkpoints: Path | None = None) -> list[EmulatedJob]:
    """Start a recorded training job of several machines: each is an emulated job in a folder of `place`, with a
    /opt/ml of its own, and they reach each other on the loopback interface. The arguments are those of `start`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hosts = [f"127.0.0.{i + 1}" for i in range(request["ResourceConfig"]["InstanceCount"])]
    return [start(request, folder, place / host, checkpoints, hosts=hosts, host=host, port=port) for host in hosts]


def start(request: dict[str, Any], folder: Path, ml: Path, checkpoints: Path | None = None,
          python: Path | None = None, hosts: Sequence[str] = ("algo-1",), host: str = "algo-1",
          port: int | None = None) -> EmulatedJob:
    """Start a recorded training or processing job, or one machine of it.

    Args:
        request: the body of CreateTrainingJob or CreateProcessingJob, from `training_request` or `evaluation_request`.
        folder: the folder that was given there; uploads are in folder/s3/BUCKET/KEY.
        ml: a new folder that stands for /opt/ml.
        checkpoints: the checkpoints of an earlier job, which this one finds in /opt/ml/checkpoints as after a spot
            interruption.
        python: the interpreter of an environment that stands for the image, such as one with torch only; the job
            installs its requirements.txt there. None: this environment, in which nothing is installed.
        hosts, host, port: of a job of several machines: their names, the name of this one, and where the first listens.

    Raises:
        SageMakerError: a channel is not in `folder`, or `ml` holds files.
    """
    ml = Path(ml).resolve()
    if ml.is_dir() and any(ml.iterdir()):
        raise SageMakerError(f"{ml} is not empty: choose a new folder, because a job starts with an empty /opt/ml.")
    training = "TrainingJobName" in request
    if training:
        lay_training_job(request, Path(folder), ml, hosts, host)
    else:
        lay_processing_job(request, Path(folder), ml)
    environment = environment_of(request, python or Path(sys.executable))
    if python is None:
        environment["PIP_NO_DEPS"] = "1"  # without it, pip looks through all packages of the environment for seconds
        (ml / CODE[training] / "requirements.txt").write_text(NOTHING_TO_INSTALL, encoding="utf-8")
    if checkpoints is not None:
        shutil.copytree(checkpoints, ml / "checkpoints", dirs_exist_ok=True)
    specification = request["AlgorithmSpecification" if training else "AppSpecification"]
    command = [*specification["ContainerEntrypoint"], *specification.get("ContainerArguments", [])]
    place = Path(tempfile.mkdtemp(prefix="opt-ml-")) / "ml"  # a path without spaces, which scripts do not quote
    place.symlink_to(ml)
    for path in (ml / "input" if training else ml / "processing").rglob("*"):
        if path.suffix in (".py", ".sh"):
            path.write_text(path.read_text(encoding="utf-8").replace("/opt/ml", str(place)), encoding="utf-8")
    if port is not None:
        environment["MASTER_PORT"] = str(port)
    log_path = ml.with_name(f"{ml.name}.log")
    with open(log_path, "wb") as log:
        process = subprocess.Popen(
            [part.replace("/opt/ml", str(place)) for part in command], cwd=ml, stdin=subprocess.DEVNULL, stdout=log,
            env=environment, stderr=subprocess.STDOUT, start_new_session=True)
    return EmulatedJob(ml, process, log_path)


def lay_training_job(request: dict[str, Any], folder: Path, ml: Path, hosts: Sequence[str], host: str) -> None:
    """Write the channels, and the files in /opt/ml/input/config that SageMaker writes."""
    for name in ("model", "output/data", "checkpoints", "input/config"):
        (ml / name).mkdir(parents=True)
    channels = [channel["ChannelName"] for channel in request["InputDataConfig"]]
    for channel in request["InputDataConfig"]:
        lay(channel["DataSource"]["S3DataSource"]["S3Uri"], folder, ml / "input" / "data" / channel["ChannelName"])
    config = {
        "hyperparameters": request.get("HyperParameters", {}),
        "inputdataconfig": {name: {"TrainingInputMode": "File"} for name in channels},
        "resourceconfig": {"current_host": host, "hosts": list(hosts), "network_interface_name": LOOPBACK,
                           "current_instance_type": request["ResourceConfig"]["InstanceType"],
                           "current_group_name": "homogeneousCluster", "instance_groups": []},
    }
    for name, content in config.items():
        (ml / "input" / "config" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def lay_processing_job(request: dict[str, Any], folder: Path, ml: Path) -> None:
    """Write the inputs of a processing job and make its output folders."""
    for item in request["ProcessingInputs"]:
        lay(item["S3Input"]["S3Uri"], folder, ml / Path(item["S3Input"]["LocalPath"]).relative_to("/opt/ml"))
    for item in request["ProcessingOutputConfig"]["Outputs"]:
        (ml / Path(item["S3Output"]["LocalPath"]).relative_to("/opt/ml")).mkdir(parents=True)


def lay(uri: str, folder: Path, target: Path) -> None:
    """Copy the folder or file behind an S3 URI into the folder `target`."""
    source = local_copy(folder, uri)
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.is_file():
        target.mkdir(parents=True)
        shutil.copy2(source, target)
    else:
        raise SageMakerError(f"{uri} is not on this machine ({source} does not exist): pass the job a local folder, "
                             "because the emulation cannot fetch from S3.")


def environment_of(request: dict[str, Any], python: Path) -> dict[str, str]:
    """Return the job's environment: that of a container and that of the request, without this machine's secrets."""
    own = {name: os.environ[name] for name in INHERITED if name in os.environ}
    own["PATH"] = f"{python.parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    if "TrainingJobName" in request:
        own["TRAINING_JOB_NAME"] = request["TrainingJobName"]
    return own | request.get("Environment", {})
