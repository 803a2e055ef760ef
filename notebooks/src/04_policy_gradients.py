# %% [markdown]
# # 04 · Policy gradients
#
# <!-- badges -->
#
# > **You will learn** to derive the gradient on which all of GRPO and PPO stands; to check it against an exact one; why
# > a baseline changes nothing on average and nearly everything in practice; where GRPO's advantage comes from.
# >
# > **Time** the machine: seconds on a CPU · you: 45 minutes · **Needs** nothing else

# %% tags=["setup"]
# The builder writes this cell: notebooks/src/setup_cell.py.

# %% tags=["parameters"]
RECIPE = "countdown-grpo"
HARDWARE = "cpu"  # or "auto", or one of the GPU tiers; here it makes no difference
OUTPUT_DIR = "outputs"
SEED = 0

# %% [markdown]
# ## Three arms
#
# A slot machine has three arms, which pay 1, 2 and 4. You do not know that. All that you can do is pull an arm and look
# at what it pays. Your **policy** π is a probability for each arm, written with one number per arm, the *logits* θ:
# π = softmax(θ). How should you change θ to earn more?
#
# This is the whole problem of reinforcement learning for a language model, made small. An arm is a completion. What it
# pays is the reward. Here you can calculate everything exactly, so that you can check each claim. A language model has
# more arms than there are atoms in the universe, and there you will have to trust it.
#
# With the probabilities 0.5, 0.3 and 0.2 you earn 0.5 · 1 + 0.3 · 2 + 0.2 · 4 = 1.9 per pull, on average. This is the
# **expected reward** J, which you want to raise.

# %%
import torch

payments = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
logits = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()


def expected_reward(logits):
    return (logits.softmax(-1) * payments).sum()


expected_reward(logits)

# %% [markdown]
# As long as you know what every arm pays, J is a formula, and PyTorch differentiates it. You can also wiggle each logit
# a little, up and down, and see how J changes (a *finite difference*). You will see the same three numbers twice. By
# hand, they are π times (payment − 1.9): 0.5 · (1 − 1.9) = −0.45, then 0.03 and 0.42.

# %%
wiggle = 1e-5
exact = torch.autograd.functional.jacobian(expected_reward, logits)
finite_difference = torch.stack([
    (expected_reward(logits + wiggle * unit) - expected_reward(logits - wiggle * unit)) / (2 * wiggle)
    for unit in torch.eye(3, dtype=torch.float64)
])
print("exact            ", exact.numpy().round(6))
print("finite difference", finite_difference.numpy().round(6))

# %% [markdown]
# Neither way works for a language model. You cannot list all completions, and you cannot differentiate a judge. You can
# only *sample* completions and have them judged. So you need the gradient of J in a form that can be sampled.
#
# ## The log-derivative trick
#
# J is a sum over all arms, and the payments $r_a$ do not depend on θ. For the probabilities use
# $\nabla \log \pi_a = \nabla \pi_a / \pi_a$, which is the chain rule:
#
# $$\nabla J = \sum_a r_a \nabla \pi_a = \sum_a \pi_a \; r_a \nabla \log \pi_a$$
#
# $$= \mathrm{E}_{a \sim \pi} [\, r_a \nabla \log \pi_a \,]$$
#
# The last form is an average over arms *drawn from the policy*. So pull arms, multiply each reward by the gradient of
# the log-probability of the arm that you pulled, and take the mean. That is **REINFORCE** (Williams, 1992). The reward
# enters as a number. Nothing is differentiated except the policy's own log-probability.
#
# Check it: the table has $r_a \nabla \log \pi_a$ for each arm. A single pull gives you one of these rows, and none of
# them is the gradient. Their average, weighted by the policy, is exactly it.

# %%
import pandas as pd

