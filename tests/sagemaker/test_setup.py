"""setup/sagemaker: the template is valid and grants little, the scripts refuse what cannot work, torch stays AWS's."""

import datetime
import json
import os
import re
import shlex
import shutil
import subprocess

import botocore.session
import pytest
import yaml
from botocore import xform_name

from lab_utils import REPOSITORY, config
from lab_utils.machine.environment import read_pins
from lab_utils.sagemaker.endpoint import VLLM
from lab_utils.sagemaker.job import PYTORCH

SETUP = REPOSITORY / "setup" / "sagemaker"
TEMPLATE = SETUP / "class.yaml"


class CloudFormation(yaml.SafeLoader):
    """Reads !Sub, !Ref and !GetAtt as the plain value behind them, and !Join as the joined text."""

    def plain(self, suffix: str, node: yaml.Node):
        return self.construct_scalar(node if isinstance(node, yaml.ScalarNode) else node.value[0])


CloudFormation.add_multi_constructor("!", CloudFormation.plain)
CloudFormation.add_constructor("!Join", lambda loader, node: "".join(loader.construct_sequence(node, deep=True)[1]))


@pytest.fixture(scope="module")
def resources() -> dict:
    return yaml.load(TEMPLATE.read_text(encoding="utf-8"), CloudFormation)["Resources"]


def statements(resource: dict) -> list[dict]:
    properties = resource["Properties"]
    documents = [policy["PolicyDocument"] for policy in properties.get("Policies", [])]
    documents += [properties["PolicyDocument"]] if "PolicyDocument" in properties else []
    return [statement for document in documents for statement in document["Statement"]]


def as_list(value) -> list:
    return value if isinstance(value, list) else [value]


# The template


@pytest.mark.component
def test_cfn_lint_passes():
    from cfnlint.api import lint_file

    assert lint_file(TEMPLATE) == []


def test_no_statement_allows_every_action_or_every_resource_without_need(resources):
    without_resources = {"cloudwatch:PutMetricData", "ecr:GetAuthorizationToken", "pricing:GetProducts",
                         "servicequotas:ListAWSDefaultServiceQuotas", "servicequotas:ListServiceQuotas"}
    for statement in [s for name in ("ExecutionRole", "LearnerPolicy", "EndEndpointsRole")
                      for s in statements(resources[name])]:
        for action in as_list(statement["Action"]):
            assert "*" not in action
            if as_list(statement["Resource"]) == ["*"]:
                assert action in without_resources or action.startswith("sagemaker:List"), action


def test_a_job_can_neither_start_jobs_nor_hand_on_its_role(resources):
    actions = [action for s in statements(resources["ExecutionRole"]) for action in as_list(s["Action"])]
    assert not any(action.startswith(("sagemaker:", "iam:")) for action in actions)


def test_a_job_reads_the_secrets_of_the_workshop_only(resources):
    [secrets] = [s for s in statements(resources["ExecutionRole"]) if "secretsmanager" in str(s["Action"])]
    assert secrets["Action"] == "secretsmanager:GetSecretValue"
    assert secrets["Resource"].endswith(":secret:rl-workshop-*")


def test_learners_start_only_the_instance_types_of_the_class_within_limits_and_pass_one_role(resources):
    by_name = {statement["Sid"]: statement for statement in statements(resources["LearnerPolicy"])}
    starting = [s for s in by_name.values() if re.search("sagemaker:Create(Training|Proc|EndpointConfig)", str(s))]
    assert len(starting) == 2 and by_name["RunJobsAsThisRoleOnly"]["Resource"] == "ExecutionRole.Arn"
    for statement in starting:
        assert statement["Condition"]["ForAllValues:StringEquals"] == {"sagemaker:InstanceTypes": "InstanceTypes"}
        # ForAllValues is true of a request without instance types, such as that of a serverless endpoint
        assert statement["Condition"]["Null"] == {"sagemaker:InstanceTypes": "false"}
    [jobs] = [s for s in starting if "sagemaker:CreateTrainingJob" in s["Action"]]
    assert jobs["Condition"]["NumericLessThanEquals"] == {"sagemaker:MaxRuntimeInSeconds": "MaxRunSeconds"}
    assert jobs["Condition"]["NumericLessThanEqualsIfExists"] == {"sagemaker:KeepAlivePeriod": "MaxKeepAliveSeconds"}


