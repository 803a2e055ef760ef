# %% [markdown]
# # 08 · Evaluation
#
# <!-- badges -->
#
# > **You will learn** to compare base, SFT, GRPO and PPO honestly: strict and lenient accuracy, pass@k, intervals,
# > paired tests, and the controls that a claim needs.
# >
# > **Time** 4 minutes on a CPU, 30 on a GPU · **Needs** notebooks 03 and 06 in the same OUTPUT_DIR (what is missing
# > is trained first); 10 for PPO in the comparison

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
task = load_task(config.task.name, config.task.response_format)
runs = Path(OUTPUT_DIR) / task.name
figures = Path(OUTPUT_DIR) / "figures"
sources = {"base": config.model.name, "SFT": finished_run(config, runs, "sft")}
in_plain_text = ["base"] if config.model.name == "tiny" else []  # it has never seen a chat
sources["GRPO"] = finished_run(config, runs, "grpo")
ppo = RunDirectory(runs / "ppo")
if ppo.has_model and ppo.config().model.name == config.model.name:  # skip another recipe's smaller model
    sources["PPO"] = ppo
print(f"Task {task.name}, tier {config.hardware}. To compare: {', '.join(sources)}.")

# %% [markdown]
# ## Two ways to be correct
#
# **Strict**: the correct answer inside the answer tags (or after `####`, if the format ends that way). This is
# `task.is_correct`, the one definition that the reward uses, too. It does not ask for the rest of the format: a
# response with a correct answer but without its thoughts in `<think>` is correct, and the column `in_format` counts the
# correct responses that have the whole format. **Lenient** also accepts an answer without tags in one more place: the
# expression on the last line, or the last number of a word problem. It does not find an answer that stands elsewhere.
# A model can gain a lot of strict accuracy without solving one more problem, just by learning where to put its
# answers. Always report both.
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
# ## Exercise: pass@k
#
# *Difficulty: easy · importance: high · spend up to 10 minutes*
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


print(pass_at_k(4, 1, 2))

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
# with its numbers in another order. Saved results are read, not made again.

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
# The curves of pass@k answer a question that accuracy cannot: did training make the model solve **more** problems, or
# the same problems **more reliably**? Where two curves meet at the right end, the weaker model finds the same
# solutions if it may try often enough.
#
# Compare maj@k with accuracy, too. Wrong answers scatter. Correct ones agree more often, although several expressions
# can be correct and each of them gets its own votes. So voting helps, without any judge.
#
# ## Is the difference real? Compare in pairs
#
# Both models answered the *same* questions. Some are easy for both. So look at the difference question by question,
# and redraw the questions at random many times (a **bootstrap**). How much does the mean difference vary?

# %%
from lab_utils.evaluation import mcnemar, paired_bootstrap

paired = paired_bootstrap(before.per_problem, after.per_problem)
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
# ## Exercise 2: the first verdict
#
# *Difficulty: easy · importance: medium · spend up to 5 minutes*
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


checks.check_first_verdict(first_verdict)

# %%
for label in [name for name in ("SFT", "GRPO", "PPO") if name in evaluations]:
    texts = [one["text"] for example in evaluations[label].examples for one in example["completions"]]
    first_hits = sum(first_verdict(text) == "yes" for text in texts) / len(texts)
    print(f"{label:>5}: the first attempt succeeds in {first_hits:4.0%} of the responses, "
          f"{evaluations[label].accuracy:4.0%} are correct in the end")

# %% [markdown]
# GRPO's first attempts have become somewhat better. Most of its gain comes after them, from not giving up. In the
# run behind the README, 22% of the first attempts succeeded before, 28% with GRPO, and 38% with PPO. A good part of
# PPO's gain is a better choice of what to try. (A full-size model writes no such marks, so its shares are 0. It would
# need another sign of a first attempt.)
#
# ## Was it the reward?
#
# A difference after training does not prove that the *reward* made it. Perhaps any training would have helped: longer
# training, or mere drift of the policy. Two **controls** start from the same SFT model:
#
# - **random reward**: the same GRPO, but a coin decides what is correct. The format reward stays.
# - **extra SFT**: more of the same demonstrations, for as many seconds.
#
# To save your time they stop early, at GRPO's first checkpoint. The budget is equal: every learning rate is that of
# the whole run at the same step, and extra SFT takes the same share of a run that lasts as long as GRPO's. Compare both
# with that checkpoint of GRPO, not with its end. `scripts/measure_learning.py --controls` runs both in full, with
# several seeds.

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

# %%
from lab_utils.figures import plot_training

plot_training({"GRPO": sources["GRPO"], "random reward": coin}, figures / "08_control.png")

# %%
checkpoint = sources["GRPO"].checkpoints_dir / f"checkpoint-{steps}"  # GPU tiers keep only the best and the last
then = f"GRPO, step {steps}" if checkpoint.is_dir() else "GRPO"
controls = {"SFT": before, "random reward": evaluation_of("random", coin), "extra SFT": evaluation_of("extra", extra)}
controls[then] = evaluation_of(f"grpo-step-{steps}", checkpoint) if checkpoint.is_dir() else after
format_results(results_table(controls))

