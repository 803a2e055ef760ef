# %% [markdown]
# # 14 · What else than RL?
#
# <!-- badges -->
#
# > **You will learn** to get more correct answers without reinforcement learning: by asking several times, by
# > imitating the model's own correct answers, by DPO, and with a reward model; and to choose by what each of them needs
# > and costs.
# >
# > **Time** the machine: 4 minutes on a CPU · you: 60 minutes · **Needs** notebooks 03 and 06 in the same OUTPUT_DIR
# > (what is missing is trained first). It is written for tier `cpu`.

# %% tags=["setup"]
# The builder writes this cell: notebooks/src/setup_cell.py.

# %% tags=["parameters"]
RECIPE = "countdown-grpo"
HARDWARE = "cpu"  # or "smoke"; the settings below are for the tiny model
OUTPUT_DIR = "outputs"
SEED = 0
QUESTIONS = 100  # test problems per evaluation

# %%
import json
import time
from pathlib import Path

from lab_utils.config import load
from lab_utils.evaluation import Evaluation, evaluate, evaluate_run, format_results, results_table
from lab_utils.models import load_model, load_tokenizer
from lab_utils.runs import RunDirectory, write_atomically
from lab_utils.tasks import load_task
from lab_utils.training.stages import finished_run

config = load(RECIPE, HARDWARE, {"seed": SEED})
if config.hardware not in ("cpu", "smoke"):
    raise RuntimeError(f"HARDWARE = {HARDWARE!r}: this notebook is written for the tiny model. Set HARDWARE = 'cpu'.")
if config.hardware == "cpu":
    config = load(RECIPE, "cpu", {"seed": SEED, "task.test_limit": QUESTIONS})
task = load_task(config.task)
runs = Path(OUTPUT_DIR) / task.name
figures = Path(OUTPUT_DIR) / "figures"
start, grpo = finished_run(config, runs, "sft"), finished_run(config, runs, "grpo")
tokenizer = load_tokenizer(start.model_dir)
print(f"Task {task.name}, tier {config.hardware}. The start of every method: {start.model_dir}")

# %% [markdown]
# ## One budget
#
# A fair comparison needs one budget. As in notebook 10 it is the number of *generated tokens*, because at full size
# most of the time goes into generating them. GRPO's run of notebook 06 sets it. Every method that trains here starts
# from the same SFT model, samples from the same training problems, and uses the same checker, `task.is_correct`. Not
# counted is what all of them share: the base model and the warm-up.

# %%
metrics = grpo.metrics()
budget = round(metrics["completions/mean_length"].dropna().sum() * grpo.config().grpo.rollout_size)
print(f"GRPO generated {budget:,} tokens in {metrics['step'].max()} steps and {metrics['seconds'].max():.0f} seconds.")

# %% [markdown]
# ## No training: ask several times
#
# The simplest alternative spends its tokens at *test time*. Ask eight times, and choose one of the eight answers. Who
# chooses?
#
# - **A checker**: take an answer that passes. Then the accuracy with one final answer *is* pass@8. This is allowed only
#   if the checker needs nothing that you don't have at test time. Countdown's needs only the question: the numbers and
#   the target are in it. Program code with tests and formal proofs are like that, too. The checker of word problems
#   compares with the gold answer. If you had that at test time, you would not ask.
# - **A vote**: take the answer that most of the responses give (*self-consistency*, arXiv 2203.11171). It needs no
#   checker, but it needs answers that can agree.
#
# What would a vote on Countdown be about? Not the *value* of an expression: the target is in the question, so a wrong
# value can be seen without a vote. Only the expressions themselves can be counted, as text, and `(7 * 6) + 3` and
# `3 + (7 * 6)` split their votes. A word problem has one number as its answer, and many ways lead to it. Guess before
# you measure: how much will a vote add on either task?
#
# ## Exercise 1: the vote
#
# *Difficulty: medium · importance: high · about 10 minutes*
#
# `answers` holds what was extracted from each response: text, or None if there is no answer. None does not vote. Equal
# numbers vote together: `parse_number("72.0") == parse_number("$72") == 72`. It returns None for what is not a number,
# and such an answer votes as text. Return the winner in its first spelling, a tie goes to the answer that came first,
# and without any vote return None.
#
# By hand: `["9", "9", "72", "72.0", "$72"]` gives `"72"`, with three votes to two.

