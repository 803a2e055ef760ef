# %% [markdown]
# # 03 · SFT warm-up
#
# <!-- badges -->
#
# > **You will learn** what supervised fine-tuning teaches and what it cannot; to compute the loss on the completion
# > only; LoRA and 4-bit in numbers; when to stop.
# >
# > **Time** the machine: 2 minutes on a CPU, 10 on a GPU · you: 40 minutes · **Needs** nothing else; the following
# > notebooks start from its model

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

config = load(RECIPE, HARDWARE, {"seed": SEED})
check_machine(config)
task = load_task(config.task)
train_rows = task.dataset("train", limit=500 if config.hardware != "smoke" else 64, source=config.task.source)
runs = Path(OUTPUT_DIR) / task.name
figures = Path(OUTPUT_DIR) / "figures"
print(f"Task {task.name}, model {config.model.name}, tier {config.hardware} ({config.hardware_reason})")

# %% [markdown]
# ## What supervised fine-tuning does, and what it does not
#
# Supervised fine-tuning (SFT) shows the model demonstrations and raises the probability of each of their tokens. The
# model learns to *imitate*: the format, the style, the habits, and the mistakes. The loss does not know which
# demonstrations end with a correct answer.
#
# Here SFT is a **warm-up**. In notebook 02 every group of the base model was dead: it can calculate, but it has never
# seen a chat, so no response earned a reward. After the warm-up it answers in the format, and rewards become possible.
# Being *correct* more often is the job of reinforcement learning. The demonstrations are imperfect on purpose. Read a
# few.

# %%
for row in train_rows.select(range(3)):
    print(row["prompt"][-1]["content"], "\n", task.demonstration(row), sep="", end="\n\n")

right = [task.is_correct(task.demonstration(row), row) for row in train_rows]
print(f"{sum(right) / len(right):.0%} of {len(right)} demonstrations end with a correct answer.")

# %% [markdown]
# Every calculation in them is correct, and so is every `yes` and `no`. But after a `no` they often give up and answer
# with the failed attempt. Also, the program that wrote them knew a solution, and hit the target more often than a model
# can by trying. So a perfect imitator that samples its answers would be correct about this often. Yours will be correct
# less often. Remember the number.
#
# ## The loss is taken on the completion only
#
# A training example is one row of tokens: the prompt, then the completion. The model need not learn to write prompts.
# So the tokens of the prompt get the label **-100** (you wrote that in notebook 01), and the loss leaves them out. Here
# is one real example, at the place where prompt and completion meet.

# %%
import torch

from lab_utils.models import load_model, load_tokenizer

tokenizer = load_tokenizer(config.model.name)
row = train_rows[0]
chat = [*row["prompt"], {"role": "assistant", "content": task.demonstration(row)}]
prompt_ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
input_ids = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
completion_ids = input_ids[len(prompt_ids):]
print(f"{len(prompt_ids)} tokens of prompt and {len(completion_ids)} of completion. Where the two meet:")
print(*([tokenizer.decode([token]) for token in part] for part in (prompt_ids[-3:], completion_ids)), sep=" | ")

# %% [markdown]
# `<|im_end|>` has a label, too: from it the model learns to stop. Look at the very last token: the chat template adds a
# line break after each turn, and it has a label as well. That costs nothing. Sampling stops at `<|im_end|>`, so the
# model never writes that line break.
#
# Now a toy that you can work out by hand: four tokens, a vocabulary of three. Row *t* of the table holds the model's
# probabilities for the token **after** token *t*. Two tokens have a label.

# %%
toy_probabilities = torch.tensor([[0.2, 0.6, 0.2], [0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]])
toy_labels = torch.tensor([-100, -100, 0, 2])
by_hand = -(toy_probabilities[1, 0].log() + toy_probabilities[2, 2].log()) / 2
print(f"token 2 is a 0, and row 1 gives it {toy_probabilities[1, 0]:.2f}")
print(f"token 3 is a 2, and row 2 gives it {toy_probabilities[2, 2]:.2f}")
print(f"loss = -(ln {toy_probabilities[1, 0]:.2f} + ln {toy_probabilities[2, 2]:.2f}) / 2 = {by_hand:.4f}")

