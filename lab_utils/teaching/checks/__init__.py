"""Self-checks of the exercises: `check_xyz(your_function)` prints OK, or raises CheckFailed with a hint.

A check calls your function with several inputs and stops at the first wrong answer. An error inside your function is
shown as it is. The sections follow the notebooks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from ...rewards.combine import RewardFunction
from ...tasks.answers import numbers_match
from ...teaching.diagnosis import PROBLEMS, SPAN, begin, end

if TYPE_CHECKING:
    from ...runs import RunDirectory


class CheckFailed(AssertionError):
    """An exercise is not right yet: the message says for which input, what was expected, and what to look at."""


def _ok(message: str) -> None:
    print(f"OK: {message}")


def _fail(call: str, got: Any, wanted: Any, hint: str) -> None:
    raise CheckFailed(f"{call} gave {got!r}, but {wanted!r} is right.\nHint: {hint}")


def _check_tensor(call: str, got: Tensor, wanted: Sequence, hint: str) -> None:
    """Fail unless `got` is `wanted` up to 1e-3 (TRL adds 1e-4 to a standard deviation, you may not)."""
    expected = torch.tensor(wanted, dtype=torch.float)
    if not isinstance(got, Tensor) or got.shape != expected.shape:
        shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
        raise CheckFailed(f"{call} gave {shape}, but a tensor of shape {tuple(expected.shape)} is right.\nHint: {hint}")
    if not torch.allclose(got.detach().float(), expected, atol=1e-3):
        _fail(call, [round(x, 4) for x in got.flatten().tolist()], expected.flatten().tolist(), hint)


def _is_number(got: Any, wanted: float, tolerance: float = 1e-4) -> bool:
    """Say whether `got` is a number, or a tensor of one, and equals `wanted`."""
    one = isinstance(got, (int, float)) or (isinstance(got, Tensor) and got.numel() == 1)
    return one and abs(float(got) - wanted) < tolerance


# --- 00 Start here ---------------------------------------------------------------------------------------------------


def check_solves(solves: Callable[[str, list[int], int], bool]) -> None:
    """Check `solves(expression, nums, target)`: does the expression use every number once and equal the target?"""
    cases = [
        ("(7 * 6) + 3", [3, 6, 7], 45, True, "42 + 3 is 45, and 7, 6 and 3 are used once each, in any order."),
        ("(7 * 6) + 3", [3, 6, 7], 46, False, "Its value is 45, not 46."),
        ("7 * 6", [3, 6, 7], 42, False, "3 is not used. Every number has to be."),
        ("7 * 6 + 7", [3, 6, 7], 49, False, "7 is used twice and 3 not at all."),
        ("5 * 2", [2, 5, 5], 10, False, "There are two fives to use. Compare sorted lists, not sets."),
        ("(1 / 49) * 49", [1, 49, 49], 1, True, "1/49 * 49 is exactly 1. `evaluate` is exact, floats are not."),
        ("7 * 6 + 3 = 45", [3, 6, 7], 45, False, "'=' is no part of an expression: `evaluate` raises ExpressionError. "
                                                 "Catch that error, and only that one, and return False."),
        ("banana", [3, 6, 7], 45, False, "No expression: catch ExpressionError and return False."),
    ]
    for expression, nums, target, wanted, hint in cases:
        got = solves(expression, nums, target)
        if got != wanted:
            _fail(f"solves({expression!r}, {nums}, {target})", got, wanted, hint)
    _ok(f"your judge agrees with ours on {len(cases)} expressions.")


# --- 01 Dataset formatting -------------------------------------------------------------------------------------------


def check_extract_hash_answer(extract: Callable[[str], str | None]) -> None:
    """Check `extract(text)`: the number after the first `#### `, or None."""
    cases = [
        ("48 + 24 = 72 clips in all.\n#### 72", "72", "The number stands after '#### ', at the end of the text."),
        ("She needs 1000 beads.\n#### 1,000", "1,000", "A comma can stand inside a number: allow it."),
        ("It got colder.\n#### -3", "-3", "A number can be negative: allow a minus sign."),
        ("The answer is 72.", None, "Without '#### ' there is no answer: strict means strict."),
        ("#### 72\n#### 5", "72", "Of several, the first one counts."),
        ("#### 72 clips", "72", "The number ends where the digits end."),
        ("#### 72.5", "72.5", "Do not cut a number at its decimal point: 72.5 is not 72."),
        ("#### 72 clips in 3 boxes", "72", "The number ends where the digits end; 3 is another number."),
        ("So we get ####", None, "No number after the marker: return None."),
        ("", None, "An empty completion has no answer: return None."),
    ]
    for text, wanted, hint in cases:
        got = extract(text)
        if not (got is None if wanted is None else numbers_match(got, wanted)):
            _fail(f"extract_hash_answer({text!r})", got, wanted, hint)
    _ok(f"{len(cases)} texts, {len(cases)} right answers.")


def check_make_labels(make_labels: Callable[[list[int], list[int]], list[int]]) -> None:
    """Check `make_labels(prompt_ids, completion_ids)`: -100 on the prompt, the token itself on the completion."""
    cases = [
        ([5, 6, 7], [8, 9], [-100, -100, -100, 8, 9], "-100 for every token of the prompt, then the completion."),
        ([5], [8, 9, 2], [-100, 8, 9, 2], "The last token, which ends the turn, is part of what the model must learn."),
        ([8, 9], [8, 9], [-100, -100, 8, 9], "What counts is where a token stands, not which one it is."),
    ]
    for prompt_ids, completion_ids, wanted, hint in cases:
        got = list(make_labels(prompt_ids, completion_ids))
        if got != wanted:
            _fail(f"make_labels({prompt_ids}, {completion_ids})", got, wanted, hint)
    _ok("the loss will see the completion and nothing else.")


# --- 02 Reward design ------------------------------------------------------------------------------------------------


def _check_reward(reward: RewardFunction, cases: list[tuple[str, dict[str, Any], float, str]]) -> None:
    """Call a reward as TRL does, first with one completion at a time and then with all of them as messages."""
    name = getattr(reward, "__name__", "reward")
    for text, columns, wanted, hint in cases:
        got = reward(completions=[text], **{column: [value] for column, value in columns.items()})
        if not isinstance(got, list) or len(got) != 1:
            _fail(f"{name}([{text!r}])", got, [wanted], "A reward returns a list with one number for each completion.")
        if got[0] != wanted:
            arguments = "".join(f", {column}=[{value!r}]" for column, value in columns.items())
            _fail(f"{name}([{text!r}]{arguments})", got[0], wanted, hint)
    messages = [[{"role": "assistant", "content": text}] for text, *_ in cases]
    columns = {column: [case[1][column] for case in cases] for column in cases[0][1]}
    got, wanted = reward(completions=messages, **columns), [case[2] for case in cases]
    if got != wanted:
        _fail(f"{name}(completions as messages)", got, wanted,
              "TRL passes each completion as a list of messages. `completion_text(completion)` gives its text.")


def check_correctness_reward(reward: RewardFunction) -> None:
    """Check `reward(completions, answer, **columns)`: 2.0 for the gold number in <answer> tags, else 0.0."""
    cases = [
        ("<answer>72</answer>", {"answer": "72"}, 2.0, "The right number in <answer> tags earns 2.0."),
        ("<answer>71</answer>", {"answer": "72"}, 0.0, "A wrong number earns 0.0."),
        ("<reasoning>\n9 * 8\n</reasoning>\n<answer>\n72\n</answer>", {"answer": "72"}, 2.0,
         "The answer can stand on a line of its own: '.' does not match a line break without re.DOTALL."),
        ("<answer>$1,000</answer>", {"answer": "1000"}, 2.0, "$1,000 is 1000. `numbers_match` compares by value."),
        ("<answer>72.0</answer>", {"answer": "72"}, 2.0, "72.0 is 72. Compare numbers, not text."),
        ("<answer>banana</answer>", {"answer": "72"}, 0.0, "No number, no reward, and no exception either."),
        ("The answer is 72.", {"answer": "72"}, 0.0, "Without tags there is no answer: the format counts too."),
        ("<answer>71</answer> No, it is 72.", {"answer": "72"}, 0.0, "Only what stands in the tags counts."),
        ("<answer>71</answer> No: <answer>72</answer>", {"answer": "72"}, 2.0, "The last complete answer counts."),
        ("", {"answer": "72"}, 0.0, "An empty completion earns 0.0."),
    ]
    _check_reward(reward, cases)
    _ok(f"{len(cases)} completions scored, as text and as messages.")


def check_strict_format_reward(reward: RewardFunction) -> None:
    """Check `reward(completions, **columns)`: 0.5 for exactly the format that the prompt asks for, else 0.0."""
    good = "<reasoning>\n9 * 8 = 72\n</reasoning>\n<answer>\n72\n</answer>"
    cases = [
        (good, {}, 0.5, "This is the format that the prompt asks for. A reward that never fires teaches nothing."),
        (good.replace(" = 72", "\n= 72"), {}, 0.5,
         "The reasoning can have several lines: '.' matches a line break only with re.DOTALL."),
        (good + "\n", {}, 0.5, "A line break at the very end does no harm: allow it."),
        (good.replace("\n", " "), {}, 0.0, "Here the tags do not stand on lines of their own."),
        ("Sure!\n" + good, {}, 0.0, "Text stands before the first tag: match all of it (re.fullmatch)."),
        (good + "\nI hope this helps.", {}, 0.0, "Text stands after the last tag: match all of it (re.fullmatch)."),
        (good.replace("</reasoning>\n", ""), {}, 0.0, "A tag is missing."),
        ("<reasoning>\na\n</reasoning>\n" + good, {}, 0.0, "Two reasonings, one answer: count each of the four tags."),
        (good.replace("9 * 8 = 72", "8 < 9, so 72"), {}, 0.5, "A '<' in the text is no tag."),
        (good + "\n" + good, {}, 0.0, "With re.DOTALL, '.*?' can run across tags: count that each stands there once."),
    ]
    _check_reward(reward, cases)
    _ok(f"{len(cases)} completions scored, as text and as messages.")


# --- 03 Reward hacking -----------------------------------------------------------------------------------------------


def check_share_to_right(share_to_right: Callable[[list[float], list[bool]], float]) -> None:
    """Check `share_to_right(bonuses, right)`: the share of the bonuses' sum that goes to right responses."""
    cases = [
        ([2.4, 0.6, 0.0, 1.0], [False, True, True, False], 0.15, "0.6 of 4.0 goes to right responses."),
        ([1.0, 1.0, 1.0, 1.0], [True, False, False, False], 0.25, "All get the same, and one of four is right."),
        ([3.0, 1.0], [True, False], 0.75, "Weigh by the bonus; do not count responses."),
        ([2.0, 2.0], [False, False], 0.0, "No right response gets anything."),
        ([0.5, 0.0], [True, True], 1.0, "All of the bonus goes to right responses, though one of them gets none."),
        ([0.0, 0.0], [True, False], 0.0, "Nothing is paid: return 0.0, do not divide by 0."),
    ]
    for bonuses, right, wanted, hint in cases:
        got = share_to_right(list(bonuses), list(right))
        if not _is_number(got, wanted):
            _fail(f"share_to_right({bonuses}, {right})", got, wanted, hint)
    _ok(f"{len(cases)} audits.")


