# %% [markdown]
# # 06 · GRPO training
#
# <!-- badges -->
#
# > **You will learn** to train with TRL's GRPOTrainer; to read reward, length, entropy and the groups without a
# > signal during the run; to say what exactly the model has learned; what changes on a GPU with vLLM; to run a whole
# > recipe, and to track it with W&B.
# >
# > **Time** the machine: 2 minutes on a CPU; on a GPU, by `scripts/estimate.py`, 8 to 49 minutes (H200) or 1.4 to 9
# > hours (T4) · you: 50 minutes · **Needs** notebook 03 in the same OUTPUT_DIR (if its model is missing, it is trained
# > here)

# %% tags=["setup"]
# The builder writes this cell: notebooks/src/setup_cell.py.

# %% tags=["parameters"]
RECIPE = "countdown-grpo"
HARDWARE = "cpu"  # or "auto", or one of the GPU tiers
OUTPUT_DIR = "outputs"
SEED = 0

# %%
from pathlib import Path

from lab_utils.config import load
from lab_utils.machine.gpu import check_machine
from lab_utils.tasks import load_task
from lab_utils.teaching.inspection import show_completions
from lab_utils.training import grpo
from lab_utils.training.stages import start_model

config = load(RECIPE, HARDWARE, {"seed": SEED})
check_machine(config)
task = load_task(config.task)
runs = Path(OUTPUT_DIR) / task.name
figures = Path(OUTPUT_DIR) / "figures"
start = start_model(config, runs, "grpo")  # notebook 03's model, trained now if it is missing
print(f"Task {task.name}, tier {config.hardware} ({config.hardware_reason}), start: {start}")

# %% [markdown]
# ## One step of GRPO
#
# In notebook 05 you wrote each part and trained with a loop of your own. TRL's `GRPOTrainer` repeats the same four
# parts. It **samples** a group of completions for each of several problems (all of them together are a **rollout**). It
# **scores** them with the reward functions, turns the scores of a group into **advantages**, and **updates** the
# policy. Then it throws the completions away: the next step samples from the new policy.
#
# Nothing tells the model how to solve a problem. What earned more becomes more likely, and that is all.

# %%
settings = config.grpo
completions = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
print(f"each step:     {completions // settings.num_generations} problems × {settings.num_generations} completions")
print(f"steps:         {settings.max_steps if settings.max_steps > 0 else 'as many as the problems give'}")
print(f"reward:        {' + '.join(f'{weight:g} · {name}' for name, weight in config.rewards.items())}")
print(f"learning rate: {settings.learning_rate:g} ({settings.lr_scheduler_type}), clip ±{settings.epsilon}, "
      f"KL coefficient {settings.beta:g}, temperature {settings.temperature:g}")
print(f"longest:       {settings.max_completion_length} tokens")

# %% [markdown]
# The temperature is part of the policy that learns. It divides the logits when a completion is sampled, and the loss
# divides them too, so that both mean the same probabilities. An evaluation at another temperature asks another policy.
# The tiny model trains and is tested at 0.8, because many tokens that it rarely writes are mistakes, such as a division
# that leaves a remainder.
#
# ## Which groups teach?
#
# An advantage is a comparison within a group. If all completions earn the same, every advantage is 0 and the group
# teaches nothing, whether all are correct or all are wrong. Take a problem that the model solves with probability *p*,
# a reward of 1 or 0, and groups of *G*:
#
# - The share of groups without a signal is $p^G + (1 - p)^G$.
# - The variance of the rewards is $p (1 - p)$. GRPO divides by its root (notebook 05), so every group with a signal
#   teaches about as much, whatever $p$ is. What $p$ decides is how many groups have a signal. Without the division
#   (Dr. GRPO) the variance would count here as well.
#
# Check one row by hand, such as the one with $p = 0.5$.

# %%
import pandas as pd