# %% [markdown]
# ## Exercise 1: the loss of one example
#
# *Difficulty: medium · importance: high · about 10 minutes*
#
# `logps` holds log-probabilities of shape (T, V), as in the table above. `labels` has shape (T,). Return the mean of
# minus the log-probability over the tokens that have a label. Mind the shift by one. The toy gives 0.4581.

# %%
def completion_loss(logps, labels):
    """Return the mean of minus the log-probability over the tokens with a label, from (T, V) logps and (T,) labels."""
    # YOUR CODE HERE
    # >>> solution
    targets = labels[1:]  # row t predicts token t + 1
    learned = targets != -100
    return -logps[:-1][learned].gather(1, targets[learned, None]).mean()
    # <<< solution


completion_loss(toy_probabilities.log(), toy_labels)

# %% [markdown] tags=["hints"]
# 1. Which row predicts token 1? Which row predicts nothing that you know? Drop one row and one label, so that row and
#    label with the same index belong together.
# 2. `targets = labels[1:]` belongs to `logps[:-1]`. Keep the rows where `targets != -100`, pick one number of each row
#    (`gather`, or index with two lists), and take the mean.

# %%
from lab_utils.teaching import checks

checks.check_completion_loss(completion_loss)

# %% [markdown]
# Now the same with the real example. transformers computes it, too, when you pass `labels`: the first two numbers
# should be equal. The third also counts every token of the prompt. Which of them says how well the model answers?

# %%
base = load_model(config.model.name, config.model)
ids = torch.tensor(input_ids, device=base.device)
labels = torch.tensor([-100] * len(prompt_ids) + completion_ids, device=base.device)
with torch.no_grad():
    yours = completion_loss(base(ids[None]).logits[0].float().log_softmax(-1), labels)
    print(f"yours:                             {yours:.4f}")
    print(f"transformers, completion only:     {base(ids[None], labels=labels[None]).loss:.4f}")
    print(f"transformers, prompt included:     {base(ids[None], labels=ids[None]).loss:.4f}")

# %% [markdown]
# ## LoRA: train a small update instead of all weights
#
# LoRA freezes a weight matrix of shape (out, in) and learns an update of rank *r*: the product of two thin matrices,
# (out, r) and (r, in), with r · (in + out) numbers together. One of the two starts at zero, so training starts exactly
# at the frozen model. (Notebook 12 merges such an update into the weights.) For the model that you are using, r = 16
# gives:

# %%
from peft import LoraConfig, get_peft_model

lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
adapted = get_peft_model(base, lora)  # on top of the model that is loaded already
q_proj = adapted.get_base_model().model.layers[0].self_attn.q_proj
print(f"one layer by hand: 16 · ({q_proj.in_features} + {q_proj.out_features}) = "
      f"{16 * (q_proj.in_features + q_proj.out_features):,}, counted: "
      f"{sum(weight.numel() for weight in q_proj.parameters() if weight.requires_grad):,}")
trainable, total = adapted.get_nb_trainable_parameters()
print(f"whole model:       {trainable:,} of {total:,} numbers are trained ({trainable / total:.1%})")
del base, adapted, q_proj  # training will need the memory

# %% [markdown]
# For the workshop's tiny model, r = 16 is not a small update: its own matrices are only 128 to 448 wide. The same
# update is tiny next to a model of half a billion parameters. You can count it without downloading the model, from its
# shape:

# %%
from transformers import Qwen2Config, Qwen2ForCausalLM

shape = Qwen2Config(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                    num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True)  # Qwen2.5-0.5B
with torch.device("meta"):  # shapes without memory
    half_billion = get_peft_model(Qwen2ForCausalLM(shape), LoraConfig(r=16, target_modules="all-linear"))
trainable, total = half_billion.get_nb_trainable_parameters()
print(f"Qwen2.5-0.5B: {trainable:,} of {total:,} are trained ({trainable / total:.1%})")
frozen, embeddings = total - trainable, shape.vocab_size * shape.hidden_size  # the latter stay in bfloat16
print(f"its frozen weights: {2 * frozen / 1e9:.2f} GB in bfloat16, "
      f"{(2 * embeddings + 0.5 * (frozen - embeddings)) / 1e9:.2f} GB with the linear layers in 4 bits")