# %%
from lab_utils.tasks.answers import parse_number


def vote(answers):
    """Return the answer with the most votes, in its first spelling; None if there are no votes."""
    # YOUR CODE HERE
    # >>> solution
    ballots = {}
    for answer in answers:
        if answer is not None:
            number = parse_number(answer)
            ballots.setdefault(answer if number is None else number, []).append(answer)
    return max(ballots.values(), key=len)[0] if ballots else None
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. What do two answers share that vote together? Group by that, and keep the spellings in each group.
# 2. `ballots.setdefault(key, []).append(answer)` with the number as the key, or the text if `parse_number` gives None.
#    `max(ballots.values(), key=len)` is the first of the longest groups.

# %%
from lab_utils.teaching import checks

checks.check_vote(vote)

# %% [markdown]
# Now ask. The word problems are asked of the *base* model in plain text, because it needs no warm-up that way.

# %%
words = load("gsm8k-grpo", HARDWARE, {"seed": SEED, "task.test_limit": config.task.test_limit})
asked = {"SFT on Countdown": evaluate_run(start.model_dir, config),
         "base on word problems": evaluate_run(words.model.name, words, plain_text=True)}


def picked(evaluation, choose):
    """Keep one response per question: of the list of them, the one whose position `choose(responses)` returns."""
    return Evaluation([{**example, "completions": [responses[choose(responses)]]} for example in evaluation.examples
                       for responses in [example["completions"]]])


def by_vote(responses):
    answers = [response["extracted"] for response in responses]
    return answers.index(vote(answers))


def by_checker(responses):
    return max(range(len(responses)), key=lambda i: responses[i]["correct"])

# %%
def votes_each(evaluation, correct):
    """Return how many votes a different answer gets on average, among the correct answers or among the wrong ones."""
    cast = [(number, one["extracted"]) for number, example in enumerate(evaluation.examples)
            for one in example["completions"] if one["extracted"] is not None and one["correct"] == correct]
    return len(cast) / max(1, len(set(cast)))


for label, e in asked.items():
    print(f"{label:<22} one answer {e.accuracy:5.1%}, vote of {e.num_samples} {picked(e, by_vote).accuracy:5.1%}, "
          f"checker {picked(e, by_checker).accuracy:5.1%}; votes for a correct answer {votes_each(e, True):.1f}, "
          f"for a wrong one {votes_each(e, False):.1f}")

# %% [markdown]
# The checker's column is the ceiling: a vote cannot choose a correct answer that is not among the samples. On both
# tasks mistakes scatter: a wrong answer gets hardly more than one vote. On word problems the correct responses agree,
# and the vote goes much of the way to the ceiling. On Countdown they split over several expressions. The vote helps
# there, too, but less: with so few votes a mistake that occurs twice often wins.
#
# ## Imitate your own correct answers
#
# **Rejection sampling** turns the same samples into a better model. Sample from the SFT model on *training* problems,
# keep the correct responses, and fine-tune on them, as in notebook 03. Sample from the new model and repeat: this is
# **expert iteration** (STaR, arXiv 2203.14465; ReST, arXiv 2308.08998). It needs no new code and no reward function,
# only a checker that says yes or no.
#
# How can a model learn anything from its own texts? Because they were *selected*. Before you run the cell: how often
# does the SFT model give up after a `no`, and how often does it in the responses that are kept?

# %%
problems = task.dataset("train", config.task.train_limit, config.task.source)
sampling = config.evaluation


def own_samples(model, tokens_each, first):
    """Sample for half of the budget, from training problem `first` on; return the judged samples and the seconds."""
    count = max(4, round(budget / 2 / sampling.num_samples / tokens_each))
    rows = problems.select([i % len(problems) for i in range(first, first + count)])
    began = time.perf_counter()
    found = evaluate(load_model(model, config.model), tokenizer, task, rows, num_samples=sampling.num_samples,
                     max_new_tokens=sampling.max_new_tokens, temperature=sampling.temperature, seed=SEED + first)
    if config.hardware == "smoke":  # this model knows no format; pretend, so that every line below runs
        for example in found.examples:
            example["completions"][0]["correct"] = True
    return found, time.perf_counter() - began


