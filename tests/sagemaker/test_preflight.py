"""Wrong jobs, each stopped with its fix before it costs anything."""

import json
import math
import re
from types import SimpleNamespace

import boto3
import estimate as estimate_py
import pytest
from account import ACCOUNT, BUCKET, PLACE, REGION, ROLE

from lab_utils.config import recipe_names
from lab_utils.sagemaker import cost, preflight
from lab_utils.sagemaker.endpoint import Deployment, deployment_problems, endpoint_requests
from lab_utils.sagemaker.job import EvaluationJob, TrainingJob, evaluation_request, training_request
from lab_utils.sagemaker.session import NetworkAndKey

GOOD = {"recipe": "countdown-grpo", "hardware": "a10g", **PLACE}
ECR = "123456789012.dkr.ecr.{}.amazonaws.com/mine:1"


@pytest.mark.parametrize("changes, problem, fix", [
    ({"role": ""}, "--role '' is not the ARN", "set SAGEMAKER_ROLE"),
    ({"role": f"arn:aws:iam::{ACCOUNT}:user/me"}, "is not the ARN of an IAM role", "aws iam get-role"),
    ({"bucket": ""}, "--bucket '' is not", "set SAGEMAKER_BUCKET"),
    ({"bucket": "s3://mine"}, "'s3://mine' is not the name of a bucket", "without s3://"),
    ({"region": "us-est-1"}, "'us-est-1' is not", "us-east-1"),
    ({"hardware": "a10"}, "'a10'", "a10g"),
    ({"hardware": "auto"}, "looks at this machine", "pass one of a100"),
    ({"overrides": ("grpo.betta=1",)}, "grpo.betta", "Did you mean grpo.beta"),
    ({"instance_type": "ml.g5.2xlrage"}, "'ml.g5.2xlrage' does not exist", "did you mean ml.g5.2xlarge"),
    ({"instance_type": "ml.m5.xlarge"}, "needs 1 GPU(s), but ml.m5.xlarge has none", "ml.g5.2xlarge"),
    ({"hardware": "a10g-x4", "instance_type": "ml.g5.xlarge"}, "needs 4 GPU(s)", "ml.g5.12xlarge"),
    ({"instance_type": "ml.g5.12xlarge"}, "pay for all 4", "CUDA_VISIBLE_DEVICES=0"),
    ({"hardware": "a100", "instance_type": "ml.g5.xlarge"}, "needs 40 GB", "ml.p5.4xlarge"),
    ({"hardware": "cpu", "instance_type": "ml.g5.xlarge"}, "idle GPU", "ml.m5.xlarge"),
    ({"hardware": "h200"}, "only by eight", "--hardware a100"),
    ({"limit": 0}, "--limit 0", "at least 1"),
    ({"instance_type": "ml.c5.xlarge"}, "ml.c5.xlarge has none", "ml.g5.2xlarge"),
    ({"spot": True}, "needs a --max-wait-hours", "(given: none): pass 12"),
    ({"spot": True, "max_wait_hours": 2}, "at least --max-run-hours 6", "pass 12"),
    ({"max_wait_hours": 9}, "only for spot jobs", "add --spot"),
    ({"spot": True, "max_wait_hours": 9, "keep_alive_minutes": 9}, "does not work with --spot", "leave out"),
    ({"keep_alive_minutes": 1440}, "--keep-alive-minutes 1440", "pass 0 to 60"),
    ({"max_run_hours": 0}, "--max-run-hours 0", "more than 0"),
    ({"max_run_hours": 1440}, "--max-run-hours 1440", "at most 672 hours"),
    ({"recipe": "gsm8k-sft-ppo", "max_run_hours": 0.5}, "too short for a job of about 1.1 to 5.4", "hours 5.4"),
    ({"instances": 0}, "--instances 0 is not allowed", "pass 1 or more"),
    ({"model": "outputs/nothing"}, "neither an S3 URI nor a local folder", "to upload"),
    ({"model": "Qwen/Qwen2.5-0.5B"}, "neither an S3 URI nor a local", "model.name"),
    ({"model": "."}, "neither config.json", "`model` of a run directory"),
    ({"data": "."}, "train.jsonl and test.jsonl", "one JSON object per line"),
    ({"test_data": "s3://b/test"}, "--test-data is without --data", "as --data"),
    ({"data": "s3://b/train", "test_data": "."}, "--test-data . does not hold test.jsonl", "one JSON object per line"),
    ({"requirements": "none.txt"}, "--requirements none.txt does not exist", "pass a requirements.txt"),
    ({"requirements": "setup/requirements/cpu.txt"}, "lists torch==", "remove that line"),
    ({"entry_point": "python mine.py"}, "names mine.py, which does not exist", "pass the path of a script"),
    ({"entry_point": "python 'mine"}, "is not a command", "quotation marks"),
    ({"wandb_secret": "0" * 40}, "--wandb-secret looks like a key", "AWS Secrets Manager"),
    ({"network": NetworkAndKey(("subnet-0a",))}, "belong together", "at least one of each"),
    ({"network": NetworkAndKey(("vpc-1",), ("sg-0c",))}, "--subnet 'vpc-1' is not an id", "pass one such as subnet-"),
    ({"checkpoints": "outputs/a"}, "not in S3", "--resume"),
    ({"image": "docker.io/library/python:3.12"}, "not in Amazon ECR", "push it"),
    ({"image": ECR.format("eu-west-1")}, "is in eu-west-1", "--region eu-west-1"),
    ({"volume_gb": 5}, "--volume-gb 5", "pass 30 to 1000"),
    ({"hardware": "t4", "volume_gb": 200}, "more than the 125 GB disk of ml.g4dn.xlarge", "pass 125 or less"),
    ({"prefix": "a-very-long-prefix-for-the-jobs"}, "is not allowed", "1 to 20 letters"),
    ({"overrides": ("task.source='s3'",)}, "has an apostrophe", "--recipe my-recipe.yaml"),
    ({"environment": {"HF_TOKEN": "hf_x"}}, "HF_TOKEN looks like a secret", "leave it out"),
    ({"tags": {"aws:owner": "me"}}, "begins with aws:", "another name"),
])
def test_a_wrong_job_is_stopped_with_its_fix(changes, problem, fix):
    found = preflight.job_problems(TrainingJob(**GOOD | changes))
    assert len(found) == 1 and problem in found[0] and fix in found[0]


