"""The workshop on SageMaker: train, evaluate, deploy, ask, list what costs money, stop and delete it.

    python scripts/launch_sagemaker.py train --recipe countdown-grpo --hardware a10g --dry-run
    python scripts/launch_sagemaker.py train --recipe countdown-grpo --hardware a10g --spot --max-wait-hours 12
    python scripts/launch_sagemaker.py train --recipe countdown-grpo --hardware cpu --wait --output-dir outputs/cloud
    python scripts/launch_sagemaker.py evaluate --recipe countdown-grpo --hardware a10g --job TRAINING_JOB --wait
    python scripts/launch_sagemaker.py deploy --job TRAINING_JOB --wait
    python scripts/launch_sagemaker.py invoke ENDPOINT --recipe countdown-grpo --question "9 14 20 25"
    python scripts/launch_sagemaker.py status [JOB]
    python scripts/launch_sagemaker.py delete NAME

SAGEMAKER_ROLE and SAGEMAKER_BUCKET are the defaults of --role and --bucket. --dry-run needs no account. The exit status
is 2, with one message, for a problem that you can fix, and 1 for a failed job.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import getpass
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from lab_utils import config as configuration
from lab_utils import exit_status
from lab_utils.sagemaker import cost, endpoint, preflight, resources
from lab_utils.sagemaker import job as jobs
from lab_utils.sagemaker.job import PROJECT, EvaluationJob, JobStatus, TrainingJob
from lab_utils.sagemaker.session import (
    NetworkAndKey,
    SageMakerError,
    aws_errors,
    caller,
    connect,
    known_region,
    network_and_key,
    one_person,
    require_sdk,
)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )

    def pair(text: str) -> tuple[str, str]:
        name, equals, value = text.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{text!r} has no value: write NAME=VALUE")
        return name, value

    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[place, *parents], allow_abbrev=False)

    place, role, vpc, job, start, yes, others = (argparse.ArgumentParser(add_help=False) for _ in range(7))
    place.add_argument("--region", help="default: AWS_DEFAULT_REGION, or that of ~/.aws/config")
    role.add_argument("--role", default=os.environ.get("SAGEMAKER_ROLE", ""), help="ARN of the execution role")
    vpc.add_argument("--subnet", action="append", default=[], metavar="ID", dest="subnets",
                     help="of your private network (VPC), with --security-group; may be repeated")
    vpc.add_argument("--security-group", action="append", default=[], metavar="ID", dest="security_groups",
                     help="may be repeated; default of all three: the SDK's ~/.config/sagemaker/config.yaml")
    vpc.add_argument("--kms-key", metavar="KEY", help="encrypts outputs, uploads and, where it can, disks")
    recipes = ", ".join(configuration.recipe_names())
    job.add_argument("--recipe", required=True, help=f"what is learned: {recipes}, or your own .yaml file")
    job.add_argument("--hardware", required=True, help=f"the tier: {', '.join(configuration.hardware_names())}")
    job.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides",
                     help="change a setting, such as grpo.beta=0.04; may be repeated")
    job.add_argument("--limit", type=int, help="at most this many problems, demonstrations and test questions")
    job.add_argument("--bucket", default=os.environ.get("SAGEMAKER_BUCKET", ""), help="for source and outputs")
    job.add_argument("--instance-type", help="default: that of the tier; `cost` lists them")
    job.add_argument("--data", help="a folder, here or in S3, with train.jsonl and test.jsonl")
    job.add_argument("--requirements", metavar="FILE", help="packages of your own, besides those of the workshop")
    job.add_argument("--job-prefix", default=PROJECT, dest="prefix", help=f"of the job names; default: {PROJECT}")
    job.add_argument("--image", help="your own container in ECR; default: AWS's PyTorch container")
    job.add_argument("--volume-gb", type=int, default=100)
    job.add_argument("--max-run-hours", type=float, default=6.0, help="SageMaker then stops the job; default: 6")
    job.add_argument("--env", action="append", type=pair, default=[], metavar="NAME=VALUE", dest="environment",
                     help="in the container; no secrets")
    job.add_argument("--tag", action="append", type=pair, default=[], metavar="NAME=VALUE", dest="tags")
    job.add_argument("--output-dir", type=Path, help="with --wait: fetch the outputs to this directory")
    start.add_argument("--wait", action="store_true", help="wait for the end, with log and progress")
    start.add_argument("--dry-run", action="store_true", help="print the exact request and its cost; send nothing")
    start.add_argument("--ask-above", type=float, default=5.0, metavar="USD",
                       help="ask before starting anything that can cost more, or an unknown amount; default: 5")
    yes.add_argument("--yes", action="store_true", help="do not ask")
    others.add_argument("--everyone", action="store_true", help="also resources of other users")

    train = command("train", "start a training job", role, vpc, job, start, yes)
    train.add_argument("--instances", type=int, default=1, metavar="N",
                       help="machines of the same type; N of them train on N times the batch")
    train.add_argument("--stages", type=lambda text: text.split(","),
                       help="only these stages, such as sft or sft,grpo; those of the recipe by default")
    train.add_argument("--test-data", metavar="FOLDER", help="with test.jsonl, if --data has only train.jsonl")
    train.add_argument("--wandb-secret", metavar="NAME",
                       help="turn on W&B, with the key in this secret of AWS Secrets Manager")
    train.add_argument("--model", help="start model, such as an SFT model: its folder, or a model.tar.gz in S3")
    train.add_argument("--no-evaluate", action="store_false", dest="evaluate",
                       help="do not evaluate the models after training")
    train.add_argument("--spot", action="store_true", help="spare capacity: up to 90%% cheaper, may be interrupted")
    train.add_argument("--max-wait-hours", type=float, help="with --spot: for waiting and training together")
    train.add_argument("--keep-alive-minutes", type=int, default=0, help="keep the instance warm for the next job")
    train.add_argument("--resume", metavar="JOB", dest="checkpoints",
                       help="resume from the checkpoints of a stopped job")
    train.add_argument("--entry-point", default=TrainingJob.entry_point,
                       help="a script of your own, or a command; the files and folders that it names travel with it")

    evaluate = command("evaluate", "evaluate a model as a processing job", role, vpc, job, start, yes)
    deploy = command("deploy", "serve a model on a vLLM endpoint, which costs money until you delete it", role, vpc,
                     start, yes)
    for takes_a_model in (evaluate, deploy):
        source = takes_a_model.add_mutually_exclusive_group(required=True)
        source.add_argument("--job", help="the training job that made the model")
        source.add_argument("--model", help="or a model.tar.gz in S3")
    deploy.add_argument("--name", help="name of the endpoint; default: rl-workshop-USER-endpoint-RANDOM")
    deploy.add_argument("--instance-type", default="ml.g5.xlarge")
    deploy.add_argument("--image", help="your own container; default: AWS's vLLM container")
    deploy.add_argument("--max-model-len", type=int, help="tokens of prompt and answer; default: the model's length")

    invoke = command("invoke", "ask an endpoint")
    invoke.add_argument("name")
    invoke.add_argument("--recipe", required=True, help="the recipe that trained the model, for its prompt")
    invoke.add_argument("--question", required=True, help="a word problem; for Countdown the numbers and the target")
    invoke.add_argument("--max-tokens", type=int, help="of the answer; default: as many as the model can")
    invoke.add_argument("--temperature", type=float, default=0.0)

    status = command("status", "show one job, or everything that costs money")
    status.add_argument("name", nargs="?", help="a job")
    status.add_argument("--logs", action="store_true", help="print its log")
    status.add_argument("--output-dir", type=Path, help="fetch its outputs to this directory")

    stop = command("stop", "stop a job; training saves a checkpoint first", others)
    stop.add_argument("name")

    delete = command("delete", "delete endpoints, or jobs with all their files in S3", others, yes)
    delete.add_argument("name", nargs="*")
    delete.add_argument("--all", action="store_true", help="everything that you have created in the region")
    delete.add_argument("--job-prefix", default=PROJECT, help="with --all: of the names")

    prices = command("cost", "list the prices of the instances")
    prices.add_argument("--refresh", action="store_true", help="ask AWS's price list first, and remember it")
    return parser.parse_args(argv)


# --- The commands -----------------------------------------------------------------------------------------------------


def train_or_evaluate(arguments: argparse.Namespace) -> int:
    job = described_job(arguments)
    preflight.stop_at(preflight.job_problems(job))
    if arguments.command == "train":
        operation, request = "CreateTrainingJob", jobs.training_request(job)
    else:
        operation, request = "CreateProcessingJob", jobs.evaluation_request(job)
    preflight.stop_at(preflight.request_problems(operation, request))
    expected, own = cost.cost_of(job), jobs.own_files(job)
    if arguments.dry_run:
        print(json.dumps(request, indent=2))
    print(f"Your files, sent with the code: {', '.join(own)}\n" * bool(own) + str(expected),
          file=sys.stderr if arguments.dry_run else None)
    if arguments.dry_run:
        print(f"Dry run: the request above is {operation}; nothing was sent.", file=sys.stderr)
        return 0
    session = connect(job.region, job.bucket)
    preflight.stop_at(preflight.account_problems(job, session))
    confirm(arguments, expected.ceiling)
    name = jobs.launch(job, session)
    print(f"Started {name}. Show its state: launch_sagemaker.py status {name}. "
          f"Stop it: launch_sagemaker.py stop {name}")
    if not arguments.wait:
        return 0
    later = (f"stop it with launch_sagemaker.py stop {name}, or fetch its outputs later with "
             f"launch_sagemaker.py status {name} --output-dir DIR")
    with keeps_running(name, job.instance, job.region, later, job.instances):
        finished = follow_with_bar(name, session)
    if arguments.output_dir and finished.status != "Failed":
        fetch(name, session, arguments.output_dir)
    return 0 if finished.status == "Completed" else 1  # "Stopped" may mean: by its limit of hours


def described_job(arguments: argparse.Namespace) -> TrainingJob | EvaluationJob:
    """Return the job that the options describe; the options are stored under the names of its fields."""
    kind = TrainingJob if arguments.command == "train" else EvaluationJob
    arguments.network = network_of(arguments)
    options = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(kind)}
    options |= {name: tuple(options[name]) for name in ("overrides", "stages") if options.get(name) is not None}
    options |= {name: dict(options[name]) for name in ("environment", "tags")}
    options["region"] = known_region(arguments.region)
    if arguments.command == "evaluate":
        options["model"] = arguments.model or model_of_job(arguments)
    elif arguments.checkpoints:
        options["checkpoints"] = checkpoints_of_job(arguments)
    return kind(**options)


def deploy(arguments: argparse.Namespace) -> int:
    region = known_region(arguments.region)
    deployment = endpoint.Deployment(
        name=arguments.name or jobs.unique_name(PROJECT, getpass.getuser(), "endpoint"),
        model=arguments.model or model_of_job(arguments),
        role=arguments.role,
        region=region,
        instance_type=arguments.instance_type,
        image=arguments.image,
        max_model_len=arguments.max_model_len,
        network=network_of(arguments),
    )
    preflight.stop_at(endpoint.deployment_problems(deployment))
    requests = endpoint.endpoint_requests(deployment)
    preflight.stop_at([problem for operation, body in requests.items()
                       for problem in preflight.request_problems(operation, body)])
    price = cost.price(deployment.instance_type, region)
    hourly = f"{price.usd:g} USD an hour, {24 * price.usd:.2f} a day ({price.source})" if price else "price unknown"
    expected = f"Cost: {deployment.instance_type} in {region}, {hourly}, used or not, until you delete it."
    if arguments.dry_run:
        print(json.dumps(requests, indent=2))
        print(f"{expected}\nDry run: nothing was sent.", file=sys.stderr)
        return 0
    print(expected)
    session = connect(region)
    deployment = dataclasses.replace(deployment, tags={"owner": caller(session), **deployment.tags})
    preflight.stop_at([*endpoint.name_problems(deployment.name, session),
                       *preflight.missing_inputs({"--model": deployment.model}, session),
                       *preflight.quota_problems(deployment.instance_type, ["endpoint"], session)])
    confirm(arguments, price and 24 * price.usd)
    endpoint.deploy(deployment, session)
    print(f"Created the endpoint {deployment.name}, which will be in service in 5 to 10 minutes.\n"
          f"Delete it when you have finished: launch_sagemaker.py delete {deployment.name}")
    if arguments.wait:
        later = f"delete it with launch_sagemaker.py delete {deployment.name}"
        with keeps_running(deployment.name, deployment.instance_type, region, later):
            endpoint.wait_until_in_service(deployment.name, session)
        print(f"{deployment.name} is in service.")
    return 0


def invoke(arguments: argparse.Namespace) -> int:
    from lab_utils.sharing.chat import as_prompt  # takes seconds to import
    from lab_utils.tasks import load_task, visible

    task = load_task(configuration.load(arguments.recipe, "cpu").task)
    answer = endpoint.invoke(arguments.name, as_prompt(task, arguments.question), connect(arguments.region),
                             max_tokens=arguments.max_tokens, temperature=arguments.temperature)
    print(visible(answer.text))
    cut = ", cut off by its maximal length" if answer.finish_reason == "length" else ""
    print(f"\nextracted: {visible(str(task.extract(answer.text)))} ({answer.tokens} tokens{cut})")
    return 0


def status(arguments: argparse.Namespace) -> int:
    session = connect(arguments.region)
    if arguments.name is None:
        found, hidden = resources.running(session)
        nothing = f"Nothing on SageMaker costs money by the hour in {session.boto_region_name}."
        print("\n".join(map(str, found)) or nothing)
        for what in hidden:
            print(f"There may be more: your permissions do not list {what}.")
        hourly = sum(row.usd_per_hour or 0 for row in found)
        if hourly:
            print(f"Together {hourly:.2f} USD an hour, without unknown prices.")
        return 0
    print(jobs.status(arguments.name, session))
    if arguments.logs:
        print("\n".join(jobs.log_lines(arguments.name, session)))
    if arguments.output_dir:
        fetch(arguments.name, session, arguments.output_dir)
    return 0


def stop(arguments: argparse.Namespace) -> int:
    session = connect(arguments.region)
    print(resources.stop(arguments.name, session, None if arguments.everyone else caller(session)))
    return 0


def delete(arguments: argparse.Namespace) -> int:
    session = connect(arguments.region)
    if arguments.all == bool(arguments.name):
        raise SageMakerError("Nothing to delete, or too much: pass either names or --all.")
    names, owner = arguments.name, None
    if not arguments.everyone:
        owner = one_person(session) if arguments.all else caller(session)
    if arguments.all:
        names = resources.created(session, arguments.job_prefix, owner)
        if not names:
            print(f"Nothing to delete: no workshop resources of {owner or 'any user'} in {session.boto_region_name}.")
            return 0
    print("To delete, with outputs and checkpoints in S3 (an endpoint in creation as soon as it is up): "
          + ", ".join(names))
    ask(arguments, "Delete?")
    failed = 0
    for name in names:
        try:
            for what in resources.delete(name, session, owner):
                print(f"deleted: {what}")
        except (SageMakerError, *aws_errors()) as error:  # delete the others all the same
            print(f"not deleted: {name}: {error}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


def prices(arguments: argparse.Namespace) -> int:
    region = known_region(arguments.region)
    if arguments.refresh:
        found = cost.refresh(region, connect(region).boto_session)
        print(f"Wrote {len(found)} of today's prices to {cost.CACHE}.")
    print(cost.table(region))
    return 0


# --- What the commands share ------------------------------------------------------------------------------------------


def confirm(arguments: argparse.Namespace, ceiling: float | None) -> None:
    """Ask before anything that can cost more than --ask-above, or an unknown amount."""
    if ceiling is None or ceiling > arguments.ask_above:
        ask(arguments, f"This can cost up to {ceiling:.2f} USD. Start?" if ceiling else "The price is unknown. Start?")


def ask(arguments: argparse.Namespace, question: str) -> None:
    if arguments.yes:
        return
    if not sys.stdin.isatty():
        raise SageMakerError(f"{question} Not running interactively: pass --yes.")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise SageMakerError("Nothing was done: you did not answer y.")


@contextlib.contextmanager
def keeps_running(name: str, instance: str, region: str, later: str, instances: int = 1) -> Iterator[None]:
    """Say what keeps running, at which price, if Ctrl-C, an expired token or a lost network ends the waiting."""
    try:
        yield
    except (KeyboardInterrupt, *aws_errors()) as error:
        price = cost.price(instance, region)
        hourly = f"{instances * price.usd:g} USD an hour" if price else "an unknown price"
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        raise SageMakerError(f"Waiting ended ({reason}), but {name} keeps running for {hourly}: {later}.") from None


def follow_with_bar(name: str, session) -> JobStatus:
    """Print the log of a job, with a progress bar from its metrics; return its last status."""
    from tqdm import tqdm

    from lab_utils.runs import parse_metrics_line  # takes seconds to import

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
        finished = jobs.follow(name, session, show)
    print(finished)
    return finished


def fetch(name: str, session, directory: Path) -> None:
    for path in jobs.download(name, session, directory):
        print(f"fetched {path}")


def network_of(arguments: argparse.Namespace) -> NetworkAndKey:
    require_sdk()
    return network_and_key(arguments.command, arguments.subnets, arguments.security_groups, arguments.kms_key)


def model_of_job(arguments: argparse.Namespace) -> str:
    """Return the S3 URI of the model.tar.gz of the training job --job."""
    found = jobs.status(arguments.job, connect(arguments.region))
    if not found.model or found.status != "Completed":
        raise SageMakerError(f"{found}: only a completed job has a model; continue a stopped one with train --resume.")
    return found.model


def checkpoints_of_job(arguments: argparse.Namespace) -> str:
    """Return the S3 URI of the checkpoints of the training job --resume."""
    found = jobs.status(arguments.checkpoints, connect(arguments.region))
    if not found.checkpoints:
        raise SageMakerError(f"{found}: it has no checkpoints to resume from; start a new job without --resume.")
    return found.checkpoints


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    command = {"train": train_or_evaluate, "evaluate": train_or_evaluate, "deploy": deploy, "invoke": invoke,
               "status": status, "stop": stop, "delete": delete, "cost": prices}[arguments.command]
    try:
        return command(arguments)
    except aws_errors() as error:  # such as expired credentials, or a missing permission
        raise SageMakerError(f"AWS refused the call ({error}): check credentials, permissions and region.") from None
    except KeyboardInterrupt:
        raise SageMakerError("Interrupted: see what runs and costs money with launch_sagemaker.py status.") from None


if __name__ == "__main__":
    sys.exit(exit_status(main))