for tier in ("cpu", "a10g"):
    model = load("gsm8k-sft-ppo", tier).model
    print(f"recipe gsm8k-sft-ppo on {tier}: {model.name}, LoRA {model.lora is not None}, 4-bit {model.load_in_4bit}")

# %% [markdown]
# LoRA saves memory for gradients and optimizer states, because only the trained numbers have them. **4-bit** storage of
# the frozen weights (QLoRA) saves more: each block of them is rounded to 16 levels and scaled back when a layer is
# used. It needs a GPU and bitsandbytes. On tier `cpu` all weights of the tiny model are trained, without either.
#
# ## The real run
#
# Before you start it, guess what it will change: the format, the accuracy, or both? The cell trains with TRL's
# `SFTTrainer`, on a CPU for about a minute. If you run it a second time, it finds the finished run. To train again,
# delete the folder.

# %%
from lab_utils.training import sft

run = sft.train(config, runs / "sft", resume=True)
print(f"{run.metrics()['step'].max()} steps in {run.metrics()['seconds'].max():.0f} s; the model is in {run.model_dir}")

# %%
from lab_utils.figures import plot_rates, plot_sft

plot_sft(run, figures / "03_sft_loss.png")

# %% [markdown]
# You should see the loss fall steeply while the model learns the format, then slowly. It does not go to zero. In the
# demonstrations, the choice of the next attempt and whether to give up are random, and no model can predict a coin.
#
# If you don't: a loss that jumps up and stays there means that the learning rate is too high. A loss that starts near
# its end means that the model has seen the demonstrations already.
#
# ## Before and after
#
# Now sample from the base model, from the checkpoints that the run has kept, and from the final model, on test problems
# that are in no model's training data. For now read four rows of the table: `accuracy` (correct, with a 95% interval),
# `format` (responses that have the format), `pass@8` (problems that at least one of eight responses solves) and
# `attempts` (per response). Notebook 08 explains the others.

# %%
from lab_utils.evaluation import evaluate, format_results, results_table

