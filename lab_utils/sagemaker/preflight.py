"""What is wrong with a job, found before a cent is spent. Every problem comes with its remedy.

Neither the SDK nor its dry run looks at most of this: a mistyped instance, spot without a longest wait, an apostrophe
in a hyperparameter end as an error of the service, minutes later as a failed job, or never. Three kinds of checks:

    job_problems       rules of ours and of the service, on the job as it was described     no AWS, no upload
    request_problems   the request against the service model in botocore: enums, patterns, lengths, ranges
    account_problems   bucket, role, inputs and quotas of the account                       reads from AWS
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import config as configuration
from ..config import ConfigError
from . import cost
from .container import SECRET
from .job import EvaluationJob, Job, TrainingJob, bucket_and_key, hyperparameters
from .session import SageMakerError

if TYPE_CHECKING:
    from sagemaker.core.helper.session_helper import Session

LONGEST_RUN_HOURS = 28 * 24  # of a training job; processing jobs: 5 days
LONGEST_PROCESSING_HOURS = 5 * 24
LONGEST_KEEP_ALIVE_MINUTES = 60
NAME_SUFFIX = "-eval-20260101000000"  # the longest that is put behind a job's base name


class Problem(NamedTuple):
    """One thing that cannot work, and what to do about it."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"- {self.what}\n  {self.remedy}"


class PreflightError(SageMakerError):
    """A job that was stopped by the preflight."""

    def __init__(self, problems: list[Problem]):
        self.problems = problems
        super().__init__(f"nothing was started, {len(problems)} problem(s):\n" + "\n".join(map(str, problems)))


@functools.cache
def service_model() -> Any:
    """SageMaker's own description of its requests, as botocore ships it."""
    import botocore.session

    return botocore.session.get_session().get_service_model("sagemaker")


@functools.cache
def regions() -> list[str]:
    """The regions in which botocore knows SageMaker."""
    import botocore.session

    return botocore.session.get_session().get_available_regions("sagemaker")


# --- The job, as described --------------------------------------------------------------------------------------------


def job_problems(job: Job) -> list[Problem]:
    """What is wrong with a TrainingJob or an EvaluationJob, as far as that can be told without AWS."""
    problems = [*_place_problems(job), *_config_problems(job)]
    if job.hardware in configuration.hardware_names():
        problems += _instance_problems(job)
    problems += [*_time_problems(job), *_input_problems(job), *_text_problems(job)]
    return problems


def _place_problems(job: Job) -> Iterator[Problem]:
    """Role, bucket and region."""
    if job.region not in regions():
        yield Problem(f"The region {job.region!r} is none of SageMaker's.",
                      f"{_did_you_mean(job.region, regions())}Give --region, such as us-east-1.")
    if not job.role:
        yield Problem("No execution role was given: the job acts in your account as that role.",
                      "Give --role ARN or set SAGEMAKER_ROLE. setup/sagemaker/README.md says how to make one.")
    elif not re.fullmatch(service_model().shape_for("RoleArn").metadata["pattern"], job.role):
        yield Problem(f"The role {job.role!r} is not the ARN of an IAM role.",
                      "It looks like arn:aws:iam::123456789012:role/NAME; to find it: "
                      "aws iam get-role --role-name NAME --query Role.Arn")
    if not job.bucket:
        yield Problem("No bucket was given for source, checkpoints and outputs.",
                      "Give --bucket NAME or set SAGEMAKER_BUCKET; aws s3 mb s3://NAME --region REGION makes one.")
    elif not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", job.bucket):
        yield Problem(f"The bucket {job.bucket!r} is not a bucket's name: 3 to 63 of a-z, 0-9, hyphen and dot.",
                      "Give the bare name, without s3:// and without a folder.")


def _config_problems(job: Job) -> Iterator[Problem]:
    """Recipe, tier and overrides, by the rules that hold for every run."""
    if job.limit is not None and job.limit < 1:
        yield Problem(f"--limit {job.limit} leaves nothing to train on or to ask.", "Give a number of at least 1.")
    if job.hardware == "auto":
        yield Problem("hardware = 'auto' looks at this machine, and the job runs on another.",
                      f"Name the tier: {', '.join(configuration.hardware_names())}.")
        return
    try:
        job.config()
    except ConfigError as error:
        yield from (Problem(line, "Correct --recipe, --hardware, --stages or --set; nothing has been uploaded.")
                    for line in str(error).splitlines())


