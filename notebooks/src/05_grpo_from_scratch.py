# %% [markdown]
# # 05 · GRPO from scratch
#
# <!-- badges -->
#
# > **You will learn** to write GRPO: advantages, log-probabilities, the clipped loss, KL, averaging, one training step;
# > to train a model with your own code; to see that TRL's `GRPOTrainer` computes the same numbers, and the same run.
# >
# > **Time** the machine: 2 minutes on a CPU · you: 100 minutes · **Needs** nothing else (it uses the tiny model on
# > every machine)

# %% tags=["setup"]
# The builder writes this cell: notebooks/src/setup_cell.py.

# %% tags=["parameters"]
RECIPE = "countdown-grpo"
HARDWARE = "cpu"  # or "auto", or one of the GPU tiers; the model of this notebook stays on the CPU
OUTPUT_DIR = "outputs"
SEED = 0

# %% [markdown]
# ## Five stages and a loop
#
# GRPO, *group-relative policy optimization* (DeepSeekMath, [arXiv 2402.03300](https://arxiv.org/abs/2402.03300)), is
# the policy gradient of notebook 04 for completions of many tokens. One training step has five stages:
#
# 1. a **group** of completions of the same problem, each with its reward, and from the rewards the **advantages**
# 2. the **log-probabilities** of the tokens that were written
# 3. the **ratio** of each token's probability to its probability at sampling time, and the **clip** that keeps steps
#    small
# 4. optionally, the **KL** that ties the policy to a reference
# 5. one number, the **loss**, and its gradient
#
# You write one function per stage, and check it with numbers that you can work out by hand. Then you put them into a
# loop and train the tiny model, beside TRL's trainer.
#
# If you know supervised fine-tuning, the difference is this: *SFT raises log π of tokens that somebody else wrote, each
# with weight 1. RL raises or lowers log π of tokens that the model itself wrote, each with its advantage as the
# weight.* The words of RL, for a language model:
#
# | word | here |
# |---|---|
# | policy, π | the model: its probabilities for the next token |
# | state and action | the prompt with the tokens so far; the next token |
# | completion, or trajectory | the tokens from the prompt to the end of the turn |
# | rollout | the completions sampled at one time |
# | reward | the number that a completion earns, at its end |
# | return | the rewards still to come |
# | value | the return that a critic expects (PPO, notebook 10) |
# | advantage | how much better a completion is than expected: than its group (GRPO), than the value (PPO) |
# | reference | the model that the policy should stay close to |
#
# ## Stage 1: rewards become advantages
#
# Four completions answer *reach 45 with 3, 6 and 7*. You judge them with the reward of notebook 02. You will see that
# only the first one is correct.

# %%
import torch

from lab_utils.rewards import equation_reward

expressions = ["(7 * 6) + 3", "7 * 6", "(7 + 6) * 3", "45"]
group = [f"<answer>{expression}</answer>" for expression in expressions]
rewards = torch.tensor(equation_reward(group, nums=[[3, 6, 7]] * 4, target=[45] * 4))
rewards

# %% [markdown]
# A reward alone does not say whether a completion was good *for this problem*. So GRPO compares it with the rest of its
# group: the reward minus the group's mean (notebook 04), divided by the group's standard deviation. By hand: the mean
# is 0.25 and the standard deviation (with n − 1) is 0.5, so the advantages are 1.5 for the correct completion and −0.5
# for each of the others. They add up to zero. Positive: make it more likely. Negative: less likely.
#
# ## Exercise 1: advantages
#
# *Difficulty: easy · importance: high · about 5 minutes*
#
# A batch holds several groups, one after the other. Each has its own mean and standard deviation. What happens in a
# group in which all rewards are equal? Its advantages must be 0. TRL's way is to add 1e-4 to every standard deviation.

# %%
def group_advantages(rewards: torch.Tensor, num_generations: int) -> torch.Tensor:
    """Return (B,) advantages for (B,) rewards, whole groups of `num_generations` one after the other."""
    # YOUR CODE HERE
    # >>> solution
    groups = rewards.view(-1, num_generations)
    advantages = (groups - groups.mean(dim=1, keepdim=True)) / (groups.std(dim=1, keepdim=True) + 1e-4)
    return advantages.view(-1)
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. `rewards.view(-1, num_generations)` has one row per group. What does `mean(dim=1, keepdim=True)` give?
# 2. Do the same with `std`, add 1e-4 to it, divide, and return to the shape (B,) with `.view(-1)`.

# %%
from lab_utils.teaching import checks

checks.check_group_advantages(group_advantages)

# %% [markdown]
# The figure shows a group of eight, two of them correct. The fewer are correct, the larger the advantage of each
# correct one.

