# %% [markdown]
# # 01 · Dataset formatting
#
# <!-- badges -->
#
# > **You will learn** to turn rows of GSM8K and Countdown into chat prompts and tokens; what the chat templates of
# > Qwen2.5 and Qwen3 add; which tokens the loss sees; to extract answers, strictly and leniently; to load your own
# > data.
# >
# > **Time** the machine: 1 minute on a CPU, 2 on a GPU · you: 40 minutes · **Needs** nothing else

# %% tags=["setup"]
# The builder writes this cell: notebooks/src/setup_cell.py.

# %% tags=["parameters"]
RECIPE = "gsm8k-grpo"
HARDWARE = "cpu"  # or "auto", or one of the GPU tiers
OUTPUT_DIR = "outputs"
SEED = 0

# %% [markdown]
# ## From a row to tokens
#
# A model reads and writes tokens. A dataset has rows. Four steps lead from one to the other: **row → messages → text →
# tokens**. Many silent failures of fine-tuning happen here: a prompt that differs between training and test, a template
# applied twice or never, an answer that the extraction cannot find. So look at every step once.
#
# Start with one row of each task. GSM8K has word problems. Its `answer` is the number alone, which the rewards need.
# Its `solution` is worked out step by step: the `<<...>>` marks are for a calculator, and `####` marks the answer. On
# tier `cpu` the problems are synthetic, in the same format.

# %%
from lab_utils.config import load
from lab_utils.tasks import load_task

config = load(RECIPE, HARDWARE)
gsm8k, countdown = load_task("gsm8k"), load_task("countdown")
gsm8k_rows = gsm8k.dataset("train", min(2000, config.task.train_limit or 2000), config.task.source)
countdown_rows = countdown.dataset("train", len(gsm8k_rows), config.task.source)

row = gsm8k_rows[0]
for column in ("question", "solution", "answer"):
    print(f"{column.upper()}\n{row[column]}\n")
print("COUNTDOWN\n", {column: countdown_rows[0][column] for column in ("nums", "target")}, sep="")

# %% [markdown]
# ## Step 1: messages
#
# A chat is a list of messages, each with a role. The *system* message says how to answer, and the *user* message asks.
# The task writes both, in one place (`lab_utils/tasks`), so training, evaluation and this notebook cannot differ.
#
# GSM8K has three response formats, one for each of our GSM8K recipes. You will see how each system message asks for its
# format.

# %%
for response_format in ("reasoning", "think", "hash"):
    system, user = load_task("gsm8k", response_format).prompt(row)
    print(f"--- {response_format}\n{system['content']}\n")
print(f"--- the user message, always the same\n{user['content']}")

# %% [markdown]
# ## Step 2: text
#
# The **chat template** of a tokenizer joins the messages into one text. `<|im_start|>` and `<|im_end|>` mark a turn.
# `add_generation_prompt=True` opens the assistant's turn, so the model knows that it has to answer.
#
# TRL applies the template only when a prompt is a list of messages. If you give it a plain string, the model gets that
# text without a template. A chat model may then continue the question instead of answering it, the reward stays low,
# and no error tells you why. You will see the text of our Countdown row.

# %%
from lab_utils.models import load_tokenizer

tokenizer = load_tokenizer(config.model.name)
prompt = countdown.prompt(countdown_rows[0])
print(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False))

# %% [markdown]
# Every model family has its own template. TRL ships those of Qwen2.5 and Qwen3, so you can compare them without a
# download. First, a question without a system message. You will see that Qwen2.5 adds one of its own, and Qwen3
# doesn't. Two models that you compare must get the same system message, so always write one yourself.

# %%
from trl.chat_template_utils import qwen2_5_chat_template, qwen3_chat_template

templates = {"Qwen2.5": qwen2_5_chat_template, "Qwen3": qwen3_chat_template}


def show(messages: list[dict[str, str]], **options) -> None:
    for name, template in templates.items():
        text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
        print(f"--- {name}\n{text}")


show([{"role": "user", "content": "What is 9 * 8?"}], add_generation_prompt=True)

# %% [markdown]
# Now a whole exchange, as in supervised fine-tuning. Qwen3 is made for thinking: its template takes `<think>` apart and
# writes it again with its own line breaks. An answer without thoughts gets an empty `<think>` block. You will see both.

# %%
question = {"role": "user", "content": "What is 9 * 8?"}
show([question, {"role": "assistant", "content": "<think>9 * 8 = 72</think><answer>72</answer>"}])

# %%
show([question, {"role": "assistant", "content": "The answer is 72."}])