def _instance_problems(job: Job) -> Iterator[Problem]:
    """Does the instance exist, and does the tier fit it?"""
    tier = configuration.load_tier(job.hardware)
    try:
        instance = job.instance
    except SageMakerError as error:
        yield Problem(str(error), "`launch_sagemaker.py cost` lists the instance types.")
        return
    training = isinstance(job, TrainingJob)
    kind = "training" if training else "processing"
    enum = service_model().shape_for("TrainingInstanceType" if training else "ProcessingInstanceType").enum
    if instance not in enum:
        elsewhere = instance in service_model().shape_for("TrainingInstanceType").enum
        yield Problem(f"There is no instance type {instance!r} for {kind} jobs.",
                      "SageMaker has it for training jobs only; evaluate on a smaller one, such as ml.g5.2xlarge."
                      if elsewhere else
                      f"{_did_you_mean(instance, enum)}`launch_sagemaker.py cost` lists those that the workshop knows.")
        return
    facts = cost.known()["instances"].get(instance)
    if not training and tier.gpus > 1:
        yield Problem(f"An evaluation runs in one process, and the tier {tier.name} is for {tier.gpus}.",
                      f"Give --hardware {tier.based_on}: the same settings on one GPU.")
        return
    if facts is None:
        if tier.gpus and not re.match(r"ml\.[gp]\d", instance):
            yield Problem(f"The tier {tier.name} needs {tier.gpus} GPU(s), and {instance} has none.",
                          f"Its default is {cost.known()['default_instance'].get(tier.name)}.")
        return
    gpus = len(job.environment["CUDA_VISIBLE_DEVICES"].split(",")) \
        if "CUDA_VISIBLE_DEVICES" in job.environment else facts["gpus"]
    fitting = [name for name, other in cost.known()["instances"].items()
               if name in enum and other["gpus"] == tier.gpus and other["memory_gb"] >= tier.memory_gb]
    remedy = f"For {tier.name}: {', '.join(fitting) or 'none that the workshop knows'}. Or another --hardware."
    if gpus < tier.gpus:
        yield Problem(f"The tier {tier.name} needs {tier.gpus} GPU(s), and {instance} has {gpus or 'none'}.", remedy)
    elif gpus > tier.gpus and tier.gpus == 0:
        yield Problem(f"The tier {tier.name} trains on the processor: you would pay for the GPU of {instance} "
                      "and leave it idle.", remedy)
    elif gpus > tier.gpus:
        yield Problem(f"The tier {tier.name} trains on {tier.gpus} GPU(s), and {instance} has {gpus}: you would pay "
                      "for all, and training refuses to start.",
                      f"{remedy} Or --env CUDA_VISIBLE_DEVICES=0, knowingly.")
    elif facts["memory_gb"] < tier.memory_gb:
        yield Problem(f"The tier {tier.name} is made for {tier.memory_gb:g} GB a GPU, and {instance} has "
                      f"{facts['memory_gb']} GB.", remedy)


