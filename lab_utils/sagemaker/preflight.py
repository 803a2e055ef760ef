"""What is wrong with a job, found before it costs anything. Every problem is one line, "problem: fix".

The SDK and its dry run check little of this: a mistyped instance, spot without a longest wait or an apostrophe in a
hyperparameter would become an error of the service, or a job that fails minutes later. Three kinds of checks:

    job_problems       rules of the workshop and the service, on the job as described     no AWS, no upload
    request_problems   the request against SageMaker's service model in botocore          no AWS
    account_problems   bucket, role, inputs and quotas of the account                     reads from AWS
"""

from __future__ import annotations

import difflib
import functools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import REPOSITORY
from .. import config as configuration
from ..config import ConfigError
from . import cost
from .container import SECRET
from .job import EvaluationJob, Job, TrainingJob, bucket_and_key, hyperparameters, local_data
from .session import SageMakerError

if TYPE_CHECKING:
    from sagemaker.core.helper.session_helper import Session

MOST_DATA_MB = 100
LONGEST_RUN_HOURS = 28 * 24  # of a training job
LONGEST_PROCESSING_HOURS = 5 * 24
LONGEST_KEEP_ALIVE_MINUTES = 60
OWN_RECIPE = "write the settings into your own recipe file, --recipe my-recipe.yaml"


def stop_at(problems: list[str]) -> None:
    """Raise SageMakerError with all problems, if there are any."""
    if problems:
        raise SageMakerError("\n- ".join([f"nothing was started, {len(problems)} problem(s):", *problems]))


@functools.cache
def service_model() -> Any:
    """Return SageMaker's description of its requests, which botocore ships."""
    import botocore.session

    return botocore.session.get_session().get_service_model("sagemaker")


@functools.cache
def regions() -> list[str]:
    """Return the regions in which botocore knows SageMaker."""
    import botocore.session

    return botocore.session.get_session().get_available_regions("sagemaker")


# --- The job, as described --------------------------------------------------------------------------------------------


def job_problems(job: Job) -> list[str]:
    """Return what is wrong with a TrainingJob or an EvaluationJob, as far as this machine can tell without AWS."""
    problems = [*_place_problems(job), *_config_problems(job), *_time_problems(job), *_input_problems(job),
                *_source_problems(job), *_text_problems(job), *job.network.problems()]
    if job.hardware in configuration.hardware_names():
        try:
            problems += [*_instance_problems(job, job.instance), *_duration_problems(job)]
        except SageMakerError as error:  # the tier has no default instance
            problems.append(str(error))
    return problems


def _place_problems(job: Job) -> Iterator[str]:
    """Yield problems of role, bucket and region."""
    if job.region not in regions():
        yield f"--region {job.region!r} is not a SageMaker region: {_suggestion(job.region, regions(), 'us-east-1')}"
    yield from role_problems(job.role)
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", job.bucket):
        yield (f"--bucket {job.bucket!r} is not the name of a bucket: use 3 to 63 of a-z, 0-9, hyphen and dot, "
               "without s3:// and without a folder, or set SAGEMAKER_BUCKET (aws s3 mb s3://NAME creates one).")


def role_problems(role: str) -> Iterator[str]:
    """Yield a problem if `role` is not a role's ARN."""
    if [*limit_problems("--role", role, service_model().shape_for("RoleArn"))]:
        yield (f"--role {role!r} is not the ARN of an IAM role: pass arn:aws:iam::123456789012:role/NAME, or set "
               "SAGEMAKER_ROLE (look it up with aws iam get-role --role-name NAME --query Role.Arn; "
               "setup/sagemaker/README.md creates one).")


