"""Read once what is the same: the tokens with which all prompts begin, and the prompt of several completions.

For the second, sampling on the CPU has its own attention. Most of a token's time goes to reading the cache there, and
as long as completions are short, most of the cache is the prompt. With a copy for every completion it is read as often
as there are completions, and here once.

Shapes: B rows, P prompts, at most M rows of one prompt; K heads with keys and values, and R heads of queries for each;
W tokens of the longest prompt, T tokens sampled so far; D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


def read_prompts(read: Callable[..., Any], ids_PW: Tensor, **padding: Tensor) -> tuple[DynamicCache, Any]:
    """Return the prompts' keys and values, and what the model returns for all of their tokens, or for the last ones.

    Tokens with which all prompts begin, such as the system's message, are read once, and left out of what is returned.

    Args:
        read: the model, or the part of it below the output layer.
        padding: what else it needs if prompts differ in length: `attention_mask`, `position_ids`.
    """
    cache, same = DynamicCache(), 0  # which keeps all tokens, also for sliding windows: their mask hides the others
    if len(ids_PW) > 1 and not padding:
        same = int((ids_PW == ids_PW[0])[:, :-1].all(0).long().cumprod(0).sum())
    if same:
        read(input_ids=ids_PW[:1, :same], past_key_values=cache)
        cache.batch_repeat_interleave(len(ids_PW))
    return cache, read(input_ids=ids_PW[:, same:], past_key_values=cache, **padding)


def can_share(model: PreTrainedModel) -> bool:
    """Return whether the model is on the CPU, and attends to all tokens alike: no sliding window, for example."""
    return (model.device.type == "cpu" and model.config._attn_implementation == "sdpa"
            and model._supports_attention_backend
            and all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers))


class SharedPrompts:
    """The prompts' keys and values, and which rows of the batch read them."""

    def __init__(self, prefilled: DynamicCache, mask_PW: Tensor, prompt_B: Tensor):
        """Take the states of the prompts from a cache. `prompt_B` is each row's prompt, in ascending order."""
        self.layers = [(layer.keys, layer.values) for layer in prefilled.layers]  # (P, K, W, D) each
        self.padding_P11W = None if mask_PW.all() else mask_PW[:, None, None] == 0
        self._place(prompt_B)

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, and the prompts that they read."""
        self._place(self.prompt_B[rows])

    def _place(self, prompt_B: Tensor) -> None:
        """Find the places of the rows' heads in (P, K, M), and what is in each place."""
        read, self.prompt_B, rows_P = prompt_B.unique_consecutive(return_inverse=True, return_counts=True)
        if len(read) < len(self.layers[0][0]):
            self.layers = [(keys[read], values[read]) for keys, values in self.layers]
            self.padding_P11W = None if self.padding_P11W is None else self.padding_P11W[read]
        heads, most, first_P = self.layers[0][0].shape[1], int(rows_P.max()), rows_P.cumsum(0) - rows_P
        number_B = torch.arange(len(prompt_B)) - first_P[self.prompt_B]  # among the rows of the same prompt
        self.places = ((self.prompt_B[:, None] * heads + torch.arange(heads)) * most + number_B[:, None]).flatten()
        self.content = torch.zeros(len(read) * heads * most, dtype=torch.long)  # places left over repeat the first head
        self.content[self.places] = torch.arange(len(self.places))

    def by_prompt(self, x_BKRX: Tensor) -> Tensor:
        """(B, K, R, X) -> (P, K, M * R, X)."""
        _, heads, queries, size = x_BKRX.shape
        x = x_BKRX.reshape(-1, queries * size).index_select(0, self.content)
        return x.view(len(self.layers[0][0]), heads, -1, size)

    def by_row(self, x_PKQX: Tensor) -> Tensor:
        """(P, K, M * R, X) -> (B, K, R, X)."""
        _, heads, _, size = x_PKQX.shape
        x = x_PKQX.view(len(self.content), -1).index_select(0, self.places)
        return x.view(len(self.prompt_B), heads, -1, size)

    @contextmanager
    def read_by(self, model: PreTrainedModel) -> Iterator[None]:
        """Let the model attend with `attend`, to which its forward pass hands the keyword argument `prompts`."""
        own = model.config._attn_implementation
        model.set_attn_implementation("shared_prompts")
        try:
            yield
        finally:
            model.set_attn_implementation(own)


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *, scaling: float,
           prompts: SharedPrompts, **kwargs) -> tuple[Tensor, None]:
    """Attend from one token per row to its prompt and to the tokens sampled since: transformers' "attention function".

    Args:
        query: (B, K * R, 1, D).
        key, value: (B, K, T, D), of the sampled tokens.

    Returns:
        (B, 1, K * R, D), and no attention weights.
    """
    prompt_keys, prompt_values = prompts.layers[module.layer_idx]
    width = prompt_keys.shape[2]
    q_BKRD = query.view(len(query), key.shape[1], -1, query.shape[-1]) * scaling
    scores_PKQW = prompts.by_prompt(q_BKRD) @ prompt_keys.mT
    if prompts.padding_P11W is not None:
        scores_PKQW.masked_fill_(prompts.padding_P11W, -torch.inf)
    scores = torch.cat([prompts.by_row(scores_PKQW), q_BKRD @ key.mT], dim=-1)  # (B, K, R, W + T)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    from_prompt = prompts.by_row(prompts.by_prompt(weights[..., :width]) @ prompt_values)
    attended_BKRD = from_prompt + weights[..., width:] @ value
    return attended_BKRD.view(len(query), 1, -1, value.shape[-1]), None


AttentionInterface.register("shared_prompts", attend)
