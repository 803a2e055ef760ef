"""Self-checks of the exercises: `check_xyz(your_function)` prints OK, or raises CheckFailed with a hint.

A check calls your function with several inputs and stops at the first wrong answer. An error inside your function is
shown as it is. The sections follow the notebooks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .answers import numbers_match
from .rewards.combine import RewardFunction


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
        (good + "\n" + good, {}, 0.0, "With re.DOTALL, '.*?' can run across tags: count that each stands there once."),
    ]
    _check_reward(reward, cases)
    _ok(f"{len(cases)} completions scored, as text and as messages.")


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