def _config_problems(job: Job) -> Iterator[str]:
    """Yield problems of recipe, tier and overrides, by the rules for every run."""
    if job.limit is not None and job.limit < 1:
        yield f"--limit {job.limit} leaves no problems to train on or test with: pass at least 1."
    if job.hardware == "auto":
        yield ("--hardware auto looks at this machine, but the job runs on another: pass one of "
               f"{', '.join(configuration.hardware_names())}.")
        return
    for override in job.overrides:
        if re.match(r"(rewards\.|task\.name=)[^=]*\.py\b", override):
            yield f"--set {override} names a file on this machine: {OWN_RECIPE}; its code travels with it."
    try:
        source = job.config().task.source
    except ConfigError as error:
        yield from str(error).splitlines()
        return
    if path := local_data(job):
        size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file()) / 1e6
        if size > MOST_DATA_MB:
            yield (f"task.source = {source} has {size:,.0f} MB, and at most {MOST_DATA_MB} travel with the code: pass "
                   "--data FOLDER, which holds train.jsonl and test.jsonl.")


def _instance_problems(job: Job, instance: str) -> Iterator[str]:
    """Yield why the instance type cannot run the tier."""
    tier, known = configuration.load_tier(job.hardware), cost.known()["instances"]
    kind = "Training" if isinstance(job, TrainingJob) else "Processing"
    types = service_model().shape_for(f"{kind}InstanceType").enum
    if instance not in types:
        yield (f"--instance-type {instance!r} does not exist for {kind.lower()} jobs: "
               f"{_suggestion(instance, types, 'one that launch_sagemaker.py cost lists')}")
        return
    if job.instances < 1:
        yield f"--instances {job.instances} is not allowed: pass 1 or more."
    if kind == "Processing" and tier.gpus > 1:
        yield (f"--hardware {tier.name} uses {tier.gpus} GPUs, but an evaluation runs in one process: "
               f"pass --hardware {tier.based_on}, the same settings on one GPU.")
        return
    if job.volume_gb > known.get(instance, {}).get("storage_gb", job.volume_gb):
        storage = known[instance]["storage_gb"]
        yield f"--volume-gb {job.volume_gb} is more than the {storage} GB disk of {instance}: pass {storage} or less."
    if instance not in known and re.match(r"ml\.[gp]\d", instance):  # with a GPU of unknown size
        return
    memory_gb = known[instance]["memory_gb"] if instance in known else tier.memory_gb
    gpus = known[instance]["gpus"] if instance in known else 0
    if "CUDA_VISIBLE_DEVICES" in job.environment:
        gpus = len(job.environment["CUDA_VISIBLE_DEVICES"].split(","))
    fitting = [name for name, other in known.items()
               if name in types and other["gpus"] == tier.gpus and other["memory_gb"] >= tier.memory_gb]
    fix = f"choose one of {', '.join(fitting) or 'no known instance types'}, or another --hardware"
    if gpus < tier.gpus:
        yield f"--hardware {tier.name} needs {tier.gpus} GPU(s), but {instance} has {gpus or 'none'}: {fix}."
    elif gpus > tier.gpus and tier.gpus == 0:
        yield (f"--hardware {tier.name} trains on the processor, so you would pay for the idle GPU of {instance}: "
               f"{fix}.")
    elif gpus > tier.gpus:
        yield (f"--hardware {tier.name} trains on {tier.gpus} GPU(s), but you would pay for all {gpus} of {instance}: "
               f"{fix}, or accept it with --env CUDA_VISIBLE_DEVICES=0.")
    elif memory_gb < tier.memory_gb:
        yield f"--hardware {tier.name} needs {tier.memory_gb:g} GB per GPU, but {instance} has {memory_gb} GB: {fix}."


def _time_problems(job: Job) -> Iterator[str]:
    """Yield problems of durations, spot and the warm pool."""
    training = isinstance(job, TrainingJob)
    longest = LONGEST_RUN_HOURS if training else LONGEST_PROCESSING_HOURS
    if not 0 < job.max_run_hours <= longest:
        yield f"--max-run-hours {job.max_run_hours:g} is not allowed: pass more than 0 and at most {longest} hours."
    if not training:
        return
    if job.spot and (job.max_wait_hours or 0) < job.max_run_hours:
        yield (f"--spot needs a --max-wait-hours for waiting and training together, at least --max-run-hours "
               f"{job.max_run_hours:g} (given: {job.max_wait_hours or 'none'}): pass {2 * job.max_run_hours:g}.")
    if not job.spot and job.max_wait_hours is not None:
        yield "--max-wait-hours is only for spot jobs: add --spot, or leave it out."
    if job.keep_alive_minutes and job.spot:
        yield "--keep-alive-minutes does not work with --spot: leave out one of them."
    if not 0 <= job.keep_alive_minutes <= LONGEST_KEEP_ALIVE_MINUTES:
        yield (f"--keep-alive-minutes {job.keep_alive_minutes} is not allowed: pass 0 to {LONGEST_KEEP_ALIVE_MINUTES}; "
               "a warm instance costs the same as a running one.")


