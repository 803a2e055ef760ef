"""What runs inside a SageMaker job: the same scripts/train.py and scripts/evaluate.py as everywhere.

    python -m lab_utils.sagemaker.container train       the command of a training job, in its source directory
    python -m lab_utils.sagemaker.container evaluate    the command of a processing job

job.yaml in the source directory says what to run. SageMaker defines the paths:

    /opt/ml/input/data/model, data    channels: a start model; train.jsonl and test.jsonl
    /opt/ml/checkpoints               the run directories during training; SageMaker copies them to S3 as they grow, and
                                      back when a spot instance starts again
    /opt/ml/output/data               the run directories at the end, without checkpoints
    /opt/ml/model                     the last stage's model, merged, with its tokenizer
    /opt/ml/output/failure            the reason of a failure, the error first; of a processing job: output/message
    /opt/ml/processing/input, output  the inputs and outputs of a processing job

This process runs the script as a child (one, or torchrun's) and passes on its output without secrets. At SIGTERM it
tells the child, which saves a checkpoint, and ends with status 0. The restarted job resumes from the run directories.
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

import psutil
import yaml

ML = Path("/opt/ml")
SECRET = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS?)(_|$)|^AWS_(?!.*REGION)", re.IGNORECASE)
TRACEBACK = re.compile(r"(\[rank\d+\]: )?Traceback \(most recent call last\):")
LAUNCHER = re.compile(r"^[EWI]\d{4} ")  # a line of torchrun, not of the script
FAILURE_LINES = 200


class JobError(RuntimeError):
    """The job failed. The message is the content of the failure file."""


# --- The child process ------------------------------------------------------------------------------------------------


def redact(text: str) -> str:
    """Replace the values of secret environment variables by their names."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 6:
            text = text.replace(value, f"[{name}]")
    return text


class Child:
    """A running script whose output is passed on line by line."""

    def __init__(self, command: list[str], launched: bool):
        self.launched = launched  # by torchrun, which would kill its children at SIGTERM; so they are told directly
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
        """Ask training to save a checkpoint and end."""
        self.stopping = True
        ranks = psutil.Process(self.process.pid).children() if self.launched else []
        for process in ranks or [self.process]:
            process.send_signal(signal.SIGTERM)


def failure_message(lines: list[str], status: int) -> str:
    """Return the error of a failed script from the end of its output, then its traceback.

    The error is first because SageMaker shows the beginning of a failure file. With several ranks it is the error of
    the first one that failed.
    """
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
        return "\n".join(lines[messages[-1]:])  # a problem that the user can fix
    ended = f"signal {-status}; 9 usually means out of memory" if status < 0 else f"exit status {status}"
    return "\n".join([f"The script ended with {ended}. The end of its output:", *lines[-20:]])


def run_script(arguments: list[str], processes: int = 1) -> bool:
    """Run a script of the source directory; return False if SIGTERM ended it.

    Raises:
        JobError: the script failed.
    """
    launcher = [sys.executable]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    print(redact(f"container: {' '.join(['torchrun' if processes > 1 else 'python', *arguments])}"), flush=True)
    child = Child([*launcher, *arguments], launched=processes > 1)

    def on_sigterm(signum, frame):
        os.write(1, b"container: SIGTERM: asking training to save a checkpoint and end\n")
        child.stop()

    signal.signal(signal.SIGTERM, on_sigterm)
    status = child.run()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # only copying is left
    if child.stopping:  # an error of the script itself would occur again in the restarted job
        print(f"container: stopped (exit status {status})", flush=True)
        return False
    if status != 0:
        raise JobError(failure_message(list(child.lines), status))
    return True


# --- The two kinds of job ---------------------------------------------------------------------------------------------


def train(job: dict) -> None:
    """Train the job's stages, and resume from /opt/ml/checkpoints if it holds run directories."""
    checkpoints, model, data = ML / "checkpoints", ML / "input/data/model", ML / "input/data/data"
    if checkpoints.is_dir() and any(checkpoints.iterdir()):
        print(f"container: resuming from {checkpoints}", flush=True)
        remove_incomplete(checkpoints)
    arguments = ["scripts/train.py", *common_arguments(job, data)]
    arguments += ["--output-dir", str(checkpoints), "--resume", "--export", str(ML / "model")]
    if model.is_dir():
        arguments += ["--model", str(unpacked(model))]
    if job["stages"]:
        arguments += ["--stages", ",".join(job["stages"])]
    if job["evaluate"]:
        arguments += ["--evaluate"]
    started = time.monotonic()
    try:
        finished = run_script(arguments, job["processes"])
    finally:  # a failed job keeps its outputs, too
        if checkpoints.is_dir():
            shutil.copytree(checkpoints, ML / "output/data", ignore=shutil.ignore_patterns("checkpoints"),
                            dirs_exist_ok=True)
    if finished:
        print(f"container: finished in {time.monotonic() - started:.0f} s; run directories in {ML}/output/data",
              flush=True)


def evaluate(job: dict) -> None:
    """Evaluate the model of the input `model` and write eval.json, results.csv and figures to the output."""
    inputs = ML / "processing/input"
    arguments = ["scripts/evaluate.py", f"eval={unpacked(inputs / 'model')}"]  # the label names the file
    arguments += [*common_arguments(job, inputs / "data"), "--output-dir", str(ML / "processing/output")]
    run_script(arguments)


def common_arguments(job: dict, data: Path) -> list[str]:
    """Return the arguments that both scripts take."""
    overrides = job["overrides"] + ([f"task.source={data}"] if data.is_dir() else [])
    arguments = ["--recipe", job["recipe"], "--hardware", job["hardware"]]
    arguments += [argument for override in overrides for argument in ("--set", override)]
    return arguments + (["--limit", str(job["limit"])] if job["limit"] else [])


def unpacked(directory: Path) -> Path:
    """Return the folder of a channel's model, unpacked if it is a training job's model.tar.gz."""
    archive = directory / "model.tar.gz"
    if not archive.exists():
        return directory
    target = ML / "start_model"
    with tarfile.open(archive) as files:
        files.extractall(target, filter="data")
    return target


def remove_incomplete(checkpoints: Path) -> None:
    """Remove checkpoints whose copy to S3 was incomplete when the instance went away."""
    from ..runs import checkpoint_problem  # takes seconds to import

    for checkpoint in checkpoints.glob("*/checkpoints/checkpoint-*"):
        problem = checkpoint_problem(checkpoint)
        if problem is not None:
            print(f"container: removing {checkpoint}: {problem}", flush=True)
            shutil.rmtree(checkpoint)


def main(arguments: list[str]) -> int:
    """Run the job and return its exit status. With status 1 a file holds the reason, which SageMaker shows."""
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(0))  # nothing has started yet
    kinds = {"train": train, "evaluate": evaluate}
    try:
        if len(arguments) != 1 or arguments[0] not in kinds:
            raise JobError(f"container.py got {' '.join(arguments)!r}: give one argument, train or evaluate.")
        job = yaml.safe_load(Path("job.yaml").read_text(encoding="utf-8"))
        kinds[arguments[0]](job)
        return 0
    except JobError as error:
        message = str(error)
    except Exception as error:  # SageMaker must show any error
        message = redact(f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}")
        print(message, file=sys.stderr, flush=True)
    reason = ML / "output" / ("message" if arguments == ["evaluate"] else "failure")
    reason.parent.mkdir(parents=True, exist_ok=True)
    reason.write_text(message + "\n", encoding="utf-8")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
