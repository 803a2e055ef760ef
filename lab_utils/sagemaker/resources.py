"""List the jobs and endpoints that cost money; stop and delete those of the workshop."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import cost
from .job import FINAL, PROJECT, JobStatus, bucket_and_key, status
from .session import SageMakerError, is_missing

if TYPE_CHECKING:
    from sagemaker.core.helper.session_helper import Session

PAGES = {"PageSize": 100}  # the default is 10
BUSY = ("Creating", "Updating", "RollingBack")  # states in which SageMaker deletes no endpoint


@dataclass(frozen=True)
class Running:
    """A job or an endpoint that costs money by the hour."""

    kind: str
    name: str
    state: str
    instances: str  # "1 × ml.g5.xlarge"
    hours: float  # since it was created
    usd_per_hour: float | None
    end_it: str

    def __str__(self) -> str:
        usd = "price unknown" if self.usd_per_hour is None else f"{self.usd_per_hour:.2f} USD an hour"
        return (f"{self.kind} {self.name}: {self.state}, {self.instances}, for {self.hours:.1f} hours, {usd}\n"
                f"    {self.end_it}")


def running(session: Session) -> tuple[list[Running], list[str]]:
    """Return all jobs and endpoints in this region that cost money by the hour, the workshop's or not.

    The second list names what the caller's permissions hide. Studio spaces and notebook instances are not listed.
    """
    client, region = session.sagemaker_client, session.boto_region_name
    found, hidden = [], []

    def pages(operation: str, key: str) -> Iterator[dict]:
        try:
            for page in client.get_paginator(operation).paginate(PaginationConfig=PAGES):
                yield from page[key]
        except client.exceptions.ClientError as error:
            if not is_denied(error):
                raise
            hidden.append(key)

    def add(kind: str, name: str, state: str, created: datetime.datetime, used: dict[str, int], end_it: str) -> None:
        prices = {instance: cost.price(instance, region) for instance in used}
        usd = sum(prices[i].usd * n for i, n in used.items()) if used and all(prices.values()) else None
        hours = (datetime.datetime.now(datetime.UTC) - created).total_seconds() / 3600
        instances = ", ".join(f"{n} × {i}" for i, n in used.items())
        found.append(Running(kind, name, state, instances, hours, usd, f"launch_sagemaker.py {end_it} {name}"))

    for job in pages("list_training_jobs", "TrainingJobSummaries"):
        name, state = job["TrainingJobName"], job["TrainingJobStatus"]
        if state not in FINAL:
            used = client.describe_training_job(TrainingJobName=name)["ResourceConfig"]
            add("training job", name, state, job["CreationTime"], {used["InstanceType"]: used["InstanceCount"]}, "stop")
    for job in pages("list_processing_jobs", "ProcessingJobSummaries"):
        name, state = job["ProcessingJobName"], job["ProcessingJobStatus"]
        if state not in FINAL:
            used = client.describe_processing_job(ProcessingJobName=name)["ProcessingResources"]["ClusterConfig"]
            add("processing job", name, state, job["CreationTime"], {used["InstanceType"]: used["InstanceCount"]},
                "stop")
    for endpoint in pages("list_endpoints", "Endpoints"):
        name = endpoint["EndpointName"]
        config = client.describe_endpoint(EndpointName=name)["EndpointConfigName"]
        try:
            variants = client.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"]
        except client.exceptions.ClientError as error:
            if not is_missing(error):
                raise
            variants = []  # deleted before its endpoint, which keeps running
        used = {v["InstanceType"]: v["InitialInstanceCount"] for v in variants if "InstanceType" in v}  # not serverless
        add("endpoint", name, endpoint["EndpointStatus"], endpoint["CreationTime"], used, "delete")
    return found, hidden


def check_owner(name: str, arn: str, session: Session, owner: str | None) -> None:
    """Raise SageMakerError if a resource does not belong to the workshop or to this owner; None allows any owner."""
    tags = _tags(arn, session)
    if tags.get("project") != PROJECT:
        raise SageMakerError(f"{name} is not part of the workshop (it lacks the tag project={PROJECT}): "
                             "delete it in the console if it is yours.")
    if owner is not None and tags.get("owner") != owner:
        raise SageMakerError(f"{name} belongs to {tags.get('owner')!r}, but you are {owner!r}: leave it alone, or add "
                             "--everyone.")


def _tags(arn: str, session: Session) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in session.sagemaker_client.list_tags(ResourceArn=arn)["Tags"]}


def stop(name: str, session: Session, owner: str | None = None) -> JobStatus:
    """Ask a job to stop: training saves a checkpoint first, and its outputs are kept. `owner` as in `delete`."""
    job = status(name, session)
    if job.status in FINAL:
        raise SageMakerError(f"{job}: it has already ended, so there is nothing to stop.")
    check_owner(name, job.arn, session, owner)
    if job.kind == "training":
        session.sagemaker_client.stop_training_job(TrainingJobName=name)
    else:
        session.sagemaker_client.stop_processing_job(ProcessingJobName=name)
    return status(name, session)


def delete(name: str, session: Session, owner: str | None = None, poll: float = 15.0) -> list[str]:
    """Delete an endpoint with its configuration and model, or a job with its files in S3 and its log; return them.

    SageMaker cannot delete an endpoint that is being created or updated, so this waits until that has ended. With an
    `owner`, refuse the resources of other users.

    Raises:
        SageMakerError: the name does not exist, belongs to another user, or is a job that still runs or that another
            job needs.
    """
    done = _delete_endpoint(name, session, owner, poll)
    if not done:
        job = status(name, session)
        check_owner(name, job.arn, session, owner)
        done = _delete_job(job, session)
    return done


def created(session: Session, owner: str | None = None) -> list[str]:
    """Return the names of the workshop's endpoints and jobs, of one owner or of all users."""
    client, names = session.sagemaker_client, []
    wanted = {"project": PROJECT} | ({"owner": owner} if owner else {})
    for operation, key, what in (("list_endpoints", "Endpoints", "Endpoint"),
                                 ("list_endpoint_configs", "EndpointConfigs", "EndpointConfig"),
                                 ("list_models", "Models", "Model"),
                                 ("list_training_jobs", "TrainingJobSummaries", "TrainingJob"),
                                 ("list_processing_jobs", "ProcessingJobSummaries", "ProcessingJob")):
        for page in client.get_paginator(operation).paginate(NameContains=PROJECT, PaginationConfig=PAGES):
            for entry in page[key]:
                name = entry[f"{what}Name"]
                if name.startswith(f"{PROJECT}-") and wanted.items() <= _tags(entry[f"{what}Arn"], session).items():
                    names.append(name)
    return list(dict.fromkeys(names))  # an endpoint, its configuration and its model share a name


