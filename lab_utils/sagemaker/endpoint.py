"""A trained model behind a real-time endpoint: AWS's vLLM container serves the merged model from S3.

Three resources are created under one name: a model (container and weights), an endpoint configuration (the instance)
and the endpoint. The endpoint costs money until `delete`, used or not.
"""

from __future__ import annotations

import json
import logging
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cost
from .job import PROJECT, as_tags
from .preflight import role_problems, service_model
from .resources import is_missing
from .session import NetworkAndKey, SageMakerError, aws_errors, is_transient, record

if TYPE_CHECKING:
    from sagemaker.core.helper.session_helper import Session

VLLM = "2.6"  # of AWS's container vllm:server-sagemaker-cuda
CUDA_13_AMI = "al2023-ami-sagemaker-inference-gpu-4-1"  # a machine image with the driver that the container needs
SERVED_NAME = "rl-workshop"  # the model's name in requests


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """An endpoint, before it exists. Nothing here needs AWS."""

    name: str  # of the endpoint, its configuration and its model
    model: str  # S3 URI: a training job's model.tar.gz, or a folder ending in "/"
    role: str
    region: str
    instance_type: str = "ml.g5.xlarge"
    image: str | None = None  # None: AWS's vLLM container
    max_model_len: int | None = None  # tokens of prompt and completion; None: as many as the model allows
    network: NetworkAndKey = NetworkAndKey()  # the network and the key that an account may require
    tags: dict[str, str] = field(default_factory=dict)

    def all_tags(self) -> dict[str, str]:
        return {"project": PROJECT, **self.tags}


@dataclass(frozen=True)
class Answer:
    """The answer of an endpoint."""

    text: str
    tokens: int
    finish_reason: str  # "stop", or "length" if it was cut off


def deployment_problems(deployment: Deployment) -> list[str]:
    """Return what is wrong with a deployment, as far as this machine can tell without AWS."""
    problems, instance = [], deployment.instance_type
    facts = cost.known()["instances"].get(instance)
    if not re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", deployment.name):
        problems.append(f"--name {deployment.name!r} is not allowed: use 1 to 63 letters, digits and hyphens.")
    if not re.match(r"s3://[^/]+/.+(\.tar\.gz|/)$", deployment.model):
        problems.append(f"--model {deployment.model} is not a model.tar.gz or folder (ending in /) in S3: pass such an "
                        "S3 URI, or --job NAME of a finished training job.")
    if instance not in service_model().shape_for("ProductionVariantInstanceType").enum:
        problems.append(f"--instance-type {instance!r} does not exist for endpoints: pass ml.g5.xlarge, or another one "
                        "with a GPU from launch_sagemaker.py cost.")
    elif not re.match(r"ml\.[gp]\d", instance) or (facts and not facts["gpus"]):
        problems.append(f"--instance-type {instance} has no GPU, which vLLM needs: pass ml.g5.xlarge.")
    elif re.match(r"ml\.(g4dn|p3)", instance):
        problems.append(f"--instance-type {instance} has a GPU without bfloat16, the data type of saved models: pass "
                        "ml.g5.xlarge or ml.g6.xlarge.")
    problems += [*role_problems(deployment.role), *deployment.network.problems()]
    if deployment.max_model_len is not None and deployment.max_model_len < 64:
        problems.append(f"--max-model-len {deployment.max_model_len} cannot hold a question and an answer: "
                        "pass more, or leave it out to use the model's length.")
    return problems


def name_problems(name: str, session: Session) -> list[str]:
    """Return a problem if a model, configuration or endpoint has this name already, perhaps someone else's."""
    client = session.sagemaker_client
    for what, describe, argument in (("endpoint", client.describe_endpoint, "EndpointName"),
                                     ("endpoint configuration", client.describe_endpoint_config, "EndpointConfigName"),
                                     ("model", client.describe_model, "ModelName")):
        try:
            describe(**{argument: name})
        except client.exceptions.ClientError as error:
            if not is_missing(error):
                raise
        else:
            return [f"--name {name} is taken by an existing {what}: choose another name, or delete it with "
                    f"launch_sagemaker.py delete {name}"]
    return []


