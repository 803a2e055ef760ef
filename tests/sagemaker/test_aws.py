"""Jobs and endpoints against an account in memory: requests, answers, and that nothing is left over."""

import datetime
import io
import json
import os
import re
import shutil
import tarfile
from types import SimpleNamespace

import boto3
import pytest
import yaml
from account import ACCOUNT, BUCKET, PLACE, REGION, ROLE
from botocore.exceptions import ClientError

from lab_utils import config as configuration
from lab_utils.machine.environment import read_pins
from lab_utils.sagemaker import container, endpoint, job, resources, session
from lab_utils.sagemaker.job import EvaluationJob, TrainingJob, evaluation_request, launch, training_request
from lab_utils.sagemaker.preflight import request_problems
from lab_utils.sagemaker.session import SageMakerError, caller, connect, local_copy, record

pytestmark = pytest.mark.component



def without_time(request: dict) -> str:
    """Return a request as text, without what differs between a dry run and a launch: time, random part and owner."""
    text = re.sub(r"-[0-9a-f]{6}(-eval-\d{10}|-\d{14})?\b", "-UNIQUE", json.dumps(request, sort_keys=True))
    return re.sub(r"\b(moto|you)\b", "OWNER", text)


def uploaded(aws, uri: str) -> dict[str, bytes]:
    bucket, prefix = job.bucket_and_key(uri)
    found = aws.s3.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")["Contents"]
    return {entry["Key"].removeprefix(f"{prefix}/"): aws.s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
            for entry in found}


# --- Training ---------------------------------------------------------------------------------------------------------


def test_the_request_of_a_training_job(aws, request_of, tmp_path):
    described = TrainingJob(recipe="countdown-grpo", hardware="a10g", **PLACE)
    name = launch(described, aws.session)
    request = request_of("CreateTrainingJob")
    folder = f"s3://{BUCKET}/moto/{name[:-15]}/{name}"
    assert re.fullmatch(r"rl-workshop-moto-countdown-grpo-[0-9a-f]{6}-\d{14}", name)
    assert request["TrainingJobName"] == name
    assert {channel["ChannelName"]: channel["DataSource"]["S3DataSource"]["S3Uri"]
            for channel in request["InputDataConfig"]} == {
                "code": f"{folder}/input/code", "sm_drivers": f"{folder}/input/sm_drivers"}
    assert request["ResourceConfig"]["InstanceType"] == "ml.g5.2xlarge"
    assert request["CheckpointConfig"] == {"S3Uri": f"{folder}/checkpoints", "LocalPath": "/opt/ml/checkpoints"}
    assert request["OutputDataConfig"]["S3OutputPath"] == f"s3://{BUCKET}/moto/{name[:-15]}"
    assert {"Key": "project", "Value": "rl-workshop"} in request["Tags"]
    assert {"Key": "owner", "Value": "moto"} in request["Tags"]
    assert "/pytorch:2.13-cu133" in request["AlgorithmSpecification"]["TrainingImage"]

    start = uploaded(aws, f"{folder}/input/sm_drivers")["sm_train.sh"].decode()
    assert "exec python -m lab_utils.sagemaker.container train\n" in start
    code = uploaded(aws, f"{folder}/input/code")
    assert not [name for name in code if "__pycache__" in name]

    recorded = training_request(described, tmp_path)
    assert without_time(recorded) == without_time(request), "a dry run shows exactly this"
    place = local_copy(tmp_path, recorded["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"])
    assert {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()} == set(code)


