"""What runs inside a SageMaker job: the same scripts/train.py and scripts/evaluate.py as everywhere.

    python -m lab_utils.sagemaker.container train       a training job's command, in its source directory
    python -m lab_utils.sagemaker.container evaluate    a processing job's

job.yaml in the source directory says what to run; the places are SageMaker's:

    /opt/ml/input/data/model, data    channels: a start model; train.jsonl and test.jsonl       SM_CHANNEL_MODEL, _DATA
    /opt/ml/checkpoints               the run directories while training; SageMaker copies them to S3 as they grow, and
                                      back when a spot instance starts again
    /opt/ml/output/data               the run directories at the end, without checkpoints       SM_OUTPUT_DATA_DIR
    /opt/ml/model                     the last stage's model, merged, with its tokenizer        SM_MODEL_DIR
    /opt/ml/output/failure            why the job failed, its first line first                  SM_OUTPUT_FAILURE
    /opt/ml/processing/input, output  the same for a processing job

This process only watches: the script runs as its child (one, or torchrun's), whose output it passes on without secrets.
At SIGTERM it tells the child, which saves a checkpoint, and ends with status 0. The restarted job finds the run
directories and goes on.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from collections import deque
from pathlib import Path

import psutil  # accelerate brings it
import yaml

SECRET = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS?)(_|$)|^AWS_(?!.*REGION)", re.IGNORECASE)
TRACEBACK = re.compile(r"(\[rank\d+\]: )?Traceback \(most recent call last\):")
LAUNCHER = re.compile(r"^[EWI]\d{4} ")  # torchrun's own lines, not the script's
FAILURE_LINES = 200


def base() -> Path:
    """/opt/ml, or where the emulation puts it on machines that cannot mount it (SageMaker's own variable for that)."""
    return Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))


def place(variable: str, default: str) -> Path:
    """A directory or file that SageMaker names in an environment variable."""
    return Path(os.environ.get(variable, base() / default))


class JobError(RuntimeError):
    """The job failed; the message is what the failure file holds."""


# --- The child process ------------------------------------------------------------------------------------------------


def redact(text: str) -> str:
    """Take the values of secret environment variables out of a text, and put their names there."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 6:
            text = text.replace(value, f"[{name}]")
    return text


class Child:
    """A script that runs with its output passed on line by line, and is told of SIGTERM."""

    def __init__(self, command: list[str], launched: bool):
        self.launched = launched  # by torchrun, whose children are to be told, not torchrun: it would kill them
        self.stopping = False
        self.lines: deque[str] = deque(maxlen=FAILURE_LINES)
        environment = os.environ | {"PYTHONPATH": os.getcwd(), "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def run(self) -> int:
        """Wait for the end and return the exit status."""
        for raw in self.process.stdout:
            line = redact(raw.decode("utf-8", errors="replace").rstrip("\n"))
            self.lines.append(line)
            print(line, flush=True)
        return self.process.wait()

    def stop(self) -> None:
        """Ask for a checkpoint and the end of training."""
        self.stopping = True
        ranks = psutil.Process(self.process.pid).children() if self.launched else []
        for process in ranks or [self.process]:
            process.send_signal(signal.SIGTERM)


def failure_message(lines: list[str], status: int) -> str:
    """A failed script's error, from the end of its output: the error first (SageMaker shows the beginning of a failure
    file), then the traceback. Of several ranks, that of the first that failed."""
    if starts := [i for i, line in enumerate(lines) if TRACEBACK.match(line)]:
        rank = TRACEBACK.match(lines[starts[0]])[1] or ""
        rest = lines[starts[0]:]
        if rank:
            rest = [line.removeprefix(rank) for line in rest if line.startswith(rank)]
        rest = list(itertools.takewhile(lambda line: not LAUNCHER.match(line), rest))
        last_frame = max(i for i, line in enumerate(rest) if i == 0 or line.startswith("  File "))
        error = next((line for line in rest[last_frame + 1:] if line.strip() and not line.startswith(" ")), rest[-1])
        return "\n".join([error, "", *rest])
    if messages := [i for i, line in enumerate(lines) if re.match(r"(train|evaluate)\.py: ", line)]:
        return "\n".join(lines[messages[-1]:])  # about what the learner gave
    ended = f"signal {-status}, 9 is most often lack of memory" if status < 0 else f"exit status {status}"
    return "\n".join([f"The script ended with {ended}. Its output ends:", *lines[-20:]])


def run_script(arguments: list[str], processes: int = 1) -> bool:
    """Run a script of the source directory and pass its output on. Returns False where SIGTERM ended it.

    Raises:
        JobError: the script failed.
    """
    launcher = [sys.executable]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    print(redact(f"container: {' '.join(['torchrun' if processes > 1 else 'python', *arguments])}"), flush=True)
    child = Child([*launcher, *arguments], launched=processes > 1)

    def on_sigterm(signum, frame):
        os.write(1, b"container: SIGTERM, training is asked to save a checkpoint and to end\n")
        child.stop()

    signal.signal(signal.SIGTERM, on_sigterm)
    status = child.run()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is left is copying
    if child.stopping:  # an error of the script itself would come again when the job is restarted
        print(f"container: stopped (exit status {status})", flush=True)
        return False
    if status != 0:
        raise JobError(failure_message(list(child.lines), status))
    return True


# --- The two kinds of job ---------------------------------------------------------------------------------------------


def train(job: dict) -> None:
    """Train the job's stages, going on from /opt/ml/checkpoints where there is something."""
    checkpoints, output, model = base() / "checkpoints", place("SM_OUTPUT_DATA_DIR", "output/data"), channel("model")
    resumed = checkpoints.is_dir() and any(checkpoints.iterdir())
    if resumed:
        print(f"container: going on with what is in {checkpoints}", flush=True)
        remove_incomplete(checkpoints)
    arguments = ["scripts/train.py", *common_arguments(job, channel("data"))]
    arguments += ["--output-dir", str(checkpoints), "--resume", "--export", str(place("SM_MODEL_DIR", "model"))]
    if model is not None:
        arguments += ["--model", str(unpacked(model))]
    if job["stages"]:
        arguments += ["--stages", ",".join(job["stages"])]
    if job["evaluate"]:
        arguments += ["--evaluate"]
    started = time.monotonic()
    try:
        finished = run_script(arguments, job["processes"])
    finally:  # a failed job's outputs are kept, too
        if checkpoints.is_dir():
            shutil.copytree(checkpoints, output, ignore=shutil.ignore_patterns("checkpoints"), dirs_exist_ok=True)
    if finished:
        print(f"container: finished in {time.monotonic() - started:.0f} s; run directories in {output}", flush=True)


