"""Training and evaluation jobs: what is sent to SageMaker, following a job while it runs, and its outputs.

A job is recipe ⊕ tier ⊕ overrides like any other run. They travel as job.yaml in the job's source directory, not as
arguments: an apostrophe in a hyperparameter would end the job before it starts.

    TrainingJob(...) ── training_request ──▶ the request, nothing sent     ── launch ──▶ the job's name
    EvaluationJob(...) ─ evaluation_request ▶ the same                     ── follow, download ──▶ run directories
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import yaml

from .. import config as configuration
from ..config import RunConfig
from .session import SageMakerError, caller, record

if TYPE_CHECKING:
    from sagemaker.core.helper.session_helper import Session

REPOSITORY = Path(__file__).resolve().parents[2]
PYTORCH = "2.13"  # of AWS's container; setup/requirements/sagemaker-container.txt leaves torch to it
CONTAINER = "python -m lab_utils.sagemaker.container"
PROJECT = "rl-workshop"  # the tag `project`, by which resources.py finds what the workshop has created
# Logs are read by a program: no progress bars, every line at once.
ENVIRONMENT = {"TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What training and evaluation have in common. Nothing here needs AWS."""

    recipe: str  # a recipe's name, or the path of your own .yaml file
    hardware: str  # the tier, by name
    role: str  # ARN of the execution role
    bucket: str  # takes source, checkpoints and outputs
    region: str
    instance_type: str | None = None  # None: that of the tier in instances.yaml
    overrides: tuple[str, ...] = ()  # "section.key=value"
    limit: int | None = None  # at most this many problems, demonstrations and test questions
    model: str | None = None  # start model: an S3 URI, or a local folder, which is uploaded; channel "model"
    data: str | None = None  # a folder with train.jsonl and test.jsonl: the same; channel "data"
    prefix: str = PROJECT  # job names begin with it
    image: str | None = None  # None: AWS's PyTorch container
    volume_gb: int = 100
    max_run_hours: float = 6.0  # SageMaker stops the job then: the ceiling of what it can cost
    environment: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def recipe_name(self) -> str:
        return Path(self.recipe).stem if self.recipe.endswith((".yaml", ".yml")) else self.recipe

    @property
    def base_name(self) -> str:
        """A job is called BASE_NAME-YYYYmmddHHMMSS, and everything of it lies in s3://BUCKET/BASE_NAME/JOB."""
        return f"{self.prefix}-{self.recipe_name}"

    @property
    def instance(self) -> str:
        from .cost import default_instance

        return self.instance_type or default_instance(self.hardware)

    @property
    def processes(self) -> int:
        """GPUs, hence ranks for torchrun; 1 for plain python."""
        return configuration.load_tier(self.hardware).processes

    def all_tags(self) -> dict[str, str]:
        return {"project": PROJECT, "recipe": self.recipe_name, "hardware": self.hardware, **self.tags}

    def config(self) -> RunConfig:
        """The configuration that the job will train or evaluate with; raises ConfigError where it cannot work."""
        stages = getattr(self, "stages", None)
        overrides = [*self.overrides, *([f"stages=[{','.join(stages)}]"] if stages else [])]
        return configuration.load(self.recipe, self.hardware, overrides)


@dataclass(frozen=True, kw_only=True)
class TrainingJob(Job):
    """Everything that `launch_sagemaker.py train` can say about a job."""

    stages: tuple[str, ...] | None = None
    evaluate: bool = True  # the model of every stage, when all are trained
    spot: bool = False  # spare capacity: far cheaper, may be taken back; training goes on from its checkpoint
    max_wait_hours: float | None = None  # with spot: the longest time for waiting and training together
    keep_alive_minutes: int = 0  # keep the machine for the next job, which then starts at once; costs as before
    checkpoints: str | None = None  # S3 URI of another job's checkpoints, to go on from them
    entry_point: str = f"{CONTAINER} train"  # runs in the source directory


@dataclass(frozen=True, kw_only=True)
class EvaluationJob(Job):
    """Everything that `launch_sagemaker.py evaluate` can say. `model` is a training job's model.tar.gz, or a folder."""


# --- The source directory ---------------------------------------------------------------------------------------------