gradients_of_logps = torch.autograd.functional.jacobian(lambda logits: logits.log_softmax(-1), logits)  # (arm, logit)
rows = payments[:, None] * gradients_of_logps
table = pd.DataFrame(rows.numpy(), index=["pulled arm 0", "pulled arm 1", "pulled arm 2"],
                     columns=["logit 0", "logit 1", "logit 2"])
table.loc["average over the policy"] = (logits.softmax(-1) @ rows).numpy()
table.loc["exact gradient"] = exact.numpy()
table.round(4)

# %% [markdown]
# ## Exercise 1: REINFORCE by hand
#
# *Difficulty: medium · importance: high · about 15 minutes*
#
# Write the estimate of each pull, without autograd. Take a pencil first: what is the derivative of $\log \pi_a$ by the
# logit of the arm that was pulled, and what is it by the logit of another arm? The table above can confirm your answer.
#
# `actions` holds the numbers of the N pulled arms, `rewards` what they paid. Return one row per pull, shape (N, V) for
# V arms. By hand: with two equally likely arms, a pull of arm 0 that pays 4 gives the row (2, −2).

# %%
def gradient_estimates(logits: torch.Tensor, actions: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """Return the (N, V) estimates of the gradient of the expected reward, from (V,) logits and N pulls."""
    # YOUR CODE HERE
    # >>> solution
    pulled = torch.nn.functional.one_hot(actions, len(logits))
    return rewards[:, None] * (pulled - logits.softmax(-1))
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. $\log \pi_a = \theta_a - \log \sum_k e^{\theta_k}$. The first part depends on one logit only. The derivative of the
#    second part by $\theta_k$ is a number that you know well.
# 2. The gradient of $\log \pi_a$ is (a 1 at the pulled arm, 0 elsewhere) minus the probabilities.
#    `torch.nn.functional.one_hot` makes the first part, for all pulls at once.

# %%
from lab_utils.teaching import checks

checks.check_gradient_estimates(gradient_estimates)

# %% [markdown]
# Now pull 10,000 times. You will see the mean of the estimates with its 95% interval, next to the exact gradient. The
# intervals should hold the exact values, nearly always. (1.96 standard errors: a standard error is the standard
# deviation divided by the root of the number of pulls.)

# %%
generator = torch.Generator().manual_seed(SEED)


def pull(logits, number):
    """Draw arms from the policy."""
    return torch.multinomial(logits.softmax(-1), number, replacement=True, generator=generator)


actions = pull(logits, 10_000)
estimates = gradient_estimates(logits, actions, payments[actions])
half_width = 1.96 * estimates.std(0) / len(estimates) ** 0.5
pd.DataFrame({"exact": exact.numpy(), "mean of the estimates": estimates.mean(0).numpy(),
              "± (95%)": half_width.numpy(), "standard deviation of one": estimates.std(0).numpy()}).round(4)

# %% [markdown]
# It works, but look at the last column. A single estimate is wrong by far more than the gradient is large. With few
# samples per step, the *direction* of a step is mostly chance.
#
# ## A baseline
#
# Every arm pays something, so every pull says "more of this", also a pull of the worst arm. It would be better to ask
# whether a pull paid more than *expected*. Subtract a number b, the **baseline**, from every reward. What is left is
# the **advantage**. Does that spoil the average? Three lines, where b is any number that does not depend on the arm
# that was drawn:
#
# $$\mathrm{E}_{a \sim \pi} [\, b \, \nabla \log \pi_a \,] = b \sum_a \pi_a \nabla \log \pi_a$$
#
# $$= b \sum_a \nabla \pi_a = b \, \nabla \sum_a \pi_a$$
#
# $$= b \, \nabla 1 = 0$$
#
# Probabilities always add up to 1. What pushes one arm up pushes the others down by as much. So a baseline adds zero on
# average: the estimate stays **unbiased**. It does change the **variance**. Guess before you run the cell: which of the
# four baselines is best, and which one is worse than none? (The spread is the standard deviation of one estimate, over
# all three logits.)

# %%
rows = {}
actions = pull(logits, 100_000)
for b in (0.0, 1.9, 4.0, 10.0):
    estimates = gradient_estimates(logits, actions, payments[actions] - b)
    half_width = 1.96 * estimates.std(0) / len(actions) ** 0.5
    rows[f"b = {b}"] = {f"logit {k}": f"{estimates[:, k].mean():+.3f} ± {half_width[k]:.3f}" for k in range(3)}
    rows[f"b = {b}"]["spread"] = f"{estimates.var(0).sum().sqrt():.2f}"
rows["exact"] = {f"logit {k}": f"{exact[k]:+.3f}" for k in range(3)} | {"spread": ""}
pd.DataFrame(rows).T

# %% [markdown]
# All four baselines have the right mean, within their intervals. The spread is another matter, and in a real run each
# pull costs a completion. The variance is a parabola in b. Its lowest point is near the expected reward, 1.9, but not
# exactly there: it is the mean of the rewards weighted by $|\nabla \log \pi_a|^2$, here 2.33. The expected reward is
# what everybody uses, because it is easy to estimate.
#
# The figure has 5,000 gradient estimates per baseline, each the mean of 10 pulls. It shows how far each goes along the
# true direction. You will see three heaps around the same dashed line. An estimate left of 0 points away from the true
# gradient: a step along it would *lower* the expected reward.
# (The gaps are there because ten pulls of three arms have few possible results.)

# %%
from pathlib import Path

import matplotlib.pyplot as plt

from lab_utils.figures import INK, OTHER_COLORS

figures = Path(OUTPUT_DIR) / "figures"
figures.mkdir(parents=True, exist_ok=True)
repeats, pulls = 5_000, 10
figure, axes = plt.subplots(3, 1, figsize=(10, 8.4), sharex=True)
for ax, b, color in zip(axes, (0.0, 1.9, 10.0), OTHER_COLORS, strict=False):
    actions = pull(logits, repeats * pulls)
    estimates = gradient_estimates(logits, actions, payments[actions] - b).view(repeats, pulls, 3).mean(1)
    along = estimates @ exact / exact.norm()
    wrong = (along < 0).double().mean().item()
    margin = max(1.96 * (wrong * (1 - wrong) / repeats) ** 0.5, 3 / repeats)  # the rule of three, if none is wrong
    ax.hist(along.numpy(), bins=40, color=color)
    ax.axvline(exact.norm().item(), color=INK, linestyle="--", linewidth=2)
    ax.set(title=f"baseline {b}: {wrong:.1%} ± {margin:.1%} point away from the gradient", ylabel="estimates")
axes[-1].set_xlabel("estimate along the true direction (mean of 10 pulls; dashed: the exact gradient)")
figure.savefig(figures / "04_baseline_and_variance.png")

# %% [markdown]
# ## A language model of one token
#
# Now the arms become tokens. A prompt is a sum, the vocabulary is the ten digits, and a completion is one token. The
# "model" is a table: ten logits for each of four prompts. At the start it solves the first sum nine times in ten and
# the last one once in fifty. The reward is 1 for the correct digit. To each reward comes 3 for the format, which a
# single digit always has. (In real runs, too, much of the reward is often the same for all completions.)

# %%
prompts, answers = ["2 + 3 =", "4 + 4 =", "1 + 8 =", "5 + 2 ="], torch.tensor([5, 8, 9, 7])
chances = torch.tensor([0.9, 0.5, 0.1, 0.02], dtype=torch.float64)  # of the correct digit, at the start
model = torch.zeros(4, 10, dtype=torch.float64)  # (prompts, vocabulary): the logits
model[range(4), answers] = (9 * chances / (1 - chances)).log()
FORMAT = 3.0


def sample_group(prompt, size):
    """Return (size,) completions of one prompt, one token each, and their rewards."""
    tokens = pull(model[prompt], size)
    return tokens, FORMAT + (tokens == answers[prompt]).double()


for prompt, text in enumerate(prompts):
    tokens, rewards = sample_group(prompt, 8)
    print(f"{text} {answers[prompt]}  (probability {model[prompt].softmax(-1)[answers[prompt]]:.2f})  sampled:",
          *tokens.tolist(), " rewards:", *map(int, rewards))

# %% [markdown]
# Which baseline? One number for all prompts will not do. The expected reward is 3.9 for the first prompt and 3.02 for
# the last one. PPO trains a second model, the *critic*, to predict the expected reward of each prompt (notebook 10).
# GRPO has a simpler idea: sample a **group** of completions of the same prompt, and take the **group's mean**.
#
# $$A_i = r_i - \mathrm{mean}(r)$$
#
# That is GRPO's advantage, apart from a division to which we will come. But look again at the proof. The baseline must
# not depend on the completion that was drawn, and the group's mean contains $r_i$ itself. So the clean baseline is
# another one: the mean of the *other* completions of the group, **leave-one-out**.
#
# ## Exercise 2: leave one out
#
# *Difficulty: medium · importance: high · about 10 minutes*
#
# A batch holds several groups, one after the other. Return each reward minus the mean of the *others* in its group, for
# all groups at once. By hand: the group 1, 0, 0, 0 gives 1, −1/3, −1/3, −1/3.

# %%
def leave_one_out(rewards: torch.Tensor, num_generations: int) -> torch.Tensor:
    """Return (B,) advantages for (B,) rewards, whole groups of `num_generations` one after the other."""
    # YOUR CODE HERE
    # >>> solution
    groups = rewards.view(-1, num_generations)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (num_generations - 1)
    return (groups - others).view(-1)
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. `rewards.view(-1, num_generations)` has one row per group. You do not need a loop over the completions: what is the
#    sum of the others, if you know the sum of all?
# 2. The mean of the others is (sum of the group − own reward) / (num_generations − 1).

# %%
checks.check_leave_one_out(leave_one_out)

# %% [markdown]
# How wrong is the group's own mean, then? With n completions, multiply out:
#
# $$r_i - \mathrm{mean}(r) = \frac{n - 1}{n} \, (r_i - \mathrm{mean\ of\ the\ others})$$
#
# Not approximately, but for every single completion. So the estimate with the group's own mean is the unbiased one,
# made smaller by (n − 1)/n. The *direction* is the same; only the size of the step differs, by 1/8 for a group of 8.
# You could raise the learning rate by as much, and Adam hardly notices a constant factor at all. The figure measures it
# with 40,000 groups per size, on the prompt that is solved half of the time. You will see the own mean on the line
# (n − 1)/n and leave-one-out on 1.

# %%
def relative_estimate(advantages, tokens, size):
    """Return the mean estimate over all groups, divided by the exact gradient, and half its 95% interval."""
    exact = chances[1] * (1 - chances[1])  # of the expected reward by the correct digit's logit
    by_group = gradient_estimates(model[1], tokens, advantages)[:, answers[1]].view(-1, size).mean(1) / exact
    return by_group.mean().item(), 1.96 * by_group.std().item() / len(by_group) ** 0.5


points = []
for size in (2, 3, 4, 6, 8, 12, 16):
    tokens, rewards = sample_group(1, 40_000 * size)
    groups = rewards.view(-1, size)
    own_mean = (groups - groups.mean(dim=1, keepdim=True)).view(-1)
    for name, advantages in (("own mean", own_mean), ("leave-one-out", leave_one_out(rewards, size))):
        points.append([name, size, *relative_estimate(advantages, tokens, size)])
points = pd.DataFrame(points, columns=["baseline", "size", "mean", "half width"])

# %%
figure, ax = plt.subplots(figsize=(10, 5))
for (name, rows), color in zip(points.groupby("baseline", sort=False), OTHER_COLORS, strict=False):
    line = (rows["size"] - 1) / rows["size"] if name == "own mean" else rows["size"] ** 0
    ax.plot(rows["size"], line, color=color, linewidth=1.5)
    ax.errorbar(rows["size"], rows["mean"], rows["half width"], color=color, fmt="o", capsize=4)
    ax.text(1.02, line.iloc[-1], name, color=color, va="center", fontweight="bold", transform=ax.get_yaxis_transform())
ax.set(title="The group's own mean shrinks the gradient by (n − 1)/n", ylim=(0, 1.15),
       xlabel="completions in a group, n", ylabel="mean estimate / exact gradient\n(40,000 groups, 95% intervals)")
figure.savefig(figures / "04_own_mean_and_leave_one_out.png")

# %% [markdown]
# ## What the division by the standard deviation does
#
# GRPO also divides each group's advantages by the group's standard deviation (notebook 05). That is *not* a constant
# factor: it differs from prompt to prompt. For a reward of 0 or 1 and a prompt that is solved with probability p, the
# exact gradient by the correct logit is p (1 − p), and the standard deviation is about $\sqrt{p (1 - p)}$. So prompts
# that are nearly always or nearly never solved gain weight. You will see the mean estimates of 40,000 groups of 16.
# Compare the first two rows: unscaled, the second prompt counts almost three times as much as the first one; divided by
# the standard deviation, less than twice as much.

# %%
rows = {}
for prompt, text in enumerate(prompts):
    tokens, rewards = sample_group(prompt, 40_000 * 16)
    groups = rewards.view(-1, 16)
    centered = groups - groups.mean(dim=1, keepdim=True)
    scaled = centered / (groups.std(dim=1, keepdim=True) + 1e-4)
    terms = [gradient_estimates(model[prompt], tokens, a.view(-1))[:, answers[prompt]] for a in (centered, scaled)]
    rows[text] = {"solved": chances[prompt].item(), "minus the mean": terms[0].mean().item(),
                  "and divided by the standard deviation": terms[1].mean().item()}
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# The division is a choice, not a correction: the scaled step no longer follows the gradient of the mean reward. Dr.
# GRPO ([arXiv 2503.20783](https://arxiv.org/abs/2503.20783)) leaves it out. Both are in use.
#
# ## Learn
#
# In code you do not write the gradient. You write a number whose gradient it is, and let autograd work:
#
# $$\mathrm{loss} = -\,\mathrm{mean}_i \; A_i \log \pi(a_i)$$
#
# Minus, because optimizers minimize. $A_i$ is a plain number: no gradient flows through it. You will see that the
# gradient of this loss is minus the mean of your estimates. The *value* of the loss says nothing about how good the
# policy is.

# %%
tokens, rewards = sample_group(1, 8)
logits_of_prompt = model[1].clone().requires_grad_()
loss = -(leave_one_out(rewards, 8) * logits_of_prompt.log_softmax(-1)[tokens]).mean()
loss.backward()
yours = gradient_estimates(model[1], tokens, leave_one_out(rewards, 8)).mean(0)
print(f"loss {loss.item():.4f}, largest difference of the gradients {(logits_of_prompt.grad + yours).abs().max():.1e}")

# %% [markdown]
# Now train the table on all four prompts, with groups of 8. The cell does it 50 times at once, with other samples each
# time, without a baseline and with both group baselines.

# %%
def train(advantages_of, runs=50, steps=60, size=8, learning_rate=1.0):
    """Return the (steps, runs) expected accuracies of independent runs; `advantages_of` takes (..., size) rewards."""
    logits, correct = model.repeat(runs, 1, 1).requires_grad_(), []
    for _ in range(steps):
        logps = logits.log_softmax(-1)  # (runs, prompts, vocabulary)
        correct.append(logps.detach()[:, range(4), answers].exp().mean(1))
        tokens = pull(logps.detach().view(-1, 10), size).view(runs, 4, size)
        rewards = FORMAT + (tokens == answers[:, None]).double()
        loss = -(advantages_of(rewards) * logps.gather(-1, tokens)).mean(-1).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - learning_rate * gradient).detach().requires_grad_()
    return torch.stack(correct)