p = pd.Series([0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
without_signal = {f"no signal, G = {G}": p**G + (1 - p) ** G for G in (2, 4, 16)}
pd.DataFrame({"p": p, "variance p(1-p)": p * (1 - p), **without_signal}).round(3)

# %% [markdown]
# Too hard teaches as little as too easy. Larger groups help with hard problems: one lucky completion is enough.
#
# ## Exercise 1: the share of groups without a signal
#
# *Difficulty: easy · importance: high · about 10 minutes*
#
# `rewards` is a flat list, as TRL keeps it: the completions of a group stand one after the other. Return the share of
# groups whose rewards are all equal. TRL logs it as `frac_reward_zero_std`. By hand: `[1, 0, 0, 0, 0, 0, 0, 0]` in
# groups of 4 gives 0.5.

# %%
def share_without_signal(rewards, num_generations):
    """Return the share of groups in which all `num_generations` rewards are equal."""
    # YOUR CODE HERE
    # >>> solution
    groups = [rewards[start : start + num_generations] for start in range(0, len(rewards), num_generations)]
    return sum(max(group) == min(group) for group in groups) / len(groups)
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. Cut the list into pieces of `num_generations` first. When are all rewards of one piece equal, whatever they are?
# 2. `rewards[start : start + num_generations]` for `start` in `range(0, len(rewards), num_generations)`. All are equal
#    if the largest equals the smallest.

# %%
from lab_utils.teaching import checks

checks.check_share_without_signal(share_without_signal)

# %% [markdown]
# ## Exercise 2: 90% correct, and how many groups still teach?
#
# *Difficulty: medium · importance: high · about 10 minutes*
#
# A model answers 90% of the samples correctly, and groups have 8 completions. Elsewhere you may read that 0.9⁸ +
# 0.1⁸ = 43% of its groups have no signal. That assumes that all problems are equally hard. They never are.
# `solve_rates` holds one *p* for each problem. Return the share of groups without a signal that you expect. (Notebook
# 03 asked for the live groups, which are all others.)
#
# By hand, for groups of 2: if both problems have p = 0.5, half of the groups have no signal. If one problem is always
# solved and the other one never, the mean is 0.5 as well, and *no* group has a signal.

# %%
def expected_without_signal(solve_rates, num_generations):
    """Return the expected share of groups without a signal, for problems that are solved at these rates."""
    # YOUR CODE HERE
    # >>> solution
    silent = [p**num_generations + (1 - p) ** num_generations for p in solve_rates]
    return sum(silent) / len(silent)
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. Each problem has its own probability that its group is all correct or all wrong. In which order do you average and
#    raise to a power?
# 2. For each p: `p**num_generations + (1 - p)**num_generations`. Then take the mean of these numbers.

# %%
checks.check_expected_without_signal(expected_without_signal)

# %%
for name, rates in {"all problems at 90%": [0.9] * 10, "nine always solved, one never": [1.0] * 9 + [0.0],
                    "half at 100%, half at 80%": [1.0] * 5 + [0.8] * 5}.items():
    print(f"{name:<30} {expected_without_signal(rates, 8):4.0%} of the groups have no signal")

# %% [markdown]
# The mean accuracy alone does not tell you how much there is left to learn from. With mixed problems it is always at
# least as bad as the formula says for their mean. That is why many recipes filter the problems: keep those that are
# solved *sometimes*.
#
# ## The real run
#
# Write down your guess first: will the responses become longer or shorter? The next cell trains for about two minutes
# on two CPU cores. The progress bar shows the mean reward, the accuracy on the problems of the step, and the mean
# length. To watch the same numbers as curves in Colab, first run `%load_ext tensorboard` and `%tensorboard --logdir
# outputs` in a cell of their own. Elsewhere type this in a terminal, in the workshop's folder and with your own
# OUTPUT_DIR:
#
# ```bash
# tensorboard --logdir outputs
# ```
#
# If you interrupt the cell and run it again, it resumes from the last checkpoint. A finished run is not trained again;
# to train it again, delete its folder, or choose another OUTPUT_DIR.

# %%
run = grpo.train(config, runs / "grpo", model=start, resume=True)
metrics = run.metrics()
print(f"{metrics['step'].max()} steps in {metrics['seconds'].max() / 60:.1f} minutes; the model is in {run.model_dir}")

# %%
from lab_utils.figures import plot_training

plot_training({"GRPO": run}, figures / "06_training.png")

# %% [markdown]
# The accuracy of single steps jumps up and down. Is that learning and forgetting? Each step asks *other* problems, a
# handful of them, and some are harder. The points in the accuracy panel ask the *same* held-out problems each time, so
# judge the trend by them. How far does a step move by chance? The problems are the sample, so the standard error is the
# spread between problems, divided by the root of their number. (Notebook 09 has an exercise on this.)

# %%
per_problem = run.completions().groupby(["step", "question"])["correct"].mean()  # of the groups that were recorded
problems = completions // settings.num_generations
spread = per_problem.groupby("step").std().mean()
print(f"share of correct responses, standard deviation between problems: {100 * spread:.0f} points")
print(f"so the accuracy of a step with {problems} problems has a standard error of "
      f"{100 * spread / problems**0.5:.0f} points")

# %% [markdown]
# Steps that differ by twice this are nothing unusual, and neither is a dip of two or three steps in a row.
#
# Which reward function pays for the gain? The next figure splits the reward into each function's mean times its weight.
# The parts add up to the total.

# %%
from lab_utils.figures import plot_reward_components

plot_reward_components(run, figures / "06_reward_components.png")

# %% [markdown]
# ## What you should see, and what it means if you don't

# %%
from lab_utils.teaching.inspection import expect, side_by_side

tenth = max(1, len(metrics) // 10)
before, after = metrics.head(tenth).mean(), metrics.tail(tenth).mean()
for name in ("reward", "accuracy", "completions/mean_length", "attempts"):
    print(f"{name:<25} {before[name]:6.2f} → {after[name]:6.2f}   (first and last {tenth} steps)")
expect(config, "accuracy has risen by more than 20 points", after["accuracy"] - before["accuracy"] > 0.2)
expect(config, "responses have become longer", after["completions/mean_length"] > before["completions/mean_length"])
expect(config, "responses make more attempts", after["attempts"] > before["attempts"])

# %% [markdown]
# Reward and accuracy rise together: slowly in the first steps, in which the learning rate itself rises from 0
# (`warmup_ratio`), then steeply. The responses become longer, and the model makes more attempts. No reward asked for
# that: one looks at the answer, the other at the tags.
#
# If you don't see that, check first whether `reward` and `accuracy` diverge. A reward that rises alone is earned by
# something other than correct answers (notebook 07). If both stay flat, look at the figure of the run's health below.
#
# ## Exercise 3: what exactly has it learned?
#
# *Difficulty: medium · importance: high · about 15 minutes*
#
# "It makes more attempts" can have two reasons. Either it has learned not to give up after a failed attempt, or it
# fails more often and so needs more attempts. So count the decision itself. The tiny model ends each attempt with
# `yes` or `no`. After a `no` it has a choice: a new line with the next attempt, or `</think>` and an answer that it
# knows to be wrong. Return how many attempts of some responses ended with `no`, and after how many of these the model
# gave up.
#
# By hand: `<think>9 - 2 = 7 no\n9 + 2 = 11 no</think><answer>9 + 2</answer>` has two failed attempts, and the model
# gives up once. A response that was cut off after its last `no` has not given up.

# %%
import re


def failed_and_given_up(responses):
    """Return two counts: the attempts that ended with "no", and those of them after which </think> follows."""
    # YOUR CODE HERE
    # >>> solution
    after_no = [found for text in responses for found in re.findall(r"\bno\b\s*(</think>)?", text)]
    return len(after_no), sum(found == "</think>" for found in after_no)
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. Two things can be searched for in each response: the word `no`, and the word `no` with `</think>` right after it.
#    Which wrong counts would `text.count("no")` give?
# 2. `re.findall(r"\bno\b\s*(</think>)?", text)` returns one string for each `no`: `"</think>"` if the model gave up
#    there, else `""`.

# %%
checks.check_failed_and_given_up(failed_and_given_up)

# %%
def share(part, whole):
    return f"{part} of {whole} ({part / max(1, whole):.0%})"


counts = {}
for step, rows in run.completions().groupby("step"):
    failed, given_up = failed_and_given_up(rows["completion"])
    hits = rows["completion"].str.count(r"\byes\b")
    counts[f"step {step}"] = {"attempts that end with yes": share(hits.sum(), hits.sum() + failed),
                              "gives up after a no": share(given_up, failed),
                              "correct, if it says yes": share(rows["correct"][hits > 0].sum(), sum(hits > 0))}
pd.DataFrame(counts).T

# %% [markdown]
# Compare the first two columns. If the first share stays about where it was and the second one falls, then the model
# has not become much better at finding attempts. It has learned to go on. (Each step asks other problems, so the shares
# jump. A full-size model writes no such marks: then there is nothing to count.)
#
# Why did it learn that? A wrong answer in the correct format earns 0.1, whether the model gave up early or late.
# Another attempt may earn 1.1, and costs nothing: no reward looks at the length. So going on is worth more on average.
# Is the gain *only* that? Notebook 08 looks at the first attempts.
#
# The last column is a warning. After SFT nearly every `yes` is true; in training it becomes less reliable. A false
# `yes` costs no more than giving up: either one ends the search and earns 0.1. No reward prefers the honest verdict.
#
# The same bargain explains **runaway searches**, responses that repeat attempts until they are cut off. They earn 0
# instead of 0.1, a small loss, and most searches do end before the limit. The share of responses cut off rises when
# giving up becomes rare. It can fall again, as the policy learns from the ones that went wrong.
#
# ## Is the run healthy?

# %%
drawn = [n for n in ("entropy", "kl", "frac_reward_zero_std", "completions/clipped_ratio") if n in metrics]
plot_training({"GRPO": run}, figures / "06_health.png", metrics=drawn)

# %% [markdown]
# How to read them:
#
# - **Entropy** measures how undecided the policy is at a token. It can fall, as the policy settles on what pays. It
#   can also rise for a while, if what pays is to keep searching after a failed attempt. Watch out for a fall to almost
#   nothing within a few steps. That is a collapse: all completions of a group become the same, and learning ends.
# - **KL to the reference** measures how far the policy has moved from the model it started from, in nats per token.
#   Training subtracts `beta` times the KL from what it maximizes (notebook 05). The KL rises as the model learns. If
#   it shoots up while the reward stays flat, the policy drifts. Without a KL term (`beta` = 0, as in many recipes for
#   larger models) there is no curve.
# - **Groups without a signal** (your exercise) may rise at the end, because more and more groups are entirely correct.
#   Near 100% from the start means that nothing can be learned: the problems are too hard, or the reward never fires.
# - **Responses cut off** reached the maximum length, nearly always without an answer. Watch this curve when responses
#   grow. A limit that is too low punishes searching, and a model that never stops wastes all of its tokens.
#
# The table has every metric that was logged, at a quarter of the run and at the end. `seconds`, `epoch`, `num_tokens`
# and `learning_rate` only say that time has passed. Which row shows best that the model has learned? (The one that asks
# the same problems each time.) **grad_norm** should stay within one order of magnitude. If it spikes while the reward
# falls, lower the learning rate.

# %%
from lab_utils.teaching.metrics import metrics_table

metrics_table(run)

# %% [markdown]
# One more number is special here. The **clip ratio** is the share of tokens whose probability ratio has left 1 ± ε:

# %%
print(f"optimizer steps per rollout: {config.grpo.num_iterations}")
print(f"largest clip ratio of the run: {metrics['clip_ratio/region_mean'].max():.4f}")

# %% [markdown]
# If each rollout is used for one update only, the policy that learns *is* the policy that sampled. All ratios are 1,
# and nothing is clipped. Clipping matters with several updates per rollout (`num_iterations`, `steps_per_generation`).
#
# The loss is no guide either. The advantages of a group add up to 0, but the loss type here, `dapo`, averages over
# tokens, so a long completion counts more than a short one. Soon the long completions are those that searched and
# failed. Their advantages are negative, and minus a negative mean is positive. The KL term is added on top. So the loss
# often *rises* while the model gets better:

# %%
print(f"loss, first and last {tenth} steps: {before['loss']:.3f} → {after['loss']:.3f}")

# %% [markdown]
# ## Read what it wrote
#
# Curves can hide what text shows. Here are question, gold, response and extracted answer of two completions of one
# group, from the first step, the middle and the end.

# %%
recorded = run.completions()["step"].unique()
for step in sorted({recorded[0], recorded[len(recorded) // 2], recorded[-1]}):
    print(show_completions(run, step=step, n=2), end="\n\n\n")

# %% [markdown]
# The completions browser shows the whole group at each recorded step, with every response's advantage. The color of a
# token shows how the step's update changed its probability: blue means more probable, orange less. Step 1 has no colors
# if the learning rate is still 0 there. Move the slider one step on, and look at what follows a `no`. Which color has
# `</think>`, and does it have the same color after a `yes`?

# %%
from lab_utils.figures import browse_completions

browse_completions(run)

# %% [markdown]
# Check the sums while you read. The reward looks at the answer only, so a response with a wrong sum in its reasoning
# can still be rewarded. How often does that happen, and do the sums get better or worse with training?

# %%
from lab_utils.teaching.inspection import sums_right

shares = {}
for step, rows in run.completions().groupby("step"):
    sums = [sums_right(text) for text in rows["completion"]]
    right, count = sum(map(sum, sums)), max(1, sum(map(len, sums)))
    shares[step] = right / count, (right / count * (1 - right / count) / count) ** 0.5  # with its standard error
    despite_it = sum(correct and not all(found) for correct, found in zip(rows["correct"], sums, strict=True))
    print(f"step {step:>4}: {right:>3} of {count:>3} sums are correct ({right / count:5.1%}); "
          f"{despite_it} of {rows['correct'].sum()} correct answers come with a wrong sum")
(first, first_error), (last, last_error) = shares[min(shares)], shares[max(shares)]
shift, margin = last - first, 2 * (first_error**2 + last_error**2) ** 0.5
print(f"from the first step to the last: {100 * shift:+.1f} ± {100 * margin:.1f} points, so the sums get",
      "better" if shift > margin else "worse" if shift < -margin else "neither better nor worse that one could see")

# %% [markdown]
# Nothing in the reward makes sums better. If a wrong sum hits the target, `yes` follows, and the answer is not paid.
# But a wrong sum in a failed attempt costs nothing, and longer responses hold more sums, in places where the model has
# less practice. Expect the sums to stay or to get a little worse.
#
# The run directory keeps such samples for some steps. Here is your function on their rewards, next to what TRL logged
# for all completions of the step. The samples are the first groups only, so the two numbers may differ.

# %%
logged = metrics.set_index("step")["frac_reward_zero_std"]
for step, rows in run.completions().groupby("step"):
    yours = share_without_signal(rows["reward"].tolist(), settings.num_generations)
    groups = len(rows) // settings.num_generations
    print(f"step {step:>4}: {yours:4.0%} of {groups} groups; logged for the whole step: {logged[step]:4.0%}")

# %% [markdown]
# ## Before and after, side by side
#
# The first test problems, not picked by hand, answered by the model before and after training.

# %%
from lab_utils.models import load_model, load_tokenizer
from lab_utils.sampling.local import sample

test_rows = task.dataset("test", limit=3, source=config.task.source)
responses = {
    label: sample(load_model(path, config.model), load_tokenizer(path), [row["prompt"] for row in test_rows], seed=SEED,
                  temperature=settings.temperature, max_new_tokens=config.evaluation.max_new_tokens)
    for label, path in (("before GRPO", start), ("after GRPO", run.model_dir))
}
for i, row in enumerate(test_rows):
    texts = {label: answers[i][0].text for label, answers in responses.items()}
    verdicts = {label: "correct" if task.is_correct(text, row) else "wrong" for label, text in texts.items()}
    print(row["prompt"][-1]["content"])
    print(side_by_side({f"{label}: {verdicts[label]}": text for label, text in texts.items()}), "\n")

# %% [markdown]
# Three problems prove nothing. Notebook 08 asks hundreds of problems several times each, with intervals and controls.
#
# ## The same cell on a GPU
#
# A recipe says what is learned, and a tier says how it fits the machine. `grpo.train` reads both from the
# configuration. On a GPU, vLLM samples the completions in the same process. Nothing in this notebook changes except
# `HARDWARE`.

# %%
def shown(tier):
    tier = load(RECIPE, tier)
    names = ("num_generations", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
             "max_completion_length", "use_vllm", "vllm_gpu_memory_utilization")
    return {"model": tier.model.name, "LoRA": tier.model.lora is not None, "problems": tier.task.source,
            **{f"grpo.{name}": getattr(tier.grpo, name) for name in names}}


pd.DataFrame({tier: shown(tier) for tier in ("cpu", "t4", "a100")})

# %% [markdown]
# The same as a script, with any setting changed on the command line:
#
# ```bash
# python scripts/train.py --recipe countdown-grpo --hardware a100 --set grpo.beta=0.001 --output-dir outputs/mine
# ```
#
# ## A whole recipe, tracked by Weights & Biases
#
# `finished_run` trains a stage of a recipe and every stage before it, in the directories that `scripts/train.py` writes
# too. Here it runs `reasoning-sft-grpo`: SFT on responses with `<think>` tags, then GRPO with the five weighted rewards
# of notebook 02. To save your time `few` keeps only a few steps: the cells show the way, not the gain. Without it they
# train and evaluate the whole recipe, as `scripts/train.py --recipe reasoning-sft-grpo --evaluate` does.
#
# The run is also recorded for Weights & Biases. With `WANDB_MODE=offline` nothing is sent. A key in the variable
# `WANDB_API_KEY` turns W&B on by itself, for every run, and is written into no file. The table below splits the reward
# into the parts of its functions, mean times weight, on 25 problems: too few for a conclusion.

# %%
import os

from lab_utils.evaluation import evaluate_run, rewards_table
from lab_utils.training.stages import finished_run

os.environ["WANDB_MODE"] = "offline"
few = {"task.test_limit": 25, "tracking.wandb": True, "seed": SEED}
if config.hardware != "smoke":
    few |= {"sft.max_steps": 40, "grpo.max_steps": 3, "grpo.log_completions_steps": 1}
if config.hardware == "cpu":
    few |= {"grpo.per_device_train_batch_size": 64, "grpo.probe_rollouts": 0, "evaluation.num_samples": 4}
recipe = load("reasoning-sft-grpo", config.hardware, few)
stages = {stage.upper(): finished_run(recipe, Path(OUTPUT_DIR) / "reasoning", stage) for stage in recipe.stages}

# %%
rewards_table({label: evaluate_run(stage, recipe) for label, stage in stages.items()})

# %% [markdown]
# W&B has every logged metric as a curve, and the recorded completions as a table with a slider for the step.
# `wandb sync` sends the folder later. You will see the files, and the last table as W&B will show it.

# %%
import json

folder = stages["GRPO"].path / "wandb"
tables = sorted(folder.rglob("*.table.json"))
print(*(f"{path.relative_to(folder)}" for path in sorted(folder.rglob("*")) if path.is_file()), sep="\n")
print(f"\nTo send it: wandb sync {folder}/offline-run-*")
table = json.loads(tables[-1].read_text(encoding="utf-8"))
pd.DataFrame(table["data"], columns=table["columns"]).head(4)

# %% [markdown]
# ## Summary
# - A step samples groups, scores them, compares within each group, and updates once. The reward is the only teacher.
# - The model gives up less often because going on pays. Its responses become longer, and accuracy rises.
# - A step's accuracy is that of its few problems. Judge the trend by the same problems every time.
# - Read reward *and* accuracy, length *and* truncation, entropy, groups without a signal. Never the loss.
# - Groups that are entirely correct or entirely wrong teach nothing.
#
# ## Questions
# Think first. The answers are in [ANSWERS.md](ANSWERS.md).
#
# 1. The base model of this run had learned to calculate. What would the curves look like if it had not?
# 2. You double `num_generations` and halve the number of problems per step. What gets better, what gets worse?
# 3. Write a reward that also checks the sums. What would you expect it to do to accuracy, and how could it be hacked?
# 4. In `load`, set `{"grpo.learning_rate": ...}` to three times its value, and use another `OUTPUT_DIR`. Which curve
#    warns you first?
#
# Next: [07 · Reward hacking](07_reward_hacking.ipynb) trains on a reward with a hole; [08 ·
# Evaluation](08_evaluation.ipynb) measures what you have gained.
