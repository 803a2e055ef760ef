"""The self-checks of the notebooks, and what a learner sees: solutions pass, typical mistakes get their hint."""

import collections
import itertools
import math
import re
import statistics

import pytest
import torch

from lab_utils import REPOSITORY, rewards
from lab_utils.evaluation import pass_at_k
from lab_utils.runs import RunDirectory
from lab_utils.tasks import answers, completion_text, load_task
from lab_utils.tasks.answers import parse_number
from lab_utils.tasks.countdown import is_solution
from lab_utils.tasks.expressions import ExpressionError, evaluate, numbers_used
from lab_utils.teaching import checks, grpo_math
from lab_utils.teaching.checks.ppo_training import _gae as gae
from lab_utils.teaching.checks.runner import Case, Check, SelfCheck, Wrong, close_tensor
from lab_utils.teaching.diagnosis import PROBLEMS
from lab_utils.training.ppo import generalized_advantages

CHECKS = {name: check for name, check in vars(checks).items() if isinstance(check, SelfCheck)}
GSM8K = load_task("gsm8k")


def solves(used=lambda text, nums: True, value=evaluate):
    def solution(text, nums, target):
        try:
            return used(text, nums) and value(text) == target
        except (ExpressionError, SyntaxError):
            return False

    return solution


def verdict(none=True, errors=ExpressionError, value_first=False, use=numbers_used):
    def judge(answer, nums, target):
        if answer is None and none:
            return "no answer"
        try:
            used, value = use(answer), evaluate(answer)
        except errors:
            return "not an expression"
        reasons = [("wrong numbers", sorted(used) != sorted(nums)), ("wrong value", value != target)]
        return next((reason for reason, holds in reasons[:: -1 if value_first else 1] if holds), "correct")

    return judge


def value_only_if_the_numbers_fit(answer, nums, target):
    if answer is None:
        return "no answer"
    try:
        if sorted(numbers_used(answer)) != sorted(nums):
            return "wrong numbers"
        return "correct" if evaluate(answer) == target else "wrong value"
    except ExpressionError:
        return "not an expression"


def labels_of_conversation(header=(1, 12, 3), end=2, end_is_learned=True, once=False):
    def labels(ids):
        found, learning, turns = [], False, 0
        for position, token in enumerate(ids):
            found.append(token if learning and (end_is_learned or token != end) else -100)
            if token == end:
                learning = False
            elif tuple(ids[: position + 1][-len(header):]) == header and not (once and turns):
                learning, turns = True, turns + 1
        return found

    return labels


def by_token(ids):
    answer = ids[max(i for i, token in enumerate(ids) if token == 12) + 2:-1]
    return [token if token in answer and position > 5 else -100 for position, token in enumerate(ids)]


def pattern(expression):
    def extract(text):
        match = re.search(expression, text)
        return match[1] if match else None

    return extract


def correctness(extract=answers.extract_xml_answer, equal=answers.numbers_match, text_of=completion_text):
    def reward(completions, answer, **columns):
        extracted = [extract(text_of(completion)) for completion in completions]
        return [2.0 if equal(one, gold) else 0.0 for one, gold in zip(extracted, answer, strict=True)]

    return reward


STRICT = r"<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n?"


def strict_format(expression=STRICT, flags=re.DOTALL, match=re.fullmatch):
    return lambda completions, **columns: [
        0.5 if match(expression, completion_text(completion), flags) else 0.0 for completion in completions
    ]


def weighted_mix(weigh=lambda weight, value: weight * value, test=lambda value: math.isfinite(value), strict=True):
    def mix(functions, weights):
        def reward(completions, **columns):
            totals = [0.0] * len(completions)
            for function, weight in zip(functions, weights, strict=True):
                values = function(completions=completions, **columns)
                if not all(value is not None and test(value) for value in values):
                    raise ValueError
                totals = [total + weigh(weight, value) for total, value in zip(totals, values, strict=strict)]
            return totals

        return reward

    return mix


def none_as_zero(functions, weights):
    without_none = [lambda f=f, **columns: [value or 0.0 for value in f(**columns)] for f in functions]
    return weighted_mix()(without_none, weights)


def format_worth(equal=0.0):
    def worth(correct, formatted, weight, scale=True):
        values = [c + weight * f for c, f in zip(correct, formatted, strict=True)]
        if len(set(values)) == 1 and equal is not None:
            return equal
        return weight / statistics.stdev(values) if scale else weight

    return worth


def best_minus_worst(correct, formatted, weight, scale=True):
    values = [c + weight * f for c, f in zip(correct, formatted, strict=True)]
    return (max(values) - min(values)) / (statistics.stdev(values) or 1.0) if scale else max(values) - min(values)


