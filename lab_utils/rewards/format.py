"""Rewards for the response format, whatever the answer says."""

from __future__ import annotations

from typing import Any

from ..tasks import Completion, completion_text
from ..tasks.formats import REASONING_TAGS, has_in_order, has_reasoning_format, has_think_format


def strict_format_reward(completions: list[Completion], **columns: Any) -> list[float]:
    r"""Give 0.5 for exactly the format that GSM8K's prompt asks for, every tag on its own line, else 0.0.

    A final newline is optional. Any other text outside the tags, or a repeated tag, earns nothing.

    >>> strict_format_reward(["<reasoning>\n48 + 24\n= 72\n</reasoning>\n<answer>\n72\n</answer>"])
    [0.5]
    >>> strict_format_reward(["<reasoning>48 + 24</reasoning> <answer>72</answer>"])
    [0.0]
    """
    return [0.5 if has_reasoning_format(completion_text(completion)) else 0.0 for completion in completions]


def soft_format_reward(completions: list[Completion], **columns: Any) -> list[float]:
    """Give 0.5 if the text holds the four tags in the right order, whatever is around them, else 0.0.

    >>> soft_format_reward(["Sure! <reasoning>48 + 24</reasoning> So: <answer>72</answer>", "<answer>72</answer>"])
    [0.5, 0.0]
    """
    return [0.5 if has_in_order(completion_text(text), REASONING_TAGS) else 0.0 for text in completions]


def xmlcount_reward(completions: list[Completion], **columns: Any) -> list[float]:
    r"""Give 0.125 for each of the four tags that occurs exactly once, minus 0.001 for each trailing character.

    Trailing characters follow the last `</answer>`; whitespace at either end does not count. They are counted once and
    never take the reward below 0.0.

    >>> xmlcount_reward(["<reasoning>\n48 + 24\n</reasoning>\n<answer>\n72\n</answer>\n", "<answer>72", "72"])
    [0.5, 0.125, 0.0]
    >>> xmlcount_reward(["<answer>72</answer> Done!"])  # 0.25 - 5 * 0.001
    [0.245]
    """
    rewards = []
    for text in map(completion_text, completions):
        tags = sum(text.count(tag) == 1 for tag in REASONING_TAGS)
        trailing = text.rpartition("</answer>")[2].strip() if "</answer>" in text else ""
        rewards.append(max(0.0, 0.125 * tags - 0.001 * len(trailing)))
    return rewards


def format_reward(completions: list[Completion], **columns: Any) -> list[float]:
    r"""Give 1.0 for `<think>...</think><answer>...</answer>` with nothing but whitespace around and between, else 0.0.

    >>> format_reward(["<think>9 * 8\n= 72</think>\n<answer>72</answer>", "<think>9 * 8 <answer>72</answer>"])
    [1.0, 0.0]
    """
    return [1.0 if has_think_format(completion_text(completion)) else 0.0 for completion in completions]
