"""Training and evaluation jobs: the request to SageMaker, following a running job, and its outputs.

A job is recipe ⊕ tier ⊕ overrides like any other run. They travel as job.yaml in the job's source directory, not as
hyperparameters: an apostrophe in one would end the job before it starts.

    TrainingJob(...)    training_request    the request; nothing is sent     launch    the job's name
    EvaluationJob(...)  evaluation_request  the same                         follow, download    run directories
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shlex
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import yaml

from .. import REPOSITORY
from .. import config as configuration
from ..config import RunConfig
from .container import WANDB_SECRET
from .cost import default_instance
from .session import NetworkAndKey, SageMakerError, aws_errors, caller, is_transient, record

if TYPE_CHECKING:
    from sagemaker.core.helper.session_helper import Session

PYTORCH = "2.13"  # of AWS's container, which brings torch; setup/requirements/sagemaker-container.txt has the rest
CONTAINER = "python -m lab_utils.sagemaker.container"
PROJECT = "rl-workshop"  # the tag `project`, by which resources.py finds what the workshop has created
# A program reads the log: no progress bars, and every line at once.
ENVIRONMENT = {"TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """The settings that training and evaluation share. Nothing here needs AWS."""

    recipe: str  # a recipe's name, or the path of your own .yaml file
    hardware: str  # the tier, by name
    role: str  # ARN of the execution role
    bucket: str  # for source, checkpoints and outputs
    region: str
    instance_type: str | None = None  # None: the tier's default in instances.yaml
    overrides: tuple[str, ...] = ()  # "section.key=value"
    limit: int | None = None  # at most this many problems, demonstrations and test questions
    model: str | None = None  # channel "model", the start model: an S3 URI, or a local folder to upload
    data: str | None = None  # channel "data", a folder with train.jsonl and test.jsonl: likewise
    requirements: str | None = None  # a file with packages of your own, installed with those of the workshop
    prefix: str = PROJECT  # of job names
    image: str | None = None  # None: AWS's PyTorch container
    network: NetworkAndKey = NetworkAndKey()  # the network and the key that an account may require
    volume_gb: int = 100
    max_run_hours: float = 6.0  # SageMaker then stops the job, which bounds its cost
    environment: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    instances = 1  # not a setting here: only training uses several machines

    @property
    def recipe_name(self) -> str:
        return Path(self.recipe).stem if self.recipe.endswith((".yaml", ".yml")) else self.recipe

    @property
    def instance(self) -> str:
        return self.instance_type or default_instance(self.hardware)

    @property
    def processes(self) -> int:
        """The number of training processes on a machine: one for each GPU."""
        return configuration.load_tier(self.hardware).gpus or 1

    def all_tags(self) -> dict[str, str]:
        return {"project": PROJECT, "recipe": self.recipe_name, "hardware": self.hardware, **self.tags}

    @contextlib.contextmanager
    def processes_counted(self) -> Iterator[None]:
        """Let configurations and estimates count the processes of all machines, as torchrun does inside the job."""
        before = os.environ.get("GROUP_WORLD_SIZE")
        os.environ["GROUP_WORLD_SIZE"] = str(max(1, self.instances))
        try:
            yield
        finally:
            del os.environ["GROUP_WORLD_SIZE"]
            if before is not None:
                os.environ["GROUP_WORLD_SIZE"] = before

    def config(self) -> RunConfig:
        """Return the configuration of the run inside the job; raise ConfigError if it cannot work."""
        stages = getattr(self, "stages", None)
        overrides = [*self.overrides, *([f"stages=[{','.join(stages)}]"] if stages else [])]
        with self.processes_counted():
            return configuration.load(self.recipe, self.hardware, overrides)


@dataclass(frozen=True, kw_only=True)
class TrainingJob(Job):
    """The settings of `launch_sagemaker.py train`."""

    instances: int = 1  # machines of one type; N of them train on N times the batch
    test_data: str | None = None  # channel "test", a folder with test.jsonl; `data` is then channel "train"
    wandb_secret: str | None = None  # name of a secret in AWS Secrets Manager with the key of W&B, which this turns on
    stages: tuple[str, ...] | None = None
    evaluate: bool = True  # the model of every stage, after training
    spot: bool = False  # spare capacity: far cheaper, but AWS may interrupt it; training resumes from its checkpoint
    max_wait_hours: float | None = None  # with spot: the longest time for waiting and training together
    keep_alive_minutes: int = 0  # keep the instance for the next job, which then starts at once; costs the same
    checkpoints: str | None = None  # S3 URI of another job's checkpoints, to resume from
    entry_point: str = f"{CONTAINER} train"  # a command or script; the files that it names travel with it

    @property
    def channels(self) -> dict[str, str]:
        """The inputs other than code: S3 URIs, or local folders to upload."""
        data = {"train": self.data, "test": self.test_data} if self.test_data else {"data": self.data}
        return {name: source for name, source in {"model": self.model, **data}.items() if source}


@dataclass(frozen=True, kw_only=True)
class EvaluationJob(Job):
    """The settings of `launch_sagemaker.py evaluate`; `model` is a training job's model.tar.gz, or a folder."""


