# %% [markdown]
# # 11 · SageMaker training
#
# <!-- badges -->
#
# > **You will learn** to run the same recipe as a script-mode job on SageMaker: channels, spot instances and
# > checkpoints, metrics from the log, the cost before the launch, evaluation as a processing job. Without an AWS
# > account the job runs here, in an emulated container.
# >
# > **Time** the machine: 2 minutes on a CPU (as a job on AWS, 10 minutes more to start) · you: 45 minutes · **Needs**
# > notebook 03 in the same OUTPUT_DIR. If its model is missing, it is trained here, in 2 minutes on a CPU;
# > `scripts/fast_forward.py --notebook 3` copies a finished one in seconds.

# %% tags=["setup"]
# The builder writes this cell: notebooks/src/setup_cell.py.

# %% tags=["parameters"]
RECIPE = "countdown-grpo"
HARDWARE = "cpu"  # or "auto", or one of the GPU tiers
OUTPUT_DIR = "outputs"
SEED = 0
LAUNCH = False  # True starts jobs on AWS, which cost money and need ROLE and BUCKET
ROLE = ""  # ARN of the execution role, an output of setup/sagemaker/class.yaml
BUCKET = ""  # the bucket, another output
REGION = "us-east-1"

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("sagemaker") is None:  # the SageMaker SDK: only this notebook and 12 need it
    install = ["pip", "install", "-q", "-r", "setup/requirements/sagemaker.txt"]
    print("Installing SageMaker's SDK, which takes about a minute and needs a network.")
    if subprocess.run([sys.executable, "-m", *install]).returncode:
        raise RuntimeError(f"SageMaker's SDK could not be installed: run python -m {' '.join(install)} with a network.")

# %%
import shutil
from pathlib import Path

from lab_utils.config import load
from lab_utils.tasks import load_task
from lab_utils.training.stages import start_model

config = load(RECIPE, HARDWARE, {"seed": SEED})
task = load_task(config.task)
stage = config.stages[-1]
start_folder = None  # on AWS the job trains all stages; here it starts from notebook 03's model
if not LAUNCH and len(config.stages) > 1:
    start_folder = start_model(config, Path(OUTPUT_DIR) / task.name, stage)
work = Path(OUTPUT_DIR) / "sagemaker"
if not LAUNCH:  # the outputs of a real job cost money to make again
    shutil.rmtree(work, ignore_errors=True)
figures = Path(OUTPUT_DIR) / "figures"
print(f"Task {task.name}, tier {config.hardware}, start: {start_folder or config.model.name}")

# %% [markdown]
# ## What a training job is
#
# You send SageMaker one request. SageMaker rents a machine, starts a **container** on it, copies your inputs into the
# container, runs one command, copies the outputs to S3, and returns the machine. You pay by the second. Each input and
# output has its path:
#
# | in the container | content |
# |---|---|
# | `/opt/ml/input/data/NAME` | a **channel**: a folder of S3, copied before the start; here `code` and `model` |
# | `/opt/ml/checkpoints` | copied to S3 *while* it changes, and back when the job restarts |
# | `/opt/ml/output/data` | the run directories, copied to S3 at the end |
# | `/opt/ml/model` | the merged model, ready to serve, copied to S3 as `model.tar.gz` |
# | `/opt/ml/output/failure` | the reason of a failure |
#
# **Script mode** means that AWS provides the container and you provide the code. The channel `code` holds the package
# `lab_utils` and the same `scripts/train.py` as on your machine. Its file `job.yaml` says what to run. Hyperparameters
# would pass through a shell, where a single apostrophe ends the job. (The request below has one more channel,
# `sm_drivers`, with the SDK's own start scripts.)

# %%
from lab_utils.sagemaker.job import TrainingJob, package_source, training_request

# A short job on the CPU; a GPU tier trains in full.
short = {"smoke": (f"{stage}.max_steps=4", f"{stage}.max_completion_length=48"),
         "cpu": (f"{stage}.max_steps=8", f"{stage}.per_device_train_batch_size=128", f"{stage}.probe_rollouts=0")}
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
# A **dry run** builds the exact request and sends nothing. Look at four parts: the machine, the channels, the time
# limit, and the place of the checkpoints.

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
# AWS finds some mistakes at once, some after you have waited for a machine, and some never: it refuses a spot job
# without a maximum waiting time, and an instance type that does not fit the tier starts and fails. The preflight knows
# the rules of SageMaker and of the workshop, and needs no account. (Its messages name the options of
# `scripts/launch_sagemaker.py`: `--max-wait-hours` is the argument `max_wait_hours` here.)

