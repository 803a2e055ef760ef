# %% [markdown]
# # 03 · Reward hacking
#
# <!-- badges -->
#
# > **You will learn** how a reward rises while accuracy falls; to find the hole by reading what earns most; to close
# > it, and to show that it is closed; what to watch so that you notice in time.
# >
# > **Time** 3 minutes on a CPU, an hour on a GPU · **Needs** nothing else (it trains its own start on word problems;
# > notebook 04 with RECIPE = "gsm8k-grpo" would find the warm-up finished)

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
from lab_utils.tasks import load_task
from lab_utils.training.stages import start_model

config = load(RECIPE, HARDWARE, {"seed": SEED})
task = load_task(config.task.name, config.task.response_format)
runs = Path(OUTPUT_DIR) / task.name
figures = Path(OUTPUT_DIR) / "figures"
warm_up = start_model(config, runs, "grpo")  # on the tiny model a supervised warm-up, trained now where it is missing
print(f"Task {task.name}, tier {config.hardware} ({config.hardware_reason}), model: {warm_up}")

# %% [markdown]
# ## A model that works
#
# First an honest run: GRPO with the recipe's own five rewards, of which the right answer is worth most (2.0).
# Notebook 06 explains what the trainer does; here it is enough that it makes rewarded responses more likely. On a CPU
# the steps are few and small and the learning rate is high, to save your time.

# %%
from lab_utils.training import grpo


def settings(steps):
    """The configuration of a short run: so many steps on a CPU, 60 on a GPU."""
    fast = {"grpo.max_steps": steps, "grpo.learning_rate": 3e-4, "grpo.lr_scheduler_type": "constant",
            "grpo.per_device_train_batch_size": 128, "task.test_limit": 100}
    brief = {"grpo.max_completion_length": 64, "evaluation.max_new_tokens": 64}
    changes = {"cpu": fast, "smoke": brief}.get(config.hardware, {"grpo.max_steps": 60})
    return load(RECIPE, config.hardware, {"seed": SEED, **changes})


honest = grpo.train(settings(10), runs / "grpo-honest", model=warm_up, resume=True)

# %%
from lab_utils.figures import plot_training

plot_training({"GRPO": honest}, figures / "03_honest.png", metrics=("accuracy", "completions/mean_length"))

# %% [markdown]
# Accuracy rises, and so does the length: the model has learned to write its steps, where the warm-up had mostly
# guessed. On a server every token costs money. So here is the order: *the same model, please, but shorter.*
#
# ## A bonus for short responses
#
# Whoever gets this order adds a bonus to what is paid already. A right answer is worth 2.0; let every token saved below
# 40 be worth 0.1. Saving 20 tokens is then worth as much as being right. TRL hands each completion's tokens to the
# reward. `int_reward` makes room for the bonus: nearly every answer is a whole number by now.

# %%
from lab_utils import rewards

LIMIT = 40 if config.model.name == "tiny" else 200  # tokens; nothing is paid from here on


def short_reward(completions, completion_ids, limit=LIMIT, **columns):
    """4.0 for an empty response, falling evenly to 0.0 at `limit` tokens and beyond."""
    return [4.0 * max(0.0, 1 - len(ids) / limit) for ids in completion_ids]


FORMAT = [rewards.strict_format_reward, rewards.soft_format_reward, rewards.xmlcount_reward]  # 1.5 in all
pay = [rewards.correctness_reward, short_reward, *FORMAT]  # all with the weight 1, as in the recipe

# %% [markdown]
# It is easy to agree with each part of it: right is good, short is good, the format is good, and who is right *and*
# short earns most. Would you train on it? Write down your guess about accuracy before you go on.
#
# ## The run
#
# It starts from the honest model. You will see what the new reward pays, and the length that it pays for.

# %%
paid_for_short = grpo.train(settings(20), runs / "grpo-short", model=honest.model_dir, resume=True, reward_funcs=pay)
plot_training({"shorter": paid_for_short}, figures / "03_apparent_success.png",
              metrics=("rewards/short_reward/mean", "completions/mean_length"))

# %% [markdown]
# As ordered: the bonus climbs, and the responses become shorter. (Follow the thick lines. A step has few problems,
# and the curves jump with how hard they are.) If these two were all you had logged, you would report a success.
#
# ## Look again
#
# Every run of this workshop also logs the accuracy, whatever the reward, and for word problems the number of worked
# steps (`attempts`). The same run:

# %%
plot_training({"shorter": paid_for_short}, figures / "03_look_again.png", metrics=("accuracy", "attempts"))

# %% [markdown]
# The model is on its way back to guessing. And all the time a right answer was paid, as much as before.
#
# ## Read what earns most
#
# No curve says *why*. Text does. Of the last recorded step, for each problem the **wrong** response that earned most:

# %%
from lab_utils.models import load_tokenizer

