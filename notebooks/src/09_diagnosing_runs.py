# %% [markdown]
# # 09 · Diagnosing runs
#
# <!-- badges -->
#
# > **You will learn** to tell from a run's curves and completions what is wrong with it: which curves to read in which
# > order, how to get from evidence to a hypothesis, a test and a fix, what is only noise, and which alarms to set.
# >
# > **Time** the machine: 1 minute on a CPU or a GPU · you: 80 minutes · **Needs** nothing: the runs come with the
# > workshop

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
from lab_utils.runs import RunDirectory

recorded = Path("notebooks/recorded/runs")
healthy = RunDirectory(recorded / "healthy")
runs = {letter: RunDirectory(recorded / letter) for letter in "ABCDEFGHI"}
figures = Path(OUTPUT_DIR) / "figures"
settings = healthy.config()
print(f"{len(runs)} recorded runs of {settings.recipe} at tier {settings.hardware}, seed {settings.seed}, "
      f"{len(healthy.metrics())} steps each, plus a healthy one")

# %% [markdown]
# ## Eight runs that went wrong, and one that did not
#
# The runs are GRPO on Countdown with the tiny model, as in notebook 06. Eight of them contain **one mistake** each: in
# a setting, in a line of code, in the data, or in the choice of the start model. None of them raised an error, and all
# ran to the end. One run is a **decoy**: nothing is wrong with it. It only looks bad, because it is noisy. Noise is
# easily taken for a problem, and every "fix" for it seems to work half of the time.
#
# Nothing is trained here. The runs were recorded with 24 steps each by this command, in about half an hour on a CPU:
#
# ```bash
# python scripts/record_runs.py --output-dir runs/recording
# ```
#
# A first look: the accuracy of each run, next to that of the healthy run.

# %%
from lab_utils.figures import plot_overview, plot_side_by_side

plot_side_by_side({f"run {letter}": run for letter, run in runs.items()}, healthy, "accuracy",
                  figures / "09_accuracy_of_the_recorded_runs.png")

# %% [markdown]
# Accuracy may say *that* something is wrong, never *what*. Several of these curves are flat, each for a different
# reason, and each reason needs a different fix. So look further.
#
# ## How to read a run
#
# Always read in the same order, and always next to a run that is known to be good:
#
# 1. **Reward and accuracy, together.** The reward is what you pay for; the accuracy is what you want.
# 2. **Each reward function on its own.** Their sum can hide that one of them is always 0.
# 3. **Length and cut-off responses.** Was there room for an answer?
# 4. **Entropy.** Do the responses still differ?
# 5. **KL and gradient norm.** Does the policy move, and how fast?
# 6. **Groups without a signal.** Is there anything to learn from?
# 7. **Completions**: correct ones, wrong ones, well-paid ones, from the first step and the last. Never skip them.
#
# The thin line is what was logged at each step; the thick one is smoothed. If points are drawn in the accuracy panel,
# they are the probe: the same held-out problems every time.
#
# | you see | look next at | problem | fix |
# |---|---|---|---|
# | few groups have a signal, reward at the bottom | completions | nothing to reward | warm-up, easier problems |
# | few groups have a signal, reward at the top | the first step | problems too easy | keep those solved *sometimes* |
# | a signal, and the KL stays at 0 | learning rate | learning rate too low | three to ten times as much |
# | a signal, KL small, gradients large | loss, β times KL | KL coefficient too high | a tenth of it |
# | KL rises, completions do not change | length, text | sampler not updated | check how it gets its weights |
# | reward rises, accuracy does not | well-paid wrong answers | hacked reward | close the hole (notebook 07) |
# | a signal, the reward stays flat | pay of correct and wrong | random reward | try it on correct and wrong answers |
# | one reward function is always 0 | its code, by hand | dead reward function | tags, `re.DOTALL`; add a test |
# | the longest response hardly changes | the end of the text | completions cut off | limit; template, end token |
# | KL and gradients jump, accuracy falls | what came first | learning rate too high | a third of it, or less |
# | curves jump, but the trend is good | problems per step, probe | only noise | more problems, or patience |
#
# Two more rules. **One cause explains every panel**: a hypothesis that fits one panel and contradicts another is wrong.
# And **test** a hypothesis on something that you have not looked at yet, before you spend hours on a fix.

