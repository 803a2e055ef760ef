# %% [markdown]
# # 10 · SageMaker training
#
# <!-- badges -->
#
# > **You will learn** to run the same recipe as a script-mode job on SageMaker: channels, spot instances and
# > checkpoints, metrics from the log, the cost before the launch, evaluation as a processing job. Without an AWS
# > account the job runs here, in an emulated container.
# >
# > **Time** 3 minutes on a CPU; as a job on AWS, 10 minutes more to start · **Needs** notebook 04 in the same
# > OUTPUT_DIR (its model is trained here if it is missing)

# %% tags=["setup"]
# The builder writes this cell: notebooks/src/setup_cell.py.

# %% tags=["parameters"]
RECIPE = "countdown-grpo"
HARDWARE = "cpu"  # or "auto", or one of the GPU tiers
OUTPUT_DIR = "outputs"
SEED = 0
LAUNCH = False  # True starts jobs on AWS, which cost money. ROLE and BUCKET are then needed.
ROLE = ""  # ARN of the execution role, and the bucket: the outputs of setup/sagemaker/class.yaml
BUCKET = ""
REGION = "us-east-1"

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("sagemaker") is None:  # the SageMaker SDK: only this notebook and 11 need it
    requirements = "setup/requirements/sagemaker.txt"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-r", requirements], check=True)

# %%
import shutil
from pathlib import Path

from lab_utils.config import load
from lab_utils.tasks import load_task
from lab_utils.training.stages import start_model

config = load(RECIPE, HARDWARE, {"seed": SEED})
task = load_task(config.task.name, config.task.response_format)
stage = config.stages[-1]
start_folder = None  # on AWS the job trains all stages itself; here it starts from notebook 04's model
if not LAUNCH and len(config.stages) > 1:
    start_folder = start_model(config, Path(OUTPUT_DIR) / task.name, stage)
work = Path(OUTPUT_DIR) / "sagemaker"
if not LAUNCH:  # what a real job has left costs money to make again
    shutil.rmtree(work, ignore_errors=True)
figures = Path(OUTPUT_DIR) / "figures"
print(f"Task {task.name}, tier {config.hardware}, start: {start_folder or config.model.name}")

# %% [markdown]
# ## What a training job is
#
# You send SageMaker one request. It rents a machine, starts a **container** on it, copies your inputs into it, runs
# one command, copies what the command leaves to S3, and gives the machine back. You pay for the seconds in between.
# Inside, everything has its place:
#
# | in the container | what it is |
# |---|---|
# | `/opt/ml/input/data/NAME` | a **channel**: a folder of S3, copied before the start; here `code` and `model` |
# | `/opt/ml/checkpoints` | copied to S3 *while* it changes, and back when the job starts again |
# | `/opt/ml/output/data` | copied to S3 at the end: the run directories |
# | `/opt/ml/model` | the same, as `model.tar.gz`: the merged model, ready to serve |
# | `/opt/ml/output/failure` | why it failed |
#
# **Script mode** means that the container is AWS's and the code is yours. It comes through the channel `code`: the
# package `lab_utils` and the same `scripts/train.py` as on your machine. What to run stands in a file there,
# `job.yaml`. Command-line hyperparameters would be quoted by a shell on the way; a single apostrophe in one ends the
# job.

# %%
from lab_utils.sagemaker.job import TrainingJob, package_source, training_request

# A short job, so that you need not wait; a GPU tier trains in full.
short = {"smoke": (f"{stage}.max_steps=4", f"{stage}.max_completion_length=48"), "cpu": (f"{stage}.max_steps=8",)}
job = TrainingJob(
    recipe=RECIPE, hardware=config.hardware, evaluate=False,
    stages=(stage,) if start_folder else None, model=start_folder,
    overrides=(f"seed={SEED}", *short.get(config.hardware, ())),
    role=ROLE or "arn:aws:iam::123456789012:role/rl-workshop-execution-us-east-1",
    bucket=BUCKET or "rl-workshop-123456789012-us-east-1",
    region=REGION, spot=True, max_run_hours=2 if config.hardware in short else 6, max_wait_hours=12,
)
source = package_source(job, work / "source")
print("In the channel code:", ", ".join(sorted(path.name for path in source.iterdir())))
print("\njob.yaml:\n" + (source / "job.yaml").read_text())

