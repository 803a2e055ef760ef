"""List what costs money in the account; stop and delete what the workshop has created."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import cost
from .job import FINAL, PROJECT, JobStatus, bucket_and_key, status
from .session import SageMakerError

if TYPE_CHECKING:
    from sagemaker.core.helper.session_helper import Session


PAGES = {"PageSize": 100}  # the default is 10


@dataclass(frozen=True)
class Running:
    """A resource that costs money by the hour."""

    kind: str
    name: str
    state: str
    instances: str  # "1 × ml.g5.xlarge"
    hours: float  # since it was created
    usd_per_hour: float | None
    end_it: str  # the command or action that ends it

    def __str__(self) -> str:
        usd = "price unknown" if self.usd_per_hour is None else f"{self.usd_per_hour:.2f} USD an hour"
        return (f"{self.kind} {self.name}: {self.state}, {self.instances}, for {self.hours:.1f} hours, {usd}\n"
                f"    {self.end_it}")


def running(session: Session) -> tuple[list[Running], list[str]]:
    """Return everything on SageMaker in this region that costs money by the hour, the workshop's or not.

    The second list names what the caller's permissions hide.
    """
    client, region = session.sagemaker_client, session.boto_region_name
    hidden = []

    def pages(operation: str, key: str) -> Iterator[dict]:
        try:
            for page in client.get_paginator(operation).paginate(PaginationConfig=PAGES):
                yield from page[key]
        except client.exceptions.ClientError as error:
            if not is_denied(error):
                raise
            hidden.append(key)

    def row(kind: str, name: str, state: str, created: datetime.datetime, used: dict[str, int], end_it: str) -> Running:
        prices = {instance: cost.price(instance, region) for instance in used}
        usd = sum(prices[i].usd * n for i, n in used.items()) if used and all(prices.values()) else None
        hours = (datetime.datetime.now(datetime.UTC) - created).total_seconds() / 3600
        return Running(kind, name, state, ", ".join(f"{n} × {i}" for i, n in used.items()), hours, usd, end_it)

    found = []
    for job in pages("list_training_jobs", "TrainingJobSummaries"):
        name, state, warm = job["TrainingJobName"], job["TrainingJobStatus"], job.get("WarmPoolStatus", {})
        if state in FINAL and warm.get("Status") not in ("Available", "InUse"):
            continue
        used = client.describe_training_job(TrainingJobName=name)["ResourceConfig"]
        if state in FINAL:
            state, end_it = "warm pool", "ends automatically after --keep-alive-minutes"
        else:
            end_it = f"launch_sagemaker.py stop {name}"
        found.append(row("training job", name, state, job["CreationTime"],
                         {used["InstanceType"]: used["InstanceCount"]}, end_it))
    for job in pages("list_processing_jobs", "ProcessingJobSummaries"):
        name, state = job["ProcessingJobName"], job["ProcessingJobStatus"]
        if state not in FINAL:
            used = client.describe_processing_job(ProcessingJobName=name)["ProcessingResources"]["ClusterConfig"]
            found.append(row("processing job", name, state, job["CreationTime"],
                             {used["InstanceType"]: used["InstanceCount"]}, f"launch_sagemaker.py stop {name}"))
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
        found.append(row("endpoint", name, endpoint["EndpointStatus"], endpoint["CreationTime"], used,
                         f"launch_sagemaker.py delete {name}"))
    for notebook in pages("list_notebook_instances", "NotebookInstances"):
        name, state = notebook["NotebookInstanceName"], notebook["NotebookInstanceStatus"]
        if state == "InService":
            found.append(row("notebook instance", name, state, notebook["CreationTime"], {notebook["InstanceType"]: 1},
                             f"aws sagemaker stop-notebook-instance --notebook-instance-name {name}"))
    for app in pages("list_apps", "Apps"):
        used = {app["ResourceSpec"]["InstanceType"]: 1} if "InstanceType" in app.get("ResourceSpec", {}) else {}
        if app["Status"] == "InService" and used != {"system": 1}:
            owner = app.get("SpaceName") or app.get("UserProfileName", "")
            found.append(row("Studio app", f"{owner}/{app['AppName']}", "InService", app["CreationTime"], used,
                             "stop the space in Studio, under Running instances"))
    return found, hidden


def check_owner(name: str, arn: str, session: Session, owner: str | None) -> None:
    """Raise SageMakerError if a resource does not belong to the workshop or to this owner; None allows any owner."""
    tags = _tags(arn, session)
    if tags.get("project") != PROJECT:
        raise SageMakerError(f"{name} is not part of the workshop (it lacks the tag project={PROJECT}): "
                             "end it in the console if it is yours.")
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
    """Delete an endpoint with its configuration and model, or a job with its files in S3 and its log.

    SageMaker cannot delete an endpoint that is being created or updated; this waits for the end of that.

    Args:
        owner: refuse resources of anyone else; None deletes those of all users.

    Returns:
        A description of each deleted resource.

    Raises:
        SageMakerError: the name does not exist, it is not the owner's, or it is a job that still runs or that another
            job needs.
    """
    done = _delete_endpoint(name, session, owner, poll)
    if not done:
        job = status(name, session)
        check_owner(name, job.arn, session, owner)
        done = _delete_job(job, session)
    return done


def created(session: Session, prefix: str = PROJECT, owner: str | None = None) -> list[str]:
    """Return the names PREFIX-... of the endpoints and jobs with the tag project=rl-workshop.

    Args:
        owner: only those with this tag `owner`; None means those of all users.
    """
    client, names = session.sagemaker_client, []
    wanted = {"project": PROJECT} | ({"owner": owner} if owner else {})
    for operation, key, what in (("list_endpoints", "Endpoints", "Endpoint"),
                                 ("list_endpoint_configs", "EndpointConfigs", "EndpointConfig"),
                                 ("list_models", "Models", "Model"),
                                 ("list_training_jobs", "TrainingJobSummaries", "TrainingJob"),
                                 ("list_processing_jobs", "ProcessingJobSummaries", "ProcessingJob")):
        for page in client.get_paginator(operation).paginate(NameContains=prefix, PaginationConfig=PAGES):
            for entry in page[key]:
                name = entry[f"{what}Name"]
                if name.startswith(f"{prefix}-") and wanted.items() <= _tags(entry[f"{what}Arn"], session).items():
                    names.append(name)
    return list(dict.fromkeys(names))  # an endpoint, its configuration and its model share a name


def is_denied(error: Any) -> bool:
    """Return whether a permission is missing."""
    return error.response["Error"]["Code"].startswith("AccessDenied")


def is_missing(error: Any) -> bool:
    """Return whether an error means that a resource does not exist; SageMaker uses the same code for other errors."""
    return error.response["Error"]["Code"] == "ResourceNotFound" or "could not find" in str(error).lower()


def _delete_endpoint(name: str, session: Session, owner: str | None, poll: float) -> list[str]:
    client, done = session.sagemaker_client, []
    try:
        while client.describe_endpoint(EndpointName=name)["EndpointStatus"] in ("Creating", "Updating", "RollingBack"):
            time.sleep(poll)
    except client.exceptions.ClientError as error:
        if not is_missing(error):
            raise
    for what, kind, describe, remove in (
        ("endpoint", "Endpoint", client.describe_endpoint, client.delete_endpoint),
        ("endpoint configuration", "EndpointConfig", client.describe_endpoint_config, client.delete_endpoint_config),
        ("model", "Model", client.describe_model, client.delete_model),
    ):
        try:
            check_owner(name, describe(**{f"{kind}Name": name})[f"{kind}Arn"], session, owner)
            remove(**{f"{kind}Name": name})
        except client.exceptions.ClientError as error:
            if not is_missing(error):
                raise
        else:
            done.append(f"{what} {name}")
    return done + _delete_log(f"/aws/sagemaker/Endpoints/{name}", "", session) if done else []


def _delete_job(job: JobStatus, session: Session) -> list[str]:
    if job.status not in FINAL:
        raise SageMakerError(f"{job}: stop it first with launch_sagemaker.py stop {job.name}")
    folders = sorted({uri.split(f"/{job.name}/")[0] + f"/{job.name}/" for uri in (*job.outputs, job.checkpoints)
                      if uri and f"/{job.name}/" in uri})  # not the checkpoints of another job
    _check_deletable(job, folders, session)
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


def _check_deletable(job: JobStatus, folders: list[str], session: Session) -> None:
    """Raise SageMakerError if the job has a warm pool, or a running job (--resume) keeps its checkpoints there."""
    client = session.sagemaker_client
    if job.kind != "training":
        return
    if client.describe_training_job(TrainingJobName=job.name).get("WarmPoolStatus", {}).get("Status") == "Available":
        raise SageMakerError(f"{job}: its instance is kept warm, and SageMaker deletes no job with a warm pool. Try "
                             "again after its --keep-alive-minutes.")
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