curves = {
    "no baseline": train(lambda rewards: rewards),
    "own mean": train(lambda rewards: rewards - rewards.mean(-1, keepdim=True)),
    "leave-one-out": train(lambda rewards: leave_one_out(rewards.view(-1), 8).view(rewards.shape)),
}

# %% [markdown]
# You will see one thin line per run, and the mean of all 50.

# %%
figure, axes = plt.subplots(1, 3, figsize=(15, 4.8), sharey=True)
for ax, (name, curve), color in zip(axes, curves.items(), [OTHER_COLORS[2], *OTHER_COLORS], strict=False):
    last, margin = curve[-1].mean().item(), 1.96 * curve[-1].std().item() / curve.shape[1] ** 0.5
    ax.plot(curve, color=color, linewidth=0.7, alpha=0.5)
    ax.plot(curve.mean(1), color=color)
    ax.set(title=f"{name}: {last:.0%} ± {margin:.0%}", xlabel="training step", ylim=(0, 1))
axes[0].set_ylabel("expected accuracy of four prompts")
figure.suptitle("The same samples per step (in the titles: the last step, mean of 50 runs, 95% interval)", fontsize=14)
figure.savefig(figures / "04_learning_curves.png")

# %% [markdown]
# ## What you should see, and what it means if you don't