# %% [markdown]
# ## The request, before anything is sent
#
# A **dry run** builds exactly the request that AWS would get, and keeps it. Look at four parts of it: the machine, the
# channels, when it stops, and where the checkpoints go.

# %%
import json

request = training_request(job, work)
for part in ("ResourceConfig", "StoppingCondition", "EnableManagedSpotTraining", "CheckpointConfig"):
    print(f"{part}: {json.dumps(request[part])}")
for channel in request["InputDataConfig"]:
    print(f"channel {channel['ChannelName']:<12} from {channel['DataSource']['S3DataSource']['S3Uri']}")

# %% [markdown]
# ## Preflight: what would go wrong?
#
# A mistake in a job is found by AWS after you have waited for a machine, or not at all: a spot job without a longest
# waiting time is refused, an instance type that does not fit the tier runs and fails. The preflight knows SageMaker's
# rules and the workshop's, and needs no account.

# %%
import dataclasses

from lab_utils.sagemaker.preflight import job_problems, request_problems

wrong = {
    "as it is": {},
    "an instance that is mistyped": {"instance_type": "ml.g5.2xlrage"},
    "spot without a longest wait": {"max_wait_hours": None},
    "a tier that does not fit": {"hardware": "a10g", "instance_type": "ml.m5.xlarge"},
    "a setting that is mistyped": {"overrides": ("grpo.learning_rat=1e-4",)},
}
for what, changes in wrong.items():
    problems = job_problems(dataclasses.replace(job, **changes))
    print(f"{what}: {'no problem' if not problems else ''}", *problems, sep="\n")
assert not request_problems("CreateTrainingJob", request)

# %% [markdown]
# ## What does it cost?
#
# The **ceiling** is what you pay if everything goes wrong and the job runs until SageMaker stops it: price × longest
# run. Set `max_run_hours` to little more than what you expect. A limit that is too short costs as well: SageMaker
# stops the job, and you pay for a model that is not finished. **Spot** instances are machines that nobody else wants
# just now. They cost up to 90% less, and AWS may take them back with two minutes' warning.

# %%
from lab_utils.sagemaker.cost import cost_of

for tier in (config.hardware, "a10g", "a10g-x4"):
    print(cost_of(dataclasses.replace(job, hardware=tier, overrides=(), stages=None)), end="\n\n")

# %% [markdown]
# ## Metrics come from the log
#
# SageMaker does not know your metrics. It reads the log of the job: a **metric definition** is a name and a regular
# expression, and in every line that matches, group 1 is the value. Each logged step prints one such line:
#
# ```text
# metrics grpo step=1 of=12 loss=-0.01 reward=0.125 accuracy=0.0625 completions/mean_length=31.2
# ```
#
# By hand: what does `metrics grpo .* reward=([-+0-9.e]+)` find there? And why is there a space before `reward`? (There
# are `rewards/equation_reward/mean=` and others on the line, too.)

# %%
definitions = {d["Name"]: d["Regex"] for d in request["AlgorithmSpecification"]["MetricDefinitions"]}
print(f"{len(definitions)} metric definitions (40 are allowed), such as:")
for name in list(definitions)[:3]:
    print(f"  {name:<20} {definitions[name]}")

# %% [markdown]
# ## Exercise: read a log as SageMaker does
#
# *Difficulty: easy · importance: medium · spend up to 10 minutes*
#
# Return the values of one metric: go through the lines of the log, and where the regular expression is found, take
# group 1 as a number. At most one value a line.

# %%
import re


def logged_values(regex, log):
    """The values of a metric in a log, as floats, in the order of the lines."""
    # YOUR CODE HERE
    # >>> solution
    return [float(found[1]) for line in log.splitlines() if (found := re.search(regex, line))]
    # <<< solution


