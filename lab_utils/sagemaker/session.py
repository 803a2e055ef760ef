"""The connection to AWS, or a recorder that needs neither credentials nor a network.

Both are the SDK's Session: a dry run takes the same path as a launch.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import WorkshopError

if TYPE_CHECKING:
    from sagemaker.core.helper.session_helper import Session

# In Studio this file names the user. All users of a domain may share one role, whose session is called "SageMaker".
STUDIO_METADATA = Path("/opt/ml/metadata/resource-metadata.json")
SHARED_SESSIONS = ("SageMaker", "root")
# Without this the SDK reports every call to AWS.
CONFIG = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}
# Where the SDK's defaults file, ~/.config/sagemaker/config.yaml, has the network and the key, below "SageMaker".
DEFAULTS = {
    "train": ("TrainingJob.VpcConfig", "TrainingJob.OutputDataConfig.KmsKeyId"),
    "evaluate": ("ProcessingJob.NetworkConfig.VpcConfig", "ProcessingJob.ProcessingOutputConfig.KmsKeyId"),
    "deploy": ("Model.VpcConfig", "EndpointConfig.KmsKeyId"),
}


class SageMakerError(WorkshopError):
    """A problem with a job, an endpoint or the connection to AWS that the user can fix."""


@dataclass(frozen=True)
class NetworkAndKey:
    """The private network (VPC) and the encryption key that an account may require; empty by default."""

    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    kms_key: str | None = None  # id, ARN or alias

    @property
    def vpc(self) -> dict[str, list[str]] | None:
        """The network as AWS writes it."""
        if not self.subnets:
            return None
        return {"SecurityGroupIds": list(self.security_groups), "Subnets": list(self.subnets)}

    def disk_key(self, instance: str) -> str | None:
        """Return the key for the disk of an instance, if it takes one: local NVMe disks have a key of their own."""
        local = re.match(r"ml\.([gp]\d|trn|[a-z]\d+[a-z]*d)", instance)
        return None if local else self.kms_key

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        problems = []
        if bool(self.subnets) != bool(self.security_groups):
            problems.append("--subnet and --security-group belong together: pass at least one of each, or neither.")
        for option, values, pattern, example in (
            ("--subnet", self.subnets, r"subnet-[0-9a-f]+", "subnet-0123456789abcdef0"),
            ("--security-group", self.security_groups, r"sg-[0-9a-f]+", "sg-0123456789abcdef0"),
        ):
            problems += [f"{option} {value!r} is not an id: pass one such as {example}."
                         for value in values if not re.fullmatch(pattern, value)]
        return problems


def network_and_key(command: str, subnets: Sequence[str], security_groups: Sequence[str],
                    kms_key: str | None) -> NetworkAndKey:
    """Return the given network and key; what is not given comes from the SDK's defaults file, as for the SDK itself.

    Args:
        command: train, evaluate or deploy; the file has a section for each.
    """
    from jsonschema import ValidationError
    from sagemaker.core.config.config import load_sagemaker_config

    try:
        defaults = load_sagemaker_config()
    except (ValidationError, ValueError, RuntimeError) as error:
        raise SageMakerError(f"The SDK's defaults file is not valid ({str(error).splitlines()[0]}): correct "
                             "~/.config/sagemaker/config.yaml, or the file in SAGEMAKER_USER_CONFIG_OVERRIDE or "
                             "SAGEMAKER_ADMIN_CONFIG_OVERRIDE.") from None

    def default(path: str) -> Any:
        found = defaults.get("SageMaker", {})
        for part in path.split("."):
            found = (found or {}).get(part)
        return found

    network, key = DEFAULTS[command]
    vpc = default(network) or {}
    if not (subnets or security_groups):
        subnets, security_groups = vpc.get("Subnets", ()), vpc.get("SecurityGroupIds", ())
    return NetworkAndKey(tuple(subnets), tuple(security_groups), kms_key or default(key))


def connect(region: str | None, bucket: str = "") -> Session:
    """Connect to AWS with the credentials that boto3 finds (environment, ~/.aws, or the role of a Studio space).

    Args:
        region: such as "us-east-1"; None takes the configured one.
        bucket: where the SDK uploads to.

    Raises:
        SageMakerError: the SDK, a region or credentials are missing.
    """
    region = known_region(region)
    import boto3

    boto_session = boto3.Session(region_name=region)
    if boto_session.get_credentials() is None:
        raise SageMakerError("No AWS credentials found: run 'aws configure' or 'aws sso login', or set AWS_PROFILE. "
                             "--dry-run shows every request without an account.")
    return _session_class()(boto_session, bucket)


def caller(session: Session) -> str:
    """Return the caller's name, the tag `owner` of everything that the workshop creates.

    It is the user profile or space in Studio, and elsewhere the IAM user or ROLE/SESSION.
    """
    if session.folder is not None:  # a recorder, which needs no account
        return "you"
    studio = json.loads(STUDIO_METADATA.read_text(encoding="utf-8")) if STUDIO_METADATA.is_file() else {}
    if name := studio.get("UserProfileName") or studio.get("SpaceName"):
        return name
    arn = session.boto_session.client("sts").get_caller_identity()["Arn"]
    kind, *path = arn.split(":", 5)[5].split("/")  # user/PATH/NAME, assumed-role/ROLE/SESSION or root
    return path[-1] if kind == "user" else "/".join(path) or kind


def one_person(session: Session) -> str:
    """Return the caller's name; raise SageMakerError if several people share it."""
    owner = caller(session)
    if owner.rsplit("/", 1)[-1] in SHARED_SESSIONS:
        raise SageMakerError(f"Your credentials do not say who you are, because several people can be {owner!r}: "
                             "use your own IAM user or role, or name each resource.")
    return owner