def test_learners_read_and_delete_only_logs_of_the_workshop(resources):
    for statement in statements(resources["LearnerPolicy"]):
        if changing := [action for action in as_list(statement["Action"])
                        if action.startswith("logs:") and action != "logs:DescribeLogStreams"]:
            assert all("rl-workshop-*" in resource for resource in as_list(statement["Resource"])), changing


def test_the_policy_is_shorter_than_iam_allows(resources):
    """At most 6,144 characters, without white space, after the names of account and region are filled in."""
    text = json.dumps(resources["LearnerPolicy"]["Properties"]["PolicyDocument"])
    for name, value in {"AWS::Partition": "aws-us-gov", "AWS::Region": "ap-northeast-1", "AWS::AccountId": "1" * 12,
                        "Bucket.Arn": "arn:aws:s3:::rl-workshop-111111111111-ap-northeast-1"}.items():
        text = text.replace(f"${{{name}}}", value)
    assert len(re.sub(r"\s", "", text)) < 5500  # the list of instance types is a parameter


def test_the_image_accounts_are_those_of_the_sdk_in_every_region():
    image_uris = pytest.importorskip("sagemaker.core.image_uris", reason="the SageMaker SDK is not installed")
    mapping = yaml.load(TEMPLATE.read_text(encoding="utf-8"), CloudFormation)["Mappings"]["Images"]
    registries = image_uris.config_for_framework("pytorch-amzn2023")["training"]["versions"][PYTORCH]["registries"]
    assert {region: values["Account"] for region, values in mapping.items()} == registries
    serving = image_uris.config_for_framework("vllm-server")["versions"][VLLM]["registries"]
    assert serving.items() <= registries.items(), "endpoints pull from the same accounts"


@pytest.mark.component
def test_old_endpoints_of_the_workshop_are_deleted_and_no_others(resources, monkeypatch):
    """The function of the template runs against an account in memory, and may do what it asks for."""
    moto = pytest.importorskip("moto", reason="the SageMaker SDK is not installed")
    import boto3

    for name, value in {"HOURS": "4", "AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "testing",
                        "AWS_SECRET_ACCESS_KEY": "testing"}.items():
        monkeypatch.setenv(name, value)
    function = {}
    exec(resources["EndEndpoints"]["Properties"]["Code"]["ZipFile"], function)
    project = [{"Key": "project", "Value": "rl-workshop"}]
    with moto.mock_aws():
        from moto.sagemaker.models import sagemaker_backends

        client = boto3.client("sagemaker")
        client.create_model(ModelName="m", ExecutionRoleArn="arn:aws:iam::123456789012:role/x")
        variant = {"VariantName": "all", "ModelName": "m", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
        client.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant])
        for name, tags in (("rl-workshop-old", project), ("rl-workshop-new", project), ("rl-workshop-foreign", []),
                           ("my-rl-workshop-x", project)):
            client.create_endpoint(EndpointName=name, EndpointConfigName="c", Tags=tags)
        for name, endpoint in sagemaker_backends["123456789012"]["us-east-1"].endpoints.items():
            if name != "rl-workshop-new":
                endpoint.creation_time -= datetime.timedelta(hours=5)
        function["handler"]({}, None)
        left = {endpoint["EndpointName"] for endpoint in client.list_endpoints()["Endpoints"]}
    assert left == {"rl-workshop-new", "rl-workshop-foreign", "my-rl-workshop-x"}
    allowed = {action for s in statements(resources["EndEndpointsRole"]) for action in as_list(s["Action"])}
    assert {"sagemaker:ListEndpoints", "sagemaker:ListTags", "sagemaker:DeleteEndpoint"} <= allowed


