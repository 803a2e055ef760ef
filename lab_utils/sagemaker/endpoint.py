"""A trained model behind a real-time endpoint: AWS's vLLM container serves the merged model from S3.

Three things are created, all under one name: a model (container and weights), an endpoint configuration (which
instance) and the endpoint, which costs money from then on, used or not, until `delete`.
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
from .job import PROJECT
from .preflight import Problem, service_model
from .resources import delete
from .session import SageMakerError, record

if TYPE_CHECKING:
    from sagemaker.core.helper.session_helper import Session

VLLM = "2.6"  # of AWS's container vllm:server-sagemaker-cuda
CUDA_13_AMI = "al2023-ami-sagemaker-inference-gpu-4-1"  # the machine image with the driver that the container needs
SERVED_NAME = "rl-workshop"  # what requests call the model


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """An endpoint, before it exists. Nothing here needs AWS."""

    name: str  # of the endpoint, its configuration and its model
    model: str  # S3 URI: a training job's model.tar.gz, or a folder ending in "/"
    role: str
    region: str
    instance_type: str = "ml.g5.xlarge"
    image: str | None = None  # None: AWS's vLLM container
    max_model_len: int = 2048  # tokens of prompt and completion
    tags: dict[str, str] = field(default_factory=dict)

    def all_tags(self) -> dict[str, str]:
        return {"project": PROJECT, **self.tags}


@dataclass(frozen=True)
class Answer:
    """What an endpoint said."""

    text: str
    tokens: int
    finish_reason: str  # "stop", or "length" where it was cut off


def deployment_problems(deployment: Deployment) -> list[Problem]:
    """What is wrong with a deployment, as far as that can be told without AWS."""
    problems = []
    enum = service_model().shape_for("ProductionVariantInstanceType").enum
    facts = cost.known()["instances"].get(deployment.instance_type)
    if not re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", deployment.name):
        problems.append(Problem(f"The endpoint name {deployment.name!r} must be 1 to 63 letters, digits and hyphens.",
                                "Give another --name."))
    if not re.match(r"s3://[^/]+/.+(\.tar\.gz|/)$", deployment.model):
        problems.append(Problem(f"The model {deployment.model} is not a model.tar.gz or folder (ending in /) in S3.",
                                "Give --job NAME of a finished training job, or such an S3 URI as --model."))
    if deployment.instance_type not in enum:
        problems.append(Problem(f"There is no instance type {deployment.instance_type!r} for endpoints.",
                                "Take ml.g5.xlarge, or another with a GPU: `launch_sagemaker.py cost`."))
    elif not re.match(r"ml\.[gp]\d", deployment.instance_type) or (facts and not facts["gpus"]):
        problems.append(Problem(f"vLLM needs a GPU, and {deployment.instance_type} has none.", "Take ml.g5.xlarge."))
    elif re.match(r"ml\.(g4dn|p3)", deployment.instance_type):
        problems.append(Problem(f"{deployment.instance_type} has a GPU without bfloat16, in which models are saved.",
                                "Take ml.g5.xlarge or ml.g6.xlarge."))
    if not re.fullmatch(service_model().shape_for("RoleArn").metadata["pattern"], deployment.role):
        problems.append(Problem(f"The role {deployment.role!r} is not the ARN of an IAM role.",
                                "Give --role arn:aws:iam::123456789012:role/NAME or set SAGEMAKER_ROLE."))
    if deployment.max_model_len < 64:
        problems.append(Problem(f"{deployment.max_model_len} tokens cannot hold a question and an answer.",
                                "Give --max-model-len 2048."))
    return problems


def endpoint_requests(deployment: Deployment) -> dict[str, dict[str, Any]]:
    """The three requests that `deploy` sends, by operation, without access to AWS."""
    session = record(deployment.region, "unused", Path("unused"))
    deploy(deployment, session)
    return {operation: body for operation, body in session.requests if operation.startswith("Create")}


def deploy(deployment: Deployment, session: Session) -> None:
    """Create model, endpoint configuration and endpoint. It takes 5 to 10 minutes until the endpoint serves."""
    from sagemaker.core import image_uris, shapes
    from sagemaker.core.resources import Endpoint, EndpointConfig, Model

    logging.getLogger("sagemaker").setLevel(logging.WARNING)
    image = deployment.image or image_uris.retrieve(
        "vllm-server", deployment.region, version=VLLM, image_scope="inference", instance_type=deployment.instance_type
    )
    packed = deployment.model.endswith(".tar.gz")
    weights = shapes.S3ModelDataSource(
        s3_uri=deployment.model,
        s3_data_type="S3Object" if packed else "S3Prefix",
        compression_type="Gzip" if packed else "None",
    )
    variant = {
        "variant_name": "all", "model_name": deployment.name, "instance_type": deployment.instance_type,
        "initial_instance_count": 1, "container_startup_health_check_timeout_in_seconds": 900,
    }
    if deployment.image is None:
        variant["inference_ami_version"] = CUDA_13_AMI
    shared = {"tags": [{"key": key, "value": value} for key, value in deployment.all_tags().items()],
              "session": session.boto_session, "region": deployment.region}
    Model.create(
        model_name=deployment.name,
        execution_role_arn=deployment.role,
        primary_container=shapes.ContainerDefinition(
            image=image,
            model_data_source=shapes.ModelDataSource(s3_data_source=weights),
            # The container serves what it finds in /opt/ml/model; SM_VLLM_X_Y=z becomes vLLM's option --x-y z.
            environment={"SM_VLLM_SERVED_MODEL_NAME": SERVED_NAME,
                         "SM_VLLM_MAX_MODEL_LEN": str(deployment.max_model_len)},
        ),
        **shared,
    )
    try:
        EndpointConfig.create(endpoint_config_name=deployment.name,
                              production_variants=[shapes.ProductionVariant(**variant)], **shared)
        Endpoint.create(endpoint_name=deployment.name, endpoint_config_name=deployment.name, **shared)
    except Exception:  # a quota, for example; no model or configuration is left behind without its endpoint
        delete(deployment.name, session)
        raise


def wait_until_in_service(name: str, session: Session, poll: float = 15.0) -> None:
    """Wait for an endpoint; raises SageMakerError where it fails, with SageMaker's reason."""
    while True:
        answer = session.sagemaker_client.describe_endpoint(EndpointName=name)
        if answer["EndpointStatus"] == "InService":
            return
        if answer["EndpointStatus"] not in ("Creating", "Updating", "SystemUpdating"):
            reason = answer.get("FailureReason", "no reason was given")
            raise SageMakerError(f"The endpoint {name} is {answer['EndpointStatus']}: {reason}. Its log in CloudWatch: "
                                 f"/aws/sagemaker/Endpoints/{name}. Delete it: launch_sagemaker.py delete {name}")
        time.sleep(poll)


def invoke(name: str, messages: list[dict[str, str]], session: Session, *, max_tokens: int = 512,
           temperature: float = 0.0) -> Answer:
    """Ask an endpoint; `messages` is a chat prompt, as a task's `prompt(row)` makes it. 0 takes the likeliest token."""
    client = session.sagemaker_runtime_client
    body = {"model": SERVED_NAME, "messages": messages, "max_tokens": max_tokens, "temperature": temperature}
    try:
        answer = client.invoke_endpoint(EndpointName=name, ContentType="application/json", Body=json.dumps(body))
    except client.exceptions.ClientError as error:
        raise SageMakerError(f"The endpoint {name} did not answer: {error.response['Error']['Message']} "
                             "`launch_sagemaker.py status` lists the endpoints and their states.") from None
    answer = json.loads(answer["Body"].read())
    [choice] = answer["choices"]
    return Answer(choice["message"]["content"], answer["usage"]["completion_tokens"], choice["finish_reason"])