# %% [markdown]
# So the same demonstration reaches Qwen3 with different white space. That is why our `format_reward` allows white space
# between and around the tags. There is one more switch: `enable_thinking=False` makes Qwen3's prompt end with an empty
# block, and the model then answers at once. You will see the ends of both prompts.

# %%
for thinking in (True, False):
    options = {"chat_template": qwen3_chat_template, "add_generation_prompt": True, "enable_thinking": thinking}
    text = tokenizer.apply_chat_template([question], tokenize=False, **options)
    print(f"enable_thinking={thinking}: ...{text[-45:]!r}")

# %% [markdown]
# ## Step 3: tokens
#
# The tokenizer cuts the text into pieces, each with a number. You will see the user message of the Countdown row. In
# the tiny model's vocabulary each number up to 100 is one token, so it can learn a sum as a fact. Qwen's own tokenizers
# cut numbers into single digits.

# %%
ids = tokenizer(prompt[-1]["content"])["input_ids"]
print(" | ".join(tokenizer.decode([token]) for token in ids))
print(ids)

# %% [markdown]
# ## Which tokens does the loss see?
#
# Supervised fine-tuning shows the model a prompt and a completion. The model reads both, but it should learn to *write*
# only the completion. So the **labels** are a copy of the tokens with -100 instead of each prompt token, and PyTorch's
# cross-entropy ignores -100. A toy: prompt `[5, 6, 7]` and completion `[8, 9]` give the labels `[-100, -100, -100, 8,
# 9]`.
#
# ## Exercise 1: labels
#
# *Difficulty: easy · importance: high · about 3 minutes*
#
# Return the labels of a prompt followed by its completion. A token can occur in both.

# %%
def make_labels(prompt_ids: list[int], completion_ids: list[int]) -> list[int]:
    """Return the labels of prompt and completion together: -100 wherever the loss must not look."""
    # YOUR CODE HERE
    # >>> solution
    return [-100] * len(prompt_ids) + completion_ids
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. Does the label of a token depend on the token, or on where it is?
# 2. A list times a number repeats it: `[-100] * 3`. How many do you need, and what follows them?

# %%
from lab_utils.teaching import checks

checks.check_make_labels(make_labels)

# %% [markdown]
# Now the same for a real demonstration. `demonstration` writes the text that the model will imitate in notebook 03.
# Read this one closely: **it is wrong, on purpose.** Its only attempt ends with `no`, and it gives that attempt as its
# answer. Many of our demonstrations give up like this. The loss does not know: every token of the completion gets its
# label, correct or not. That is why imitation is only the start of this workshop.
#
# The figure shows every token of the chat. Look at the last two orange ones. `<|im_end|>` has to be learned, or the
# model would never end its turn. The template also adds a line break (↵) after it. That line break has a label too, but
# sampling stops at `<|im_end|>`, so the model is never asked for it.

# %%
demonstration = {"role": "assistant", "content": countdown.demonstration(countdown_rows[0])}
prompt_ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
all_ids = tokenizer.apply_chat_template([*prompt, demonstration], return_dict=True)["input_ids"]
assert all_ids[: len(prompt_ids)] == prompt_ids, "the template changed the prompt when the completion was added"

completion_ids = all_ids[len(prompt_ids) :]
labels = [-100] * len(prompt_ids) + completion_ids
print(f"{len(all_ids)} tokens: {len(prompt_ids)} of the prompt, {len(completion_ids)} of the completion\n")
print(demonstration["content"], "\n")
verdict = "correct" if countdown.is_correct(demonstration["content"], countdown_rows[0]) else "WRONG"
print(f"This demonstration is {verdict}: the target is {countdown_rows[0]['target']}.")

# %%
from pathlib import Path

from lab_utils.figures import plot_loss_mask

figures = Path(OUTPUT_DIR) / "figures"
tokens = [tokenizer.decode([token]).strip(" ").replace("\n", "↵") or "·" for token in all_ids]
plot_loss_mask(tokens, labels, figures / "01_loss_mask.png")

# %% [markdown]
# ## Exercise 2: labels of a whole conversation
#
# *Difficulty: medium · importance: medium · about 10 minutes*
#
# A conversation has several turns, and the model must learn every turn of the assistant and no other. Now there is no
# border between prompt and completion: you get only the tokens. Each turn is `START role NEWLINE ... END NEWLINE`.
# Return the labels. The assistant's turns get their own tokens, from the first one after the header's line break up to
# and including `END`. Everything else gets -100. The last turn may be unfinished: a prompt ends after the header of the
# assistant's turn. For example, with START = 1, END = 2, NEWLINE = 3, USER = 11 and
# ASSISTANT = 12:
#
# | token | 1 | 11 | 3 | 50 | 2 | 3 | 1 | 12 | 3 | 60 | 61 | 2 | 3 |
# |---|---|---|---|---|---|---|---|---|---|---|---|---|---|
# | label | -100 | -100 | -100 | -100 | -100 | -100 | -100 | -100 | -100 | 60 | 61 | 2 | -100 |