# %% [markdown]
# ## GRPO or PPO? One budget, three seeds
#
# One run of each method decides nothing: another seed may reverse the order. A fair question is: *after the same
# start, the same prompts in the same order and the same number of generated tokens, which method has learned more?*
# Tokens are the budget, because at full size most of the time goes into generating them. Three seeds of both methods
# take half an hour on a CPU, so their results come with the workshop. (They were recorded with an earlier base model,
# which searched longer from the start.) This command makes them again:
#
# ```bash
# python scripts/measure_learning.py --recipe countdown-ppo --hardware cpu --seeds 0 1 2 --tokens-of grpo \
#     --output-dir runs/methods
# ```

# %%
import json

import pandas as pd

recorded = json.loads(Path("notebooks/recorded/grpo_and_ppo.json").read_text())
rows = pd.DataFrame(recorded["rows"])
by_seed = rows.pivot(index="seed", columns="model", values="accuracy")[["SFT", "GRPO", "PPO"]].map("{:.1%}".format)
gaps = pd.DataFrame(recorded["head_to_head"]).set_index("seed")
by_seed["PPO − GRPO (percentage points)"] = [
    f"{100 * r.difference:+.1f} [{100 * r.low:+.1f}, {100 * r.high:+.1f}]" for r in gaps.itertuples()]
by_seed

# %%
from lab_utils.figures import plot_against_tokens

plot_against_tokens(recorded["curves"], figures / "08_grpo_and_ppo.png")

# %% [markdown]
# Each bracket covers the choice of *questions* for one pair of runs. The three rows show the choice of *seed*. An
# interval for the mean over seeds must come from the three differences. With three of them, Student's t asks for 4.30
# standard errors on both sides:

# %%
seeds = 100 * gaps["difference"]
margin = 4.303 * seeds.std() / math.sqrt(len(seeds))
print(f"PPO − GRPO, mean of {len(seeds)} seeds: {seeds.mean():+.1f} percentage points, "
      f"95% interval {seeds.mean() - margin:+.1f} to {seeds.mean() + margin:+.1f}")

# %% [markdown]
# What this can say: at this budget, on this task, with these settings, PPO is ahead, and not by luck of the seed.
#
# What it cannot say: that PPO is the better method. Look for what else differs. PPO uses every rollout twice, in
# mini-batches. It makes eight small steps where GRPO makes one, so equal tokens are neither equal updates nor equal
# minutes. GRPO pays here for every step away from its start (`beta` = 0.1, chosen so that a random reward moves
# nothing). PPO does not, and as a result more of its responses are cut off. Each method has its own settings, tried by
# hand and not for equally long. The critic shares the hidden states of a tiny model, which is cheap; at full size it
# may need a model of its own. To find out what makes the difference, change one of these at a time. `--set` does that;
# choose your own seeds.

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
# A coin can move accuracy as well: with an earlier base model, by 3 points in the worst of three full runs. Adam makes
# steps of one size whether they lead anywhere or not, so noise alone shakes the policy. On this task, a model that
# gives up less regularly gets more chances. The KL term limits the effect: with `grpo.beta=0` the coin moved accuracy
# by up to 11 points there, at a similar learning rate. That is why you measure a control instead of assuming that it
# stays at zero. It is also why a small gain after training is weak evidence for a reward.
#
# - The random reward helps as much as the real one: the reward was not the reason. Look for what both runs share.
#   This has happened in published work ("Spurious Rewards", arXiv 2506.10947).
# - Extra SFT helps as much: you stopped the warm-up too early.
# - pass@k falls while accuracy rises: the model has narrowed down to a few patterns. Take fewer steps, or add a KL
#   term.
#
# ## What can be concluded, and what cannot
#
# You can say: *on problems of this kind, drawn like the training problems, this run solves more than its start, by
# about the interval above, and far more than a random reward does in the same number of steps.* The test problems are
# new, the comparison is paired, and the judge is the same for all.
#
# You cannot say that GRPO is better than PPO, or the other way round; the section above says why. You cannot say that
# the model "reasons" better in general: most of what it has learned is one habit that pays on one task. The interval
# covers the choice of *questions*, but not the choice of seed, of hyperparameters, or of the model. And the controls
# here stopped at the first checkpoint of the run that they should explain.
#
# ## Summary
#
# - Report strict *and* lenient accuracy, the number of questions and samples, and an interval.
# - pass@k shows what a model can do; accuracy shows how reliably it does it.
# - If two models answered the same questions, compare them in pairs.
# - A control with a random reward separates learning from drifting. Equal compute separates method from budget.
#
# ## Questions
#
# 1. A paper reports a gain of a few points on GSM8K, greedy, one run each. What else would you want to know?
# 2. Why does the bootstrap redraw *questions* and not answers?
# 3. pass@1 doubles and pass@64 stays the same. Has the model learned anything? For whom does it matter?
#
# Next: [09 · Diagnosing runs](09_diagnosing_runs.ipynb) shows what a run looks like when something is wrong with it;
# [13 · Results](13_results.ipynb) tells the whole story.