@pytest.mark.parametrize("changes", [
    *({"hardware": tier} for tier in cost.known()["default_instance"]), {"recipe": "gsm8k-sft-ppo"},
    {"spot": True, "max_wait_hours": 6}, {"keep_alive_minutes": 30}, {"model": "s3://b/model.tar.gz"},
    {"environment": {"TOKENIZERS_PARALLELISM": "false"}},
    {"instance_type": "ml.g5.12xlarge", "environment": {"CUDA_VISIBLE_DEVICES": "0"}},
    {"image": ECR.format(REGION)}, {"instance_type": "ml.g6e.xlarge"}, {"instances": 2},
    {"instances": 2, "overrides": ("grpo.per_device_train_batch_size=1", "grpo.gradient_accumulation_steps=4")},
])
def test_a_right_job_passes(changes):
    assert preflight.job_problems(TrainingJob(**GOOD | changes)) == []


def test_an_evaluation_has_rules_of_its_own():
    def problems(**changes):
        return " ".join(preflight.job_problems(EvaluationJob(**GOOD | changes)))

    assert "No model to evaluate" in problems()
    assert problems(model="s3://b/model.tar.gz") == ""
    assert "at most 120 hours" in problems(model="s3://b/m.tar.gz", max_run_hours=200)
    assert "does not exist for processing jobs" in problems(
        hardware="a100", instance_type="ml.p4d.24xlarge", model="s3://b/m.tar.gz")
    assert "--hardware a10g, the same settings on one GPU" in problems(hardware="a10g-x4", model="s3://b/m.tar.gz")


# Against the service model


