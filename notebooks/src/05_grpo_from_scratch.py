# %% [markdown]
# # 05 · GRPO from scratch
#
# <!-- badges -->
#
# > **You will learn** to compute GRPO by hand, from rewards to one number to minimize: advantages, log-probabilities,
# > ratio, clip, KL, loss; and to see that TRL's `GRPOTrainer` computes the same numbers.
# >
# > **Time** 1 minute on a CPU, 1 on a GPU · **Needs** nothing else (it uses the tiny model on every machine)

# %% tags=["setup"]
# The builder writes this cell: notebooks/src/setup_cell.py.

# %% tags=["parameters"]
RECIPE = "countdown-grpo"
HARDWARE = "cpu"  # or "auto", or one of the GPU tiers
OUTPUT_DIR = "outputs"
SEED = 0

# %% [markdown]
# ## Five stages
#
# GRPO, *group-relative policy optimization* (DeepSeekMath, [arXiv 2402.03300](https://arxiv.org/abs/2402.03300)),
# answers one question: the model wrote several completions for a problem, and some were better than others, so which
# tokens should become more likely? The model is the **policy**. GRPO finds the answer in five stages:
#
# 1. a **group** of completions of the same problem, each with its reward, and from the rewards the **advantages**
# 2. the **log-probabilities** of the tokens that were written
# 3. the **ratio** of each token's probability to its probability at sampling time, and the **clip** that keeps steps
#    small
# 4. optionally, the **KL** that ties the policy to a reference
# 5. one number, the **loss**, and its gradient
#
# You first see each stage with numbers that you can check by hand, then all of them with the tiny model.
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
# group: the reward minus the group's mean, divided by the group's standard deviation.
#
# $$A_i = \frac{r_i - \mathrm{mean}(r)}{\mathrm{std}(r)}$$
#
# By hand: the mean is 0.25 and the standard deviation (with n − 1) is 0.5, so the advantages are 1.5 for the correct
# completion and −0.5 for each of the others. They add up to zero. Positive: make it more likely. Negative: less likely.
#
# ## Exercise 1: advantages
#
# *Difficulty: medium · importance: high · spend up to 10 minutes*
#
# A batch holds several groups, one after the other. Each has its own mean and standard deviation. Think of a group in
# which all rewards are equal: TRL adds 1e-4 to the standard deviation.

# %%
def group_advantages(rewards: torch.Tensor, num_generations: int) -> torch.Tensor:
    """Return (B,) advantages for (B,) rewards, whole groups of `num_generations` one after the other."""
    # YOUR CODE HERE
    # >>> solution
    groups = rewards.view(-1, num_generations)
    advantages = (groups - groups.mean(dim=1, keepdim=True)) / (groups.std(dim=1, keepdim=True) + 1e-4)
    return advantages.view(-1)
    # <<< solution


# %%
from lab_utils.teaching import checks

checks.check_group_advantages(group_advantages)

# %% [markdown]
# From here on the notebook uses the functions of `lab_utils.teaching.grpo_math`. Each is a few lines long; read them
# when you like.
#
# The figure shows a group of eight, two of them correct. The fewer are correct, the larger the advantage of each
# correct one.

# %%
from pathlib import Path

from lab_utils.figures import plot_advantages
from lab_utils.teaching import grpo_math

figures = Path(OUTPUT_DIR) / "figures"
rewards = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0])
plot_advantages(rewards, grpo_math.group_advantages(rewards, 8), figures / "05_advantages.png")

# %% [markdown]
# Two kinds of groups teach nothing: all wrong, and all correct. You will see their advantages. TRL logs the share of
# such groups as `frac_reward_zero_std`, and you will watch it in notebook 06.

