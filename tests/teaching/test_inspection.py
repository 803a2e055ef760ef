"""What the notebooks print: sums judged exactly in linear time, completions side by side, and claims."""

import pytest

from lab_utils.config import load
from lab_utils.teaching.inspection import expect, side_by_side, sums_right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("7 * 6 = 42, 42 + 3 = 45 yes", [True, True]),
        ("7 * 6 = 41\n42 - 45 = 3", [False, False]),
        ("1 + 2 + 3 = 6", [False]),  # only the last two numbers are read as a sum
        ("7 / 0 = 7, 7 / 2 = 3, 8 / 2 = 04", [False, False, True]),
        ("no sums: 7*6=42", []),
        ("1" * 20 + " + 1 = 2", [False]),  # beyond the limits of an expression
        ("1" * 200_000, []),
        ("1 + 1 = " + "2" * 200_000, [False]),
        (("1" * 100_000 + " + ") * 2 + "1 = 2", [False]),
    ],
)
def test_sums_right(text, right):
    assert sums_right(text) == right


def test_columns_stand_side_by_side_and_wrap():
    text = side_by_side({"before": "a b\nc", "after": "one two three four"}, width=23)
    assert text.splitlines() == [
        "before     │ after",
        "────────── │ ──────────",
        "a b        │ one two",
        "c          │ three four",
    ]


@pytest.mark.parametrize(("hardware", "word"), [("smoke", "skipped"), ("cpu", "NOT YET")])
def test_a_claim_is_skipped_at_tier_smoke(hardware, word, capsys):
    expect(load("countdown-grpo", hardware), "accuracy rises", holds=False)
    assert capsys.readouterr().out.split("accuracy")[0].strip() == word
