# %% [markdown]
# # 10 · PPO training
#
# <!-- badges -->
#
# > **You will learn** to compute generalized advantages by hand; what a critic is and whether yours is any good; to
# > train with PPO; to compare it with GRPO without claiming more than the runs show.
# >
# > **Time** the machine: 2 minutes on a CPU; on a GPU, by `scripts/estimate.py`, 3 to 19 minutes (H200) or 0.4 to 2.6
# > hours (T4) · you: 60 minutes · **Needs** notebook 03 in the same OUTPUT_DIR (if its model is missing, it is trained
# > here); 06 and 08 for the comparison with GRPO

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
task = load_task(config.task)
runs = Path(OUTPUT_DIR) / task.name
figures = Path(OUTPUT_DIR) / "figures"
start = start_model(config, runs, "ppo")  # tier cpu: notebook 03's model, trained now if it is missing
print(f"Task {task.name}, tier {config.hardware} ({config.hardware_reason}), start: {start}")

# %% [markdown]
# ## From one advantage per completion to one per token
#
# GRPO compares whole completions. If a completion is better than its group, *every* token of it is reinforced, the
# three failed attempts as much as the one that succeeded. PPO asks where things went well. It trains a second network,
# the **critic**, to predict before each token the **return** that is still to come. A token was good if the prediction
# rises after it, and bad if the prediction falls. That needs no group: each completion is compared with the critic's
# prediction.
#
# Here the critic is a single linear layer. Its input is hidden states that the policy computes anyway: the one before
# the token, and the mean over the completion so far, as a memory of what was found on the way. The critic starts at
# zero: before training it expects nothing, whatever it reads.
#
# ## Five tokens by hand
#
# A completion of five tokens earns 1 at its end. The critic's values before each token are made up here. The
# **surprise** of a token (its *temporal-difference error*) is its reward, plus the value after it, minus the value
# before it:
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
# ## Exercise 1: GAE
#
# *Difficulty: medium · importance: high · about 15 minutes*
#
# Return one advantage per token. After the last token both the value and the advantage are 0. By hand, for the last two
# tokens of the table with γ = λ = 1: A(`<end>`) = 0.1, and A(`yes`) = 0.4 + 0.1 = 0.5.

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


# %% [markdown] tags=["hints"]
# 1. A token's advantage needs the next token's. So where do you begin? What stands for the value and the advantage
#    after the last token?
# 2. Go through `zip(reversed(rewards), reversed(values))` and keep two numbers, `next_value` and `next_advantage`, both
#    0 at first. Update them at each token. Turn the list round at the end.

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
# How far does a token look ahead? The surprises that follow have the weights 1, λ, λ², … They add up to 1 / (1 − λ). At
# λ = 0.95 that is 20 tokens; an attempt has about 13 here. What happens 60 tokens later counts 0.95⁶⁰ = 5%. So the
# reward at the end of a long search hardly reaches its first tokens directly. It reaches them through the *critic*: a
# later attempt makes the values rise, and rising values are surprises nearby. That is why a useless critic costs more
# with a small λ.

# %%
for lam in (0.0, 0.5, 0.95, 0.99):
    print(f"λ = {lam:<4}  sum of the weights {1 / (1 - lam):5.0f} tokens; weight of a surprise after 20 tokens "
          f"{lam**20:4.0%}, after 60 tokens {lam**60:4.0%}")

# %% [markdown]
# ## Exercise 2: a perfect critic
#
# *Difficulty: medium · importance: high · about 15 minutes*
#
# What would a *perfect* critic say about a search? Let the policy be simple. Each attempt succeeds with probability
# `p_yes`, and a success earns 1. After a failed attempt the policy gives up with probability `p_give_up` and earns 0.
# Otherwise it makes the next attempt. There is room for `attempts` of them; after the last one it must give up. Return
# the expected reward before each attempt.
#
# By hand, with both probabilities 0.5 and two attempts: before the second it expects 0.5. After the first `no` it
# expects 0.5 · 0.5 = 0.25. So before the first it expects 0.5 + 0.5 · 0.25 = 0.625.