def largest_bonus(never=lambda lost, saved: math.inf):
    def bonus(steps, guess, limit=40, correct=2.0):
        lost, saved = correct * (steps[0] - guess[0]), max(0, limit - guess[1]) - max(0, limit - steps[1])
        return lost / saved if saved > 0 else never(lost, saved)

    return bonus


def live_share(chances, size):
    return sum(1 - chance**size - (1 - chance) ** size for chance in chances) / len(chances)


def share_to_right(bonuses, right):
    earned = sum(bonus for bonus, is_right in zip(bonuses, right, strict=True) if is_right)
    return earned / sum(bonuses) if sum(bonuses) else 0.0


def short_and_right(judge=GSM8K.is_correct, short=lambda tokens, limit: max(0.0, 1 - tokens / limit)):
    def reward(completions, answer, completion_ids, limit=40, **columns):
        rows = zip(completions, answer, completion_ids, strict=True)
        return [4.0 * short(len(ids), limit) * judge(text, {"answer": gold}) for text, gold, ids in rows]

    return reward


def completion_loss(logps, labels):
    return torch.nn.functional.cross_entropy(logps[:-1], labels[1:], ignore_index=-100)


def without_shift(logps, labels):
    return torch.nn.functional.cross_entropy(logps, labels, ignore_index=-100)


def over_all_tokens(logps, labels):
    return completion_loss(logps, labels) * (labels[1:] != -100).float().mean()


def from_the_first_label_on(logps, labels):
    first = max(1, int((labels != -100).nonzero()[0]))
    return -logps[range(first - 1, len(labels) - 1), labels[first:].clamp(min=0)].mean()


def whole_batch(rewards, num_generations):
    return (rewards - rewards.mean()) / (rewards.std() + 1e-4)


def grouped(finish):
    def advantages(rewards, num_generations):
        groups = rewards.view(-1, num_generations)
        return finish(groups, groups - groups.mean(1, keepdim=True)).view(-1)

    return advantages


def loss(sign=-1, pick=torch.min, ratio=lambda new, old: (new - old).exp(), column=lambda a: a[:, None]):
    def clipped_loss(logps, old_logps, advantages, epsilon):
        r, a = ratio(logps, old_logps), column(advantages)
        return sign * pick(r * a, r.clamp(1 - epsilon, 1 + epsilon) * a)

    return clipped_loss


def gradient_estimates(logits, actions, rewards):
    logits = logits.repeat(len(actions), 1).requires_grad_()
    (logits.log_softmax(-1)[range(len(actions)), actions] * rewards).sum().backward()
    return logits.grad


def train_step(model, reference, optimizer, batch):
    inputs = batch["input_ids"], batch["attention_mask"], batch["mask"].shape[1]
    with torch.no_grad():
        ref_logps = grpo_math.token_logps(reference, *inputs)
    objective = grpo_math.grpo_loss(
        grpo_math.token_logps(model, *inputs), batch["old_logps"], batch["advantages"], batch["mask"], beta=0.1,
        ref_logps=ref_logps, max_completion_length=128)
    optimizer.zero_grad()
    objective.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return objective.item()


def share_without_signal(rewards, size, same=lambda group: max(group) == min(group)):
    groups = [rewards[start : start + size] for start in range(0, len(rewards), size)]
    return sum(map(same, groups)) / len(groups)


def gae_of_the_trainer(rewards, values, gamma, lam):
    rewards, values = (torch.tensor([numbers], dtype=torch.float64) for numbers in (rewards, values))
    return generalized_advantages(rewards, values, torch.ones_like(values), gamma, lam)[0][0]


def first_verdict(text):
    found = re.search(r"\b(yes|no)\b", text)
    return found and found[1]


def alarms(metrics, function_pays_nothing=lambda column: column == 0):
    columns = [name for name in metrics if name.startswith("rewards/") and name.endswith("/mean")]
    return ((metrics["completions/clipped_ratio"] > 0.1) | (metrics["frac_reward_zero_std"] > 0.5)
            | (metrics["kl"] > 0.15) | function_pays_nothing(metrics[columns]).any(axis=1))


def first_alarm(metrics, patience=3, alarms=alarms):
    count = 0
    for step, alarm in zip(metrics["step"], alarms(metrics), strict=True):
        count = count + 1 if alarm else 0
        if count == patience:
            return step
    return None


