"""The response formats: the tags that the prompts ask for, and checks that a whole completion has them.

The regular expressions see only text that holds each tag exactly once, so they take time proportional to its length.
"""

from __future__ import annotations

import re

REASONING_TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
THINK_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
STRICT_FORMAT = re.compile(r"<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n?", re.DOTALL)
THINK_FORMAT = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)


def has_reasoning_format(text: str) -> bool:
    r"""Return whether the text is what GSM8K's prompt asks for: each tag on its own line, a final newline or none.

    >>> has_reasoning_format("<reasoning>\n48 + 24\n= 72\n</reasoning>\n<answer>\n72\n</answer>")
    True
    """
    return has_each_once(text, REASONING_TAGS) and STRICT_FORMAT.fullmatch(text) is not None


def has_think_format(text: str) -> bool:
    r"""Return whether the text is `<think>...</think><answer>...</answer>` and nothing else but whitespace.

    >>> has_think_format("<think>9 * 8\n= 72</think>\n<answer>72</answer>")
    True
    """
    return has_each_once(text, THINK_TAGS) and THINK_FORMAT.fullmatch(text) is not None


def has_each_once(text: str, tags: tuple[str, ...]) -> bool:
    return all(text.count(tag) == 1 for tag in tags)


def has_in_order(text: str, tags: tuple[str, ...]) -> bool:
    """Return whether the text holds the tags in this order."""
    position = 0
    for tag in tags:
        found = text.find(tag, position)
        if found < 0:
            return False
        position = found + len(tag)
    return True
