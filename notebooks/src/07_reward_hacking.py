# %% [markdown]
# # 07 · Reward hacking
#
# <!-- badges -->
#
# > **You will learn** how a reward can rise while accuracy falls; to find the hole by reading the responses that earn
# > most, and by asking what each habit earns; to close it, and to show that it is closed.
# >
# > **Time** the machine: 4 minutes on a CPU, an hour on a GPU · you: 50 minutes · **Needs** nothing else: it trains its
# > own start model on word problems

# %% tags=["setup"]
# The builder writes this cell: notebooks/src/setup_cell.py.

# %% tags=["parameters"]
RECIPE = "gsm8k-grpo"
HARDWARE = "cpu"  # or "auto", or one of the GPU tiers
OUTPUT_DIR = "outputs"
SEED = 0

# %%
from pathlib import Path

from lab_utils.config import load
from lab_utils.machine.gpu import check_machine
from lab_utils.tasks import load_task
from lab_utils.training.stages import start_model

config = load(RECIPE, HARDWARE, {"seed": SEED})
if config.hardware == "cpu":  # a shorter warm-up than in the tier, which is enough for word problems
    config = load(RECIPE, "cpu", {"seed": SEED, "sft.max_steps": 100})
check_machine(config)
task = load_task(config.task)
runs = Path(OUTPUT_DIR) / task.name
figures = Path(OUTPUT_DIR) / "figures"
warm_up = start_model(config, runs, "grpo")  # for the tiny model a supervised warm-up, trained now if it is missing
print(f"Task {task.name}, tier {config.hardware} ({config.hardware_reason}), model: {warm_up}")

# %% [markdown]
# ## A model that works
#
# In notebook 06 the reward rose, and accuracy with it. Was that because GRPO works, or because the reward was good?
# Start with an honest run again, now on word problems: the trainer of notebook 06 with the five rewards of notebook 02.
# The correct answer is worth most (2.0). On a CPU the steps are few and small and the learning rate is high, to save
# your time: the cell takes less than a minute there.

# %%
from lab_utils.training import grpo


def settings(steps):
    """Return the configuration of a short run: `steps` steps on a CPU, 60 on a GPU."""
    fast = {"grpo.max_steps": steps, "grpo.learning_rate": 3e-4, "grpo.lr_scheduler_type": "constant",
            "grpo.per_device_train_batch_size": 128, "grpo.probe_rollouts": 5,
            "task.test_limit": 100, "evaluation.num_samples": 4}
    brief = {"grpo.max_completion_length": 64, "evaluation.max_new_tokens": 64}
    changes = {"cpu": fast, "smoke": brief}.get(config.hardware, {"grpo.max_steps": 60})
    return load(RECIPE, config.hardware, {"seed": SEED, **changes})


honest = grpo.train(settings(10), runs / "grpo-honest", model=warm_up, resume=True)

# %%
from lab_utils.figures import plot_training

plot_training({"GRPO": honest}, figures / "07_honest.png", metrics=("accuracy", "completions/mean_length"))

# %% [markdown]
# Accuracy rises, and so does the length: the model learns to write its steps, while after the warm-up it mostly guessed
# (most of its demonstrations did). On a server every token costs money. So you get a request: *the same model, please,
# but shorter.*
#
# ## A bonus for short responses
#
# The obvious answer is a bonus on top of the existing rewards. A correct answer is worth 2.0. Let every token saved
# below 40 be worth 0.1, so that saving 20 tokens is worth as much as being correct. TRL hands each completion's tokens
# to the reward. `int_reward` makes room for the bonus: nearly every answer is a whole number by now.

# %%
from lab_utils import rewards

LIMIT = 40 if config.model.name == "tiny" else 200  # tokens; nothing is paid from here on


def short_reward(completions, completion_ids, limit=LIMIT, **columns):
    """Return 4.0 for an empty response, falling evenly to 0.0 at `limit` tokens and beyond."""
    return [4.0 * max(0.0, 1 - len(ids) / limit) for ids in completion_ids]


