"""A forward pass that computes each distinct prompt once, and reads only the states that training needs.

In a group, all completions answer the same prompt, which is half of every row or more. Here the completions of a prompt
read its keys and values from a cache. Gradients flow back through the cache, so log-probabilities, loss and gradients
are those of complete rows.

Shapes: B rows, each a prompt (W tokens, padded on the left) and a completion (T tokens, padded on the right);
P distinct prompts; C rows of a chunk, L tokens of its longest completion; D hidden size; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from ..sampling.shared_prompts import read_prompts

TOKENS = 1536  # completion tokens in one forward pass: few enough for the processor's cache, and enough for its cores


def backbone(model: nn.Module) -> PreTrainedModel:
    """Return the part of a causal language model below its output layer, LoRA adapters included."""
    return (model.get_base_model() if isinstance(model, PeftModel) else model).base_model


def chunks_of_similar_length(lengths_B: Tensor) -> Iterator[Tensor]:
    """Yield row numbers, shortest completions first; a chunk has at most `TOKENS` tokens, padding included."""
    rows: list[int] = []
    for row in lengths_B.argsort(stable=True).tolist():
        if rows and (len(rows) + 1) * int(lengths_B[row]) > TOKENS:
            yield torch.tensor(rows)
            rows = []
        rows.append(row)
    yield torch.tensor(rows)


def completion_states(model: nn.Module, input_ids: Tensor, attention_mask: Tensor,
                      logits_to_keep: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (C,) row numbers and the (C, L, D) final hidden states from which their completions' tokens are predicted.

    The state before a completion's first token is that of the prompt's last token. The last token predicts nothing.

    Args:
        input_ids, attention_mask: (B, W + T).
        logits_to_keep: T.
    """
    layers, width = backbone(model), input_ids.shape[1] - logits_to_keep
    found, prompt_B = torch.unique(torch.cat([input_ids[:, :width], attention_mask[:, :width]], dim=1), dim=0,
                                   return_inverse=True)
    first = int(found[:, width:].argmax(1).min())  # where the longest prompt begins
    ids_PW, mask_PW = found[:, first:width], found[:, width + first:]
    padded = not bool(mask_PW.all())
    prompts, output = read_prompts(layers, ids_PW, **{"attention_mask": mask_PW} if padded else {})
    last_P1D = output.last_hidden_state[:, -1:]

    lengths_B = attention_mask[:, width:].sum(1).clamp(min=1)
    for rows in chunks_of_similar_length(lengths_B):
        prompt_C, length = prompt_B[rows], int(lengths_B[rows].max())
        states_CLD = last_P1D.index_select(0, prompt_C)
        if length > 1:
            ids_CL = input_ids[rows, width:width + length - 1]
            mask = torch.cat([mask_PW[prompt_C], torch.ones_like(ids_CL)], dim=1) if padded else None
            cache = DynamicCache([(keys.index_select(0, prompt_C), values.index_select(0, prompt_C))
                                  for keys, values, _ in prompts])
            own_CLD = layers(input_ids=ids_CL, attention_mask=mask, past_key_values=cache).last_hidden_state
            states_CLD = torch.cat([states_CLD, own_CLD], dim=1)
        yield rows, states_CLD


def token_logps(model: nn.Module, states_CLD: Tensor, ids_CL: Tensor, temperature: float,
                compute_entropy: bool) -> tuple[Tensor, Tensor | None]:
    """Return the tokens' log-probabilities at a temperature and, on request, the entropies (without gradient)."""
    logits_CLV = model.get_output_embeddings()(states_CLD).float()
    logps_CLV = (logits_CLV if temperature == 1 else logits_CLV / temperature).log_softmax(-1)
    entropy_CL = None
    if compute_entropy:
        detached_CLV = logps_CLV.detach()
        entropy_CL = -(detached_CLV.exp() * detached_CLV).sum(-1)
    return logps_CLV.gather(-1, ids_CL[:, :, None])[:, :, 0], entropy_CL
