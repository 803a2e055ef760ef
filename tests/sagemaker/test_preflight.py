"""Wrong jobs, each stopped before a cent is spent, with its remedy."""

import json
import re

import boto3
import pytest
from account import ACCOUNT, BUCKET, PLACE, REGION, ROLE

from lab_utils.config import load
from lab_utils.machine import memory as estimate
from lab_utils.sagemaker import cost, preflight
from lab_utils.sagemaker.endpoint import Deployment, deployment_problems, endpoint_requests
from lab_utils.sagemaker.job import EvaluationJob, TrainingJob, evaluation_request, training_request

GOOD = {"recipe": "countdown-grpo", "hardware": "a10g", **PLACE}
ECR = "123456789012.dkr.ecr.{}.amazonaws.com/mine:1"

# what is wrong · what is said · the remedy
WRONG = {
    "no role": ({"role": ""}, "No execution role", "SAGEMAKER_ROLE"),
    "a role's name": ({"role": "rl-workshop"}, "'rl-workshop' is not the ARN", "aws iam get-role"),
    "a user's ARN": ({"role": f"arn:aws:iam::{ACCOUNT}:user/me"}, "is not the ARN of an IAM role", "aws iam get-role"),
    "no bucket": ({"bucket": ""}, "No bucket", "SAGEMAKER_BUCKET"),
    "a bucket with s3://": ({"bucket": "s3://mine"}, "not a bucket's name", "without s3://"),
    "an unknown region": ({"region": "us-est-1"}, "'us-est-1' is none", "us-east-1"),
    "an unknown recipe": (
        {"recipe": "countdown-gpro"}, "no recipe 'countdown-gpro'. Did you mean countdown-grpo", "--recipe"),
    "an unknown tier": ({"hardware": "a10"}, "no hardware tier 'a10'", "--hardware"),
    "the tier auto": ({"hardware": "auto"}, "'auto' looks at this machine", "Name the tier"),
    "an unknown setting": ({"overrides": ("grpo.betta=1",)}, "Did you mean grpo.beta", "--set"),
    "no value in a setting": ({"overrides": ("grpo.beta",)}, "must have the form KEY=VALUE", "--set"),
    "groups that do not divide the batch": ({"overrides": ("grpo.num_generations=7",)}, "num_generations = 7", "--set"),
    "an instance typo": (
        {"instance_type": "ml.g5.2xlrage"}, "no instance type 'ml.g5.2xlrage'", "Did you mean ml.g5.2xlarge"),
    "an instance of EC2": ({"instance_type": "g5.2xlarge"}, "no instance type 'g5.2xlarge'", "ml.g5.2xlarge"),
    "a GPU tier without a GPU": (
        {"instance_type": "ml.m5.xlarge"}, "needs 1 GPU(s), and ml.m5.xlarge has none", "ml.g5.2xlarge"),
    "four GPUs wanted, one there": (
        {"hardware": "a10g-x4", "instance_type": "ml.g5.xlarge"}, "needs 4 GPU(s)", "ml.g5.12xlarge"),
    "one GPU used, four paid": ({"instance_type": "ml.g5.12xlarge"}, "pay for all", "CUDA_VISIBLE_DEVICES=0"),
    "a GPU that is too small": (
        {"hardware": "a100", "instance_type": "ml.g5.xlarge"}, "made for 40 GB", "ml.p5.4xlarge"),
    "a GPU for the tiny model": ({"hardware": "cpu", "instance_type": "ml.g5.xlarge"}, "leave it idle", "ml.m5.xlarge"),
    "a tier without an instance": ({"hardware": "h200"}, "only by eight", "cost"),
    "a limit of nothing": ({"limit": 0}, "leaves nothing to train on", "at least 1"),
    "an unknown instance without a GPU": (
        {"instance_type": "ml.c5.xlarge"}, "needs 1 GPU(s), and ml.c5.xlarge has none", "ml.g5.2xlarge"),
    "eight GPUs for one": ({"instance_type": "ml.g5.48xlarge"}, "pay for all", "CUDA_VISIBLE_DEVICES=0"),
    "spot without a longest wait": ({"spot": True}, "needs a longest wait", "--max-wait-hours, such as 12"),
    "a wait shorter than the run": (
        {"spot": True, "max_wait_hours": 2}, "cannot be less than the longest run", "--max-wait-hours 12"),
    "a wait without spot": ({"max_wait_hours": 9}, "spot jobs only", "--spot"),
    "spot kept warm": (
        {"spot": True, "max_wait_hours": 9, "keep_alive_minutes": 9}, "cannot be kept warm", "Leave out"),
    "kept warm for a day": ({"keep_alive_minutes": 1440}, "0 to 60 minutes", "--keep-alive-minutes"),
    "no time to run": ({"max_run_hours": 0}, "more than 0", "--max-run-hours"),
    "a run of two months": ({"max_run_hours": 1440}, "at most 672 hours", "--max-run-hours"),
    "less time than is expected": (
        {"recipe": "gsm8k-sft-ppo", "max_run_hours": 2}, "expected to take 3 to 5", "--max-run-hours 5"),
    "a start model that is nowhere": (
        {"model": "outputs/nothing"}, "neither an S3 URI nor a local folder", "is uploaded"),
    "a start model of the Hub": ({"model": "Qwen/Qwen2.5-0.5B"}, "neither an S3 URI nor a local", "model.name"),
    "a start model on the web": ({"model": "https://x.org/model"}, "not a place in S3", "s3://"),
    "a folder without a model": ({"model": "."}, "neither a config.json", "`model` of a run directory"),
    "a folder without data": ({"data": "."}, "train.jsonl and test.jsonl", "one JSON object a line"),
    "checkpoints on this machine": ({"checkpoints": "outputs/a"}, "not in S3", "--resume"),
    "a container elsewhere": ({"image": "docker.io/library/python:3.12"}, "not in Amazon ECR", "Push it"),
    "a container of another region": (
        {"image": ECR.format("eu-west-1")}, "container is in eu-west-1", "--region eu-west-1"),
    "too small a disk": ({"volume_gb": 5}, "5 GB is too small", "--volume-gb 30 to 1000"),
    "an underscore in the name": ({"prefix": "my_class"}, "only letters, digits and hyphens", "--job-prefix"),
    "too long a name": ({"prefix": "a-very-long-prefix-for-the-jobs"}, "63 are allowed", "Take 3 characters off"),
    "an apostrophe": ({"overrides": ("task.source='s3'",)}, "has an apostrophe", "--recipe my-recipe.yaml"),
    "an over-long value": ({"overrides": (f"task.source={'x' * 2600}",)}, "2600 characters long", "recipe file"),
    "too many settings": ({"overrides": tuple(f"seed={i}" for i in range(9)) + tuple(
        f"task.source-{i}=x" for i in range(100))}, "100 hyperparameters, not 103", "recipe file"),
    "a secret": ({"environment": {"HF_TOKEN": "hf_x"}}, "HF_TOKEN looks like a secret", "need none"),
    "a tag of AWS": ({"tags": {"aws:owner": "me"}}, "begin with aws:", "another name"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_job_is_stopped_with_its_remedy(kind):
    changes, said, remedy = WRONG[kind]
    problems = preflight.job_problems(TrainingJob(**GOOD | changes))
    found = [problem for problem in problems if said in problem.what]
    assert len(found) == 1, problems
    assert remedy in found[0].what + found[0].remedy and found[0].remedy


def test_at_least_twenty_five_kinds():
    assert len(WRONG) >= 25


@pytest.mark.parametrize("changes", [
    {}, {"hardware": "cpu"}, {"hardware": "t4"}, {"hardware": "a100"}, {"hardware": "a10g-x4"},
    {"recipe": "gsm8k-sft-ppo"},
    {"spot": True, "max_wait_hours": 6}, {"keep_alive_minutes": 30}, {"model": "s3://b/model.tar.gz"},
    {"environment": {"TOKENIZERS_PARALLELISM": "false"}},
    {"instance_type": "ml.g5.12xlarge", "environment": {"CUDA_VISIBLE_DEVICES": "0"}},
    {"image": ECR.format(REGION)}, {"instance_type": "ml.g6e.xlarge"},
])
def test_a_right_job_passes(changes):
    assert preflight.job_problems(TrainingJob(**GOOD | changes)) == []


def test_an_evaluation_has_rules_of_its_own():
    def said(**changes):
        return " ".join(map(str, preflight.job_problems(EvaluationJob(**GOOD | changes))))

    assert "no model to evaluate" in said()
    assert said(model="s3://b/model.tar.gz") == ""
    assert "at most 120 hours" in said(model="s3://b/m.tar.gz", max_run_hours=200)
    assert "for training jobs only" in said(
        hardware="a100", instance_type="ml.p4d.24xlarge", model="s3://b/m.tar.gz")


def test_all_problems_are_told_at_once():
    problems = preflight.job_problems(TrainingJob(**GOOD | {"role": "", "spot": True, "volume_gb": 1}))
    message = str(preflight.PreflightError(problems))
    assert "3 problem(s)" in message and message.count("\n- ") == 3


# Against the service model


@pytest.mark.component
def test_the_requests_pass_and_broken_ones_do_not(little_source):
    request = training_request(TrainingJob(**GOOD, spot=True, max_wait_hours=9))
    assert preflight.request_problems("CreateTrainingJob", request) == []
    evaluation = evaluation_request(EvaluationJob(**GOOD, model="s3://b/model.tar.gz"))
    assert preflight.request_problems("CreateProcessingJob", evaluation) == []

    def said(**changes):
        return " ".join(map(str, preflight.request_problems("CreateTrainingJob", request | changes)))

    assert "InstanceType = 'ml.g5.huge' is none of the values" in said(
        ResourceConfig=request["ResourceConfig"] | {"InstanceType": "ml.g5.huge"})
    assert "MaxRuntimeInSeconds = 0 is out of range" in said(StoppingCondition={"MaxRuntimeInSeconds": 0})
    assert "TrainingJobName = 'a_b' does not have the form" in said(TrainingJobName="a_b")
    assert "TrainingJobName has 80 characters" in said(TrainingJobName="a" * 80)
    assert "Environment.A has 600 characters" in said(Environment={"A": "x" * 600})
    assert "Environment.(name) = '1A' does not have the form" in said(Environment={"1A": "x"})
    assert "HyperParameters has 101 entries" in said(HyperParameters={str(i): "" for i in range(101)})
    assert "Tags has 51 entries" in said(Tags=[{"Key": str(i), "Value": ""} for i in range(51)])
    assert "Spot is unknown to SageMaker" in said(Spot=True)
    del request["RoleArn"]
    assert "RoleArn is missing" in said()


# Against the account


@pytest.mark.component
def test_the_account(aws):
    described = TrainingJob(**GOOD)
    assert preflight.account_problems(described, aws.session) == []

    def said(**changes):
        return " ".join(map(str, preflight.account_problems(TrainingJob(**GOOD | changes), aws.session)))

    aws.s3.create_bucket(Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    assert "far-away is in eu-west-1, and the job would run in us-east-1" in said(bucket="far-away")
    assert "There is no bucket nowhere-to-be-found" in said(bucket="nowhere-to-be-found")
    assert "belongs to the account 999999999999" in said(role="arn:aws:iam::999999999999:role/x")
    assert "There is no role" in said(role=f"{ROLE}-2")
    boto3.client("iam").create_role(RoleName="human", AssumeRolePolicyDocument='{"Version": "2012-10-17", "Statement": '
                                    '[{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": "*"}}]}')
    assert "trust policy lacks sagemaker.amazonaws.com" in said(role=f"arn:aws:iam::{ACCOUNT}:role/human")
    assert "there is nothing in S3 at that place" in said(model=f"s3://{BUCKET}/job/output/model.tar.gz")
    aws.s3.put_object(Bucket=BUCKET, Key="job/output/model.tar.gz", Body=b"x")
    assert said(model=f"s3://{BUCKET}/job/output/model.tar.gz") == ""

    aws.quotas |= {"ml.g5.2xlarge for training job usage": 0.0, "ml.g5.2xlarge for spot training job usage": 1.0}
    assert "'ml.g5.2xlarge for training job usage' of this account is 0" in said()
    assert said(spot=True, max_wait_hours=9) == ""


# Endpoints

SERVED = {"name": "rl-workshop-demo", "model": "s3://b/job/output/model.tar.gz", "role": ROLE, "region": REGION}


@pytest.mark.parametrize("changes, said", [
    ({"name": "my_endpoint"}, "letters, digits and hyphens"),
    ({"model": "outputs/grpo/model"}, "is not a model.tar.gz or folder"),
    ({"instance_type": "ml.g5.huge"}, "no instance type 'ml.g5.huge' for endpoints"),
    ({"instance_type": "ml.m5.xlarge"}, "vLLM needs a GPU"),
    ({"instance_type": "ml.g4dn.xlarge"}, "without bfloat16"),
    ({"role": "me"}, "not the ARN"),
    ({"max_model_len": 10}, "cannot hold a question"),
])
def test_a_wrong_deployment_is_stopped(changes, said):
    [problem] = deployment_problems(Deployment(**SERVED | changes))
    assert said in problem.what and problem.remedy


@pytest.mark.component
def test_a_right_deployment_passes():
    assert deployment_problems(Deployment(**SERVED)) == []
    for operation, request in endpoint_requests(Deployment(**SERVED)).items():
        assert preflight.request_problems(operation, request) == []


# Costs


def test_the_cost_of_a_job_is_estimate_and_ceiling():
    expected = cost.cost_of(TrainingJob(**GOOD | {"recipe": "gsm8k-sft-ppo"}, keep_alive_minutes=30))
    assert expected.hours == (3.0, 5.0)
    assert expected.ceiling == pytest.approx(6.5 * 1.515)
    assert "3 to 5 hours, 4.54 to 7.57 USD" in str(expected) and "captured 2026-08-17" in str(expected)
    assert cost.cost_of(TrainingJob(**GOOD | {"recipe": "gsm8k-sft-ppo"}, limit=10)).hours is None  # not timed
    estimated = cost.cost_of(TrainingJob(**GOOD | {"recipe": "countdown-grpo", "hardware": "a10g"}))
    low, high = zip(*(estimate.hours(load("countdown-grpo", "a10g"), stage) for stage in ("sft", "grpo")), strict=True)
    assert estimated.hours == pytest.approx((0.25 + sum(low), 0.25 + sum(high)), abs=0.06)
    assert estimated.estimated and "an estimate" in str(estimated)
    shorter = cost.cost_of(TrainingJob(**GOOD | {"recipe": "countdown-grpo", "hardware": "a10g"}, stages=("sft",)))
    assert shorter.hours[1] < estimated.hours[1]
    unknown = cost.cost_of(TrainingJob(**GOOD | {"region": "eu-west-1"}))
    assert unknown.ceiling is None and "not known" in str(unknown)


def test_the_prices_have_a_date_and_a_source():
    known = cost.known()
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", str(known["captured"]))
    for name, facts in known["instances"].items():
        for usd, source in facts["usd"].values():
            assert usd > 0 and known["sources"][source], name
    for tier, name in known["default_instance"].items():
        assert preflight.job_problems(TrainingJob(**GOOD | {"hardware": tier})) == [], name


def test_prices_are_refreshed_from_the_price_list():
    class Pricing:
        def client(self, service, region_name):
            assert (service, region_name) == ("pricing", "us-east-1")
            return self

        def get_products(self, ServiceCode, FormatVersion, Filters):
            asked = {filter["Field"]: filter["Value"] for filter in Filters}
            assert ServiceCode == "AmazonSageMaker" and asked["component"] == "Training"
            if asked["instanceName"] != "ml.g5.2xlarge":
                return {"PriceList": []}
            dimension = {"unit": "Hrs", "pricePerUnit": {"USD": "1.6900000000"}}
            return {"PriceList": [json.dumps({"terms": {"OnDemand": {"a": {"priceDimensions": {"b": dimension}}}}})]}

    assert cost.price("ml.g5.2xlarge", "eu-west-1") is None
    assert cost.refresh("eu-west-1", Pricing()) == {"ml.g5.2xlarge": 1.69}
    found = cost.price("ml.g5.2xlarge", "eu-west-1")
    assert found.usd == 1.69 and found.source.startswith("AWS's price list, 20")
    assert cost.price("ml.g5.xlarge", "us-east-1").usd == 1.408  # those that ship stay