# %% [markdown]
# ## Run A, together
#
# Look at one panel at a time, and say what you expect to see before you look at the next one. This is what separates a
# diagnosis from a guess.
#
# **Evidence.** First reward and accuracy.

# %%
from lab_utils.figures import OVERVIEW, plot_panel

plot_panel(runs["A"], healthy, "reward")

# %%
plot_panel(runs["A"], healthy, "accuracy")

# %% [markdown]
# Both rise a little, far less than in the healthy run. The run learns something, but what? Which panel comes next in
# the list above?

# %%
plot_panel(runs["A"], healthy, "completions/mean_length")

# %%
plot_panel(runs["A"], healthy, "completions/clipped_ratio")

# %% [markdown]
# The responses become *shorter*, while those of the healthy run become longer. At the start many of them are cut off,
# later hardly any. That looks as if the problem had fixed itself. How long is the longest response of each step?

# %%
import pandas as pd

longest = pd.DataFrame({name: run.metrics().set_index("step")["completions/max_length"]
                        for name, run in {"healthy": healthy, "A": runs["A"]}.items()})
longest.T.iloc[:, :12].astype(int)

# %% [markdown]
# **Hypothesis.** The limit is 32 tokens, and a second attempt does not fit. A response that tries again is cut off
# and earns nothing, so the policy learns to give up after one attempt. What pays in the healthy run is out of reach.
#
# **Test.** If that is so, then a response with one attempt takes fewer than 32 tokens, and one with two attempts takes
# more. Also, many of the healthy run's correct answers come from several attempts. Check its complete responses:

# %%
from lab_utils.models import load_tokenizer

tokenizer = load_tokenizer("tiny")
rows = healthy.completions()
rows = rows[rows["completion"].str.endswith("</answer>")].copy()
rows["attempts"] = rows["completion"].str.count(r"\b(?:yes|no)\b")
rows["tokens"] = [len(ids) + 1 for ids in tokenizer(list(rows["completion"]))["input_ids"]]  # and the end token
print(rows.groupby("attempts").agg(responses=("tokens", "size"), correct=("correct", "sum"),
                                   shortest=("tokens", "min"), longest=("tokens", "max")))
texts = runs["A"].completions()["completion"]
print(f"\nA response of run A that was cut off:\n{texts[~texts.str.contains('</answer>')].iloc[0]}")

# %% [markdown]
# **Fix.** A larger `max_completion_length`. From now on, look at the *first* step of a run: how many responses are cut
# off before anything is learned? Later is too late, because by then the policy has adapted to the limit. The curve of
# cut-off responses went down because of the problem, not in spite of it.
#
# One cause explains every panel. So here are all nine; check the five that you have not seen.

# %%
plot_overview(runs["A"], healthy, figures / "09_run_A.png")

# %% [markdown]
# ## Exercise 1: eight diagnoses
#
# *Difficulty: medium · importance: high · about 40 minutes, good to do in pairs*
#
# Now it is your turn, with the runs B to I. Each has one of the problems on this list. No two of the nine runs have the
# same one, and some problems on the list do not occur. One run is the decoy, "only noise".

# %%
from lab_utils.teaching import checks
from lab_utils.teaching.diagnosis import PROBLEMS

print("\n".join(f"- {name}" for name in PROBLEMS))
print("\nPanels to look at, in this order:", ", ".join(OVERVIEW))

# %% [markdown]
# `look(letter, panel)` draws one panel. `read(letter, step)` shows one response to each of the two problems that were
# recorded at that step. Recorded steps are 1, 5, 9, 13, 17 and 21; for any other step it takes the nearest. `n=4` shows
# more responses.
#
# Play it as a game: **how few panels do you need** until only one name on the list is left? For each run below you get
# the first panel. Change the second cell to the panel that you want to see next, and run it as often as you like.

# %%
def look(letter, panel):
    """Draw one panel of a run, next to the healthy run."""
    return plot_panel(runs[letter], healthy, panel)


