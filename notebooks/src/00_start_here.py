# %% [markdown]
# # 00 · Start here
#
# <!-- badges -->
#
# > **You will learn** which machine you have and which hardware tier fits it; what this workshop will show you; how to
# > ask a language model one question and judge its answer.
# >
# > **Time** the machine: 1 minute on a CPU, 2 on a GPU · you: 30 minutes · **Needs** nothing else

# %% tags=["setup"]
# The builder writes this cell: notebooks/src/setup_cell.py.

# %% [markdown]
# ## Is everything here?
#
# The next cell prints a table of what the workshop looked for, what it found, and what it needs. Each line should end
# in `OK`. A line with `MISSING` also says what to run. A `note` is advice and stops nothing.

# %%
from lab_utils.machine.environment import check_environment

assert check_environment(), "Fix the lines with MISSING, then run this cell again."

# %% [markdown]
# ## Which machine do you have?
#
# Two choices define a run. The **recipe** says what is learned: the task, the rewards, the algorithm. The **hardware
# tier** says how the run fits your machine: which model, and how many completions at once. The cell below sets both,
# together with the folder for results and the seed. You may change them. Every notebook has this cell.

# %% tags=["parameters"]
RECIPE = "countdown-grpo"
HARDWARE = "cpu"  # or "auto", or one of the GPU tiers
OUTPUT_DIR = "outputs"
SEED = 0

# %%
from lab_utils.config import detect_hardware, load, load_tier

config = load(RECIPE, HARDWARE)
print(f"This notebook runs at tier {config.hardware!r}: {load_tier(config.hardware).description}.")
print(f"model     {config.model.name}\nproblems  {config.task.source}\nstages    {', '.join(config.stages)}")

fitting, reason = detect_hardware()
print(f"\nHARDWARE = 'auto' would choose {fitting!r} here ({reason}).")

# %% [markdown]
# The tier `cpu` uses a **tiny model** that comes with the workshop. It has the architecture of Qwen2 and about a
# million parameters, so it trains in minutes on a laptop. Everything else is what you would use for a model a thousand
# times as large: the same trainer, the same rewards, the same evaluation.

# %% [markdown]
# ## What you will see at the end
#
# You will take this model through three stages and measure it on the same test problems after each.
#
# 1. **Base** (this notebook). It can calculate, try and check, but it does not know how to answer you.
# 2. **SFT**, supervised fine-tuning (notebook 03). It imitates examples and learns the format of an answer. Many of the
#    examples give up too early, and it learns that too.
# 3. **GRPO**, reinforcement learning (notebook 06). It tries, gets a reward for correct answers, and does more of what
#    was rewarded. It sees no examples.
#
# The next cell draws the whole way. Read the upper row first: three models, and what leads from one to the next. The
# lower row is the loop inside reinforcement learning, which repeats for each training step. The numbers
# name the notebooks.

# %%
from pathlib import Path

from lab_utils.figures import plot_pipeline

figures = Path(OUTPUT_DIR) / "figures"
plot_pipeline(figures / "00_the_way.png")

# %% [markdown]
# The final figure, in notebook 13, has three panels: correct answers during training, attempts per response during
# training, and a bar for each of the three stages. In this notebook you measure the first stage.
#
# ## The task: Countdown
#
# You get some numbers and a target. Use each number exactly once, with `+ - * /` and parentheses, to reach the target.
# It is a good task for reinforcement learning: easy to check, hard to guess, and with several correct answers.
#
# Judge one by hand: reach 45 with 3, 6 and 7. Does `(7 * 6) + 3` do it? Two functions help. `evaluate` calculates
# exactly (no rounding, no `eval`), and `numbers_used` lists the numbers. You will see 45 and the list of the three
# numbers.

# %%
from lab_utils.tasks.expressions import ExpressionError, evaluate, numbers_used

print(evaluate("(7 * 6) + 3"))
print(numbers_used("(7 * 6) + 3"))

# %% [markdown]
# Both raise an `ExpressionError` for text that is not an expression. You will see its message.

# %%
try:
    evaluate("7 * 6 + 3 = 45")
except ExpressionError as error:
    print(error)

# %% [markdown]
# ## Exercise 1: be the judge
#
# *Difficulty: easy · importance: high · about 5 minutes*
#
# Write `solves`. Reinforcement learning does exactly what the judge rewards, so the judge must be correct: each number
# once, the exact value, and `False` (not an exception) for text that is not an expression. For example,
# `solves("7 * 6", [3, 6, 7], 42)` is `False`, because it leaves out the 3.