def test_learners_create_stop_and_delete_in_their_own_name_only(resources):
    """Tags protect resources, and the folder of the owner protects results; a tag cannot be changed afterwards."""
    changing = re.compile(r"sagemaker:(Create|Stop|Delete|Invoke|Update)|s3:(Get|Put|Delete)Object|s3:ListBucket")
    me = "${LearnerIdentity}"
    shared = {"Sid": "SharedFolder", "Effect": "Allow", "Action": "s3:GetObject", "Resource": "${Bucket.Arn}/shared/*"}
    assert shared in statements(resources["LearnerPolicy"])
    for statement in statements(resources["LearnerPolicy"]):
        if any(changing.match(action) for action in as_list(statement["Action"])) and statement != shared:
            granted = json.dumps([statement.get("Condition"), statement["Resource"]])
            assert any(own in granted for own in (f'/owner": "{me}"', f"/{me}/*", f'"{me}/*"')), statement["Sid"]
    [tagging] = [s for s in statements(resources["LearnerPolicy"]) if "sagemaker:AddTags" in as_list(s["Action"])]
    assert tagging["Condition"] == {"Null": {"sagemaker:TaggingAction": "false"}}


def test_learners_may_do_all_that_the_launcher_asks_sagemaker_and_the_logs_for(resources):
    """Calls are read from the source: client.describe_endpoint(...), pages("list_apps", ...), client.delete_model."""
    allowed = {action for s in statements(resources["LearnerPolicy"]) for action in as_list(s["Action"])}
    sources = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "lab_utils" / "sagemaker").glob("*.py")]
    for service, client in (("sagemaker", r"(?:client|sagemaker_client)"), ("logs", "logs")):
        operations = {xform_name(name): name for name in botocore.session.get_session()
                      .get_service_model(service).operation_names}
        names = [name for source in sources for found in re.findall(rf'\b{client}\.(\w+)|"(list_\w+)"', source)
                 for name in found]
        called = {name for name in names if name in operations}
        assert len(called) > 3, called
        missing = {f"{service}:{operations[name]}" for name in called} - allowed
        assert not missing, f"class.yaml does not grant {sorted(missing)}"


def test_the_default_instance_types_are_those_of_the_tiers_up_to_24_gb():
    parameters = yaml.load(TEMPLATE.read_text(encoding="utf-8"), CloudFormation)["Parameters"]
    allowed = parameters["InstanceTypes"]["Default"].split(",")
    instances = yaml.safe_load((REPOSITORY / "lab_utils" / "sagemaker" / "instances.yaml").read_text(encoding="utf-8"))
    needed = [instances["default_instance"][tier] for tier in config.hardware_names()
              if tier in instances["default_instance"] and config.load_tier(tier).memory_gb <= 24]
    assert set(needed) <= set(allowed)


# The scripts


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", str(SETUP / script), *arguments], capture_output=True, text=True, timeout=60,
                          env={**os.environ, **environment})


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--regoin"], "--regoin"),
        (["--account", "123456789012"], "--region is missing"),
        (["--account", "1234-5678-9012", "--region", "us-east-1"], "12 digits, without dashes"),
        (["--account", "123456789012", "--region", "useast1"], "is not an AWS region"),
        (["--account", "123456789012", "--region"], "--region has no value"),
    ],
)
def test_the_push_script_refuses(arguments, part):
    result = run("push_image.sh", *arguments)
    assert (result.returncode, result.stdout) == (2, "") and part in result.stderr


def test_the_push_script_prints_what_it_would_do():
    arguments = ("--account", "123456789012", "--region", "eu-west-1", "--tag", "mine", "--dry-run")
    lines = run("push_image.sh", *arguments, PATH="/usr/bin:/bin").stdout.splitlines()
    image = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/rl-workshop:mine"
    assert f"+ docker push {image}" in lines
    [login] = [line for line in lines if "docker login" in line]
    assert "--region eu-west-1" in login and lines.index(login) < lines.index(f"+ docker push {image}")


FAKE = """#!/bin/bash
echo "$(basename "$0") $*" >> "$CALLS"
case "$*" in
    *BucketName*) echo the-bucket ;;
    *LearnerPolicyArn*) echo the-policy ;;
    *PolicyUsers*) echo "anna ben" ;;
    *PolicyRoles*) echo studio ;;
    *"delete --all"*) exit "${DELETE_STATUS:-0}" ;;
esac
"""


