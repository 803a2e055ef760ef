"""Tests of lab_utils.tasks.expressions: exact values, text that is not an expression, and bounded work."""

import ast
import operator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab_utils.tasks.expressions import MAX_DEPTH, MAX_DIGITS, MAX_LENGTH, ExpressionError, evaluate, numbers_used

repeatable = settings(deadline=None, derandomize=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("007", 7),
        ("2 + 3 * 4", 14),
        ("(2 + 3) * 4", 20),
        ("10 - 3 - 2", 5),
        ("48 / 2 / 3", 8),
        ("2 * 3 / 4", Fraction(3, 2)),
        ("1/3 + 1/3 + 1/3", 1),  # exact, unlike floats
        (" ( 7*6 )\n+\t3 ", 45),
        ("-3 + 5", 2),
        ("5 - -3", 8),
        ("--3", 3),
        ("2 * -3", -6),
        ("-(2 + 3) * 4", -20),
        ("0 / 5", 0),
        ("999999999999 * 999999999999", 999999999999**2),
    ],
)
def test_value(text, value):
    result = evaluate(text)
    assert result == value
    assert isinstance(result, Fraction)


@pytest.mark.parametrize(
    "text",
    ["", " ", "()", "(", ")", "(1", "1)", "(1))", "+", "1 +", "* 1", "+ 1", "1 + + 1", "1 2", "2(3)", "(2)(3)",
     "2 ** 3", "2**3", "95**99**7", "9**9**9**9", "7 // 2", "7 % 2", "3.5*2", "3.", ".5", "1e3", "1,000", "1_000",
     "0x10", "a", "x + 1", "abs(-1)", "__import__('os')", "7 * 6 = 42", "42 = 42", "=", "1 < 2", "7 × 6", "7 ÷ 6",
     "7 − 6", "٣ + ٤", "３ + ４", "2²", "½", "1;2", "[1]", "{1}", "'1'", "lambda: 1", "True", "\x00", "1\x00"],
)
def test_text_that_is_not_an_expression(text):
    with pytest.raises(ExpressionError):
        evaluate(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2 ** 3", r"found \*.*Write whole numbers"),
        ("3.5 * 2", r"'\.' cannot be part of an expression.*Write whole numbers"),
        ("(7 * 6", r"Expected '\)' but found the end: close every parenthesis"),
        ("1 / (2 - 2)", "Division by zero"),
        ("0 / -0", "Division by zero"),
        ("7 6", "Expected an operator or the end but found 6"),
        ("1234567890123", "1234567890123 has more than 12 digits"),
        ("1+" * 200, "400 characters.*at most 200"),
    ],
)
def test_messages_say_what_is_wrong(text, message):
    with pytest.raises(ExpressionError, match=message):
        evaluate(text)


def test_limits():
    assert evaluate("9" * MAX_DIGITS) == 10**MAX_DIGITS - 1
    assert evaluate("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH) == 1
    assert evaluate(("1+" * MAX_LENGTH)[: MAX_LENGTH - 1]) == MAX_LENGTH // 2
    too_deep = MAX_DEPTH + 1
    for text in ("9" * (MAX_DIGITS + 1), "(" * too_deep + "1" + ")" * too_deep, "-" * too_deep + "1", "1".ljust(201)):
        with pytest.raises(ExpressionError):
            evaluate(text)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("(7 * 6) - 7", [7, 6, 7]), ("-3 + 5", [3, 5]), ("12 + 1 + 2", [12, 1, 2]), ("", []), ("2 ** 3", [2, 3])],
)
def test_numbers_used(text, numbers):
    assert numbers_used(text) == numbers


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def reference_value(node: ast.expr) -> Fraction:
    """Evaluate Python's own syntax tree over fractions, with an independent parser and evaluator."""
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](reference_value(node.left), reference_value(node.right))
    if isinstance(node, ast.UnaryOp):
        assert isinstance(node.op, ast.USub)
        return -reference_value(node.operand)
    assert isinstance(node, ast.Constant)
    return Fraction(node.value)


def join(parts):
    return st.tuples(parts, st.sampled_from(["+", "-", "*", "/", " + ", " - ", " * ", " / "]), parts).map("".join)


expressions = st.recursive(
    st.integers(0, 999).map(str),
    lambda parts: st.one_of(join(parts), parts.map("({})".format), parts.map("-{}".format)),
    max_leaves=8,
).filter(lambda text: len(text) <= MAX_LENGTH and text.count("(") + text.count("-") <= MAX_DEPTH)


@given(expressions)
@repeatable
def test_agrees_with_python(text):
    try:
        expected = reference_value(ast.parse(text, mode="eval").body)
    except ZeroDivisionError:
        with pytest.raises(ExpressionError):
            evaluate(text)
    else:
        assert evaluate(text) == expected


@given(st.one_of(st.text(), st.text(alphabet="0123456789+-*/() .", max_size=30)))
@repeatable
def test_any_text_has_a_value_or_raises_expression_error(text):
    try:
        value = evaluate(text)
    except ExpressionError:
        return
    assert isinstance(value, Fraction)
    assert numbers_used(text)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("piece", ["(", ")", "-", "1", "1+", "1*", "9**", "9*(", "1/", " ", "()", "a "])
@pytest.mark.parametrize("length", [150, 200, 100_000])
def test_work_is_bounded(piece, length):
    text = (piece * length)[:length]
    for function in (evaluate, numbers_used):
        try:
            function(text)
        except ExpressionError:
            continue
        assert length <= MAX_LENGTH