# %%
def solves(expression: str, nums: list[int], target: int) -> bool:
    """Say whether the expression uses each of `nums` exactly once and equals `target`."""
    # YOUR CODE HERE
    # >>> solution
    try:
        return sorted(numbers_used(expression)) == sorted(nums) and evaluate(expression) == target
    except ExpressionError:
        return False
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. Two conditions must hold together: one on the numbers, one on the value. The order of the numbers is free, but how
#    often each occurs is not. Which comparison of two lists ignores the order and nothing else?
# 2. `sorted(numbers_used(expression)) == sorted(nums)` and `evaluate(expression) == target`, both inside one `try`
#    with `except ExpressionError`.

# %%
from lab_utils.teaching import checks

checks.check_solves(solves)

# %% [markdown]
# ## Ask the model
#
# A chat model reads a **prompt**, here a system message and a question, and writes a **completion**. The system message
# asks for a format: thoughts inside `<think>`, the answer inside `<answer>`. You will see both messages of one test
# problem.

# %%
from lab_utils.models import load_model, load_tokenizer
from lab_utils.tasks import load_task, visible

task = load_task(config.task)
problems = task.dataset("test", min(256, config.task.test_limit or 256), config.task.source)
model, tokenizer = load_model(config.model.name, config.model), load_tokenizer(config.model.name)
print(f"The model has {model.num_parameters():,} parameters.\n")

row = problems[0]
for message in row["prompt"]:
    print(f"[{message['role']}] {message['content']}")

# %% [markdown]
# Now it answers. It *samples*: it draws each next token at random from its probabilities, so another seed gives another
# completion. The **temperature** sharpens these probabilities (below 1) or flattens them (above 1). At 0 the model
# always takes the most likely token, which is called **greedy** decoding. Here the temperature is that of training.
# For the tiny model it is 0.8: at 1 it writes nearly twice as many wrong sums.

# %%
from lab_utils.sampling.local import sample

longest = 128 if config.model.name == "tiny" else config.evaluation.max_new_tokens  # tokens of a completion
sampling = {"temperature": config.grpo.temperature, "max_new_tokens": longest, "seed": SEED}
(answer,) = sample(model, tokenizer, [row["prompt"]], **sampling)[0]
print(visible(answer.text))
print("-" * 60)
print("in the format:", task.has_format(answer.text), "· correct:", task.is_correct(answer.text, row))

# %% [markdown]
# That was the tiny model. (A GPU tier asks a full-size chat model, which knows what to do.) It writes a sum or a few
# words that have nothing to do with the question. It has seen the tags and the marks of a chat, but only around random
# lines, never a question in them. The judge finds no answer.
#
# It was trained on plain text: a question, a line break, attempts, an expression. Ask it that way. You will see
# attempts with the given numbers, each with `yes` or `no` (is this the target?), and an expression on the last line.

# %%
plain = load_task(config.task, "plain")  # the same problems, asked without a chat
(answer,) = sample(model, tokenizer, [plain.prompt(row)], **sampling)[0]
print(visible(plain.prompt(row) + answer.text))
print("-" * 60)
print("correct:", plain.is_correct(answer.text, row))

# %% [markdown]
# ## Measure it
#
# One answer says little. Ask all the test problems of this notebook, and count in three ways:
#
# - **strict**: the correct expression in `<answer>` tags. The workshop calls a response *correct* in this sense, in
#   rewards and in evaluations alike.
# - **format forgiven**: a correct expression on the last line counts as well.
# - **plain text**: asked in plain text, where the answer is the last line. This is what the base model can really do.

# %%
def answers_to(prompts: list) -> list[str]:
    """Return one sampled answer to each prompt."""
    return [one[0].text for one in sample(model, tokenizer, prompts, **sampling)]


in_chat, in_plain_text = answers_to(problems["prompt"]), answers_to(list(map(plain.prompt, problems)))
right = {
    "strict": list(map(task.is_correct, in_chat, problems)),
    "format\nforgiven": list(map(task.is_correct_lenient, in_chat, problems)),
    "plain\ntext": list(map(plain.is_correct, in_plain_text, problems)),
}
for how, answers in right.items():
    print(f"{' '.join(how.split()):16} {sum(answers):3} correct of {len(answers)}")

# %% [markdown]
# ## Exercise 2: why was it wrong?
#
# *Difficulty: medium · importance: medium · about 10 minutes*
#
# A share says how often an answer is wrong, not why. Sort the answers. `answer` is the expression that was extracted
# from a response, or `None`. Return the first of these that applies:
#
# - `"no answer"`: nothing was found;
# - `"not an expression"`: the text cannot be calculated;
# - `"wrong numbers"`: it does not use exactly the given numbers;
# - `"wrong value"`: it does not reach the target;
# - `"correct"`.
#
# For example, `verdict("7 * 6 + 4", [3, 6, 7], 46)` is `"wrong numbers"`, although its value is 46.