# %%
from pathlib import Path

from lab_utils.figures import plot_advantages

figures = Path(OUTPUT_DIR) / "figures"
rewards = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0])
plot_advantages(rewards, group_advantages(rewards, 8), figures / "05_advantages.png")

# %% [markdown]
# Two kinds of groups teach nothing: all wrong, and all correct. You will see their advantages. TRL logs the share of
# such groups as `frac_reward_zero_std`, and you will watch it in notebook 06.

# %%
group_advantages(torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]), 4)

# %% [markdown]
# ## Stage 2: log-probabilities
#
# At each position the model gives a score, a *logit*, to every token of its vocabulary. `log_softmax` turns scores into
# log-probabilities, and you pick that of the token that was written. Take a toy vocabulary of three tokens with the
# probabilities 0.7, 0.2 and 0.1, and a completion of two tokens: first token 0, then token 2. You will see log 0.7 and
# log 0.1. Their sum is the log-probability of the whole completion.

# %%
logits = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]).log()  # (T, V): two positions, three tokens
written = torch.tensor([0, 2])
logps = logits.log_softmax(dim=-1).gather(-1, written[:, None])[:, 0]
print(logps, "sum", logps.sum().item(), "probability", logps.sum().exp().item())

# %% [markdown]
# ## Exercise 2: token log-probabilities
#
# *Difficulty: medium · importance: high · about 15 minutes*
#
# Now for a batch of B rows. Each row of `input_ids` is a prompt and its completion, and the last `num_tokens` columns
# are the completion. Prompts are padded on the left and completions on the right; `attention_mask` is 0 on padding.
# Return the log-probabilities of the completion's tokens, shape (B, num_tokens).
#
# `model(input_ids=…, attention_mask=…).logits` has shape (B, all tokens, vocabulary). Which position speaks of the
# completion's *first* token? By hand: if the model gives a 1 the probability 0.5 after a 0, and a 2 the probability
# 0.25 after a 1, then the row 0, 1, 2 with `num_tokens` = 2 gives log 0.5 and log 0.25.

# %%
def token_logps(
    model, input_ids: torch.Tensor, attention_mask: torch.Tensor, num_tokens: int
) -> torch.Tensor:
    """Return the log-probability of each of the last `num_tokens` tokens of every row, given all before it."""
    # YOUR CODE HERE
    # >>> solution
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, -num_tokens - 1:-1]
    logps = logits.log_softmax(dim=-1)  # (B, num_tokens, V)
    return logps.gather(-1, input_ids[:, -num_tokens:, None])[:, :, 0]
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. The logits at a position predict the *next* token, as in notebook 03. So you need `num_tokens` positions, and the
#    last of them is the one before the last.
# 2. Take `logits[:, -num_tokens - 1:-1]`, then `log_softmax`, then `gather` as in the toy above, with the ids
#    `input_ids[:, -num_tokens:, None]`. The last index `[:, :, 0]` takes away the dimension that `gather` leaves.

# %%
checks.check_token_logps(token_logps)

# %% [markdown]
# ## Stage 3: ratio and clip
#
# Completions are expensive, so one batch is often used for several steps. After the first step the policy differs from
# the one that sampled the batch. The **ratio** says how much more likely a token has become since then:
#
# $$\rho = \exp(\log \pi - \log \pi_\mathrm{old})$$
#
# The objective of a token is ρ · A. Where ρ = 1, its gradient is $A \nabla \log \pi$, because the derivative of exp is
# exp: the first step is the policy gradient of notebook 04. In later steps, ρ corrects for the older policy that
# sampled the tokens.
#
# But far from that policy the samples say little, and nothing else stops a token from being pushed further and further.
# So PPO ([arXiv 1707.06347](https://arxiv.org/abs/1707.06347)), and GRPO with it, switches the gradient off for tokens
# that have gone far enough, here 20%:
#
# | | ratio below 0.8 | from 0.8 to 1.2 | above 1.2 |
# |---|---|---|---|
# | good token, A > 0 | push up | push up | **leave alone** |
# | bad token, A < 0 | **leave alone** | push down | push down |
#
# Note the sides. A token that has gone too far in the *wrong* direction is never left alone.
#
# ## Exercise 3: the clipped loss
#
# *Difficulty: hard · importance: high · about 15 minutes*
#
# Return the loss of every token, which an optimizer will minimize: −ρ · A where the table says push, and a constant
# where it says leave alone. The constant is the loss at the border, so that the loss has no jumps. By hand, with
# epsilon = 0.2 and a ratio of 2: a good token (A = 1) has the loss −1.2, and a bad one (A = −1) has the loss 2.
#
# `logps` and `old_logps` have shape (B, T), and `advantages` has shape (B,): all tokens of a completion share its
# advantage. It can be done without `if` and without `where`.

