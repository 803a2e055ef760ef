# %% [markdown]
# # 08 · Evaluation
#
# <!-- badges -->
#
# > **You will learn** to compare base, SFT and GRPO honestly: strict and lenient accuracy, pass@k, intervals, paired
# > tests, and the controls that a claim needs.
# >
# > **Time** the machine: 2 minutes on a CPU, 30 on a GPU · you: 50 minutes · **Needs** notebooks 03 and 06 in the same
# > OUTPUT_DIR (what is missing is trained first)

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
from lab_utils.runs import RunDirectory
from lab_utils.tasks import load_task
from lab_utils.training.stages import finished_run

config = load(RECIPE, HARDWARE, {"seed": SEED})
if config.hardware == "cpu":  # fewer questions than in the recipe, so that the notebook takes minutes
    config = load(RECIPE, "cpu", {"seed": SEED, "task.test_limit": 200})
check_machine(config)
task = load_task(config.task)
runs = Path(OUTPUT_DIR) / task.name
figures = Path(OUTPUT_DIR) / "figures"
sources = {"base": config.model.name, "SFT": finished_run(config, runs, "sft")}
in_plain_text = ["base"] if config.model.name == "tiny" else []  # it has never seen a question in a chat
sources["GRPO"] = finished_run(config, runs, "grpo")
print(f"Task {task.name}, tier {config.hardware}. To compare: {', '.join(sources)}.")

# %% [markdown]
# ## Two ways to be correct
#
# **Strict**: the correct answer inside the answer tags (or after `####`, if the format ends that way). This is
# `task.is_correct`, the one definition that the reward uses, too. It does not ask for the rest of the format: a
# response with a correct answer but without its thoughts in `<think>` is correct, and the column *in format* counts the
# correct responses that have the whole format. **Lenient** also accepts an answer without tags in one more place: the
# expression on the last line, or the last number of a word problem. It does not find an answer that stands elsewhere. A
# model can gain a lot of strict accuracy without solving one more problem, just by learning where to put its answers.
# Always report both.
#
# Judge these four responses yourself before you run the cell: reach 45 with 3, 6 and 7.

# %%
countdown, row = load_task("countdown"), {"nums": [3, 6, 7], "target": 45}
for text in (
    "<think>7 * 6 = 42, 42 + 3 = 45 yes</think><answer>(7 * 6) + 3</answer>",
    "(7 * 6) + 3",
    "<think>7 * 6 = 42, 42 + 3 = 45 yes</think><answer>45</answer>",
    "<think>7 * 6 = 42, 42 + 3 = 45 yes</think><answer>(7 * 6) + 3",
):
    strict, lenient = countdown.is_correct(text, row), countdown.is_correct_lenient(text, row)
    print(f"strict {strict!s:<5} lenient {lenient!s:<5} {text}")

# %% [markdown]
# ## Several samples: pass@k and maj@k
#
# A model that samples answers differently each time. Ask every question *n* times; *c* of the answers are correct.
#
# - **Accuracy** (pass@1) is the mean of c / n: how reliable is one answer?
# - **pass@k**: is at least one of *k* answers correct? This is what the model *can* do. Reinforcement learning needs
#   it: what never happens is never rewarded.
# - **maj@k**: is the most frequent of *k* answers correct? This one needs no judge.
#
# By hand: of n = 4 answers, c = 1 is correct. Draw k = 2 of the four without putting any back. There are 6 pairs, and
# 3 of them hold the correct one: pass@2 = 0.5. In general, draws that miss are draws from the n − c wrong ones only:
#
# $$\text{pass@}k = 1 - \frac{\binom{n-c}{k}}{\binom{n}{k}}$$
#
# ## Exercise 1: pass@k
#
# *Difficulty: easy · importance: high · about 10 minutes*
#
# Write the formula. (The tempting 1 − (1 − c/n)^k puts each draw back, and gives too small a value.)

# %%
import math


def pass_at_k(n, c, k):
    """Return the probability that at least one of k samples is correct, drawn from n samples with c correct ones."""
    # YOUR CODE HERE
    # >>> solution
    return 1 - math.comb(n - c, k) / math.comb(n, k)
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. Count the draws of k samples that miss. They hold only wrong samples. How many wrong samples are there?
# 2. `math.comb(a, b)` is the number of ways to choose b of a. It is 0 if b is larger than a, as you need here.

