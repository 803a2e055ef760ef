# %% [markdown]
# # 13 · Results
#
# <!-- badges -->
#
# > **You will learn** to tell the story of your runs in figures, from their run directories alone, and to write a
# > conclusion that claims no more than they show.
# >
# > **Time** the machine: 1 minute on a CPU or a GPU · you: 40 minutes · **Needs** notebooks 03, 06 and 08 in the same
# > OUTPUT_DIR; 10 for PPO in the figures. `scripts/fast_forward.py --notebook 10` copies finished runs in seconds.

# %% tags=["setup"]
# The builder writes this cell: notebooks/src/setup_cell.py.

# %% tags=["parameters"]
RECIPE = "countdown-grpo"
HARDWARE = "cpu"  # or "auto", or one of the GPU tiers
OUTPUT_DIR = "outputs"
SEED = 0

# %%
import math
from pathlib import Path

from lab_utils.config import load
from lab_utils.evaluation import Evaluation, evaluate_run, format_results, paired_bootstrap, results_table
from lab_utils.runs import RunDirectory
from lab_utils.tasks import load_task

config = load(RECIPE, HARDWARE, {"seed": SEED})
task = load_task(config.task)
runs = Path(OUTPUT_DIR) / task.name
figures = Path(OUTPUT_DIR) / "figures"
folders = {"SFT": "sft", "GRPO": "grpo", "PPO": "ppo", "random reward": "grpo-random", "extra SFT": "sft-extra"}
trained = {label: run for label, name in folders.items() if (run := RunDirectory(runs / name)).has_model}
missing = [label for label in ("SFT", "GRPO") if label not in trained]
if missing:
    raise RuntimeError(f"No trained model of {' and '.join(missing)} in {runs}: run the notebooks 03, 06 and 08 first "
                       "(10 minutes on a CPU), or copy finished runs: python scripts/fast_forward.py --from "
                       f"runs/yesterday --to {OUTPUT_DIR} --notebook 10")
print(f"Found in {runs}: {', '.join(trained)}.")

# %% [markdown]
# ## A run directory holds everything
#
# Nothing is trained here. Each stage has left a directory with its resolved settings, the versions of its libraries,
# its metrics, samples and its evaluation. From these directories anyone can draw every figure below and check every
# number. First come the facts that belong to any result: what was run, for how long, with what. A step is an optimizer
# step: at tier `cpu`, GRPO makes one per rollout and PPO eight.

# %%
import pandas as pd

facts = {}
for label, run in trained.items():
    settings, environment = run.config(), run.environment()
    facts[label] = {
        "recipe": settings.recipe, "model": settings.model.name, "seed": settings.seed,
        "steps": run.metrics()["step"].max(), "minutes": round(run.metrics()["seconds"].max() / 60, 1),
        "trl": environment["packages"]["trl"], "torch": environment["packages"]["torch"],
        "machine": environment["gpus"] or f"{environment['cpu_count']} CPU cores",
    }
pd.DataFrame(facts).T

# %% [markdown]
# ## The evaluations
#
# Notebook 08 saved them. A missing one is made now, on as many questions as the others have. The tiny base model is
# asked in plain text, as it was trained: in the chat format it would earn nothing for what it can do. The columns are
# those of notebook 08: for `accuracy` an answer in its tags is enough, `in format` also wants the thoughts in theirs,
# and `lenient` also accepts an answer without tags at the end.

# %%
saved = [Evaluation.load(run.evaluation_path) for run in trained.values() if run.evaluation_path.exists()]
questions = len(saved[0].examples) if saved else min(250, config.task.test_limit or 250)
asked = load(RECIPE, HARDWARE, {"seed": SEED, "task.test_limit": questions})
base_path = runs / "base" / "eval.json"
if not base_path.exists():
    evaluate_run(config.model.name, asked, plain_text=config.model.name == "tiny").save(base_path)
evaluations = {"base": Evaluation.load(base_path)}
for label, run in trained.items():
    saved_path = run.evaluation_path
    evaluations[label] = Evaluation.load(saved_path) if saved_path.exists() else evaluate_run(run, asked)