FORMAT = [rewards.strict_format_reward, rewards.soft_format_reward, rewards.xmlcount_reward]  # 1.5 in all
pay = [rewards.correctness_reward, short_reward, *FORMAT]  # all with the weight 1, as in the recipe

# %% [markdown]
# It is easy to agree with each part: correct is good, short is good, the format is good, and a response that is correct
# *and* short earns most. Would you train with it? Write down your guess about accuracy before you continue.
#
# ## The run
#
# The run starts from the honest model and takes about a minute on a CPU. You will see how much the new reward pays, and
# the length of the responses.

# %%
paid_for_short = grpo.train(settings(20), runs / "grpo-short", model=honest.model_dir, resume=True, reward_funcs=pay)
plot_training({"shorter": paid_for_short}, figures / "07_apparent_success.png",
              metrics=("rewards/short_reward/mean", "completions/mean_length"))

# %% [markdown]
# As requested, the bonus climbs and the responses become shorter. (Follow the thick lines. A step has few problems, and
# the curves jump with their difficulty.) If you had logged only these two curves, you would report a success.
#
# ## Look again
#
# Every run of this workshop also logs the accuracy, whatever the reward, and for word problems the number of worked
# steps (`attempts`). Here they are for the same run:

# %%
plot_training({"shorter": paid_for_short}, figures / "07_look_again.png", metrics=("accuracy", "attempts"))

# %% [markdown]
# The model is returning to guesses. And a correct answer still paid as much as before.
#
# ## Read what earns most
#
# No curve says *why*. Text does. The cell takes the last recorded step and prints, for each problem, the **wrong**
# response that earned most:

# %%
from lab_utils.models import load_tokenizer

tokenizer, record = load_tokenizer(honest.model_dir), paid_for_short.completions()
tokens = tokenizer(record["completion"].tolist())["input_ids"]
record["bonus"] = short_reward(record["completion"], [[*ids, tokenizer.eos_token_id] for ids in tokens])
wrong = record[(record["step"] == record["step"].max()) & ~record["correct"]]
for row in wrong.loc[wrong.groupby("question")["reward"].idxmax()].itertuples():
    print(f"── reward {row.reward:.2f}, bonus {row.bonus:.2f} · gold {row.gold} ──\n{row.question}\n{row.completion}\n")

# %% [markdown]
# The steps are gone, and only a number is left. The model can solve many of these problems; you have seen it do so. It
# guesses because a guess is short, and short pays, correct or wrong. That is the **hole**.
#
# ## Ask what each habit earns
#
# You can find the hole without any training. The model after the warm-up has two *habits*: it writes the steps, or it
# guesses. Let it answer problems of two steps, together with the honest model, and sort the responses by habit. You
# will see how often each habit is correct, how long it is, and what it earns. (The format earns the same for both.)

# %%
import pandas as pd

from lab_utils.models import load_model
from lab_utils.sampling.local import sample

problems = task.dataset("train", min(1000, config.task.train_limit or 1000), config.task.source)
two_steps = [row for row in problems if row["solution"].count("<<") == 2][:48]
found = []
for path in (warm_up, honest.model_dir):
    groups = sample(load_model(path, config.model), tokenizer, [row["prompt"] for row in two_steps], num_samples=4,
                    temperature=config.grpo.temperature, max_new_tokens=config.evaluation.max_new_tokens, seed=SEED)
    found += [{"habit": "writes the steps" if task.attempts(one.text) else "guesses", "tokens": len(one.token_ids),
               "correct": task.is_correct(one.text, row), "responses": one.text}
              for row, group in zip(two_steps, groups, strict=True) for one in group]
habits = pd.DataFrame(found).groupby("habit").agg({"responses": "count", "correct": "mean", "tokens": "mean"})
habits["pays correct"] = 2.0 * habits["correct"]
habits["pays short"] = [short_reward([""], [[0] * round(tokens)])[0] for tokens in habits["tokens"]]
habits["total"] = habits["pays correct"] + habits["pays short"]
habits.round(2)