# %%
def perfect_critic(p_yes, p_give_up, attempts):
    """Return the expected reward before each attempt of a search, the first attempt first."""
    # YOUR CODE HERE
    # >>> solution
    values, after_no = [], 0.0  # after the last attempt nothing can be won
    for _ in range(attempts):
        values.append(p_yes + (1 - p_yes) * after_no)
        after_no = (1 - p_give_up) * values[-1]
    return values[::-1]
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. As in GAE, begin at the end. What is expected before the last attempt? What after a `no` that is followed by it?
# 2. Before an attempt: `p_yes * 1 + (1 - p_yes) * after_no`. After a `no`: `(1 - p_give_up)` times the value before the
#    next attempt; 0 after the last attempt.

# %%
checks.check_perfect_critic(perfect_critic)

# %%
p_yes, p_give_up = 0.2, 0.7
before_next = perfect_critic(p_yes, p_give_up, 8)[1]  # before the second of eight attempts
after_no = (1 - p_give_up) * before_next
choices = pd.DataFrame({"probability": [p_give_up, 1 - p_give_up], "value after it": [0.0, before_next]},
                       index=["give up", "try again"])
choices["advantage, λ = 0"] = choices["value after it"] - after_no
print(f"after the first `no` the critic expects {after_no:.3f}\n")
print(choices.round(3))
print(f"\nmean over what the policy does: {(choices['probability'] * choices['advantage, λ = 0']).sum():.3f}")

# %% [markdown]
# The critic is perfect, and yet the advantages are not 0. Their *mean* over what the policy does is 0, by the meaning
# of "expected". But one choice is better than the policy's average and the other one is worse. That difference is all
# that PPO needs: make `try again` more likely. With λ = 0 and a perfect critic the surprises *are* the true advantages,
# without any noise. They are all 0 only when nothing is left to choose: each choice that the policy still makes is as
# good as the others.
#
# ## What else PPO needs
#
# PPO updates the policy as GRPO does, by the clipped ratio, with two differences. First, the advantages of the whole
# rollout are shifted and scaled to mean 0 and variance 1 (*whitening*), so that the size of a step does not depend on
# the size of the rewards. Second, the KL penalty, if there is one, is not part of the loss. It is subtracted from the
# reward of each token, so that the critic sees it too. (There it is k1 = log π − log π_ref. In a *loss* k1 would be
# useless, because its gradient is 0 on average, so GRPO takes k3. But a reward is not differentiated. Only its value
# counts, and the mean of k1 is exactly the KL.) Alongside the policy, the critic learns to predict the returns,
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
# another, smaller model without a warm-up, so its curve cannot be compared with notebook 06's. The next cell trains for
# about two minutes on two CPU cores. Guess first: will PPO learn faster than GRPO?

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
# The completions browser colors each token by the value that the critic gave just before it, during training. Move the
# slider from the first recorded step, where the critic expects nothing, to the last. Then color by advantage: which
# tokens surprised the critic?

# %%
from lab_utils.figures import browse_completions

browse_completions(run)

# %% [markdown]
# The cell takes test problems, samples responses from the trained model, and asks the critic before each token what it
# expects. The grey line is the critic before training. The cell picks the first response of each kind that has at
# least two attempts and is short enough to draw: a correct one, one that gives up, and one that is wrong in spite of
# its `yes`. (The sum or the verdict before it was wrong, or the answer was copied wrongly.)

# %%
import re

from lab_utils.sampling.local import sample

model, tokenizer = load_model(run.model_dir, config.model), load_tokenizer(run.model_dir)
rows = task.dataset("test", limit=min(64, config.task.test_limit or 64), source=config.task.source)
longest = settings.max_completion_length
responses = [one[0] for one in sample(model, tokenizer, rows["prompt"], seed=SEED, max_new_tokens=longest,
                                      temperature=settings.temperature)]
correct = [task.is_correct(response.text, row) for response, row in zip(responses, rows, strict=True)]


def kind(text, right):
    verdict = re.search(r"\b(yes|no)\s*</think>", text)
    ends = {"yes": "wrong in spite of its yes", "no": "wrong, gives up"}
    return "correct" if right else ends.get(verdict and verdict[1], "wrong")


chosen = {}
for i, (response, right) in enumerate(zip(responses, correct, strict=True)):
    if task.attempts(response.text) > 1 and len(response.token_ids) <= 60:
        chosen.setdefault(kind(response.text, right), i)