def check_short_and_right_reward(reward: RewardFunction) -> None:
    """Check `reward(completions, answer, completion_ids, limit)`: 4.0 * (1 - tokens / limit) where right, else 0.0."""
    guess = "<reasoning>\nThe answer is 72.\n</reasoning>\n<answer>\n72\n</answer>"
    worked = "<reasoning>\n48 / 2 = 24\n48 + 24 = 72\n</reasoning>\n<answer>\n72\n</answer>"
    cases = [
        (guess, "72", 16, 2.4, "Right and short: 4.0 * (1 - 16 / 40)."),
        (guess, "71", 16, 0.0, "Short and wrong: this is the hole. Ask task.is_correct."),
        (worked, "72", 30, 1.0, "Right and longer: less, 4.0 * (1 - 30 / 40)."),
        (worked, "72", 40, 0.0, "At the limit the bonus is 0."),
        (worked, "72", 60, 0.0, "Beyond the limit it stays at 0 and is no penalty: max(0.0, ...)."),
        ("<answer>1,000</answer>", "1000", 10, 3.0, "1,000 is 1000: task.is_correct compares numbers, not text."),
        ("72", "72", 2, 0.0, "Without <answer> tags there is no answer, however short. Ask task.is_correct."),
        ("<answer>banana</answer>", "72", 3, 0.0, "No number, no bonus."),
        ("", "72", 0, 0.0, "Nothing is as short as an empty completion, and it must not pay."),
    ]
    texts, golds, tokens, wanted, _ = map(list, zip(*cases, strict=True))
    name = getattr(reward, "__name__", "reward")

    def values(texts: list, golds: list[str], tokens: list[int], limit: int) -> list[float]:
        call = f"{name}({texts!r}, answer={golds!r}, limit={limit}) of {tokens} tokens"
        got = reward(completions=texts, answer=golds, completion_ids=[[0] * count for count in tokens], limit=limit)
        if not isinstance(got, list) or len(got) != len(texts):
            _fail(call, got, "a list", "A reward returns a list with one number for each completion.")
        return got

    for text, gold, count, value, hint in cases:
        (got,) = values([text], [gold], [count], 40)
        if not _is_number(got, value):
            _fail(f"{name}([{text!r}], answer=[{gold!r}], limit=40) of {count} tokens", got, value, hint)
    (got,) = values([guess], ["72"], [16], 32)
    if not _is_number(got, 2.0):
        _fail(f"{name} of 16 tokens with limit=32", got, 2.0, "Use the parameter `limit`.")
    got = values([[{"role": "assistant", "content": text}] for text in texts], golds, tokens, 40)
    if not all(map(_is_number, got, wanted)):
        _fail(f"{name}(completions as messages)", got, wanted, "In their order; task.is_correct takes messages, too.")
    _ok(f"{len(cases)} completions scored, as text and as messages.")