def test_every_option_reaches_the_request(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    described = TrainingJob(
        recipe="countdown-grpo", hardware="a10g-x4", **PLACE, stages=("grpo",), overrides=("grpo.beta=0.04", "seed=1"),
        limit=50, evaluate=False, model=str(tmp_path / "model"), data="s3://elsewhere/my-data", prefix="my-class",
        image="123456789012.dkr.ecr.us-east-1.amazonaws.com/mine:1", volume_gb=50, max_run_hours=2, spot=True,
        max_wait_hours=5, checkpoints="s3://elsewhere/checkpoints", environment={"A": "b"}, tags={"team": "red"},
        keep_alive_minutes=15, entry_point="python -u scripts/train.py", instances=3,
    )
    request = training_request(described, tmp_path / "recorded")
    channels = {channel["ChannelName"]: channel["DataSource"]["S3DataSource"]["S3Uri"]
                for channel in request["InputDataConfig"]}
    assert channels["data"] == "s3://elsewhere/my-data"
    assert (local_copy(tmp_path / "recorded", channels["model"]) / "config.json").read_text() == "{}"
    code = local_copy(tmp_path / "recorded", channels["code"])
    assert yaml.safe_load((code / "job.yaml").read_text()) == {
        "kind": "train", "recipe": "countdown-grpo", "hardware": "a10g-x4", "stages": ["grpo"], "limit": 50,
        "evaluate": False, "overrides": ["grpo.beta=0.04", "seed=1", "tracking.print_metrics=true"], "processes": 4}
    start = (local_copy(tmp_path / "recorded", channels["sm_drivers"]) / "sm_train.sh").read_text()
    assert "exec python -u scripts/train.py\n" in start
    assert request["TrainingJobName"].startswith("my-class-you-countdown-grpo-")
    assert request["HyperParameters"] == {"recipe": "countdown-grpo", "hardware": "a10g-x4", "stages": "grpo",
                                          "limit": "50", "grpo-beta": "0.04", "seed": "1"}
    assert request["EnableManagedSpotTraining"] is True
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 7200, "MaxWaitTimeInSeconds": 18000}
    assert request["ResourceConfig"] == {"InstanceType": "ml.g5.12xlarge", "InstanceCount": 3, "VolumeSizeInGB": 50,
                                         "KeepAlivePeriodInSeconds": 900}
    assert request["CheckpointConfig"]["S3Uri"] == "s3://elsewhere/checkpoints"
    assert request["Environment"]["A"] == "b" and {"Key": "team", "Value": "red"} in request["Tags"]
    assert request["AlgorithmSpecification"]["TrainingImage"].endswith("/mine:1")
    assert any(metric["Name"] == "grpo:kl" for metric in request["AlgorithmSpecification"]["MetricDefinitions"])


def test_only_gpu_tiers_install_vllm(tmp_path):
    """On a CPU container vllm's CUDA build of torchcodec makes importing TRL fail."""
    packages = {}
    for hardware in ("cpu", "a10g"):
        described = TrainingJob(recipe="countdown-grpo", hardware=hardware, **PLACE)
        (tmp_path / hardware).mkdir()
        packages[hardware] = read_pins(job.package_source(described, tmp_path / hardware) / "requirements.txt")
    assert set(packages["a10g"]) - set(packages["cpu"]) == {"vllm", "bitsandbytes"}


def test_your_own_recipe_travels_as_a_file(tmp_path):
    """With an apostrophe, which would end the job if it went through a hyperparameter."""
    own = tmp_path / "my_recipe.yaml"
    own.write_text((configuration.RECIPES / "gsm8k-grpo.yaml").read_text(encoding="utf-8") + "# it's mine\n")
    request = training_request(TrainingJob(recipe=str(own), hardware="a10g", **PLACE), tmp_path / "recorded")
    assert request["TrainingJobName"].startswith("rl-workshop-you-my-recipe-")
    assert request["HyperParameters"]["recipe"] == "my_recipe"
    [copy] = (tmp_path / "recorded").rglob("recipes/my_recipe.yaml")
    assert yaml.safe_load(copy.read_text()) == yaml.safe_load(own.read_text())