length = asked["SFT on Countdown"].mean_length
half_1, seconds_1 = own_samples(start.model_dir, length, first=0)
half_2, seconds_2 = own_samples(start.model_dir, length, first=len(half_1.examples))
print(f"twice {len(half_1.examples)} problems × {half_1.num_samples} samples, {half_1.scores('num_tokens').sum():,.0f} "
      f"and {half_2.scores('num_tokens').sum():,.0f} tokens, {half_1.accuracy:.1%} correct")

# %%
import re


def gives_up(texts):
    """Return the share of failed attempts after which the model stops searching, and the number of failed attempts."""
    after_no = [found for text in texts for found in re.findall(r"\bno\b\s*(</think>)?", text)]
    return sum(found == "</think>" for found in after_no) / max(1, len(after_no)), len(after_no)


samples = [one for example in half_1.examples for one in example["completions"]]
for label, some in {"all samples": samples, "the correct ones": [one for one in samples if one["correct"]]}.items():
    share, failed = gives_up(one["text"] for one in some)
    print(f"{label:<17} {len(some):>5} responses, {failed:>5} failed attempts; it gives up after {share:.0%} of these")

# %% [markdown]
# A response that gives up is hardly ever correct, so it is not kept, and what is left is a demonstration of not giving
# up. The selection *is* the teaching signal. In fact this is the policy gradient of notebook 04 in disguise: the
# gradient of the log-probability, times a reward of 1 for correct and 0 for wrong, without a baseline. Nothing pushes
# wrong responses down; they lose probability only because the correct ones gain it. And one round's samples serve
# dozens of updates, while GRPO samples anew for each.
#
# Repeated texts count once, or the easiest problems would rule. The second round starts from the first round's model,
# with fresh samples from *that* model. Each round costs half of the budget.

# %%
from datasets import Dataset

from lab_utils.training import sft

gently = {"sft.learning_rate": 3e-4, "sft.max_steps": 40} if config.hardware == "cpu" else {}
few_steps = load(RECIPE, HARDWARE, {"seed": SEED, **gently})


def say(text):
    return [{"role": "assistant", "content": text}]


def imitate(samples, model, name):
    """Fine-tune `model` on the correct responses among `samples`, each text once; return the run."""
    rows = [{"prompt": example["prompt"], "completion": say(text)} for example in samples.examples
            for text in dict.fromkeys(one["text"] for one in example["completions"] if one["correct"])]
    run = RunDirectory(runs / name)
    if not run.has_model:
        print(f"{name}: {len(rows)} different correct responses")
        sft.train(few_steps, run.path, model=model, examples=Dataset.from_list(rows), resume=True)
    return run

# %%
round_1 = imitate(half_1, start.model_dir, "own-answers-1")
after_1 = evaluate_run(round_1.model_dir, config)
fresh, seconds_fresh = own_samples(round_1.model_dir, after_1.mean_length, first=len(half_1.examples))
round_2 = imitate(fresh, round_1.model_dir, "own-answers-2")
after_2 = evaluate_run(round_2.model_dir, config)

# %%
for label, e in {"SFT": asked["SFT on Countdown"], "after round 1": after_1, "after round 2": after_2}.items():
    share, _ = gives_up(one["text"] for example in e.examples for one in example["completions"])
    print(f"{label:<14} {e.accuracy:5.1%} correct, {e.mean_attempts:.2f} attempts, gives up after {share:4.0%} of its "
          f"failed attempts, cut off {e.truncation_rate:.1%}")