# --- The source directory ---------------------------------------------------------------------------------------------


def package_source(job: Job, directory: Path) -> Path:
    """Fill `directory` with what the container runs: lab_utils, scripts, requirements.txt, pyproject.toml, job.yaml."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(REPOSITORY / "lab_utils", directory / "lab_utils", ignore=ignore)
    for name in ("scripts/train.py", "scripts/evaluate.py", "pyproject.toml"):
        (directory / name).parent.mkdir(exist_ok=True)
        shutil.copy2(REPOSITORY / name, directory / name)
    files = ["sagemaker-container.txt"]
    if configuration.load_tier(job.hardware).gpus:
        files += ["sagemaker-container-gpu.txt"]
    paths = [*(REPOSITORY / "setup/requirements" / name for name in files), *filter(None, [job.requirements])]
    requirements = [Path(path).read_text(encoding="utf-8") for path in paths]
    (directory / "requirements.txt").write_text("\n".join(requirements), encoding="utf-8")
    for path, name in named_files(job).items():
        if path.is_dir():
            shutil.copytree(path, directory / name, ignore=ignore, dirs_exist_ok=True)
        else:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, directory / name)
    if job.recipe != job.recipe_name:  # your own recipe, with the code that it names
        recipes = directory / "lab_utils" / "config" / "recipes"
        for _, file in configuration.own_files(job.config().model_dump()):
            (recipes / configuration.CODE).mkdir(exist_ok=True)
            shutil.copy2(file, recipes / configuration.CODE)
        values = configuration.portable(configuration.read_yaml(Path(job.recipe)))
        (recipes / f"{job.recipe_name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    source = []
    if data := local_data(job):
        (directory / "data").mkdir()
        (shutil.copytree if data.is_dir() else shutil.copy2)(data, directory / "data" / data.name)
        source = [f"task.source=data/{data.name}"]
    wandb = ["tracking.wandb=true"] if getattr(job, "wandb_secret", None) else []
    description = {
        "kind": "train" if isinstance(job, TrainingJob) else "evaluate",
        "recipe": job.recipe_name,
        "hardware": job.hardware,
        "stages": list(job.stages) if isinstance(job, TrainingJob) and job.stages else None,
        "overrides": [*job.overrides, *source, *wandb, "tracking.print_metrics=true"],
        "limit": job.limit,
        "evaluate": isinstance(job, EvaluationJob) or job.evaluate,
        "processes": job.processes,
    }
    (directory / "job.yaml").write_text(yaml.safe_dump(description, sort_keys=False, allow_unicode=True), "utf-8")
    return directory


def local_data(job: Job) -> Path | None:
    """Return the file or folder here that `task.source` names and that travels with the code; None with `--data`."""
    source = job.config().task.source
    travels = not job.data and source not in ("hub", "synthetic") and Path(source).exists()
    return Path(source) if travels else None


def own_files(job: Job) -> list[str]:
    """Return the names of the user's files that travel with a recipe: its data, rewards and task."""
    code = [path for _, path in configuration.own_files(job.config().model_dump())]
    return [path.name for path in (local_data(job), *code) if path]