def _duration_problems(job: Job) -> Iterator[str]:
    """Yield a problem if SageMaker would stop the job before its expected end."""
    expected = cost.cost_of(job)
    # An estimate may be far too high, so its lower end counts.
    if expected.hours and expected.hours[0 if expected.estimated else 1] > job.max_run_hours > 0:
        least, most = expected.hours
        yield (f"--max-run-hours {job.max_run_hours:g} is too short for a job of about {least:g} to {most:g} hours: "
               f"pass --max-run-hours {most:g} or more, or a --limit.")


def _input_problems(job: Job) -> Iterator[str]:
    """Yield problems of start model, data, checkpoints, container and volume."""
    if isinstance(job, EvaluationJob) and not job.model:
        yield "No model to evaluate: pass --job NAME of a training job, or --model s3://... or a folder."
    test_data = getattr(job, "test_data", None)
    if test_data and not job.data:
        yield "--test-data is without --data: pass the folder with train.jsonl as --data."
    files = {"--data": ["train.jsonl", "test.jsonl"], "--test-data": ["test.jsonl"]}
    if test_data or isinstance(job, EvaluationJob):
        files["--data"] = ["train.jsonl"] if test_data else ["test.jsonl"]
    for option, uri in (("--model", job.model), ("--data", job.data), ("--test-data", test_data)):
        if not uri or re.match(r"s3://[^/]+/.+", uri):
            continue
        if re.match(r"\w+://", uri) or not Path(uri).is_dir():
            hint = " (a Hub model belongs in the recipe: --set model.name=...)" if option == "--model" else ""
            yield (f"{option} {uri} is neither an S3 URI nor a local folder: "
                   f"pass s3://BUCKET/KEY, or a folder to upload{hint}.")
        elif option == "--model" and not [*Path(uri).glob("config.json"), *Path(uri).glob("adapter_config.json")]:
            yield (f"--model {uri} holds neither config.json nor adapter_config.json: pass the folder `model` of a "
                   "run directory, such as outputs/countdown-grpo/sft/model.")
        elif not all((Path(uri) / name).is_file() for name in files.get(option, ())):
            yield (f"{option} {uri} does not hold {' and '.join(files[option])}: write one JSON object per line; "
                   "notebook 01 shows the columns of each task.")
    if isinstance(job, TrainingJob) and job.checkpoints and not job.checkpoints.startswith("s3://"):
        yield f"The checkpoints {job.checkpoints} are not in S3: pass --resume JOB, or an S3 URI."
    if job.image and not (found := re.match(r"\d{12}\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(\.cn)?/", job.image)):
        yield (f"--image {job.image!r} is not in Amazon ECR, the only registry for jobs: push it to ECR "
               "(setup/sagemaker/README.md), or leave out --image.")
    elif job.image and found[1] != job.region:
        yield (f"--image is in {found[1]}, but the job would run in {job.region}: push the image to {job.region} "
               f"(setup/sagemaker/README.md), or pass --region {found[1]}.")
    if not 30 <= job.volume_gb <= 1000:
        yield f"--volume-gb {job.volume_gb} is not allowed: pass 30 to 1000; 100 is enough for the recipes."