chosen = chosen or {"the first one": 0}  # an untrained model may have none that can be drawn

# %%
from lab_utils.figures import plot_token_values

untrained = ppo.Critic(model.config.hidden_size).to(model.device)
critics = {"before training": untrained, "after training": ppo.load_critic(run.model_dir, model)}
prompts = tokenizer.apply_chat_template(list(rows["prompt"]), add_generation_prompt=True, return_dict=True)["input_ids"]


def expectations(critic, i):
    return ppo.token_values(model, critic, prompts[i], responses[i].token_ids).tolist()


plot_token_values(
    [[tokenizer.decode([token]) for token in responses[i].token_ids] for i in chosen.values()],
    {label: [expectations(critic, i) for i in chosen.values()] for label, critic in critics.items()},
    [f"{what} (gold {task.gold(rows[i])})" for what, i in chosen.items()],
    figures / "10_values.png",
)

# %% [markdown]
# Look for the place where a response gives up: `</think>` after a `no`. From there on the outcome is decided. Does the
# line fall to the 0.1 of the format? If it stays far above, the critic is useful and still far from perfect. Does it
# rise after a false `yes` as after a true one? Then the critic reads the verdict and checks it no better than the
# policy does.
#
# Three responses can mislead. So take all attempts of all these responses, each compared with *itself*: what did the
# critic expect after the attempt's verdict, minus what it expected when the attempt began?

# %%
changes, starts = {"yes": [], "no": []}, []
for i, response in enumerate(responses):
    expected, began = expectations(critics["after training"], i), 0
    starts.append(expected[0])
    words = [tokenizer.decode([token]).strip() for token in response.token_ids]
    for t, word in enumerate(words[:-1]):
        if word in changes:  # the value after a word is the one before the next word
            changes[word].append(expected[t + 1] - expected[began])
            began = t + 1
for word, found in changes.items():
    rose = sum(change > 0 for change in found) / max(1, len(found))
    print(f"after {word!r} the expectation rises in {rose:4.0%} of {len(found)} attempts")
print(f"at the start it is {sum(starts) / len(starts):.2f} on average; {sum(correct) / len(correct):.2f} of these "
      f"{len(correct)} responses are correct")

# %%
from lab_utils.figures import plot_value_changes

plot_value_changes(changes, figures / "10_value_changes.png")

# %%
from lab_utils.teaching.inspection import expect

mean_change = {word: sum(found) / max(1, len(found)) for word, found in changes.items()}
if task.name == "countdown":
    expect(config, "after 'yes' the critic expects more than when the attempt began", mean_change["yes"] > 0)
    expect(config, "after 'no' it expects less than when the attempt began", mean_change["no"] < 0)
explained = metrics["explained_variance"].dropna().tail(5).mean()  # of the last five rollouts
expect(config, f"explained variance ends above 0.3 ({explained:.2f})", explained > 0.3)

# %% [markdown]
# ## What you should see, and what it means if you don't
#
# The explained variance starts at zero and rises within the first rollouts. After `yes` the expectation rises in nearly
# every attempt, after `no` it falls on average: the critic has learned to read the checks. The fall is smaller than the
# rise, as in your perfect critic: a `no` leaves the next attempts. In a single response the line is noisy. The critic
# knows only the text so far, so at the first token it can only judge how hard the problem is.
#
# - Explained variance stays near zero: the critic's learning rate is too low, or its hidden states hold no trace of
#   what decides the outcome.
# - It starts high and falls: the policy changes faster than the critic can follow. Give the critic more epochs, or the
#   policy a lower learning rate.
# - Accuracy rises although the critic is poor: with λ near 1 the reward does the work, and the critic only reduces
#   noise.

# %% [markdown]
# ## How good is it? On held-out problems
#
# Ask the new model the same problems, as many times, as notebook 08 asked the others, and save the answers where
# notebook 13 finds them. The base model of tier `cpu` is asked in plain text. What is saved already is read; the rest
# takes less than a minute on a CPU.

# %%
from lab_utils.evaluation import Evaluation, evaluate_run, format_results, results_table