# %%
def clipped_loss(
    logps: torch.Tensor, old_logps: torch.Tensor, advantages: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """Return the loss of every token, (B, T)."""
    # YOUR CODE HERE
    # >>> solution
    ratio = (logps - old_logps).exp()
    advantages = advantages[:, None]
    return -torch.min(ratio * advantages, ratio.clamp(1 - epsilon, 1 + epsilon) * advantages)
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. Compare two objectives: ρ · A, and the same with ρ clamped to the range from 1 − ε to 1 + ε. Write both down for
#    the four corners of the table. Which of the two do you want in each corner, the smaller or the larger one?
# 2. `torch.min` of the two objectives, then the minus sign. `advantages[:, None]` makes (B,) into (B, 1).

# %%
checks.check_clipped_loss(clipped_loss)

# %% [markdown]
# The figure shows your function, as the objective (minus the loss). Where the line is flat there is no gradient.

# %%
import matplotlib.pyplot as plt

from lab_utils.figures import METHOD_COLORS, OTHER_COLORS

ratio = torch.linspace(0, 2, 201)
figure, axes = plt.subplots(1, 2, figsize=(12, 4.8), sharex=True)
for ax, advantage, word, color in zip(axes, (1.0, -1.0), ("good", "bad"), OTHER_COLORS[1:], strict=False):
    objective = -clipped_loss(ratio.log()[:, None], torch.zeros(201, 1), torch.full((201,), advantage), 0.2)[:, 0]
    ax.plot(ratio, ratio * advantage, color="#BBBBBB", linestyle="--", linewidth=2)
    ax.plot(ratio, objective, color=color)
    flat = ratio > 1.2 if advantage > 0 else ratio < 0.8
    ax.axvspan(ratio[flat].min(), ratio[flat].max(), color="#EEEEEE")
    middle = (ratio[flat].mean(), 0.4 if advantage > 0 else -1.4)
    ax.text(*middle, "clipped:\nno gradient", ha="center", va="center", fontsize=13)
    ax.set(title=f"A {word} token (A = {advantage:+.0f})".replace("-", "−"))
    ax.set(xlabel="ratio: new / old probability", ylabel="objective")
figure.savefig(figures / "05_clipped_objective.png")

# %% [markdown]
# ## Stage 4: KL
#
# A policy that chases a reward may forget what it knew. `beta` > 0 adds a price for moving away from a **reference**,
# usually the model before RL. The price is the **KL divergence** $\mathrm{KL}(\pi \| \pi_\mathrm{ref})$: the mean of
# log π − log π_ref over the tokens that the policy writes, in *nats*, the unit of the natural logarithm. It is 0 where
# both give the same probabilities, and it grows as they move apart.
#
# It has to be estimated from the tokens that were sampled. With d = log π_ref − log π of a token, Schulman
# ([blog](http://joschu.net/blog/kl-approx.html)) compares three estimates:
#
# - *k1* = −d. On average it is the KL, by definition. A single one is often negative.
# - *k2* = d² / 2. Never negative. On average it is only near the KL.
# - *k3* = exp(d) − d − 1. Never negative, and on average it is the KL, because the mean of exp(d) = π_ref / π over the
#   policy's own tokens is 1.
#
# So k3 is the best estimate of the **value**. But a loss is there for its **gradient**, and that is another question.
# The sampled tokens are fixed numbers to autograd, so it computes the mean of each estimate's own gradient. By hand,
# with the tools of notebook 04:
#
# - ∇k1 = ∇log π. Its mean is **0** (the proof of the baseline). As a loss, k1 does nothing but add noise.
# - ∇k2 = −d ∇log π. Its mean is the mean of (log π − log π_ref) ∇log π. That **is** the gradient of the KL.
# - ∇k3 = (1 − π_ref / π) ∇log π. Its mean is minus the sum of π_ref ∇log π over the vocabulary. That is the gradient
#   of the *other* KL, $\mathrm{KL}(\pi_\mathrm{ref} \| \pi)$, the one that SFT on the reference's texts would reduce.
#
# Check all of it on a vocabulary of three tokens, where the means over the policy can be computed exactly. You will see
# which row has the KL's value, and which one has its gradient.

# %%
import pandas as pd

policy_logits = torch.tensor([0.7, 0.2, 0.1]).log().requires_grad_()
reference = torch.tensor([0.5, 0.25, 0.25])
policy = policy_logits.softmax(-1)
sampled_from = policy.detach()  # the tokens are sampled with these weights, and stay as they are
d = reference.log() - policy.log()
rows = {
    "KL(policy ‖ reference), exact": (policy * -d).sum(),
    "k1": (sampled_from * -d).sum(),
    "k2": (sampled_from * d**2 / 2).sum(),
    "k3": (sampled_from * (d.exp() - d - 1)).sum(),
    "KL(reference ‖ policy), exact": (reference * d).sum(),
}
table = {}
for name, mean in rows.items():
    (gradient,) = torch.autograd.grad(mean, policy_logits, retain_graph=True)
    table[name] = {"mean": mean.item()} | {f"gradient, logit {k}": gradient[k].item() for k in range(3)}
pd.DataFrame(table).T.round(4)

# %% [markdown]
# Both KL divergences are smallest at the same place, and near it their gradients are nearly equal. So runs with k3
# work. But they do not optimize what their curve shows. Can you have one term with the right value *and* the right
# gradient?
#
# ## Exercise 4: a KL term that is right twice
#
# *Difficulty: hard · importance: medium · about 15 minutes*
#
# Return one number for each token, (B, T), such that
#
# - it is never negative,
# - its mean over tokens sampled by the **old** policy is KL(policy ‖ reference), also when the policy has moved on,
# - the gradient of that mean is the gradient of KL(policy ‖ reference).
#
# All three inputs are log-probabilities of the sampled tokens, (B, T). Think of what the ratio of stage 3 does to a
# mean over tokens of the old policy. What does it do to the gradient, even where it is 1?

# %%
def kl_term(logps: torch.Tensor, old_logps: torch.Tensor, ref_logps: torch.Tensor) -> torch.Tensor:
    """Return what each token adds to the KL between policy and reference, (B, T)."""
    # YOUR CODE HERE
    # >>> solution
    d = ref_logps - logps
    return (logps - old_logps).exp() * (d.exp() - d - 1)
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. The mean of ρ · f over tokens of the old policy is the mean of f over tokens of the policy *itself*, for any f, and
#    ρ = π / π_old carries the gradient. So the gradient of the left side is the gradient of the right side, in full.
# 2. Take the estimate that is never negative and right in value, and multiply it by the ratio. Do not detach the ratio.

# %%
checks.check_kl_term(kl_term)

# %% [markdown]
# The product has two parts at ratio 1: the estimate's own gradient, and the estimate times ∇log π. Together they are
# the gradient of the KL, which neither of them is alone. TRL multiplies by the ratio, too (`use_bias_correction_kl`,
# after DeepSeek-V3.2, [arXiv 2512.02556](https://arxiv.org/abs/2512.02556)), and not only for batches that are used
# several times. It also tames a long tail: k3 is huge for a token that has nearly vanished since it was sampled, but ρ
# · exp(d) = π_ref / π_old is not.
#
# One limit remains: the term looks at one position at a time, given the tokens before it. That an early token leads to
# *later* tokens with a large KL is not in its gradient. PPO subtracts the KL from the reward instead. There it is
# (notebook 10).
#
# ## Stage 5: one number
#
# Every token now has its loss. How do you average over completions of different lengths? In TRL the three loss types
# differ here, and only here. The papers behind the names change more: DAPO also raises the upper clip (`epsilon_high`),
# and Dr. GRPO also leaves out the division by the standard deviation (`scale_rewards="none"`).
#
# - `grpo`: every *completion* counts the same, and its tokens share its weight equally. A token of a long completion
#   counts less.
# - `dapo` ([arXiv 2503.14476](https://arxiv.org/abs/2503.14476)): every *token* of the batch counts the same, and their
#   weights add up to 1. This is TRL's default.
# - `dr_grpo` ([arXiv 2503.20783](https://arxiv.org/abs/2503.20783)): a token counts the same *in every batch*, as if
#   all B completions had the longest length allowed. A batch of long completions takes a larger step.
#
# ## Exercise 5: averaging
#
# *Difficulty: medium · importance: medium · about 10 minutes*
#
# Write the three. `losses` and `mask` have shape (B, T); the mask is 1 on tokens and 0 on padding, and on padding the
# losses are arbitrary. By hand: a completion of two tokens with loss 1 each, and one of four tokens with loss 3 each,
# when 10 tokens are allowed. `grpo` gives 2, `dapo` 14 / 6, and `dr_grpo` 14 / 20.

# %%
def aggregate(losses: torch.Tensor, mask: torch.Tensor, loss_type: str, max_completion_length: int) -> torch.Tensor:
    """Turn (B, T) losses of tokens into one number."""
    # YOUR CODE HERE
    # >>> solution
    losses = losses * mask
    if loss_type == "grpo":
        return (losses.sum(dim=1) / mask.sum(dim=1)).mean()
    if loss_type == "dapo":
        return losses.sum() / mask.sum()
    return losses.sum() / (len(mask) * max_completion_length)
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. Multiply by the mask first, then only sums are needed. What do you divide by, in each case? Which of the divisions
#    happens per row?
# 2. `grpo`: each row's sum by its number of tokens, then the mean of the rows. `dapo`: the sum of all by the number of
#    all tokens. `dr_grpo`: the sum of all by B · max_completion_length, not by T.

# %%
checks.check_aggregate(aggregate)

# %% [markdown]
# Who decides how much a token counts? You will see it in the gradient of your own function, in the example above.

# %%
losses = torch.tensor([[1.0, 1.0, 0.0, 0.0], [3.0, 3.0, 3.0, 3.0]], requires_grad=True)
mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
rows = {}
for loss_type in ("grpo", "dapo", "dr_grpo"):
    loss = aggregate(losses, mask, loss_type, max_completion_length=10)
    (weight,) = torch.autograd.grad(loss, losses)
    rows[loss_type] = {"loss": loss.item(), "a token of the short one counts": weight[0, 0].item(),
                       "a token of the long one counts": weight[1, 0].item()}
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# With that, GRPO's loss is four lines: yours.

# %%
LENGTH = 128  # the longest completion


def grpo_loss(logps, old_logps, ref_logps, advantages, mask, loss_type="dapo", beta=0.1, epsilon=0.2):
    """Return the number that an optimizer minimizes."""
    losses = clipped_loss(logps, old_logps, advantages, epsilon)
    if beta:
        losses = losses + beta * kl_term(logps, old_logps, ref_logps)
    return aggregate(losses, mask, loss_type, LENGTH)


# %% [markdown]
# ## The real thing: a rollout of the tiny model
#
# Eight problems, eight completions each. You ask the base model in plain text, where it does best (notebook 00). Its
# reward is 1 for a correct expression on the last line, and 0 otherwise. The next cell loads the model and writes the
# only part of the loop that is not yours: sampling and judging.

# %%
from torch.nn.utils.rnn import pad_sequence

import lab_utils.training  # noqa: F401 (it imports TRL without its warnings)
from lab_utils.config import load
from lab_utils.models import end_token_ids, load_model, load_tokenizer
from lab_utils.sampling.local import sample_token_ids
from lab_utils.tasks import load_task

config = load(RECIPE, HARDWARE)
STEPS, PROBLEMS, GROUP = (12 if config.hardware != "smoke" else 2), 8, 8
task, tokenizer, model = load_task("countdown", "plain"), load_tokenizer("tiny"), load_model("tiny")
problems = task.dataset("train", STEPS * PROBLEMS)


def sample_groups(model, prompt_ids, step):
    """Sample GROUP completions of each prompt: pairs (token ids, log-probabilities). `step` is the seed."""
    generator = torch.Generator().manual_seed(1000 * SEED + step)
    return sample_token_ids(model, prompt_ids, [GROUP] * len(prompt_ids), generator=generator, max_new_tokens=LENGTH,
                            end_ids=end_token_ids(model.config, tokenizer))


def judge(completions, rows):
    return [float(task.is_correct(text, row)) for text, row in zip(completions, rows, strict=True)]


# %% [markdown]
# The next function makes the tensors of a training step: your stages 1 and 2 need them. You will see what it returns
# for the first eight problems, and one of the groups.

# %%
def roll_out(model, step):
    """Sample and judge completions of the step's problems; return them as tensors, with your advantages."""
    rows = [row for row in problems.select(range(step * PROBLEMS, (step + 1) * PROBLEMS))]
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    sampled = sample_groups(model, prompts, step)
    texts = tokenizer.batch_decode([ids for ids, _ in sampled], skip_special_tokens=True)
    rewards = torch.tensor(judge(texts, [row for row in rows for _ in range(GROUP)]))

    def pad(rows, side="right"):
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_side=side)

    prompts = [ids for ids in prompts for _ in range(GROUP)]
    mask = pad([[1] * len(ids) for ids, _ in sampled])
    return {
        "input_ids": torch.cat([pad(prompts, "left"), pad([ids for ids, _ in sampled])], dim=1),
        "attention_mask": torch.cat([pad([[1] * len(ids) for ids in prompts], "left"), mask], dim=1),
        "mask": mask, "old_logps": pad([logps for _, logps in sampled]),
        "rewards": rewards, "advantages": group_advantages(rewards, GROUP), "texts": texts,
    }