line = "metrics grpo step=1 of=12 loss=-0.01 reward=0.125 accuracy=0.0625 completions/mean_length=31.2"
logged_values(r"metrics grpo .* reward=([-+0-9.e]+)", line)

# %%
from lab_utils.teaching import checks

checks.check_logged_values(logged_values)

# %% [markdown]
# ## The real run, with an interruption
#
# With `LAUNCH = True` the job goes to AWS. Without, the **emulated container** runs the recorded request here: its
# channels are laid under an `/opt/ml` that only the job can see (Linux lets every user mount in a namespace of their
# own), and its own command starts. It is no docker image: the job uses the packages of this environment and installs
# none. Where namespaces are blocked, as in Colab, the same program runs with its paths redirected, and the cell says
# so.
#
# Here you can also see what spot means. After a few steps the first machine is "taken back": the job gets SIGTERM,
# saves a checkpoint and ends. A second one starts with `/opt/ml/checkpoints` as it was left.

# %%
from lab_utils.sagemaker.emulation import namespaces_blocked, start

if not LAUNCH:
    blocked = namespaces_blocked()
    print("The job sees its own /opt/ml." if blocked is None else f"Redirected paths, no /opt/ml: {blocked}")
    first = start(request, work, work / "first-machine").watch(until=f"metrics {stage} step=2 ")
    first.interrupt()
    first.watch()
    print("\n".join(line for line in first.log.splitlines() if "SIGTERM" in line))
    second = start(request, work, work / "second-machine", checkpoints=first.checkpoints_dir).watch()
    log, outputs, model = first.log + second.log, second.output_dir, str(second.model_dir)

# %% [markdown]
# The same on AWS. Interrupting the cell does not stop the job: `python scripts/launch_sagemaker.py stop NAME` does.

# %%
if LAUNCH:
    from lab_utils.sagemaker.job import download, follow, launch
    from lab_utils.sagemaker.preflight import account_problems
    from lab_utils.sagemaker.session import connect

    session = connect(REGION, BUCKET)
    problems = job_problems(job) + account_problems(job, session)
    if problems:
        raise SystemExit("\n".join(map(str, problems)))
    name, lines = launch(job, session), []
    finished = follow(name, session, on_line=lambda line: (print(line), lines.append(line)))
    print(finished)
    if finished.status != "Completed":
        raise SystemExit("The job left no model. Its log, above, says more.")
    download(name, session, work / "outputs")
    log, outputs, model = "\n".join(lines), work / "outputs", finished.model

# %% [markdown]
# ## What the log says
#
# Your function and the job's own metric definitions, on the job's own log.

# %%
from lab_utils.figures import plot_log

shown = [f"{stage}:{name}" for name in ("reward", "accuracy", "completions/mean_length", "attempts")]
plot_log({name: logged_values(definitions[name], log) for name in shown}, figures / "10_metrics_from_the_log.png")

# %% [markdown]
# The run directory that came back has the same numbers, and more: it is the same as that of any other run.

# %%
from lab_utils.runs import RunDirectory

run = RunDirectory(outputs / stage)
metrics = run.metrics()
print("steps in metrics.csv:", metrics["step"].tolist())
rewards = logged_values(definitions[f"{stage}:reward"], log)
print(f"last reward in the log: {rewards[-1]:.4f}, in metrics.csv: {metrics['reward'].iloc[-1]:.4f}")
print("in the run directory:  ", ", ".join(sorted(path.name for path in run.path.iterdir())))

# %% [markdown]
# ## What you should see, and what it means if you don't

# %%
steps = [int(step) for step in re.findall(rf"metrics {stage} step=(\d+) ", log)]
for claim, holds in (
    ("metrics.csv has every step once", metrics["step"].tolist() == list(range(1, len(metrics) + 1))),
    ("no step was done twice", steps == sorted(set(steps))),
    ("log and metrics.csv agree", abs(rewards[-1] - metrics["reward"].iloc[-1]) < 1e-4),
):
    print(f"  {'yes    ' if holds else 'NOT YET'}  {claim}")