# %%
grpo_math.group_advantages(torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]), 4)

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
# ## Stage 3: ratio and clip
#
# Completions are expensive, so one batch is often used for several steps. After the first step the policy differs from
# the one that sampled the batch. The **ratio** says how much more likely a token has become since then:
#
# $$\rho_t = \exp(\log \pi(t) - \log \pi_\mathrm{old}(t))$$
#
# Why raise ρ · A, the ratio times the advantage? You cannot differentiate the reward: a judge gives it, and sampling
# lies in between. But you can estimate the gradient of the *expected* reward from samples. Raise the log-probability of
# every token that was written, in proportion to its advantage: the gradient is the mean of $A\nabla\log\pi$. This is
# the **policy gradient**. Where ρ = 1, the gradient of ρ · A is exactly that, because the derivative of exp is exp. So
# the first step is the policy gradient. In later steps ρ corrects for the older policy that sampled the tokens.
#
# The objective of a token is ρ · A, but only within limits. A token that is already 20% more likely than at sampling
# time gets nothing for rising further. PPO ([arXiv 1707.06347](https://arxiv.org/abs/1707.06347), equation 7):
#
# $$\min(\rho_t A,\; \mathrm{clip}(\rho_t, 1 - \epsilon, 1 + \epsilon)\, A)$$
#
# The figure shows it for a good token and for a bad one, with ε = 0.2. Where the line is flat there is no gradient.
# Note the sides: a token that has gone too far in the *wrong* direction is never clipped.

# %%
import matplotlib.pyplot as plt

from lab_utils.figures import OTHER_COLORS

ratio = torch.linspace(0, 2, 201)
figure, axes = plt.subplots(1, 2, figsize=(12, 4.8), sharex=True)
for ax, advantage, word, color in zip(axes, (1.0, -1.0), ("good", "bad"), OTHER_COLORS[1:], strict=False):
    objective = grpo_math.clipped_objective(ratio[:, None], torch.full((201,), advantage), epsilon=0.2)[:, 0]
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
# ## Exercise 2: the clipped loss
#
# *Difficulty: medium · importance: high · spend up to 10 minutes*
#
# Return the loss of every token: minus the objective above, because an optimizer minimizes. `logps` and `old_logps`
# have shape (B, T), and `advantages` has shape (B,): all tokens of a completion share its advantage.

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


# %%
checks.check_clipped_loss(clipped_loss)

# %% [markdown]
# ## Stage 4: KL
#
# A policy that chases a reward may forget what it knew. `beta` > 0 adds a price for moving away from a **reference**,
# usually the model before RL. The price is the **KL divergence**: the mean of log π − log π_ref over the tokens that
# the policy writes. It is 0 where both give the same probabilities, and it grows as they move apart. It is counted in
# *nats*, the unit of the natural logarithm. It has to be estimated from the sampled tokens. GRPO uses Schulman's
# estimate *k3*: exp(d) − d − 1 with d = log π_ref − log π. This estimate is never negative, and it is correct on
# average over what the policy samples. You will see both in the toy: the mean estimate next to the exact KL.

# %%
policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.25, 0.25])
estimates = grpo_math.kl_estimate(policy.log(), reference.log())
print("estimate for each token:", [round(x, 4) for x in estimates.tolist()])
print(f"their mean {(policy * estimates).sum():.6f}, exact {(policy * (policy / reference).log()).sum():.6f}")

# %% [markdown]
# ## Stage 5: one number
#
# Every token now has its loss. How do you average over completions of different lengths? In TRL the three loss types
# differ here, and only here. The papers behind the names change more: DAPO also raises the upper clip (`epsilon_high`),
# and Dr. GRPO also leaves out the division by the standard deviation (`scale_rewards="none"`).
#
# - `grpo`: first over the tokens of each completion, then over completions. A token of a long completion counts less.
# - `dapo` ([arXiv 2503.14476](https://arxiv.org/abs/2503.14476)): over all tokens of the batch. Every token counts
#   the same. This is TRL's default.
# - `dr_grpo` ([arXiv 2503.20783](https://arxiv.org/abs/2503.20783)): the sum, divided by a constant. A batch of long
#   completions takes a larger step.
#
# A toy: a completion of two tokens with loss 1 each, and one of four tokens with loss 3 each. By hand, `grpo` gives (1
# + 3) / 2 = 2, and `dapo` gives 14 / 6. The table also shows how much one token counts.

