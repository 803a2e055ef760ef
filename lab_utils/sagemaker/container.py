"""What runs inside a SageMaker job: the same scripts/train.py and scripts/evaluate.py as everywhere.

    python -m lab_utils.sagemaker.container train       the command of a training job, in its source directory
    python -m lab_utils.sagemaker.container evaluate    the command of a processing job

job.yaml in the source directory says what to run. SageMaker defines the paths:

    /opt/ml/input/data/model, data    channels: a start model; train.jsonl and test.jsonl, or one each in train and test
    /opt/ml/checkpoints               the run directories during training; SageMaker copies them to S3 as they grow, and
                                      back when a spot instance starts again
    /opt/ml/output/data               the run directories at the end, without checkpoints
    /opt/ml/model                     the last stage's model, merged, with its tokenizer
    /opt/ml/output/failure            the reason of a failure, the error first; of a processing job: output/message
    /opt/ml/processing/input, output  the inputs and outputs of a processing job

This process runs the script as a child (one, or torchrun's) and passes on its output without secrets. At SIGTERM it
tells the child, which saves a checkpoint, and ends with status 0. The restarted job resumes from the run directories.

A job of several machines runs this on each of them, and torchrun connects their processes. The first machine writes
checkpoints and outputs. The others add only their random states and copies of the trained models to
/opt/ml/checkpoints, whose files on all machines meet in S3.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import traceback
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import psutil
import yaml

ML = Path("/opt/ml")
SECRET = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS?)(_|$)|^AWS_(?!.*REGION)", re.IGNORECASE)
TRACEBACK = re.compile(r"(\[rank\d+\]: )?Traceback \(most recent call last\):")
WANDB_SECRET = "WANDB_FROM_SECRETS_MANAGER"  # the environment has the name of the secret, never the key
LAUNCHER = re.compile(r"^[EWI]\d{4} ")  # a line of torchrun, not of the script
LOST = re.compile("Connection (closed|reset) by peer|Broken pipe|DistNetworkError|remote process exited|timed out",
                  re.IGNORECASE)
FAILURE_LINES = 200
START_SECONDS = 600  # within which all machines of a job must be up, torchrun's own limit


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


def machines() -> tuple[list[str], str]:
    """Return the names of the job's machines in their order, and the name of this one."""
    config = json.loads((ML / "input/config/resourceconfig.json").read_text(encoding="utf-8"))
    # Without this, gloo and NCCL may choose an interface on which the other machines cannot be reached.
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, config["network_interface_name"])
    return sorted(config["hosts"]), config["current_host"]


def torchrun(processes: int, hosts: list[str], host: str) -> list[str]:
    """Return the options of torchrun for `processes` on each of the hosts."""
    if len(hosts) == 1:
        return ["--standalone", f"--nproc-per-node={processes}"]
    wait_for_names(hosts)
    return [f"--nproc-per-node={processes}", f"--nnodes={len(hosts)}", f"--node-rank={hosts.index(host)}",
            f"--master-addr={hosts[0]}", f"--master-port={os.environ.get('MASTER_PORT', '29500')}"]


def wait_for_names(hosts: list[str]) -> None:
    """Wait until all machines have an address; a machine that starts first does not know the others yet."""
    deadline = time.monotonic() + START_SECONDS
    for host in hosts:
        while True:
            try:
                socket.gethostbyname(host)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise JobError(f"The machine {host} of the job did not start within {START_SECONDS} s: read its "
                                   "log, or start the job again.") from None
                time.sleep(1)


def run_script(arguments: list[str], launcher: Sequence[str] = ()) -> bool:
    """Run a script of the source directory, with torchrun if `launcher` has options for it.

    Returns:
        False if SIGTERM ended it.

    Raises:
        JobError: the script failed.
    """
    shown = ["torchrun", *launcher, *arguments] if launcher else ["python", *arguments]
    print(redact(f"container: {' '.join(shown)}"), flush=True)
    command = [sys.executable, *(["-m", "torch.distributed.run"] if launcher else []), *launcher, *arguments]
    child = Child(command, launched=bool(launcher))

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
    checkpoints, model, data = ML / "checkpoints", ML / "input/data/model", joined_data()
    fetch_wandb_key()
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
    started, (hosts, host) = time.monotonic(), machines()
    several = job["processes"] > 1 or len(hosts) > 1
    try:
        finished = run_script(arguments, torchrun(job["processes"], hosts, host) if several else [])
    except JobError as error:
        if len(hosts) > 1 and LOST.search(str(error).partition("\n")[0]):
            others = ", ".join(name for name in hosts if name != host)
            raise JobError(f"{host} lost the connection to another machine of the job ({others}), which has failed: "
                           f"read the log of that machine first.\n\n{error}") from None
        raise
    finally:  # a failed job keeps its outputs, too
        if checkpoints.is_dir() and host == hosts[0]:
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


def joined_data() -> Path:
    """Return the folder with train.jsonl and test.jsonl: the channel data, or the channels train and test as one."""
    channels = ML / "input/data"
    if not (channels / "test").is_dir():
        return channels / "data"
    joined = ML / "data"
    joined.mkdir(exist_ok=True)
    for split in ("train", "test"):
        shutil.copy2(channels / split / f"{split}.jsonl", joined)
    return joined


def fetch_wandb_key() -> None:
    """Read the key of W&B from AWS Secrets Manager into this process's environment, if the job names a secret."""
    if not (name := os.environ.get(WANDB_SECRET)):
        return
    try:
        import boto3

        text = boto3.client("secretsmanager").get_secret_value(SecretId=name)["SecretString"]
        os.environ["WANDB_API_KEY"] = json.loads(text)["WANDB_API_KEY"] if text.startswith("{") else text
    except Exception as error:  # a missing package, permission, secret or field
        raise JobError(f"The W&B key could not be read from the secret {name!r} ({type(error).__name__}: {error}): "
                       "store the key alone, or as WANDB_API_KEY, and let the execution role read the secret, or "
                       "leave out --wandb-secret.") from None


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
            raise JobError(f"container.py got {' '.join(arguments)!r}: pass one argument, train or evaluate.")
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