@pytest.mark.component
def test_the_requests_pass_and_broken_ones_do_not(little_source):
    request = training_request(TrainingJob(**GOOD, spot=True, max_wait_hours=9))
    assert preflight.request_problems("CreateTrainingJob", request) == []
    evaluation = evaluation_request(EvaluationJob(**GOOD, model="s3://b/model.tar.gz"))
    assert preflight.request_problems("CreateProcessingJob", evaluation) == []

    def problems(**changes):
        return " ".join(preflight.request_problems("CreateTrainingJob", request | changes))

    assert "InstanceType = 'ml.g5.huge': did you mean" in problems(
        ResourceConfig=request["ResourceConfig"] | {"InstanceType": "ml.g5.huge"})
    assert "TrainingJobName = 'a_b': write it as [a-zA-Z0-9]" in problems(TrainingJobName="a_b")
    assert "TrainingJobName has the length 80: at most 63" in problems(TrainingJobName="a" * 80)
    assert "Environment.A has the length 600" in problems(Environment={"A": "x" * 600})
    assert "the name '1A' in CreateTrainingJob.Environment" in problems(Environment={"1A": "x"})
    assert "HyperParameters has the length 101" in problems(HyperParameters={str(i): "" for i in range(101)})
    assert "Tags has the length 51" in problems(Tags=[{"Key": str(i), "Value": ""} for i in range(51)])
    assert "KeepAlivePeriodInSeconds has the value 99999" in problems(
        ResourceConfig=request["ResourceConfig"] | {"KeepAlivePeriodInSeconds": 99999})
    del request["RoleArn"]
    assert 'Missing required parameter in input: "RoleArn"' in problems()


# Against the account