tokenizer, record = load_tokenizer(honest.model_dir), paid_for_short.completions()
tokens = tokenizer(record["completion"].tolist())["input_ids"]
record["bonus"] = short_reward(record["completion"], [[*ids, tokenizer.eos_token_id] for ids in tokens])
wrong = record[(record["step"] == record["step"].max()) & ~record["correct"]]
for row in wrong.loc[wrong.groupby("question")["reward"].idxmax()].itertuples():
    print(f"── reward {row.reward:.2f}, bonus {row.bonus:.2f} · gold {row.gold} ──\n{row.question}\n{row.completion}\n")

# %% [markdown]
# There is no work left, only a number. The model can solve many of these problems; you have seen it do so. It guesses
# because a guess is short, and short is paid, right or wrong. That is the **hole**.
#
# You can see it without any training, if you ask what each *habit* earns. Take a problem of two steps, which the tiny
# model solves with a probability of about 0.6 in 31 tokens if it writes the steps, and of 0.1 in 16 tokens if it
# guesses:
#
# | habit | right answer | bonus | format | in all |
# |---|---|---|---|---|
# | writes the steps | 0.6 · 2.0 = 1.2 | 9 · 0.1 = 0.9 | 1.5 | 3.6 |
# | guesses | 0.1 · 2.0 = 0.2 | 24 · 0.1 = 2.4 | 1.5 | 4.1 |
#
# Nobody compared these two lines, only texts: right and short with wrong and long. A model compares habits.
#
# ## Exercise 1: what is the bonus paid for?
#
# *Difficulty: easy · importance: high · spend up to 5 minutes*
#
# An audit, which you can make before you train: of all the bonus that is paid, what share goes to right responses?
# `bonuses` has a number for each response, `right` a boolean. Where nothing is paid, return 0.0.

# %%
def share_to_right(bonuses, right):
    """Share of the sum of `bonuses` that goes to right responses; 0.0 where nothing is paid."""
    # YOUR CODE HERE
    # >>> solution
    earned = sum(bonus for bonus, is_right in zip(bonuses, right, strict=True) if is_right)
    return earned / sum(bonuses) if sum(bonuses) else 0.0
    # <<< solution


share_to_right([2.4, 0.6, 0.0, 1.0], [False, True, True, False])

# %%
from lab_utils.teaching import checks

checks.check_share_to_right(share_to_right)

# %% [markdown]
# On the record of the run. Read the first row as what you could have known before the first update:

# %%
for step, rows in record.groupby("step"):
    audit = share_to_right(rows["bonus"].tolist(), rows["correct"].tolist())
    print(f"step {step:>3}: {rows['correct'].mean():4.0%} of {len(rows)} responses are right and get {audit:4.0%} of "
          f"the bonus; mean bonus {rows['bonus'].mean():.2f}")

# %% [markdown]
# The bonus never asked who is right: a good part of it went to wrong responses before the first update, and nearly all
# of it does in the end. (The record holds the first four problems of a step, some easy, some hard, so the numbers
# jump.)
#
# This has a name. **Goodhart's law**: when a measure becomes a target, it ceases to be a good measure. Length was a
# good measure of thrift as long as nobody was paid for it. Training looks for texts on which reward and intention
# differ, *because* the reward is higher there.
#
# ## Exercise 2: close the hole
#
# *Difficulty: medium · importance: high · spend up to 10 minutes*
#
# Make the bonus one that cannot be earned without the goal: that of `short_reward` where the answer is **right**, else
# 0.0. `task.is_correct(completion, {"answer": gold})` judges one completion. The self-check tries texts that you have
# not seen, and other limits.

# %%
def short_and_right_reward(completions, answer, completion_ids, limit=LIMIT, **columns):
    """The bonus of `short_reward` for right responses, 0.0 for others; `answer` has the gold numbers as text."""
    # YOUR CODE HERE
    # >>> solution
    bonuses = short_reward(completions, completion_ids, limit)
    right = [task.is_correct(text, {"answer": gold}) for text, gold in zip(completions, answer, strict=True)]
    return [bonus if is_right else 0.0 for bonus, is_right in zip(bonuses, right, strict=True)]
    # <<< solution


# %%
checks.check_short_and_right_reward(short_and_right_reward)

# %% [markdown]
# Before you train, do the sum again. A guess now earns 0.1 · (2.0 + 2.4) + 1.5 = 1.9, the steps 0.6 · (2.0 + 0.9) + 1.5
# = 3.2. A solution that is short *and* right earns most of all. That was the order.
#
# ## Train again
#
# The same start, the same problems in the same order, as many steps. Only the bonus differs. (If you change your
# reward later, delete the run's folder: a finished run is not trained again.)

# %%
closed_pay = [rewards.correctness_reward, short_and_right_reward, *FORMAT]
closed = grpo.train(settings(20), runs / "grpo-closed", model=honest.model_dir, resume=True, reward_funcs=closed_pay)
both = {"shorter": paid_for_short, "if right": closed}
plot_training(both, figures / "03_hacked_and_closed.png",
              metrics=("reward", "accuracy", "completions/mean_length", "attempts"))