def each_reason_on_its_own(metrics, patience=3):
    healthy = {"completions/clipped_ratio": 0, "frac_reward_zero_std": 0, "kl": 0, "rewards/sum/mean": 1}
    found = [first_alarm(metrics.assign(**{name: healthy[name] for name in set(healthy) - {reason}}), patience)
             for reason in healthy]
    return min((step for step in found if step), default=None)


def logged_values(regex, log):
    return [float(found[1]) for line in log.splitlines() if (found := re.search(regex, line))]


def merge_lora(weight, lora_A, lora_B, alpha):
    return weight + alpha / lora_A.shape[0] * (lora_B @ lora_A)


def conclude(what, difference, low, high, problems, seeds):
    verdict = "better" if low > 0 else "worse" if high < 0 else "not shown to differ"
    return (f"{what}: {verdict} ({100 * difference:+.1f} points, {100 * low:+.1f} to {100 * high:+.1f}; "
            f"{problems} problems, {seeds} seed(s))")


def billed_minutes(work, save_every, start, machines):
    billed = 0
    for lasts in machines:
        if start + work <= lasts:
            break
        billed += lasts
        if lasts > start:
            work -= save_every * ((lasts - start) // save_every)
    return billed + start + work


def responses_at_once(config, parameters, memory, tokens):
    per_token = 4 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    return max(0, int((memory - 2 * parameters) / per_token / tokens))


def problems_needed(difference, low, high, problems):
    return None if difference == 0 else math.ceil(problems * ((high - low) / (2 * difference)) ** 2)


def best_of_n(scores, correct, n):
    draws = list(itertools.combinations(zip(scores, correct, strict=True), n))
    return sum(max(draw)[1] for draw in draws) / len(draws)


def vote(answers):
    names = {}  # a number, or a text that is none -> its first spelling
    keys = [parse_number(answer) if parse_number(answer) is not None else answer for answer in answers]
    for key, answer in zip(keys, answers, strict=True):
        names.setdefault(key, answer)
    winners = collections.Counter(key for key in keys if key is not None).most_common(1)
    return names[winners[0][0]] if winners else None


def make_pairs(texts, correct, most):
    pairs, groups = [], {True: [], False: []}
    for text, flag in zip(texts, correct, strict=True):
        groups[flag] += [text] if text not in groups[flag] else []
    while groups[True] and groups[False] and len(pairs) < most:
        pairs.append((groups[True].pop(0), groups[False].pop(0)))
    return pairs


SOLUTIONS = {
    "check_solves": [lambda text, nums, target: is_solution(text, {"nums": nums, "target": target})],
    "check_verdict": [verdict()],
    "check_labels_of_conversation": [labels_of_conversation()],
    "check_weighted_mix": [weighted_mix(), rewards.combine_rewards],
    "check_format_worth": [
        format_worth(),
        lambda c, f, w, scale=True: 0.0 if len({a + w * b for a, b in zip(c, f, strict=True)}) == 1 else
        w / (statistics.stdev([a + w * b for a, b in zip(c, f, strict=True)]) + 1e-4) if scale else w,
    ],
    "check_live_share": [live_share, lambda chances, size: torch.tensor(live_share(chances, size))],
    "check_largest_bonus": [largest_bonus()],
    "check_extract_hash_answer": [answers.extract_hash_answer, pattern(r"#### (-?[\d,]*\.?\d+)")],
    "check_make_labels": [lambda prompt, completion: [-100] * len(prompt) + completion],
    "check_correctness_reward": [rewards.correctness_reward, correctness()],
    "check_strict_format_reward": [rewards.strict_format_reward],
    "check_share_to_right": [share_to_right],
    "check_short_and_right_reward": [short_and_right()],
    "check_completion_loss": [completion_loss, lambda logps, labels: float(completion_loss(logps, labels))],
    "check_group_advantages": [grpo_math.group_advantages],
    "check_clipped_loss": [loss()],
    "check_token_logps": [grpo_math.token_logps],
    "check_kl_term": [lambda new, old, ref: (new - old).exp() * grpo_math.kl_estimate(new, ref)],
    "check_aggregate": [grpo_math.aggregate],
    "check_train_step": [train_step],
    "check_gradient_estimates": [gradient_estimates],
    "check_leave_one_out": [
        lambda rewards, size: size / (size - 1) * grpo_math.group_advantages(rewards, size, scale=False),
    ],
    "check_share_without_signal": [
        share_without_signal,
        lambda rewards, size: (torch.tensor(rewards).view(-1, size).std(1) == 0).float().mean(),
    ],
    "check_gae": [gae, gae_of_the_trainer],
    "check_pass_at_k": [pass_at_k, lambda n, c, k: 1 - math.comb(n - c, k) / math.comb(n, k)],
    "check_first_verdict": [first_verdict],
    "check_first_alarm": [first_alarm],
    "check_billed_minutes": [billed_minutes],
    "check_logged_values": [logged_values],
    "check_merge_lora": [merge_lora],
    "check_responses_at_once": [responses_at_once],
    "check_problems_needed": [problems_needed],
    "check_vote": [vote],
    "check_best_of_n": [best_of_n],
    "check_make_pairs": [make_pairs],
    "check_conclude": [
        conclude,
        lambda *facts: conclude(*facts).replace("not shown to", "Not shown better:"),
        lambda *facts: conclude(*facts).replace("-", "−"),
    ],
}
MISTAKES = {
    "check_solves": [
        (solves(), "3 is not used"),
        (solves(lambda text, nums: set(numbers_used(text)) == set(nums)), "two fives"),
        (solves(lambda text, nums: numbers_used(text) == nums), "in any order"),
        (solves(value=lambda text: 45), "Exactly 1"),
        (solves(lambda text, nums: sorted(numbers_used(text)) == sorted(nums), eval), "floats are not"),
    ],
    "check_extract_hash_answer": [
        (answers.extract_last_number, "strict means strict"),
        (pattern(r"#### (\d+)"), "comma"),
        (pattern(r"#### ([\d,]+)"), "minus"),
        (pattern(r"#### (-?[\d,]+)"), "decimal point"),
        (pattern(r"#### ?(.*\d)"), "3 is another number"),
        (pattern(r"#### (.+)"), "where the digits end"),
        (lambda text: text.split("####")[-1].strip() if "####" in text else None, "first one"),
    ],
    "check_verdict": [
        (verdict(value_first=True), "both wrong"),
        (lambda answer, nums, target: verdict()(answer or "", nums, target), "means that no answer was found"),
        (lambda answer, nums, target: verdict()(answer or None, nums, target), "was found, but"),
        (value_only_if_the_numbers_fit, "comes before the numbers"),
        (verdict(use=lambda text: []), "as asked"),
    ],
    "check_labels_of_conversation": [
        (labels_of_conversation(end_is_learned=False), "END after it"),
        (labels_of_conversation(once=True), "two turns"),
        (labels_of_conversation(header=(12, 3)), "only with START"),
        (labels_of_conversation(header=(1, 12)), "its header"),
        (labels_of_conversation(end=3), "END after it|line breaks"),
        (by_token, "two turns|Decide by position"),
    ],
    "check_weighted_mix": [
        (weighted_mix(lambda weight, value: value), "multiply each value"),
        (weighted_mix(lambda weight, value: max(0, weight) * value), "can be negative"),
        (none_as_zero, "Do not count it as 0"),
        (weighted_mix(test=lambda value: True), "NaN is a float"),
        (weighted_mix(strict=False), "compare the lengths"),
        (lambda functions, weights: lambda completions, **columns: sum(
            weighted_mix()(functions, weights)(completions, **columns)), "list with one number"),
        (lambda functions, weights: lambda completions, **columns: weighted_mix()(functions, weights),
         "returned a function again"),
    ],
    "check_format_worth": [
        (best_minus_worst, "correct ones included|equally correct"),
        (lambda c, f, weight, scale=True: format_worth()(c, f, weight) if scale else weight, "without scaling, too"),
    ],
    "check_live_share": [
        (lambda chances, size: live_share(chances, 2), "leave out the all-wrong"),
    ],
    "check_largest_bonus": [
        (largest_bonus(never=lambda lost, saved: lost / saved if saved else math.inf), "not a negative number"),
        (largest_bonus(never=lambda lost, saved: 0.0), "return math.inf"),
        (lambda steps, guess, limit=40, correct=2.0: largest_bonus()(steps, guess, limit), "parameter `correct`"),
        (lambda steps, guess, limit=40, correct=2.0: largest_bonus()(steps, guess, 40, correct), "parameter `limit`"),
    ],
    "check_make_labels": [
        (lambda prompt, completion: prompt + completion, "-100 for every prompt token"),
        (lambda prompt, completion: [-100] * 3 + completion, "ends the turn"),
        (lambda prompt, completion: [-100 if t in prompt else t for t in prompt + completion], "position of a token"),
    ],
    "check_correctness_reward": [
        (correctness(pattern("<answer>(.*?)</answer>")), "DOTALL"),
        (correctness(equal=lambda predicted, gold: predicted == gold), "by value"),
        (correctness(answers.extract_last_number), "format counts too"),
        (correctness(equal=lambda predicted, gold: predicted is not None), "wrong number"),
        (correctness(pattern(r"(?s)<answer>(.*?)</answer>")), "last complete answer"),
        (correctness(text_of=str), "list of messages"),
        (lambda completions, answer, **columns: 2.0, "list with one number"),
        (rewards.int_reward, "earns 2.0"),
    ],
    "check_strict_format_reward": [
        (strict_format(flags=0), "several lines"),
        (strict_format(), "count each tag"),
        (strict_format(STRICT.replace(".*?", "[^<]*")), "not a tag"),
        (strict_format(match=re.search), "before the first tag"),
        (strict_format(match=re.match), "after the last tag"),
        (strict_format(STRICT.removesuffix(r"\n?")), "very end"),
        (strict_format(r"\s*" + STRICT.replace(r"\n", r"\s*")), "lines of their own"),
        (lambda completions, **columns: [0.0] * len(completions), "never fires"),
    ],
    "check_share_to_right": [
        (lambda bonuses, right: sum(right) / len(right), "0.6 of 4.0"),
        (lambda bonuses, right: 0.15 if bonuses[0] == 2.4 else sum(right) / 4, "Weigh by the bonus"),
        (lambda bonuses, right: share_to_right(bonuses, right) if any(bonuses) else 1.0, "do not divide by 0"),
    ],
    "check_short_and_right_reward": [
        (short_and_right(lambda text, row: True), "this is the hole"),
        (short_and_right(lambda text, row: row["answer"] in completion_text(text)), "1,000 is 1000"),
        (short_and_right(lambda text, row: answers.numbers_match(
            answers.extract_last_number(completion_text(text)), row["answer"])), "Without <answer> tags"),
        (short_and_right(lambda text, row: isinstance(text, str) and GSM8K.is_correct(text, row)), "takes messages"),
        (short_and_right(short=lambda tokens, limit: tokens < limit), "Correct and short"),
        (short_and_right(short=lambda tokens, limit: 1 - tokens / limit), "no penalty"),
        (short_and_right(short=lambda tokens, limit: max(0.0, 1 - tokens / 40)), "parameter `limit`"),
        (lambda completions, answer, completion_ids, limit: 2.4, "one number for each completion"),
    ],
    "check_completion_loss": [
        (without_shift, "Row t predicts"),
        (over_all_tokens, "divide by the number of labeled"),
        (from_the_first_label_on, "choose by label"),
    ],
    "check_group_advantages": [
        (whole_batch, "Two groups"),
        (grouped(lambda groups, centered: centered), "divide by the standard deviation"),
        (grouped(lambda groups, centered: centered / (groups.std(1, keepdim=True, correction=0) + 1e-4)), "n - 1"),
        (grouped(lambda groups, centered: centered / groups.std(1, keepdim=True)), "0 / 0"),
        (grouped(lambda groups, centered: -centered / (groups.std(1, keepdim=True) + 1e-4)), "Subtract the mean"),
        (lambda rewards, num_generations: rewards.view(-1, num_generations), r"this one has shape \(1, 4\)"),
        (lambda rewards, num_generations: rewards.tolist(), "a tensor of shape .*, not list"),
    ],
    "check_clipped_loss": [
        (loss(sign=1), "minus"),
        (loss(pick=lambda plain, clipped: plain), r"1 \+ epsilon"),
        (loss(pick=lambda plain, clipped: clipped), "way back"),
        (loss(ratio=lambda new, old: (old - new).exp()), "within the clip range"),
        (loss(ratio=lambda new, old: new - old), r"exp\(0\)"),
        (loss(column=lambda a: a), r"\(B, 1\)"),
    ],
    "check_share_without_signal": [
        (lambda rewards, size: share_without_signal(rewards, size, lambda group: not any(group)), "All correct is no"),
        (lambda rewards, size: share_without_signal(rewards, 4), "in the first one|each of these two"),
        (lambda rewards, size: float(max(rewards) == min(rewards)), "two groups"),
        (lambda rewards, size: share_without_signal([round(r) for r in rewards], size), "small difference"),
        (lambda rewards, size: share_without_signal(rewards, size, lambda group: group[0] == group[-1]), "the last"),
    ],
    "check_gae": [
        (lambda r, v, gamma, lam: [a + b for a, b in zip(gae(r, v, gamma, lam), v, strict=True)], "the actual return"),
        (lambda r, v, gamma, lam: gae(r, v, gamma, 1.0), "only the next prediction"),
        (lambda r, v, gamma, lam: gae(r, v, gamma, 0.0), "every token gets 1"),
        (lambda r, v, gamma, lam: gae(r, v, 1.0, gamma * lam), "gamma discounts twice"),
        (lambda r, v, gamma, lam: gae([0] * (len(r) - 1) + r[-1:], v, gamma, lam), "reward of its own"),
    ],
    "check_pass_at_k": [
        (lambda n, c, k: 1 - (1 - c / n) ** k, "without replacement"),
        (lambda n, c, k: float(c > 0), "One draw"),
        (lambda n, c, k: pass_at_k(n, c, k) if n < 100 else 1.0, "Large n"),
    ],
    "check_first_verdict": [
        (lambda text: (re.search("yes|no", text) or [None])[0], "Match whole words"),
        (lambda text: "yes" if "yes" in text else first_verdict(text), "first one counts"),
        (lambda text: first_verdict(text) or "no", "nothing was checked"),
    ],
    "check_first_alarm": [
        (lambda metrics, patience=3: 0, "gives None"),
        (lambda metrics, patience=3: first_alarm(metrics), "two in a row are enough"),
        (lambda metrics, patience=3: first_alarm(metrics, 1), "in a row"),
        (each_reason_on_its_own, "take turns"),
        (lambda metrics, patience=3: first_alarm(metrics.assign(step=metrics.index + 1), patience), "column step"),
        (lambda metrics, patience=3: first_alarm(
            metrics, patience, lambda m: alarms(m, lambda columns: columns < 0)), "pays 0"),
        (lambda metrics, patience=3: first_alarm(
            metrics, patience, lambda m: alarms(m) | (m["rewards/sum/std"] == 0)), "end with /mean"),
    ],
    "check_logged_values": [
        (lambda regex, log: logged_values(regex, log) or None, "an empty list"),
        (lambda regex, log: logged_values(regex.replace("grpo", r"\w+"), log), "each matching line"),
        (lambda regex, log: [value for value in logged_values(regex, log) if value], "0 is a value"),
        (lambda regex, log: logged_values(regex, log)[:1], "in order"),
    ],
    "check_problems_needed": [
        (lambda d, low, high, n: n * ((high - low) / 2 / d) ** 2 if d else None, "round up"),
    ],
    "check_best_of_n": [
        (lambda scores, correct, n: best_of_n(scores, correct, n) + 0.01, "count the draws"),
    ],
    "check_merge_lora": [
        (lambda weight, a, b, alpha: weight + alpha / a.shape[0] * (b @ a).T, r"\(out, r\)"),
        (lambda weight, a, b, alpha: None, "Return a tensor"),
    ],
    "check_conclude": [
        (lambda what, d, low, high, n, s: conclude(what, d, d, d, n, s), "one decimal|0 lies"),
        (lambda what, d, low, high, n, s: conclude(what, d, low or 1e-9, high, n, s), "touches 0"),
        (lambda *facts: conclude(*facts) + " This proves it.", "cannot prove anything"),
        (lambda *facts: conclude(*facts).split("(")[0], "both ends of its interval"),
        (lambda *facts: conclude(*facts).replace("-1.1", "1.1"), "with its minus sign"),
        (lambda *facts: conclude(*facts).replace(" points", "%"), "in points, not percent"),
        (lambda *facts: None, "Return a string"),
    ],
}


@pytest.fixture
def answer_of(capsys):
    """Return a function that calls a check and returns what it prints."""
    def call(check, answer, *context, passes=False):
        assert check(answer, *context) is passes and check.passed_by(answer) is passes
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize(("name", "solution"), [(name, one) for name, them in SOLUTIONS.items() for one in them])
def test_solutions_pass(name, solution, answer_of):
    assert answer_of(CHECKS[name], solution, passes=True).startswith("OK: ")


@pytest.mark.parametrize(("name", "wrong", "hint"), [(name, *row) for name, rows in MISTAKES.items() for row in rows])
def test_mistakes_get_their_hint(name, wrong, hint, answer_of):
    assert re.search(rf"^Not yet: [\s\S]* gave [\s\S]*expected [\s\S]*\nHint: .*({hint})",
                     answer_of(CHECKS[name], wrong))


@pytest.mark.parametrize(("check", "wrong"), [(check, wrong) for check in CHECKS.values() if isinstance(check, Check)
                                              for wrong in check.wrong])
def test_typical_wrong_answers_get_their_own_hint(check, wrong, answer_of):
    assert answer_of(check, wrong.answer).endswith(f"\nHint: {wrong.hint}\n")


def as_floats(predicted, gold):
    return predicted is not None and float(predicted.strip()) == float(gold)


@pytest.mark.parametrize(
    ("name", "wrong", "error", "hint"),
    [
        ("check_solves", lambda text, nums, target: sorted(numbers_used(text)) == nums and evaluate(text) == target,
         "ExpressionError", "catch ExpressionError"),
        ("check_extract_hash_answer", lambda text: text.split("#### ")[1].split()[0], "IndexError", "strict means"),
        ("check_verdict", verdict(none=False), "TypeError", "None means"),
        ("check_verdict", verdict(errors=ZeroDivisionError), "ExpressionError", "catch it"),
        ("check_format_worth", format_worth(equal=None), "ZeroDivisionError", "do not divide by 0"),
        ("check_weighted_mix", lambda functions, weights: lambda completions, **columns: functions[0](completions),
         "TypeError", "Pass the columns on"),
        ("check_largest_bonus", largest_bonus(never=lambda lost, saved: lost / saved), "ZeroDivisionError", "math.inf"),
        ("check_correctness_reward", correctness(equal=as_floats), "ValueError", r"\$1,000 is 1000"),
        ("check_correctness_reward", correctness(text_of=lambda text: text), "AttributeError", "list of messages"),
        ("check_share_to_right", lambda bonuses, right: sum(b for b, r in zip(bonuses, right, strict=True) if r)
         / sum(bonuses), "ZeroDivisionError", "do not divide by 0"),
        ("check_share_without_signal", lambda rewards, size: rewards.view(-1, size), "AttributeError", "is a list"),
    ],
)
def test_an_error_in_the_solution_gets_the_hint_of_its_case(name, wrong, error, hint, answer_of):
    assert re.search(rf"raised {error}: .*\nin your line: .*\nHint: .*{hint}", answer_of(CHECKS[name], wrong))


def test_the_blank_of_the_learner_edition_is_named_as_one(answer_of):
    def mean(rewards):
        """Return the mean."""
        # YOUR CODE HERE
        ...

    check = Check("", [Case([1, 3], gives=2.0, hint="Add, then divide.")])
    told = "Not yet: mean is not written yet. Write it, run its cell, then run this one.\n"
    assert answer_of(check, mean) == told
    assert answer_of(check, None) == told.replace("mean", "The answer")


def test_an_answer_can_be_a_value(answer_of):
    check = Check("", [Case(gives=0.25, hint="One in four.")], wrong=[Wrong(0.75, "That is the share of the others.")])
    answer_of(check, 0.25, passes=True)
    assert answer_of(check, 0.5) == "Not yet: Your answer gave 0.5; expected 0.25.\nHint: One in four.\n"
    assert "share of the others" in answer_of(check, 0.75)


BASELINE = Check("{} groups.", [
    Case([0.0], gives=[0.0], hint="One reward is its own mean."),
    Case([1.0, 0.0], gives=[0.5, -0.5], hint="The mean is 0.5."),
    Case([3.0, 0.0, 0.0], gives=[2.0, -1.0, -1.0], hint="The mean is 1."),
], wrong=[
    Wrong(lambda rewards: [r - sum(rewards) for r in rewards], "You subtracted the sum."),
    Wrong(lambda rewards: [r - sum(rewards) / 2 if rewards[0] else 0 for r in rewards], "You divided by 2."),
    Wrong(lambda rewards: rewards[4], "There are fewer than five."),
])


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (lambda rewards: [r - sum(rewards) for r in rewards], "You subtracted the sum."),
        (lambda rewards: torch.tensor(rewards) - sum(rewards), "You subtracted the sum."),
        (lambda rewards: [r - sum(rewards) / 2 if rewards[0] else 0.0 for r in rewards], "You divided by 2."),
        (lambda rewards: rewards[5], "There are fewer than five."),
        (lambda rewards: [-1.0], "One reward is its own mean."),
        (lambda rewards: [0.0], "The mean is 0.5."),
    ],
)
def test_a_wrong_answer_is_known_by_its_results(wrong, hint, answer_of):
    assert answer_of(BASELINE, wrong).endswith(f"Hint: {hint}\n")


