"""A training job: recipe ⊕ tier ⊕ overrides, the source directory that it runs from, and the request sent to SageMaker."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Everything that `launch_sagemaker.py train` can say about a job. Nothing here needs AWS."""

    recipe: str  # a recipe's name, or the path of your own .yaml file
    hardware: str  # the tier, by name
    role: str  # ARN of the execution role
    bucket: str  # takes source, checkpoints and outputs
    region: str
    instance_type: str | None = None  # None: that of the tier
    stages: tuple[str, ...] | None = None
    overrides: tuple[str, ...] = ()  # "section.key=value"
    limit: int | None = None
    evaluate: bool = True
    model: str | None = None  # start model: an S3 URI, or a local folder, which is uploaded; channel "model"
    data: str | None = None  # train.jsonl and test.jsonl: the same; channel "data"
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def processes(self) -> int:
        """GPUs, hence ranks for torchrun; 1 for plain python."""
        raise NotImplementedError


def package_source(job: TrainingJob, directory: Path) -> Path:
    """Fill `directory` with lab_utils/, scripts/, requirements.txt, pyproject.toml and job.yaml; returns it."""
    raise NotImplementedError


def training_request(job: TrainingJob, directory: Path | None = None) -> dict[str, Any]:
    """The dict that create_training_job would be sent (boto3's names), without access to AWS.

    Whatever the SDK would upload lies afterwards in `directory`, at s3/BUCKET/KEY: the folder of a channel with the
    S3Uri s3://b/k is directory/s3/b/k. Channels: code (the source directory), sm_drivers (the SDK's start scripts),
    and model and data where the job has them. The entry point is AlgorithmSpecification.ContainerEntrypoint and
    ContainerArguments, which start sm_drivers/sm_train.sh.
    """
    raise NotImplementedError
