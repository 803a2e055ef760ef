"""scripts/launch_sagemaker.py, from the command line to the account in memory; and metrics from a real training log."""

import importlib.metadata
import json
import re
import subprocess
import sys

import launch_sagemaker as script
import pytest
import train as train_script
from account import BUCKET, REGION, ROLE
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError

from lab_utils import REPOSITORY, exit_status
from lab_utils import config as configuration
from lab_utils.runs import RunDirectory, parse_metrics_line
from lab_utils.sagemaker.job import bucket_and_key, follow, launch, metric_definitions
from lab_utils.sagemaker.job import status as look_up
from lab_utils.sagemaker.session import SageMakerError

EXPIRED = ClientError({"Error": {"Code": "ExpiredToken", "Message": "The security token has expired"}}, "Describe")
JOB = ["--recipe", "countdown-grpo", "--hardware", "smoke", "--role", ROLE, "--bucket", BUCKET, "--region", REGION]


@pytest.fixture
def run(aws, little_source, monkeypatch, capsys):
    """Run a command against the account; returns exit status, standard output and standard error."""
    monkeypatch.setattr(script, "connect", lambda region, bucket="": aws.session)

    def run(*arguments):
        status = exit_status(lambda: script.main([str(argument) for argument in arguments]))
        out, err = capsys.readouterr()
        return status, out, err

    return run


def job_of(out: str) -> str:
    return re.search(r"Started (\S+)\. ", out)[1]


# Metrics


@pytest.mark.component
def test_the_metric_definitions_extract_every_metric_of_a_real_log(tmp_path, capsys):
    """All three stages train; each definition finds in the log the numbers that metrics.jsonl has."""
    settings = ["grpo.max_completion_length=40", "ppo.max_completion_length=40", "grpo.beta=0.01",
                "tracking.tensorboard=false", "tracking.print_metrics=true"]
    arguments = ["--recipe", "countdown-grpo", "--hardware", "smoke", "--stages", "sft,grpo,ppo",
                 "--output-dir", str(tmp_path / "run")]
    train_script.main([*arguments, *(argument for setting in settings for argument in ("--set", setting))])
    log = capsys.readouterr().out
    for stage in ("sft", "grpo", "ppo"):
        config = configuration.load("countdown-grpo", "smoke", [f"stages=[{stage}]", *settings])
        definitions = metric_definitions(config)
        rows = RunDirectory(tmp_path / "run" / stage).metrics()
        for name, regex in definitions.items():
            expected = rows[name.split(":")[1]].dropna().tolist()  # not every step measures all
            assert [float(value) for value in re.findall(regex, log)] == pytest.approx(expected, rel=1e-5)
        parsed = [parse_metrics_line(line) for line in log.splitlines() if line.startswith(f"metrics {stage} ")]
        assert [(found, values["step"]) for found, values in parsed] == [(stage, step) for step in rows["step"]]


def test_a_job_of_any_recipe_has_few_enough_metrics():
    for recipe in configuration.recipe_names():
        for hardware in configuration.hardware_names():
            assert len(metric_definitions(configuration.load(recipe, hardware))) < 40
    all_stages = configuration.load("countdown-grpo", "a10g", ["stages=[sft,grpo,ppo]"])
    assert len(metric_definitions(all_stages)) == 40  # cut to what SageMaker takes


def test_other_lines_of_a_log_are_no_metrics():
    assert parse_metrics_line("Training on metrics of 3 kinds") is None
    assert parse_metrics_line("metrics are fine") is None
    found = parse_metrics_line("metrics grpo step=2 of=44 reward=-1e-05")
    assert found == ("grpo", {"step": 2, "of": 44, "reward": -1e-5})


# The command line


def test_a_dry_run_prints_the_request_and_sends_nothing(little_source, capsys, monkeypatch):
    """Without an account; standard output is JSON alone."""
    def refuse(*args, **kwargs):
        raise AssertionError("a dry run used the network")

    monkeypatch.setattr("botocore.httpsession.URLLib3Session.send", refuse)
    monkeypatch.setattr("requests.Session.send", refuse)
    status = script.main(["train", *JOB, "--set", "grpo.beta=0.04", "--set", "seed=3", "--dry-run"])
    out, err = capsys.readouterr()
    shown = json.loads(out)["HyperParameters"]
    assert status == 0 and (shown["grpo-beta"], shown["seed"]) == ("0.04", "3")
    assert "ceiling   6 hours, 1.38 USD" in err and "nothing was sent" in err