# %%
import pandas as pd

losses = torch.tensor([[1.0, 1.0, 0.0, 0.0], [3.0, 3.0, 3.0, 3.0]], requires_grad=True)
mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
rows = {}
for loss_type in ("grpo", "dapo", "dr_grpo"):
    loss = grpo_math.aggregate(losses, mask, loss_type, max_completion_length=10)
    (weight,) = torch.autograd.grad(loss, losses)
    rows[loss_type] = {"loss": loss.item(), "a token of the short one counts": weight[0, 0].item(),
                       "a token of the long one counts": weight[1, 0].item()}
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# ## The real thing: a batch of the tiny model
#
# Sixteen problems, eight completions each. You ask the base model in plain text, as in notebook 00, where it does best.
# Its reward is 1 for a correct expression on the last line. You will see how many groups are alive, then one of them.

# %%
from lab_utils.config import load
from lab_utils.models import end_token_ids, load_model, load_tokenizer
from lab_utils.sampling.local import sample_token_ids
from lab_utils.tasks import load_task

task, group_size, length = load_task("countdown"), 8, 128
model, tokenizer = load_model("tiny"), load_tokenizer("tiny")
problems = list(task.dataset("train", 16))
prompts = tokenizer([row["prompt"][-1]["content"] + "\n" for row in problems])["input_ids"]
sampled = sample_token_ids(
    model, prompts, [group_size] * len(prompts), end_ids=end_token_ids(model.config, tokenizer), max_new_tokens=length,
    generator=torch.Generator(model.device).manual_seed(SEED),
)
texts = tokenizer.batch_decode([ids for ids, _ in sampled], skip_special_tokens=True)
rows = [row for row in problems for _ in range(group_size)]
rewards = torch.tensor([float(task.is_correct_lenient(text, row)) for text, row in zip(texts, rows, strict=True)])
advantages = grpo_math.group_advantages(rewards, group_size)

alive = (rewards.view(-1, group_size).std(dim=1) > 0).nonzero()[:, 0].tolist()
print(f"{int(rewards.sum())} of {len(texts)} completions are correct, {len(alive)} of {len(problems)} groups alive.")

# %%
print(problems[alive[0]]["prompt"][-1]["content"], "\n\nreward  advantage  completion")
for i in range(alive[0] * group_size, (alive[0] + 1) * group_size):
    print(f"{rewards[i]:6.0f}  {advantages[i]:+9.2f}  {' | '.join(texts[i].splitlines())}")

# %% [markdown]
# Now the tensors. Prompts are padded on the left, completions on the right, so that every completion starts in the same
# column. The mask is 1 on tokens and 0 on padding.
#
# The sampler already recorded the log-probability of every token. Computing them again in one pass over the whole batch
# must give the same numbers. You will see the largest difference, which is rounding.

# %%
from torch.nn.utils.rnn import pad_sequence


def pad(rows: list[list], value: float = 0, side: str = "right") -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], True, value, side).to(model.device)


many_prompts = [ids for ids in prompts for _ in range(group_size)]
batch = {
    "prompt_ids": pad(many_prompts, tokenizer.pad_token_id, "left"),
    "prompt_mask": pad([[1] * len(ids) for ids in many_prompts], side="left"),
    "completion_ids": pad([ids for ids, _ in sampled], tokenizer.pad_token_id),
    "completion_mask": pad([[1] * len(ids) for ids, _ in sampled]),
}
input_ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
attention_mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
mask, num_tokens = batch["completion_mask"], batch["completion_ids"].shape[1]
old_logps = grpo_math.token_logps(model, input_ids, attention_mask, num_tokens).detach()
difference = ((old_logps - pad([logps for _, logps in sampled])) * mask).abs().max().item()
print(f"{int(mask.sum())} tokens; largest difference from the sampler's log-probabilities: {difference:.1e}")

