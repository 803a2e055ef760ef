"""setup/sagemaker: the template is valid and grants little, the scripts refuse what cannot work, torch stays AWS's."""

import json
import os
import re
import subprocess

import botocore.session
import pytest
import yaml
from botocore import xform_name

from lab_utils import REPOSITORY, config
from lab_utils.machine.environment import read_pins
from lab_utils.sagemaker.job import PYTORCH

SETUP = REPOSITORY / "setup" / "sagemaker"
TEMPLATE = SETUP / "class.yaml"


class CloudFormation(yaml.SafeLoader):
    """Reads !Sub, !Ref and !GetAtt as the plain value behind them, and !Join as the joined text."""


CloudFormation.add_multi_constructor("!", lambda loader, suffix, node: loader.construct_scalar(node))
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
    for statement in [*statements(resources["ExecutionRole"]), *statements(resources["LearnerPolicy"])]:
        for action in as_list(statement["Action"]):
            assert "*" not in action
            if as_list(statement["Resource"]) == ["*"]:
                assert action in without_resources or action.startswith("sagemaker:List"), action


def test_a_job_can_neither_start_jobs_nor_hand_on_its_role(resources):
    actions = [action for s in statements(resources["ExecutionRole"]) for action in as_list(s["Action"])]
    assert not any(action.startswith(("sagemaker:", "iam:")) for action in actions)


def test_learners_start_only_the_instance_types_of_the_class_and_pass_one_role(resources):
    by_name = {statement["Sid"]: statement for statement in statements(resources["LearnerPolicy"])}
    starting = {f"sagemaker:Create{what}" for what in ("TrainingJob", "ProcessingJob", "EndpointConfig")}
    assert [sid for sid, s in by_name.items() if starting & set(as_list(s["Action"]))] == ["StartOnTheseInstancesOnly"]
    assert by_name["StartOnTheseInstancesOnly"]["Condition"]["ForAllValues:StringEquals"] == {
        "sagemaker:InstanceTypes": "InstanceTypes"}
    assert by_name["RunJobsAsThisRoleOnly"]["Resource"] == "ExecutionRole.Arn"


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


# The container


def test_the_dockerfile_builds_on_the_container_that_jobs_run_in():
    """The name and tag are those of the SDK's table; AWS's public registry has the same images and needs no login."""
    image_uris = pytest.importorskip("sagemaker.core.image_uris", reason="the SageMaker SDK is not installed")
    private = image_uris.retrieve("pytorch-amzn2023", "us-east-1", version=PYTORCH, instance_type="ml.g5.xlarge",
                                  image_scope="training")
    public = f"public.ecr.aws/deep-learning-containers/{private.split('/')[1]}"
    assert f"FROM {public}\n" in (SETUP / "Dockerfile").read_text(encoding="utf-8")


def test_the_container_installs_what_the_code_imports_and_never_torch():
    pins = read_pins(REPOSITORY / "setup" / "requirements" / "sagemaker-container.txt")
    pins |= read_pins(REPOSITORY / "setup" / "requirements" / "sagemaker-container-gpu.txt")
    assert not {"torch", "torchvision", "jupyterlab"} & {name.lower() for name in pins}
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = re.findall(r'^    "([\w-]+)>=', project.split("[project.optional-dependencies]")[0], re.M)
    assert {name.lower() for name in dependencies} - {"torch"} <= {name.lower() for name in pins}