limit = {"task.test_limit": 200} if config.hardware == "cpu" else {}  # as in notebook 08
asked = load(RECIPE, HARDWARE, {"seed": SEED, **limit})
tiny = config.model.name == "tiny"
paths = {"base": runs / ("base" if tiny else "base-ppo") / "eval.json", "PPO": run.evaluation_path}
for label, source in {"base": config.model.name, "PPO": run}.items():
    if not paths[label].exists():
        evaluate_run(source, asked, plain_text=tiny and label == "base").save(paths[label])
grpo = RunDirectory(runs / "grpo")
same_model = grpo.metrics_path.is_file() and grpo.config().model.name == config.model.name
if same_model and grpo.evaluation_path.exists():
    paths = {"base": paths["base"], "GRPO": grpo.evaluation_path, "PPO": paths["PPO"]}
else:
    print("No evaluation of GRPO with this model is in this folder. Run notebooks 06 and 08 to compare with it.")
evaluations = {label: Evaluation.load(path) for label, path in paths.items()}
format_results(results_table(evaluations))

# %%
from lab_utils.evaluation import paired_bootstrap

for label in [label for label in ("base", "GRPO") if label in evaluations]:
    paired = paired_bootstrap(evaluations[label].per_problem, evaluations["PPO"].per_problem)
    print(f"PPO − {label}: {100 * paired.difference:+.1f} percentage points, paired 95% interval "
          f"{100 * paired.low:+.1f} to {100 * paired.high:+.1f}")
    if label == "base":
        expect(config, "PPO beats the base model, and the paired interval lies above 0", paired.low > 0)

# %% [markdown]
# Both intervals cover the choice of *questions* for this one pair of runs. They do not say what another seed would
# give.
#
# ## One try or eight
#
# A method can lead with one answer per question (k = 1) and lose with eight.

# %%
from lab_utils.figures import plot_pass_at_k

plot_pass_at_k(evaluations, figures / "10_pass_at_k.png")

# %%
for label, e in evaluations.items():
    texts = [one["text"] for example in e.examples for one in example["completions"]]
    verdicts = [re.search(r"\b(yes|no)\b", text) for text in texts]
    first_hits = sum(found is not None and found[1] == "yes" for found in verdicts) / len(texts)
    never, always = (e.per_problem == 0).mean(), (e.per_problem == 1).mean()
    print(f"{label:>5}: problems never solved {never:4.0%}, always {always:4.0%}, sometimes {1 - never - always:4.0%}; "
          f"first attempts that end with yes {first_hits:4.0%}; cut off {e.truncation_rate:4.0%}")
    after_no = [found for text in texts for found in re.findall(r"\bno\b\s*(</think>)?", text)]
    if label != "base" and after_no:  # the base model writes no tags
        gives_up = sum(found == "</think>" for found in after_no) / len(after_no)
        print(f"       it gives up after {gives_up:.1%} of {len(after_no)} failed attempts")

# %% [markdown]
# These numbers say how that can happen. For one answer per question only the mean counts. For pass@8 what counts is how
# it is spread: a model with more problems *always* solved and more *never* solved can have the same mean and a lower
# pass@8. A policy gets there by settling on fewer kinds of attempts. Those succeed more often at once, and where they
# fail, they fail in all eight samples.
#
# **Runaway searches** could add to it. A policy that hardly ever gives up searches a hard problem until its tokens run
# out, and repeats itself on the way. On such a problem all eight samples may end without an answer. Check this in the
# table of three seeds below: has the run with the most responses cut off the lowest pass@8? If not, look for another
# explanation. Giving up earns only the 0.1 for the format, so little speaks for it. A KL term keeps some of the start
# model's habit of giving up; without one the habit can disappear.
#
# ## GRPO and PPO in training
#
# Here are the same two runs over the minutes of training. Which one is ahead depends on when you stop them.

# %%
methods = {"GRPO": grpo, "PPO": run} if same_model else {"PPO": run}
plot_training(methods, figures / "10_grpo_and_ppo.png", x="minutes")

# %% [markdown]
# ## GRPO or PPO? One budget, three seeds
#
# One run of each method decides nothing: another seed may reverse the order. A fair question is: *after the same
# start, the same prompts in the same order and the same number of generated tokens, which method has learned more?*
# Tokens are the budget, because at full size most of the time goes into generating them. Three seeds of both methods
# take half an hour on a CPU, so their results come with the workshop. This command made them:
#
# ```bash
# python scripts/measure_learning.py --recipe countdown-ppo --hardware cpu --seeds 0 1 2 --tokens-of grpo \
#     --set ppo.save_steps=192 --output-dir runs/methods
# ```