def test_machines_network_and_key_are_options(little_source, capsys):
    vpc = ["--subnet", "subnet-0a", "--subnet", "subnet-0b", "--security-group", "sg-0c", "--kms-key", "alias/mine"]
    assert script.main(["train", *JOB, *vpc, "--instances", "2", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    request = json.loads(out)
    assert request["VpcConfig"] == {"Subnets": ["subnet-0a", "subnet-0b"], "SecurityGroupIds": ["sg-0c"]}
    assert request["OutputDataConfig"]["KmsKeyId"] == "alias/mine" and request["ResourceConfig"]["InstanceCount"] == 2
    assert "2 × ml.m5.xlarge" in err and "ceiling   6 hours, 2.76 USD" in err
    assert script.main(["evaluate", *JOB, *vpc, "--model", "s3://b/m.tar.gz", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["NetworkConfig"]["VpcConfig"] == request["VpcConfig"]
    deploy = ["deploy", "--role", ROLE, "--region", REGION, "--model", "s3://b/m.tar.gz", "--dry-run"]
    assert script.main([*deploy, *vpc]) == 0
    assert json.loads(capsys.readouterr().out)["CreateModel"]["VpcConfig"] == request["VpcConfig"]
    assert exit_status(lambda: script.main(["train", *JOB, *vpc[:2]])) == 2
    assert "--subnet and --security-group belong together" in capsys.readouterr().err


def test_a_wrong_job_ends_with_one_message(capsys):
    assert exit_status(lambda: script.main(["train", *JOB, "--spot", "--instance-type", "ml.m5.xlrge"])) == 2
    err = capsys.readouterr().err
    assert "nothing was started, 2 problem(s)" in err and "--max-wait-hours" in err and "Traceback" not in err


@pytest.mark.parametrize("arguments", [["--env", "A"], ["--max-wait", "3"]])
def test_a_wrong_option_is_an_error(arguments):
    with pytest.raises(SystemExit):
        script.main(["train", *JOB, *arguments])


def test_without_the_sdk_the_message_says_what_to_install(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(SageMakerError, match="pip install -r setup/requirements/sagemaker.txt"):
        script.main(["train", *JOB])


def test_what_aws_refuses_is_one_message(run, aws, monkeypatch):
    def refused(**arguments):
        raise EXPIRED

    monkeypatch.setattr(aws.session.sagemaker_client, "describe_training_job", refused)
    status, _, err = run("status", "some-job")
    assert status == 2 and "AWS refused the call (" in err and "has expired" in err


@pytest.mark.component
@pytest.mark.parametrize("reason", [KeyboardInterrupt(), EXPIRED], ids=["Ctrl-C", "expired token"])
def test_an_ended_wait_says_what_keeps_running(run, aws, monkeypatch, reason):
    def ended(*arguments):
        raise reason

    monkeypatch.setattr("lab_utils.sagemaker.job.follow", ended)
    status, out, err = run("train", *JOB, "--wait")
    name = job_of(out)
    assert status == 2 and f"{name} keeps running for 0.23 USD an hour" in err and "Traceback" not in err
    assert f"stop {name}" in err and f"status {name} --output-dir" in err
    deploy = ["deploy", "--model", "s3://b/m.tar.gz", "--role", ROLE, "--region", REGION, "--yes", "--name", "demo"]
    monkeypatch.setattr("lab_utils.sagemaker.endpoint.wait_until_in_service", ended)
    monkeypatch.setattr("lab_utils.sagemaker.endpoint.deploy", lambda *arguments: None)
    monkeypatch.setattr("lab_utils.sagemaker.preflight.missing_inputs", lambda *arguments: [])
    status, _, err = run(*deploy, "--wait")
    assert status == 2 and "demo keeps running for 1.408 USD an hour: delete it" in err


@pytest.mark.component
def test_waiting_survives_a_lost_network_but_not_an_expired_token(aws, start_job, monkeypatch):
    name = start_job()
    describe, failures = aws.session.sagemaker_client.describe_training_job, []

    def fails_first(**arguments):
        if failures:
            raise failures.pop()
        return describe(**arguments)

    monkeypatch.setattr(aws.session.sagemaker_client, "describe_training_job", fails_first)
    throttled = ClientError({"Error": {"Code": "ThrottlingException", "Message": "Rate exceeded"}}, "Describe")
    failures += [throttled, EndpointConnectionError(endpoint_url="https://x"), ReadTimeoutError(endpoint_url="https://x")]
    assert follow(name, aws.session, poll=0).status == "Completed"
    failures.append(EXPIRED)
    with pytest.raises(ClientError, match="has expired"):
        follow(name, aws.session, poll=0)
    monkeypatch.setattr("lab_utils.sagemaker.job.PATIENCE_SECONDS", -1)
    failures.append(EndpointConnectionError(endpoint_url="https://x"))
    with pytest.raises(EndpointConnectionError):
        follow(name, aws.session, poll=0)


def test_the_package_does_not_need_the_sdk():
    code = """
import sys
sys.modules.update({name: None for name in ("boto3", "botocore", "sagemaker")})
import lab_utils.sagemaker.job, lab_utils.sagemaker.preflight, lab_utils.sagemaker.cost
import lab_utils.sagemaker.endpoint, lab_utils.sagemaker.resources
"""
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


@pytest.mark.component
def test_a_job_is_launched_stopped_and_deleted(run, aws):
    status, out, _ = run("train", *JOB)
    name = job_of(out)
    assert status == 0 and "Cost: ml.m5.xlarge" in out and name in aws.backend.training_jobs
    status, out, _ = run("status", name, "--region", REGION)
    assert status == 0 and f"training job {name}: Completed" in out
    aws.backend.training_jobs[name].training_job_status = "InProgress"
    assert f"launch_sagemaker.py stop {name}" in run("status")[1]
    assert f"stop it first with launch_sagemaker.py stop {name}" in run("delete", name, "--yes")[2]
    assert "Stopped" in run("stop", name)[1]
    assert "nothing to stop" in run("stop", name)[2]
    status, _, err = run("delete", name)
    assert status == 2 and "Not running interactively: pass --yes" in err
    assert f"deleted: training job {name}" in run("delete", name, "--yes")[1]
    assert "no workshop resources of moto" in run("delete", "--all", "--yes")[1]
    assert "Nothing on SageMaker costs money" in run("status")[1]


@pytest.mark.component
def test_a_shared_role_deletes_nothing_of_others(run, aws, start_job, monkeypatch):
    """All users of a Studio domain may be assumed-role/STUDIO/SageMaker."""
    other = start_job(tags={"owner": "anna"})
    status, _, err = run("delete", other, "--yes")
    assert status == 1 and f"{other} belongs to 'anna', but you are 'moto'" in err
    aws.backend.training_jobs[other].training_job_status = "InProgress"
    assert run("stop", other)[0] == 2 and aws.backend.training_jobs[other].training_job_status == "InProgress"
    monkeypatch.setattr("lab_utils.sagemaker.session.caller", lambda session: "Studio/SageMaker")
    status, _, err = run("delete", "--all", "--yes")
    assert status == 2 and "several people can be 'Studio/SageMaker'" in err and other in aws.backend.training_jobs
    assert "Stopped" in run("stop", other, "--everyone")[1]
    assert f"deleted: training job {other}" in run("delete", "--all", "--everyone", "--yes")[1]


@pytest.mark.component
def test_waiting_shows_log_and_result(run, aws, monkeypatch):
    def launch_and_fail(described, session):
        name = launch(described, session)
        if session is aws.session:  # not the recorder of the dry run
            aws.backend.training_jobs[name].training_job_status = "Failed"
            aws.backend.training_jobs[name].failure_reason = "AlgorithmError: out of memory"
        return name

    lines = ["installing", "metrics grpo step=1 of=2 reward=0.5"]
    monkeypatch.setattr("lab_utils.sagemaker.job.launch", launch_and_fail)
    monkeypatch.setattr("lab_utils.sagemaker.job._new_log_lines", lambda *arguments: lines)
    status, out, err = run("train", *JOB, "--wait")
    assert status == 1 and "installing" in out and "Failed" in out and "out of memory" in out
    assert "grpo:  50%" in err and "reward=0.5" in err


@pytest.mark.component
def test_dear_jobs_are_asked_for(run, aws, monkeypatch):
    dear = [option if option != "smoke" else "a10g" for option in JOB]
    status, out, err = run("train", *dear)
    assert status == 2 and "can cost up to 9.09 USD" in err and "pass --yes" in err and not aws.backend.training_jobs
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert run("train", *dear)[0] == 2 and not aws.backend.training_jobs
    assert run("train", *dear, "--ask-above", "20")[0] == 0
    assert run("train", *dear, "--yes")[0] == 0


@pytest.mark.component
def test_a_model_goes_from_training_to_evaluation_and_endpoint(run, aws, request_of, start_job):
    name = start_job()
    ended = look_up(name, aws.session)
    for uri in (ended.model, f"{ended.checkpoints}/sft/config.yaml"):
        bucket, key = bucket_and_key(uri)
        aws.s3.put_object(Bucket=bucket, Key=key, Body=b"x")

    assert run("evaluate", *JOB, "--job", name, "--tag", "team=red")[0] == 0
    request = request_of("CreateProcessingJob")
    assert {"Key": "team", "Value": "red"} in request["Tags"]
    inputs = request["ProcessingInputs"]
    assert {item["InputName"]: item["S3Input"]["S3Uri"] for item in inputs}["model"] == ended.model
    assert run("train", *JOB, "--resume", name)[0] == 0
    assert request_of("CreateTrainingJob")["CheckpointConfig"]["S3Uri"].endswith(f"/{name}/checkpoints")

    status, out, _ = run("deploy", "--job", name, "--role", ROLE, "--dry-run", "--region", REGION)
    assert status == 0
    container = json.loads(out)["CreateModel"]["PrimaryContainer"]
    assert container["ModelDataSource"]["S3DataSource"]["S3Uri"] == ended.model
    aws.backend.training_jobs[name].training_job_status = "InProgress"
    status, _, err = run("deploy", "--job", name, "--role", ROLE, "--region", REGION)
    assert status == 2 and "only a completed job has a model" in err


def test_prices_are_listed(capsys):
    assert script.main(["cost", "--region", REGION]) == 0
    out = capsys.readouterr().out
    assert re.search(r"ml.g5.2xlarge .* a10g .* 1.515  .*2026-08-17", out)