def record(region: str | None, bucket: str, folder: Path) -> Session:
    """Return a session that sends nothing.

    Uploads are copied to folder/s3/BUCKET/KEY. `session.requests` lists (operation, body) of every call to SageMaker,
    with the body that AWS would get.
    """
    region = known_region(region)
    import boto3

    boto_session = boto3.Session("dry-run", "dry-run", region_name=region)
    session = _session_class()(boto_session, bucket)
    session.folder, session.requests = folder, []
    for events in (session.sagemaker_client.meta.events, boto_session.events):
        events.register("before-call", functools.partial(_answer, session.requests))
    return session


def known_region(region: str | None) -> str:
    """Return `region`, or the one that boto3 is configured with; raise SageMakerError without either."""
    require_sdk()
    import boto3

    found = region or boto3.Session().region_name
    if not found:
        raise SageMakerError("No AWS region is set: pass --region us-east-1, or set AWS_DEFAULT_REGION.")
    return found


def require_sdk() -> None:
    """Raise SageMakerError if the SageMaker SDK 3 is missing."""
    try:
        importlib.metadata.version("sagemaker-train")
    except importlib.metadata.PackageNotFoundError:
        raise SageMakerError("The SageMaker SDK 3 is not installed: run "
                             "pip install -r setup/requirements/sagemaker.txt") from None


def aws_errors() -> tuple[type[Exception], ...]:
    """Return what boto3 raises when AWS refuses a call or cannot be reached; nothing without boto3."""
    if importlib.util.find_spec("botocore") is None:
        return ()
    from botocore.exceptions import BotoCoreError, ClientError

    return BotoCoreError, ClientError


def is_transient(error: Exception) -> bool:
    """Return whether the next call may succeed: after an error of the network or a server, or a throttled call."""
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError

    if isinstance(error, ClientError):
        code = error.response["Error"]["Code"]
        return "Throttl" in code or error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400) >= 500
    return isinstance(error, (ConnectionError, HTTPClientError))


@functools.cache
def _session_class() -> type:
    """Return the SDK's Session with two changes: it never creates a bucket, and a recorder copies its uploads."""
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
    """Return the path at which a recorder keeps what would be uploaded to `uri`."""
    return folder / "s3" / uri.removeprefix("s3://")


def _answer(requests: list[tuple[str, dict]], model: Any, params: dict, **kwargs: Any) -> tuple:
    """Answer a call before it is sent (botocore's event before-call), and record it if it is SageMaker's."""
    from botocore.awsrequest import AWSResponse

    answer = {}
    if model.service_model.service_name == "sagemaker":
        body = json.loads(params["body"])
        requests.append((model.name, body))
        answer = {**body, "ResponseMetadata": {}}  # the SDK describes what it has just created
    return AWSResponse(params["url"], 200, {}, None), answer