test_rows = task.dataset("test", limit=min(64, config.task.test_limit or 64), source=config.task.source)
checkpoints = sorted(run.checkpoints_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
models = {"base": config.model.name, **{f"step {path.name.split('-')[1]}": path for path in checkpoints}}
sampling = {"num_samples": max(2, config.evaluation.num_samples), "temperature": config.grpo.temperature, "seed": SEED,
            "max_new_tokens": config.evaluation.max_new_tokens}
warm_up = {
    label: evaluate(load_model(path, config.model), tokenizer, task, test_rows, **sampling)
    for label, path in models.items()
}
format_results(results_table(warm_up)).T

# %% [markdown]
# The base model fails because it does not know the format. What can it do when it is asked in plain text, as in its own
# training? Compare its accuracy with that of the last column above. The difference is what the warm-up added beyond the
# place where the answer goes.

# %%
plain = load_task(config.task, "plain")
in_plain_text = evaluate(
    load_model(config.model.name, config.model), tokenizer, plain,
    plain.dataset("test", len(test_rows), config.task.source), **sampling)
print("base, asked in plain text:", in_plain_text)

# %%
plot_rates(warm_up, figures / "03_warm_up.png")

# %%
from lab_utils.teaching.inspection import side_by_side

first, last = warm_up["base"], list(warm_up.values())[-1]
print(test_rows[0]["prompt"][-1]["content"], "\n")
texts = {label: e.examples[0]["completions"][0]["text"] for label, e in (("base", first), ("SFT", last))}
print(side_by_side(texts))

# %% [markdown]
# ## What you should see, and what it means if you don't

# %%
from lab_utils.teaching.inspection import expect

expect(config, "after the warm-up nearly every response has the format", last.format_rate > 0.9)
expect(config, "most responses are still wrong", last.accuracy < 0.5)
expect(config, "SFT is within 12 points of the base model in plain text",
       abs(last.accuracy - in_plain_text.accuracy) < 0.12 or config.model.name != "tiny")
expect(config, "but one of several responses is often correct", last.pass_at[last.ks[-1]] > last.accuracy + 0.2)

# %% [markdown]
# The format rate goes from zero to nearly 100%. Accuracy rises with it, because a correct answer counts only in the
# format, and then it stays low. The gap between the lines of the figure is the room for reinforcement learning:
# problems that the model solves *sometimes*.
#
# - A low format rate: too few steps, or a learning rate that is too low.
# - Hardly any correct answers, even in many responses: look at the text. Is it `7 * 6 = 42`, or `7 * 6 = 48`?
#   Arithmetic must be sound before reinforcement learning begins. A reward selects; it does not teach facts.
# - Nearly all correct: then there is little left to learn. Warm up less, or take harder problems.
#
# ## When to stop
#
# A reward teaches only where some responses to a problem are correct and others are wrong. In notebook 06 each problem
# gets a group of responses. A group that is all wrong or all correct teaches nothing. So the best model to start from
# is not the one with the highest accuracy. It is the one with the most **live** groups.
#
# ## Exercise 2: the share of live groups
#
# *Difficulty: medium · importance: high · about 10 minutes*
#
# `chances` has, for each problem, the probability that one response is correct. Each problem gets a group of `size`
# independent responses. Return the expected share of live groups: those with at least one correct and at least one
# wrong response.
#
# An example by hand: a problem with the chance 0.5 and two responses has four equally likely outcomes, two of them
# live. So `live_share([0.5], 2)` is 0.5.

# %%
def live_share(chances, size):
    """Return the expected share of groups of `size` responses that are neither all wrong nor all correct."""
    # YOUR CODE HERE
    # >>> solution
    return sum(1 - chance**size - (1 - chance) ** size for chance in chances) / len(chances)
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. "Neither ... nor" is easier from the other side: how likely is it that all responses of a group are correct? That
#    all are wrong? Can both happen at once?
# 2. For one problem: `1 - chance**size - (1 - chance)**size`. Then take the mean over the problems. The mean chance put
#    into the formula is not the same: try `[0, 1]`.

# %%
checks.check_live_share(live_share)

# %% [markdown]
# Now count for each checkpoint: the problems whose responses here were all wrong, mixed or all correct, and the live
# groups that you would expect in training. The chances are estimated from a few responses. A problem that happened to
# be all wrong counts as impossible, so the estimate is too low, most of all for rarely solved problems.

# %%
group_size = config.grpo.num_generations
for label, evaluation in warm_up.items():
    share = evaluation.per_problem
    print(f"{label:>9}: all wrong {(share == 0).mean():4.0%}, mixed {((share > 0) & (share < 1)).mean():4.0%}, "
          f"all correct {(share == 1).mean():4.0%} (of {evaluation.num_samples} responses); "
          f"live groups of {group_size}: {live_share(share.tolist(), group_size):4.0%}")

# %% [markdown]
# Stop the warm-up when the model knows the format and the share of live groups no longer grows. If you stop too early,
# nearly all responses are wrong, and there is no signal. If a model is correct nearly always, there is no headroom.
# More SFT on *these* demonstrations makes a better imitator, also of giving up. Notebook 08 measures how much accuracy
# extra SFT adds on an equal budget.
#
# ## Summary
# - SFT raises the probability of the demonstrations' tokens, good or bad. It teaches the format in a minute on a CPU.
# - The loss counts only the completion: labels of -100 hide the prompt. The end-of-turn token has a label.
# - LoRA trains r · (in + out) numbers per matrix. 4-bit weights need a GPU.
# - Stop when the model knows the format and is correct sometimes, not always: when most groups are live.
#
# ## Questions
# Think first. The answers are in [ANSWERS.md](ANSWERS.md).
#
# 1. If you forgot to mask the prompt, the loss in the figure would end *lower*, but the model would not be better. Why?
# 2. What would the model do if `<|im_end|>` had the label -100?
# 3. Suppose that every demonstration ended with a correct answer. What would SFT reach, and what would be left for RL?
#
# Next: [04 · Policy gradients](04_policy_gradients.ipynb) explains learning from rewards on the smallest example. [06 ·
# GRPO training](06_grpo_training.ipynb) starts from the model that you have just trained.