# %%
START, END, NEWLINE, USER, ASSISTANT = 1, 2, 3, 11, 12


def labels_of_conversation(ids: list[int]) -> list[int]:
    """Return the labels of a conversation: the assistant's tokens with their END, and -100 for all others."""
    # YOUR CODE HERE
    # >>> solution
    labels, learning = [], False
    for position, token in enumerate(ids):
        labels.append(token if learning else -100)
        if token == END:
            learning = False
        elif ids[max(0, position - 2) : position + 1] == [START, ASSISTANT, NEWLINE]:
            learning = True
    return labels
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. Walk through the tokens and remember one thing: are you inside a turn of the assistant? What switches that on, and
#    what switches it off? A user may write the word "assistant", and an assistant may write line breaks.
# 2. Write the label first, then update the switch. It goes on when the last three tokens are `START, ASSISTANT,
#    NEWLINE`, and off at `END`. In this order `END` still gets its label.

# %%
checks.check_labels_of_conversation(labels_of_conversation)

# %% [markdown]
# TRL does this for you: with `assistant_only_loss=True` it reads the turns from marks in the chat template. Our
# demonstrations have a single answer, so prompt and completion are enough.
#
# ## From a completion back to an answer
#
# The way back is **extraction**: find the answer in the text of the model. A *strict* extractor wants the format that
# the prompt asked for. A *lenient* one takes the last number it can find. They answer different questions: can the
# model use the format, and can it do the math? The same model can score very differently on the two, so the workshop
# reports both.
#
# ## Exercise 3: extract the answer after `####`
#
# *Difficulty: medium · importance: high · about 10 minutes*
#
# GSM8K marks its answer with `#### `. Return the number after the first such mark as text, or `None`. Think of commas
# (`1,000`), decimals (`72.5`), negative numbers, and text after the number, with or without other numbers. For example,
# `"In all 1,000.\n#### 1,000 clips"` gives `"1,000"`.

# %%
import re


def extract_hash_answer(text: str) -> str | None:
    """Return the number after the first '#### ' as it is written, or None."""
    # YOUR CODE HERE
    # >>> solution
    match = re.search(r"#### (-?[0-9,]*\.?[0-9]+)", text)
    return match[1] if match else None
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. `re.search` finds the first place that matches a pattern, and returns `None` if there is none. Build the pattern
#    from left to right: the mark, perhaps a minus sign, then what a number can contain.
# 2. Digits and commas are `[0-9,]*`, and a point that may be missing is `\.?`. End the pattern with `[0-9]+`, so that a
#    full stop after the number stays outside. `match[1]` is the part in parentheses.

# %%
checks.check_extract_hash_answer(extract_hash_answer)

# %% [markdown]
# The next cell runs the three extractors of `lab_utils.tasks.answers` on some completions for a problem with the answer
# 72. In the table, ✓ means 72, ✗ another number, and – that nothing was found. You will see that lenient is not always
# kinder: it takes a number from a remark after the answer.

# %%
import pandas as pd

from lab_utils.tasks import answers

completions = [
    "48 + 24 = 72\n#### 72",
    "<answer>72</answer>",
    "<answer>\n$72.00\n</answer>",
    "The answer is 72.",
    "<answer>71</answer> No: <answer>72</answer>",
    "#### 72\nShe had 48 in April.",
    "<answer>72",
    "I do not know.",
]
extractors = [answers.extract_hash_answer, answers.extract_xml_answer, answers.extract_last_number]
verdict = {True: "✓", False: "✗", None: "–"}
pd.DataFrame(
    {f.__name__: [verdict[(found := f(text)) and answers.numbers_match(found, "72")] for text in completions]
     for f in extractors},
    index=[repr(text) for text in completions],
)

# %% [markdown]
# Comparing is a separate step. `numbers_match` compares exact values: `$72.00` is 72, and `1,000` is 1000. Words, units
# and two numbers match nothing. You will see one `True` and four `False`.

# %%
for text in ("$1,000.00", "1,000 clips", "10 00", "1000.1", "banana"):
    print(f"{text!r:15} is 1000: {answers.numbers_match(text, '1000')}")

# %% [markdown]
# ## Your own data
#
# `dataset` loads from three kinds of sources and gives the same columns each time: `"synthetic"`, `"hub"`, or a path of
# your own (a file of JSON Lines, CSV or Parquet, or a folder with `train` and `test` files). As on the Hub, the
# `answer` of a row can be a whole solution that ends with `#### N`; loading splits it into `solution` and the number.
# Write two rows of your own and load them. You will see the columns that the trainers need, and a warning in red,
# because two rows are too few to keep some for tests.

