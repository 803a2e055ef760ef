"""Looking closely at single completions and single claims: side by side, token by token, and does it hold?"""

from __future__ import annotations

import textwrap
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .config import RunConfig

if TYPE_CHECKING:
    from .training.ppo import Critic


def side_by_side(texts: dict[str, str], width: int = 110) -> str:
    """Columns of equal width under their titles, for completions of the same problem.

    >>> print(side_by_side({"before": "no", "after": "yes"}, width=19))
    before   │ after
    ──────── │ ────────
    no       │ yes
    """
    column = (width - 3 * (len(texts) - 1)) // len(texts)
    columns = []
    for title, text in texts.items():
        lines = [part for line in text.splitlines() for part in textwrap.wrap(line, column) or [""]]
        columns.append([title[:column], "─" * column, *lines])
    rows = zip_longest(*columns, fillvalue="")
    return "\n".join(" │ ".join(cell.ljust(column) for cell in row).rstrip() for row in rows)


def expect(config: RunConfig, claim: str, holds: bool) -> None:
    """Print whether something that you should see can be seen; at tier smoke nothing is learned, and it says so."""
    if config.hardware == "smoke":
        print(f"  skipped  {claim} (a handful of steps teaches nothing)")
    else:
        print(f"  {'yes    ' if holds else 'NOT YET'}  {claim}")


class TokenValues(NamedTuple):
    """What a critic says while a completion is read: before each of its tokens, the return still to come."""

    tokens: list[str]
    values: list[float]


def load_critic(model_dir: str | Path, hidden_size: int) -> Critic:
    """Load the critic that PPO saved next to its model.

    Raises:
        ValueError: the folder holds no value head of its own size (a critic with its own backbone is not read here).
    """
    from .training.ppo import VALUE_HEAD_FILE, Critic  # imports TRL, which takes seconds

    path = Path(model_dir) / VALUE_HEAD_FILE
    if not path.is_file():
        raise ValueError(f"{path.parent} holds no {path.name}: give the model folder of a PPO run (RUN/model).")
    critic = Critic(hidden_size)
    critic.load_state_dict(load_file(path))
    return critic


@torch.no_grad()
def token_values(model: PreTrainedModel, critic: Critic, tokenizer: PreTrainedTokenizerBase,
                 prompt: list[dict[str, str]], completion_ids: list[int]) -> TokenValues:
    """Read a completion token by token and ask the critic before each token for the return still to come.

    Args:
        prompt: the chat messages that the completion answers.
        completion_ids: T token ids, as in `Completion.token_ids`.
    """
    prompt_ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    input_ids = torch.tensor([prompt_ids + completion_ids], device=model.device)
    hidden_1SD = model.base_model(input_ids=input_ids).last_hidden_state
    values_T = critic.to(model.device)(hidden_1SD)[0, len(prompt_ids) - 1 : -1]  # state t-1 predicts token t
    return TokenValues([tokenizer.decode([token]) for token in completion_ids], values_T.tolist())