# %%
def verdict(answer: str | None, nums: list[int], target: int) -> str:
    """Return "correct", or the first reason why the answer is wrong."""
    # YOUR CODE HERE
    # >>> solution
    if answer is None:
        return "no answer"
    try:
        used, value = numbers_used(answer), evaluate(answer)
    except ExpressionError:
        return "not an expression"
    if sorted(used) != sorted(nums):
        return "wrong numbers"
    return "correct" if value == target else "wrong value"
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. `solves` cannot help, because it forgets the reason. Go through the list from the top and return as soon as a
#    reason applies. Which of the two functions can raise an error, and for which texts?
# 2. After the test for `None`, put both `numbers_used(answer)` and `evaluate(answer)` into one `try`: a division by
#    zero has numbers but no value. Then compare the sorted numbers, and only then the value.

# %%
checks.check_verdict(verdict)

# %% [markdown]
# Now sort the answers of the model, from the chat and from plain text. Compare the most frequent reasons. Which of them
# can practice in the *format* remove, and which needs another way of searching?

# %%
from collections import Counter

for how, asked, texts in (("chat", task, in_chat), ("plain text", plain, in_plain_text)):
    reasons = Counter(verdict(asked.extract(text), row["nums"], row["target"])
                      for text, row in zip(texts, problems, strict=True))
    print(f"{how:11}", ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()))

# %% [markdown]
# ## The first stage in a figure
#
# The figure has a bar for each way of counting, with its 95% interval. Few problems make wide intervals; notebook 08
# explains them and asks more problems. You will fill the two dashed places later.

# %%
import matplotlib.pyplot as plt
from matplotlib.ticker import PercentFormatter

from lab_utils.evaluation import wilson_interval
from lab_utils.figures import INK, METHOD_COLORS

figure, ax = plt.subplots(figsize=(10, 5))
for x, answers in enumerate(right.values()):
    share, (low, high) = sum(answers) / len(answers), wilson_interval(sum(answers), len(answers))
    ax.bar(x, share, 0.7, color=METHOD_COLORS["base"])
    ax.vlines(x, low, high, color=INK, linewidth=2)
    ax.text(x, high + 0.02, f"{share:.0%}", ha="center", fontweight="bold")
for x, method in ((3, "sft"), (4, "grpo")):
    ax.bar(x, 0.97, 0.7, fill=False, edgecolor=METHOD_COLORS[method], linestyle="--", linewidth=2)
    ax.text(x, 0.5, "?", ha="center", va="center", fontsize=40, color=METHOD_COLORS[method])
ax.set_xticks(range(5), [f"base\n{how}" for how in right] + ["SFT\nnotebook 03", "GRPO\nnotebook 06"])
ax.tick_params(axis="x", length=0)
ax.set(title=f"Where you start: {len(problems)} test problems, one answer each", ylim=(0, 1), ylabel="correct (%)")
ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
figure.savefig(figures / "00_where_you_start.png")

# %% [markdown]
# ## What you should see, and what it means if you don't

# %%
from lab_utils.teaching.inspection import expect

if config.model.name == "tiny":
    strict, forgiven, plain_share = (sum(answers) / len(answers) for answers in right.values())
    expect(config, "strict accuracy is zero: the base model does not know the format", strict == 0)
    expect(config, "asked in plain text it is often correct and often wrong: there is room to learn",
           0.1 < plain_share < 0.8)
    expect(config, "the chat disturbs it: plain text beats the chat with its format forgiven", plain_share > forgiven)

# %% [markdown]
# - `MISSING` in the first table: run what the line says, restart the kernel, and start again at the top.
# - The answer is a jumble of words: the tokenizer and the model do not belong together. Restore them with `git checkout
#   -- lab_utils/models`.
# - Strict accuracy is above zero: this is not the base model. Look at `config.model.name`.
#
# ## Summary
#
# - A recipe says what is learned. A tier says how the run fits your machine.
# - The base model can solve some of the problems, but it earns nothing for them: the answer has to be where the judge
#   looks for it.
# - A correct judge comes first. Everything that follows learns from it.
#
# ## Questions
#
# Think first. The answers are in [ANSWERS.md](ANSWERS.md).
#
# 1. Which of the two ways of counting, strict or format forgiven, would you report in a paper, and why?
# 2. Your judge accepts `7 * 6 + 3` for 45. Should it accept `7 * 6 + 3 + 0`? What would a model learn if it did?
# 3. The model writes `yes` or `no` after each attempt. How could that help it, if only the model reads it?
#
# Next: [01 · Dataset formatting](01_dataset_formatting.ipynb), where a row becomes a prompt, and a prompt becomes
# tokens.