# %%
import json

recorded = json.loads(Path("notebooks/recorded/grpo_and_ppo.json").read_text())
rows = pd.DataFrame(recorded["rows"]).pivot(index="seed", columns="model", values=["accuracy", "pass@8", "truncated"])
gaps = pd.DataFrame(recorded["head_to_head"]).set_index("seed")
shown = pd.DataFrame({f"{label}: {name}": rows[name][label].map("{:.1%}".format)
                      for name in ("accuracy", "pass@8", "truncated") for label in ("GRPO", "PPO")})
shown["PPO − GRPO (percentage points)"] = [
    f"{100 * r.difference:+.1f} [{100 * r.low:+.1f}, {100 * r.high:+.1f}]" for r in gaps.itertuples()]
print("SFT, the start of both:", ", ".join(f"{value:.1%}" for value in rows["accuracy"]["SFT"]))
shown

# %%
from lab_utils.figures import plot_against_tokens

plot_against_tokens(recorded["curves"], figures / "10_one_budget.png")

# %% [markdown]
# Each bracket covers the choice of *questions* for one pair of runs. The rows show the choice of *seed*. An interval
# for the mean over seeds must come from their differences. With three of them, Student's t asks for 4.30 standard
# errors on both sides:

# %%
import math

seeds = 100 * gaps["difference"]
margin = 4.303 * seeds.std() / math.sqrt(len(seeds))
print(f"PPO − GRPO, mean of {len(seeds)} seeds: {seeds.mean():+.1f} percentage points, "
      f"95% interval {seeds.mean() - margin:+.1f} to {seeds.mean() + margin:+.1f}")
pass_at_8 = 100 * (rows["pass@8"]["PPO"] - rows["pass@8"]["GRPO"])
print("the same for pass@8, seed by seed:", ", ".join(f"{gap:+.1f}" for gap in pass_at_8))

# %% [markdown]
# What this can say: how far the methods differ in accuracy *at this budget, on this task, with these settings, on these
# questions*. If the interval over seeds contains 0, the answer is "not shown". If it does not, remember that three
# seeds are few, that all of them answered one set of questions, and that pass@8 may point the other way.
#
# What it cannot say: that one of them is the better method. Look for what else differs. PPO uses every rollout twice,
# in mini-batches. It makes eight small steps where GRPO makes one, so equal tokens are neither equal updates nor equal
# minutes. The two pay differently for each step away from their start: compare the KL coefficient above with the one in
# notebook 06. Each method has its own settings, tried by hand and not for equally long. The critic shares the hidden
# states of a tiny model, which is cheap; a critic with a model of its own doubles the memory. To find out what makes
# the difference, change one of these at a time. `--set` does that; choose your own seeds.
#
# ## Summary
#
# - A critic predicts the return before each token. GAE turns its surprises into one advantage per token.
# - λ trades the critic's errors (small λ) against the noise of actual returns (large λ).
# - With a perfect critic the surprises are the true advantages. λ also says how far ahead a token looks: 1 / (1 − λ).
# - Explained variance tells whether the critic is useful. The critic needs its own learning rate.
# - GRPO replaces the critic by the mean of a group. PPO needs no group.
# - "Which method is better?" needs one budget, several seeds, and a list of what else differs.
#
# ## Questions
#
# Think first. The answers are in [ANSWERS.md](ANSWERS.md).
#
# 1. Your perfect critic gives advantages that are not 0 as long as the policy gives up at random. What are they when
#    the policy never gives up, and what if it always does? In which of the two cases can it still learn?
# 2. `num_generations` is still set above. What is it good for in PPO, if no group is compared?
# 3. Where along a completion does the critic know the outcome? What would it need to know it earlier?
# 4. Your reward is paid at the end of 2,000 tokens, and the critic is still useless. Which λ do you start with, and
#    why?
#
# Next: [11 · SageMaker training](11_sagemaker_training.ipynb) runs a recipe as a job in the cloud.