def named_files(job: Job) -> dict[Path, str]:
    """Return the files and folders here that the entry point names, with their paths in the source directory.

    "python mine.py" names a file, "python mine" a folder with __main__.py, and "python -m mine.train" the folder mine.
    """
    if not isinstance(job, TrainingJob) or job.entry_point == TrainingJob.entry_point:
        return {}
    words = shlex.split(job.entry_point)
    paths = [Path(word.split(".")[0] if before == "-m" else word) for before, word in pairwise(["", *words])]
    own = [path for path in paths if path.exists() and path.resolve() != REPOSITORY / "lab_utils"]
    return {path: path.name if path.is_absolute() or ".." in path.parts else path.as_posix() for path in own}


def command_of(job: TrainingJob) -> str:
    """Return the command that runs in the source directory; a script alone gets its interpreter."""
    renamed = {str(path): name for path, name in named_files(job).items()}
    words = [renamed.get(word, word) for word in shlex.split(job.entry_point)]
    interpreter = {".py": ["python"], ".sh": ["bash"]}.get(Path(words[0]).suffix, [])
    return shlex.join([*interpreter, *words])


# --- Metrics ----------------------------------------------------------------------------------------------------------

# SageMaker reads at most 40 metrics from a job's log and plots them; the run directory has all of them.
MOST_METRICS = 40
SHARED = ("loss", "grad_norm", "learning_rate", "entropy", "num_tokens")
SAMPLED = (
    "reward", "reward_std", "frac_reward_zero_std", "accuracy", "attempts", "completions/mean_length",
    "completions/clipped_ratio", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "step_time",
)
METRICS = {
    "sft": (*SHARED, "mean_token_accuracy"),
    "grpo": (*SHARED, *SAMPLED),
    "ppo": (*SHARED, *SAMPLED, "explained_variance", "policy_loss", "value_loss", "approx_kl"),
}


def metric_definitions(config: RunConfig) -> dict[str, str]:
    """Return a regular expression per metric, such as {"grpo:reward": ...}; group 1 is the value in a log line."""
    names = []
    for stage in config.stages:
        names += [(stage, name) for name in METRICS[stage]]
        if stage != "sft":
            names += [(stage, f"rewards/{configuration.short_name(reward)}/mean") for reward in config.rewards]
            names += [(stage, "kl")] if stage == "grpo" and config.grpo.beta else []
    names = names[:MOST_METRICS]  # only sft, grpo and ppo in one job have more
    return {f"{stage}:{name}": rf"metrics {stage} .* {re.escape(name)}=([-+0-9.e]+)" for stage, name in names}


# --- Requests ---------------------------------------------------------------------------------------------------------


def training_request(job: TrainingJob, directory: Path | None = None) -> dict[str, Any]:
    """Return the body of the CreateTrainingJob request, without access to AWS.

    Everything that the SDK would upload is afterwards in `directory`, at s3/BUCKET/KEY. The channels are code (the
    source directory), sm_drivers (the SDK's start scripts), and the job's model and data. The entry point,
    AlgorithmSpecification.ContainerEntrypoint and ContainerArguments, starts sm_drivers/sm_train.sh.
    """
    return _recorded(job, directory, "CreateTrainingJob")


def evaluation_request(job: EvaluationJob, directory: Path | None = None) -> dict[str, Any]:
    """Return the body of the CreateProcessingJob request; otherwise like `training_request`."""
    return _recorded(job, directory, "CreateProcessingJob")