def read(letter, step, n=1):
    """Print `n` responses to each of the two problems that were recorded at a step of a run."""
    run = {"healthy": healthy, **runs}[letter]
    rows = run.completions()
    nearest = min(rows["step"].unique(), key=lambda other: abs(other - step))
    for question, group in rows[rows["step"] == nearest].groupby("question", sort=False):
        print(f"── {letter}, step {nearest}: {question}")
        for row in group.head(n).itertuples():
            print(f"{row.completion}\n   {'correct' if row.correct else 'wrong'}, reward {row.reward:g}\n")


read("healthy", 21)

# %% [markdown]
# ### Run B

# %%
look("B", "accuracy")

# %%
look("B", "reward")  # which panel do you want to see next?

# %%
read("B", 1)
read("B", 21)

# %% [markdown]
# ### Run C

# %%
look("C", "accuracy")

# %%
look("C", "reward")  # which panel do you want to see next?

# %%
read("C", 1)
read("C", 21)

# %% [markdown]
# ### Run D

# %%
look("D", "accuracy")

# %%
look("D", "reward")  # which panel do you want to see next?

# %%
read("D", 1)
read("D", 21)

# %% [markdown]
# ### Run E

# %%
look("E", "accuracy")

# %%
look("E", "reward")  # which panel do you want to see next?

# %%
read("E", 1)
read("E", 21)

# %% [markdown]
# ### Run F

# %%
look("F", "accuracy")

# %%
look("F", "reward")  # which panel do you want to see next?

# %%
read("F", 1)
read("F", 21)

# %% [markdown]
# ### Run G

# %%
look("G", "accuracy")

# %%
look("G", "reward")  # which panel do you want to see next?

# %%
read("G", 1)
read("G", 21)

# %% [markdown]
# ### Run H

# %%
look("H", "accuracy")

# %%
look("H", "reward")  # which panel do you want to see next?

# %%
read("H", 1)
read("H", 21)

# %% [markdown]
# ### Run I

# %%
look("I", "accuracy")

# %%
look("I", "reward")  # which panel do you want to see next?

# %%
read("I", 1)
read("I", 21)

# %% [markdown]
# ### All numbers
#
# If you have decided by panels, check your decisions against the numbers: the mean of each curve over the first four
# steps and over the last four (shares, not percent).

# %%
columns = {  # metric -> name, format
    "reward": ("reward", ".2f"), "accuracy": ("accuracy", ".2f"), "completions/mean_length": ("length", ".0f"),
    "completions/clipped_ratio": ("cut off", ".2f"), "entropy": ("entropy", ".2f"), "kl": ("KL", ".4f"),
    "grad_norm": ("gradient", ".2f"), "frac_reward_zero_std": ("no signal", ".2f"),
}


def first_and_last(run):
    metrics = run.metrics().reindex(columns=list(columns))
    first, last = metrics.head(4).mean(), metrics.tail(4).mean()
    return {name: f"{first[column]:{form}} → {last[column]:{form}}" for column, (name, form) in columns.items()}


pd.DataFrame({name: first_and_last(run) for name, run in {"healthy": healthy, **runs}.items()}).T

# %% [markdown]
# ### Your diagnoses
#
# Write down for each run the panel that decides, and the panel that speaks most against the second-best name. Then fill
# in the names. A run that you have not decided yet keeps its "".

# %%
diagnosis = {
    "B": "",  # a name from the list, such as "random reward"
    "C": "",
    "D": "",
    "E": "",
    "F": "",
    "G": "",
    "H": "",
    "I": "",
}
# YOUR CODE HERE
# (or write the names into the dictionary above, instead of each "")
# >>> solution
diagnosis |= {
    "B": "learning rate too high",
    "C": "problems too easy",
    "D": "hacked reward",
    "E": "learning rate too low",
    "F": "nothing to reward",
    "G": "dead reward function",
    "H": "sampler not updated",
    "I": "only noise",
}
# <<< solution

# %% [markdown] tags=["hints"]
# 1. Sort the runs by two panels first: `frac_reward_zero_std` (is there a signal?) and `kl` (does the policy move?).
#    For the rest compare `reward` with `accuracy`, and look at `rewards`, each function on its own.
# 2. Most groups without a signal: B, C and F, for three different reasons; the first step tells them apart. Hardly any
#    KL: E. Far too much KL: B and H; only one of them writes other completions than at the start. Accuracy rises in two
#    of the others.