# %%
import dataclasses

from lab_utils.sagemaker.preflight import job_problems, request_problems

wrong = {
    "The job as it is": {},
    "A mistyped instance": {"instance_type": "ml.g5.2xlrage"},
    "Spot without a maximum wait": {"max_wait_hours": None},
    "A GPU tier on a machine without a GPU": {"hardware": "a10g", "instance_type": "ml.m5.xlarge"},
    "A mistyped setting": {"overrides": ("grpo.learning_rat=1e-4",)},
}
for what, changes in wrong.items():
    print(what, *(job_problems(dataclasses.replace(job, **changes)) or ["no problem"]), sep="\n  - ")
assert not request_problems("CreateTrainingJob", request)

# %% [markdown]
# ## What does it cost?
#
# The **ceiling** is the highest possible cost: price × `max_run_hours`, after which SageMaker stops the job. The
# expected hours are an estimate. The limit stops the job whether or not the estimate holds, so set it a little above
# the *longest* expected duration. A limit that is too low costs money as well: you pay for an unfinished model. The
# second job below keeps the limit of the first one and is warned: its expected cost is above its ceiling.
#
# **Several machines** (`instances=2`) train data parallel, as several GPUs of one machine do: each process samples and
# learns from its part of a batch, and all take the same step. Two machines learn from twice the batch per step, so an
# epoch has half the steps. The hour costs twice as much.

# %%
from lab_utils.sagemaker.cost import cost_of

full = dataclasses.replace(job, overrides=(), stages=None)  # the whole recipe
for changes in ({}, {"hardware": "a10g"}, {"hardware": "a10g", "max_run_hours": 8},
                {"hardware": "a10g", "max_run_hours": 8, "instances": 2}):
    print(cost_of(dataclasses.replace(full, **changes)), end="\n\n")

# %% [markdown]
# ## Exercise 1: what does an interrupted job cost?
#
# *Difficulty: medium · importance: medium · about 15 minutes*
#
# **Spot** instances are AWS's spare machines. They cost up to 90% less, but AWS may take them back with two minutes'
# warning. A job that saves in these two minutes loses nothing. Suppose that yours cannot, because one of its steps
# takes longer. Then all training after the last checkpoint is lost, and every new machine first has to start.
#
# Return the minutes that are billed. The job needs `work` minutes of training and saves after every `save_every`
# minutes of training. Each machine takes `start` minutes before it trains. `machines` says how many minutes each one
# lasts, from its start, before AWS takes it back; the machine after these stays until the job ends. Waiting for the
# next machine is not billed.
#
# By hand: 240 minutes of work, a checkpoint every 60, 6 minutes to start, machines `[90, 132]`. The first machine
# trains for 84 minutes and has saved 60. The second trains for 126 more and has saved 180. The third starts and trains
# the last 60. Billed: 90 + 132 + 66 = 288 minutes. Without interruption it would be 246.


# %%
def billed_minutes(work, save_every, start, machines):
    """Return the minutes for which a spot job is billed; all arguments are whole minutes."""
    # YOUR CODE HERE
    # >>> solution
    billed = done = 0
    for lasts in machines:
        if lasts >= start + work - done:  # the job ends first
            break
        billed += lasts
        done += max(0, lasts - start) // save_every * save_every
    return billed + start + work - done
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. Keep two sums: what is billed so far, and how much training is saved. Each machine changes both.
# 2. A machine that is taken back adds its whole time to the bill, and `max(0, lasts - start) // save_every *
#    save_every` to the saved training. A machine that lasts longer than `start` plus the rest of the work ends the job.

# %%
from lab_utils.teaching import checks

checks.check_billed_minutes(billed_minutes)

# %% [markdown]
# At 70% off, is spot still worth it? The machines last 90, 132, 47 and 60 minutes:

# %%
for save_every in (15, 60, 240):
    minutes = billed_minutes(240, save_every, 6, [90, 132, 47, 60])
    share = 0.3 * minutes / billed_minutes(240, save_every, 6, [])
    print(f"a checkpoint every {save_every:>3} minutes: {minutes} minutes billed, {share:.0%} of the price on demand")

# %% [markdown]
# A checkpoint every 240 minutes is none before the end. Such a job can still be cheaper than on demand, as here, but it
# may also never end: each interruption starts it again.
# `max_wait_hours` bounds waiting and training together.

# %% [markdown]
# ## Metrics come from the log
#
# SageMaker does not know your metrics. It reads them from the job's log. A **metric definition** is a name and a
# regular expression; in each matching line, group 1 is the value. Each logged step prints one such line:
#
# ```text
# metrics grpo step=1 of=12 loss=-0.01 reward=0.125 accuracy=0.0625 completions/mean_length=31.2
# ```
#
# By hand: what does `metrics grpo .* reward=([-+0-9.e]+)` find in this line? The space before the name matters: without
# it, `loss` would also match the `value_loss=` in the line of a PPO job.

# %%
definitions = {d["Name"]: d["Regex"] for d in request["AlgorithmSpecification"]["MetricDefinitions"]}
print(f"{len(definitions)} metric definitions (40 are allowed), such as:")
for name in list(definitions)[:3]:
    print(f"  {name:<20} {definitions[name]}")

# %% [markdown]
# ## Exercise 2: read a log as SageMaker does
#
# *Difficulty: easy · importance: medium · about 10 minutes*
#
# Return the values of one metric: search each line of the log for the regular expression, and take group 1 as a number.
# A line has at most one value.

# %%
import re


def logged_values(regex, log):
    """Return the values of a metric in a log, as floats, in the order of the lines."""
    # YOUR CODE HERE
    # >>> solution
    return [float(found[1]) for line in log.splitlines() if (found := re.search(regex, line))]
    # <<< solution


line = "metrics grpo step=1 of=12 loss=-0.01 reward=0.125 accuracy=0.0625 completions/mean_length=31.2"
logged_values(r"metrics grpo .* reward=([-+0-9.e]+)", line)

# %% [markdown] tags=["hints"]
# 1. `log.splitlines()` gives the lines. `re.search(regex, line)` returns None for a line that does not match.
# 2. `found[1]` is group 1, as text; `float` also reads `2.5e-05`.

# %%
checks.check_logged_values(logged_values)

# %% [markdown]
# ## The real run, with an interruption
#
# With `LAUNCH = True` the job runs on AWS. Otherwise the **emulated container** runs the recorded request on this
# machine. A folder stands for `/opt/ml`; the channels are copied into it, and the job's own entry point starts. It is
# not a docker image: the job uses the packages of this environment and installs none.
#
# The emulation also shows a spot interruption. After a few steps the first machine is "taken back": the job gets
# SIGTERM, the signal that asks a program to end, saves a checkpoint and ends. A second job starts with the same
# `/opt/ml/checkpoints`. On two CPU cores the two jobs take less than a minute. You will see three bars: until the
# interruption, until the first job's end, and the second job's.

# %%
from lab_utils.sagemaker.emulation import start

if not LAUNCH:
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
    from lab_utils.sagemaker.preflight import account_problems, stop_at
    from lab_utils.sagemaker.session import connect

    session = connect(REGION, BUCKET)
    stop_at(job_problems(job) + account_problems(job, session))
    name, lines = launch(job, session), []
    finished = follow(name, session, on_line=lambda line: (print(line), lines.append(line)))
    print(finished)
    if finished.status != "Completed":
        raise SystemExit("The job has no model: read its log above.")
    download(name, session, work / "outputs")
    log, outputs, model = "\n".join(lines), work / "outputs", finished.model

# %% [markdown]
# ## The metrics in the log
#
# Apply your function and the job's metric definitions to the job's log.

# %%
from lab_utils.figures import plot_log

shown = [f"{stage}:{name}" for name in ("reward", "accuracy", "completions/mean_length", "attempts")]
plot_log({name: logged_values(definitions[name], log) for name in shown}, figures / "11_metrics_from_the_log.png")

# %% [markdown]
# The job's run directory has the same numbers and more. It has the same files as that of any other run.

# %%
from lab_utils.runs import RunDirectory

