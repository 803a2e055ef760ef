# %% [markdown]
# # 02 · Reward design
#
# <!-- badges -->
#
# > **You will learn** to write rewards for GSM8K and Countdown; to probe them with good, bad and hostile text; to mix
# > several into one, and what a small weight really does; to see whether a model can learn from them at all.
# >
# > **Time** the machine: 1 minute on a CPU, 3 on a GPU · you: 60 minutes · **Needs** nothing else

# %% tags=["setup"]
# The builder writes this cell: notebooks/src/setup_cell.py.

# %% tags=["parameters"]
RECIPE = "gsm8k-grpo"
HARDWARE = "cpu"  # or "auto", or one of the GPU tiers
OUTPUT_DIR = "outputs"
SEED = 0

# %% [markdown]
# ## What a reward is
#
# Reinforcement learning does more of what earns a higher reward. It sees nothing else, least of all your
# intention. So a reward must be correct for *every* text that a model may write, and a model that trains for an hour
# writes strange texts.
#
# For TRL a reward is a plain function, `f(completions, **columns) -> list[float]`. It gets a list of completions and
# the dataset's columns as lists of the same length, and returns one number for each completion. Here is a toy. It
# counts the words, and you can check its result by hand.

# %%
def word_count_reward(completions, **columns):
    return [float(len(completion.split())) for completion in completions]


word_count_reward(completions=["seventy two", "72"], answer=["72", "72"])

# %% [markdown]
# There is one complication. When the prompt is a list of messages, TRL passes every completion as a list of messages
# too. `completion_text` returns the text in both cases. You will see two plain texts, the same one twice.

# %%
from lab_utils.tasks import completion_text

print(completion_text("The answer is 72."))
print(completion_text([{"role": "assistant", "content": "The answer is 72."}]))

# %% [markdown]
# ## Exercise 1: the correctness reward
#
# *Difficulty: medium · importance: high · about 10 minutes*
#
# Return 2.0 for every completion whose `<answer>` holds the gold number, else 0.0. Published rewards have failed on
# each of these: an answer on a line of its own, `1,000` for 1000, `$72` for 72, `72.0` for 72, the word *banana* (a
# crash or, worse, a point), and 72 without any tag. Of several answers the last complete one counts.
# `extract_xml_answer` and `numbers_match` from notebook 01 help. For example, `<answer>$72.00</answer>` earns 2.0 where
# the gold answer is 72.

# %%
from lab_utils.tasks.answers import extract_xml_answer, numbers_match