def _recorded(job: Job, directory: Path | None, operation: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        session = record(job.region, job.bucket, Path(directory or temporary))
        launch(job, session)
    return dict(session.requests)[operation]


def launch(job: Job, session: Session) -> str:
    """Upload what the job needs, start it and return its name. preflight.py has the checks to do before.

    The caller's name becomes the tag `owner` and the folder in the bucket. The learner policy in setup/sagemaker and
    `delete --all` go by these.
    """
    owner = job.tags.get("owner") or caller(session)
    job = replace(job, tags={"owner": owner, **job.tags})
    session.default_bucket_prefix = owner
    logging.getLogger("sagemaker").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        source = package_source(job, Path(temporary) / "code")
        start = _train if isinstance(job, TrainingJob) else _evaluate
        return start(job, session, source, unique_name(job.prefix, owner, job.recipe_name))


def unique_name(prefix: str, owner: str, recipe: str) -> str:
    """Return PREFIX-OWNER-RECIPE-RANDOM, short enough that a job's name, with the time, has at most 63 characters.

    Two learners, or two launches within a second, get different names and so different folders.
    """
    words = [re.sub(r"[^a-zA-Z0-9]+", "-", text).strip("-") for text in (prefix, owner.rsplit("/", 1)[-1][:9], recipe)]
    return f"{'-'.join(filter(None, words))[:40].rstrip('-')}-{secrets.token_hex(3)}"


def image_of(job: Job) -> str:
    """Return the job's container: the given one, or AWS's PyTorch container for the region and instance."""
    if job.image:
        return job.image
    from sagemaker.core import image_uris

    try:
        return image_uris.retrieve("pytorch-amzn2023", job.region, version=PYTORCH, instance_type=job.instance,
                                   image_scope="training")
    except ValueError as error:
        raise SageMakerError(f"AWS has no PyTorch {PYTORCH} container for {job.instance} in {job.region}: choose "
                             f"another --region, or pass your own container as --image. ({error})") from None


def _train(job: TrainingJob, session: Session, source: Path, name: str) -> str:
    from sagemaker.core.training import configs
    from sagemaker.train import ModelTrainer

    network, disk_key = job.network, job.network.disk_key(job.instance)
    stopping = {"max_runtime_in_seconds": round(job.max_run_hours * 3600)}
    if job.max_wait_hours is not None:
        stopping["max_wait_time_in_seconds"] = round(job.max_wait_hours * 3600)
    keep_alive = {"keep_alive_period_in_seconds": job.keep_alive_minutes * 60} if job.keep_alive_minutes else {}
    os.environ.setdefault("SAGEMAKER_VALIDATE_ROLE", "false")  # that check simulates policies, which few users may do
    trainer = ModelTrainer(
        sagemaker_session=session,
        role=job.role,
        base_job_name=name,  # the SDK adds the time, and puts the files into s3://BUCKET/OWNER/NAME/JOB
        training_image=image_of(job),
        # exec: python replaces the shell, and so gets SIGTERM two minutes before a spot instance is taken away
        source_code=configs.SourceCode(source_dir=str(source), requirements="requirements.txt",
                                       command=f"exec {command_of(job)}"),
        compute=configs.Compute(instance_type=job.instance, instance_count=job.instances,
                                volume_size_in_gb=job.volume_gb, enable_managed_spot_training=job.spot, **keep_alive,
                                **({"volume_kms_key_id": disk_key} if disk_key else {})),
        networking=configs.Networking(subnets=list(network.subnets),
                                      security_group_ids=list(network.security_groups)) if network.vpc else None,
        stopping_condition=configs.StoppingCondition(**stopping),
        checkpoint_config=configs.CheckpointConfig(s3_uri=job.checkpoints),
        output_data_config=configs.OutputDataConfig(s3_output_path=f"s3://{job.bucket}/{job.tags['owner']}/{name}",
                                                    kms_key_id=network.kms_key),
        input_data_config=[configs.InputData(channel_name=name, data_source=source)
                           for name, source in job.channels.items()],
        hyperparameters=hyperparameters(job),
        environment=ENVIRONMENT | ({WANDB_SECRET: job.wandb_secret} if job.wandb_secret else {}) | job.environment,
        tags=[configs.Tag(key=key, value=value) for key, value in job.all_tags().items()],
    )
    trainer.with_metric_definitions([configs.MetricDefinition(name=name, regex=regex)
                                     for name, regex in metric_definitions(job.config()).items()])
    trainer.train(wait=False, logs=False)
    return trainer._latest_training_job.training_job_name


def hyperparameters(job: Job) -> dict[str, str]:
    """Return the settings that the console shows of a job. The container reads job.yaml instead."""
    given = {"stages": ",".join(getattr(job, "stages", None) or ()), "limit": job.limit}
    given = {name: str(value) for name, value in given.items() if value}
    # SageMaker's start script makes each name a shell variable, and a dot in one ends the job
    overrides = {key.replace(".", "-"): value for key, _, value in (text.partition("=") for text in job.overrides)}
    return {"recipe": job.recipe_name, "hardware": job.hardware, **given, **overrides}


def _evaluate(job: EvaluationJob, session: Session, source: Path, name: str) -> str:
    name = f"{name}-eval-{time.strftime('%m%d%H%M%S')}"
    folder = f"{job.tags['owner']}/{name}"
    key, disk_key = job.network.kms_key, job.network.disk_key(job.instance)
    encrypted = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else None
    inputs = {"code": str(source), "model": job.model, "data": job.data}
    for kind, uri in inputs.items():
        if uri and not uri.startswith("s3://"):
            inputs[kind] = session.upload_data(uri, key_prefix=f"{folder}/input/{kind}", extra_args=encrypted)
    command = f"cd /opt/ml/processing/input/code && pip install -q -r requirements.txt && exec {CONTAINER} evaluate"
    s3_input = {"S3DataType": "S3Prefix", "S3InputMode": "File"}
    s3_output = {"S3Uri": f"s3://{job.bucket}/{folder}/output", "LocalPath": "/opt/ml/processing/output",
                 "S3UploadMode": "EndOfJob"}
    session.sagemaker_client.create_processing_job(
        ProcessingJobName=name,
        RoleArn=job.role,
        AppSpecification={"ImageUri": image_of(job), "ContainerEntrypoint": ["/bin/bash", "-c", command]},
        ProcessingResources={"ClusterConfig": {"InstanceType": job.instance, "InstanceCount": 1,
                                               "VolumeSizeInGB": job.volume_gb,
                                               **({"VolumeKmsKeyId": disk_key} if disk_key else {})}},
        StoppingCondition={"MaxRuntimeInSeconds": round(job.max_run_hours * 3600)},
        ProcessingInputs=[
            {"InputName": kind, "S3Input": {"S3Uri": uri, "LocalPath": f"/opt/ml/processing/input/{kind}", **s3_input}}
            for kind, uri in inputs.items() if uri],
        ProcessingOutputConfig={"Outputs": [{"OutputName": "results", "S3Output": s3_output}],
                                **({"KmsKeyId": key} if key else {})},
        **({"NetworkConfig": {"VpcConfig": job.network.vpc}} if job.network.vpc else {}),
        Environment=ENVIRONMENT | job.environment,
        Tags=as_tags(job.all_tags()),
    )
    return name


def as_tags(tags: dict[str, str]) -> list[dict[str, str]]:
    """Return tags as AWS writes them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


# --- Following a job --------------------------------------------------------------------------------------------------

FINAL = ("Completed", "Failed", "Stopped")
PATIENCE_SECONDS = 600


@dataclass(frozen=True)
class JobStatus:
    """The state of a training or processing job."""

    name: str
    kind: str  # "training" or "processing"
    status: str  # InProgress, Completed, Failed, Stopping, Stopped
    detail: str  # the current step, or the reason of the failure
    billable_seconds: int | None
    model: str | None  # S3 URI of model.tar.gz
    outputs: tuple[str, ...]  # S3 URIs
    checkpoints: str | None
    arn: str

    def __str__(self) -> str:
        billed = f", {self.billable_seconds / 60:.0f} minutes billed" if self.billable_seconds else ""
        return f"{self.kind} job {self.name}: {self.status}{billed}{f' ({self.detail})' if self.detail else ''}"


def status(name: str, session: Session) -> JobStatus:
    """Look up a job; raise SageMakerError if none has this name."""
    client = session.sagemaker_client
    for kind, describe, argument in (("training", client.describe_training_job, "TrainingJobName"),
                                     ("processing", client.describe_processing_job, "ProcessingJobName")):
        try:
            answer = describe(**{argument: name})
        except client.exceptions.ResourceNotFound:
            continue
        except client.exceptions.ClientError as error:  # "Requested resource not found", or "Could not find"
            if not re.search("not f(ou|i)nd", str(error), re.IGNORECASE):
                raise
            continue
        if kind == "training":
            model = answer.get("ModelArtifacts", {}).get("S3ModelArtifacts")
            folder = f"{answer['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{name}/output"
            outputs = (f"{folder}/output.tar.gz",)
            seconds = answer.get("BillableTimeInSeconds")
        else:
            model, seconds = None, None
            outputs = tuple(output["S3Output"]["S3Uri"] for output in answer["ProcessingOutputConfig"]["Outputs"])
            if "ProcessingEndTime" in answer and "ProcessingStartTime" in answer:
                seconds = round((answer["ProcessingEndTime"] - answer["ProcessingStartTime"]).total_seconds())
        # A processing job's own reason is its ExitMessage; its FailureReason only refers to the log.
        detail = answer.get("ExitMessage") or answer.get("FailureReason") or answer.get("SecondaryStatus") or ""
        state = answer[f"{kind.capitalize()}JobStatus"]
        checkpoints = answer.get("CheckpointConfig", {}).get("S3Uri")
        return JobStatus(name, kind, state, "" if detail == state else detail, seconds, model, outputs, checkpoints,
                         answer[f"{kind.capitalize()}JobArn"])
    raise SageMakerError(f"There is no training or processing job {name!r} in {session.boto_region_name}: check the "
                         "name, or pass its --region. `launch_sagemaker.py status` lists the running jobs.")


def follow(name: str, session: Session, on_line: Callable[[str], None] = print, poll: float = 10.0) -> JobStatus:
    """Wait until a job has ended, and pass every new line of its log to `on_line`.

    Interrupting this (Ctrl-C) does not stop the job. AWS may be out of reach for up to ten minutes.
    """
    tokens: dict[str, str] = {}
    reached = time.monotonic()
    while True:
        try:
            now = status(name, session)
            for line in _new_log_lines(now, session, tokens):
                on_line(line)
            reached = time.monotonic()
            if now.status in FINAL:
                return now
        except aws_errors() as error:
            if not is_transient(error) or time.monotonic() - reached > PATIENCE_SECONDS:
                raise
        time.sleep(poll)


def log_lines(name: str, session: Session) -> list[str]:
    """Return the log of a job so far."""
    return list(_new_log_lines(status(name, session), session, {}))


def _new_log_lines(job: JobStatus, session: Session, tokens: dict[str, str]) -> Iterator[str]:
    """Yield the log lines of a job since the last call; `tokens` keeps the position in each stream."""
    logs = session.boto_session.client("logs")
    group = f"/aws/sagemaker/{job.kind.capitalize()}Jobs"
    try:
        streams = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=f"{job.name}/")["logStreams"]
        for stream in sorted(stream["logStreamName"] for stream in streams):
            while True:
                token = {"nextToken": tokens[stream]} if stream in tokens else {}
                page = logs.get_log_events(logGroupName=group, logStreamName=stream, startFromHead=True, **token)
                yield from (event["message"].rstrip() for event in page["events"])
                if page["nextForwardToken"] == tokens.get(stream):  # an empty page is not always the end
                    break
                tokens[stream] = page["nextForwardToken"]
    except logs.exceptions.ResourceNotFoundException:  # nothing has been logged yet
        pass


# --- Outputs ----------------------------------------------------------------------------------------------------------


def download(name: str, session: Session, directory: Path) -> list[Path]:
    """Fetch and unpack the outputs of a job; return its run directories (training) or result files (evaluation).

    A training job's model comes with its run directories. Its model.tar.gz stays in S3, for endpoints.
    """
    job = status(name, session)
    if directory.exists() and any(directory.iterdir()):
        raise SageMakerError(f"The directory {directory} is not empty: choose another --output-dir, so that the "
                             "outputs of two jobs do not mix.")
    for uri in job.outputs:
        if not session.download_data(str(directory), *bucket_and_key(uri)):
            raise SageMakerError(f"The {job.kind} job {name} is {job.status} and has no {uri}: wait until it has "
                                 f"ended, and read its log with launch_sagemaker.py status {name} --logs.")
    for packed in directory.glob("*.tar.gz"):
        with tarfile.open(packed) as archive:
            archive.extractall(directory, filter="data")
        packed.unlink()
    runs = sorted(path.parent for path in directory.rglob("config.yaml"))
    return runs or sorted(path for path in directory.rglob("*") if path.is_file())


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Split an S3 URI into bucket and key."""
    parts = urlparse(uri)
    return parts.netloc, parts.path.lstrip("/")
