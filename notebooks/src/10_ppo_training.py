# %% [markdown]
# # 10 · PPO training
#
# <!-- badges -->
#
# > **You will learn** to compute generalized advantages by hand; what a critic is and whether yours is any good; to
# > train with PPO and see what the critic expects token by token.
# >
# > **Time** 3 minutes on a CPU; on a GPU, by `scripts/estimate.py`, 3 to 19 minutes (H200) or 0.4 to 2.6 hours (T4) ·
# > **Needs** notebook 03 in the same OUTPUT_DIR (if its model is missing, it is trained here)

# %% tags=["setup"]
# The builder writes this cell: notebooks/src/setup_cell.py.

# %% tags=["parameters"]
RECIPE = "countdown-ppo"
HARDWARE = "cpu"  # or "auto", or one of the GPU tiers
OUTPUT_DIR = "outputs"
SEED = 0

# %%
from pathlib import Path

from lab_utils.config import load
from lab_utils.machine.gpu import check_machine
from lab_utils.models import load_model, load_tokenizer
from lab_utils.runs import RunDirectory
from lab_utils.tasks import load_task
from lab_utils.training import ppo
from lab_utils.training.stages import start_model

config = load(RECIPE, HARDWARE, {"seed": SEED})
check_machine(config)
task = load_task(config.task.name, config.task.response_format)
runs = Path(OUTPUT_DIR) / task.name
figures = Path(OUTPUT_DIR) / "figures"
start = start_model(config, runs, "ppo")  # tier cpu: notebook 03's model, trained now if it is missing
print(f"Task {task.name}, tier {config.hardware} ({config.hardware_reason}), start: {start}")

# %% [markdown]
# ## From one advantage per completion to one per token
#
# GRPO compares whole completions. If a completion is better than its group, *every* token of it is reinforced, the
# lucky ones and the clumsy ones alike. PPO asks where things went well. It trains a second network, the **critic**, to
# predict before each token the **return** that is still to come. A token was good if the prediction rises after it,
# and bad if the prediction falls. That needs no group: each completion is compared with the critic's prediction.
#
# Here the critic is a single linear layer. Its input is hidden states that the policy computes anyway: the one before
# the token, and the mean over the completion so far, as a memory of what was found on the way. The critic starts at
# zero: before training it expects nothing, whatever it reads.
#
# ## Five tokens by hand
#
# A completion of five tokens earns 1 at its end. The critic's values before each token are made up here. The
# **surprise** of a token is its reward, plus the value after it, minus the value before it:
#
# $$\delta_t = r_t + \gamma V_{t+1} - V_t$$
#
# Follow one row by hand. The token `no` lowers the value, so its surprise is negative, although the completion turns
# out to be correct. γ (gamma) discounts what comes later: a reward *n* tokens away counts γⁿ. For language models γ is
# usually 1, as here, because the one reward at the end should count fully at the first token.

# %%
import pandas as pd

tokens = ["7*6=42", "no", "7+6=13", "yes", "<end>"]
rewards = [0.0, 0.0, 0.0, 0.0, 1.0]
values = [0.3, 0.4, 0.2, 0.5, 0.9]
next_values = [*values[1:], 0.0]  # nothing comes after the end
example = pd.DataFrame({"token": tokens, "reward": rewards, "value before": values, "value after": next_values})
example["surprise"] = (example["reward"] + example["value after"] - example["value before"]).round(2)
example

# %% [markdown]
# **Generalized advantage estimation** (GAE) adds up the surprises that follow. Each further one counts less, by γλ:
#
# $$A_t = \delta_t + \gamma \lambda A_{t+1}$$
#
# With λ = 0 a token is judged by its own surprise alone. That is precise if the critic is right, and meaningless if it
# is not. With λ = 1 a token is judged by the actual outcome minus the expected one. That works with a poor critic, but
# a token also gets credit for the luck of all later tokens. Values near 1 are usual.
#
# ## Exercise: GAE
#
# *Difficulty: medium · importance: high · spend up to 15 minutes*
#
# Return one advantage per token. After the last token both the value and the advantage are 0. It is easiest to go from
# the last token to the first.

# %%
def gae(rewards, values, gamma, lam):
    """Return the advantages of one completion's tokens: A_t = delta_t + gamma * lam * A_{t+1}."""
    # YOUR CODE HERE
    # >>> solution
    advantages = []
    next_value = next_advantage = 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        delta = reward + gamma * next_value - value
        next_advantage = delta + gamma * lam * next_advantage
        next_value = value
        advantages.append(next_advantage)
    return advantages[::-1]
    # <<< solution


# %%
from lab_utils.teaching import checks

checks.check_gae(gae)