# %% [markdown]
# ## The first step: no loss, but a gradient
#
# Before the first step the policy *is* the one that sampled. Every ratio is 1 and nothing is clipped. The loss type
# here is `grpo`: each completion counts the same, the advantages of a group add up to zero, and so does the loss. With
# `dapo` (notebook 06) long completions count more, so the loss is not zero, and it can rise while the model gets
# better. Either way its value says nothing. The gradient is not zero, because raising a good token and lowering a bad
# one both help. You will see both numbers.

# %%
advantages = advantages.to(model.device)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0.0)
logps = grpo_math.token_logps(model, input_ids, attention_mask, num_tokens)
loss = grpo_math.grpo_loss(logps, old_logps, advantages, mask, loss_type="grpo", max_completion_length=length)
loss.backward()
gradient_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
print(f"loss {loss.item():.1e}, gradient norm {gradient_norm.item():.3f}")
optimizer.step()

# %% [markdown]
# What did this one step do? Compare the log-probabilities of the same completions before and after. The figure has a
# dot for each completion. You will see that completions with a positive advantage became more likely on average (their
# mean is above the line), and those with a negative one less likely. Those of the dead groups, at advantage 0, hardly
# moved.

# %%
with torch.no_grad():
    new_logps = grpo_math.token_logps(model, input_ids, attention_mask, num_tokens)
change = (((new_logps - old_logps) * mask).sum(dim=1) / mask.sum(dim=1)).cpu()  # (B,) per token
sign = advantages.cpu().sign()
means = {value: change[sign == value].mean().item() for value in sign.unique().tolist()}
colors = {-1: OTHER_COLORS[2], 0: "#999999", 1: OTHER_COLORS[1]}

figure, ax = plt.subplots(figsize=(10, 5))
for value, mean in means.items():
    x = advantages.cpu()[sign == value]
    ax.scatter(x, change[sign == value], color=colors[value], alpha=0.6, s=50)
    ax.hlines(mean, x.min() - 0.15, x.max() + 0.15, color=colors[value], linewidth=4)
    label = f"mean\n{mean:+.3f}".replace("-", "−")
    ax.text(1.3 * value, 0.9, label, color=colors[value], ha="center", va="center", fontweight="bold",
            transform=ax.get_xaxis_transform())
ax.axhline(0, color="#222222", linewidth=1.5)
low, high = change.quantile(torch.tensor([0.02, 0.98])).tolist()
ax.set(title="One step: better than the group, more likely", xlabel="advantage of the completion", xlim=(-2.7, 2.7),
       ylabel="change in log-probability, per token", ylim=(low - 0.02, high + 0.05))
figure.savefig(figures / "05_one_step.png")

# %% [markdown]
# ## The second step: the ratio counts
#
# Use the same batch again (`num_iterations=2` in TRL). Now the old and the new policy differ, so the ratios spread
# around 1, some tokens are clipped, and the KL to the starting model is no longer zero. You will see how many. The KL
# estimate has a long tail: one token that has become very unlikely can outweigh all the others, so look at the largest
# value too.

# %%
ratio = (new_logps - old_logps).exp()
clipped = ((ratio > 1.2) & (advantages[:, None] > 0)) | ((ratio < 0.8) & (advantages[:, None] < 0))
kl = grpo_math.kl_estimate(new_logps, old_logps)
tokens = mask.sum()
print(f"outside 1 ± 0.2: {((ratio - 1).abs() > 0.2).mul(mask).sum() / tokens:.2%} of the tokens")
print(f"clipped:         {(clipped * mask).sum() / tokens:.2%}")
print(f"KL estimate:     {(kl * mask).sum() / tokens:.4f} nats per token, the largest {(kl * mask).max():.4f}")

# %% [markdown]
# ## The same numbers from TRL
#
# Does the trainer that you will use in notebook 06 do what you just did? Give TRL's `GRPOTrainer` the same model and
# the same batch, and call its loss for three loss types, without and with KL. One detail of TRL: it multiplies the KL
# estimate by the ratio, because the tokens were sampled by the old policy (DeepSeek-V3.2, [arXiv
# 2512.02556](https://arxiv.org/abs/2512.02556)). `grpo_math.grpo_loss` does the same. The product also tames the long
# tail: a token that has nearly vanished has a ratio near zero.

