"""One sampler for rollouts and evaluation, in which finished completions leave the batch.

`transformers.generate` keeps every row until the longest completion ends. When lengths vary, as they do in
reinforcement learning, most of that work is thrown away. Here the key-value cache drops finished rows, and the
completions of one prompt share one prefill; on the CPU they also share its keys and values (shared_prompts.py). vllm.py
has the twin for vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from .. import WorkshopError
from ..models import end_token_ids
from .idle_cores import use_idle_cores
from .shared_prompts import SharedPrompts, can_share, read_prompts

# Compact the batch once no more than this share of its rows is unfinished: copying the cache has a cost.
SHRINK_AT = 0.9


@dataclass(frozen=True)
class Completion:
    """A sampled completion; `token_ids` include the end token when `finished`, `logprobs` has one entry a token."""

    text: str
    token_ids: list[int]
    logprobs: list[float]
    finished: bool


def check_sizes(**sizes: int) -> None:
    """Raise WorkshopError for a number of samples, tokens or rows that is below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise WorkshopError(f"{name} = {size} must be at least 1.")


def apply_top_p(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the smallest set of tokens whose probability reaches top_p (Holtzman et al. 2019); (B, V) -> (B, V)."""
    ordered, order = logits.sort(descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    return logits.masked_fill((before >= top_p).scatter(1, order, before >= top_p), -torch.inf)


def encode_prompts(tokenizer: PreTrainedTokenizerBase,
                   prompts: Iterable[list[dict[str, str]] | str]) -> list[list[int]]:
    """Return the tokens of each prompt: messages through the chat template, plain text as it is."""
    found: list[list[int]] = []
    for is_text, same in groupby(prompts, lambda prompt: isinstance(prompt, str)):
        batch = list(same)  # one call for all of them takes half the time
        found += (tokenizer(batch) if is_text else tokenizer.apply_chat_template(
            batch, add_generation_prompt=True, return_dict=True))["input_ids"]
    return found


def draw(probabilities: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw one token per row; (B, V) -> (B, 1).

    It is the first token whose cumulative probability exceeds a uniform random number: one random number per row, where
    `torch.multinomial` takes one per row and token.

    Raises:
        WorkshopError: the probabilities are not finite.
    """
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)  # float32 would round the tail of a large vocabulary
    if not bool(cumulative[:, -1].isfinite().all()):
        raise WorkshopError("The model's next-token probabilities are NaN, so the policy has diverged or its dtype "
                            "overflows: lower the learning rate, or use bfloat16 or float32 instead of float16.")
    uniform = torch.rand(len(cumulative), 1, generator=generator, device=cumulative.device, dtype=cumulative.dtype)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)