# %% [markdown]
# Here is your function on the five tokens, for three values of λ, next to the trainer's own
# (`generalized_advantages`). The last line is a bridge to GRPO. Let the critic predict the same for every token: the
# mean of the group. Then λ = 1 gives each token the reward minus the group's mean. That is GRPO's advantage before it
# is divided by the spread.

# %%
import torch

from lab_utils.training.ppo import generalized_advantages

table = pd.DataFrame({f"λ = {lam}": gae(rewards, values, 1.0, lam) for lam in (0.0, 0.95, 1.0)}, index=tokens)
ours, _ = generalized_advantages(torch.tensor([rewards]), torch.tensor([values]), torch.ones(1, 5), gamma=1.0, lam=0.95)
print(table.round(3), "\n")
print(f"largest difference from the trainer's at λ = 0.95: {abs(table['λ = 0.95'] - ours[0].numpy()).max():.1e}")
print("group mean 0.25 as value, λ = 1:", gae(rewards, [0.25] * 5, 1.0, 1.0))

# %% [markdown]
# ## What else PPO needs
#
# PPO updates the policy as GRPO does, by the clipped ratio, with two differences. First, the advantages of the whole
# rollout are shifted and scaled to mean 0 and variance 1 (*whitening*), so that the size of a step does not depend on
# the size of the rewards. Second, the KL penalty, if there is one, is not part of the loss. It is subtracted from the
# reward of each token, so that the critic sees it too. Alongside the policy, the critic learns to predict the returns,
# by a squared error that is clipped like the ratio. A **rollout** is all completions sampled at one time. It may serve
# several passes (`num_iterations`) in mini-batches. The sizes must fit together:

# %%
settings = config.ppo
updates = settings.num_iterations * settings.steps_per_generation // settings.gradient_accumulation_steps
print(f"rollout:        {settings.rollout_size} completions, {settings.num_generations} per problem")
print(f"its updates:    {settings.num_iterations} passes × {settings.steps_per_generation} mini-batches of "
      f"{settings.per_device_train_batch_size} / {settings.gradient_accumulation_steps} per update = {updates}")
print(f"learning rates: policy {settings.learning_rate:g}, critic {settings.critic_learning_rate:g}")
print(f"γ = {settings.gamma:g}, λ = {settings.lam:g}, clip ±{settings.epsilon:g}, KL coefficient {settings.beta:g}")

# %% [markdown]
# The critic has its own learning rate. It starts from zero and has far more to learn than the policy, which can
# already write. With the policy's learning rate the critic hardly moves, and PPO's advantages stay as noisy as the
# rewards themselves.
#
# ## The real run
#
# On tier `cpu` the start, the problems and the rewards are those of notebook 06. On a GPU tier this recipe trains
# another, smaller model without a warm-up, so its curve cannot be compared with notebook 06's. Guess first: will PPO
# be faster than GRPO?

# %%
run = ppo.train(config, runs / "ppo", model=start, resume=True)
metrics = run.metrics()
print(f"{metrics['step'].max()} steps in {metrics['seconds'].max() / 60:.1f} minutes; the model is in {run.model_dir}")

# %%
from lab_utils.figures import plot_training

plot_training({"PPO": run}, figures / "10_training.png")

# %% [markdown]
# ## Has the critic learned anything?
#
# **Explained variance** is the share of the differences between returns that the critic predicted. 1 is perfect, 0 is
# no better than always predicting the mean, and below 0 is worse than that. Ask which returns are meant. By custom
# they are the critic's own training targets, made by GAE with the λ above. At every token these targets contain the
# critic's own later predictions, so they are easier to predict than actual returns (λ = 1). The second panel shows the
# share for actual returns, which are the stricter test. It can never come near 1, because sampling is partly luck.

# %%
shown = ("explained_variance", "explained_variance/lambda_1", "value_loss", "entropy")
plot_training({"PPO": run}, figures / "10_critic.png", metrics=shown)

# %% [markdown]
# ## What it expects, token by token
#
# The cell takes test problems, samples responses from the trained model, and asks the critic before each token what it
# expects. The grey line is the critic before training. The cell picks the first correct and the first wrong response
# that have at least two attempts and are short enough to draw.

# %%
from lab_utils.sampling.local import sample

model, tokenizer = load_model(run.model_dir, config.model), load_tokenizer(run.model_dir)
rows = task.dataset("test", limit=min(64, config.task.test_limit or 64), source=config.task.source)
longest = settings.max_completion_length
responses = [one[0] for one in sample(model, tokenizer, rows["prompt"], seed=SEED, max_new_tokens=longest)]
correct = [task.is_correct(response.text, row) for response, row in zip(responses, rows, strict=True)]
drawable = [task.attempts(response.text) > 1 and len(response.token_ids) <= 60 for response in responses]
candidates = {wanted: [i for i, c in enumerate(correct) if c == wanted and drawable[i]] for wanted in (True, False)}
chosen = [(found or [0])[0] for found in candidates.values()]  # an untrained model may have none: then the first one