def _time_problems(job: Job) -> Iterator[Problem]:
    """Durations, spot and the warm pool."""
    training = isinstance(job, TrainingJob)
    longest = LONGEST_RUN_HOURS if training else LONGEST_PROCESSING_HOURS
    if not 0 < job.max_run_hours <= longest:
        yield Problem(f"A job may run for more than 0 and at most {longest} hours, not {job.max_run_hours:g}.",
                      "Give --max-run-hours; it is also the ceiling of the cost.")
    if not training:
        return
    if job.spot and job.max_wait_hours is None:
        yield Problem("A spot job needs a longest wait, for waiting and training together.",
                      f"Give --max-wait-hours, such as {2 * job.max_run_hours:g}.")
    if job.spot and job.max_wait_hours is not None and job.max_wait_hours < job.max_run_hours:
        yield Problem(f"The longest wait ({job.max_wait_hours:g} hours) counts waiting and training, so it cannot be "
                      f"less than the longest run ({job.max_run_hours:g} hours).",
                      f"Give --max-wait-hours {2 * job.max_run_hours:g}, or a smaller --max-run-hours.")
    if not job.spot and job.max_wait_hours is not None:
        yield Problem("A longest wait belongs to spot jobs only.", "Add --spot, or leave out --max-wait-hours.")
    if job.keep_alive_minutes and job.spot:
        yield Problem("Spot instances cannot be kept warm for the next job.",
                      "Leave out --keep-alive-minutes or --spot.")
    if not 0 <= job.keep_alive_minutes <= LONGEST_KEEP_ALIVE_MINUTES:
        yield Problem(f"An instance can be kept warm for 0 to {LONGEST_KEEP_ALIVE_MINUTES} minutes, not "
                      f"{job.keep_alive_minutes}.",
                      "Give a smaller --keep-alive-minutes; a warm instance costs as before.")
    expected = None if _broken(job) else cost.cost_of(job)
    hours = expected and expected.hours
    if hours and hours[0 if expected.estimated else 1] > job.max_run_hours > 0:  # an estimate may be far too high
        yield Problem(f"The job is expected to take {hours[0]:g} to {hours[1]:g} hours, and SageMaker would stop it "
                      f"after {job.max_run_hours:g}.",
                      f"Give --max-run-hours {hours[1]:g} or more, or less to do: --limit.")


def _input_problems(job: Job) -> Iterator[Problem]:
    """Start model, data, checkpoints and container."""
    if isinstance(job, EvaluationJob) and not job.model:
        yield Problem("There is no model to evaluate.",
                      "Give --job NAME of a training job, or --model s3://... or a folder.")
    for option, place in (("--model", job.model), ("--data", job.data)):
        if not place or re.match(r"s3://[^/]+/.+", place):
            continue
        if re.match(r"\w+://", place):
            yield Problem(f"{option} {place} is not a place in S3.",
                          f"Give {option} s3://BUCKET/KEY or a local folder.")
        elif not Path(place).is_dir():
            hint = " A model of the Hub is named in the recipe: --set model.name=..." if option == "--model" else ""
            yield Problem(f"{option} {place} is neither an S3 URI nor a local folder.",
                          f"Give s3://BUCKET/KEY, or a folder, which is uploaded.{hint}")
        elif option == "--model" and not [*Path(place).glob("config.json"), *Path(place).glob("adapter_config.json")]:
            yield Problem(f"--model {place} holds neither a config.json nor an adapter_config.json.",
                          "Give the folder `model` of a run directory, such as outputs/countdown-grpo/sft/model.")
        elif option == "--data" and not all((Path(place) / name).is_file() for name in ("train.jsonl", "test.jsonl")):
            yield Problem(f"--data {place} does not hold train.jsonl and test.jsonl.",
                          "Write both files, one JSON object a line; notebook 01 shows the columns of each task.")
    if isinstance(job, TrainingJob) and job.checkpoints and not job.checkpoints.startswith("s3://"):
        yield Problem(f"The checkpoints {job.checkpoints} are not in S3.", "Give --resume JOB, or an S3 URI.")
    if job.image and (found := re.match(r"\d{12}\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(\.cn)?/", job.image)):
        if found[1] != job.region:
            yield Problem(f"The container is in {found[1]}, and the job in {job.region}.",
                          f"Push it to {job.region} (setup/sagemaker/README.md), or choose --region {found[1]}.")
    elif job.image:
        yield Problem(f"The container {job.image!r} is not in Amazon ECR, from which alone SageMaker takes it.",
                      "Push it to ECR (setup/sagemaker/README.md), or leave out --image to use AWS's.")
    if not 30 <= job.volume_gb <= 1000:
        yield Problem(f"A volume of {job.volume_gb} GB is too small for packages, model and checkpoints, or needlessly "
                      "large.", "Give --volume-gb 30 to 1000; 100 does for the recipes.")