# %%
import json

own = Path(OUTPUT_DIR) / "01_own_rows.jsonl"
rows = [
    {"question": "A box holds 12 pens. How many pens are in 6 boxes?", "answer": "6 * 12 = 72 pens.\n#### 72"},
    {"question": "Ada reads 9 pages a day. How many pages in 8 days?", "answer": "#### 72"},
]
own.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
for loaded in gsm8k.dataset("train", source=str(own)):
    print({column: loaded[column] for column in ("question", "answer")}, "and", [c for c in loaded if c not in rows[0]])

# %% [markdown]
# A row that cannot be used stops the loading at once, before any model is loaded. The message says where the row is,
# what is wrong and how to fix it. You will see it for a third row, which has no number as its answer.

# %%
from lab_utils.tasks import RowError

with own.open("a", encoding="utf-8") as lines:
    lines.write(json.dumps({"question": "How many?", "answer": "It depends."}) + "\n")
try:
    gsm8k.dataset("train", source=str(own))
except RowError as error:
    print(error)

# %% [markdown]
# ## The real thing: how long are the prompts?
#
# A prompt and its completion share the model's memory, so a run sets limits in tokens: `max_prompt_length` and
# `max_completion_length`. Training leaves out longer prompts. Before you train, look at the lengths of yours. The
# figure shows the prompts of both tasks, with everything that the template adds, and the limit of this recipe.

# %%
def prompt_lengths(dataset) -> list[int]:
    texts = tokenizer.apply_chat_template(dataset["prompt"][:], add_generation_prompt=True, tokenize=False)
    return [len(ids) for ids in tokenizer(texts)["input_ids"]]


limit = config.grpo.max_prompt_length
lengths = {"GSM8K": prompt_lengths(gsm8k_rows), "Countdown": prompt_lengths(countdown_rows)}
for name, values in lengths.items():
    too_long = sum(value > limit for value in values)
    print(f"{name:9} {min(values)} to {max(values)} tokens; {too_long} of {len(values)} longer than {limit}")

# %%
import matplotlib.pyplot as plt
from matplotlib.ticker import PercentFormatter

from lab_utils.figures import INK, OTHER_COLORS

figure, axes = plt.subplots(2, 1, figsize=(10, 6), sharex=True)
bins = range(0, max(limit, *map(max, lengths.values())) + 4, max(1, limit // 64))
for ax, (name, values), color in zip(axes, lengths.items(), OTHER_COLORS, strict=False):
    ax.hist(values, bins, weights=[1 / len(values)] * len(values), color=color)
    ax.axvline(limit, color=INK, linestyle="--", linewidth=2)
    ax.set_title(name, color=color, fontweight="bold")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
axes[0].text(limit, axes[0].get_ylim()[1] * 0.95, f"max_prompt_length = {limit} ", ha="right", va="top", color=INK)
axes[1].set_xlabel("tokens per prompt, including the template's own")
figure.supylabel("% of prompts", fontsize=14)
figure.savefig(figures / "01_prompt_lengths.png")

# %% [markdown]
# ## What you should see, and what it means if you don't
#
# Both distributions lie left of the dashed line. The orange tokens begin after `assistant` and its line break, and they
# include the end of the turn.
#
# - Many prompts are beyond the line: raise `grpo.max_prompt_length`, or you train only on the short problems.
# - The cell with the `assert` stops: the template rewrites the prompt when a completion follows. Train with a template
#   that doesn't. TRL ships one for each model family (`..._training.jinja`).
# - An extractor finds nothing in answers that look correct to you: print them with `repr`. A line break or a second tag
#   is easy to miss.
#
# ## Summary
#
# - Row → messages → text → tokens. The task writes the messages, the template writes the text.
# - Templates differ in what they add. Write the system message yourself, and look at the text once.
# - The loss sees the completion, including the end of the turn, and not the prompt.
# - Strict extraction measures format and math together. Lenient extraction measures mostly math. Report both.
#
# ## Questions
#
# Think first. The answers are in [ANSWERS.md](ANSWERS.md).
#
# 1. Why must a reward never be lenient where the prompt asks for a format? What would the model learn?
# 2. A colleague measures Qwen2.5 and Qwen3 without a system message. What else differs between the two measurements,
#    apart from the models?
# 3. What would happen in fine-tuning if the labels left out the token that ends the turn?
#
# Next: [02 · Reward design](02_reward_design.ipynb), where answers become numbers that a model can learn from.