# %% [markdown]
# The habit with the higher total wins. The authors of the reward compared *texts*: correct and short with wrong and
# long. A model compares *habits*, the lines of this table.
#
# ## Exercise 1: the largest harmless bonus
#
# *Difficulty: medium · importance: high · about 15 minutes*
#
# How large may the bonus for a saved token be? Each habit is a pair: the share of correct responses, and the number of
# tokens. A correct response pays `correct`. Tokens are saved below `limit` only. Return the bonus per saved token at
# which both habits earn the same; above it, guessing pays more. If a guess saves no more tokens than the steps, no
# bonus can make it pay: return `math.inf`.
#
# An example by hand: the steps are correct in 60% and take 31 tokens, a guess is correct in 10% and takes 16. A guess
# loses 0.5 · 2.0 = 1.0 and saves 15 tokens more. So the answer is 1.0 / 15 = 0.067, and our bonus of 0.1 is too large.

# %%
import math


def largest_bonus(steps, guess, limit=LIMIT, correct=2.0):
    """Return the bonus per saved token at which the habits `steps` and `guess`, (share, tokens) each, earn the same."""
    # YOUR CODE HERE
    # >>> solution
    lost = correct * (steps[0] - guess[0])
    saved = max(0, limit - guess[1]) - max(0, limit - steps[1])
    return lost / saved if saved > 0 else math.inf
    # <<< solution


largest_bonus(steps=(0.6, 31), guess=(0.1, 16), limit=40)

# %% [markdown] tags=["hints"]
# 1. Write down what each habit earns, with an unknown bonus b for each saved token. Set both equal and solve for b. How
#    many tokens does a response save that is longer than the limit?
# 2. `lost = correct * (steps[0] - guess[0])`, and a habit saves `max(0, limit - tokens)`. Divide what a guess loses by
#    what it saves more, if that is above 0.

# %%
from lab_utils.teaching import checks

checks.check_largest_bonus(largest_bonus)

# %% [markdown]
# What would have been harmless for your model? Compare the result with what a token pays: 4.0 divided by `LIMIT`.

# %%
print(f"a saved token pays {4.0 / LIMIT:.3f}")
if len(habits) == 2:
    writes, guesses = (tuple(habits.loc[habit, ["correct", "tokens"]]) for habit in ("writes the steps", "guesses"))
    print(f"harmless up to     {largest_bonus(writes, guesses):.3f} on problems of two steps")
else:
    print(f"All responses {habits.index[0]}: this model has no second habit to compare.")

# %% [markdown]
# ## Exercise 2: what is the bonus paid for?
#
# *Difficulty: easy · importance: high · about 5 minutes*
#
# A second audit needs no habits: what share of the whole bonus goes to correct responses? `bonuses` has a number for
# each response, `right` a boolean. If nothing is paid, return 0.0. For example, of the bonuses 3.0 and 1.0, the first
# for a correct response, 0.75 goes to correct ones.

# %%
def share_to_right(bonuses, right):
    """Return the share of the sum of `bonuses` that goes to correct responses, or 0.0 if nothing is paid."""
    # YOUR CODE HERE
    # >>> solution
    earned = sum(bonus for bonus, is_right in zip(bonuses, right, strict=True) if is_right)
    return earned / sum(bonuses) if sum(bonuses) else 0.0
    # <<< solution


share_to_right([2.4, 0.6, 0.0, 1.0], [False, True, True, False])

# %% [markdown] tags=["hints"]
# 1. It is not the share of correct responses: a response with a large bonus counts more. What is the whole, and what is
#    the part? When is the whole 0?
# 2. Add up the bonuses for which `right` is true, and divide by `sum(bonuses)`, unless that is 0.

# %%
checks.check_share_to_right(share_to_right)

# %% [markdown]
# Now audit the record of the run. The first row comes from the first step, before any update: you could have known it
# without training.

