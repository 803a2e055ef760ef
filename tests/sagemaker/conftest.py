"""An AWS account in memory (moto), with what moto lacks; skipped where the SageMaker SDK is not installed."""

import importlib.util
import json
import os
from types import SimpleNamespace

import pytest
from account import ACCOUNT, BUCKET, PLACE, REGION

SDK = all(importlib.util.find_spec(name) for name in ("boto3", "sagemaker", "moto"))
collect_ignore = [] if SDK else ["test_aws.py", "test_launch_sagemaker.py", "test_preflight.py"]

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": REGION}
TRUST = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
                                                 "Principal": {"Service": "sagemaker.amazonaws.com"}}]}


@pytest.fixture(scope="session", autouse=True)
def one_check_of_a_schema_is_enough():
    """Spare the SDK's check of its own configuration at every access: one second per request."""
    if not SDK:
        yield
        return
    from jsonschema import Draft202012Validator

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Draft202012Validator, "check_schema", classmethod(lambda *args, **kwargs: None))
        yield


@pytest.fixture(scope="session")
def no_defaults(tmp_path_factory):
    """Return a defaults file of the SDK without defaults."""
    path = tmp_path_factory.mktemp("sagemaker") / "config.yaml"
    path.write_text("SchemaVersion: '1.0'\n")
    return path


@pytest.fixture(autouse=True)
def no_account_of_yours(monkeypatch, tmp_path, no_defaults):
    """Neither credentials nor configuration nor cached prices of the machine that runs the tests."""
    if not SDK:
        return
    for name in [name for name in os.environ if name.startswith(("AWS_", "SAGEMAKER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for who in ("ADMIN", "USER"):
        monkeypatch.setenv(f"SAGEMAKER_{who}_CONFIG_OVERRIDE", str(no_defaults))
    from lab_utils.sagemaker import cost

    monkeypatch.setattr(cost, "CACHE", tmp_path / "prices.yaml")


@pytest.fixture(scope="session")
def connection(one_check_of_a_schema_is_enough):
    """One session for all tests, because it takes a second to make, and what its requests are answered with.

    moto knows neither StopTrainingJob nor DeleteTrainingJob, DeleteProcessingJob, ListApps nor SageMaker's quotas: they
    are done here on moto's state.
    """
    from botocore.awsrequest import AWSResponse
    from moto.sagemaker.models import sagemaker_backends

    from lab_utils.sagemaker.session import connect

    account = SimpleNamespace(sent=[], quotas={}, default_quotas={}, apps=[], denied=set())

    def missing(model, params, **kwargs):
        if model.name in account.denied:
            code = "AccessDeniedException"
            return AWSResponse(params["url"], 400, {}, None), {
                "Error": {"Code": code, "Message": f"not authorized: {model.name}"}, "ResponseMetadata": {}}
        if model.service_model.service_name == "service-quotas":
            quotas = account.quotas if model.name == "ListServiceQuotas" else account.default_quotas
            answer = {"Quotas": [{"QuotaName": name, "Value": value} for name, value in quotas.items()]}
        elif model.service_model.service_name != "sagemaker":
            return None
        else:
            body = json.loads(params["body"])
            account.sent.append((model.name, body))
            backend, answer = sagemaker_backends[ACCOUNT][REGION], {}
            if model.name == "StopTrainingJob":
                backend.training_jobs[body["TrainingJobName"]].training_job_status = "Stopped"
            elif model.name == "DeleteTrainingJob":
                del backend.training_jobs[body["TrainingJobName"]]
            elif model.name == "DeleteProcessingJob":
                del backend.processing_jobs[body["ProcessingJobName"]]
            elif model.name == "ListApps":
                answer = {"Apps": account.apps}
            else:
                return None
        return AWSResponse(params["url"], 200, {}, None), answer

    def nothing_empty(parsed, **kwargs):  # moto sends "VpcConfig": {}, which the SDK's shapes refuse
        for name in [name for name, value in parsed.items() if value == {}]:
            del parsed[name]

    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        account.session = connect(REGION, BUCKET)
    for events in (account.session.boto_session.events, account.session.sagemaker_client.meta.events):
        events.register("before-call", missing)
        events.register("after-call.sagemaker", nothing_empty)
    return account


@pytest.fixture
def aws(monkeypatch, no_account_of_yours, connection):
    """Return a connected session in an account with a bucket and an execution role.

    `denied` holds the operations without permission, `sent` lists (operation, body) of every request to SageMaker,
    `backend` is moto's state, `quotas` and `apps` are what the account shows of these.
    """
    import boto3
    import moto
    from moto.sagemaker.models import sagemaker_backends

    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with moto.mock_aws():
        connection.sent.clear()
        for state in (connection.quotas, connection.default_quotas, connection.apps, connection.denied):
            state.clear()
        connection.backend = sagemaker_backends[ACCOUNT][REGION]
        connection.s3 = connection.session.s3_client
        connection.s3.create_bucket(Bucket=BUCKET)
        boto3.client("iam").create_role(RoleName="rl-workshop-execution", AssumeRolePolicyDocument=json.dumps(TRUST))
        yield connection


@pytest.fixture
def request_of(aws):
    """Return the last request of an operation that was sent to SageMaker."""
    return lambda operation: [body for name, body in aws.sent if name == operation][-1]


@pytest.fixture
def little_source(monkeypatch):
    """Use two files instead of the source directory, for tests that are about something else."""
    from lab_utils.sagemaker import job

    def package_source(described, directory):
        directory.mkdir()
        (directory / "job.yaml").write_text("kind: train")
        (directory / "requirements.txt").write_text("")
        return directory

    monkeypatch.setattr(job, "package_source", package_source)


@pytest.fixture
def start_job(aws, little_source):
    """Launch a small training job, which has completed unless another state is given; returns its name."""
    from lab_utils.sagemaker.job import TrainingJob, launch

    def start_job(state="Completed", **changes):
        small = {"recipe": "countdown-grpo", "hardware": "smoke", **PLACE}
        name = launch(TrainingJob(**small | changes), aws.session)
        aws.backend.training_jobs[name].training_job_status = state
        return name

    return start_job