# %% [markdown]
# ## Prefer the correct one: DPO
#
# Imitation throws the wrong responses away. **Direct preference optimization** (DPO, arXiv 2305.18290) uses them. It
# takes *pairs* of responses to one prompt, a chosen one and a rejected one, and raises the probability of the chosen
# one *relative to* the rejected one. Both are measured against a frozen reference, the SFT model:
#
# $$L = -\log \sigma\left(\beta \left[\log\frac{\pi(\text{chosen})}{\pi_\text{ref}(\text{chosen})}
# - \log\frac{\pi(\text{rejected})}{\pi_\text{ref}(\text{rejected})}\right]\right)$$
#
# Here σ(x) = 1 / (1 + e⁻ˣ), the sigmoid, makes a probability of a difference. There is no reward model and no sampling
# during training. β says how much a step away from the reference counts, like the KL coefficient of notebook 06. By
# hand: at the first step policy and reference are the same, so the bracket is 0 and the loss is −log σ(0) = log 2 ≈
# 0.693. Look for that number below.
#
# ## Exercise 2: pairs
#
# *Difficulty: medium · importance: high · about 10 minutes*
#
# Make the pairs of one problem. `texts` are its responses, and `correct` says which of them are correct. A repeated
# text counts once, at its first place. Pair the first correct text with the first wrong one, the second with the
# second, and so on, until one kind is used up. Return at most `most` pairs, each `(correct text, wrong text)`.
#
# By hand: `["a", "a", "b", "c"]` with `[True, True, False, False]` gives one pair, `("a", "b")`. A problem with only
# correct or only wrong responses gives none, like a group without signal in GRPO.

# %%
def make_pairs(texts, correct, most):
    """Return up to `most` pairs (correct text, wrong text) of one problem, with no text in two pairs."""
    # YOUR CODE HERE
    # >>> solution
    right = list(dict.fromkeys(text for text, flag in zip(texts, correct, strict=True) if flag))
    wrong = list(dict.fromkeys(text for text, flag in zip(texts, correct, strict=True) if not flag))
    return list(zip(right, wrong, strict=False))[:most]
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. Split the texts into correct and wrong ones first. Which structure removes repetitions and keeps the order?
# 2. `list(dict.fromkeys(...))` keeps the first of equal texts. `zip(right, wrong)` ends with the shorter list.

# %%
checks.check_make_pairs(make_pairs)

# %%
pairs = []
for example in [*half_1.examples, *half_2.examples]:
    texts, correct = zip(*[(one["text"], one["correct"]) for one in example["completions"]], strict=True)
    pairs += [{"prompt": example["prompt"], "chosen": say(right), "rejected": say(wrong)}
              for right, wrong in make_pairs(texts, correct, most=4)]
pairs = Dataset.from_list(pairs)
print(f"{len(pairs)} pairs from {len(half_1.examples) + len(half_2.examples)} problems, for example:")
print(f"    chosen:   {pairs[0]['chosen'][0]['content']!r}\n    rejected: {pairs[0]['rejected'][0]['content']!r}")

# %% [markdown]
# Both trainers below are TRL's. If no reference is given, `DPOTrainer` keeps a copy of the start model. The learning
# rate is lower than GRPO's and than that of imitation. A wrong response shares almost all of its text with correct
# ones: tags, sums, `no`. What pushes it down pushes these down as well, and a policy that is pushed too far loses its
# format.

# %%
from trl import DPOConfig, DPOTrainer

from lab_utils.training.rl import run_trainer, trainer_arguments

short = {"max_steps": 24 if config.hardware == "cpu" else 2, "per_device_train_batch_size": 24, "logging_steps": 2,
         "lr_scheduler_type": "linear", "save_strategy": "no", "gradient_checkpointing": False, "max_length": None}
dpo = RunDirectory(runs / "dpo")
if not dpo.has_model:
    arguments = DPOConfig(**trainer_arguments(config, dpo), **short, learning_rate=7.5e-5, beta=0.1)
    trainer = DPOTrainer(model=load_model(start.model_dir, config.model), args=arguments, train_dataset=pairs,
                         processing_class=tokenizer)
    run_trainer(trainer, config, dpo, resume=True, description="DPO")
