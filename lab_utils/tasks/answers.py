"""Extract answers from text and compare them: the only place in the project that says what a number looks like.

Two extractors are strict, `#### 72` (GSM8K's own format) and `<answer>72</answer>`; one is lenient, the last number in
the text. They return the answer as it is written ("1,000", "$72"); `numbers_match` compares by value. All of them take
time proportional to the length of the text.
"""

from __future__ import annotations

import re
from fractions import Fraction

# From the `gsm8k` task of lm-evaluation-harness: strict-match takes the first match, flexible-extract the last.
HASH_ANSWER = re.compile(r"#### (-?[0-9.,]+)")
NUMBER_IN_TEXT = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")

# A text that is one number: sign and $ if any, digits with or without thousands commas, decimals, % or a final period.
NUMBER = re.compile(r"\$?(?P<sign>[-+]?)\$?(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?P<decimals>\.[0-9]+)?[%.]?")
LONGEST_NUMBER = 40  # characters; a longer text is not a number


def extract_hash_answer(text: str) -> str | None:
    """Return the number after the first `#### `, or None (lm-evaluation-harness's strict-match for GSM8K).

    >>> extract_hash_answer("48 + 24 = 72 clips.\\n#### 72")
    '72'
    >>> extract_hash_answer("The answer is 72.") is None
    True
    """
    match = HASH_ANSWER.search(text)
    return (match[1].rstrip(".,") or None) if match else None


def extract_xml_answer(text: str, tag: str = "answer") -> str | None:
    """Return the text inside the last complete `<tag>...</tag>`, without surrounding whitespace, or None.

    A tag that is never closed does not count. The last complete one does, because the model has changed its mind.

    >>> extract_xml_answer("<think>9 * 8</think>\\n<answer>\\n72\\n</answer>")
    '72'
    >>> extract_xml_answer("<answer>71</answer> no, <answer>72</answer> or <answer>73")
    '72'
    """
    opening, closing = f"<{tag}>", f"</{tag}>"
    start = text.rfind(opening, 0, max(text.rfind(closing), 0))
    if start < 0:
        return None
    start += len(opening)
    return text[start : text.index(closing, start)].strip()


def extract_last_number(text: str) -> str | None:
    """Return the last number in the text as it is written, or None (lm-evaluation-harness's flexible-extract).

    As in the harness, a minus or a "$" directly before the digits belongs to the number. Unlike in the harness, a "..."
    after the number does not count as another number.

    >>> extract_last_number("She pays $12, then $1,500.")
    '$1,500'
    """
    for match in reversed(NUMBER_IN_TEXT.findall(text)):
        if match.strip("-$.,"):
            return match.rstrip("$.,")
    return None


def parse_number(text: str | None) -> Fraction | None:
    """Return the exact value of a text that is one number and nothing else, or None for any other text.

    >>> parse_number(" $1,234.50 ")
    Fraction(2469, 2)
    >>> [parse_number(text) for text in ("72 clips", "7 2", "1,2", "1e3", "banana", "", None)]
    [None, None, None, None, None, None, None]
    """
    text = (text or "").strip()
    match = NUMBER.fullmatch(text) if len(text) <= LONGEST_NUMBER else None
    if match is None or not (match["digits"] or match["decimals"]):
        return None
    return Fraction(match["sign"] + match["digits"].replace(",", "") + (match["decimals"] or ""))


def numbers_match(predicted: str | None, gold: str | None) -> bool:
    """Return whether two texts are exactly the same number, in whatever format.

    A dollar sign, thousands commas, a percent sign, trailing zeros and a final period make no difference. Anything but
    one number (None, words, a number with a unit, two numbers) matches nothing.

    >>> numbers_match("$1,000.00", "1000"), numbers_match("72.", "72"), numbers_match("72.1", "72")
    (True, True, False)
    """
    value = parse_number(predicted)
    return value is not None and value == parse_number(gold)