@pytest.mark.component
def test_the_account(aws):
    described = TrainingJob(**GOOD)
    assert preflight.account_problems(described, aws.session) == []

    def problems(**changes):
        return " ".join(preflight.account_problems(TrainingJob(**GOOD | changes), aws.session))

    aws.s3.create_bucket(Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    assert "far-away is in eu-west-1, but the job would run in us-east-1" in problems(bucket="far-away")
    assert "The bucket nowhere-to-be-found does not exist" in problems(bucket="nowhere-to-be-found")
    assert "belongs to the account 999999999999" in problems(role="arn:aws:iam::999999999999:role/x")
    assert "-2 does not exist" in problems(role=f"{ROLE}-2")
    boto3.client("iam").create_role(RoleName="human", AssumeRolePolicyDocument='{"Version": "2012-10-17", "Statement": '
                                    '[{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": "*"}}]}')
    assert "trust policy lacks sagemaker.amazonaws.com" in problems(role=f"arn:aws:iam::{ACCOUNT}:role/human")
    assert "model.tar.gz does not exist in S3" in problems(model=f"s3://{BUCKET}/job/output/model.tar.gz")
    aws.s3.put_object(Bucket=BUCKET, Key="job/output/model.tar.gz", Body=b"x")
    assert problems(model=f"s3://{BUCKET}/job/output/model.tar.gz") == ""

    aws.quotas |= {"ml.g5.2xlarge for training job usage": 0.0, "ml.g5.2xlarge for spot training job usage": 1.0}
    assert "'ml.g5.2xlarge for training job usage' of this account is 0" in problems()
    assert problems(spot=True, max_wait_hours=9) == ""
    aws.default_quotas |= {"ml.m5.xlarge for spot training job usage": 0.0,  # the default of notebook 11's job
                           "ml.g5.2xlarge for training warm pool usage": 0.0}
    assert "'ml.m5.xlarge for spot training job usage' of this account is 0" in problems(
        hardware="cpu", spot=True, max_wait_hours=9)
    aws.quotas["ml.g5.2xlarge for training job usage"] = 1.0
    assert problems() == "" and "training warm pool usage' of this account is 0" in problems(keep_alive_minutes=9)
    assert "usage' of this account is 1 in us-east-1: request 2" in problems(instances=2)
    aws.denied.add("ListServiceQuotas")
    assert problems(keep_alive_minutes=9) == ""


# Endpoints

SERVED = {"name": "rl-workshop-demo", "model": "s3://b/job/output/model.tar.gz", "role": ROLE, "region": REGION}


@pytest.mark.parametrize("changes, said", [
    ({"name": "my_endpoint"}, "'my_endpoint' is not allowed"),
    ({"model": "outputs/grpo/model"}, "is not a model.tar.gz or folder"),
    ({"instance_type": "ml.g5.huge"}, "'ml.g5.huge' does not exist for endpoints"),
    ({"instance_type": "ml.m5.xlarge"}, "ml.m5.xlarge has no GPU"),
    ({"instance_type": "ml.g4dn.xlarge"}, "without bfloat16"),
    ({"role": "me"}, "not the ARN"),
    ({"max_model_len": 10}, "cannot hold a question"),
])
def test_a_wrong_deployment_is_stopped(changes, said):
    [problem] = deployment_problems(Deployment(**SERVED | changes))
    assert said in problem and re.search(": (pass|use) ", problem)


@pytest.mark.component
def test_a_right_deployment_passes():
    assert deployment_problems(Deployment(**SERVED)) == []
    for operation, request in endpoint_requests(Deployment(**SERVED)).items():
        assert preflight.request_problems(operation, request) == []


# Costs


def test_the_cost_of_a_job_is_the_estimate_of_estimate_py_and_a_ceiling(capsys):
    """One source of hours: scripts/estimate.py prints the same, without the quarter of an hour to start."""
    expected = cost.cost_of(TrainingJob(**GOOD, keep_alive_minutes=30))
    assert expected.ceiling == pytest.approx(6.5 * 1.515)
    assert expected.estimated and "an estimate" in str(expected) and "captured 2026-08-17" in str(expected)
    for recipe in recipe_names():
        estimated = cost.cost_of(TrainingJob(**GOOD | {"recipe": recipe}))
        estimate_py.main(["--recipe", recipe, "--hardware", "a10g"])
        said = re.findall(r"GB, ([\d.]+) to ([\d.]+) (h|min);", capsys.readouterr().out)
        units = {"h": 1, "min": 1 / 60}
        for found, end in zip(estimated.hours, (0, 1), strict=True):
            assert found == pytest.approx(0.25 + sum(float(line[end]) * units[line[2]] for line in said), abs=0.12)
    timed = cost.cost_of(TrainingJob(**GOOD | {"hardware": "cpu"}))
    assert timed.hours == (0.2, 0.5) and not timed.estimated
    assert cost.cost_of(TrainingJob(**GOOD, limit=10)).hours is None  # unknown
    shorter = cost.cost_of(TrainingJob(**GOOD, stages=("sft",)))
    assert shorter.hours[1] < expected.hours[1]
    stopped = str(cost.cost_of(TrainingJob(**GOOD, max_run_hours=1, keep_alive_minutes=30)))
    assert "a limit of 1 h may stop the job unfinished" in stopped
    assert f"--max-run-hours {math.ceil(expected.hours[1])}" in stopped
    assert "too low" not in str(timed)
    unknown = cost.cost_of(TrainingJob(**GOOD | {"region": "eu-west-1"}))
    assert unknown.ceiling is None and "is unknown" in str(unknown)


def test_several_machines_cost_more_an_hour_and_take_less_time():
    one, four = (cost.cost_of(TrainingJob(**GOOD | {"recipe": "gsm8k-grpo"}, instances=n)) for n in (1, 4))
    assert four.ceiling == pytest.approx(4 * one.ceiling) and "4 × ml.g5.2xlarge in us-east-1, 6.06 USD" in str(four)
    assert four.hours[1] - 0.25 == pytest.approx((one.hours[1] - 0.25) / 4, abs=0.1), "a quarter of the steps"
    fixed = {"overrides": ("grpo.max_steps=100", "sft.max_steps=10")}
    one, four = (cost.cost_of(TrainingJob(**GOOD | fixed, instances=n)) for n in (1, 4))
    assert four.hours == one.hours, "as many steps, on four times the batch"
    assert cost.cost_of(TrainingJob(**GOOD | {"hardware": "cpu"}, instances=2)).hours is None  # not timed


def test_prices_are_refreshed_from_the_price_list():
    def get_products(Filters, **arguments):
        asked = {filter["Field"]: filter["Value"] for filter in Filters}
        if asked["instanceName"] != "ml.g5.2xlarge" or asked["component"] != "Training":
            return {"PriceList": []}
        dimension = {"unit": "Hrs", "pricePerUnit": {"USD": "1.6900000000"}}
        return {"PriceList": [json.dumps({"terms": {"OnDemand": {"a": {"priceDimensions": {"b": dimension}}}}})]}

    pricing = SimpleNamespace(client=lambda *arguments, **options: SimpleNamespace(get_products=get_products))
    assert cost.price("ml.g5.2xlarge", "eu-west-1") is None
    assert cost.refresh("eu-west-1", pricing) == {"ml.g5.2xlarge": 1.69}
    found = cost.price("ml.g5.2xlarge", "eu-west-1")
    assert found.usd == 1.69 and found.source.startswith("AWS's price list, 20")
    assert cost.price("ml.g5.xlarge", "us-east-1").usd == 1.408  # those that ship stay