# %%
checks.check_diagnosis(diagnosis, runs, healthy)

# %% [markdown]
# Now that you have decided, here is everything about one of them. Change the letter, and check that the cause explains
# all nine panels.

# %%
plot_overview(runs["F"], healthy)

# %% [markdown]
# ## What was changed
#
# Each run directory holds its settings in `config.yaml`. Here it also holds, in `own_code.txt`, any code that is not
# part of the workshop. This is how each run differs from the healthy one. Would your own run directories tell you that
# much?

# %%
from lab_utils.teaching.diagnosis import what_was_changed

for letter, run in runs.items():
    print(f"── run {letter} ──\n{what_was_changed(run, healthy)}\n")

# %% [markdown]
# ## What each run teaches
#
# - **Completions cut off.** The symptom fades because the policy adapts to it. The loss in accuracy stays.
# - **Learning rate too high.** Every curve looks wrong at once, cut-off responses included. But at the fifth step the
#   accuracy is 0 and only one response in ten is cut off, so a larger limit would not have helped. KL and gradient tell
#   it early.
# - **Learning rate too low.** The groups have a signal, the gradient norm is healthy, and the KL is 0 to four digits.
#   1e-6 is TRL's default. It suits training all weights of a model a thousand times as large.
# - **Nothing to reward.** All advantages are 0, and the policy stands still. The cell below looks closer.
# - **Problems too easy.** It has the highest accuracy of all runs from the first step on, and nothing left to learn.
# - **Hacked reward.** The reward rises all the time, as in the best of runs, and the accuracy does not. The panel with
#   each reward function shows which of them drives it, and the completions show how: wrong answers that all look the
#   same.
# - **Dead reward function.** Accuracy is as in the healthy run, so it is easy to miss. It costs what the function was
#   meant to teach. In 24 steps here that is little; in a recipe with three format rewards it is most of the signal at
#   the start.
# - **Sampler not updated.** Whatever the policy learns never shows in the samples. Nothing tells the policy that it has
#   learned enough, so the KL rises without end, while accuracy and length stay flat.
# - **Only noise.** Reward and accuracy jump from step to step, because each step asks very few problems. The trend is
#   that of the healthy run, and so are KL, entropy and length. Only the number of problems per step differs.
#
# ## Can a policy move when nothing is rewarded?
#
# All advantages of run F are 0, so the reward gives no gradient at all. What is left in the loss is the KL term.

# %%
f = runs["F"].metrics()
print(f[["step", "learning_rate", "grad_norm", "kl"]].iloc[[0, 1, 6, 12, -1]].to_string(index=False))

# %% [markdown]
# At the first step policy and reference are equal. There the KL term is 0, and so is its gradient: a policy that has
# not moved is not pulled back. Nothing moves this one, so it stays where it is, to the last digit.
#
# Do not rely on that digit. On other machines, in 16 bits or in other batches, two forward passes of the same weights
# differ by rounding, and the KL term gets a gradient of rounding errors. Adam divides a gradient by its size, so even a
# tiny one makes a step, unless it is far smaller than Adam's ε = 1e-8 per weight. After that step the policy *has*
# left the reference, and the KL term pulls it back with a gradient of its own. So a term that was meant to keep the
# policy at its start can shake it around there. (TRL's issue 5588 reports the same for single groups without a signal.)
# With `beta` = 0 every gradient is exactly 0 on any machine. Either way nothing is learned: stop such a run.
#
# ## Exercise 2: how noisy is a curve?
#
# *Difficulty: medium · importance: high · about 10 minutes*
#
# Two curves jump. Is one of them noisier than it should be? The standard deviation of a curve does not tell, because a
# curve that *rises* has a large one, too. So compare each step with the next one. A trend changes little from one step
# to the next, so what is left is noise. Each difference holds the noise of *two* steps, so its variance is twice that
# of one. Return the estimated standard deviation of one step: the root of the mean squared difference, divided by √2.
#
# By hand: `[0.1, 0.3, 0.1, 0.3]` has differences of ±0.2, so the result is 0.2 / √2 = 0.141. A curve that rises evenly
# and slowly, `[0.00, 0.01, 0.02, 0.03]`, gives 0.007.

