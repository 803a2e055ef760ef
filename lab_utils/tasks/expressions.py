"""Exact arithmetic on text that a model wrote, without `eval` and with bounded work on any input.

The grammar has one function below per line, the loosest binding first:

    sum     = product { ("+" | "-") product }
    product = factor { ("*" | "/") factor }
    factor  = integer | "(" sum ")" | "-" factor

Nothing else is an expression: no `**`, no `//`, no decimals, no names, no `=`, no "3(4)".
"""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction

MAX_LENGTH = 200  # characters of an expression
MAX_DIGITS = 12  # digits of one integer
MAX_DEPTH = 20  # nested parentheses and minus signs

TOKEN = re.compile(r"[0-9]+|\S")
END = "the end"
RULE = "Write whole numbers joined by + - * / and parentheses, such as (7 * 6) + 3."


class ExpressionError(ValueError):
    """A text is not an expression that can be evaluated. The message says why and what to write."""


def evaluate(text: str) -> Fraction:
    """Return the exact value of an expression over whole numbers with + - * / and ( ).

    Raises:
        ExpressionError: the text is not an expression, divides by zero, or exceeds the limits above.

    >>> evaluate("(7 * 6) + 3 / 2")
    Fraction(87, 2)
    >>> evaluate("2 ** 3")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    lab_utils.tasks.expressions.ExpressionError: Expected a number or '(' but found *. Write whole numbers ...
    """
    tokens = deque([*tokenize(text), END])
    value = parse_sum(tokens, depth=0)
    if tokens[0] != END:
        raise ExpressionError(f"Expected an operator or the end but found {tokens[0]}. {RULE}")
    return value


def numbers_used(text: str) -> list[int]:
    """Return all whole numbers in an expression, in the order they are written and without any minus sign.

    Raises:
        ExpressionError: the text holds something that cannot be part of an expression, or exceeds the limits above.

    >>> numbers_used("(7 * 6) - 7")
    [7, 6, 7]
    """
    return [int(token) for token in tokenize(text) if token.isdecimal()]


def tokenize(text: str) -> list[str]:
    """Split an expression into whole numbers, operators and parentheses; whitespace only separates them."""
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"The text has {len(text)} characters: write an expression of at most {MAX_LENGTH}.")
    tokens = TOKEN.findall(text)
    for token in tokens:
        if token not in "+-*/()" and not (token.isascii() and token.isdecimal()):
            raise ExpressionError(f"{token!r} cannot be part of an expression. {RULE}")
        if len(token) > MAX_DIGITS:
            raise ExpressionError(f"The number {token} has more than {MAX_DIGITS} digits: use smaller numbers.")
    return tokens


def parse_sum(tokens: deque[str], depth: int) -> Fraction:
    value = parse_product(tokens, depth)
    while tokens[0] in ("+", "-"):
        sign = 1 if tokens.popleft() == "+" else -1
        value += sign * parse_product(tokens, depth)
    return value


def parse_product(tokens: deque[str], depth: int) -> Fraction:
    value = parse_factor(tokens, depth)
    while tokens[0] in ("*", "/"):
        operator = tokens.popleft()
        factor = parse_factor(tokens, depth)
        if operator == "/" and factor == 0:
            raise ExpressionError("Division by zero: change the divisor.")
        value = value * factor if operator == "*" else value / factor
    return value


def parse_factor(tokens: deque[str], depth: int) -> Fraction:
    if depth > MAX_DEPTH:
        raise ExpressionError(f"More than {MAX_DEPTH} nested parentheses or minus signs: use fewer.")
    token = tokens.popleft()
    if token == "-":
        return -parse_factor(tokens, depth + 1)
    if token == "(":
        value = parse_sum(tokens, depth + 1)
        if tokens[0] != ")":
            raise ExpressionError(f"Expected ')' but found {tokens[0]}: close every parenthesis.")
        tokens.popleft()
        return value
    if not token.isdecimal():
        raise ExpressionError(f"Expected a number or '(' but found {token}. {RULE}")
    return Fraction(int(token))