def is_denied(error: Any) -> bool:
    """Return whether a permission is missing."""
    return error.response["Error"]["Code"].startswith("AccessDenied")


def parts(name: str, session: Session) -> Iterator[tuple[str, str, Callable[..., Any], dict[str, str]]]:
    """Yield what exists of an endpoint, its configuration and its model: kind, ARN, function to delete it, argument."""
    client = session.sagemaker_client
    for what, kind, describe, remove in (
        ("endpoint", "Endpoint", client.describe_endpoint, client.delete_endpoint),
        ("endpoint configuration", "EndpointConfig", client.describe_endpoint_config, client.delete_endpoint_config),
        ("model", "Model", client.describe_model, client.delete_model),
    ):
        argument = {f"{kind}Name": name}
        try:
            yield what, describe(**argument)[f"{kind}Arn"], remove, argument
        except client.exceptions.ClientError as error:
            if not is_missing(error):
                raise


def _delete_endpoint(name: str, session: Session, owner: str | None, poll: float) -> list[str]:
    client, done = session.sagemaker_client, []
    for what, arn, remove, argument in parts(name, session):
        check_owner(name, arn, session, owner)
        while what == "endpoint" and client.describe_endpoint(**argument)["EndpointStatus"] in BUSY:
            time.sleep(poll)
        remove(**argument)
        done.append(f"{what} {name}")
    return done + _delete_log(f"/aws/sagemaker/Endpoints/{name}", "", session) if done else []


def _delete_job(job: JobStatus, session: Session) -> list[str]:
    if job.status not in FINAL:
        raise SageMakerError(f"{job}: stop it first with launch_sagemaker.py stop {job.name}")
    folders = sorted({uri.split(f"/{job.name}/")[0] + f"/{job.name}/" for uri in (*job.outputs, job.checkpoints)
                      if uri and f"/{job.name}/" in uri})  # not the checkpoints of another job
    _check_unused(job, folders, session)
    done = []
    s3 = session.boto_session.resource("s3")
    for folder in folders:
        bucket, prefix = bucket_and_key(folder)
        answers = s3.Bucket(bucket).objects.filter(Prefix=prefix).delete()
        if errors := [error for answer in answers for error in answer.get("Errors", [])]:
            raise SageMakerError(f"{len(errors)} files in {folder} were not deleted, such as {errors[0]['Key']} "
                                 f"({errors[0]['Message']}): get the permission, and delete the job again.")
        done.append(f"{sum(len(answer.get('Deleted', [])) for answer in answers)} files in {folder}")
    done += _delete_log(f"/aws/sagemaker/{job.kind.capitalize()}Jobs", f"{job.name}/", session)
    if job.kind == "training":
        session.sagemaker_client.delete_training_job(TrainingJobName=job.name)
    else:
        session.sagemaker_client.delete_processing_job(ProcessingJobName=job.name)
    return [*done, f"{job.kind} job {job.name}"]


def _check_unused(job: JobStatus, folders: list[str], session: Session) -> None:
    """Raise SageMakerError if a running job (--resume) keeps its checkpoints in the folders."""
    client = session.sagemaker_client
    for page in client.get_paginator("list_training_jobs").paginate(StatusEquals="InProgress", PaginationConfig=PAGES):
        for other in page["TrainingJobSummaries"]:
            found = client.describe_training_job(TrainingJobName=other["TrainingJobName"])
            uri = found.get("CheckpointConfig", {}).get("S3Uri", "")
            if any(uri.startswith(folder) for folder in folders):
                raise SageMakerError(f"The running job {other['TrainingJobName']} keeps its checkpoints in {uri}, "
                                     f"which belongs to {job.name}: delete {job.name} after it has ended.")


def _delete_log(group: str, prefix: str, session: Session) -> list[str]:
    """Delete the log streams that begin with `prefix`, or the whole group if it is empty."""
    logs = session.boto_session.client("logs")
    try:
        if not prefix:
            logs.delete_log_group(logGroupName=group)
            return [f"log {group}"]
        streams = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=prefix)["logStreams"]
        for stream in streams:
            logs.delete_log_stream(logGroupName=group, logStreamName=stream["logStreamName"])
        return [f"log {group}/{stream['logStreamName']}" for stream in streams]
    except logs.exceptions.ClientError as error:
        if not is_denied(error) and error.response["Error"]["Code"] != "ResourceNotFoundException":
            raise
        return []  # a log that must stay does not keep the job
