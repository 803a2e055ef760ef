"""The workshop on SageMaker: train, evaluate, deploy, ask, and see what runs and what it costs.

    python scripts/launch_sagemaker.py train --recipe countdown-grpo --hardware a10g --dry-run
    python scripts/launch_sagemaker.py train --recipe countdown-grpo --hardware a10g --spot --max-wait-hours 12
    python scripts/launch_sagemaker.py train --recipe countdown-grpo --hardware cpu --wait --output-dir outputs/cloud
    python scripts/launch_sagemaker.py evaluate --recipe countdown-grpo --hardware a10g --job TRAINING_JOB --wait
    python scripts/launch_sagemaker.py deploy --job TRAINING_JOB --wait
    python scripts/launch_sagemaker.py invoke ENDPOINT --recipe countdown-grpo --question "3 7 25 46"
    python scripts/launch_sagemaker.py status [JOB]
    python scripts/launch_sagemaker.py delete NAME

--role and --bucket may stand in SAGEMAKER_ROLE and SAGEMAKER_BUCKET. --dry-run needs no account. The exit status is 2,
with one message and no traceback, where something that you gave cannot work; 1 where the job failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

from lab_utils import config as configuration
from lab_utils.sagemaker import cost
from lab_utils.sagemaker.job import PROJECT, EvaluationJob, TrainingJob
from lab_utils.sagemaker.session import SageMakerError, caller, connect, known_region


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[place, *parents], allow_abbrev=False)

    place, job, wait, yes = (argparse.ArgumentParser(add_help=False) for _ in range(4))
    place.add_argument("--region", help="default: AWS_DEFAULT_REGION, or that of ~/.aws/config")
    recipes = ", ".join(configuration.recipe_names())
    job.add_argument("--recipe", required=True, help=f"what is learned: {recipes}, or your own .yaml file")
    job.add_argument("--hardware", required=True, help=f"the tier: {', '.join(configuration.hardware_names())}")
    job.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings",
                     help="change a setting, such as grpo.beta=0.04; may be repeated")
    job.add_argument("--hyperparameters", metavar="JSON",
                     help='the same as one JSON object, {"grpo.beta": 0.04}, or a file of it')
    job.add_argument("--limit", type=int, help="at most this many problems, demonstrations and test questions")
    job.add_argument("--role", default=os.environ.get("SAGEMAKER_ROLE", ""), help="ARN of the execution role")
    job.add_argument("--bucket", default=os.environ.get("SAGEMAKER_BUCKET", ""), help="for source and outputs")
    job.add_argument("--instance-type", help="default: that of the tier; `cost` lists them")
    job.add_argument("--data", help="a folder, here or in S3, with train.jsonl and test.jsonl")
    job.add_argument("--job-prefix", default=PROJECT, help=f"job names begin with it; default: {PROJECT}")
    job.add_argument("--image", help="your own container in ECR; default: AWS's PyTorch container")
    job.add_argument("--volume-gb", type=int, default=100)
    job.add_argument("--max-run-hours", type=float, default=6.0, help="SageMaker stops the job then; default: 6")
    job.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="in the container; no secrets")
    job.add_argument("--tag", action="append", default=[], metavar="NAME=VALUE")
    wait.add_argument("--wait", action="store_true", help="show log and progress until it has ended")
    wait.add_argument("--dry-run", action="store_true", help="print the exact request and what it costs; send nothing")
    yes.add_argument("--yes", action="store_true", help="do not ask")
    wait.add_argument("--ask-above", type=float, default=cost.ASK_ABOVE, metavar="USD",
                      help=f"ask where the ceiling is higher, or the price not known; default: {cost.ASK_ABOVE:g}")

    train = command("train", "start a training job", job, wait, yes)
    train.add_argument("--stages", help="only these, such as sft or sft,grpo; those of the recipe by default")
    train.add_argument("--model", help="start model, such as an SFT model: its folder, or a model.tar.gz in S3")
    train.add_argument("--no-evaluate", action="store_true", help="do not evaluate every stage's model at the end")
    train.add_argument("--spot", action="store_true", help="spare capacity: up to 90%% cheaper, may be interrupted")
    train.add_argument("--max-wait-hours", type=float, help="with --spot: for waiting and training together")
    train.add_argument("--keep-alive-minutes", type=int, default=0, help="keep the instance warm for the next job")
    train.add_argument("--resume", metavar="JOB", help="go on from the checkpoints of a job that was stopped")
    train.add_argument("--entry-point", default=TrainingJob.entry_point,
                       help="what runs in the source directory, for a script of your own in lab_utils or scripts")
    train.add_argument("--output-dir", type=Path, help="with --wait: fetch the run directories to here")

    evaluate = command("evaluate", "evaluate a model as a processing job", job, wait, yes)
    source = evaluate.add_mutually_exclusive_group(required=True)
    source.add_argument("--job", help="the training job whose model is evaluated")
    source.add_argument("--model", help="or a model.tar.gz in S3, or a local folder")
    evaluate.add_argument("--output-dir", type=Path, help="with --wait: fetch the results to here")

    deploy = command("deploy", "serve a model on a vLLM endpoint, which costs money until it is deleted", wait, yes)
    source = deploy.add_mutually_exclusive_group(required=True)
    source.add_argument("--job", help="the training job whose model is served")
    source.add_argument("--model", help="or its model.tar.gz in S3")
    deploy.add_argument("--name", help="of the endpoint; default: rl-workshop-DATE")
    deploy.add_argument("--role", default=os.environ.get("SAGEMAKER_ROLE", ""), help="ARN of the execution role")
    deploy.add_argument("--instance-type", default="ml.g5.xlarge")
    deploy.add_argument("--image", help="your own container; default: AWS's vLLM container")
    deploy.add_argument("--max-model-len", type=int, default=2048, help="tokens of prompt and completion")

    invoke = command("invoke", "ask an endpoint")
    invoke.add_argument("name")
    invoke.add_argument("--recipe", required=True, help="whose prompt the model was trained on")
    invoke.add_argument("--question", required=True, help="a word problem; for Countdown the numbers and the target")
    invoke.add_argument("--max-tokens", type=int, default=512)
    invoke.add_argument("--temperature", type=float, default=0.0)

    status = command("status", "one job, or everything that runs and costs money")
    status.add_argument("name", nargs="?", help="a job")
    status.add_argument("--logs", action="store_true", help="print its log")
    status.add_argument("--output-dir", type=Path, help="fetch its outputs to here")

    stop = command("stop", "stop a job; training saves a checkpoint first")
    stop.add_argument("name")

    delete = command("delete", "delete endpoints, or jobs with all that they have in S3", yes)
    delete.add_argument("name", nargs="*")
    delete.add_argument("--all", action="store_true", help="everything that you have created in the region")
    delete.add_argument("--everyone", action="store_true", help="with --all: what the others have created, too")
    delete.add_argument("--job-prefix", default=PROJECT, help="with --all: what the names begin with")

    prices = command("cost", "prices of the instances")
    prices.add_argument("--refresh", action="store_true", help="ask AWS's price list, and remember")
    return parser.parse_args(argv)


# --- The commands -----------------------------------------------------------------------------------------------------


def train_or_evaluate(arguments: argparse.Namespace) -> int:
    from lab_utils.sagemaker import job as jobs
    from lab_utils.sagemaker import preflight

    job = described_job(arguments)
    stop_at(preflight.job_problems(job))
    operation = "CreateTrainingJob" if arguments.command == "train" else "CreateProcessingJob"
    request = (jobs.training_request if arguments.command == "train" else jobs.evaluation_request)(job)
    stop_at(preflight.request_problems(operation, request))
    expected = cost.cost_of(job)
    if arguments.dry_run:
        print(json.dumps(request, indent=2))
        print(f"{expected}\nDry run: the request above is {operation}; nothing was sent.", file=sys.stderr)
        return 0
    print(expected)
    session = connect(job.region, job.bucket)
    stop_at(preflight.account_problems(job, session))
    confirm(arguments, expected.ceiling)
    name = jobs.launch(job, session)
    print(f"Started {name}. Its state: launch_sagemaker.py status {name}; to stop it: launch_sagemaker.py stop {name}")
    if not arguments.wait:
        return 0
    finished = follow_with_bar(name, session)
    if arguments.output_dir and finished.status != "Failed":
        for path in jobs.download(name, session, arguments.output_dir):
            print(f"fetched {path}")
    return 0 if finished.status == "Completed" else 1  # "Stopped" may mean by its limit of hours


def described_job(arguments: argparse.Namespace) -> TrainingJob | EvaluationJob:
    """The job that the options describe."""
    settings = list(arguments.settings)
    if arguments.hyperparameters:
        for name, value in as_json(arguments.hyperparameters).items():
            settings.append(f"{name}={value if isinstance(value, str) else json.dumps(value)}")
    options = {
        "recipe": arguments.recipe,
        "hardware": arguments.hardware,
        "role": arguments.role,
        "bucket": arguments.bucket,
        "region": known_region(arguments.region),
        "instance_type": arguments.instance_type,
        "overrides": tuple(settings),
        "limit": arguments.limit,
        "model": arguments.model,
        "data": arguments.data,
        "prefix": arguments.job_prefix,
        "image": arguments.image,
        "volume_gb": arguments.volume_gb,
        "max_run_hours": arguments.max_run_hours,
        "environment": pairs("--env", arguments.env),
        "tags": pairs("--tag", arguments.tag),
    }
    if arguments.command == "evaluate":
        return EvaluationJob(**options | {"model": arguments.model or model_of_job(arguments)})
    return TrainingJob(
        **options,
        stages=tuple(arguments.stages.split(",")) if arguments.stages else None,
        evaluate=not arguments.no_evaluate,
        spot=arguments.spot,
        max_wait_hours=arguments.max_wait_hours,
        keep_alive_minutes=arguments.keep_alive_minutes,
        checkpoints=checkpoints_of_job(arguments) if arguments.resume else None,
        entry_point=arguments.entry_point,
    )


def deploy(arguments: argparse.Namespace) -> int:
    from lab_utils.sagemaker import endpoint, preflight

    region = known_region(arguments.region)
    deployment = endpoint.Deployment(
        name=arguments.name or f"{PROJECT}-{time.strftime('%Y%m%d%H%M%S')}",
        model=arguments.model or model_of_job(arguments),
        role=arguments.role,
        region=region,
        instance_type=arguments.instance_type,
        image=arguments.image,
        max_model_len=arguments.max_model_len,
    )
    stop_at(endpoint.deployment_problems(deployment))
    requests = endpoint.endpoint_requests(deployment)
    stop_at([problem for operation, body in requests.items()
             for problem in preflight.request_problems(operation, body)])
    price = cost.price(deployment.instance_type, region)
    hourly = f"{price.usd:g} USD an hour, {24 * price.usd:.2f} a day ({price.source})" if price else "not known here"
    expected = f"Cost: {deployment.instance_type} in {region}, {hourly}, used or not, until you delete it."
    if arguments.dry_run:
        print(json.dumps(requests, indent=2))
        print(f"{expected}\nDry run: nothing was sent.", file=sys.stderr)
        return 0
    print(expected)
    session = connect(region, "")
    deployment = dataclasses.replace(deployment, tags={"owner": caller(session), **deployment.tags})
    stop_at([*preflight.missing_inputs({"--model": deployment.model}, session),
             *preflight.quota_problems(deployment.instance_type, "endpoint", session)])
    confirm(arguments, price and 24 * price.usd)
    print(f"Creating the endpoint {deployment.name} ...")
    endpoint.deploy(deployment, session)
    print(f"Created the endpoint {deployment.name}; it takes 5 to 10 minutes to serve.\n"
          f"Delete it when you have finished: launch_sagemaker.py delete {deployment.name}")
    if arguments.wait:
        endpoint.wait_until_in_service(deployment.name, session)
        print(f"{deployment.name} serves.")
    return 0


def invoke(arguments: argparse.Namespace) -> int:
    from lab_utils.sagemaker import endpoint
    from lab_utils.sharing.chat import QuestionError, as_prompt
    from lab_utils.tasks import load_task

    task_settings = configuration.load(arguments.recipe, "cpu").task
    task = load_task(task_settings.name, task_settings.response_format)
    try:
        prompt = as_prompt(task, arguments.question)
    except QuestionError as error:
        raise SageMakerError(str(error)) from None
    answer = endpoint.invoke(arguments.name, prompt, connect(arguments.region, ""),
                             max_tokens=arguments.max_tokens, temperature=arguments.temperature)
    print(answer.text)
    cut = ", cut off by --max-tokens" if answer.finish_reason == "length" else ""
    print(f"\nextracted: {task.extract(answer.text)} ({answer.tokens} tokens{cut})")
    return 0


def status(arguments: argparse.Namespace) -> int:
    from lab_utils.sagemaker import job as jobs
    from lab_utils.sagemaker import resources

    session = connect(arguments.region, "")
    if arguments.name is None:
        found = resources.running(session)
        nothing = f"Nothing on SageMaker runs or costs money by the hour in {session.boto_region_name}."
        print("\n".join(map(str, found)) or nothing)
        hourly = sum(row.usd_per_hour or 0 for row in found)
        if hourly:
            print(f"Together {hourly:.2f} USD an hour, as far as the prices are known.")
        return 0
    print(jobs.status(arguments.name, session))
    if arguments.logs:
        for line in jobs.log_lines(arguments.name, session):
            print(line)
    if arguments.output_dir:
        for path in jobs.download(arguments.name, session, arguments.output_dir):
            print(f"fetched {path}")
    return 0


def stop(arguments: argparse.Namespace) -> int:
    from lab_utils.sagemaker import resources

    print(resources.stop(arguments.name, connect(arguments.region, "")))
    return 0


def delete(arguments: argparse.Namespace) -> int:
    from lab_utils.sagemaker import resources

    session = connect(arguments.region, "")
    if arguments.all == bool(arguments.name):
        raise SageMakerError("Give the names of what is to be deleted, or --all; not both.")
    names = arguments.name
    if arguments.all:
        owner = None if arguments.everyone else caller(session)
        names = resources.created(session, arguments.job_prefix, owner)
    if not names:
        whose = "nobody has" if arguments.everyone else f"{caller(session)} has"
        print(f"There is nothing of the workshop that {whose} created in {session.boto_region_name}.")
        return 0
    print("To be deleted, with outputs and checkpoints in S3 (an endpoint that is being created when it is up): "
          + ", ".join(names))
    ask(arguments, "Delete?")
    failed = 0
    for name in names:
        try:
            for what in resources.delete(name, session):
                print(f"deleted: {what}")
        except (SageMakerError, *aws_errors()) as error:  # the others are deleted all the same
            print(f"not deleted: {name}: {error}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


def prices(arguments: argparse.Namespace) -> int:
    region = known_region(arguments.region)
    if arguments.refresh:
        found = cost.refresh(region, connect(region, "").boto_session)
        print(f"{len(found)} prices of today are in {cost.CACHE}.")
    print(cost.table(region))
    return 0


# --- What the commands share ------------------------------------------------------------------------------------------


def stop_at(problems: list) -> None:
    from lab_utils.sagemaker.preflight import PreflightError

    if problems:
        raise PreflightError(problems)


def confirm(arguments: argparse.Namespace, ceiling: float | None) -> None:
    """Ask where it can cost more than --ask-above, or nobody knows what it costs."""
    if ceiling is None or ceiling > arguments.ask_above:
        cost_of_it = f"This can cost up to {ceiling:.2f} USD." if ceiling else "The price is not known."
        ask(arguments, f"{cost_of_it} Go on?")


def ask(arguments: argparse.Namespace, question: str) -> None:
    if arguments.yes:
        return
    if not sys.stdin.isatty():
        raise SageMakerError(f"{question} There is nobody to answer: give --yes.")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise SageMakerError("Nothing was done.")


def follow_with_bar(name: str, session):
    """Print the log of a job and show its progress by the metrics that it prints; returns the last status."""
    from tqdm import tqdm

    from lab_utils.runs import parse_metrics_line
    from lab_utils.sagemaker.job import follow

    bar = tqdm(unit="step", dynamic_ncols=True)

    def show(line: str) -> None:
        found = parse_metrics_line(line)
        if found is None:
            tqdm.write(line)
            return
        stage, values = found
        bar.set_description(stage, refresh=False)
        bar.total, bar.n = int(values["of"]), int(values["step"])
        bar.set_postfix({key: f"{values[key]:.3g}" for key in ("loss", "reward", "accuracy") if key in values})

    with bar:
        finished = follow(name, session, show)
    print(finished)
    return finished


def model_of_job(arguments: argparse.Namespace) -> str:
    """The model.tar.gz that a training job has left."""
    from lab_utils.sagemaker.job import status as look_up

    if not arguments.job:
        return ""
    found = look_up(arguments.job, connect(arguments.region, ""))
    if not found.model or found.status != "Completed":
        raise SageMakerError(f"{found}. Only a completed job leaves a model; train --resume continues a stopped one.")
    return found.model


def checkpoints_of_job(arguments: argparse.Namespace) -> str:
    from lab_utils.sagemaker.job import status as look_up

    found = look_up(arguments.resume, connect(arguments.region, ""))
    if not found.checkpoints:
        raise SageMakerError(f"{found}. It has no checkpoints to go on from.")
    return found.checkpoints


def as_json(text: str) -> dict:
    """A JSON object, given as it is or as the name of a file."""
    example = """It looks like '{"grpo.beta": 0.04}'."""
    source = Path(text).read_text(encoding="utf-8") if text.endswith(".json") and Path(text).is_file() else text
    try:
        value = json.loads(source)
    except json.JSONDecodeError as error:
        raise SageMakerError(f"--hyperparameters is not JSON ({error}). {example}") from None
    if not isinstance(value, dict):
        raise SageMakerError(f"--hyperparameters is not a JSON object: {source[:60]}. {example}")
    return value


def aws_errors() -> tuple[type[Exception], ...]:
    """What boto3 raises where AWS refuses or cannot be reached; nothing where boto3 is not installed."""
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ModuleNotFoundError:
        return ()
    return BotoCoreError, ClientError


def pairs(option: str, texts: list[str]) -> dict[str, str]:
    for text in texts:
        if "=" not in text:
            raise SageMakerError(f"{option} {text}: write {option} NAME=VALUE.")
    return dict(text.split("=", 1) for text in texts)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    command = {"train": train_or_evaluate, "evaluate": train_or_evaluate, "deploy": deploy, "invoke": invoke,
               "status": status, "stop": stop, "delete": delete, "cost": prices}[arguments.command]
    try:
        return command(arguments)
    except (SageMakerError, configuration.ConfigError) as error:
        print(f"launch_sagemaker.py: {error}", file=sys.stderr)
        return 2
    except aws_errors() as error:  # such as expired credentials, or what your role may not do
        print(f"launch_sagemaker.py: AWS says: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