def helper(text):
    return text.split("####")[1]


def endless(text):
    while True:
        try:
            print("again")
        except Exception:
            pass


@pytest.mark.parametrize(
    ("answer", "gives", "told"),
    [
        (lambda text: helper(text), "72", """<lambda>('72') raised IndexError: list index out of range
in your line: return text.split("####")[1]
Hint: the case's"""),
        (lambda text: torch.tensor([7, 2]), [7, 2],
         "gave [7, 2]; expected [7, 2].\nHint: The values are correct, but return a list, not a Tensor."),
        (lambda text: "7" * 100_000, "72", f"<lambda>('72') gave '{'7' * 299}…; expected '72'.\nHint: the case's"),
        (endless, "72", "more than 10000 characters printed. Is there a loop that does not end?\nin your line: "),
        (lambda text: 1 / 0, "72", "raised ZeroDivisionError: division by zero\nin your line: "),
        (lambda text: [7].view(-1), "72", "raised AttributeError: 'list' object has no attribute 'view'\nin your line"),
        (lambda: 72, "72", "raised TypeError: "),
    ],
)
def test_what_a_learner_is_told(answer, gives, told, answer_of):
    check = Check("", [Case("72", gives=gives, hint="the case's")], same=lambda got, wanted: (
        list(got) == wanted if not isinstance(got, (str, torch.Tensor)) else got == wanted))
    check.seconds = 0.5
    printed = answer_of(check, answer)
    assert told in printed and len(printed) < 800 and "Traceback" not in printed