def endpoint_requests(deployment: Deployment) -> dict[str, dict[str, Any]]:
    """Return the three requests that `deploy` sends, by operation, without access to AWS."""
    session = record(deployment.region, "unused", Path("unused"))
    deploy(deployment, session)
    return {operation: body for operation, body in session.requests if operation.startswith("Create")}


def deploy(deployment: Deployment, session: Session) -> None:
    """Create model, endpoint configuration and endpoint, which takes 5 to 10 minutes to be in service."""
    from sagemaker.core import image_uris

    logging.getLogger("sagemaker").setLevel(logging.WARNING)
    image = deployment.image or image_uris.retrieve(
        "vllm-server", deployment.region, version=VLLM, image_scope="inference", instance_type=deployment.instance_type
    )
    packed = deployment.model.endswith(".tar.gz")
    weights = {"S3Uri": deployment.model, "S3DataType": "S3Object" if packed else "S3Prefix",
               "CompressionType": "Gzip" if packed else "None"}
    variant = {"VariantName": "all", "ModelName": deployment.name, "InstanceType": deployment.instance_type,
               "InitialInstanceCount": 1, "ContainerStartupHealthCheckTimeoutInSeconds": 900}
    if deployment.image is None:
        variant["InferenceAmiVersion"] = CUDA_13_AMI
    environment = {"SM_VLLM_SERVED_MODEL_NAME": SERVED_NAME}  # SM_VLLM_X_Y=z becomes vLLM's option --x-y z
    if deployment.max_model_len is not None:
        environment["SM_VLLM_MAX_MODEL_LEN"] = str(deployment.max_model_len)
    client, name, tags = session.sagemaker_client, deployment.name, as_tags(deployment.all_tags())
    client.create_model(
        ModelName=name,
        ExecutionRoleArn=deployment.role,
        PrimaryContainer={"Image": image, "ModelDataSource": {"S3DataSource": weights}, "Environment": environment},
        Tags=tags,
        **({"VpcConfig": deployment.network.vpc} if deployment.network.vpc else {}),
    )
    key = deployment.network.disk_key(deployment.instance_type)
    encrypted = {"KmsKeyId": key} if key else {}
    try:
        client.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant], Tags=tags, **encrypted)
    except Exception:
        client.delete_model(ModelName=name)
        raise
    try:
        client.create_endpoint(EndpointName=name, EndpointConfigName=name, Tags=tags)
    except Exception:  # such as a quota: delete what was created here, and nothing else of that name
        client.delete_endpoint_config(EndpointConfigName=name)
        client.delete_model(ModelName=name)
        raise


def wait_until_in_service(name: str, session: Session, poll: float = 15.0) -> None:
    """Wait for an endpoint; raise SageMakerError with SageMaker's reason if it fails."""
    while True:
        try:
            answer = session.sagemaker_client.describe_endpoint(EndpointName=name)
        except aws_errors() as error:
            if not is_transient(error):
                raise
            time.sleep(poll)
            continue
        if answer["EndpointStatus"] == "InService":
            return
        if answer["EndpointStatus"] not in ("Creating", "Updating", "SystemUpdating"):
            raise SageMakerError(f"The endpoint {name} is {answer['EndpointStatus']} "
                                 f"({answer.get('FailureReason', 'without a reason')}): read its log in CloudWatch, "
                                 f"/aws/sagemaker/Endpoints/{name}, and run launch_sagemaker.py delete {name}")
        time.sleep(poll)


def invoke(name: str, messages: list[dict[str, str]], session: Session, *, max_tokens: int | None = None,
           temperature: float = 0.0) -> Answer:
    """Ask an endpoint.

    Args:
        messages: a chat prompt, as a task's `prompt(row)` returns.
        max_tokens: None allows as many as fit into the model's length.
        temperature: 0 is greedy.
    """
    client = session.sagemaker_runtime_client
    body = {"model": SERVED_NAME, "messages": messages, "temperature": temperature}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    try:
        answer = client.invoke_endpoint(EndpointName=name, ContentType="application/json", Body=json.dumps(body))
    except client.exceptions.ClientError as error:
        raise SageMakerError(f"The endpoint {name} did not answer ({error.response['Error']['Message']}): "
                             "check its state with launch_sagemaker.py status.") from None
    answer = json.loads(answer["Body"].read())
    [choice] = answer["choices"]
    return Answer(choice["message"]["content"], answer["usage"]["completion_tokens"], choice["finish_reason"])