# %%
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

arguments = GRPOConfig(
    output_dir=str(Path(OUTPUT_DIR) / "05_trainer"), per_device_train_batch_size=len(texts), num_generations=group_size,
    max_completion_length=length, epsilon=0.2, temperature=1.0, use_cpu=model.device.type == "cpu", bf16=False,
    gradient_checkpointing=False, report_to="none",
)
trainer = GRPOTrainer(
    model=model, args=arguments, processing_class=tokenizer, train_dataset=Dataset.from_list(problems),
    reward_funcs=equation_reward,  # not called: the batch has its advantages
)
trainer.current_gradient_accumulation_steps = 1  # the training loop sets it, but you call the loss alone
batch |= {"advantages": advantages, "old_per_token_logps": old_logps, "ref_per_token_logps": old_logps,
          "num_items_in_batch": mask.sum()}

# %% [markdown]
# The table has both losses and their difference, and the largest difference between any two entries of the gradients.
# You will see tiny differences, because the two compute in 32 bits and in a different order. The cell stops if a
# difference is not tiny: 1e-6 for the loss, 1e-5 for the gradients.

# %%
parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
model.train()
rows = []
for loss_type in ("grpo", "dr_grpo", "dapo"):
    for beta in (0.0, 0.04):
        trainer.loss_type, trainer.beta = loss_type, beta
        theirs = trainer._compute_loss(model, batch)
        logps = grpo_math.token_logps(model, input_ids, attention_mask, num_tokens)
        ours = grpo_math.grpo_loss(logps, old_logps, advantages, mask, loss_type=loss_type, beta=beta,
                                   ref_logps=old_logps, max_completion_length=length)
        gradients = zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True)
        rows.append({"loss type": loss_type, "beta": beta, "by hand": ours.item(), "TRL": theirs.item(),
                     "difference": abs(ours.item() - theirs.item()),
                     "of the gradients": max((a - b).abs().max().item() for a, b in gradients)})
table = pd.DataFrame(rows)
assert table["difference"].max() < 1e-6 and table["of the gradients"].max() < 1e-5, table
formats = {"beta": "{:.2f}".format} | dict.fromkeys(("difference", "of the gradients"), "{:.0e}".format)
print(table.to_string(index=False, float_format="{:+.7f}".format, formatters=formats))

# %% [markdown]
# ## What you should see, and what it means if you don't

# %%
from lab_utils.teaching.inspection import expect

config = load(RECIPE, HARDWARE)
expect(config, "the correct completions became more likely, the wrong ones less", means[1] > 0 > means[-1])
expect(config, "some tokens are clipped in the second step", bool((clipped * mask).any()))

# %% [markdown]
# - No group is alive: every completion of a problem earns the same. Then the gradient is zero, and a run with this
#   reward would learn nothing. Look at the reward, or take easier problems.
# - The log-probabilities differ from the sampler's: the tokens are shifted by one, or the padding is on the wrong
#   side. Remember that the logits at a position speak of the *next* token.
# - The correct completions did not become more likely: look at the sign of the loss.
# - The losses differ only with KL: `use_bias_correction_kl` has been changed, or your TRL version is a different one.
#   The table of notebook 00 shows yours.
#
# ## Summary
#
# - Reward → advantage within the group → ratio → clip → average. No critic, no value function.
# - The value of the loss says nothing: zero at the first step with `grpo`, anything with `dapo`. Look at the reward.
# - The clip stops a token that has gone far enough in the good direction. It never blocks the way back.
# - Loss types differ in how much a token of a long completion counts.
#
# ## Questions
#
# 1. Double all rewards. What happens to the advantages, with and without the division by the standard deviation?
# 2. In one group, one of eight completions is correct; in another group, seven of eight. Which completion has the
#    largest advantage (in size), and does that seem fair to you?
# 3. Wrong completions are longer than correct ones. Which loss type punishes their length least, and what will the
#    policy learn from that?
#
# Next: [06 · GRPO training](06_grpo_training.ipynb), where these numbers become curves.