def package_source(job: Job, directory: Path) -> Path:
    """Fill `directory` with what the container runs: lab_utils, scripts, requirements.txt, pyproject.toml, job.yaml."""
    directory = Path(directory)
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(REPOSITORY / "lab_utils", directory / "lab_utils", ignore=ignore)
    for name in ("scripts/train.py", "scripts/evaluate.py", "pyproject.toml"):
        (directory / name).parent.mkdir(exist_ok=True)
        shutil.copy2(REPOSITORY / name, directory / name)
    shutil.copy2(REPOSITORY / "setup/requirements/sagemaker-container.txt", directory / "requirements.txt")
    if job.recipe != job.recipe_name:  # your own recipe
        shutil.copy2(job.recipe, directory / "lab_utils" / "recipes" / f"{job.recipe_name}.yaml")
    description = {
        "kind": "train" if isinstance(job, TrainingJob) else "evaluate",
        "recipe": job.recipe_name,
        "hardware": job.hardware,
        "stages": list(job.stages) if isinstance(job, TrainingJob) and job.stages else None,
        "overrides": [*job.overrides, "tracking.print_metrics=true"],
        "limit": job.limit,
        "evaluate": isinstance(job, EvaluationJob) or job.evaluate,
        "processes": job.processes,
    }
    (directory / "job.yaml").write_text(yaml.safe_dump(description, sort_keys=False, allow_unicode=True), "utf-8")
    return directory


# --- Metrics ----------------------------------------------------------------------------------------------------------

# What SageMaker takes from the log and plots, at most 40 metrics a job; metrics.csv has all of them.
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
    """Regular expressions by metric, such as {"grpo:reward": ...}; group 1 is the value in a line of the log."""
    names = []
    for stage in config.stages:
        names += [(stage, name) for name in METRICS[stage]]
        if stage != "sft":
            names += [(stage, f"rewards/{reward}/mean") for reward in config.rewards]
            names += [(stage, "kl")] if stage == "grpo" and config.grpo.beta else []
    names = names[:MOST_METRICS]  # only sft, grpo and ppo in one job have more
    return {f"{stage}:{name}": rf"metrics {stage} .* {re.escape(name)}=([-+0-9.e]+)" for stage, name in names}


# --- Requests ---------------------------------------------------------------------------------------------------------


def training_request(job: TrainingJob, directory: Path | None = None) -> dict[str, Any]:
    """The dict that create_training_job would be sent (boto3's names), without access to AWS.

    Whatever the SDK would upload lies afterwards in `directory`, at s3/BUCKET/KEY: the folder of a channel with the
    S3Uri s3://b/k is directory/s3/b/k. Channels: code (the source directory), sm_drivers (the SDK's start scripts),
    and model and data where the job has them. The entry point is AlgorithmSpecification.ContainerEntrypoint and
    ContainerArguments, which start sm_drivers/sm_train.sh.
    """
    return _recorded(job, directory, "CreateTrainingJob")


def evaluation_request(job: EvaluationJob, directory: Path | None = None) -> dict[str, Any]:
    """The dict that create_processing_job would be sent; otherwise as `training_request`."""
    return _recorded(job, directory, "CreateProcessingJob")