batch = roll_out(model, 0)
print({name: tuple(value.shape) for name, value in batch.items() if name != "texts"})

# %%
groups = batch["rewards"].view(-1, GROUP)
alive = (groups.std(dim=1) > 0).nonzero()[:, 0].tolist()
print(f"{int(groups.sum())} of {groups.numel()} completions are correct, {len(alive)} of {len(groups)} groups alive.\n")
print(problems[alive[0]]["prompt"], "\nreward  advantage  completion")
for i in range(alive[0] * GROUP, (alive[0] + 1) * GROUP):
    print(f"{batch['rewards'][i]:6.0f}  {batch['advantages'][i]:+9.2f}  {' | '.join(batch['texts'][i].splitlines())}")

# %% [markdown]
# The sampler recorded the log-probability of every token while it wrote. Your `token_logps` computes them in one pass
# over the whole batch. Both must give the same numbers. You will see the largest difference, which is rounding.

# %%
with torch.no_grad():
    logps = token_logps(model, batch["input_ids"], batch["attention_mask"], batch["mask"].shape[1])
difference = ((logps - batch["old_logps"]) * batch["mask"]).abs().max().item()
print(f"{int(batch['mask'].sum())} tokens; largest difference from the sampler's log-probabilities: {difference:.1e}")

# %% [markdown]
# ## Exercise 6: a training step
#
# *Difficulty: medium · importance: high · about 15 minutes*
#
# Make one update of the model from a batch like the one above, and return the loss as a number. Use `token_logps` and
# `grpo_loss`. Three things to think of: the reference model is not trained; the ratio compares with the policy that
# *sampled*, whose log-probabilities are in the batch; and before the optimizer's step, scale the gradients to a norm of
# at most 1 with `torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)`, so that one odd batch cannot do much harm.