def _source_problems(job: Job) -> Iterator[str]:
    """Yield problems of the entry point and of your own requirements."""
    if job.requirements and not Path(job.requirements).is_file():
        yield f"--requirements {job.requirements} does not exist: pass a requirements.txt of your own packages."
    elif job.requirements:
        lines = Path(job.requirements).read_text(encoding="utf-8").splitlines()
        if torch := [line for line in lines if re.match(r"(torch|torchvision|torchaudio)\b", line, re.IGNORECASE)]:
            yield f"--requirements {job.requirements} lists {torch[0]}: remove that line; the image brings torch."
    if not isinstance(job, TrainingJob):
        return
    try:
        words = shlex.split(job.entry_point)
    except ValueError as error:
        yield f"--entry-point {job.entry_point} is not a command ({error}): close its quotation marks."
        return
    for word in words:
        if word.endswith((".py", ".sh")) and not (Path(word).is_file() or (REPOSITORY / word).is_file()):
            yield f"--entry-point names {word}, which does not exist here: pass the path of a script on this machine."
    secret = job.wandb_secret or ""
    if re.fullmatch(r"[0-9a-f]{40}|wandb_v1_.*", secret):
        yield ("--wandb-secret looks like a key, which everyone with access to the job could read: store the key in "
               "AWS Secrets Manager, and pass the name of the secret.")


def _text_problems(job: Job) -> Iterator[str]:
    """Yield problems of names, hyperparameters, environment and tags; the service's limits are checked later."""
    if not re.fullmatch(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,18}[a-zA-Z0-9])?", job.prefix):
        yield f"--job-prefix {job.prefix!r} is not allowed: use 1 to 20 letters, digits and hyphens."
    for key, value in hyperparameters(job).items():
        if "'" in key + value:
            yield f"The setting {key}={value[:60]} has an apostrophe, which would end the job at once: {OWN_RECIPE}."
    for key in job.environment:
        if SECRET.search(key):
            yield (f"--env {key} looks like a secret, which everyone with access to the job can read: leave it out. "
                   "Models and data are public, and the key of W&B belongs in a secret (--wandb-secret).")
    for key in job.tags:
        if key.lower().startswith("aws:"):
            yield f"--tag {key} begins with aws:, which is reserved: choose another name."


def _suggestion(name: str, names: list[str], otherwise: str) -> str:
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"pass {otherwise}."


# --- The request against the service model ----------------------------------------------------------------------------


def request_problems(operation: str, request: dict[str, Any]) -> list[str]:
    """Return why the service would refuse a request, such as ("CreateTrainingJob", {...})."""
    from botocore.validate import ParamValidator

    shape = service_model().operation_model(operation).input_shape
    report = ParamValidator().validate(request, shape)  # names, types and minima
    problems = [*report.generate_report().splitlines(), *limit_problems(operation, request, shape)]
    return [f"SageMaker would refuse the request: {problem}" for problem in problems]


def limit_problems(name: str, value: Any, shape: Any) -> Iterator[str]:
    """Yield which maxima, enumerations and patterns of a shape a value breaks; botocore's validator ignores these."""
    limits = shape.metadata
    if shape.type_name == "structure":
        for key in value.keys() & shape.members.keys():
            yield from limit_problems(f"{name}.{key}", value[key], shape.members[key])
        return
    if shape.type_name == "list":
        for i, item in enumerate(value):
            yield from limit_problems(f"{name}[{i}]", item, shape.member)
    elif shape.type_name == "map":
        for key, item in value.items():
            yield from limit_problems(f"the name {key!r} in {name}", key, shape.key)
            yield from limit_problems(f"{name}.{key}", item, shape.value)
    elif shape.type_name == "string":
        pattern = limits.get("pattern", ".*").replace(r"\p{L}\p{Z}\p{N}_", r"\w\s")  # Python's re has no \p
        if shape.enum and value not in shape.enum:
            yield f"{name} = {value!r}: {_suggestion(value, shape.enum, f'one of its {len(shape.enum)} values')}"
        elif not re.fullmatch(pattern, value, re.DOTALL):
            yield f"{name} = {value[:80]!r}: write it as {pattern}"
    size = value if isinstance(value, int) else len(value)
    if size > limits.get("max", size):
        yield f"{name} has {'the value' if value == size else 'the length'} {size}: at most {limits['max']} is allowed"