@pytest.mark.parametrize(("entry_point", "files", "command"), [
    ("mine.py", {"mine.py"}, "python mine.py"),
    ("bash run.sh --fast", {"run.sh"}, "bash run.sh --fast"),
    ("python own/train.py", {"own/train.py"}, "python own/train.py"),
    ("python -m own.train", {"own/train.py", "own/rewards.py"}, "python -m own.train"),
    ("{folder}/mine.py --lr 1e-4", {"mine.py"}, "python mine.py --lr 1e-4"),
])
def test_the_entry_point_brings_the_files_that_it_names(tmp_path, monkeypatch, entry_point, files, command):
    for name in ("mine.py", "run.sh", "own/train.py", "own/rewards.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("print('mine')")
    monkeypatch.chdir(tmp_path)
    described = TrainingJob(recipe="countdown-grpo", hardware="cpu", **PLACE,
                            entry_point=entry_point.format(folder=tmp_path))
    code = job.package_source(described, tmp_path / "source")
    packed = {path.relative_to(code).as_posix() for path in code.rglob("*")}
    assert packed & {"mine.py", "run.sh", "own/train.py", "own/rewards.py"} == files
    assert job.command_of(described) == command and (code / "lab_utils" / "sagemaker" / "container.py").exists()


def test_your_own_packages_data_and_secret_travel_with_the_job(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("sympy==1.14.0")
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"{split}.jsonl").write_text("{}\n")
    described = TrainingJob(recipe="countdown-grpo", hardware="cpu", requirements=str(tmp_path / "mine.txt"),
                            data=str(tmp_path / "train"), test_data=str(tmp_path / "test"),
                            wandb_secret="rl-workshop-wandb", **PLACE)
    request = training_request(described, tmp_path / "recorded")
    places = {channel["ChannelName"]: channel["DataSource"]["S3DataSource"]["S3Uri"]
              for channel in request["InputDataConfig"]}
    code, train, test = (local_copy(tmp_path / "recorded", places[name]) for name in ("code", "train", "test"))
    assert (train / "train.jsonl").exists() and (test / "test.jsonl").exists() and "data" not in places
    assert read_pins(code / "requirements.txt")["sympy"] == "1.14.0" and "trl" in read_pins(code / "requirements.txt")
    assert "tracking.wandb=true" in yaml.safe_load((code / "job.yaml").read_text())["overrides"]
    assert request["Environment"][container.WANDB_SECRET] == "rl-workshop-wandb"

    monkeypatch.setattr(container, "ML", tmp_path / "ml")
    shutil.copytree(train, tmp_path / "ml" / "input" / "data" / "train")
    shutil.copytree(test, tmp_path / "ml" / "input" / "data" / "test")
    assert {path.name for path in container.joined_data().iterdir()} == {"train.jsonl", "test.jsonl"}


@pytest.mark.parametrize("stored", ["{key}", '{{"WANDB_API_KEY": "{key}"}}'])
def test_the_key_of_wandb_comes_from_a_secret(aws, monkeypatch, stored):
    key = "k" * 40
    boto3.client("secretsmanager").create_secret(Name="rl-workshop-wandb", SecretString=stored.format(key=key))
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv(container.WANDB_SECRET, "rl-workshop-wandb")
    container.fetch_wandb_key()
    assert os.environ["WANDB_API_KEY"] == key and container.redact(f"wandb: {key}") == "wandb: [WANDB_API_KEY]"
    monkeypatch.setenv(container.WANDB_SECRET, "rl-workshop-other")
    with pytest.raises(container.JobError, match="'rl-workshop-other' .ResourceNotFoundException.*execution role"):
        container.fetch_wandb_key()


# --- A private network and a key --------------------------------------------------------------------------------------

KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
PRIVATE = session.NetworkAndKey(("subnet-0a", "subnet-0b"), ("sg-0c",), KEY)
VPC = {"Subnets": ["subnet-0a", "subnet-0b"], "SecurityGroupIds": ["sg-0c"]}


@pytest.mark.parametrize(("hardware", "disk"), [("cpu", {"VolumeKmsKeyId": KEY}), ("a10g", {})])
def test_network_and_key_reach_every_request(little_source, hardware, disk):
    """An instance with a local disk refuses a key for it."""
    place = {"recipe": "countdown-grpo", "hardware": hardware, **PLACE, "network": PRIVATE}
    training = training_request(TrainingJob(**place))
    assert training["VpcConfig"] == VPC and training["OutputDataConfig"]["KmsKeyId"] == KEY
    assert disk.items() <= training["ResourceConfig"].items()
    assert ("VolumeKmsKeyId" in training["ResourceConfig"]) == bool(disk)
    evaluation = evaluation_request(EvaluationJob(**place, model="s3://b/m.tar.gz"))
    assert evaluation["NetworkConfig"] == {"VpcConfig": VPC}
    assert evaluation["ProcessingOutputConfig"]["KmsKeyId"] == KEY
    assert ("VolumeKmsKeyId" in evaluation["ProcessingResources"]["ClusterConfig"]) == bool(disk)
    assert request_problems("CreateTrainingJob", training) == request_problems("CreateProcessingJob", evaluation) == []
    described = endpoint.Deployment(name="demo", **SERVED, network=PRIVATE)
    serving = endpoint.endpoint_requests(described)
    assert serving["CreateModel"]["VpcConfig"] == VPC and "KmsKeyId" not in serving["CreateEndpointConfig"]
    without = training_request(TrainingJob(**place | {"network": session.NetworkAndKey()}))
    assert "VpcConfig" not in without and "KmsKeyId" not in without["OutputDataConfig"]


def test_uploads_are_encrypted_with_the_key(aws, little_source, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    place = {"recipe": "countdown-grpo", "hardware": "cpu", **PLACE, "network": PRIVATE,
             "model": str(tmp_path / "model")}
    launch(TrainingJob(**place), aws.session)
    launch(EvaluationJob(**place), aws.session)
    found = aws.s3.list_objects_v2(Bucket=BUCKET)["Contents"]
    keys = {entry["Key"]: aws.s3.head_object(Bucket=BUCKET, Key=entry["Key"]).get("SSEKMSKeyId") for entry in found}
    assert len(keys) > 5 and set(keys.values()) == {KEY}, keys


def test_network_and_key_come_from_the_defaults_file_of_the_sdk(tmp_path, monkeypatch):
    vpc = {"VpcConfig": VPC}
    defaults = {"SchemaVersion": "1.0", "SageMaker": {
        "TrainingJob": {**vpc, "OutputDataConfig": {"KmsKeyId": "train"}},
        "ProcessingJob": {"NetworkConfig": vpc, "ProcessingOutputConfig": {"KmsKeyId": "evaluate"}},
        "Model": vpc, "EndpointConfig": {"KmsKeyId": "deploy"}}}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(defaults))
    monkeypatch.setenv("SAGEMAKER_USER_CONFIG_OVERRIDE", str(file))
    for command in ("train", "evaluate", "deploy"):
        expected = session.NetworkAndKey(("subnet-0a", "subnet-0b"), ("sg-0c",), command)
        assert session.network_and_key(command, (), (), None) == expected
    given = session.network_and_key("train", ["subnet-1"], ["sg-1"], "mine")
    assert given == session.NetworkAndKey(("subnet-1",), ("sg-1",), "mine")
    file.write_text("SageMaker: {TrainingJob: {VpcConfig: 1}}")
    with pytest.raises(SageMakerError, match="defaults file is not valid .*: correct"):
        session.network_and_key("train", (), (), None)


# --- Evaluation -------------------------------------------------------------------------------------------------------


def test_the_request_of_an_evaluation(aws, request_of):
    described = EvaluationJob(recipe="gsm8k-grpo", hardware="a10g", **PLACE, model="s3://b/job/output/model.tar.gz",
                              limit=20, max_run_hours=1)
    name = launch(described, aws.session)
    request = request_of("CreateProcessingJob")
    folder = f"s3://{BUCKET}/moto/{name}"
    assert re.fullmatch(r"rl-workshop-moto-gsm8k-grpo-\w{6}-eval-\d{10}", name)
    assert {item["InputName"]: (item["S3Input"]["S3Uri"], item["S3Input"]["LocalPath"])
            for item in request["ProcessingInputs"]} == {
                "code": (f"{folder}/input/code", "/opt/ml/processing/input/code"),
                "model": ("s3://b/job/output/model.tar.gz", "/opt/ml/processing/input/model")}
    [output] = request["ProcessingOutputConfig"]["Outputs"]
    assert output["S3Output"]["S3Uri"] == f"{folder}/output"
    assert output["S3Output"]["LocalPath"] == "/opt/ml/processing/output"
    assert request["AppSpecification"]["ContainerEntrypoint"][2].endswith(
        "exec python -m lab_utils.sagemaker.container evaluate")
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600}
    description = yaml.safe_load(uploaded(aws, f"{folder}/input/code")["job.yaml"])
    assert (description["kind"], description["limit"]) == ("evaluate", 20)
    assert without_time(evaluation_request(described)) == without_time(request)