class LayerWithRoom(DynamicLayer):
    """A layer of a key-value cache with room for the tokens to come.

    Adding one copies only that one, and rows that leave make way in place: no copy of the room.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, room: int):
        """Begin with the states of some tokens, or of none, and reserve space for `room` more."""
        super().__init__()
        self.lazy_initialization(keys, values)
        self.length = 0
        self.buffers = [states.new_empty(*states.shape[:2], states.shape[2] + room, states.shape[3])
                        for states in (keys, values)]
        self.update(keys, values)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args,
               **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        end = self.length + key_states.shape[-2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length:end] = states
        self.length = end
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        kept = self.keys.index_select(0, indices), self.values.index_select(0, indices)
        self.buffers = [buffer[:len(indices)] for buffer in self.buffers]
        self.length = 0
        self.update(*kept)


@torch.inference_mode()
def sample_token_ids(
    model: PreTrainedModel,
    prompts: list[list[int]],
    counts: list[int],
    *,
    end_ids: list[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> list[tuple[list[int], list[float]]]:
    """Sample `counts[i]` completions of `prompts[i]`, all in one batch.

    Args:
        prompts: token ids, one list per prompt (P of them).
        counts: completions wanted of each prompt; B = sum(counts) rows in all.
        temperature: 0 means greedy.
        generator: source of randomness, torch's global one when None.

    Returns:
        B pairs (token ids, log-probabilities), prompt after prompt. The log-probabilities are those of the model at
        this temperature, before top-p, as the policy-gradient loss wants them.
    """
    device = model.device
    if device.type == "cpu":
        use_idle_cores()
    width = max(map(len, prompts))
    input_ids = torch.tensor([[end_ids[0]] * (width - len(ids)) + ids for ids in prompts], device=device)  # (P, W)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
    padded = not bool(mask.all())  # without padding attention needs no mask, which is faster
    positions = (mask.cumsum(-1) - 1).clamp(min=0)

    # Stage 1: read each prompt once. Its completions share its keys and values, or begin with copies of them.
    prefilled, output = read_prompts(partial(model, logits_to_keep=1), input_ids,
                                     **{"attention_mask": mask, "position_ids": positions} if padded else {})
    logits = output.logits[:, -1]  # (P, V)
    copies = torch.repeat_interleave(torch.arange(len(prompts), device=device), torch.tensor(counts, device=device))
    shared = SharedPrompts(prefilled, mask, copies) if can_share(model) else None
    copied = 0 if shared else width
    cache = Cache(layers=[LayerWithRoom(layer.keys[:, :, :copied][copies], layer.values[:, :, :copied][copies],
                                        room=max_new_tokens) for layer in prefilled.layers])
    logits, mask, positions = logits[copies], mask[copies], positions[copies, -1:]

    # Stage 2: one token a step for the rows that are left.
    total = len(copies)
    ends = torch.tensor(end_ids, device=device)
    tokens_BT = torch.zeros(total, max_new_tokens, dtype=torch.long, device=device)
    logps_BT = torch.zeros(total, max_new_tokens, device=device)
    row = torch.arange(total, device=device)  # where each row of the batch belongs in the result
    alive = torch.ones(total, dtype=torch.bool, device=device)  # unfinished rows of the batch
    attention: dict[str, Any] = {"prompts": shared} if shared else {}
    with shared.read_by(model) if shared else nullcontext():
        for step in range(max_new_tokens):
            logits = logits.float()
            if temperature == 0:
                logps = logits.log_softmax(-1)
                tokens = logits.argmax(-1, keepdim=True)
            else:
                logps = (logits / temperature).log_softmax(-1)
                probabilities = (logps if top_p == 1.0 else apply_top_p(logps, top_p)).exp()
                tokens = draw(probabilities, generator)
            tokens_BT[row, step] = tokens[:, 0]
            logps_BT[row, step] = logps.gather(1, tokens)[:, 0]
            alive &= ~torch.isin(tokens[:, 0], ends)
            left = int(alive.sum())
            if left == 0:
                break
            if left <= SHRINK_AT * len(row):
                keep = alive.nonzero()[:, 0]
                cache.batch_select_indices(keep)
                if shared:
                    shared.select(keep)
                row, tokens, mask, positions, alive = row[keep], tokens[keep], mask[keep], positions[keep], alive[keep]
            positions = positions + 1
            if padded and not shared:
                mask = torch.cat([mask, mask.new_ones(len(row), 1)], dim=1)
                attention = {"attention_mask": mask}
            logits = model(input_ids=tokens, position_ids=positions, past_key_values=cache, **attention).logits[:, -1]

    ended = torch.isin(tokens_BT, ends)
    lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, max_new_tokens).tolist()
    return [(tokens[:length], logps[:length]) for tokens, logps, length
            in zip(tokens_BT.tolist(), logps_BT.tolist(), lengths, strict=True)]


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[dict[str, str]] | str],
    *,
    num_samples: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | None = None,
    batch_size: int = 256,
) -> list[list[Completion]]:
    """Sample completions of prompts (messages or plain text); the result holds `num_samples` of them per prompt.

    `batch_size` bounds the rows in flight. The same seed gives the same completions; without one, torch's global random
    state decides. The model is left in the mode (training or evaluation) in which it came.
    """
    check_sizes(num_samples=num_samples, max_new_tokens=max_new_tokens, batch_size=batch_size)
    generator = None if seed is None else torch.Generator(model.device).manual_seed(seed)
    ends = end_token_ids(model.config, tokenizer)
    ids = encode_prompts(tokenizer, prompts)
    jobs = [(index, min(batch_size, num_samples - done)) for index in range(len(prompts))
            for done in range(0, num_samples, batch_size)]
    results: list[list[Completion]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    try:
        while jobs:
            batch, rows = [], 0
            while jobs and rows + jobs[0][1] <= batch_size:
                batch.append(jobs.pop(0))
                rows += batch[-1][1]
            sampled = iter(sample_token_ids(
                model, [ids[index] for index, _ in batch], [count for _, count in batch], end_ids=ends,
                max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, generator=generator))
            for index, count in batch:
                for _ in range(count):
                    tokens, logps = next(sampled)
                    results[index].append(Completion(tokenizer.decode(tokens, skip_special_tokens=True), tokens, logps,
                                                     tokens[-1] in ends))
    finally:
        model.train(was_training)
    return results


def rollout(prompts: list[list[dict[str, str]]], trainer: Any) -> dict[str, list]:
    """Generate the completions of a training step: TRL's `rollout_func`.

    TRL hands over each prompt `num_generations` times in a row and wants one completion for each.
    """
    tokenizer, arguments = trainer.processing_class, trainer.args
    groups = [(prompt, len(list(same))) for prompt, same in groupby(prompts)]
    ids = encode_prompts(tokenizer, (prompt for prompt, _ in groups))
    counts = [count for _, count in groups]
    model = trainer.accelerator.unwrap_model(trainer.model)
    was_training = model.training
    model.eval()
    sampled = sample_token_ids(model, ids, counts, end_ids=trainer.eos_token_ids,
                               max_new_tokens=arguments.max_completion_length, temperature=arguments.temperature,
                               top_p=arguments.top_p)
    model.train(was_training)
    return {
        "prompt_ids": [prompt for prompt, count in zip(ids, counts, strict=True) for _ in range(count)],
        "completion_ids": [tokens for tokens, _ in sampled],
        "logprobs": [logps for _, logps in sampled],
    }
