"""Rewards of my own: TRL's signature, one finite number per completion, and **columns for the columns I do not need."""

from lab_utils.tasks import completion_text


def brevity(completions, **columns):
    """Give 1.0 for an empty completion, less for a longer one, 0.0 from 400 characters on.

    >>> brevity(["", "a" * 100, "a" * 500])
    [1.0, 0.75, 0.0]
    """
    return [max(0.0, 1 - len(completion_text(completion)) / 400) for completion in completions]
