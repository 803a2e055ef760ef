"""Countdown: combine some numbers, each exactly once, with + - * / to reach a target.

A row: {"nums": [9, 14, 20], "target": 25}. A correct answer: <answer>(14 + 20) - 9</answer>.
"""

from __future__ import annotations

import hashlib
import random
from functools import lru_cache
from itertools import combinations

from .answers import extract_xml_answer
from .base import Completion, Row, Task, completion_text
from .expressions import ExpressionError, evaluate, numbers_used
from .sources import RowError

LARGEST_NUMBER = 25  # synthetic problems draw their numbers from 1..25
SMALLEST_TARGET = 10
LARGEST_RESULT = 100  # every intermediate result is a whole number in 1..100, the range of the tiny model
HIT_RATE = 0.5  # share of correct attempts in demonstrations: enough to learn searching and checking
GIVE_UP_RATE = 0.7  # how often a demonstration gives up after a wrong attempt, which RL unlearns


@lru_cache(maxsize=100_000)
def all_attempts(nums: tuple[int, ...], largest: int) -> tuple[tuple[str, str, int], ...]:
    """Enumerate the ways to use up `nums` with whole, positive results of at most `largest`.

    Returns:
        (steps, expression, value) triples, for example ("7 * 6 = 42, 42 + 3 = 45", "(7 * 6) + 3", 45).
    """
    found: dict[tuple[str, str], int] = {}

    def combine(pool: tuple[tuple[int, str], ...], steps: tuple[str, ...]) -> None:
        if len(pool) == 1:
            found[", ".join(steps), pool[0][1]] = pool[0][0]
            return
        for i, j in combinations(range(len(pool)), 2):
            (b, b_text), (a, a_text) = sorted((pool[i], pool[j]))  # larger first: only that order is whole and positive
            rest = tuple(item for k, item in enumerate(pool) if k not in (i, j))
            for operator, value in (("+", a + b), ("-", a - b), ("*", a * b), ("/", a // b if a % b == 0 else 0)):
                if 1 <= value <= largest:
                    text = f"{a_text} {operator} {b_text}"
                    combine(((value, f"({text})" if rest else text), *rest), (*steps, f"{a} {operator} {b} = {value}"))

    combine(tuple((n, str(n)) for n in nums), ())
    return tuple((steps, expression, value) for (steps, expression), value in found.items())


def solve(nums: list[int], target: int) -> list[str]:
    """Return every expression that reaches the target through whole, positive results.

    >>> solve([2, 3, 7], 42)
    ['7 * (3 * 2)', '(7 * 2) * 3', '(7 * 3) * 2']
    """
    attempts = all_attempts(tuple(sorted(nums)), max(LARGEST_RESULT, target))
    return [expression for _, expression, value in attempts if value == target]


def split_of(nums: list[int]) -> str:
    """Return the split of a set of numbers: one set in five is "test", so the splits never share a set."""
    digest = hashlib.sha256(repr(sorted(nums)).encode()).digest()
    return "test" if digest[0] % 5 == 0 else "train"


def generate_row(split: str, rng: random.Random) -> Row:
    """Draw a solvable problem of the split: the target, at least 10, is drawn from the values of all attempts."""
    while True:
        nums = [rng.randint(1, LARGEST_NUMBER) for _ in range(3)]
        if split_of(nums) != split:
            continue
        values = {value for _, _, value in all_attempts(tuple(sorted(nums)), LARGEST_RESULT)}
        targets = sorted(value for value in values if value >= SMALLEST_TARGET)
        if targets:
            return {"nums": nums, "target": rng.choice(targets)}


class Countdown(Task):
    name = "countdown"
    hub_id = "predibase/countdown"
    columns = ("nums", "target")
    response_formats = ("think", "plain")

    def question(self, row: Row) -> str:
        return (f"Use each of the numbers {', '.join(map(str, row['nums']))} exactly once, with + - * / and ( ), to "
                f"write an expression that equals {row['target']}.")

    def gold(self, row: Row) -> str:
        return str(row["target"])

    def extract(self, completion: Completion) -> str | None:
        text = completion_text(completion)
        return last_line(text) if self.response_format == "plain" else extract_xml_answer(text)

    def has_format(self, completion: Completion) -> bool:
        if self.response_format == "plain":
            return is_expression(self.extract(completion))
        return super().has_format(completion)

    def is_correct(self, completion: Completion, row: Row) -> bool:
        return is_solution(self.extract(completion), row)

    def is_correct_lenient(self, completion: Completion, row: Row) -> bool:
        """Also accept an expression on the last line, without tags."""
        return self.is_correct(completion, row) or is_solution(last_line(completion_text(completion)), row)

    def demonstration(self, row: Row) -> str:
        """Write attempts until one is correct; after a wrong attempt, often give up and answer with it anyway."""
        tries, expression = demonstrate(row, random.Random(f"{row['nums']} {row['target']}"))
        if self.response_format == "plain":
            return f"{tries}\n{expression}"
        return f"<think>{tries}</think><answer>{expression}</answer>"

    def generate(self, split: str, rng: random.Random) -> tuple[str, Row]:
        row = generate_row(split, rng)
        return f"{sorted(row['nums'])} {row['target']}", row

    def check_row(self, row: Row) -> Row:
        nums, target = row["nums"], row["target"]
        if not isinstance(nums, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in nums):
            raise RowError(f"nums={nums!r} is not a list of whole numbers: write it like [9, 14, 20].")
        if not 2 <= len(nums) <= 6 or min(nums) < 1:
            raise RowError(f"nums={nums!r} does not fit: give two to six numbers of at least 1.")
        if not isinstance(target, int) or isinstance(target, bool):
            raise RowError(f"target={target!r} is not a whole number: write it like 46.")
        if len(nums) <= 4 and not has_solution(tuple(sorted(nums)), target):
            raise RowError(f"no expression that uses each of {nums} once equals {target}: remove the row.")
        return {"nums": nums, "target": target}


def last_line(text: str) -> str:
    """Return the last line of a text, up to an equals sign.

    >>> last_line("7 * 6 = 42, 42 + 3 = 45 yes\\n(7 * 6) + 3 = 45")
    '(7 * 6) + 3 '
    """
    lines = text.strip().splitlines()
    return lines[-1].split("=")[0] if lines else ""


def is_expression(text: str) -> bool:
    try:
        evaluate(text)
    except ExpressionError:
        return False
    return True


def is_solution(expression: str | None, row: Row) -> bool:
    """Return whether the expression uses each of the row's numbers once, and no other, and equals the target."""
    if expression is None:
        return False
    try:
        return sorted(numbers_used(expression)) == sorted(row["nums"]) and evaluate(expression) == row["target"]
    except ExpressionError:
        return False


def demonstrate(row: Row, rng: random.Random) -> tuple[str, str]:
    """Return attempts, one per line and each marked "yes" or "no", and the expression of the last attempt."""
    attempts = all_attempts(tuple(sorted(row["nums"])), max(LARGEST_RESULT, row["target"]))
    hits = [attempt for attempt in attempts if attempt[2] == row["target"]]
    misses = [attempt for attempt in attempts if attempt[2] != row["target"]]
    lines = []
    while True:
        is_hit = bool(hits) and (not misses or rng.random() < HIT_RATE)
        steps, expression, _ = rng.choice(hits if is_hit else misses)
        lines.append(f"{steps} {'yes' if is_hit else 'no'}")
        if is_hit or rng.random() < GIVE_UP_RATE or len(lines) == 8:
            return "\n".join(lines), expression


@lru_cache(maxsize=100_000)
def has_solution(nums: tuple[int, ...], target: int) -> bool:
    """Return whether some expression over the numbers equals the target, through any fractions or negative results."""

    def reach(pool: tuple[tuple[int, int], ...]) -> bool:  # fractions as numerator and denominator, which is fast
        if len(pool) == 1:
            return pool[0][0] == target * pool[0][1]
        for i in range(len(pool)):
            for j in range(len(pool)):
                if i == j:
                    continue
                (a, b), (c, d), rest = pool[i], pool[j], tuple(pool[k] for k in range(len(pool)) if k not in (i, j))
                values = [(a * d - b * c, b * d), (a * d, b * c)] if c else [(a, b)]
                if i < j:
                    values += [(a * d + b * c, b * d), (a * c, b * d)]
                if any(reach((value, *rest)) for value in values):
                    return True
        return False

    return reach(tuple((n, 1) for n in nums))