# %%
from lab_utils.figures import plot_token_values

untrained = ppo.Critic(model.config.hidden_size).to(model.device)
critics = {"before training": untrained, "after training": ppo.load_critic(run.model_dir, model)}
prompts = tokenizer.apply_chat_template(list(rows["prompt"]), add_generation_prompt=True, return_dict=True)["input_ids"]


def expectations(critic, i):
    return ppo.token_values(model, critic, prompts[i], responses[i].token_ids).tolist()


plot_token_values(
    [[tokenizer.decode([token]) for token in responses[i].token_ids] for i in chosen],
    {label: [expectations(critic, i) for i in chosen] for label, critic in critics.items()},
    [f"A {'correct' if correct[i] else 'wrong'} response, gold {task.gold(rows[i])}" for i in chosen],
    figures / "10_values.png",
)

# %% [markdown]
# Two responses can mislead. Look at all of them: what does the critic expect right after the model has written `yes`,
# after `no`, and before anything is written?

# %%
from lab_utils.teaching.inspection import expect

after = {"yes": [], "no": [], "start": []}
for i, response in enumerate(responses):
    expected = expectations(critics["after training"], i)
    words = ["start", *(tokenizer.decode([token]).strip() for token in response.token_ids)]
    for word, value in zip(words, expected, strict=False):  # the value after a word is the one before the next
        if word in after:
            after[word].append(value)
means = {word: sum(found) / len(found) if found else float("nan") for word, found in after.items()}
for word, mean in means.items():
    print(f"after {word!r}: {mean:.2f} (mean of {len(after[word])})")
print(f"mean reward if every correct answer earned 1: {sum(correct) / len(correct):.2f}")
if task.name == "countdown":
    expect(config, "after 'yes' the critic expects more than at the start", means["yes"] > means["start"])
    expect(config, "after 'no' it expects less than after 'yes'", means["no"] < means["yes"])
explained = metrics["explained_variance"].dropna().tail(5).mean()  # of the last five rollouts
expect(config, f"explained variance ends above 0.3 ({explained:.2f})", explained > 0.3)

# %% [markdown]
# ## What you should see, and what it means if you don't
#
# The explained variance starts at zero and rises within the first rollouts. On average the critic expects most after
# `yes` and least after `no`: it has learned to read the checks. Even after a `no` it still expects something from the
# next attempt. In a single response its line is noisy, and falls slowly during a long search. The critic knows only
# the text so far, so at the first token it can only judge how hard the problem is.
#
# - Explained variance stays near zero: the critic's learning rate is too low, or its hidden states hold no trace of
#   what decides the outcome.
# - It starts high and falls: the policy changes faster than the critic can follow. Give the critic more epochs, or the
#   policy a lower learning rate.
# - Accuracy rises although the critic is poor: with λ near 1 the reward does the work, and the critic only reduces
#   noise.

# %% [markdown]
# ## GRPO and PPO, from the same start
#
# If you have run notebook 06 in this folder, the figure also shows its curve.

# %%
methods = {"PPO": run}
other = RunDirectory(runs / "grpo")
if other.metrics_path.is_file() and other.config().model.name == config.model.name:
    methods = {"GRPO": other, **methods}
else:
    print("No run of notebook 06 with this model is in this folder, so the figure shows PPO alone.")
plot_training(methods, figures / "10_grpo_and_ppo.png", x="minutes")

# %% [markdown]
# Be careful with your conclusion. This is one seed of each method, with hyperparameters chosen for this task, on a
# model so small that generating is cheap. Two settings favor PPO here: it makes eight updates per rollout and GRPO
# one, and it pays no KL penalty, while GRPO does (`beta` = 0.1). Notebook 08 says more. The critic costs little here
# because it shares the policy's forward pass. A critic with a model of its own doubles the memory.
# `scripts/measure_learning.py` repeats both methods with several seeds.
#
# ## Summary
#
# - A critic predicts the return before each token. GAE turns its surprises into one advantage per token.
# - λ trades the critic's errors (small λ) against the noise of actual returns (large λ).
# - Explained variance tells whether the critic is useful. The critic needs its own learning rate.
# - GRPO replaces the critic by the mean of a group. PPO needs no group.
#
# ## Questions
#
# 1. Imagine a perfect critic of a deterministic world. What are all advantages with λ = 0, and why is there then
#    nothing to learn?
# 2. `num_generations` is still set above. What is it good for in PPO, if no group is compared?
# 3. Where along a completion does the critic know the outcome? What would it need to know it earlier?
#
# Next: [11 · SageMaker training](11_sagemaker_training.ipynb) runs a recipe as a job in the cloud.