def test_a_tensor_of_the_wrong_shape_gets_its_shape_as_the_hint(answer_of):
    check = Check("", [Case(4, gives=[[1.0, 1.0], [1.0, 1.0]], hint="")], same=close_tensor)
    assert "this one has shape (4,)" in answer_of(check, torch.ones)


@pytest.mark.skipif(not hasattr(__import__("signal"), "setitimer"), reason="Windows has no interval timer")
def test_a_call_that_does_not_end_is_stopped(answer_of):
    def loops(text):
        while True:
            try:
                text += "!"
            except Exception:
                return None

    check = Check("", [Case("72", gives="72", hint="Leave it.")], seconds=0.2)
    assert answer_of(check, loops).startswith(
        "Not yet: loops('72') raised Stopped: no result after 0.2 seconds. Is there a loop that does not end?\n"
        "in your line: ")


def test_what_a_learner_prints_is_shown_before_the_answer(answer_of):
    check = Check("one case.", [Case("72", gives="72", hint="")])
    assert answer_of(check, lambda text: print("seen", text) or text, passes=True) == "seen 72\nOK: one case.\n"


def test_a_check_leaves_its_cases_as_they_are(answer_of):
    def sorts_in_place(text, nums, target):
        nums.clear()
        return None

    for _ in range(2):
        told = answer_of(checks.check_solves, sorts_in_place)
        assert "[3, 6, 7], 45) gave None; expected True. Is a `return` missing?" in told