# %%
import math


def scatter(curve):
    """Return the standard deviation of a curve's noise, estimated from the differences between neighboring steps."""
    # YOUR CODE HERE
    # >>> solution
    differences = [later - earlier for earlier, later in zip(curve, curve[1:], strict=False)]
    return math.sqrt(sum(d**2 for d in differences) / len(differences) / 2)
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. `zip(curve, curve[1:])` gives all neighbors. How many differences do four steps have?
# 2. The mean of the squared differences, divided by 2, is the variance. Take its root.

# %%
checks.check_scatter(scatter)

# %%
problems = {name: run.config().grpo.per_device_train_batch_size // run.config().grpo.num_generations
            for name, run in {"healthy": healthy, **runs}.items()}
noise = {name: scatter(run.metrics()["accuracy"].tolist()) for name, run in {"healthy": healthy, **runs}.items()}
for name in noise:
    print(f"{name:>7}: {problems[name]:>2} problems per step, accuracy scatters by {100 * noise[name]:4.1f} points")
expected = noise["healthy"] * math.sqrt(problems["healthy"] / problems["I"])  # by the root of the number of problems
print(f"expected for {problems['I']} problems instead of {problems['healthy']}: {100 * expected:.1f} points")

# %% [markdown]
# Compare the last line with the scatter of run I. An estimate from two dozen steps is uncertain by about a fifth, and
# the few problems that run I happened to draw may be more mixed than usual. So if the two numbers differ by less than a
# factor of two, its jumps need no other explanation. Before you look for a cause, ask how large an effect chance alone
# would have.
#
# ## Exercise 3: the first alarm
#
# *Difficulty: medium · importance: medium · about 15 minutes*
#
# On a GPU a run takes hours, and you cannot watch it all night. A program can see some problems after a few steps and
# stop the run. Single steps scatter, so it should act after **three logged steps in a row** at which
#
# - more than 20% of the responses are cut off, or
# - more than half of the groups have no signal, or
# - the KL is above 0.15 nats per token, or
# - a reward function (a column `rewards/NAME/mean`) pays 0 on average.
#
# The reason may differ from step to step. Return the step at which the alarm holds for the third time in a row, or
# None. By hand: with 30%, 0%, 30%, 30% and 30% cut off in steps 1 to 5 it is step 5.

# %%
def first_alarm(metrics, patience=3):
    """Return the first step that ends `patience` logged steps in a row with an alarm, or None."""
    # YOUR CODE HERE
    # >>> solution
    alarm = (
        (metrics["completions/clipped_ratio"] > 0.2)
        | (metrics["frac_reward_zero_std"] > 0.5)
        | (metrics["kl"] > 0.15)
    )
    for column in metrics:
        if column.startswith("rewards/") and column.endswith("/mean"):
            alarm |= metrics[column] == 0
    in_a_row = alarm.rolling(patience).sum() == patience
    return int(metrics["step"][in_a_row].iloc[0]) if in_a_row.any() else None
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. First make one column that says for each step whether *any* of the reasons holds. Only then count steps in a row.
# 2. Combine the columns with `|`, the reward functions in a loop over the columns' names. Then
#    `alarm.rolling(patience).sum() == patience` is true where the last `patience` steps all had an alarm.

# %%
checks.check_first_alarm(first_alarm)

# %% [markdown]
# The healthy run must not raise an alarm, and neither must the noisy one: people switch off an alarm that cries wolf.
# That is why it waits for three steps in a row. What about the others?

# %%
pd.DataFrame({
    name: {"diagnosis": {"healthy": "", "A": "completions cut off", **diagnosis}[name],
           "first alarm": first_alarm(run.metrics()) or "none"}
    for name, run in {"healthy": healthy, **runs}.items()
}).T