methods = {label: e for label, e in evaluations.items() if label in ("base", "SFT", "GRPO", "PPO")}
start = max(("base", "SFT"), key=lambda label: evaluations[label].accuracy)  # what RL has to beat
table = results_table({start: evaluations[start], **evaluations}).loc[list(evaluations)]
print(f"Differences are to {start}, the better of base and SFT.")
format_results(table)

# %% [markdown]
# ## The story in one figure
#
# On top is one held-out problem, before and after. Below, from left to right: accuracy rises in training, the model
# makes more attempts, and the gain holds on held-out problems. Two curves that rise together do not prove that one
# causes the other. Notebook 08 counts how often the first attempt succeeds.

# %%
from lab_utils.figures import plot_accuracy_bars, plot_attempts, plot_pass_at_k, plot_story, plot_training

learners = {label: run for label, run in trained.items() if label in ("GRPO", "PPO")}
plot_story(learners, methods, figures / "13_story.png")

# %% [markdown]
# ## The same in detail
#
# Here is training by the minute, because the methods' steps cost different amounts of time.

# %%
plot_training(learners, figures / "13_training.png", x="minutes")

# %% [markdown]
# Here is accuracy with its interval. How much of each difference is format, and how much is solving? Where both bars of
# a model have the same height, nothing is lost to the format.

# %%
plot_accuracy_bars(methods, figures / "13_accuracy.png")

# %% [markdown]
# This is what the models can do if they may try often:

# %%
plot_pass_at_k(methods, figures / "13_pass_at_k.png")

# %% [markdown]
# And this has changed per response: how many attempts it makes, and how many of those responses are correct.

# %%
plot_attempts({label: e for label, e in methods.items() if label != "base"}, figures / "13_attempts.png")

# %% [markdown]
# ## For others to read
#
# `OUTPUT_DIR/results.json` holds the table for people who do not run notebooks. The report of
# `scripts/run_notebooks.py` shows it on its first page.

# %%
import json

results = {}
for label in evaluations:
    row, e = table.loc[label], evaluations[label]
    difference = (f"{100 * row.difference:+.1f} [{100 * row.difference_low:+.1f}, {100 * row.difference_high:+.1f}]"
                  if label != start else "")
    results[label] = {
        "accuracy": row.accuracy, "interval": [row.low, row.high], "format forgiven": f"{row.lenient:.1%}",
        f"pass@{e.ks[-1]}": f"{e.pass_at[e.ks[-1]]:.1%}", f"− {start} (percentage points)": difference,
        "attempts": f"{row.attempts:.2f}", "questions × samples": f"{len(e.examples)} × {e.num_samples}",
    }