# %%
for step, rows in record.groupby("step"):
    audit = share_to_right(rows["bonus"].tolist(), rows["correct"].tolist())
    print(f"step {step:>3}: {rows['correct'].mean():4.0%} of {len(rows)} responses are correct and get {audit:4.0%} of "
          f"the bonus; mean bonus {rows['bonus'].mean():.2f}")

# %% [markdown]
# The bonus does not depend on correctness, so part of it goes to wrong responses from the start, and more of it the
# more the model guesses. (The record holds the first four problems of a step, some easy, some hard, so the numbers
# jump.)
#
# This has a name. **Goodhart's law**: when a measure becomes a target, it ceases to be a good measure. Length was a
# good measure of cost as long as it was not rewarded. Training looks for texts on which reward and intention differ,
# *because* the reward is higher there.
#
# ## Exercise 3: close the hole
#
# *Difficulty: medium · importance: high · about 10 minutes*
#
# Write a bonus that cannot be earned without the goal: that of `short_reward` if the answer is **correct**, else 0.0.
# `task.is_correct(completion, {"answer": gold})` judges one completion. The self-check tries texts that you have not
# seen, and other limits.

# %%
def short_and_right_reward(completions, answer, completion_ids, limit=LIMIT, **columns):
    """Return the bonus of `short_reward` for correct responses, else 0.0; `answer` has the gold numbers as text."""
    # YOUR CODE HERE
    # >>> solution
    bonuses = short_reward(completions, completion_ids, limit)
    right = [task.is_correct(text, {"answer": gold}) for text, gold in zip(completions, answer, strict=True)]
    return [bonus if is_right else 0.0 for bonus, is_right in zip(bonuses, right, strict=True)]
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. Everything is here already: `short_reward` computes the bonus, and `task.is_correct` judges. Which arguments must
#    be passed on, so that another limit works too?
# 2. `short_reward(completions, completion_ids, limit)` gives the bonuses. Pair them with
#    `task.is_correct(completion, {"answer": gold})` for each completion and its gold answer.

# %%
checks.check_short_and_right_reward(short_and_right_reward)

# %% [markdown]
# Before you train, do the sum again. Now a habit is paid for being short only as often as it is correct. Which total is
# higher this time? A solution that is short *and* correct earns most of all. That was the request.

# %%
habits["pays short"] *= habits["correct"]
habits["total"] = habits["pays correct"] + habits["pays short"]
habits.round(2)

# %% [markdown]
# ## Train again
#
# The same start, the same problems in the same order, and as many steps (about a minute on a CPU again). Only the bonus
# differs. (If you change your reward later, delete the run's folder: a finished run is not trained again.)

# %%
closed_pay = [rewards.correctness_reward, short_and_right_reward, *FORMAT]
closed = grpo.train(settings(20), runs / "grpo-closed", model=honest.model_dir, resume=True, reward_funcs=closed_pay)
both = {"shorter": paid_for_short, "closed": closed}
plot_training(both, figures / "07_hacked_and_closed.png",
              metrics=("reward", "accuracy", "completions/mean_length", "attempts"))

# %% [markdown]
# Compare the first panel with the second. The run with the higher reward is the one that has lost what you wanted. You
# cannot compare two different rewards. Accuracy means the same in both runs.
#
# Look at the length of the closed run. Most of its tokens are steps that it needs, and leaving them out no longer pays.
# So it cannot become much shorter. Some requests cannot be met, and an honest reward shows it.
#
# ## Hold it out
#
# The curves show training problems. The final measurement needs held-out problems, which no model was trained on. All
# models answer them, and you compare the models in pairs. The columns that matter here are the accuracy, the tokens,
# and the difference from the first row (notebook 08 explains the intervals and the other columns).

# %%
from lab_utils.evaluation import evaluate_run, format_results, paired_bootstrap, results_table

models = {"GRPO": honest, "shorter": paid_for_short, "closed": closed}
evaluations = {label: evaluate_run(run, settings(20)) for label, run in models.items()}
format_results(results_table(evaluations))