# %%
def train_step(model, reference, optimizer, batch: dict) -> float:
    """Update the model once; return the loss before the update."""
    # YOUR CODE HERE
    # >>> solution
    inputs = batch["input_ids"], batch["attention_mask"], batch["mask"].shape[1]
    logps = token_logps(model, *inputs)
    with torch.no_grad():
        ref_logps = token_logps(reference, *inputs)
    loss = grpo_loss(logps, batch["old_logps"], ref_logps, batch["advantages"], batch["mask"])
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. In order: log-probabilities of the model, with gradient; those of the reference, without (`torch.no_grad()`); the
#    loss; and then what every training loop in PyTorch does.
# 2. `optimizer.zero_grad()`, `loss.backward()`, `clip_grad_norm_`, `optimizer.step()`, `return loss.item()`.

# %%
checks.check_train_step(train_step)

# %% [markdown]
# ## The first step: hardly a loss, but a gradient
#
# Take one step with the batch. At the first step every ratio is 1, so each token's loss is minus its advantage (and
# every KL is 0). With loss type `grpo` the advantages of a group cancel, and the loss is 0. With `dapo` long
# completions count more, so it is not, and it can rise while the model gets better. Either way its value says nothing.
# What the step did is in the log-probabilities. You will see how much more likely, per token, the good and the bad
# completions became.