# --- Following, fetching ----------------------------------------------------------------------------------------------


def log(aws, name: str, lines: list[str]) -> None:
    """Write the log of a training job."""
    logs, stream = aws.session.boto_session.client("logs"), {"logGroupName": "/aws/sagemaker/TrainingJobs"}
    logs.create_log_group(**stream)
    stream["logStreamName"] = f"{name}/algo-1-1"
    logs.create_log_stream(**stream)
    now = int(datetime.datetime.now().timestamp() * 1000)
    logs.put_log_events(**stream, logEvents=[{"timestamp": now + i, "message": line} for i, line in enumerate(lines)])


def finish(aws, name: str, files: dict[str, str]) -> None:
    """Leave an output.tar.gz of `files`, as a completed job does."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    prefix = f"moto/{name.rsplit('-', 1)[0]}/{name}/output"
    for file in ("output.tar.gz", "model.tar.gz"):
        aws.s3.put_object(Bucket=BUCKET, Key=f"{prefix}/{file}", Body=packed.getvalue())


def test_a_completed_job_is_followed_and_becomes_run_directories(aws, tmp_path, start_job):
    name = start_job()
    with pytest.raises(SageMakerError, match="has no s3://.*output.tar.gz: wait until"):
        job.download(name, aws.session, tmp_path / "out")
    log(aws, name, ["hello", "metrics sft step=1 of=3 loss=2.5"])
    finish(aws, name, {"sft/config.yaml": "a: 1", "grpo/config.yaml": "a: 1", "grpo/metrics.jsonl": "{}"})
    lines = []
    ended = job.follow(name, aws.session, lines.append, poll=0)
    assert ended.status == "Completed" and lines == ["hello", "metrics sft step=1 of=3 loss=2.5"]
    assert job.download(name, aws.session, tmp_path / "out") == [tmp_path / "out/grpo", tmp_path / "out/sft"]
    assert (tmp_path / "out/grpo/metrics.jsonl").read_text() == "{}"
    assert not list((tmp_path / "out").glob("*.tar.gz"))
    with pytest.raises(SageMakerError, match="not empty"):
        job.download(name, aws.session, tmp_path / "out")


def test_every_log_line_comes_once_and_in_order(aws, monkeypatch, start_job):
    """An empty page is not the end of a log: the end repeats its token."""
    name = start_job()
    pages = {None: (["a"], "1"), "1": ([], "2"), "2": (["b"], "3"), "3": ([], "3")}

    class Logs:
        exceptions = aws.session.boto_session.client("logs").exceptions

        def describe_log_streams(self, **arguments):
            return {"logStreams": [{"logStreamName": f"{name}/algo-1-1"}]}

        def get_log_events(self, nextToken=None, **arguments):
            lines, token = pages[nextToken]
            return {"events": [{"message": line} for line in lines], "nextForwardToken": token}

    now, tokens = job.status(name, aws.session), {}
    monkeypatch.setattr(aws.session.boto_session, "client", lambda service: Logs())
    assert list(job._new_log_lines(now, aws.session, tokens)) == ["a", "b"]
    pages["3"] = (["c"], "3")
    assert list(job._new_log_lines(now, aws.session, tokens)) == ["c"]


def test_results_of_an_evaluation_are_fetched(aws, tmp_path, little_source):
    name = launch(EvaluationJob(recipe="gsm8k-grpo", hardware="cpu", **PLACE, model="s3://b/m.tar.gz"), aws.session)
    aws.s3.put_object(Bucket=BUCKET, Key=f"moto/{name}/output/eval.json", Body=b"{}")
    assert job.status(name, aws.session).kind == "processing"
    aws.backend.processing_jobs[name].failure_reason = "AlgorithmError: See job logs for more information"
    aws.backend.processing_jobs[name].exit_message = "OSError: no model"
    assert job.status(name, aws.session).detail == "OSError: no model"
    assert job.download(name, aws.session, tmp_path) == [tmp_path / "eval.json"]


# --- Endpoints, and the end -------------------------------------------------------------------------------------------

# moto knows no newer GPU than this one's; it does not serve bfloat16, and the preflight would say so
SERVED = {"model": "s3://b/job/output/model.tar.gz", "role": ROLE, "region": REGION, "instance_type": "ml.g4dn.xlarge"}


def test_an_endpoint_is_created_asked_and_deleted(aws, request_of, monkeypatch):
    described = endpoint.Deployment(name="rl-workshop-demo", **SERVED)
    endpoint.deploy(described, aws.session)
    assert {name: body for name, body in aws.sent if name.startswith("Create")} == endpoint.endpoint_requests(described)
    container = request_of("CreateModel")["PrimaryContainer"]
    assert container["ModelDataSource"]["S3DataSource"] == {
        "S3Uri": SERVED["model"], "S3DataType": "S3Object", "CompressionType": "Gzip"}
    assert container["Environment"] == {"SM_VLLM_SERVED_MODEL_NAME": "rl-workshop"}, "vLLM takes the model's own length"
    shorter = endpoint.endpoint_requests(endpoint.Deployment(name="demo", max_model_len=512, **SERVED))["CreateModel"]
    assert shorter["PrimaryContainer"]["Environment"]["SM_VLLM_MAX_MODEL_LEN"] == "512"
    endpoint.wait_until_in_service("rl-workshop-demo", aws.session, poll=0)

    said = {"choices": [{"message": {"content": "#### 7"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 4}}
    asked = []

    def invoke_endpoint(EndpointName, ContentType, Body):
        asked.append(json.loads(Body))
        return {"Body": io.BytesIO(json.dumps(said).encode())}

    monkeypatch.setattr(aws.session.sagemaker_runtime_client, "invoke_endpoint", invoke_endpoint)
    messages = [{"role": "user", "content": "3 + 4?"}]
    answer = endpoint.invoke("rl-workshop-demo", messages, aws.session)
    assert answer == endpoint.Answer("#### 7", 4, "stop")
    assert asked == [{"model": "rl-workshop", "messages": messages, "temperature": 0.0}]

    [running], _ = resources.running(aws.session)
    assert (running.kind, running.instances, running.usd_per_hour) == ("endpoint", "1 × ml.g4dn.xlarge", 0.736)
    assert "delete rl-workshop-demo" in str(running)
    assert resources.delete("rl-workshop-demo", aws.session) == [
        "endpoint rl-workshop-demo", "endpoint configuration rl-workshop-demo", "model rl-workshop-demo"]
    assert resources.running(aws.session) == ([], [])
    with pytest.raises(SageMakerError, match="no training or processing job"):
        resources.delete("rl-workshop-demo", aws.session)


def test_an_endpoint_that_fails_says_why(aws):
    endpoint.deploy(endpoint.Deployment(name="demo", **SERVED), aws.session)
    aws.backend.endpoints["demo"].endpoint_status = "Failed"
    aws.backend.endpoints["demo"].failure_reason = "CannotStartContainerError"
    with pytest.raises(SageMakerError, match=r"demo is Failed \(CannotStart.*launch_sagemaker.py delete demo"):
        endpoint.wait_until_in_service("demo", aws.session, poll=0)


def test_an_endpoint_that_is_being_created_is_deleted_when_it_is_up(aws, monkeypatch):
    endpoint.deploy(endpoint.Deployment(name="demo", **SERVED), aws.session)
    made = aws.backend.endpoints["demo"]
    made.endpoint_status, waited = "Creating", []

    def sleep(seconds):
        waited.append(seconds)
        made.endpoint_status = "InService"

    monkeypatch.setattr("lab_utils.sagemaker.resources.time.sleep", sleep)
    assert resources.delete("demo", aws.session, poll=7)[0] == "endpoint demo" and waited == [7]


def test_a_refused_endpoint_leaves_nothing_behind(aws, monkeypatch):
    def refused(**request):
        raise RuntimeError("ResourceLimitExceeded")

    monkeypatch.setattr(aws.session.sagemaker_client, "create_endpoint", refused)
    with pytest.raises(RuntimeError, match="ResourceLimitExceeded"):
        endpoint.deploy(endpoint.Deployment(name="demo", **SERVED), aws.session)
    assert not aws.session.sagemaker_client.list_models()["Models"]
    assert not aws.session.sagemaker_client.list_endpoint_configs()["EndpointConfigs"]


def test_an_endpoint_of_the_same_name_is_neither_replaced_nor_deleted(aws, monkeypatch):
    """With a model of its own name: the model could be created, then the configuration was refused."""
    assert endpoint.name_problems("demo", aws.session) == []
    endpoint.deploy(endpoint.Deployment(name="demo", **SERVED), aws.session)
    aws.session.sagemaker_client.delete_model(ModelName="demo")
    assert "--name demo is taken by an existing endpoint" in endpoint.name_problems("demo", aws.session)[0]

    def refused(**request):  # moto would replace it
        raise ClientError({"Error": {"Code": "ValidationException", "Message": "already exists"}}, "Create")

    monkeypatch.setattr(aws.session.sagemaker_client, "create_endpoint_config", refused)
    with pytest.raises(ClientError, match="already exists"):
        endpoint.deploy(endpoint.Deployment(name="demo", **SERVED), aws.session)
    assert aws.session.sagemaker_client.describe_endpoint(EndpointName="demo")["EndpointStatus"] == "InService"
    assert aws.session.sagemaker_client.list_endpoint_configs()["EndpointConfigs"]
    assert not aws.session.sagemaker_client.list_models()["Models"]


def test_a_log_that_must_stay_does_not_keep_the_job(aws, start_job):
    name = start_job()
    log(aws, name, ["hello"])
    aws.denied.add("DeleteLogStream")
    assert resources.delete(name, aws.session)[-1] == f"training job {name}"
    assert name not in aws.backend.training_jobs


def test_a_job_that_another_one_needs_is_not_deleted(aws, start_job):
    first = start_job()
    checkpoints = job.status(first, aws.session).checkpoints
    prefix = job.bucket_and_key(checkpoints)[1]
    aws.s3.put_object(Bucket=BUCKET, Key=f"{prefix}/x", Body=b"x")
    second = start_job("InProgress", checkpoints=checkpoints)
    with pytest.raises(SageMakerError, match=f"{second} keeps its checkpoints"):
        resources.delete(first, aws.session)
    assert first in aws.backend.training_jobs
    assert aws.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["KeyCount"]


def test_what_others_have_created_is_not_listed_and_what_is_not_ours_not_deleted(aws, start_job):
    mine, other = start_job(), start_job(tags={"owner": "anna"})
    assert resources.created(aws.session, owner=caller(aws.session)) == [mine]
    assert set(resources.created(aws.session)) == {mine, other}
    assert resources.created(aws.session, "rl-workshop-mot") == [], "a prefix ends at a hyphen"
    aws.session.sagemaker_client.create_model(ModelName="theirs", ExecutionRoleArn=ROLE)
    with pytest.raises(SageMakerError, match="theirs is not part of the workshop"):
        resources.delete("theirs", aws.session)


def test_what_costs_money_is_listed(aws, start_job):
    name = start_job("InProgress", hardware="a10g")
    aws.session.sagemaker_client.create_notebook_instance(
        NotebookInstanceName="old", InstanceType="ml.m5.xlarge", RoleArn=ROLE)
    aws.apps.append({"AppName": "default", "SpaceName": "mine", "Status": "InService",
                     "CreationTime": datetime.datetime.now(datetime.UTC),
                     "ResourceSpec": {"InstanceType": "ml.g5.xlarge"}})
    found = {row.kind: row for row in resources.running(aws.session)[0]}
    assert set(found) == {"training job", "notebook instance", "Studio app"}
    assert found["training job"].usd_per_hour == 1.515 and found["training job"].hours < 1
    assert f"stop {name}" in str(found["training job"]) and found["Studio app"].name == "mine/default"
    aws.denied.add("ListApps")
    endpoint.deploy(endpoint.Deployment(name="demo", **SERVED), aws.session)
    aws.session.sagemaker_client.delete_endpoint_config(EndpointConfigName="demo")  # before the endpoint itself
    visible, hidden = resources.running(aws.session)
    found = {row.kind: row for row in visible}
    assert set(found) == {"training job", "notebook instance", "endpoint"} and hidden == ["Apps"]
    assert "price unknown" in str(found["endpoint"])


def test_nothing_is_left_over(aws, start_job):
    """Training, evaluation and endpoint; then everything that the workshop has created is deleted, and no more."""
    aws.s3.put_object(Bucket=BUCKET, Key="mine/notes.txt", Body=b"keep")
    train = start_job()
    finish(aws, train, {"sft/config.yaml": ""})
    log(aws, train, ["hello"])
    launch(EvaluationJob(recipe="countdown-grpo", hardware="smoke", **PLACE, model="s3://b/m.tar.gz"), aws.session)
    endpoint.deploy(endpoint.Deployment(name="rl-workshop-demo", **SERVED), aws.session)
    client = aws.session.sagemaker_client
    client.create_model(ModelName="rl-workshop-not-ours", ExecutionRoleArn=ROLE)  # without our tag

    names = resources.created(aws.session)
    assert len(names) == 3
    deleted = [what for name in names for what in resources.delete(name, aws.session)]
    assert f"log /aws/sagemaker/TrainingJobs/{train}/algo-1-1" in deleted
    assert resources.created(aws.session) == []
    assert [entry["Key"] for entry in aws.s3.list_objects_v2(Bucket=BUCKET)["Contents"]] == ["mine/notes.txt"]
    assert not client.list_training_jobs()["TrainingJobSummaries"]
    assert not client.list_processing_jobs()["ProcessingJobSummaries"]
    assert not client.list_endpoints()["Endpoints"] and not client.list_endpoint_configs()["EndpointConfigs"]
    assert [model["ModelName"] for model in client.list_models()["Models"]] == ["rl-workshop-not-ours"]


# --- Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("studio", "arn", "owner"), [
    ('{"UserProfileName": "anna", "SpaceName": "work"}', "assumed-role/Studio/SageMaker", "anna"),
    ('{"SpaceName": "work"}', "assumed-role/Studio/SageMaker", "work"),
    (None, "assumed-role/Team/anna@example.org", "Team/anna@example.org"),
    (None, "user/learners/anna", "anna"),
    (None, "assumed-role/Studio/SageMaker", None),
    ('{"ResourceName": "default"}', "root", None),
])
def test_everyone_in_studio_has_a_name(aws, monkeypatch, tmp_path, studio, arn, owner):
    """In Studio a role ends in "SageMaker" for all users, and --all of one would delete the work of the class."""
    metadata = tmp_path / "resource-metadata.json"
    if studio:
        metadata.write_text(studio)
    monkeypatch.setattr(session, "STUDIO_METADATA", metadata)
    identity = SimpleNamespace(get_caller_identity=lambda: {"Arn": f"arn:aws:iam::{ACCOUNT}:{arn}"})
    monkeypatch.setattr(aws.session.boto_session, "client", lambda service: identity)
    if owner is not None:
        assert session.one_person(aws.session) == caller(aws.session) == owner
    else:
        with pytest.raises(SageMakerError, match="several people can be"):
            session.one_person(aws.session)


def test_names_are_unique_and_short_enough():
    names = {job.unique_name("rl-workshop", owner, "reasoning-sft-grpo") for owner in ["anna", "ben"] * 30}
    assert len(names) == 60 and all(name.startswith(("rl-workshop-anna-", "rl-workshop-ben-")) for name in names)
    longest = job.unique_name("a" * 20, "AWSReservedSSO_Power/anna.b+test@example.org", "a_very_long.recipe_of-my-own")
    assert re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", f"{longest}-20260101000000") and len(longest) <= 48
    assert len(f"{longest}-eval-0101000000") <= 63


# --- The connection ---------------------------------------------------------------------------------------------------


def test_without_a_region_or_credentials_one_message_says_so(monkeypatch, tmp_path):
    with pytest.raises(SageMakerError, match="No AWS region is set: pass --region"):
        record(None, BUCKET, tmp_path)
    with pytest.raises(SageMakerError, match="No AWS credentials found: .*aws configure"):
        connect(REGION, BUCKET)