run = RunDirectory(outputs / stage)
metrics = run.metrics()
print("steps in the metrics:", metrics["step"].tolist())
rewards = logged_values(definitions[f"{stage}:reward"], log)
print(f"last reward in the log: {rewards[-1]:.4f}, in the run directory: {metrics['reward'].iloc[-1]:.4f}")
print("files:", ", ".join(sorted(path.name for path in run.path.iterdir())))

# %% [markdown]
# ## What you should see, and what it means if you don't

# %%
steps = [int(step) for step in re.findall(rf"metrics {stage} step=(\d+) ", log)]
for claim, holds in (
    ("the metrics have every step once", metrics["step"].tolist() == list(range(1, len(metrics) + 1))),
    ("no step was trained twice", steps == sorted(set(steps))),
    ("log and metrics agree", abs(rewards[-1] - metrics["reward"].iloc[-1]) < 1e-4),
):
    print(f"  {'yes    ' if holds else 'NOT YET'}  {claim}")

# %% [markdown]
# The interruption leaves no trace in the metrics: the second machine resumes after the last saved step, with the same
# data order and random numbers. A repeated step means that the job was killed before it could save. It then resumed
# from the last regular checkpoint (`save_steps`), and the log holds the steps after that checkpoint twice.
#
# Two minutes are not long. A job stops at the end of a rollout. If a rollout takes longer than two minutes, only the
# regular checkpoints remain, so choose `save_steps` by how much work you can afford to lose.
#
# ## Evaluation as a processing job
#
# A **processing job** is the same with other folders: inputs and outputs are under `/opt/ml/processing`. It runs
# `scripts/evaluate.py` on the job's model and writes `eval.json`, with every example.

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
# One number hides much. How long are the responses, and which lengths are correct? Does the model answer the same
# questions correctly every time?

# %%
from lab_utils.figures import plot_attempts

plot_attempts({f"{stage.upper()} job": evaluation}, figures / "11_lengths.png", name="num_tokens")

# %%
from lab_utils.figures import plot_problem_accuracy

plot_problem_accuracy(evaluation, figures / "11_accuracy_by_question.png")

# %% [markdown]
# Here long responses are rarely correct: they are long because their attempts failed. Few questions get the same
# verdict eight times. GRPO learns from groups with correct and wrong answers, so mostly from the questions in the
# middle. A question with none or all correct had no such group here. With more samples it may have one (notebook 06).
#
# ## From the command line, and cleaning up
#
# ```bash
# export SAGEMAKER_ROLE=arn:aws:iam::...:role/... SAGEMAKER_BUCKET=... AWS_DEFAULT_REGION=us-east-1
# python scripts/launch_sagemaker.py train --recipe countdown-grpo --hardware a10g --spot --max-wait-hours 8 --dry-run
# python scripts/launch_sagemaker.py status      # everything that costs money
# python scripts/launch_sagemaker.py stop NAME
# ```
#
# A training job ends by itself, and so does its cost. Its outputs stay in S3. An endpoint (notebook 12) runs until you
# delete it. [setup/sagemaker](../setup/sagemaker/README.md) describes the account, the quotas to request, an image that
# starts faster, jobs on several machines (`--instances`), a script, packages and data of your own, and accounts with a
# private network. It ends with a checklist for the first person who runs all this on AWS.
#
# ## Summary
# - A job is one request: container, channels, command, machine, limits. Build it, check it, price it, then send it.
# - The job runs the code of your machine and returns a run directory.
# - Spot is cheap because it can end at any time. A job that saves when SIGTERM comes loses nothing; one that cannot
#   save in time loses what it did after its last checkpoint.
# - SageMaker reads metrics from the log by regular expressions. Print one line per step that is easy to parse.
#
# ## Questions
#
# Think first. The answers are in [ANSWERS.md](ANSWERS.md).
#
# 1. Your job has 8 GPUs, and the recipe uses one. What do you pay for? What would you change?
# 2. A spot job was interrupted five times and took 10 hours instead of 2. When is it still cheaper? Which setting
#    limits the 10 hours?
# 3. Which channel do you need to train on your own problems, and which files does it hold?
# 4. Why should a job not print its environment to its log?
#
# Next: [12 · Serving and sharing](12_serving_and_sharing.ipynb) puts the model behind an endpoint, and deletes it
# again.