def _text_problems(job: Job) -> Iterator[Problem]:
    """Names, hyperparameters, environment and tags."""
    name = f"{job.base_name}{NAME_SUFFIX}"
    if not re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*", job.base_name):
        yield Problem(f"Job names would begin with {job.base_name!r}: only letters, digits and hyphens are allowed.",
                      "Give another --job-prefix, or rename your recipe's file.")
    elif len(name) > 63:
        yield Problem(f"Job names would be {len(name)} characters long, such as {name}: 63 are allowed.",
                      f"Take {len(name) - 63} characters off --job-prefix or off your recipe's file name.")
    values = hyperparameters(job)
    for key, value in values.items():
        if "'" in key + value:
            yield Problem(f"The setting {key}={value[:60]} has an apostrophe, which ends the job before it starts.",
                          "Write it into your own recipe file, which travels as it is: --recipe my-recipe.yaml.")
        if len(value) > 2500 or len(key) > 256:
            yield Problem(f"The setting {key[:40]} is {len(value)} characters long: a hyperparameter may have 2,500, "
                          "its name 256.", "Write it into your own recipe file: --recipe my-recipe.yaml.")
    if len(values) > 100:
        yield Problem(f"A job may show 100 hyperparameters, not {len(values)}.",
                      "Write the settings into your own recipe file: --recipe my-recipe.yaml.")
    for key in job.environment:
        if SECRET.search(key):
            yield Problem(f"The environment variable {key} looks like a secret: all who may see the job can read it.",
                          "The recipes need none: models and data are public, and W&B records offline (`wandb sync`).")
    for key in job.tags:
        if key.lower().startswith("aws:"):
            yield Problem(f"The tag {key}: names that begin with aws: are AWS's own.", "Give the tag another name.")


def _broken(job: Job) -> bool:
    """Whether there is no instance to speak of."""
    try:
        return not job.instance
    except SageMakerError:
        return True