# %% [markdown]
# The interruption leaves no trace in the metrics: the second machine goes on with the step after the last one saved,
# with the same data order and random numbers. If a step is missing, the job was killed before it could save; it then
# went on from the last regular checkpoint (`save_steps`), and the steps after that are in the log twice.
#
# Two minutes are not long. A job stops at the end of a rollout; where one takes longer than that, only the regular
# checkpoints count, so choose `save_steps` by what you can bear to lose.
#
# ## Evaluation as a processing job
#
# A **processing job** is the same idea with other folders: inputs and outputs under `/opt/ml/processing`. It runs
# `scripts/evaluate.py` on the job's model and leaves `eval.json`, with every example.

# %%
from lab_utils.evaluation import Evaluation
from lab_utils.sagemaker.job import EvaluationJob, evaluation_request

fewer = {"smoke": ("evaluation.max_new_tokens=48",), "cpu": ("task.test_limit=60",)}
place = {name: getattr(job, name) for name in ("recipe", "hardware", "role", "bucket", "region")}
evaluation_job = EvaluationJob(model=model, overrides=fewer.get(config.hardware, ()), max_run_hours=2, **place)
assert not job_problems(evaluation_job)
if LAUNCH:
    name = launch(evaluation_job, session)
    print(follow(name, session))
    download(name, session, work / "evaluation")
    results = work / "evaluation"
else:
    evaluation_place = work / "evaluation"
    recorded = evaluation_request(evaluation_job, evaluation_place)
    results = start(recorded, evaluation_place, evaluation_place / "machine").watch().output_dir
evaluation = Evaluation.load(results / "eval.json")
print(evaluation)

# %% [markdown]
# One number hides much. How long are the responses, and which lengths are right? And are they the same questions that
# are answered right every time?

# %%
from lab_utils.figures import plot_attempts

plot_attempts({f"{stage.upper()} job": evaluation}, figures / "10_lengths.png", name="num_tokens")

# %%
from lab_utils.figures import plot_problem_accuracy

plot_problem_accuracy(evaluation, figures / "10_accuracy_by_question.png")

# %% [markdown]
# Questions in the middle are those that GRPO can learn from: sometimes right, sometimes wrong. Those at 0 and at the
# right end give no signal (notebook 06).
#
# ## From the command line, and cleaning up
#
# ```bash
# export SAGEMAKER_ROLE=arn:aws:iam::...:role/... SAGEMAKER_BUCKET=... AWS_DEFAULT_REGION=us-east-1
# python scripts/launch_sagemaker.py train --recipe countdown-grpo --hardware a10g --spot --max-wait-hours 8 --dry-run
# python scripts/launch_sagemaker.py status      # what runs and costs money
# python scripts/launch_sagemaker.py stop NAME
# ```
#
# A training job ends by itself, and so does its cost. What stays is in S3. Endpoints (notebook 11) do not end by
# themselves. [setup/sagemaker](../setup/sagemaker/README.md) has the account, the quotas to ask for, and an image
# that starts faster.
#
# ## Summary
# - A job is one request: container, channels, command, machine, limits. Build it, check it, price it, then send it.
# - The code in the job is the code on your machine; a run directory comes back.
# - Spot is cheap because it can end at any time. SIGTERM, a checkpoint, a restart: nothing is lost.
# - Metrics are regular expressions on a log. Print one line a step, and make it easy to read.
#
# ## Questions
# 1. Your job has 8 GPUs, and the recipe uses one. What do you pay for? What would you change?
# 2. A spot job was interrupted five times and took 10 hours instead of 2. When is it still cheaper? Which setting
#    bounds the 10 hours?
# 3. Which of the channels would you need to train on your own problems, and what would lie in it?
# 4. Why is it a bad idea to print the environment of a job into its log?
#
# Next: [11 · Serving and sharing](11_serving_and_sharing.ipynb) puts the model behind an endpoint, and deletes it
# again.