# --- The account ------------------------------------------------------------------------------------------------------


def account_problems(job: Job, session: Session) -> list[str]:
    """Return what the account lacks: bucket, role, inputs, quota. Without permission to look, a check is skipped."""
    usages = ["processing job"]
    if isinstance(job, TrainingJob):
        usages = ["spot training job" if job.spot else "training job"]
        usages += ["training warm pool"] if job.keep_alive_minutes else []
    return [
        *_bucket_problems(job.bucket, session),
        *_role_problems(job.role, session),
        *missing_inputs({"--model": job.model, "--data": job.data, "--test-data": getattr(job, "test_data", None),
                         "--resume": getattr(job, "checkpoints", None)}, session),
        *quota_problems(job.instance, usages, session, job.instances),
    ]


def _bucket_problems(bucket: str, session: Session) -> Iterator[str]:
    from botocore.exceptions import ClientError

    s3 = session.boto_session.client("s3")
    try:
        found = s3.get_bucket_location(Bucket=bucket)["LocationConstraint"] or "us-east-1"
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchBucket":
            yield (f"The bucket {bucket} does not exist: create it with "
                   f"aws s3 mb s3://{bucket} --region {session.boto_region_name}")
        return
    if found != session.boto_region_name:
        yield (f"The bucket {bucket} is in {found}, but the job would run in {session.boto_region_name}: "
               f"pass --region {found}, or a bucket in {session.boto_region_name}.")


def _role_problems(role: str, session: Session) -> Iterator[str]:
    from botocore.exceptions import ClientError

    account = session.account_id()
    owner = role.split(":")[4]
    if owner != account:
        yield (f"The role belongs to the account {owner}, but your credentials to {account}: pass a --role of this "
               "account, or choose other credentials with AWS_PROFILE.")
        return
    try:
        found = session.boto_session.client("iam").get_role(RoleName=role.rsplit("/", 1)[1])["Role"]
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchEntity":
            yield f"The role {role} does not exist: create one as setup/sagemaker/README.md says."
        return
    if "sagemaker.amazonaws.com" not in json.dumps(found["AssumeRolePolicyDocument"]):
        yield (f"SageMaker may not assume the role {role}, whose trust policy lacks sagemaker.amazonaws.com: pass an "
               "execution role, not your own; setup/sagemaker/README.md creates one.")


def missing_inputs(inputs: dict[str, str | None], session: Session) -> Iterator[str]:
    """Yield the options whose S3 URI has nothing behind it."""
    from botocore.exceptions import ClientError

    s3 = session.boto_session.client("s3")
    for option, uri in inputs.items():
        if not uri or not uri.startswith("s3://"):
            continue
        bucket, key = bucket_and_key(uri)
        try:
            exists = s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)["KeyCount"]
        except ClientError as error:
            exists = error.response["Error"]["Code"] != "NoSuchBucket"
        if not exists:
            yield (f"{option} {uri} does not exist in S3: check it with aws s3 ls {uri}. "
                   "A job writes its model only at its end.")


def quota_problems(instance: str, usages: list[str], session: Session, count: int = 1) -> Iterator[str]:
    """Yield quotas below `count`; 0 is the default of many instance types. A usage is "training job", "endpoint"…"""
    from botocore.exceptions import ClientError

    client = session.boto_session.client("service-quotas")
    quotas = {}
    for operation in ("list_aws_default_service_quotas", "list_service_quotas"):  # the second has only changed quotas
        try:
            for page in client.get_paginator(operation).paginate(ServiceCode="sagemaker"):
                quotas |= {quota["QuotaName"]: quota["Value"] for quota in page["Quotas"]}
        except ClientError:  # no permission to look
            return
    for name in (f"{instance} for {usage} usage" for usage in usages):
        if quotas.get(name, count) < count:
            yield (f"The quota '{name}' of this account is {quotas[name]:g} in {session.boto_region_name}: request "
                   f"{count} in the console under Service Quotas, Amazon SageMaker (hours to days), or choose another "
                   "instance type.")