# %%
def new_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.99), weight_decay=0.0)


reference, mask = load_model("tiny"), batch["mask"]
print(f"loss, dapo: {train_step(model, reference, new_optimizer(model), batch):+.4f}")
print(f"loss, grpo: {aggregate(clipped_loss(logps, logps, batch['advantages'], 0.2), mask, 'grpo', LENGTH):+.0e}")
with torch.no_grad():
    new_logps = token_logps(model, batch["input_ids"], batch["attention_mask"], mask.shape[1])
change = ((new_logps - batch["old_logps"]) * mask).sum(dim=1) / mask.sum(dim=1)
good, bad = change[batch["advantages"] > 0], change[batch["advantages"] < 0]
for name, values in (("good", good), ("bad", bad)):
    half_width = 1.96 * values.std() / len(values) ** 0.5
    print(f"{name}: {values.mean():+.4f} ± {half_width:.4f} nats per token ({len(values)} completions, 95%)")

# %% [markdown]
# ## The same numbers from TRL
#
# Does the trainer that you will use in notebook 06 do what you just did? Build TRL's `GRPOTrainer` with the same
# settings. Its completions come from your `sample_groups`, with the same random numbers, and its rewards from `judge`.

# %%
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer


def sample_for_trl(prompts, trainer):
    """Sample as your loop does. TRL hands over each prompt GROUP times in a row."""
    prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    sampled = sample_groups(trainer.model, prompt_ids[::GROUP], trainer.state.global_step)
    return {"prompt_ids": prompt_ids, "completion_ids": [ids for ids, _ in sampled],
            "logprobs": [logps for _, logps in sampled]}