# %%
hacked, repaired = (paired_bootstrap(evaluations["GRPO"].per_problem, evaluations[label].per_problem)
                  for label in ("shorter", "closed"))
between = paired_bootstrap(evaluations["shorter"].per_problem, evaluations["closed"].per_problem)
for label, d in (("shorter − GRPO", hacked), ("closed − GRPO", repaired), ("closed − shorter", between)):
    print(f"{label:<16} {100 * d.difference:+6.1f} points [{100 * d.low:+.1f}, {100 * d.high:+.1f}]")

# %% [markdown]
# ## What you should see, and what it means if you don't

# %%
from lab_utils.teaching.inspection import expect

metrics = paid_for_short.metrics()
first, end = metrics.head(3).mean(), metrics.tail(5).mean()
bonus, length = "rewards/short_reward/mean", "completions/mean_length"
if len(habits) == 2:
    expect(config, "a saved token paid more than is harmless", 4.0 / LIMIT > largest_bonus(writes, guesses))
expect(config, "the model of the honest run is correct in more than 30%", evaluations["GRPO"].accuracy > 0.3)
expect(config, "the bonus rises by more than 40%", end[bonus] > 1.4 * first[bonus])
expect(config, "and the length falls by more than a fifth", end[length] < 0.8 * first[length])
expect(config, "while accuracy falls by more than 10 points", end["accuracy"] < first["accuracy"] - 0.1)
expect(config, "on held-out problems it is worse than its start: the interval lies below 0", hacked.high < 0)
expect(config, "the closed bonus costs less than half of that", repaired.difference > hacked.difference / 2)
expect(config, "there the closed bonus is better than the holed one: the interval lies above 0", between.low > 0)

# %% [markdown]
# - Accuracy holds in the run with the holed bonus: either the model never tries guesses, or the bonus is too small to
#   make them pay. Look at the table of habits.
# - Accuracy falls in the closed run, too: look at the self-check of exercise 3, and then for another hole.
# - Every claim holds, and nothing looks hacked to you in the curves: read the text anyway.
#
# ## Why not just hold the model back?
#
# On the CPU the runs had a **KL term** all along (`grpo.beta`): every step away from the model that the run started
# from costs something. It did not prevent this. It slows hacking, because the texts that fool a reward are mostly texts
# that the start model seldom writes. But it slows learning in the same way, and it punishes what is *unlikely*, not
# what is *wrong*. A hole is still worth it if it pays more than the way there costs. Question 3 lets you see it.
#
# A habit works better:
#
# - **Write down what you want before you decide what to pay for**, and log both. Look for the step at which they part.
# - **Ask what each habit earns**, not each text: guessing, giving up, repeating, stopping early, never stopping.
# - **Read the wrong responses that earn most**, at the start, in the middle and at the end of each run.
# - **Keep a judge that training never sees**: held-out problems, and a second measure that differs from the first.
#
# ## Summary
# - A reward is a measure made into a target. Training finds the texts on which measure and target differ.
# - Each part of a reward can be sensible, and the sum can still pay for the wrong habit. Tie a bonus to the goal:
#   multiply, do not add.
# - The mean rewards of two different rewards cannot be compared. Accuracy can.
# - A fix closes the hole that you have seen. Only watching shows you the next one.
#
# ## Questions
#
# Think first. The answers are in [ANSWERS.md](ANSWERS.md).
#
# 1. Take a problem of four steps, whose worked solution is longer than `LIMIT`. How many tokens does each habit save
#    there? Is a bonus that is harmless for two steps harmless for four?
# 2. Set `LIMIT` to 15 in the closed reward. What can the model learn from it?
# 3. Add `"grpo.beta": 1.0` to `fast` and train with the holed bonus again, into another folder. Does the model still
#    guess? What would the same term have done to the honest run?
# 4. You have no answer key, only people who say which of two responses they like better. Where are the holes now?
#
# Next: [08 · Evaluation](08_evaluation.ipynb) compares models honestly.