@pytest.fixture
def teardown(tmp_path):
    """Run teardown.sh with an aws and a python that only note their arguments; returns result and calls."""
    for name in ("aws", "python"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)

    def teardown(*arguments, **environment):
        calls = tmp_path / "calls"
        calls.write_text("")
        result = run("teardown.sh", "--region", "us-east-1", *arguments, CALLS=str(calls),
                     PATH=f"{tmp_path}:/usr/bin:/bin", **environment)
        return result, calls.read_text().splitlines()

    return teardown


def test_the_teardown_deletes_in_an_order_that_works(teardown):
    """Endpoints outlive role and bucket; CloudFormation deletes neither an attached policy nor a bucket with files."""
    result, calls = teardown("--yes")
    assert result.returncode == 0, result.stderr
    steps = ["launch_sagemaker.py delete --all --everyone --yes --region us-east-1",
             "iam detach-user-policy --user-name anna --policy-arn the-policy",
             "iam detach-user-policy --user-name ben --policy-arn the-policy",
             "iam detach-role-policy --role-name studio --policy-arn the-policy",
             "s3 rm --recursive --only-show-errors s3://the-bucket",
             "cloudformation delete-stack --region us-east-1 --stack-name rl-workshop"]
    places = [[i for i, call in enumerate(calls) if call.endswith(step)] for step in steps]
    assert all(len(place) == 1 for place in places) and places == sorted(places), calls


def test_the_teardown_stops_at_the_first_thing_that_it_cannot_delete(teardown):
    result, calls = teardown("--yes", DELETE_STATUS="1")  # such as a running job
    assert result.returncode == 1 and not any("detach" in call or "delete-stack" in call for call in calls)
    result, calls = teardown()
    assert result.returncode == 2 and "pass --yes" in result.stderr and not calls
    result, calls = teardown("--dry-run")
    assert result.returncode == 0 and not calls and "+ aws cloudformation delete-stack" in result.stdout


# The container


def test_the_dockerfile_builds_on_the_container_that_jobs_run_in():
    """The name and tag are those of the SDK's table; AWS's public registry has the same images and needs no login."""
    image_uris = pytest.importorskip("sagemaker.core.image_uris", reason="the SageMaker SDK is not installed")
    private = image_uris.retrieve("pytorch-amzn2023", "us-east-1", version=PYTORCH, instance_type="ml.g5.xlarge",
                                  image_scope="training")
    public = f"public.ecr.aws/deep-learning-containers/{private.split('/')[1]}"
    assert f"FROM {public}\n" in (SETUP / "Dockerfile").read_text(encoding="utf-8")


def docker_runs() -> bool:
    return bool(shutil.which("docker")) and subprocess.run(["docker", "info"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif("RUN_DOCKER" not in os.environ or not docker_runs(),
                    reason="builds an image of about 20 GB: RUN_DOCKER=1, where docker runs")
@pytest.mark.timeout(7200)
def test_the_image_trains_with_docker_run_on_this_machine(tmp_path):
    """The commands of setup/sagemaker/README.md, with an output directory of their own."""
    readme = (SETUP / "README.md").read_text(encoding="utf-8")
    build, train = (shlex.split(command.replace("\\\n", " ").replace("$PWD", str(REPOSITORY)))
                    for command in re.findall(r"^    (docker (?:build|run) .*(?:\n        .*)?)", readme, re.M)[:2])
    subprocess.run(build, cwd=REPOSITORY, check=True)
    at = train.index("rl-workshop")
    train[at:at] = ["--volume", f"{tmp_path}:/out"]
    subprocess.run([*train[:-1], "/out/run"], cwd=REPOSITORY, check=True)
    assert (tmp_path / "run" / "grpo" / "model" / "model.safetensors").exists()


def test_the_container_installs_what_the_code_imports_and_never_torch():
    pins = read_pins(REPOSITORY / "setup" / "requirements" / "sagemaker-container.txt")
    pins |= read_pins(REPOSITORY / "setup" / "requirements" / "sagemaker-container-gpu.txt")
    assert not {"torch", "torchvision", "jupyterlab"} & {name.lower() for name in pins}
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = re.findall(r'^    "([\w-]+)>=', project.split("[project.optional-dependencies]")[0], re.M)
    assert {name.lower() for name in dependencies} - {"torch"} <= {name.lower() for name in pins}