after_dpo = evaluate_run(dpo.model_dir, config)
columns = ["step", "loss", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected"]
dpo.metrics()[columns].iloc[[0, -1]].round(3)

# %% [markdown]
# `rewards/accuracies` is the share of pairs whose chosen response has gained more than the rejected one: 0 before
# anything has moved. `rewards/margins` is the bracket of the formula times β, and `logps/` are log-probabilities of
# whole responses. Each line is another batch of pairs, so it is noisy, but one thing is clear: `logps/rejected` has
# fallen by far more than `logps/chosen` has changed. The loss sees only the *difference*, so it would also fall if both
# probabilities fell, the rejected one faster. Imitation can't do that, and GRPO would notice, because it samples from
# the policy while it learns.
#
# ## When there is no checker: a reward model
#
# Everything above except the vote needed `task.is_correct`. For "is this summary good?" there is none. Then people
# compare responses in pairs, and a **reward model** learns to predict them: a language model with one output instead of
# a vocabulary, trained so that the chosen response scores higher, with the loss −log σ(score of chosen − score of
# rejected). Here the checker plays the people. It labels the *training* pairs, and then it leaves: at test time only
# the reward model chooses. Below, `accuracy` is the share of pairs whose chosen response scores higher, and `margin` is
# the mean difference of the two scores.

# %%
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

judge_run = RunDirectory(runs / "reward-model")
if not judge_run.has_model:
    arguments = RewardConfig(**trainer_arguments(config, judge_run), **short, learning_rate=2e-4)
    trainer = RewardTrainer(model=str(start.model_dir), args=arguments, train_dataset=pairs,
                            processing_class=tokenizer)
    run_trainer(trainer, config, judge_run, resume=True, description="reward model")
judge = AutoModelForSequenceClassification.from_pretrained(judge_run.model_dir, use_safetensors=True).eval()
judge_run.metrics()[["step", "loss", "accuracy", "margin"]].iloc[[0, -1]].round(3)

# %%
import torch


def scores_of(prompt, texts):
    """Return the reward model's score of each response to a prompt."""
    chats = [[*prompt, *say(text)] for text in texts]
    batch = tokenizer.apply_chat_template(chats, padding=True, return_dict=True, return_tensors="pt")
    with torch.inference_mode():
        return judge(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].tolist()


row = {"nums": [3, 6, 7], "target": 45}
by_hand = ["<think>7 * 6 = 42, 42 + 3 = 45 yes</think><answer>(7 * 6) + 3</answer>",
           "<think>7 * 6 = 42, 42 - 3 = 39 no</think><answer>(7 * 6) - 3</answer>",
           "<think>7 * 6 = 42, 42 + 3 = 45 no</think><answer>(7 * 6) + 3</answer>",
           "<think>7 * 6 = 42, 42 - 3 = 39 yes</think><answer>(7 * 6) - 3</answer>",
           "<think>7 + 6 = 13, 13 + 3 = 45 yes</think><answer>(7 + 6) + 3</answer>",
           "<think>yes</think><answer>yes</answer>"]
print("Reach 45 with 3, 6 and 7. Which of these scores are too high?")
for text, score in zip(by_hand, scores_of(task.prompt(row), by_hand), strict=True):
    print(f"{score:+6.2f}  {'correct' if task.is_correct(text, row) else 'wrong  '}  {text}")

# %% [markdown]
# ## Exercise 3: best of n, by any judge
#
# *Difficulty: hard · importance: medium · about 15 minutes*
#
# You have N scored responses to a question. A judge gets n of them, drawn without replacement, and chooses the one with
# the highest score. How often is its choice correct? Don't draw at random: count. No two scores are equal.
#
# By hand: scores 0.3, 0.1 and 0.2, and only the last response is correct. Of the three pairs, the judge chooses 0.2 in
# one, the pair with 0.1. So the result for n = 2 is 1/3. Notebook 08's pass@k is the special case of a judge that is
# always right.

# %%
import math


def best_of_n(scores, correct, n):
    """Return how often the response with the highest score is correct, of n that are drawn without replacement."""
    # YOUR CODE HERE
    # >>> solution
    ranked = [flag for _, flag in sorted(zip(scores, correct, strict=True))]  # the lowest score first
    chosen = [math.comb(below, n - 1) for below in range(len(ranked))]  # draws in which this one is the highest
    return sum(flag * draws for flag, draws in zip(ranked, chosen, strict=True)) / math.comb(len(ranked), n)
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. Rank the responses by score. When is the one with `below` lower-ranked responses chosen? The other n − 1 drawn must
#    all come from these.
# 2. That happens in `math.comb(below, n - 1)` of the `math.comb(N, n)` draws. Add up over the correct responses.

# %%
checks.check_best_of_n(best_of_n)

# %%
before = asked["SFT on Countdown"]
for example in before.examples:
    scores = scores_of(example["prompt"], [response["text"] for response in example["completions"]])
    for response, score in zip(example["completions"], scores, strict=True):
        response["score"] = score


def by_reward_model(responses):
    return max(range(len(responses)), key=lambda i: responses[i]["score"])


most = before.num_samples
both = list(zip(before.scores("score"), before.scores(), strict=True))
judged = {n: sum(best_of_n(list(scores), list(flags), n) for scores, flags in both) / len(both) for n in before.ks}
possible = before.pass_at[most] - before.accuracy
print(f"best of {most}: checker {before.pass_at[most]:.1%}, reward model {judged[most]:.1%}, one answer "
      f"{before.accuracy:.1%}: the reward model gets "
      f"{(judged[most] - before.accuracy) / possible if possible else 0:.0%} of the checker's gain")

# %% [markdown]
# ## Where is the reward model hacked?
#
# It has learned from the SFT model's samples, where `yes` nearly always means correct. So it has every reason to look
# for `yes` instead of doing the sums. At tier `cpu`, the scores by hand above follow that word, and hardly the sums.
# That is good enough as long as the responses come from the same model, and it is exactly the hole that an optimizer
# finds. Change one word and see: in every wrong response that ends its search with `no`, write `yes`.

# %%
honest, forged = [], []
for example in before.examples:
    right = [one["score"] for one in example["completions"] if one["correct"]]
    wrong = [one for one in example["completions"] if not one["correct"] and "no</think>" in one["text"]]
    if right and wrong:
        lies = scores_of(example["prompt"], [one["text"].replace("no</think>", "yes</think>") for one in wrong])
        honest += [one["score"] > max(right) for one in wrong]
        forged += [score > max(right) for score in lies]
chosen_by_judge = picked(before, by_reward_model)
chosen = [example["completions"][0] for example in chosen_by_judge.examples]
solvable = [any(one["correct"] for one in example["completions"]) for example in before.examples]
failures = [one for one, can in zip(chosen, solvable, strict=True) if can and not one["correct"]]
print(f"a wrong response beats every correct one to its question: {sum(honest)} of {len(honest)}; "
      f"after the change of one word: {sum(forged)} of {len(forged)}")
print(f"of {sum(solvable)} questions with a correct response the reward model misses it in {len(failures)}, "
      f"and {sum('yes' in one['text'] for one in failures)} of these wrong choices claim `yes`")

# %% [markdown]
# Best of eight can only choose among what the model writes, and the model's own false `yes` is rare. Best of a thousand
# would search for it: the more candidates, the more the winner is the one that fools the judge. And
# reinforcement learning *against* this reward model would produce the forged responses on purpose (notebook 07, now
# with a hole that is in no line of code). That is why runs with a reward model need a KL term, fresh labels, and
# people who read.
#
# ## All of them on one page
#
# `tokens, training` are generated tokens; `tokens, answer` are those of all samples that one final answer costs.
# `seconds` are those of sampling and training. The reward model's row contains its pairs' tokens; what it reads at test
# time is not counted. Differences are paired, to the SFT model.

# %%
after_grpo = evaluate_run(grpo.model_dir, config)
tokens_1, tokens_2, tokens_fresh = (int(e.scores("num_tokens").sum()) for e in (half_1, half_2, fresh))
trained = (round_1, round_2, dpo, judge_run, grpo)
seconds_of = {run.path.name: float(run.metrics()["seconds"].max()) for run in trained}
first = seconds_1 + seconds_of["own-answers-1"]
tokens_both, seconds_both = tokens_1 + tokens_2, seconds_1 + seconds_2
rows = {  # evaluation, samples per answer, tokens generated for training, seconds of sampling and training
    "SFT": (before, 1, 0, 0.0),
    f"vote of {most}": (picked(before, by_vote), most, 0, 0.0),
    f"reward model picks 1 of {most}": (chosen_by_judge, most, tokens_both,
                                       seconds_both + seconds_of["reward-model"]),
    f"checker picks 1 of {most}": (picked(before, by_checker), most, 0, 0.0),
    "own answers, round 1": (after_1, 1, tokens_1, first),
    "own answers, round 2": (after_2, 1, tokens_1 + tokens_fresh, first + seconds_fresh + seconds_of["own-answers-2"]),
    "DPO": (after_dpo, 1, tokens_both, seconds_both + seconds_of["dpo"]),
    "GRPO": (after_grpo, 1, budget, seconds_of["grpo"]),
}

# %%
table = results_table({label: e for label, (e, *_) in rows.items()})
table["tokens, training"] = [tokens for _, _, tokens, _ in rows.values()]
table["tokens, answer"] = [before.mean_length * n if n > 1 else e.mean_length for e, n, _, _ in rows.values()]
table["seconds"] = [seconds for *_, seconds in rows.values()]
content = {"seed": SEED, "questions": len(before.examples),
           "rows": json.loads(table.reset_index().to_json(orient="records"))}
write_atomically(runs / "what_else.json", json.dumps(content, indent=1) + "\n")
shown = format_results(table)[["accuracy", "difference (points)", "format", "truncated", "attempts"]]
for name in ("tokens, training", "tokens, answer", "seconds"):
    shown[name] = table[name].map("{:,.0f}".format)
shown

# %%
from lab_utils.figures import plot_cost

asking = [n * before.mean_length for n in before.ks]
points = {"own answers": after_2, "DPO": after_dpo, "GRPO": after_grpo}
plot_cost({"SFT, checker picks": (asking, [before.pass_at[n] for n in before.ks]),
           "reward model picks": (asking, [judged[n] for n in before.ks]),
           "vote": (asking, [before.maj_at[n] for n in before.ks]),
           **{label: ([e.mean_length], [e.accuracy]) for label, e in points.items()}}, figures / "14_cost.png")

# %% [markdown]
# Lines: the SFT model asked 1, 2, 4 or 8 times. Diamonds: a trained model asked once. Two answers agree or tie, so a
# vote of two is worth no more than one answer. When answers tie, the vote in the table takes the one that was given
# first; the line counts the share of correct ones among them. So the two differ a little.
#
# ## Three seeds
#
# One seed decides nothing. These commands repeat the notebook with three of them on 500 questions, each with a warm-up
# and a GRPO run of its own, and put the result where the next cell finds it:
#
# ```bash
# python scripts/compare_alternatives.py --seeds 0 1 2 --output-dir runs/what-else
# cp runs/what-else/what_else.json notebooks/recorded/
# ```

# %%
import pandas as pd

recorded = Path("notebooks/recorded/what_else.json")
if recorded.exists():
    runs_of_seeds = json.loads(recorded.read_text())
    each = pd.DataFrame([{"seed": one["seed"], **row} for one in runs_of_seeds for row in one["rows"]])
    gains = 100 * each.pivot(index="model", columns="seed", values="difference").loc[each["model"].unique()[1:]]
    mean, margin = gains.mean(axis=1), 4.303 * gains.std(axis=1) / 3**0.5  # Student's t for three seeds
    shown = gains.map("{:+.1f}".format)
    shown["mean [95% over seeds]"] = [f"{middle:+.1f} [{middle - half:+.1f}, {middle + half:+.1f}]"
                                      for middle, half in zip(mean, margin, strict=True)]
    print("Difference to the SFT model of the same seed, in points:\n", shown.to_string())
else:
    print("Nothing is recorded yet: run the two commands.")

# %% [markdown]
# ## What you should see, and what it means if you don't

# %%
from lab_utils.teaching.inspection import expect

by_voting = {label: picked(e, by_vote).accuracy - e.accuracy for label, e in asked.items()}
expect(config, "voting adds more on word problems than on Countdown",
       by_voting["base on word problems"] > by_voting["SFT on Countdown"])
expect(config, "the SFT model with a checker and eight tries beats every trained model with one try",
       before.pass_at[most] > max(after_2.accuracy, after_dpo.accuracy, after_grpo.accuracy))
expect(config, "imitating its own correct answers helps: the paired interval lies above 0",
       table.loc["own answers, round 2", "difference_low"] > 0)
expect(config, "DPO begins with a loss of log 2", abs(dpo.metrics()["loss"].iloc[0] - math.log(2)) < 0.01)
expect(config, "DPO helps: the paired interval lies above 0", table.loc["DPO", "difference_low"] > 0)
expect(config, "the reward model gets more than half of the checker's gain",
       judged[most] - before.accuracy > possible / 2)
expect(config, "a forged `yes` beats the correct responses more often than an honest `no`", sum(forged) > sum(honest))

# %% [markdown]
# - Imitation does not help: look at what is kept. If the kept responses differ from the others in nothing that can be
#   imitated, there is nothing to learn. (On this task they differ in not giving up.)
# - The second round adds little or is cut off more often: the first has already removed most of the giving up. A search
#   that never ends is never kept either, but nothing says how long is too long until it happens in the samples.
# - DPO is cut off often, on some seeds twice as often as the others, and what is cut off lacks its format, too. Its
#   pairs punish giving up, and no pair shows a search without an end, because the SFT model writes none. GRPO meets
#   such searches in its own samples, and they earn nothing. Try fewer steps, half the learning rate, or a second
#   round with pairs from the model that DPO has made.
# - The reward model gets as much as the checker: on *these* samples. The forged responses show what it has not learned.
#
# What the table cannot say: that the order is the same for another task or a larger model. Every method's settings were
# tried by hand and not for equally long. One habit, giving up, decides most of this task, and all of the methods can
# remove it. The tokens are equal; updates, minutes and memory are not.
#
# ## When would you take which?
#
# | you have | take | because |
# |---|---|---|
# | a checker that needs only the question | best of n | no training; n times the tokens for *every* answer |
# | short answers that can agree, no checker | a vote | no training, no labels; fails where mistakes agree |
# | a checker for training problems | own correct answers, first | SFT code, stable; shows if there is a signal |
# | the same, and imitation has stopped helping | GRPO or PPO | fresh samples at every step; wrong ones count, too |
# | pairs, and no sampling while training | DPO | nearly as simple as SFT; the pairs become old |
# | pairs, and new responses to judge | a reward model | judges responses without labels; can be hacked |
#
# They combine: a trained model can be asked eight times as well. And all of them select among what the model can
# already do. If pass@8 is 0, take easier problems, better demonstrations or another model.
#
# ## Summary
#
# - Spend tokens at test time or in training: a checker at test time makes best of n equal to pass@n.
# - A vote needs correct answers that agree. Numbers do; expressions with the same value need not.
# - Imitating one's own correct answers is a policy gradient without a baseline, in huge steps. Selection is the signal.
# - DPO sees differences only, on pairs that do not follow the policy.
# - A reward model is as good as its pairs, and only near them.
#
# ## Questions
#
# Think first. The answers are in [ANSWERS.md](ANSWERS.md).
#
# 1. Your product answers a million questions a day, and each training run costs as many tokens as ten thousand answers.
#    Best of eight with a checker has the highest accuracy. What do you ship, and when do you change your mind?
# 2. A team keeps the correct answers to *test* problems, fine-tunes on them, and reports the test accuracy. Another
#    team chooses its best of eight with the gold answers. What is wrong in each case?
# 3. Why may the chosen responses become *less* probable under DPO, while its loss falls? Why does the same not happen
#    in imitation?
# 4. In the reward model's pairs, correct responses end with `yes`. How would you collect pairs that close this hole?
#
# Variants of GRPO itself are at the end of [13 · Results](13_results.ipynb). Back to [all notebooks](README.md).