def correct(completions, nums, target, **columns):
    return judge(completions, [{"nums": n, "target": t} for n, t in zip(nums, target, strict=True)])


arguments = GRPOConfig(
    output_dir=str(Path(OUTPUT_DIR) / "05_trainer"), max_steps=STEPS, per_device_train_batch_size=PROBLEMS * GROUP,
    num_generations=GROUP, max_completion_length=LENGTH, beta=0.1, loss_type="dapo", shuffle_dataset=False,
    learning_rate=3e-4, lr_scheduler_type="constant", adam_beta2=0.99, use_cpu=True, bf16=False,
    gradient_checkpointing=False, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
)
trainer = GRPOTrainer(model=load_model("tiny"), args=arguments, processing_class=tokenizer, train_dataset=problems,
                      reward_funcs=correct, rollout_func=sample_for_trl)
trainer.remove_callback(PrinterCallback)

# %% [markdown]
# First the loss alone, on your batch and with the weights of your model after its first step, so that ratios and KL are
# not trivial. The table has both losses and their difference, and the largest difference between any two entries of the
# gradients. You will see tiny differences, because the two compute in 32 bits and in a different order. The cell stops
# if a difference is not tiny: 1e-6 for the loss, 1e-5 for the gradients.

# %%
width, num_tokens = batch["input_ids"].shape[1] - mask.shape[1], mask.shape[1]
theirs = {"prompt_ids": batch["input_ids"][:, :width], "prompt_mask": batch["attention_mask"][:, :width],
          "completion_ids": batch["input_ids"][:, width:], "completion_mask": mask, "advantages": batch["advantages"],
          "old_per_token_logps": batch["old_logps"], "ref_per_token_logps": logps, "num_items_in_batch": mask.sum()}
trainer.current_gradient_accumulation_steps = 1  # the training loop sets it, but you call the loss alone
trainer.model.load_state_dict(model.state_dict())
parameters, their_parameters, rows = list(model.parameters()), list(trainer.model.train().parameters()), []
for loss_type in ("grpo", "dr_grpo", "dapo"):
    for beta in (0.0, 0.1):
        trainer.loss_type, trainer.beta = loss_type, beta
        by_trl = trainer._compute_loss(trainer.model, theirs)
        new_logps = token_logps(model, batch["input_ids"], batch["attention_mask"], num_tokens)
        yours = grpo_loss(new_logps, batch["old_logps"], logps, batch["advantages"], mask, loss_type, beta)
        gradients = torch.autograd.grad(yours, parameters), torch.autograd.grad(by_trl, their_parameters)
        rows.append({"loss type": loss_type, "beta": beta, "yours": yours.item(), "TRL": by_trl.item(),
                     "difference": abs(yours.item() - by_trl.item()),
                     "of the gradients": max((a - b).abs().max().item() for a, b in zip(*gradients, strict=True))})

# %%
table = pd.DataFrame(rows)
assert table["difference"].max() < 1e-6 and table["of the gradients"].max() < 1e-5, table
formats = {"beta": "{:.2f}".format} | dict.fromkeys(("difference", "of the gradients"), "{:.0e}".format)
print(table.to_string(index=False, float_format="{:+.7f}".format, formatters=formats))

# %% [markdown]
# ## Your run, and TRL's
#
# Now train, for 12 steps of 64 completions, from the base model. Write down your guess first: will the completions
# become longer or shorter? This takes about half a minute, and then as long again for TRL.

# %%
def train(model, steps):
    """Train with your own functions; return each step's mean reward and mean length."""
    optimizer, history = new_optimizer(model), []
    for step in range(steps):
        batch = roll_out(model, step)
        train_step(model, reference, optimizer, batch)
        history.append({"reward": batch["rewards"].mean().item(), "tokens": batch["mask"].sum(1).float().mean().item()})
        print(f"step {step + 1:2d}: reward {history[-1]['reward']:.3f}, {history[-1]['tokens']:5.1f} tokens")
    return pd.DataFrame(history)


my_model = load_model("tiny")
mine = train(my_model, STEPS)

# %%
trainer.loss_type, trainer.beta = "dapo", 0.1  # the table above has changed them, and the weights
trainer.model.load_state_dict(reference.state_dict())
trainer.train()
trl = pd.DataFrame([log for log in trainer.state.log_history if "reward" in log])
print(f"TRL: {len(trl)} steps, reward {trl['reward'].iloc[0]:.3f} → {trl['reward'].iloc[-1]:.3f}")

