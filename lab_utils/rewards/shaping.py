"""Rewards that shape how an answer is reached: length, visible steps, repetition.

They are proxies: each can rise while accuracy falls. So they get small weights next to a reward for a correct answer.
"""

from __future__ import annotations

import math
import re
from typing import Any

from ..tasks import Completion, completion_text, load_task

CHARACTERS_PER_TOKEN = 4  # roughly, for English and Qwen's tokenizer; used only if the tokens are not known

# A step: a numbered or bulleted line, a word that orders steps, or an equation with its result.
STEP = re.compile(
    r"^ *(?:\d+[.)]|[-*]) |\bstep \d+|\b(?:first|second|third|next|then|finally),|= *-?\$?\d",
    re.IGNORECASE | re.MULTILINE,
)


def cosine_scaled_accuracy_reward(
    completions: list[Completion],
    answer: list[str],
    completion_ids: list[list[int]] | None = None,
    *,
    max_length: int = 512,
    correct_short: float = 1.0,
    correct_long: float = 0.5,
    wrong_short: float = -1.0,
    wrong_long: float = -0.5,
    **columns: Any,
) -> list[float]:
    """Scale accuracy by length: correct and short is best, wrong and short is worst (GSM8K, response format "think").

    The reward follows half a cosine from its `_short` value at length 0 to its `_long` value at `max_length`, and stays
    there. A correct answer falls from 1.0 to 0.5. A wrong one rises from -1.0 to -0.5: longer thinking costs less.

    Args:
        completion_ids: the tokens of each completion, passed by TRL; without them a token counts as 4 characters.
        max_length: in tokens; use the run's `max_completion_length`.

    Source: the cosine reward of Yeo et al. 2025, "Demystifying Long Chain-of-Thought Reasoning in LLMs" (arXiv
    2502.03373), with the values of Open-R1's `get_cosine_scaled_reward`.

    >>> texts = ["<think>9 * 8</think><answer>72</answer>", "<think>9 * 8</think><answer>71</answer>"]
    >>> cosine_scaled_accuracy_reward(texts, answer=["72", "72"], completion_ids=[[0] * 256, [0] * 512])
    [0.75, -0.5]
    """
    task = load_task("gsm8k", "think")
    rewards = []
    for text, gold, length in zip(completions, answer, lengths(completions, completion_ids), strict=True):
        correct = task.is_correct(text, {"answer": gold})
        short, long = (correct_short, correct_long) if correct else (wrong_short, wrong_long)
        progress = min(length / max_length, 1.0)
        rewards.append(long + (short - long) * (1.0 + math.cos(math.pi * progress)) / 2)
    return rewards


def reasoning_reward(completions: list[Completion], *, steps: int = 3, **columns: Any) -> list[float]:
    """Give 0.0 to 1.0 in proportion to the number of visible steps; `steps` of them earn 1.0.

    A step is a numbered or bulleted line, "Step 2", a word such as "First,", or an equation with its result. The reward
    sees only the marks of reasoning: "First, First, First," earns 1.0. After Open-R1's `reasoning_steps_reward`.

    >>> reasoning_reward(["First, 9 * 8 = 72. Then, 72 / 2 = 36.", "9 * 4 = 36", "36"], steps=4)
    [1.0, 0.25, 0.0]
    """
    counts = [sum(1 for _ in STEP.finditer(completion_text(text))) for text in completions]
    return [min(count / steps, 1.0) for count in counts]


def conciseness_reward(
    completions: list[Completion],
    completion_ids: list[list[int]] | None = None,
    *,
    max_length: int = 512,
    **columns: Any,
) -> list[float]:
    """Give 1.0 to an empty completion, falling linearly to 0.0 at `max_length` tokens and beyond.

    Args:
        completion_ids: the tokens of each completion, passed by TRL; without them a token counts as 4 characters.
        max_length: in tokens; use the run's `max_completion_length`.

    >>> conciseness_reward(["a long text", "a longer text"], completion_ids=[[0] * 128, [0] * 600])
    [0.75, 0.0]
    """
    return [1.0 - min(length / max_length, 1.0) for length in lengths(completions, completion_ids)]


def repetition_penalty_reward(
    completions: list[Completion], *, ngram_size: int = 3, max_penalty: float = -1.0, **columns: Any
) -> list[float]:
    """Penalize repeated n-grams of words: from 0.0 if all are different toward `max_penalty` the more of them repeat.

    The reward is `max_penalty * (1 - different n-grams / all n-grams)`, and 0.0 for a text shorter than one n-gram.
    Words are separated by whitespace; upper and lower case are equal. Source: Yeo et al. 2025 (arXiv 2502.03373),
    appendix C.2, in the form of Open-R1's `get_repetition_penalty_reward`.

    >>> repetition_penalty_reward(["nine times eight is seventy two", "no no no no no no", "no"])
    [0.0, -0.75, 0.0]
    """
    rewards = []
    for text in map(completion_text, completions):
        words = text.lower().split()
        ngrams = list(zip(*(words[start:] for start in range(ngram_size)), strict=False))
        repeated = 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
        rewards.append(max_penalty * repeated if repeated else 0.0)
    return rewards


def lengths(completions: list[Completion], completion_ids: list[list[int]] | None) -> list[float]:
    """Return the length of each completion in tokens, estimated from its characters if the tokens are not given."""
    if completion_ids is not None:
        return [len(ids) for ids in completion_ids]
    return [len(completion_text(text)) / CHARACTERS_PER_TOKEN for text in completions]