# --- 04 SFT warm-up --------------------------------------------------------------------------------------------------


def check_completion_loss(completion_loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check `completion_loss(logps, labels)`: (T, V) log-probabilities, (T,) labels -> mean of the labelled tokens."""
    half, quarter, sixth = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [1 / 6, 1 / 6, 2 / 3]
    cases = [
        ([half, quarter, sixth], [-100, 0, 1], 0.6931,
         "Row t predicts token t + 1: token 1 is a 0, and row 0 gives it 0.5; token 2 is a 1, and row 1 gives it 0.5."),
        ([half, quarter, sixth], [-100, -100, 2], 1.3863,
         "One token has a label: divide by the number of labelled tokens, and leave -100 out."),
        ([half, quarter, sixth], [2, 2, 2], 1.3863,
         "Nothing predicts the first token, so its label does not count. Rows 0 and 1 give the others 0.25 each."),
        ([half, half, half, half], [-100, 1, -100, 0], 1.0397, "-100 can come after a label: choose by label."),
    ]
    for probabilities, labels, wanted, hint in cases:
        got = completion_loss(torch.tensor(probabilities).log(), torch.tensor(labels))
        rounded = [[round(p, 2) for p in row] for row in probabilities]
        call = f"completion_loss of probabilities {rounded} and labels {labels}"
        if not _is_number(got, wanted, tolerance=1e-3):
            _fail(call, got, wanted, hint)
    _ok(f"{len(cases)} examples, each token predicted by the row before it.")


# --- 05 GRPO from scratch --------------------------------------------------------------------------------------------


def check_group_advantages(group_advantages: Callable[[Tensor, int], Tensor]) -> None:
    """Check `group_advantages(rewards, num_generations)`: (B,) rewards -> (B,) advantages, group by group."""
    cases = [
        ([1, 0, 0, 0], 4, [1.5, -0.5, -0.5, -0.5],
         "Less the mean (0.25), divided by the standard deviation (0.5, with n - 1, as `std` computes it)."),
        ([0, 1, 1, 1], 4, [-1.5, 0.5, 0.5, 0.5], "Less the mean (0.75), divided by the standard deviation (0.5)."),
        ([1, 0, 0, 0, 11, 10, 10, 10], 4, [1.5, -0.5, -0.5, -0.5] * 2,
         "Two groups, each with its own mean and deviation: `rewards.view(-1, num_generations)` has a row for each."),
        ([1, 0, 1, 0], 2, [0.7071, -0.7071] * 2, "Here a group has two completions: use num_generations."),
        ([1, 1, 1, 1], 4, [0, 0, 0, 0],
         "All rewards are equal: nobody was better than the others. 0 / 0 is not a number: add something tiny below."),
    ]
    for rewards, num_generations, wanted, hint in cases:
        got = group_advantages(torch.tensor(rewards, dtype=torch.float), num_generations)
        _check_tensor(f"group_advantages({rewards}, {num_generations})", got, wanted, hint)
    _ok(f"{len(cases)} batches, each group compared with itself.")


def check_clipped_loss(clipped_loss: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """Check `clipped_loss(logps, old_logps, advantages, epsilon)`: (B, T) log-probabilities -> (B, T) losses."""
    half, double = torch.tensor(0.5).log().item(), torch.tensor(2.0).log().item()
    cases = [
        ([[0.0]], [2.0], [[-2.0]], "Nothing has changed: the ratio is exp(0) = 1, the loss is *minus* the advantage."),
        ([[0.1]], [2.0], [[-2.2103]], "The ratio exp(0.1) is within the clip range: the loss is -ratio * advantage."),
        ([[double]], [1.0], [[-1.2]], "Good, and already twice as likely: clipped at 1 + epsilon."),
        ([[half]], [-1.0], [[0.8]], "Bad, and already half as likely: clipped at 1 - epsilon."),
        ([[double]], [-1.0], [[2.0]], "Bad, and twice as likely: not clipped, the way back stays open. Take the "
                                      "smaller of the two objectives, then the minus sign."),
        ([[half]], [1.0], [[-0.5]], "Good, and half as likely: not clipped. Take the smaller of the two objectives."),
        ([[0.0, double], [0.0, half]], [1.0, -1.0], [[-1.0, -1.2], [1.0, 0.8]],
         "Two completions of two tokens: advantages (B,) has to become (B, 1), `advantages[:, None]`."),
    ]
    for change, advantages, wanted, hint in cases:
        old_logps = torch.full_like(torch.tensor(change), -1.0)
        logps = old_logps + torch.tensor(change)
        got = clipped_loss(logps, old_logps, torch.tensor(advantages), 0.2)
        ratios = [[round(ratio, 2) for ratio in row] for row in torch.tensor(change).exp().tolist()]
        _check_tensor(f"clipped_loss with ratio {ratios}, advantage {advantages}, epsilon 0.2", got, wanted, hint)
    _ok(f"{len(cases)} cases, clipped only where it pays to go on.")


# --- 06 GRPO training ------------------------------------------------------------------------------------------------


def check_share_without_signal(share_without_signal: Callable[[list[float], int], float]) -> None:
    """Check `share_without_signal(rewards, num_generations)`: the share of groups in which all rewards are equal."""
    cases = [
        ([1, 0, 0, 0, 0, 0, 0, 0], 4, 0.5, "Two groups: in the first one reward differs, in the second none does."),
        ([1, 1, 1, 1], 4, 1.0, "All right is no signal either: nobody was better than the others."),
        ([0, 0, 1, 1], 2, 1.0, "Compare within a group, not across groups: each of these two is constant."),
        ([0, 1, 0, 1], 4, 0.0, "Here the group has four completions: use num_generations."),
        ([1.1, 1.1, 0.1, 0.1, 1.1, 0.1], 2, 2 / 3, "Rewards are any numbers, not only 0 and 1."),
        ([0.1, 0.1, 0.1, 0.0], 4, 0.0, "Also a small difference, here in the format, is a signal."),
        ([0, 1, 1, 0], 4, 0.0, "Compare all rewards of a group, not only the first with the last."),
    ]
    for rewards, num_generations, wanted, hint in cases:
        got = share_without_signal(list(map(float, rewards)), num_generations)
        if not _is_number(got, wanted):
            _fail(f"share_without_signal({rewards}, {num_generations})", got, wanted, hint)
    _ok(f"{len(cases)} batches.")


# --- 07 PPO training -------------------------------------------------------------------------------------------------


def check_gae(gae: Callable[[list[float], list[float], float, float], Sequence[float]]) -> None:
    """Check `gae(rewards, values, gamma, lam)`: one advantage a token, against the sum that defines it."""
    cases = [
        ([0, 0, 1], [0, 0, 0], 1.0, 1.0, "The critic expects nothing, and 1 comes at the end: every token gets 1."),
        ([0, 0, 1], [0.25, 0.5, 0.75], 1.0, 1.0,
         "With gamma = lam = 1 the advantage is the return that came less the value."),
        ([0, 0, 1], [0.25, 0.5, 0.75], 1.0, 0.0,
         "With lam = 0 only the next prediction counts: r + V(next) - V. After the last token V is 0."),
        ([0, 0, 0, 0, 1], [0.25, 0.5, 0.25, 0.5, 0.75], 1.0, 0.5,
         "Go through the tokens from the last to the first: A(t) = delta(t) + gamma * lam * A(t + 1)."),
        ([0, 0, 1], [0.25, 0.5, 0.75], 0.5, 1.0,
         "gamma discounts twice: the next value in delta, and the next advantage."),
        ([-0.5, 0.25, 1], [0.5, 0.5, 0.5], 0.5, 0.5,
         "Every token can have a reward of its own, for example a KL penalty."),
        ([1], [0.25], 1.0, 0.5, "A single token: there is no next value and no next advantage."),
    ]
    for rewards, values, gamma, lam, hint in cases:
        wanted = _gae_by_definition(rewards, values, gamma, lam)
        got = gae(list(rewards), list(values), gamma, lam)
        call = f"gae({rewards}, {values}, gamma={gamma}, lam={lam})"
        got = [round(float(x), 4) for x in got]
        if len(got) != len(wanted) or any(abs(a - b) > 1e-3 for a, b in zip(got, wanted, strict=True)):
            _fail(call, got, [round(x, 4) for x in wanted], hint)
    _ok(f"{len(cases)} completions, equal to the double sum that defines GAE.")


def _gae_by_definition(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A(t) = sum over l of (gamma lam)^l delta(t + l), with delta(t) = r(t) + gamma V(t + 1) - V(t)."""
    next_values = [*values[1:], 0.0]
    deltas = [r + gamma * v_next - v for r, v, v_next in zip(rewards, values, next_values, strict=True)]
    return [sum((gamma * lam) ** i * delta for i, delta in enumerate(deltas[t:])) for t in range(len(deltas))]


# --- 08 Evaluation ---------------------------------------------------------------------------------------------------


def check_pass_at_k(pass_at_k: Callable[[int, int, int], float]) -> None:
    """Check `pass_at_k(n, c, k)`: the chance that k of n samples, of which c are right, hold a right one."""
    cases = [
        (4, 1, 1, 0.25, "One draw: the share of right samples, c / n."),
        (4, 1, 2, 0.5, "Draw without putting back: 3 of the 6 pairs hold the right one. 1 - (1 - c/n)**k puts back."),
        (4, 0, 3, 0.0, "No sample is right."),
        (4, 4, 2, 1.0, "All samples are right."),
        (8, 3, 6, 1.0, "Only 5 are wrong, so 6 draws cannot miss. math.comb(5, 6) is 0, and that is what you need."),
        (8, 2, 4, 11 / 14, "1 - C(n - c, k) / C(n, k) = 1 - 15 / 70."),
        (1000, 10, 100, 0.6531, "Large n: stay exact. math.comb has no limit, factorials as floats do."),
    ]
    for n, c, k, wanted, hint in cases:
        got = pass_at_k(n, c, k)
        if not _is_number(got, wanted):
            _fail(f"pass_at_k(n={n}, c={c}, k={k})", got, round(wanted, 4), hint)
    _ok(f"{len(cases)} cases, unbiased.")


def check_first_verdict(first_verdict: Callable[[str], str | None]) -> None:
    """Check `first_verdict(text)`: the first word "yes" or "no", or None."""
    cases = [
        ("3 + 7 = 10, 10 + 25 = 35 no\n25 + 7 = 32, 32 + 3 = 35 yes", "no", "The first one counts, not the best one."),
        ("7 * 6 = 42, 42 + 3 = 45 yes", "yes", "The first attempt can hit."),
        ("7 * 6 = 42, 42 + 3 = 45", None, "Without a verdict return None: nothing was checked."),
        ("not one of these, nobody knows: 42 yes", "yes", "A word of its own: 'not' and 'nobody' begin with 'no'."),
        ("", None, "An empty response has no verdict: return None."),
    ]
    for text, wanted, hint in cases:
        got = first_verdict(text)
        if got != wanted:
            _fail(f"first_verdict({text!r})", got, wanted, hint)
    _ok(f"{len(cases)} responses.")


# --- 09 Diagnosing runs ----------------------------------------------------------------------------------------------


def check_diagnosis(diagnosis: Mapping[str, str], runs: Mapping[str, RunDirectory], healthy: RunDirectory) -> None:
    """Check {letter: name of a problem} against what the metrics of each run show next to the healthy run's."""
    well = healthy.metrics()
    for letter, name in diagnosis.items():
        if name not in PROBLEMS:
            _fail(f"diagnosis[{letter!r}]", name, "one of the names on the list", "Copy the name from the list above.")
        problem, metrics = PROBLEMS[name], runs[letter].metrics()
        if not problem.is_seen(metrics, well):
            here = ", ".join(f"{column} {begin(metrics, column):.3g} → {end(metrics, column):.3g} (healthy "
                             f"{begin(well, column):.3g} → {end(well, column):.3g})" for column in problem.columns)
            raise CheckFailed(f"Run {letter} is not a case of {name!r}: with that you would see that {problem.shows}."
                              f"\nHint: in the first and the last {SPAN} steps it has {here}.")
    missing = [letter for letter in "BCDEFGH" if letter not in diagnosis]
    if missing:
        raise CheckFailed(f"So far all is right, and run {missing[0]} has no diagnosis yet.\nHint: add diagnosis"
                          f"[{missing[0]!r}].")
    _ok(f"{len(diagnosis)} runs, {len(diagnosis)} right diagnoses.")


def check_first_alarm(first_alarm: Callable[..., int | None]) -> None:
    """Check `first_alarm(metrics, patience=3)`: the step that ends `patience` steps in a row with an alarm, or None."""
    quiet = {"completions/clipped_ratio": 0.0, "frac_reward_zero_std": 0.1, "kl": 0.05, "rewards/format/mean": 0.9,
             "rewards/sum/mean": 0.2, "rewards/sum/std": 0.4}
    cut, silent, far = {"completions/clipped_ratio": 0.2}, {"frac_reward_zero_std": 0.75}, {"kl": 0.2}
    dead, same = {"rewards/sum/mean": 0.0, "rewards/sum/std": 0.0}, {"rewards/sum/std": 0.0}
    cases = [
        ([{}] * 5, 3, None, "Nothing is wrong in any step. A run without an alarm gives None."),
        ([cut, {}, cut, cut, cut], 3, 5, "The third step *in a row*: the one of step 1 does not count any more."),
        ([silent] * 4, 3, 3, "Most groups have no signal from the first step on: the third step is the first alarm."),
        ([{}, far, far, far], 3, 4, "The KL is above 0.15 from step 2 on."),
        ([{}, {}, dead, dead, dead], 3, 5, "A reward function pays 0: look at every column rewards/NAME/mean."),
        ([same] * 5, 3, None, "Everybody earns the same, but not 0: only the columns that end with /mean count."),
        ([cut, far, silent], 3, 3, "Different reasons may take turns: first combine them, then count."),
        ([far, far, {}, far, far, {}, far, far], 3, None, "Never three in a row. Start again after a good step."),
        ([far, far, {}], 2, 2, "With patience=2 two in a row are enough."),
    ]
    for changes, patience, wanted, hint in cases:
        metrics = pd.DataFrame([{"step": step, **quiet, **change} for step, change in enumerate(changes, 1)])
        got = first_alarm(metrics, patience)
        if got != wanted:
            shown = ", ".join(" and ".join(f"{key} = {value:g}" for key, value in change.items()) or "healthy"
                              for change in changes)
            _fail(f"first_alarm with steps [{shown}], patience={patience},", got, wanted, hint)
    sparse = pd.DataFrame([{"step": step, **quiet, **far} for step in (10, 20, 30, 40)])
    if (got := first_alarm(sparse, 3)) != 30:
        _fail("first_alarm of a run that logs every tenth step, with kl = 0.2 from the start,", got, 30,
              "Return the value of the column step, not the number of the row.")
    _ok(f"{len(cases) + 1} courses of training.")


# --- 10 SageMaker training -------------------------------------------------------------------------------------------


def check_logged_values(logged_values: Callable[[str, str], list[float]]) -> None:
    """Check `logged_values(regex, log)`: group 1 of the regular expression in every line that has it, as numbers."""
    reward = r"metrics grpo .* reward=([-+0-9.e]+)"
    log = (
        "Recipe countdown-grpo on hardware tier cpu.\n"
        "metrics sft step=1 of=2 loss=5.85 reward=9\n"
        "metrics grpo step=1 of=3 loss=-0.01 reward=0.125 rewards/format_reward/mean=0.9\n"
        "SFT: a line without a metric, reward= \n"
        "metrics grpo step=2 of=3 loss=2.5e-05 reward=-0.5 rewards/format_reward/mean=1\n"
        "metrics grpo step=3 of=3 loss=0 reward=1e-05 rewards/format_reward/mean=1"
    )
    loss = r"metrics grpo .* loss=([-+0-9.e]+)"
    cases = [
        (reward, log, [0.125, -0.5, 1e-05], "Group 1 of each line that matches, in order; other stages do not match."),
        (loss, log, [-0.01, 2.5e-05, 0.0], "float() reads -0.01 and 2.5e-05 as they stand; 0 is a value, too."),
        (r"metrics ppo .* kl=([-+0-9.e]+)", log, [], "A metric that is not in the log has no values: an empty list."),
        (loss, "[rank0] metrics grpo step=1 of=3 loss=0.5", [0.5],
         "The metric can stand anywhere in the line: re.search, not re.match."),
        (r"a=(\d)", "a=1 a=2\na=3", [1.0, 3.0], "One value a line: re.search finds the first. Go line by line."),
    ]
    for regex, text, wanted, hint in cases:
        got = logged_values(regex, text)
        if not isinstance(got, list) or got != wanted:
            _fail(f"logged_values({regex!r}, log)", got, wanted, hint)
        if not all(isinstance(value, float) for value in got):
            _fail(f"logged_values({regex!r}, log)", got, wanted, "The log is text: make numbers of it with float().")
    _ok(f"{len(cases)} logs read as SageMaker reads them.")


# --- 11 Serving and sharing ------------------------------------------------------------------------------------------


def check_merge_lora(merge_lora: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """Check `merge_lora(weight, lora_A, lora_B, alpha)`: (out, in), (r, in), (out, r) -> the merged (out, in)."""
    cases = [
        ([[0, 0], [0, 0]], [[1, 2]], [[3], [4]], 1, [[3, 6], [4, 8]],
         "B is (out, r) and A is (r, in): B @ A has the shape of the weight."),
        ([[1, 0], [0, 1]], [[1, 2]], [[3], [4]], 1, [[4, 6], [4, 9]], "Add the update to the base model's weight."),
        ([[0, 0], [0, 0]], [[1, 2]], [[3], [4]], 2, [[6, 12], [8, 16]], "The update is scaled by alpha / r."),
        ([[0, 0], [0, 0]], [[1, 0], [0, 1]], [[1, 2], [3, 4]], 1, [[0.5, 1], [1.5, 2]],
         "The update is scaled by alpha / r, and r is the number of rows of A: here 2."),
        ([[1, 1, 1], [1, 1, 1]], [[1, 2, 3]], [[1], [0]], 1, [[2, 3, 4], [1, 1, 1]],
         "A layer need not be square: (out, r) @ (r, in)."),
        ([[1, 0], [0, 1]], [[1, 2]], [[0], [0]], 16, [[1, 0], [0, 1]], "LoRA starts with B = 0: nothing has changed."),
    ]
    for weight, lora_A, lora_B, alpha, wanted, hint in cases:
        before = torch.tensor(weight, dtype=torch.float)
        given = before.clone()
        got = merge_lora(given, torch.tensor(lora_A, dtype=torch.float), torch.tensor(lora_B, dtype=torch.float), alpha)
        _check_tensor(f"merge_lora({weight}, {lora_A}, {lora_B}, alpha={alpha})", got, wanted, hint)
        if not torch.equal(given, before):
            raise CheckFailed("merge_lora changed the weight that it was given.\nHint: return a new tensor, `weight + "
                              "...`; with `weight += ...` the base model is lost.")
    _ok(f"{len(cases)} layers merged.")


# --- 12 Results ------------------------------------------------------------------------------------------------------


def check_conclude(conclude: Callable[[str, float, float, float, int, int], str]) -> None:
    """Check `conclude(what, difference, low, high, problems, seeds)`: a sentence no bolder than its interval."""
    cases = [
        ("GRPO", 0.331, 0.282, 0.380, 500, 1, "better", "The whole interval is above 0: say 'better'."),
        ("extra SFT", 0.012, -0.011, 0.035, 250, 1, "not shown",
         "0 lies in the interval, so no difference fits the data as well. Say 'not shown', not 'the same'."),
        ("random reward", -0.094, -0.121, -0.067, 500, 3, "worse", "The whole interval is below 0: say 'worse'."),
        ("PPO", 0.020, 0.0, 0.040, 500, 1, "not shown", "An interval that touches 0 does not exclude it."),
    ]
    for what, difference, low, high, problems, seeds, verdict, hint in cases:
        got = conclude(what, difference, low, high, problems, seeds)
        call = f"conclude({what!r}, {difference}, {low}, {high}, {problems}, {seeds})"
        if not isinstance(got, str):
            _fail(call, got, "a sentence", "Return a string.")
        text = got.lower().replace("−", "-")
        said = ["not shown"] if "not shown" in text else [word for word in ("better", "worse") if word in text]
        if said != [verdict]:
            _fail(call, got, f"a sentence with {verdict!r} and no other verdict", hint)
        signs = ("-", "") if low < 0 < high else ("", "")  # "worse by 9.4" is clear without a sign
        points = [f"{sign}{100 * abs(x):.1f}" for sign, x in zip(("", *signs), (difference, low, high), strict=True)]
        missing = [part for part in [what.lower(), *points, str(problems), str(seeds)] if part not in text]
        if missing:
            _fail(call, got, f"a sentence with {missing[0]}",
                  "A conclusion names what was compared, the difference and both ends of its interval in points with "
                  "one decimal (33.1, or -1.1 with its minus sign), and how many problems and seeds it rests on.")
        if re.search(r"\b(proves?|proved|proven|proof|always)\b", text):
            _fail(call, got, "the same without 'prove' and 'always'", "One experiment proves nothing for ever.")
    _ok(f"{len(cases)} conclusions, none of them claims more than its interval.")
