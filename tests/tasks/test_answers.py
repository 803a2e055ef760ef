"""Tests of lab_utils.tasks.answers: what is extracted, which numbers are equal, and bounded work."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab_utils.tasks.answers import (
    extract_hash_answer,
    extract_last_number,
    extract_xml_answer,
    numbers_match,
    parse_number,
)

repeatable = settings(deadline=None, derandomize=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("48 + 24 = 72\n#### 72", "72"),
        ("#### 1,000", "1,000"),
        ("#### -5", "-5"),
        ("#### 72.", "72"),
        ("#### 7.5", "7.5"),
        ("#### 71\n#### 72", "71"),  # the first one, as lm-evaluation-harness does
        ("#### 72 clips", "72"),
        ("####72", None),  # a space belongs to the format
        ("### 72", None),
        ("#### $72", None),  # strict; the lenient extraction finds it
        ("#### ...", None),
        ("#### ٧٢", None),  # only the digits 0-9
        ("The answer is 72.", None),
    ],
)
def test_hash_answer(text, expected):
    assert extract_hash_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<reasoning>\n48 + 24\n</reasoning>\n<answer>\n72\n</answer>", "72"),
        ("<answer>71</answer> no, wait: <answer>72</answer>", "72"),  # the last complete one
        ("<answer>72</answer> or <answer>73", "72"),
        ("<answer>71 <answer>72</answer>", "72"),
        ("<answer>72</answer></answer>", "72"),
        ("<answer></answer>", ""),
        ("<answer>72", None),
        ("72</answer>", None),
        ("</answer>72<answer>", None),
        ("<ANSWER>72</ANSWER>", None),
        ("72", None),
    ],
)
def test_xml_answer(text, expected):
    assert extract_xml_answer(text) == expected


@given(before=st.text(), inside=st.text(alphabet=st.characters(exclude_characters="<")), after=st.text("a <>/\n"))
@repeatable
def test_xml_answer_is_the_text_between_the_tags(before, inside, after):
    assert extract_xml_answer(f"{before}<answer>{inside}</answer>{after}") == inside.strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She sold 48 in April and 72 altogether.", "72"),
        ("It costs $72.", "$72"),
        ("That makes 1,000, I think.", "1,000"),
        ("I get 7.50", "7.50"),
        ("It falls to -5.", "-5"),
        ("The answer is 72. Hmm ...", "72"),
        ("<answer>72</answer>", "72"),
        ("$ ... ,,", None),
    ],
)
def test_last_number(text, expected):
    assert extract_last_number(text) == expected


@given(st.text(alphabet="0123456789$.,-# \na"))
@repeatable
def test_extraction_agrees_with_lm_evaluation_harness(text):
    """The regular expressions are those of its gsm8k task. The one difference: a match without a digit is no answer."""
    strict = re.findall(r"#### (\-?[0-9\.\,]+)", text)
    assert extract_hash_answer(text) == (strict[0].rstrip(".,") or None if strict else None)
    flexible = [a or b for a, b in re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)]
    with_digits = [match.rstrip("$.,") for match in flexible if re.search("[0-9]", match)]
    assert extract_last_number(text) == (with_digits[-1] if with_digits else None)


@pytest.mark.parametrize(("value", "texts"), [
    ("1000", ["1,000", "$1000", "$1,000", "1000.0", "1,000.00", "1000.", " 1000\n", "+1000", "01000", "1000%"]),
    ("-5", ["-5", "-5.0", "-$5", "$-5", "-5."]),
])
def test_format_of_a_number_makes_no_difference(value, texts):
    for text in texts:
        assert numbers_match(text, value) and numbers_match(value, text), text
        assert not numbers_match(text, "5"), text


@pytest.mark.parametrize(
    "text",
    [None, "", " ", ".", "-", "$", "%", ",", "banana", "72 clips", "7 2", "72 72", "7,2", "72,", "0,72", "1e2", "72/1",
     "0x48", "--72", "-72", "7.2", "72.0000001", "71.9999999999999999999", "٧٢", "７２", "²", "nan", "inf", "x = 72",
     "72 = 72", "0" * 39 + "72"],
)
def test_anything_else_is_not_72(text):
    assert not numbers_match(text, "72")
    assert not numbers_match("72", text)


@given(value=st.integers(-(10**12), 10**12), decimals=st.integers(0, 4), dollar=st.booleans(), commas=st.booleans())
@repeatable
def test_variations_of_a_number_match(value, decimals, dollar, commas):
    sign, digits = ("-" if value < 0 else ""), f"{abs(value):,}" if commas else str(abs(value))
    text = sign + "$" * dollar + digits + ("." + "0" * decimals if decimals else "")
    assert numbers_match(text, str(value))
    assert not numbers_match(text, str(value + 1))


@given(a=st.text(alphabet="0123456789$.,-+% ", max_size=8), b=st.text(alphabet="0123456789$.,-+% ", max_size=8))
@repeatable
def test_matching_is_symmetric_and_by_value(a, b):
    assert numbers_match(a, b) == numbers_match(b, a)
    assert numbers_match(a, a) == (parse_number(a) is not None)


@pytest.mark.timeout(10)  # milliseconds if the work is bounded, minutes if it grows with the square of the length
@pytest.mark.parametrize(
    "piece",
    ["<answer>", "</answer>", "<answer></answer>", "#### ", "#", "-", ".", "$", "1", "1,", "1,000,", "1 ", "-$", " "],
)
def test_work_is_bounded(piece):
    text = (piece * 100_000)[:100_000]
    for awkward in (text, text + "x", "<answer>" + text, "#### " + text):
        extract_hash_answer(awkward)
        extract_xml_answer(awkward)
        extract_last_number(awkward)
        assert not numbers_match(awkward, "72")
        assert not numbers_match("72", awkward)