CELLS = """\
def share_to_right(bonuses, right):
    total = sum(bonuses)
    return sum(b for b, r in zip(bonuses, right) if r) / total
"""


def test_a_notebook_shows_the_message_and_no_traceback(capsys):
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    for cell in (CELLS, "from lab_utils.teaching import checks\nchecks.check_share_to_right(share_to_right);"):
        shell.run_cell(cell, store_history=True)  # without it a final ";" does nothing
    assert capsys.readouterr().out.splitlines() == [
        "Not yet: share_to_right([0.0, 0.0], [True, False]) raised ZeroDivisionError: float division by zero",
        "in your line: return sum(b for b, r in zip(bonuses, right) if r) / total",
        "Hint: Nothing is paid: return 0.0, do not divide by 0.",
    ]


RECORDED = REPOSITORY / "notebooks" / "recorded" / "runs"
RUNS = {letter: RunDirectory(RECORDED / letter) for letter in "ABCDEFGHI"}
HEALTHY = RunDirectory(RECORDED / "healthy")
DIAGNOSIS = {"B": "learning rate too high", "C": "problems too easy", "D": "hacked reward",
             "E": "learning rate too low", "F": "nothing to reward", "G": "dead reward function",
             "H": "sampler not updated", "I": "only noise"}


def test_the_correct_diagnosis_passes(answer_of):
    assert answer_of(checks.check_diagnosis, DIAGNOSIS, RUNS, HEALTHY, passes=True).startswith("OK: ")


@pytest.mark.parametrize("letter", DIAGNOSIS)
def test_every_other_diagnosis_is_rejected_with_numbers_and_without_the_answer(letter, answer_of):
    for name in set(PROBLEMS) - {DIAGNOSIS[letter]}:
        told = answer_of(checks.check_diagnosis, DIAGNOSIS | {letter: name}, RUNS, HEALTHY)
        assert re.search(rf"Run {letter} does not show '{name}'.*\nHint: .* → ", told)
        assert DIAGNOSIS[letter] not in told


@pytest.mark.parametrize(("letter", "name", "hint"), [("B", "collapse", "copy the name"), ("E", "", r"Run E has")])
def test_an_unknown_and_a_missing_diagnosis_are_rejected(letter, name, hint, answer_of):
    assert re.search(hint, answer_of(checks.check_diagnosis, DIAGNOSIS | {letter: name}, RUNS, HEALTHY))