# %%
from lab_utils.teaching import checks

checks.check_pass_at_k(pass_at_k)

# %% [markdown]
# ## How sure can you be?
#
# 5 of 10 correct does not mean 50%. The true share may be quite different. A 95% interval follows a rule that covers
# the truth in 95 of 100 experiments. Here is Wilson's, for one answer per question. See how it shrinks with the number
# of questions when half of the answers are correct:

# %%
from lab_utils.evaluation import wilson_interval

for n in (10, 50, 250, 500, 1319):
    low, high = wilson_interval(n // 2, n)
    print(f"{n // 2:>4} of {n:>4}: {low:.1%} to {high:.1%}  (± {50 * (high - low):.1f} points)")

# %% [markdown]
# The last row is the size of GSM8K's test set. If two models answered *different* questions, they must differ by about
# 1.4 times the half width (3.8 points there) before the difference is shown. On the *same* questions less is enough;
# you will see how below.
#
# ## The real evaluation
#
# Each model answers the same test problems several times. None of these problems is in the training data, not even
# with its numbers in another order. The base model of tier `cpu` is asked in plain text, as it was trained. Saved
# results are read, not made again; what is missing takes less than a minute for each model on a CPU.
#
# In the table, *format* is the share of responses in the whole format, correct or not, and *truncated* of those that
# were cut off at the token limit. *Tokens* and *attempts* are means per response. The difference is in percentage
# points from SFT, with a 95% interval; *p* is how often chance alone would give one as large.

# %%
from lab_utils.evaluation import Evaluation, evaluate_run, format_results, results_table


def evaluation_of(label, source):
    """Return the saved evaluation of a model. If it is missing, make and save it."""
    path = source.evaluation_path if isinstance(source, RunDirectory) else runs / label / "eval.json"
    if not path.exists():
        evaluate_run(source, config, plain_text=label in in_plain_text).save(path)
    return Evaluation.load(path)


evaluations = {label: evaluation_of(label, source) for label, source in sources.items()}
format_results(results_table({"SFT": evaluations["SFT"], **evaluations})).loc[list(evaluations)]  # compared with SFT

# %%
from lab_utils.figures import plot_accuracy_bars, plot_pass_at_k

plot_accuracy_bars(evaluations, figures / "08_accuracy.png")

# %%
plot_pass_at_k(evaluations, figures / "08_pass_at_k.png")

# %%
before, after = evaluations["SFT"], evaluations["GRPO"]
k = after.ks[-1]
yours = {label: sum(pass_at_k(e.num_samples, int(c), k) for c in e.scores().sum(axis=1)) / len(e.examples)
         for label, e in evaluations.items()}
print(f"pass@{k} by your function: " + ", ".join(f"{label} {value:.1%}" for label, value in yours.items()))
for label, e in evaluations.items():
    print(f"{label:>5}: maj@{k} {e.maj_at[k]:.1%}, maj@1 {e.maj_at[1]:.1%}")

# %% [markdown]
# The curves of pass@k answer a question that accuracy cannot: how much of the gain is there to be had by trying more
# often? Where two curves meet at the right end, the weaker model solves *as many* problems if it may try *k* times. It
# need not be the same problems, nor the same solutions. Count:

# %%
solved = {label: e.scores().any(axis=1) for label, e in evaluations.items()}
print(f"Of {len(solved['SFT'])} problems, at least one of {after.num_samples} answers is correct for")
print(f"    both models {(solved['SFT'] & solved['GRPO']).sum()}, only SFT {(solved['SFT'] & ~solved['GRPO']).sum()}, "
      f"only GRPO {(~solved['SFT'] & solved['GRPO']).sum()}, neither {(~solved['SFT'] & ~solved['GRPO']).sum()}")

# %% [markdown]
# With so few samples, "only SFT" may be luck: ask the same model again, and some of these change.
#
# Compare maj@k with accuracy, too. Voting helps if the correct answers agree more often than the wrong ones. On
# Countdown several expressions can be correct, and each of them gets its own votes. Does it help here?
#
# ## Is the difference real? Compare in pairs
#
# Both models answered the *same* questions. Some are easy for both. So look at the difference question by question,
# and redraw the questions at random many times (a **bootstrap**). How much does the mean difference vary?
#
# ## Exercise 2: redraw the questions
#
# *Difficulty: medium · importance: high · about 10 minutes*
#
# `before` and `after` hold each question's score under the two models, in the same order. Each of the `draws` is a list
# of question numbers, drawn at random with replacement: some come twice, some not at all. Return the mean difference,
# `after` minus `before`, for each draw.
#
# By hand: `before = [0, 0.5, 1]`, `after = [1, 0.5, 1]`. The draw `[0, 0, 2]` has the differences 1, 1 and 0, so 2/3.

# %%
def redrawn_differences(before, after, draws):
    """Return the mean of after minus before over the questions of each draw."""
    # YOUR CODE HERE
    # >>> solution
    return [sum(after[i] - before[i] for i in draw) / len(draw) for draw in draws]
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. What makes the comparison a paired one? A question that is drawn must be drawn for both models.
# 2. For each `draw`, take `after[i] - before[i]` for each `i` in it, repeated ones included, and then the mean.

# %%
checks.check_redrawn_differences(redrawn_differences)

# %% [markdown]
# The middle 95% of these means are the interval. Here is yours, next to that of `paired_bootstrap`, which redraws more
# often, and next to the interval that you would get if the two models had answered different questions:

# %%
import numpy as np

from lab_utils.evaluation import mcnemar, paired_bootstrap

questions = len(before.per_problem)
draws = np.random.default_rng(SEED).integers(questions, size=(1000, questions)).tolist()
low, high = np.quantile(redrawn_differences(before.per_problem, after.per_problem, draws), [0.025, 0.975])
paired = paired_bootstrap(before.per_problem, after.per_problem)
print(f"95% interval, yours:                {100 * low:+.1f} to {100 * high:+.1f}")
print(f"GRPO − SFT: {100 * paired.difference:+.1f} percentage points, p {'<' if paired.p_value < 1e-3 else '='} "
      f"{max(paired.p_value, 1e-3):.3f}")
print(f"95% interval, paired:               {100 * paired.low:+.1f} to {100 * paired.high:+.1f}")
half = math.hypot(*((e.accuracy_interval[1] - e.accuracy_interval[0]) / 2 for e in (before, after)))
print(f"as if the questions had differed:   {100 * (paired.difference - half):+.1f} to "
      f"{100 * (paired.difference + half):+.1f}")

# %% [markdown]
# For one answer per question, correct or wrong, there is an older test that you can do in your head. **McNemar** looks
# only at the questions on which the models disagree. If the models were equally good, each would win half of those,
# like a fair coin. Here it is for the first answer to each question:

# %%
only_sft, only_rl, p_value = mcnemar(before.scores()[:, 0], after.scores()[:, 0])
print(f"correct only with SFT: {only_sft}, correct only with GRPO: {only_rl} → p = {p_value:.2g}")

# %% [markdown]
# ## Where does the gain come from?
#
# After RL the model makes more attempts and is correct more often. It is tempting to say "because". Count instead. The
# tiny model marks each attempt with `yes` or `no`. If all of the gain came from trying longer, its *first* attempt
# would succeed as rarely as before.
#
# ## Exercise 3: the first verdict
#
# *Difficulty: easy · importance: medium · about 5 minutes*
#
# Return the first `yes` or `no` in a response that is a word of its own, or `None` if there is none.

# %%
import re


def first_verdict(text):
    """Return the first word of a text that is "yes" or "no", or None."""
    # YOUR CODE HERE
    # >>> solution
    found = re.search(r"\b(yes|no)\b", text)
    return found[1] if found else None
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. Which of the two words comes first decides. Words such as `not` and `nothing` begin with `no` as well.
# 2. `re.search(r"\b(yes|no)\b", text)` finds the first one, or returns None.

# %%
checks.check_first_verdict(first_verdict)

# %% [markdown]
# A correct answer either follows a first attempt that succeeded, or a later one. So the gain is the sum of two parts,
# and each part has its own paired interval:

# %%
def correct_by_attempt(evaluation):
    """Return for each question the share of correct answers whose first attempt succeeded, and of the others."""
    by_first, later = [], []
    for example in evaluation.examples:
        verdicts = [(one["correct"], first_verdict(one["text"]) == "yes") for one in example["completions"]]
        by_first.append(sum(correct and first for correct, first in verdicts) / len(verdicts))
        later.append(sum(correct and not first for correct, first in verdicts) / len(verdicts))
    return {"by the first attempt": by_first, "by a later one": later, "in all": evaluation.per_problem}


parts = {label: correct_by_attempt(evaluations[label]) for label in ("SFT", "GRPO")}
for part in parts["SFT"]:
    sft_part, grpo_part = parts["SFT"][part], parts["GRPO"][part]
    gain = paired_bootstrap(sft_part, grpo_part)
    print(f"correct {part:<21} SFT {np.mean(sft_part):5.1%}, GRPO {np.mean(grpo_part):5.1%}: "
          f"{100 * gain.difference:+5.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]")

# %% [markdown]
# If the first line's interval is near 0 and the second line holds the gain, then persistence is what was learned
# (notebook 06 counted how often the model gives up). If the first line has gained too, GRPO also chooses better what to
# try. (A full-size model writes no such marks, so all of its correct answers stand in the second line. It would need
# another sign of a first attempt.)
#
# ## What would the reward have paid?
#
# Training saw nothing but rewards. The evaluation has computed them too, for every response: the value of each reward
# function of the recipe, and their weighted sum. Before you look at the table: which part of the reward can still grow
# after the warm-up, and by how much?

# %%
from lab_utils.evaluation import rewards_table
from lab_utils.figures import plot_rewards

rewards_table({"SFT": before, "GRPO": after})

# %%
plot_rewards({"SFT": before, "GRPO": after}, figures / "08_rewards.png")

# %% [markdown]
# A mean of 0.4 can be many responses that earn 0.4, or some that earn 1 and others that earn 0. The histograms tell
# which. Compare the table with the accuracy above. The part for the correct answer rises exactly as the accuracy does,
# because reward and evaluation use the same definition. The part for the format has been near its maximum since the
# warm-up. A gain in another part, without one in accuracy, would be a hole in the reward (notebook 07).
#
# ## Was it the reward?
#
# A difference after training does not prove that the *reward* made it. Perhaps any training would have helped: longer
# training, or mere drift of the policy. Two **controls** start from the same SFT model:
#
# - **random reward**: the same GRPO, but a coin decides what is correct. The format reward stays.
# - **extra SFT**: more of the same demonstrations, for as many seconds.
#
# To save your time they stop early, at GRPO's first checkpoint. The budget is equal: every learning rate is that of the
# whole run at the same step, and extra SFT takes the same share of a run that lasts as long as GRPO's. Compare both
# with that checkpoint of GRPO, not with its end. Each of the two takes about a minute on a CPU.
# `scripts/measure_learning.py --controls` runs both in full, with several seeds.

# %%
import random

from lab_utils import rewards
from lab_utils.training import grpo, sft
from lab_utils.training.stopping import StopAfter


def random_reward(completions, **columns):
    """Return 1.0 or 0.0 by the toss of a coin."""
    return [float(random.random() < 0.5) for _ in completions]


steps = config.grpo.save_steps  # at GRPO's first checkpoint
by_coin = [random_reward if name in rewards.CORRECTNESS else getattr(rewards, name) for name in config.rewards]
start = finished_run(config, runs, "sft").model_dir
coin = RunDirectory(runs / "grpo-random")
if not coin.has_model:
    grpo.train(config, coin.path, model=start, reward_funcs=by_coin, callbacks=[StopAfter(steps)], resume=True)

# %%
rl, warm_up = sources["GRPO"].metrics(), sources["SFT"].metrics()
whole = round(rl["seconds"].max() * warm_up["step"].max() / warm_up["seconds"].max())  # SFT steps in GRPO's time
more = load(RECIPE, config.hardware, {"seed": SEED, "sft.max_steps": max(2, whole)})
extra = RunDirectory(runs / "sft-extra")
if not extra.has_model:
    stop = StopAfter(max(1, round(more.sft.max_steps * steps / rl["step"].max())))
    sft.train(more, extra.path, model=start, callbacks=[stop], resume=True)
for label, run in {"random reward": coin, "extra SFT": extra}.items():
    print(f"{label}: {run.metrics()['step'].max()} steps in {run.metrics()['seconds'].max():.0f} s")

# %% [markdown]
# Before you look at the figure: where will the coin's *reward* start, compared with GRPO's?

# %%
from lab_utils.figures import plot_training

plot_training({"GRPO": sources["GRPO"], "random reward": coin}, figures / "08_control.png")

# %% [markdown]
# It starts *above* GRPO's and stays about where it started. A coin pays half of all responses, whatever they say, so
# its reward is about 0.5 plus the part for the format. GRPO's reward pays only the responses that are correct. The
# height of a reward says nothing about learning, and rewards of different functions cannot be compared. Accuracy can.

# %%
checkpoint = sources["GRPO"].checkpoints_dir / f"checkpoint-{steps}"  # GPU tiers keep only the best and the last
then = f"GRPO, step {steps}" if checkpoint.is_dir() else "GRPO"
controls = {"SFT": before, "random reward": evaluation_of("random", coin), "extra SFT": evaluation_of("extra", extra)}
controls[then] = evaluation_of(f"grpo-step-{steps}", checkpoint) if checkpoint.is_dir() else after
format_results(results_table(controls))

# %% [markdown]
# ## What you should see, and what it means if you don't

# %%
from lab_utils.teaching.inspection import expect

table = results_table(controls)
curve, gain = sources["GRPO"].metrics().set_index("step")["accuracy"], table["difference"]
expect(config, "in plain text the base model is about as good as SFT: the warm-up teaches the format only",
       not in_plain_text or abs(evaluations["base"].accuracy - before.accuracy) < 0.08)
expect(config, f"{then} beats SFT, and the paired interval lies above 0", table.loc[then, "difference_low"] > 0)
expect(config, "pass@k has not fallen by more than 5 points", after.pass_at[k] > before.pass_at[k] - 0.05)
expect(config, f"after {steps} steps GRPO's curve is above the coin's", curve.loc[:steps].tail(3).mean() >
       coin.metrics()["accuracy"].tail(3).mean() + 0.05)
expect(config, "the random reward adds less than a quarter of that", gain["random reward"] < gain[then] / 4)
expect(config, "extra SFT adds less than half of that", gain["extra SFT"] < gain[then] / 2)

# %% [markdown]
# The base model, asked in plain text, is about as good as the SFT model in the chat format: the warm-up taught where
# the answer goes, and hardly anything else. From SFT to GRPO the strict and the lenient bar rise together, so that gain
# is in solving, and not a habit of the base model that the warm-up had hidden.
#
# A coin can move accuracy as well. Adam makes steps of about one size whether they lead anywhere or not, so noise alone
# shakes the policy, and on this task a model that happens to give up less gets more chances. The KL term limits the
# effect. (Try `grpo.beta=0` with `scripts/measure_learning.py --controls`.) That is why you measure a control instead
# of assuming that it stays at zero, and why a small gain after training is weak evidence for a reward.
#
# - The random reward helps as much as the real one: the reward was not the reason. Look for what both runs share.
#   This has happened in published work ("Spurious Rewards", arXiv 2506.10947).
# - Extra SFT helps as much: you stopped the warm-up too early.
# - pass@k falls while accuracy rises: the model has narrowed down to a few patterns, or it spends its tokens on
#   searches that are cut off. Look at the column `truncated` first. Then take fewer steps, or add a KL term.
#
# ## What can be concluded, and what cannot
#
# You can say: *on problems of this kind, drawn like the training problems, this run solves more than its start, by
# about the interval above, and far more than a random reward does in the same number of steps.* The test problems are
# new, the comparison is paired, and the judge is the same for all.
#
# You cannot say that the model "reasons" better in general: it was trained and tested on one task, and the section
# above shows how much of its gain is one habit that pays there. The interval covers the choice of *questions*, but not
# the choice of seed, of hyperparameters, or of the model. And the controls here stopped at the first checkpoint of the
# run that they should explain.
#
# ## Summary
#
# - Report strict *and* lenient accuracy, the number of questions and samples, and an interval.
# - pass@k shows how many problems a model can solve in k tries; accuracy shows how reliable one try is.
# - If two models answered the same questions, compare them in pairs.
# - A control with a random reward separates learning from drifting. Equal compute separates method from budget.
#
# ## Questions
#
# Think first. The answers are in [ANSWERS.md](ANSWERS.md).
#
# 1. A paper reports a gain of a few points on GSM8K, greedy, one run each. What else would you want to know?
# 2. Why does the bootstrap redraw *questions* and not answers?
# 3. pass@1 doubles and pass@64 stays the same. Has the model learned anything? For whom does it matter?
#
# Next: [09 · Diagnosing runs](09_diagnosing_runs.ipynb) shows what a run looks like when something is wrong with it;
# [13 · Results](13_results.ipynb) tells the whole story.