def _recorded(job: Job, directory: Path | None, operation: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        session = record(job.region, job.bucket, Path(directory or temporary))
        launch(job, session)
    return dict(session.requests)[operation]


def launch(job: Job, session: Session) -> str:
    """Upload what the job needs and start it; returns its name. See preflight.py for what to check before.

    Your name goes along as the tag `owner`, by which `delete --all` knows what is yours.
    """
    job = replace(job, tags={"owner": caller(session), **job.tags})
    logging.getLogger("sagemaker").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        source = package_source(job, Path(temporary) / "code")
        return (_train if isinstance(job, TrainingJob) else _evaluate)(job, session, source)


def image_of(job: Job) -> str:
    """The job's container: your own, or AWS's PyTorch container for the region and the kind of instance."""
    if job.image:
        return job.image
    from sagemaker.core import image_uris

    try:
        return image_uris.retrieve("pytorch-amzn2023", job.region, version=PYTORCH, instance_type=job.instance,
                                   image_scope="training")
    except ValueError as error:
        raise SageMakerError(f"AWS has no PyTorch {PYTORCH} container for {job.instance} in {job.region}: {error} "
                             "Choose another region, or your own container as --image.") from None


def _train(job: TrainingJob, session: Session, source: Path) -> str:
    from sagemaker.core.training import configs
    from sagemaker.train import ModelTrainer

    channels = {"model": job.model, "data": job.data}
    stopping = {"max_runtime_in_seconds": round(job.max_run_hours * 3600)}
    if job.max_wait_hours is not None:
        stopping["max_wait_time_in_seconds"] = round(job.max_wait_hours * 3600)
    keep_alive = {"keep_alive_period_in_seconds": job.keep_alive_minutes * 60} if job.keep_alive_minutes else {}
    os.environ.setdefault("SAGEMAKER_VALIDATE_ROLE", "false")  # the SDK would simulate policies, which few may do
    trainer = ModelTrainer(
        sagemaker_session=session,
        role=job.role,
        base_job_name=job.base_name,
        training_image=image_of(job),
        # exec: python takes the shell's place and gets SIGTERM, two minutes before a spot instance goes
        source_code=configs.SourceCode(source_dir=str(source), requirements="requirements.txt",
                                       command=f"exec {job.entry_point}"),
        compute=configs.Compute(instance_type=job.instance, instance_count=1, volume_size_in_gb=job.volume_gb,
                                enable_managed_spot_training=job.spot, **keep_alive),
        stopping_condition=configs.StoppingCondition(**stopping),
        checkpoint_config=configs.CheckpointConfig(s3_uri=job.checkpoints),
        output_data_config=configs.OutputDataConfig(s3_output_path=f"s3://{job.bucket}/{job.base_name}"),
        input_data_config=[configs.InputData(channel_name=name, data_source=place)
                           for name, place in channels.items() if place],
        hyperparameters=hyperparameters(job),
        environment=ENVIRONMENT | job.environment,
        tags=[configs.Tag(key=key, value=value) for key, value in job.all_tags().items()],
    )
    trainer.with_metric_definitions([configs.MetricDefinition(name=name, regex=regex)
                                     for name, regex in metric_definitions(job.config()).items()])
    trainer.train(wait=False, logs=False)
    return trainer._latest_training_job.training_job_name


def hyperparameters(job: Job) -> dict[str, str]:
    """What the console and search show of a job. The container goes by job.yaml."""
    given = {"stages": ",".join(getattr(job, "stages", None) or ()), "limit": job.limit}
    given = {name: str(value) for name, value in given.items() if value}
    # SageMaker's start script makes a shell variable of every name, and a dot in one ends the job
    overrides = {key.replace(".", "-"): value for key, _, value in (text.partition("=") for text in job.overrides)}
    return {"recipe": job.recipe_name, "hardware": job.hardware, **given, **overrides}


def _evaluate(job: EvaluationJob, session: Session, source: Path) -> str:
    from sagemaker.core.processing import Processor
    from sagemaker.core.shapes import ProcessingInput, ProcessingOutput, ProcessingS3Input, ProcessingS3Output

    def s3_input(name: str, place: str) -> ProcessingInput:
        return ProcessingInput(input_name=name, s3_input=ProcessingS3Input(
            s3_uri=place, local_path=f"/opt/ml/processing/input/{name}", s3_data_type="S3Prefix", s3_input_mode="File"))

    command = f"cd /opt/ml/processing/input/code && pip install -q -r requirements.txt && exec {CONTAINER} evaluate"
    processor = Processor(
        sagemaker_session=session,
        role=job.role,
        base_job_name=f"{job.base_name}-eval",
        image_uri=image_of(job),
        entrypoint=["/bin/bash", "-c", command],
        instance_type=job.instance,
        instance_count=1,
        volume_size_in_gb=job.volume_gb,
        max_runtime_in_seconds=round(job.max_run_hours * 3600),
        env=ENVIRONMENT | job.environment,
        tags=[{"Key": key, "Value": value} for key, value in job.all_tags().items()],
    )
    name = f"{job.base_name}-eval-{time.strftime('%Y%m%d%H%M%S')}"
    folder = f"s3://{job.bucket}/{job.base_name}/{name}"
    inputs = {"code": str(source), "model": job.model, "data": job.data}
    for key, place in inputs.items():
        if place and not place.startswith("s3://"):
            inputs[key] = session.upload_data(place, key_prefix=f"{job.base_name}/{name}/input/{key}")
    output = ProcessingS3Output(s3_uri=f"{folder}/output", local_path="/opt/ml/processing/output",
                                s3_upload_mode="EndOfJob")
    processor.run(inputs=[s3_input(key, place) for key, place in inputs.items() if place],
                  outputs=[ProcessingOutput(output_name="results", s3_output=output)],
                  job_name=name, wait=False, logs=False)
    return name


# --- Following a job --------------------------------------------------------------------------------------------------

FINAL = ("Completed", "Failed", "Stopped")


@dataclass(frozen=True)
class JobStatus:
    """The state of a training or processing job."""

    name: str
    kind: str  # "training" or "processing"
    status: str  # InProgress, Completed, Failed, Stopping, Stopped
    detail: str  # what it is doing, or why it failed
    billable_seconds: int | None
    model: str | None  # S3 URI of model.tar.gz
    outputs: tuple[str, ...]  # S3 URIs
    checkpoints: str | None

    def __str__(self) -> str:
        billed = f", {self.billable_seconds / 60:.0f} minutes billed" if self.billable_seconds else ""
        return f"{self.kind} job {self.name}: {self.status}{billed}{f' ({self.detail})' if self.detail else ''}"


def status(name: str, session: Session) -> JobStatus:
    """Look up a job; raises SageMakerError where there is none of that name."""
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
        detail = answer.get("FailureReason") or answer.get("ExitMessage") or answer.get("SecondaryStatus") or ""
        state = answer["TrainingJobStatus" if kind == "training" else "ProcessingJobStatus"]
        checkpoints = answer.get("CheckpointConfig", {}).get("S3Uri")
        return JobStatus(name, kind, state, "" if detail == state else detail, seconds, model, outputs, checkpoints)
    raise SageMakerError(f"There is no training or processing job {name!r} in {session.boto_region_name}. "
                         "`launch_sagemaker.py status` lists those of the workshop; another region needs --region.")


def follow(name: str, session: Session, on_line: Callable[[str], None] = print, poll: float = 10.0) -> JobStatus:
    """Wait until a job has ended and hand every line of its log to `on_line` as it comes.

    Interrupting this (Ctrl-C) does not stop the job.
    """
    tokens: dict[str, str] = {}
    while True:
        now = status(name, session)
        for line in _new_log_lines(now, session, tokens):
            on_line(line)
        if now.status in FINAL:
            return now
        time.sleep(poll)


def log_lines(name: str, session: Session) -> list[str]:
    """The whole log of a job so far."""
    return _new_log_lines(status(name, session), session, {})


def _new_log_lines(job: JobStatus, session: Session, tokens: dict[str, str]) -> list[str]:
    """The log lines of a job since the last call; `tokens` remembers where each stream stands."""
    logs = session.boto_session.client("logs")
    group = f"/aws/sagemaker/{job.kind.capitalize()}Jobs"
    lines = []
    try:
        streams = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=f"{job.name}/")["logStreams"]
        for stream in sorted(stream["logStreamName"] for stream in streams):
            while True:
                token = {"nextToken": tokens[stream]} if stream in tokens else {}
                page = logs.get_log_events(logGroupName=group, logStreamName=stream, startFromHead=True, **token)
                lines += [event["message"].rstrip() for event in page["events"]]
                if page["nextForwardToken"] == tokens.get(stream):  # a page may be empty before the end
                    break
                tokens[stream] = page["nextForwardToken"]
    except logs.exceptions.ResourceNotFoundException:  # nothing has been logged yet
        pass
    return lines