(Path(OUTPUT_DIR) / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
print(json.dumps(results["GRPO"], indent=1, ensure_ascii=False))

# %% [markdown]
# ## Exercise 1: an honest conclusion
#
# *Difficulty: easy · importance: high · about 10 minutes*
#
# Write a function that turns a comparison into a sentence. It says `better` or `worse` only if the whole interval is
# on one side of 0. Otherwise it says `not shown`, which is not the same as "no difference". It names what was compared,
# the difference and both ends of the interval in points with one decimal, the number of problems, and the number of
# seeds. Points are not percent: from 25% to 50% are 25 points, and 100 percent more.

# %%
def conclude(what, difference, low, high, problems, seeds):
    """Return a sentence on a paired difference (shares, not points) that claims no more than its interval allows."""
    # YOUR CODE HERE
    # >>> solution
    verdict = "better" if low > 0 else "worse" if high < 0 else "not shown to differ"
    return (f"{what}: {verdict}, {100 * difference:+.1f} points, 95% interval {100 * low:+.1f} to {100 * high:+.1f}, "
            f"on {problems} held-out problems, {seeds} seed(s).")
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. Three cases: the interval is above 0, it is below 0, or it contains or touches 0. The sign of the difference does
#    not decide.
# 2. `"better" if low > 0 else "worse" if high < 0 else "not shown to differ"`. Shares become points by `100 *`, and
#    `f"{value:+.1f}"` writes one decimal with its sign.

# %%
from lab_utils.teaching import checks

checks.check_conclude(conclude)

# %% [markdown]
# Your sentences about your own runs:

# %%
before = evaluations[start]
for label, evaluation in evaluations.items():
    if label != start:
        paired = paired_bootstrap(before.per_problem, evaluation.per_problem)
        what = f"{label} compared with {start}"
        print(conclude(what, paired.difference, paired.low, paired.high, len(before.examples), seeds=1))

# %% [markdown]
# ## Exercise 2: how many problems would show it?
#
# *Difficulty: medium · importance: medium · about 10 minutes*
#
# "Not shown" can mean that there is nothing to show, or that you asked too few problems. Suppose that the measured
# difference is the true one. Return the number of problems at which the interval, of the same kind, would only just
# touch 0. Return None if no number would do.
#
# The width of an interval shrinks with the square root of the number of problems. By hand: a difference of 2 points
# with the interval −2 to +6 on 100 problems. Half of its width is 4 points and would have to be 2. Half the width needs
# four times the problems: 400.


# %%
def problems_needed(difference, low, high, problems):
    """Return how many problems an interval needs that just touches 0, as a whole number, rounded up; or None."""
    # YOUR CODE HERE
    # >>> solution
    if difference == 0:
        return None
    half = (high - low) / 2
    return math.ceil(problems * (half / difference) ** 2)
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. By which factor must half of the width shrink, so that it equals the difference? What does that mean for the number
#    of problems?
# 2. The factor is `half / difference`, and its square multiplies `problems`. A difference of 0 stays inside every
#    interval.

# %%
checks.check_problems_needed(problems_needed)

# %%
for label, evaluation in evaluations.items():
    if label != start:
        paired = paired_bootstrap(before.per_problem, evaluation.per_problem)
        needed = problems_needed(paired.difference, paired.low, paired.high, len(before.examples))
        print(f"{label:>13}: {100 * paired.difference:+.1f} points; "
              + (f"{needed:,} problems would just show it" if needed else "no number of problems would show it"))

# %% [markdown]
# At that number the interval touches 0 on average, so every second repetition would still say "not shown". For four out
# of five, plan twice as many. Read numbers below about 30 as "few": the square root is a law for many problems. A huge
# number means that the measured difference is almost nothing. No number of problems replaces a second seed: the
# interval covers the choice of problems only.

# %% [markdown]
# ## Variants of GRPO, one change at a time
#
# Papers after GRPO change one or two of its parts. Does it matter here? One command trains the default and its variants
# from the same start model, with the same prompts and on the same number of generated tokens. Its results come with the
# workshop. This makes them again:
#
# ```bash
# python scripts/compare_variants.py --seeds 0 1 2 --set task.test_limit=200 --output-dir runs/variants
# cp runs/variants/variants.json notebooks/recorded/
# ```
#
# The default averages the loss over tokens, as DAPO does. It divides advantages by the standard deviation of the group,
# has a KL term, and makes one optimizer step per rollout. Every variant changes only the settings that are listed here:

# %%
path = Path("notebooks/recorded/variants.json")
variants = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
if not variants:
    print(f"{path} is missing: the two commands above make it.")
for name, changes in variants.get("variants", {}).items():
    print(f"{name + ':':<24}", ", ".join(f"{key.removeprefix('grpo.')} {value}" for key, value in changes.items()))
pd.DataFrame(variants["table"]).set_index("variant") if variants else None

# %%
from lab_utils.figures import plot_differences

plot_differences(variants["summaries"], "the default", figures / "13_variants.png") if variants else None

# %% [markdown]
# Here are the same comparisons as sentences, written by your function:

# %%
for row in variants.get("summaries", []):
    if "difference" in row:
        print(conclude(f"{row['variant']} compared with GRPO", row["difference"], row["low"], row["high"],
                       variants["problems"], len(variants["seeds"])))

# %% [markdown]
# - `no scaling`, `leave-one-out` and `Dr. GRPO` are nearly the same run. Leave-one-out advantages are G / (G − 1) times
#   those with the mean of all (notebook 04). Dr. GRPO divides the loss by a constant and not by the number of tokens.
#   Adam hardly notices such factors. What separates these three rows is mostly chance, although all begin with the same
#   samples. Do not read anything into a smaller difference in another row.
# - Why do they fall behind? Probably not because scaling is good in itself. Rewards of 0 and 1 have a standard
#   deviation of at most 0.5. Without the division all advantages are at most half as large, and the KL term, which
#   stays as it is, weighs at least twice as much against them. To find out, change `grpo.beta` together with the
#   scaling.
# - `no KL`, `per-response loss` and `overlong filtering` go the other way: more correct answers, longer responses, and
#   more that lose the format or never end. Accuracy alone would hide that price: see `format`.
# - With one step per rollout the probability ratio is 1, and nothing can be clipped: see `clipped`. Clip-higher (a
#   larger upper clip) and GSPO (one ratio per response, not per token) therefore use every rollout twice. Their effect
#   is the column `− 2 passes`, not the one before it. GSPO has the clipping range of its paper, which is for a large
#   model and small steps. If it clips most responses here, their second pass is left with little more than the KL term,
#   whose correction (notebook 05) is exact only per token.
# - `no signal` is the share of groups with equal rewards. DAPO's dynamic sampling would replace them. TRL does not have
#   it, so it was not measured.
#
# **What this does not show.** It is one model of about a million parameters, one task, a few steps and three seeds. The
# learning rate, the KL coefficient and the rest were tuned for the default. No variant got its own. The intervals
# cover the choice of problems; the seeds are shown beside them. Of twenty such intervals one excludes 0 by chance, even
# if no change matters. Equal tokens are not equal updates: two passes make twice as many. And the changes were made for
# long responses and thousands of steps. What they repair hardly occurs in a run as short as this one.
#
# ## The best of many
#
# So far you compared what you had decided to compare. A search for better settings compares many runs and keeps the
# best, and that needs more care. `scripts/sweep.py` searches with Optuna:
#
# - The **search space** says what is tried. `grpo.learning_rate=5e-5..5e-4:log` is a range on a logarithmic scale,
#   because doubling a small learning rate matters as much as doubling a large one. `grpo.num_generations=4,8,16` are
#   choices: the rollout keeps its size, so larger groups mean fewer problems per step.
# - The first trials are random. Later ones come more often from where the better trials were (a *tree-structured Parzen
#   estimator*, TPE).
# - **Pruning** saves time. A probe asks the same questions every few steps, and a trial below the median of the other
#   trials at the same step ends early. The price: a setting that starts slowly and ends well is lost.
# - No trial sees a test question. **Validation questions**, taken out of the training data, decide which is best.
#
# The next cell shows a search that comes with the workshop. This makes it again:
#
# ```bash
# python scripts/sweep.py --recipe countdown-grpo --hardware cpu --output-dir runs/sweep
# cp runs/sweep/sweep.json notebooks/recorded/
# ```

# %%
path = Path("notebooks/recorded/sweep.json")
sweep = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
if not sweep:
    print(f"{path} is missing: the two commands above make it.")
else:
    pruned = sum(trial["state"] == "pruned" for trial in sweep["trials"])
    print(f"{sweep['recipe']} at tier {sweep['hardware']}: {len(sweep['trials'])} trials, of which {pruned} were "
          f"pruned; {sweep['validation_questions']} validation questions. Searched:", *sweep["search"], sep="\n    ")
trials = pd.json_normalize(sweep.get("trials", [])).rename(columns=lambda name: name.removeprefix("settings."))
trials.astype(object).where(trials.notna(), "").map(lambda one: f"{one:.3g}" if isinstance(one, float) else one)

# %% [markdown]
# The left panel shows every trial, then what remains of the best one: it and the default were trained again with *fresh
# seeds*, which the search had not used, and answered the test questions. Only this second comparison is a result.
#
# The right panel shows which settings separate the best trials from the others, within the ranges that were searched. A
# setting that was searched in a narrow range looks unimportant, and with few trials the order is mostly luck.

# %%
from lab_utils.figures import plot_search

plot_search(sweep, figures / "13_search.png") if sweep else None

# %%
for name, seeds in sweep.get("fresh", {}).items():
    searched = sweep["trials"][0 if name == "default" else sweep["best"]]  # the first has the recipe's own settings
    print(f"{name:>8}: {searched['accuracy']:.1%} in the search, {sum(seeds) / len(seeds):.1%} with fresh seeds")
if sweep:
    print(conclude("The best setting of the search compared with the default",
                   *(sweep["best_minus_default"][key] for key in ("difference", "low", "high")),
                   sweep["test_questions"], seeds=len(seeds)))

# %% [markdown]
# Why does the best of a search promise too much? A trial's value is its quality plus luck, such as that of its seed,
# and the maximum picks both. Here all settings are *equally good*, and the luck of a trial is as large as the spread
# between fresh seeds, of the default or of the best setting, whichever is larger. The best of them still looks better
# than it is:

# %%
import numpy as np

luck = max(np.std(seeds, ddof=1) for seeds in sweep["fresh"].values()) if sweep else 0.02
for number in (1, 4, 12, 50):
    best = np.random.default_rng(SEED).normal(0, luck, size=(10_000, number)).max(axis=1).mean()
    print(f"the best of {number:>2} equal settings looks {100 * best:+.1f} points better")

# %% [markdown]
# This optimism grows with the number of trials, and with the noise of each. A fresh evaluation removes it, and more
# validation questions make it smaller. It returns as soon as you use the test questions to choose: search again because
# the test disappointed you, and they have become validation questions.
#
# Why is the best setting not the new default? A search finds what you ask for, here accuracy and nothing else. It did
# not ask what a *random* reward does with these settings (notebook 08). The default has its lower rate and its larger
# KL coefficient because with them a coin moves hardly anything. And look at the spread of the seeds, too.
#
# ## What you should see, and what it means if you don't

# %%
from lab_utils.teaching.inspection import expect

paired = paired_bootstrap(before.per_problem, evaluations["GRPO"].per_problem)
expect(config, "GRPO is better than base and SFT by more than 20 points, the whole interval", paired.low > 0.2)
expect(config, "GRPO makes more attempts", evaluations["GRPO"].mean_attempts > before.mean_attempts)
expect(config, "hardly any correct answer is lost to the format",
       evaluations["GRPO"].accuracy_lenient - evaluations["GRPO"].accuracy < 0.02)

# %% [markdown]
# - The middle panel of the story is flat while the left one rises: the model has become better without searching
#   longer. Read its responses (notebook 06). A shortcut would show there.
# - Training accuracy is far above test accuracy: the model may have memorized training problems. Compare both at the
#   same step: training accuracy is an average over a model that was still changing.
# - Only the strict bar rises: the model has learned the format, and no more.
#
# ## Now in your own words
#
# Write half a page for a colleague who was not here. Say what was learned, how much, and how sure you are. Then check
# it against this list:
#
# 1. Does every number come with its interval and its number of problems?
# 2. Do you say that it was one seed, one task, and a model of about a million parameters?
# 3. Do you say what the random reward and extra SFT did, even if it is not nothing, and after how many steps?
# 4. Do you name one observation that speaks *against* your conclusion, or one that you would need and do not have?
# 5. Is there a word such as "reasoning" or "understands"? Say what you measured instead.
#
# ## Summary
#
# - SFT brings the format. The tiny base, asked in plain text, already solves about as many problems. Reinforcement
#   learning brings the gain: mostly persistence, and somewhat better first attempts.
# - A claim is a number, an interval, a control, and what it does not cover.
# - Run directories make all of it checkable.
#
# ## Questions
#
# Think first. The answers are in [ANSWERS.md](ANSWERS.md).
#
# 1. If you had one slide, which single figure would you show, and what does it hide?
# 2. You have one hour of computing left. More seeds, longer controls, or a larger model: which would change your mind
#    most?
# 3. The same recipe on a GPU trains a model a thousand times as large on real data. Which of your conclusions do you
#    expect to carry over?