def evaluate(job: dict) -> None:
    """Evaluate the model of the input `model` and leave eval.json, results.csv and figures in the output."""
    inputs, output = base() / "processing" / "input", base() / "processing" / "output"
    data = inputs / "data"
    arguments = ["scripts/evaluate.py", f"eval={unpacked(inputs / 'model')}"]  # the label names the file
    arguments += [*common_arguments(job, data if data.is_dir() else None), "--output-dir", str(output)]
    run_script(arguments)


def common_arguments(job: dict, data: Path | None) -> list[str]:
    """What both scripts take from job.yaml."""
    overrides = [*job["overrides"], *([f"task.source={data}"] if data is not None else [])]
    arguments = ["--recipe", job["recipe"], "--hardware", job["hardware"]]
    arguments += [argument for override in overrides for argument in ("--set", override)]
    return arguments + (["--limit", str(job["limit"])] if job["limit"] else [])


def channel(name: str) -> Path | None:
    """The directory of an input channel, or None where the job has no such channel."""
    directory = place(f"SM_CHANNEL_{name.upper()}", f"input/data/{name}")
    return directory if directory.is_dir() else None


def unpacked(directory: Path) -> Path:
    """Where the model of a channel is: in the directory, or in a model.tar.gz there, which a training job has left."""
    archive = directory / "model.tar.gz"
    if not archive.exists():
        return directory
    target = base() / "start_model"
    with tarfile.open(archive) as files:
        files.extractall(target, filter="data")
    return target


def remove_incomplete(checkpoints: Path) -> None:
    """Remove checkpoints that were being copied to S3 when the instance went."""
    from ..runs import checkpoint_problem  # takes seconds to import

    for checkpoint in checkpoints.glob("*/checkpoints/checkpoint-*"):
        problem = checkpoint_problem(checkpoint)
        if problem is not None:
            print(f"container: {checkpoint} is removed: {problem}", flush=True)
            shutil.rmtree(checkpoint)


def main(arguments: list[str]) -> int:
    """Run the job; the exit status is 1 where it failed, and the failure file says why."""
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(0))  # nothing has begun
    kinds = {"train": train, "evaluate": evaluate}
    try:
        if len(arguments) != 1 or arguments[0] not in kinds:
            raise JobError(f"container.py takes one argument, train or evaluate, not {' '.join(arguments)!r}.")
        job = yaml.safe_load(Path("job.yaml").read_text(encoding="utf-8"))
        kinds[arguments[0]](job)
        return 0
    except JobError as error:
        message = str(error)
    except Exception as error:  # whatever it is, SageMaker must show it
        message = redact(f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}")
        print(message, file=sys.stderr, flush=True)
    failure = place("SM_OUTPUT_FAILURE", "output/failure")
    failure.parent.mkdir(parents=True, exist_ok=True)
    failure.write_text(message + "\n", encoding="utf-8")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