# --- Outputs ----------------------------------------------------------------------------------------------------------


def download(name: str, session: Session, directory: Path) -> list[Path]:
    """Fetch what a job has written and unpack it; returns the run directories (training) or result files (evaluation).

    The model of a training job comes only as part of its run directories; model.tar.gz stays in S3, for endpoints.
    """
    job = status(name, session)
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise SageMakerError(f"The directory {directory} is not empty, and outputs of two jobs must not be mixed. "
                             "Choose another --output-dir.")
    directory.mkdir(parents=True, exist_ok=True)
    s3 = session.boto_session.client("s3")
    for uri in job.outputs:
        bucket, key = bucket_and_key(uri)
        found = s3.list_objects_v2(Bucket=bucket, Prefix=key).get("Contents", [])
        if not found:
            raise SageMakerError(f"{uri} is not there: the {job.kind} job is {job.status}. Only a job that has ended "
                                 f"leaves outputs; its log says more: `launch_sagemaker.py status {name} --logs`.")
        for entry in found:
            target = directory / (entry["Key"].removeprefix(key).lstrip("/") or Path(key).name)
            target.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file(bucket, entry["Key"], str(target))
            if target.name.endswith(".tar.gz"):
                with tarfile.open(target) as archive:
                    archive.extractall(directory, filter="data")
                target.unlink()
    runs = sorted(path.parent for path in directory.rglob("config.yaml"))
    return runs or sorted(path for path in directory.rglob("*") if path.is_file())


def bucket_and_key(uri: str) -> tuple[str, str]:
    """The two parts of an S3 URI."""
    parts = urlparse(uri)
    return parts.netloc, parts.path.lstrip("/")