def _did_you_mean(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    return f"Did you mean {' or '.join(close)}? " if close else ""


# --- The request against the service model ----------------------------------------------------------------------------


def request_problems(operation: str, request: dict[str, Any]) -> list[Problem]:
    """What the service would not accept in a request, such as ("CreateTrainingJob", {...})."""
    return list(_walk(service_model().operation_model(operation).input_shape, request, ""))


def _walk(shape: Any, value: Any, path: str) -> Iterator[Problem]:
    kind, limits = shape.type_name, shape.metadata
    if kind == "structure":
        for name in value:
            if name not in shape.members:
                yield Problem(f"{path}{name} is unknown to SageMaker.", f"Here it knows: {', '.join(shape.members)}.")
            else:
                yield from _walk(shape.members[name], value[name], f"{path}{name}.")
        for name in shape.required_members:
            if name not in value:
                yield Problem(f"{path}{name} is missing.", "SageMaker requires it.")
        return
    where = path.rstrip(". ")
    if kind in ("list", "map", "string") and not limits.get("min", 0) <= len(value) <= limits.get("max", 10**9):
        unit = "characters" if kind == "string" else "entries"
        yield Problem(f"{where} has {len(value)} {unit}.",
                      f"SageMaker takes {limits.get('min', 0)} to {limits.get('max', 'any number of')}.")
    if kind == "list":
        for i, item in enumerate(value):
            yield from _walk(shape.member, item, f"{where}[{i}].")
    elif kind == "map":
        for key, item in value.items():
            yield from _walk(shape.key, key, f"{path}(name) ")
            yield from _walk(shape.value, item, f"{path}{key}.")
    elif kind == "string":
        pattern = limits.get("pattern", "").replace(r"\p{L}\p{Z}\p{N}_", r"\w\s")  # Python's re knows no \p
        if shape.enum and value not in shape.enum:
            yield Problem(f"{where} = {value!r} is none of the values that SageMaker knows.",
                          f"{_did_you_mean(value, shape.enum)}It knows {len(shape.enum)} values.")
        elif pattern and not re.fullmatch(pattern, value, re.DOTALL):
            yield Problem(f"{where} = {value[:80]!r} does not have the form that SageMaker asks for.",
                          f"It is {pattern}")
    elif kind in ("integer", "long") and not limits.get("min", value) <= value <= limits.get("max", value):
        yield Problem(f"{where} = {value} is out of range.",
                      f"SageMaker takes {limits.get('min', 'any')} to {limits.get('max', 'any')}.")


# --- The account ------------------------------------------------------------------------------------------------------


def account_problems(job: Job, session: Session) -> list[Problem]:
    """What the account lacks: bucket, role, inputs, quota. What you may not look at is passed over."""
    usage = "processing job" if isinstance(job, EvaluationJob) else "spot training job" if job.spot else "training job"
    return [
        *_bucket_problems(job.bucket, session),
        *_role_problems(job.role, session),
        *missing_inputs({"--model": job.model, "--data": job.data, "--resume": getattr(job, "checkpoints", None)},
                        session),
        *quota_problems(job.instance, usage, session),
    ]


def _bucket_problems(bucket: str, session: Session) -> Iterator[Problem]:
    from botocore.exceptions import ClientError

    s3 = session.boto_session.client("s3")
    try:
        found = s3.get_bucket_location(Bucket=bucket)["LocationConstraint"] or "us-east-1"
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchBucket":
            yield Problem(f"There is no bucket {bucket}.",
                          f"Make it: aws s3 mb s3://{bucket} --region {session.boto_region_name}")
        return
    if found != session.boto_region_name:
        yield Problem(f"The bucket {bucket} is in {found}, and the job would run in {session.boto_region_name}.",
                      f"Choose --region {found}, or a bucket in {session.boto_region_name}.")


def _role_problems(role: str, session: Session) -> Iterator[Problem]:
    from botocore.exceptions import ClientError

    account = session.account_id()
    owner = role.split(":")[4]
    if owner != account:
        yield Problem(f"The role belongs to the account {owner}, and your credentials to {account}.",
                      "Give a --role of this account, or choose other credentials with AWS_PROFILE.")
        return
    try:
        found = session.boto_session.client("iam").get_role(RoleName=role.rsplit("/", 1)[1])["Role"]
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchEntity":
            yield Problem(f"There is no role {role}.", "setup/sagemaker/README.md says how to make one.")
        return
    if "sagemaker.amazonaws.com" not in json.dumps(found["AssumeRolePolicyDocument"]):
        yield Problem(f"SageMaker may not act as the role {role}: its trust policy lacks sagemaker.amazonaws.com.",
                      "Give the execution role, not your own; setup/sagemaker/README.md makes one.")


def missing_inputs(inputs: dict[str, str | None], session: Session) -> Iterator[Problem]:
    """Places in S3, by option, where there is nothing."""
    from botocore.exceptions import ClientError

    s3 = session.boto_session.client("s3")
    for option, uri in inputs.items():
        if not uri or not uri.startswith("s3://"):
            continue
        bucket, key = bucket_and_key(uri)
        try:
            there = s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)["KeyCount"]
        except ClientError as error:
            there = error.response["Error"]["Code"] != "NoSuchBucket"
        if not there:
            yield Problem(f"{option} {uri}: there is nothing in S3 at that place.",
                          f"Look with: aws s3 ls {uri}. A job leaves its model only when it has ended.")


def quota_problems(instance: str, usage: str, session: Session) -> Iterator[Problem]:
    """A quota of 0, which every new account has for GPUs; `usage` is "training job", "endpoint" and so on."""
    from botocore.exceptions import ClientError

    client = session.boto_session.client("service-quotas")
    try:
        pages = client.get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker")
        quotas = {quota["QuotaName"]: quota["Value"] for page in pages for quota in page["Quotas"]}
    except ClientError:  # you may not look
        return
    name = f"{instance} for {usage} usage"
    if quotas.get(name) == 0:
        yield Problem(f"The quota '{name}' of this account is 0 in {session.boto_region_name}.",
                      "Ask for 1 in the console under Service Quotas, Amazon SageMaker (hours to days), or choose "
                      "another instance type.")