# %% [markdown]
# Not every problem raises an alarm. No threshold on these curves finds a reward that pays for the wrong thing, a policy
# that moves too slowly, or a limit to which the policy has adapted before the third step. For the first, compare the
# reward with what you *want*. For the others, you need a run that is known to learn. Alarms save hours; they do not
# replace looking.
#
# ## And your own run?
#
# If you have run notebook 06 in this OUTPUT_DIR, this cell shows its first alarm and its numbers, next to those of the
# recorded healthy run.

# %%
config = load(RECIPE, HARDWARE, {"seed": SEED})
mine = RunDirectory(Path(OUTPUT_DIR) / config.task.name / "grpo")
if mine.metrics_path.is_file():
    metrics = mine.metrics()
    metrics["kl"] = metrics.get("kl", 0.0)  # not logged if beta is 0
    print(f"first alarm: {first_alarm(metrics) or 'none'}, in {len(metrics)} steps")
    print(pd.DataFrame({"recorded healthy run": first_and_last(healthy), "yours": first_and_last(mine)}))
else:
    print(f"{mine.path} has no run of notebook 06. Run that notebook first, with the same OUTPUT_DIR.")

# %% [markdown]
# ## The same on a Qwen
#
# The curves, and the order in which you read them, stay the same at full size. These numbers change:
#
# | | here | Qwen2.5-0.5B and larger |
# |---|---|---|
# | steps until you see it | 3 to 24, of 256 completions | tens to hundreds, of 64 or fewer: smooth more |
# | learning rate | 1e-4, all weights | about 1e-6 for all weights, 1e-5 to 3e-5 with LoRA |
# | cut off at the first step | hardly any | 57% of Qwen2.5-0.5B-Instruct's GSM8K answers at 256 tokens |
# | groups without a signal | few, of 16 | of 8, at 90% accuracy: 43% if all problems are equally hard, else more |
# | KL, entropy, gradient norm | as above | different in every recipe: compare with your last good run |
# | sampler | the trainer's own weights | vLLM has a copy: `sampling/sampling_logp_difference/mean` stays flat |
#
# (The 57% are from TRL's issue 6263. The 43% are 0.9⁸ + 0.1⁸; exercise 2 of notebook 06 shows why mixed problems are
# worse.)
#
# ## A checklist for a long run
#
# **Before it starts**
# 1. Try each reward function by hand: on a correct answer, a wrong one, an empty one, one in the wrong format.
# 2. Give the start model a hundred problems. Does it solve some of them *sometimes*? How many responses are cut off?
# 3. Make a healthy run of the same recipe on something small, to compare with.
#
# **In the first ten steps**
#
# 4. Every reward function pays for some responses. Most groups have a signal.
# 5. KL and gradient norm are not 0 and do not jump. Lengths are below the limit.
# 6. You have read twenty completions.
#
# **While it runs**: an alarm as above, and checkpoints to resume from.
#
# **Before you believe it**
#
# 7. Accuracy has risen with the reward, on held-out problems (notebook 08).
# 8. You have read the best-paid completions.
# 9. The run directory says what was run, code included.
#
# ## Summary
# - Read reward and accuracy first, then each reward function, lengths, entropy, KL and gradients, and the groups. Then
#   read completions.
# - A flat accuracy has at least five causes. The *other* curves tell them apart.
# - A curve can get better because of a problem.
# - Evidence, hypothesis, test, fix. One cause has to explain all curves.
# - Before you look for a cause, compare with what chance alone would do. A noisy run needs more problems, not a fix.
#
# ## Questions
# Think first. The answers are in [ANSWERS.md](ANSWERS.md).
#
# 1. In three of these runs (B, C and F) most groups have no signal. Which panels tell the three apart? Why would the
#    fix for one of them harm another?
# 2. In which of the recorded runs would TensorBoard's reward curve alone have told you that all is well?
# 3. Write an alarm for a reward that pays for the wrong thing. Which column does it need, and why is that column
#    missing when a task has no judge?
# 4. A colleague's run does not move: its KL is 0. She triples the number of steps. What would you have asked first?
# 5. Your run has four problems per step and its accuracy has fallen for three steps. What do you look at before you
#    stop it, and what would you change in the *next* run to know sooner?
#
# Next: [10 · PPO training](10_ppo_training.ipynb) gives every token its own advantage.