# %% [markdown]
# Compare the first panel with the second. The run with the higher reward is the one that has lost what you wanted. Two
# rewards cannot be compared; accuracy means the same in both runs.
#
# The closed run stays about as long as it was: most of its tokens are steps that it needs, and now nobody is paid for
# leaving them out. Some orders cannot be met, and an honest reward shows it.
#
# ## Hold it out
#
# The curves are of training problems. The last word belongs to problems on which nobody has trained. All models answer
# them, and are compared in pairs (notebook 08 explains the intervals).

# %%
from lab_utils.evaluation import evaluate_run, format_results, paired_bootstrap, results_table

models = {"GRPO": honest, "shorter": paid_for_short, "shorter, if right": closed}
evaluations = {label: evaluate_run(run, settings(20)) for label, run in models.items()}
format_results(results_table(evaluations))

# %%
hacked, mended = (paired_bootstrap(evaluations["GRPO"].per_problem, evaluations[label].per_problem)
                  for label in ("shorter", "shorter, if right"))
between = paired_bootstrap(evaluations["shorter"].per_problem, evaluations["shorter, if right"].per_problem)
for label, d in (("shorter, less GRPO", hacked), ("shorter if right, less GRPO", mended),
                 ("shorter if right, less shorter", between)):
    print(f"{label:<31} {100 * d.difference:+6.1f} points [{100 * d.low:+.1f}, {100 * d.high:+.1f}]")

# %% [markdown]
# ## What you should see, and what it means if you don't

# %%
from lab_utils.teaching.inspection import expect

metrics = paid_for_short.metrics()
first, end = metrics.head(3).mean(), metrics.tail(5).mean()
bonus, length = "rewards/short_reward/mean", "completions/mean_length"
expect(config, "the honest run's model is right in more than 30%", evaluations["GRPO"].accuracy > 0.3)
expect(config, "the bonus rises by more than 40%", end[bonus] > 1.4 * first[bonus])
expect(config, "and the length falls by more than a fifth", end[length] < 0.8 * first[length])
expect(config, "while accuracy falls by more than 10 points", end["accuracy"] < first["accuracy"] - 0.1)
expect(config, "held out, it is worse than its start: the interval lies below 0", hacked.high < 0)
expect(config, "the closed bonus costs less than half of that", mended.difference > hacked.difference / 2)
expect(config, "held out, closed is better than holed: the interval lies above 0", between.low > 0)

# %% [markdown]
# - Accuracy holds in the run with the holed bonus: then guesses are not explored, or the bonus is too small for them to
#   pay. Do the sum of the table with your numbers.
# - Accuracy falls in the closed run, too: look at the self-check of exercise 2, and then for a hole that is left.
# - All of it holds in the first run and nothing looks hacked to you: read the text anyway.
#
# ## Why not just hold the model back?
#
# The runs had a **KL term** on the CPU all along (`grpo.beta`): every step away from the start costs something. It did
# not prevent this. It slows hacking, because texts that fool a reward are texts that the start seldom writes. But it
# slows learning in the same way, and it asks what is *unlikely*, not what is *wrong*. A hole that pays more than the
# way there costs is still worth it. Question 3 lets you see it.
#
# What works better is a habit:
#
# - **Write down what you want before you decide what to pay for**, and log both. Look for the step at which they part.
# - **Ask what each habit earns**, not each text: guessing, giving up, repeating, stopping early, never stopping.
# - **Read the responses that earn most and are wrong**, at the start, in the middle and at the end of each run.
# - **Keep a judge that training never sees**: held-out problems, and a second measure that differs from the first.
#
# ## Summary
# - A reward is a measure made into a target. Training finds the texts on which the two differ.
# - Each part of a reward can be sensible and the sum still pay for the wrong habit. Tie a bonus to the goal: multiply,
#   do not add.
# - The mean reward of two different rewards cannot be compared. Accuracy can.
# - A patch closes the hole that you have seen. Only watching tells you about the next.
#
# ## Questions
# 1. How small must the bonus for a token be for guessing not to pay, with the numbers of the table? Is that small
#    enough for a problem of four steps, 53 tokens long?
# 2. Set `LIMIT` to 15 in the closed reward. What can the model learn from it?
# 3. Add `"grpo.beta": 1.0` to `fast` and train on the holed bonus again, into another folder. Does it still guess?
#    What would the same term have done to the honest run?
# 4. You have no answer key, only people who say which of two responses they like better. Where are the holes now?
#
# Next: [04 · SFT warm-up](04_sft_warmup.ipynb) makes the model that such runs start from; [06 · GRPO
# training](06_grpo_training.ipynb) takes its time over a run with a reward that holds.
