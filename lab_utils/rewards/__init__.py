"""The rewards of the workshop: plain functions with TRL's signature, f(completions, **columns) -> list[float].

`completions` holds strings or message lists. The other arguments are columns of the dataset, one value per completion:
`answer` (GSM8K's gold as a string), `nums` and `target` (Countdown). TRL adds `completion_ids` (tokens) and more. A
reward takes the columns it needs by name and ignores the rest (`**columns`). It returns one finite number per
completion and does nothing else: it prints nothing, keeps no state and takes time proportional to the text.
"""

from .combine import combine_rewards
from .correctness import accuracy_reward, correctness_reward, equation_reward, int_reward, numeric_match_reward
from .format import format_reward, soft_format_reward, strict_format_reward, xmlcount_reward
from .shaping import (
    conciseness_reward,
    cosine_scaled_accuracy_reward,
    reasoning_reward,
    repetition_penalty_reward,
)

# The rewards for a correct answer: they compare it with the gold columns of the row. All others reward only what a
# completion looks like. A control run replaces these rewards by random ones.
CORRECTNESS = ("accuracy_reward", "correctness_reward", "numeric_match_reward", "equation_reward",
               "cosine_scaled_accuracy_reward")

__all__ = [
    "CORRECTNESS",
    "accuracy_reward",
    "combine_rewards",
    "conciseness_reward",
    "correctness_reward",
    "cosine_scaled_accuracy_reward",
    "equation_reward",
    "format_reward",
    "int_reward",
    "numeric_match_reward",
    "reasoning_reward",
    "repetition_penalty_reward",
    "soft_format_reward",
    "strict_format_reward",
    "xmlcount_reward",
]