def correctness_reward(completions, answer, **columns):
    """Return 2.0 for the gold number in <answer> tags, else 0.0; `answer` has the gold numbers as text."""
    # YOUR CODE HERE
    # >>> solution
    found = [extract_xml_answer(completion_text(completion)) for completion in completions]
    return [2.0 if numbers_match(one, gold) else 0.0 for one, gold in zip(found, answer, strict=True)]
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. Three steps for each completion: its text (which may be wrapped in messages), the answer in it (which may be
#    missing), the comparison with *its own* gold number. Does `numbers_match` accept `None`? Try it.
# 2. `numbers_match(extract_xml_answer(completion_text(completion)), gold)` is the condition. Pair each completion with
#    its gold number by `zip(completions, answer, strict=True)`.

# %%
from lab_utils.teaching import checks

checks.check_correctness_reward(correctness_reward)

# %% [markdown]
# ## Exercise 2: the strict format reward
#
# *Difficulty: medium · importance: medium · about 10 minutes*
#
# Return 0.5 for exactly the format that the prompt asks for, else 0.0:
#
# ```
# <reasoning>
# any text, on one or more lines
# </reasoning>
# <answer>
# any text
# </answer>
# ```
#
# There are two traps. In a regular expression `.` does not match a line break unless you give `re.DOTALL`; without it
# the reward stays at zero forever, and no error tells you. With it, `.*?` can run across a second set of tags, so count
# the tags as well.

# %%
import re

TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")


def strict_format_reward(completions, **columns):
    """Return 0.5 for the format above, with or without a line break at the very end, else 0.0."""
    # YOUR CODE HERE
    # >>> solution
    pattern = re.compile(r"<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n?", re.DOTALL)
    texts = [completion_text(completion) for completion in completions]
    once = [all(text.count(tag) == 1 for tag in TAGS) for text in texts]
    return [0.5 if one and pattern.fullmatch(text) else 0.0 for one, text in zip(once, texts, strict=True)]
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. Two questions: does the *whole* text have this shape, and does each tag occur exactly once? One pattern cannot
#    answer both.
# 2. `re.fullmatch(r"<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n?", text, re.DOTALL)` answers the first,
#    `all(text.count(tag) == 1 for tag in TAGS)` the second.

# %%
checks.check_strict_format_reward(strict_format_reward)

# %% [markdown]
# From here on the notebook uses the rewards of `lab_utils.rewards`, which also pass these checks.
#
# ## Probe every reward
#
# The recipe `gsm8k-grpo` adds up five rewards. Correctness is worth most. The other four are stepping stones: a model
# that never gets a number right can still learn from them where a number belongs:
#
# | reward | pays |
# |---|---|
# | `correctness` | 2.0 for the gold number in `<answer>` |
# | `int` | 0.5 for any whole number in `<answer>` |
# | `strict_format` | 0.5 for exactly the requested format |
# | `soft_format` | 0.5 for the four tags in the correct order, whatever is around them |
# | `xmlcount` | 0.125 for each tag that occurs exactly once, minus 0.001 for each character after the last one |
#
# Before you train with a reward, show
# it texts whose value you know. You will see a row for each text and a column for each reward.

# %%
import pandas as pd

from lab_utils import rewards

GSM8K_REWARDS = [rewards.correctness_reward, rewards.int_reward, rewards.strict_format_reward,
                 rewards.soft_format_reward, rewards.xmlcount_reward]
good = "<reasoning>\n48 / 2 = 24\n48 + 24 = 72\n</reasoning>\n<answer>\n72\n</answer>"
probes = {
    "exactly as asked": good,
    "the same with $72.00": good.replace("\n72\n", "\n$72.00\n"),
    "wrong number": good.replace("\n72\n", "\n71\n"),
    "banana": good.replace("\n72\n", "\nbanana\n"),
    "all on one line": good.replace("\n", " "),
    "remark at the end": good + "\nI hope this helps!",
    "everything twice": good + "\n" + good,
    "no reasoning": "<answer>\n72\n</answer>",
    "no closing tag": good.removesuffix("</answer>"),
    "correct, no tags": "48 / 2 = 24, 48 + 24 = 72. The answer is 72.",
    "empty": "",
}
columns = {"answer": ["72"] * len(probes)}
table = pd.DataFrame({f.__name__: f(list(probes.values()), **columns) for f in GSM8K_REWARDS}, index=list(probes))
table["total"] = table.sum(axis=1)
table

# %% [markdown]
# The same table as a figure, for the report. Read it row by row and ask: should this text earn more than that one?

# %%
from pathlib import Path

import matplotlib.pyplot as plt

from lab_utils.figures import INK

figure, ax = plt.subplots(figsize=(12, 7))
ax.pcolormesh(table.to_numpy()[::-1], cmap="YlGn", vmin=0, vmax=4.5, edgecolor="white", linewidth=2)
for row, values in enumerate(table.to_numpy()[::-1]):
    for column, value in enumerate(values):
        ink = "white" if value > 3 else "#777777" if value == 0 else INK
        ax.text(column + 0.5, row + 0.5, f"{value:.3g}", ha="center", va="center", color=ink, fontsize=15)
names = [name.removesuffix("_reward").replace("_", "\n") for name in table]
ax.set_xticks([i + 0.5 for i in range(len(names))], names)
ax.set_yticks([i + 0.5 for i in range(len(table))], table.index[::-1])
ax.tick_params(length=0)
ax.xaxis.tick_top()
ax.spines[:].set_visible(False)
ax.grid(False)
figures = Path(OUTPUT_DIR) / "figures"
figures.mkdir(parents=True, exist_ok=True)
figure.savefig(figures / "02_rewards_probed.png")

# %% [markdown]
# Two rows deserve a thought. *Wrong number* earns half of what *exactly as asked* earns, only for its form. *Correct,
# no tags* earns nothing. Both are meant so: the model climbs from no tags to tags to the number. But it means that the
# mean reward can rise a long way while accuracy does not. So always watch accuracy next to the reward.
#
# ## Countdown's rewards
#
# Countdown has two rewards: the format and the equation. The equation is checked exactly and without `eval`. Of the
# following answers only the first two are correct. The others are of kinds that have fooled public rewards: a number
# left out or used twice, digits glued together (`36`) or into decimals (`7.6`), powers, an equals sign, code, digits of
# another script.

# %%
answers = ["(7 * 6) + 3", "3 + 7*6", "7 * 6", "7 * 6 + 7 - 4", "36 + 7 + 2", "7.6 * 3 + 22.2", "3 ** 6 / 7",
           "7 * 6 + 3 = 45", "45", "__import__('os').getcwd()", "７ * 6 + 3", "7 * 6 + 3 </answer> no <answer> 1"]
completions = [f"<think>7 * 6 = 42, 42 + 3 = 45 yes</think><answer>{answer}</answer>" for answer in answers]
columns = {"nums": [[3, 6, 7]] * len(answers), "target": [45] * len(answers)}
pd.DataFrame(
    {f.__name__: f(completions, **columns) for f in (rewards.equation_reward, rewards.format_reward)}, index=answers
)

# %% [markdown]
# ## Text that is meant to hurt
#
# Untrained models write nonsense, and trained ones find holes. A reward must give a finite number for all of it, and
# fast, or a run of hours stops (or, worse, continues with a wrong reward). `9**9**9**9` keeps `eval` busy forever. A
# careless regular expression takes time in proportion to the square of the text's length. The next cell times every
# reward on texts of about 100,000 characters. You will see the slowest case, in milliseconds, and that all values are
# finite.

# %%
import math
import time

hostile = ["<answer>" + "9**" * 33_000, "<answer>" * 12_500, "<reasoning>" + "\n" * 100_000 + "</answer>",
           "(" * 100_000, "<answer>" + "1+" * 50_000 + "1</answer>", "1,000," * 16_000, "😀" * 100_000]
columns = {"answer": ["72"], "nums": [[3, 6, 7]], "target": [45]}
functions = [getattr(rewards, name) for name in rewards.__all__ if name.endswith("_reward")]
timings = []
for function in functions:
    for text in hostile:
        started = time.perf_counter()
        (value,) = function(completions=[text], **columns)
        timings.append((1000 * (time.perf_counter() - started), function.__name__, text[:20]))
        assert math.isfinite(value)
print(f"{len(functions)} rewards × {len(hostile)} texts, all finite. The slowest took %.0f ms: %s on %r" % max(timings))

# %% [markdown]
# ## Mixing rewards
#
# One number has to come out in the end, so several rewards become one: their weighted sum. That sounds harmless, but a
# part can fail silently. TRL leaves `None` and NaN out of the sum, so a reward that forgets a case simply counts
# nothing there. And one infinite value makes the mean of its group infinite, and the advantages NaN.
#
# ## Exercise 3: the weighted mix
#
# *Difficulty: medium · importance: high · about 10 minutes*
#
# Write `weighted_mix(functions, weights)`. It returns **a reward**, that is, a function of the completions and the
# columns. That reward returns the weighted sum of the parts for each completion. It raises `ValueError` when a part
# does not return one finite number for each completion. For example, `weighted_mix([correctness_reward, int_reward],
# [1.0, 0.5])` pays 2.25 for a correct whole number: 1.0 · 2.0 + 0.5 · 0.5.

# %%
import math


def weighted_mix(functions, weights):
    """Return a reward: the sum of weight · value over `functions`. It raises ValueError for a part that fails."""
    # YOUR CODE HERE
    # >>> solution
    def mixed(completions, **columns):
        totals = [0.0] * len(completions)
        for function, weight in zip(functions, weights, strict=True):
            values = function(completions=completions, **columns)
            finite = [value is not None and math.isfinite(value) for value in values]
            if len(values) != len(completions) or not all(finite):
                raise ValueError(f"{function.__name__} returned {values} for {len(completions)} completions.")
            totals = [total + weight * value for total, value in zip(totals, values, strict=True)]
        return totals

    return mixed
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. `weighted_mix` computes nothing itself: it defines an inner function with TRL's signature and returns it. Inside,
#    start with a total of 0.0 for each completion and let every part add to it. What can be wrong with a part's list:
#    its length, and which values in it?
# 2. Call a part with `function(completions=completions, **columns)`. Compare the lengths, then test each value with
#    `value is not None and math.isfinite(value)`; only `math.isfinite` finds a NaN.

# %%
checks.check_weighted_mix(weighted_mix)

# %% [markdown]
# Now use it. The recipe `reasoning-sft-grpo` mixes five rewards: accuracy, scaled by length, counts most; format,
# visible steps, brevity and non-repetition count a little. Here are its weights, and three completions for a problem
# with the answer 72: an honest and correct one, an honest one with a wrong answer, and one that only produces what the
# reward for visible steps counts. Before you run the cell: which of the last two will earn more?

# %%
from lab_utils.config import load

mix = load("reasoning-sft-grpo", HARDWARE).rewards
texts = {
    "honest and correct": "<think>48 / 2 = 24. Then 48 + 24 = 72.</think><answer>72</answer>",
    "honest and wrong": "<think>48 / 2 = 24. Then 48 + 24 = 71.</think><answer>71</answer>",
    "faked steps": "<think>First, second, third, then, next, finally, first.</think><answer>5</answer>",
}
columns = {"answer": ["72"] * len(texts)}
functions = [getattr(rewards, name) for name in mix]
parts = {function.__name__: function(list(texts.values()), **columns) for function in functions}
total = weighted_mix(functions, list(mix.values()))(list(texts.values()), **columns)
table = pd.DataFrame({**parts, "weighted sum": total}, index=list(texts)).T
table.insert(0, "weight", [*mix.values(), ""])
table.round(3)

# %% [markdown]
# Such *shaping* rewards look at the surface, and a surface can be faked. The third completion gets all of
# `reasoning_reward`. The weights keep it far below the honest and correct one. But compare it with the honest and wrong
# one: where a model cannot solve a problem, faking pays.
#
# `rewards.combine_rewards` is the workshop's version of your function. And this is what it says to a reward that leaves
# out a completion:

# %%
def forgetful_reward(completions, **columns):
    return [1.0 if "72" in completion else None for completion in completions]


try:
    rewards.combine_rewards([forgetful_reward], [1.0])(["72", "I do not know."])
except ValueError as error:
    print(error)

# %% [markdown]
# ## What does a small weight do?
#
# The recipe `countdown-grpo` pays 1.0 for a correct equation and 0.1 for the format. Is the format's influence a tenth?
# That depends on what happens next. GRPO samples a **group** of completions for each problem and turns their rewards
# into **advantages**: how much better than the others of its group each one is. Positive ones become more likely,
# negative ones less likely. You will write this in notebook 05. Its formula is:
#
# $$A_i = \frac{r_i - \text{mean}(r)}{\text{std}(r)}$$
#
# The standard deviation (with n - 1) brings every group to the same scale. Without it, the advantage is $r_i -
# \text{mean}(r)$.
#
# ## Exercise 4: what the format is worth
#
# *Difficulty: hard · importance: high · about 15 minutes*
#
# The reward of a completion is 1.0 if it is correct, plus `weight` if it has the format. Return what the format is
# worth in this group: by how much the advantage of a completion with the format exceeds that of one without it, when
# both are equally correct. `scale` says whether the advantages are divided by the standard deviation. Where all
# completions earn the same, the group teaches nothing: return 0.0.
#
# An example by hand: four wrong completions, two of them with the format, weight 0.1. The rewards are 0.1, 0.1, 0, 0,
# their mean is 0.05, their standard deviation 0.0577, so the advantages are +0.87 and -0.87, and the format is worth
# 1.73.

# %%
import statistics


def format_worth(correct: list[bool], formatted: list[bool], weight: float, scale: bool = True) -> float:
    """Return how much more advantage a completion of this group gets for having the format."""
    # YOUR CODE HERE
    # >>> solution
    values = [is_correct + weight * has_format for is_correct, has_format in zip(correct, formatted, strict=True)]
    if len(set(values)) == 1:
        return 0.0
    return weight / statistics.stdev(values) if scale else weight
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. Take two completions, equally correct, one with the format. Write down both advantages and subtract. What happens
#    to the mean, and what remains of the two rewards?
# 2. The difference is `weight / std`, or `weight` without scaling. The standard deviation is that of *all* rewards of
#    the group, correct ones included: `statistics.stdev`. Handle equal rewards first, for there it is 0.

# %%
checks.check_format_worth(format_worth)

# %% [markdown]
# Now let the weight shrink, in a group of eight of which half have the format. You will see three columns that shrink
# with the weight, and one that doesn't. Which one, and why?

# %%
formatted = [True, False] * 4
groups = {"all wrong": [False] * 8, "one correct": [True] + [False] * 7, "half correct": [True] * 4 + [False] * 4}
pd.DataFrame({
    f"{name}{'' if scale else ', not scaled'}":
        [format_worth(correct, formatted, weight, scale) for weight in (1.0, 0.1, 0.01)]
    for name, correct in groups.items() for scale in (True, False) if scale or name == "all wrong"
}, index=["weight 1.0", "weight 0.1", "weight 0.01"]).round(2)

# %% [markdown]
# In an all-wrong group the weight stands above and below the fraction line, and **cancels**. A weight of 0.01 pushes as
# hard there as a weight of 1, about as hard as correctness pushes in other groups. Only a correct completion in the
# group makes the small weight small.
#
# So a small weight is no small influence. Early in a run, or on hard problems, most groups are all wrong, and there the
# format is *all* that is trained. For a format this is useful: it is learned first and then steps back. For a bonus on
# length it is not: wherever the model solves nothing, it learns to be short (notebook 07 shows such a bonus). Three
# remedies: pay the bonus only for correct answers; do not scale (`grpo.scale_rewards: none`); or scale by the batch
# (`batch`) instead of the group.

# %% [markdown]
# ## A reward of your own in a recipe
#
# A reward need not live in this package. Write it into a file, and name the file and the function among the rewards:
# `my_rewards.py:brevity: 0.2` in a recipe, or an override as below. You will see the five rewards of the recipe and
# yours.

# %%
my_rewards = Path(OUTPUT_DIR) / "my_rewards.py"
my_rewards.write_text('''\
from lab_utils.tasks import completion_text


def brevity(completions, **columns):
    """Give 1.0 for an empty completion, less for a longer one, 0.0 from 400 characters on."""
    return [max(0.0, 1 - len(completion_text(completion)) / 400) for completion in completions]
''', encoding="utf-8")
mine = load(RECIPE, HARDWARE, {"rewards": {f"{my_rewards}:brevity": 0.2}})
for name, weight in mine.rewards.items():
    print(weight, Path(name).name)

# %% [markdown]
# Before a run trains with it, it is tried on sample completions, broken ones among them: one finite number for each, in
# a short time. Training does this for you. You will see the range of its values and its time. Break it, for example
# with `return [0.5]`, and run both cells again.

# %%
from lab_utils.rewards.own import try_own_code
from lab_utils.tasks import load_task

task = load_task(mine.task)
print(*try_own_code(mine, task, list(task.dataset("train", 4, mine.task.source))), sep="\n")

# %% [markdown]
# ## The real thing: can the model learn from these rewards?
#
# GRPO compares the completions of one problem with each other. Where all of them earn the same, there is nothing to
# compare and nothing to learn. So before a run, sample some groups and score them. The next cell does that with the
# base model of notebook 00, and with the demonstrations that the model imitates in notebook 03.
#
# On tier `cpu` the base model earns almost nothing, because it has never seen an answer in tags. A group whose totals
# are all equal is a *dead* group.

# %%
from lab_utils.models import load_model, load_tokenizer
from lab_utils.sampling.local import sample
from lab_utils.tasks import visible

config = load(RECIPE, HARDWARE)
task = load_task(config.task)
problems = task.dataset("train", 16 if config.hardware == "smoke" else 64, config.task.source)
model, tokenizer = load_model(config.model.name, config.model), load_tokenizer(config.model.name)
longest = 128 if config.model.name == "tiny" else config.evaluation.max_new_tokens
groups = sample(model, tokenizer, problems["prompt"], num_samples=4, max_new_tokens=longest, seed=SEED)
print(problems[0]["question"], "\n")
print(visible(groups[0][0].text))

# %%
def mean_rewards(completions: list[str], gold: list[str]) -> dict[str, float]:
    """Return the mean of each of the five rewards."""
    return {f.__name__: sum(f(completions, answer=gold)) / len(completions) for f in GSM8K_REWARDS}


five = rewards.combine_rewards(GSM8K_REWARDS, [1.0] * 5)
totals = [five([one.text for one in group], answer=[gold] * 4)
          for group, gold in zip(groups, problems["answer"], strict=True)]
sampled = [one.text for group in groups for one in group]
results = pd.DataFrame({
    "sampled": mean_rewards(sampled, [gold for gold in problems["answer"] for _ in range(4)]),
    "demonstrations": mean_rewards([task.demonstration(row) for row in problems], problems["answer"]),
})
dead = sum(len(set(total)) == 1 for total in totals)
print(f"{dead} of {len(groups)} groups have four equal totals: nothing to learn from them.")
results.round(3)

# %% [markdown]
# ## What you should see, and what it means if you don't
#
# - On tier `cpu` the sampled completions earn (nearly) nothing and (nearly) every group is dead, while the
#   demonstrations earn the full reward. (The synthetic ones for word problems always state the correct number, even
#   where they skip the steps.) Supervised fine-tuning has to come first. That is notebook 03.
# - On a GPU tier an instruction-tuned model usually earns something from the start, and some groups are alive. There
#   the recipe starts with GRPO.
# - The demonstrations earn less than the full reward: the prompt, the demonstrations and the reward disagree about the
#   format. Print one with `repr` and compare.
# - A reward is zero for everything: look for a missing `re.DOTALL`, or a prompt that was not a list of messages.
#
# ## Summary
#
# - A reward is a pure function of text and columns. Probe it with texts whose value you know.
# - Compare numbers, not strings. Count tags. Never use `eval`.
# - Every stepping stone is also a place to stop. Watch accuracy next to the reward.
# - A weight compares rewards within a group. Where nothing else differs, scaling by the group makes any weight full
#   size.
# - A reward that is equal within each group teaches nothing, however sensible it is.
#
# ## Questions
#
# Think first. The answers are in [ANSWERS.md](ANSWERS.md).
#
# 1. Add a completion to `probes` that earns more than it deserves. How would you close the hole?
# 2. The five rewards give a wrong answer in perfect format half of the maximum. GRPO compares only within a group. When
#    does that half matter, and when does it cancel?
# 3. You want shorter answers. What would a model do if you gave `conciseness_reward` a weight of 10? And a weight of
#    0.01, on problems that it never solves?
#
# Next: [03 · SFT warm-up](03_sft_warmup.ipynb) teaches the response format, so that the rewards come alive.
