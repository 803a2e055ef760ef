"""The connection to AWS: a real one, or a recorder in its place, which needs neither credentials nor a network.

Both are the SDK's Session, so that a dry run goes through exactly the code that a launch goes through.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sagemaker.core.helper.session_helper import Session

INSTALL = "pip install -r setup/requirements/sagemaker.txt"
# Without this the SDK reports every call to AWS.
CONFIG = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}


class SageMakerError(ValueError):
    """Something that only you can mend: a package, a region, credentials, a name. The message says what to do."""


def connect(region: str | None, bucket: str) -> Session:
    """Connect to AWS with the credentials that boto3 finds (environment, ~/.aws, or the role of a Studio space).

    Args:
        region: such as "us-east-1"; None takes the one that AWS_DEFAULT_REGION or ~/.aws/config names.
        bucket: where the SDK puts what it uploads.

    Raises:
        SageMakerError: the SDK, a region or credentials are missing.
    """
    require_sdk()
    import boto3

    boto_session = boto3.Session(region_name=known_region(region))
    if boto_session.get_credentials() is None:
        raise SageMakerError("No AWS credentials were found. Run 'aws configure' or 'aws sso login', or set "
                             "AWS_PROFILE. Without an account, --dry-run shows every request.")
    return _session_class()(boto_session, bucket)


def caller(session: Session) -> str:
    """Who you are, by your credentials: the last part of the ARN. It is the tag `owner` of what you create."""
    if session.folder is not None:  # a recorder, which needs no account
        return "you"
    return session.boto_session.client("sts").get_caller_identity()["Arn"].rsplit("/", 1)[-1]


def record(region: str | None, bucket: str, folder: Path) -> Session:
    """A session that sends nothing. What would be uploaded is copied to folder/s3/BUCKET/KEY, and `session.requests`
    lists (operation, body) of every call to SageMaker, the body as AWS would get it."""
    require_sdk()
    import boto3

    boto_session = boto3.Session("dry-run", "dry-run", region_name=known_region(region))
    session = _session_class()(boto_session, bucket)
    session.folder, session.requests = folder, []
    for client in (session.sagemaker_client, boto_session):
        client = client if client is boto_session else client.meta
        client.events.register("before-call", functools.partial(_answer, session.requests))
    return session


def known_region(region: str | None) -> str:
    """`region`, or the one that boto3 is configured with; raises SageMakerError where there is none."""
    require_sdk()
    import boto3

    found = region or boto3.Session().region_name
    if not found:
        raise SageMakerError("No AWS region is set. Give --region us-east-1, or set AWS_DEFAULT_REGION.")
    return found


def require_sdk() -> None:
    """Raise SageMakerError where the SageMaker SDK is not installed."""
    for module in ("boto3", "sagemaker.train"):
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise SageMakerError(f"The SageMaker SDK 3 is not installed (there is no module {module}). Run: {INSTALL}")


@functools.cache
def _session_class() -> type:
    """The SDK's Session with two changes: it never creates a bucket, and a recorder copies in place of uploading."""
    from sagemaker.core.helper.session_helper import Session

    class WorkshopSession(Session):
        folder: Path | None = None  # of a recorder

        def __init__(self, boto_session, bucket: str):
            super().__init__(boto_session, sagemaker_config=CONFIG)
            self.bucket = bucket

        def default_bucket(self) -> str:
            return self.bucket

        def upload_data(self, path, bucket=None, key_prefix="data", callback=None, extra_args=None) -> str:
            if self.folder is None:
                return super().upload_data(path, bucket or self.bucket, key_prefix, callback, extra_args)
            uri = f"s3://{bucket or self.bucket}/{key_prefix}"
            target = local_copy(self.folder, uri)
            if Path(path).is_dir():
                shutil.copytree(path, target, dirs_exist_ok=True)
                return uri
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
            return f"{uri}/{Path(path).name}"

    return WorkshopSession


def local_copy(folder: Path, uri: str) -> Path:
    """Where a recorder keeps what would be uploaded to `uri`."""
    return folder / "s3" / uri.removeprefix("s3://")


def _answer(requests: list[tuple[str, dict]], model: Any, params: dict, **kwargs: Any) -> tuple:
    """Take a call before it is sent, as botocore's event before-call allows, and answer it with next to nothing."""
    from botocore.awsrequest import AWSResponse

    answer = {}
    if model.service_model.service_name == "sagemaker":
        body = json.loads(params["body"])
        requests.append((model.name, body))
        answer = {**body, "ResponseMetadata": {}}  # the SDK describes what it has just created
    return AWSResponse(params["url"], 200, {}, None), answer