# %% [markdown]
# Both runs had the same problems and the same random numbers. So the curves should lie on each other exactly, until
# rounding tips the choice of a single token. (In 12 steps that may never happen.) From then on the completions differ,
# and the curves are as close as two runs with different luck. Each point is the mean of 64 completions. The bars are
# 95% intervals that treat the 64 as independent; in truth they come from only eight problems, and vary more.

# %%
figure, ax = plt.subplots(figsize=(10, 5.4))
steps = range(1, STEPS + 1)
half_width = 1.96 * (mine["reward"] * (1 - mine["reward"]) / (PROBLEMS * GROUP)) ** 0.5
ax.plot(steps, trl["reward"], color=METHOD_COLORS["grpo"], linewidth=9, alpha=0.35)
ax.errorbar(steps, mine["reward"], half_width, color=OTHER_COLORS[2], fmt="o-", linewidth=2, capsize=3)
ax.text(0.02, 0.93, "yours, with 95% intervals", color=OTHER_COLORS[2], fontweight="bold", transform=ax.transAxes)
ax.text(0.02, 0.85, "TRL's GRPOTrainer", color=METHOD_COLORS["grpo"], fontweight="bold", transform=ax.transAxes)
ax.set(title="Your GRPO and TRL's: one curve", xlabel="training step", ylim=(0, 1),
       ylabel="mean reward\n(64 completions per step)")
figure.savefig(figures / "05_your_run_and_trl.png")

# %% [markdown]
# The reward of a step is that of its own eight problems. Ask base, your model and TRL's the same 100 held-out problems,
# four times each. (The intervals are 95%.)

# %%
from lab_utils.evaluation import evaluate

held_out = task.dataset("test", 100 if config.hardware != "smoke" else 4)
results = {
    name: evaluate(one, tokenizer, task, held_out, num_samples=4, max_new_tokens=LENGTH, temperature=1.0, seed=SEED)
    for name, one in (("base", reference), ("yours", my_model), ("TRL's", trainer.model))
}
for name, result in results.items():
    low, high = result.accuracy_interval
    print(f"{name:<6} {result.accuracy:.1%} correct ({low:.1%} to {high:.1%}), {result.mean_length:.0f} tokens")

# %% [markdown]
# ## What you should see, and what it means if you don't
#
# Back to your guess: the completions have become longer, because they hold more attempts. The reward did not ask for
# that. Notebook 06 counts what the model does after a failed attempt.

# %%
from lab_utils.teaching.inspection import expect

expect(config, "in the first step, good completions became more likely than bad ones", bool(good.mean() > bad.mean()))
expect(config, "your first five rewards are within 0.1 of TRL's",
       (mine["reward"] - trl["reward"])[:5].abs().max() < 0.1)
expect(config, "your model is better than the base by more than 10 points",
       results["yours"].accuracy - results["base"].accuracy > 0.1)
expect(config, "it writes longer completions", results["yours"].mean_length > results["base"].mean_length)

# %% [markdown]
# - No group is alive: every completion of a problem earns the same. Then the policy's gradient is zero. Look at the
#   reward, or take easier problems.
# - The log-probabilities differ from the sampler's: the tokens are shifted by one, or the padding is on the wrong
#   side. Remember that the logits at a position speak of the *next* token.
# - The good completions did not become more likely: look at the sign of the loss.
# - The losses differ only with KL: `use_bias_correction_kl` has been changed, or your TRL version is a different one.
#   The table of notebook 00 shows yours.
# - The curves differ from the *second* point on: the first update differs. Compare learning rate, Adam's β₂, gradient
#   norm, and whether `zero_grad` comes before `backward`.
#
# ## Summary
#
# - Reward → advantage within the group → ratio → clip → average. No critic, no value function.
# - The value of the loss says nothing: zero at the first step with `grpo`, anything with `dapo`. Look at the reward.
# - The clip stops a token that has gone far enough in the good direction. It never blocks the way back.
# - An estimate that is right in value can be wrong in its gradient. k3 has the gradient of the other KL; times the
#   ratio it has the right one.
# - Loss types differ in how much a token of a long completion counts.
#
# ## Questions
# Think first. The answers are in [ANSWERS.md](ANSWERS.md).
#
# 1. Double all rewards. What happens to the advantages, with and without the division by the standard deviation?
# 2. In one group, one of eight completions is correct; in another group, seven of eight. Which completion has the
#    largest advantage (in size), and does that seem fair to you?
# 3. Wrong completions are longer than correct ones. Which loss type punishes their length least, and what will the
#    policy learn from that?
# 4. Your loop updates once per rollout. Call `train_step` twice with the same batch: what changes in the second call?
#    Which of your functions did nothing until then?
#
# Next: [06 · GRPO training](06_grpo_training.ipynb), with TRL, the chat format and the model of notebook 03.