# %%
from lab_utils.config import load
from lab_utils.teaching.inspection import expect

config = load(RECIPE, HARDWARE)
at_8 = points[points["size"] == 8].set_index("baseline")["mean"]
expect(config, "with the own mean and n = 8, the gradient has 7/8 of its size", abs(at_8["own mean"] - 7 / 8) < 0.02)
expect(config, "with leave-one-out, all of it", abs(at_8["leave-one-out"] - 1) < 0.02)
expect(config, "runs with a baseline end higher",
       curves["own mean"][-1].mean() > curves["no baseline"][-1].mean() + 0.05)

# %% [markdown]
# - The means in the tables lie far outside their intervals: an estimate is biased. Look at the sign, and at whether
#   something multiplies by the probabilities although the samples already come from them.
# - The plateaus of single runs, near 0.5 and 0.75, are two and three solved prompts of four. The last prompt is found
#   late, because its correct token is hardly ever sampled. Leave-one-out is ahead of the own mean, because its steps
#   are 8/7 as long.
# - Without a baseline the runs scatter, and many stay at two solved prompts. Every sampled token is pushed up, also a
#   wrong one. A policy that is unlucky early makes wrong tokens likely, and then it hardly samples the correct one.
# - The runs without a baseline do as well: is FORMAT 0? Then only correct tokens are pushed up, and the push is right.
#   A reward that is 0 for everything unwanted needs a baseline least. Try it.
#
# ## Summary
#
# - $\nabla J = \mathrm{E}[\, r \, \nabla \log \pi \,]$: sample, judge, and raise the log-probability of what you
#   sampled in proportion to its reward. The judge is never differentiated.
# - A baseline that does not depend on the sample adds zero on average. It decides how many samples a step needs.
# - A group's own mean shrinks the gradient by (n − 1)/n; the mean of the others does not. The direction is the same.
# - GRPO's division by the standard deviation changes how much each prompt counts.
#
# ## Questions
# Think first. The answers are in [ANSWERS.md](ANSWERS.md).
#
# 1. All eight completions of a prompt are wrong. What does the group contribute with the group's mean as the baseline,
#    and what without a baseline, if every reward also contains 3 for the format?
# 2. The proof needs a baseline that does not depend on the drawn arm. May it depend on the prompt? On the other
#    completions of the group? On the policy's own probabilities?
# 3. A group of 2 with the own mean has half of the gradient. Why not double the advantages, and what would you gain?
#
# Next: [05 · GRPO from scratch](05_grpo_from_scratch.ipynb), where a completion has many tokens.
