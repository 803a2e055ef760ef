"""Paired timings: A and B in turn on the same inputs, the ratio pair by pair, so that a drifting machine does not decide.

    python scripts/benchmark.py generation --model runs/measured/countdown/seed-0/grpo/model
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from lab_utils.generation import end_token_ids, sample_token_ids
from lab_utils.models import load_model, load_tokenizer
from lab_utils.tasks import load_task


def timed(function: Callable) -> tuple[float, object]:
    """Return the seconds that a call took, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def spread(values: list[float]) -> str:
    """Return the median with minimum and maximum."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def generation(options: argparse.Namespace) -> None:
    """Useful tokens per second of the project's sampler against transformers.generate, on one rollout's prompts."""
    model, tokenizer = load_model(options.model).eval(), load_tokenizer(options.model)
    prompts = load_task(options.task).dataset("test", options.prompts)["prompt"]
    ids = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
           for prompt in prompts]
    ends = end_token_ids(model, tokenizer)
    copies = [prompt for prompt in ids for _ in range(options.group)]
    width = max(map(len, ids))
    batch = {"input_ids": torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in copies]),
             "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in copies])}

    def ours() -> list[int]:
        return [len(tokens) for tokens, _ in sample_token_ids(
            model, ids, [options.group] * len(ids), end_ids=ends, max_new_tokens=options.max_new_tokens)]

    def theirs() -> list[int]:
        rows = model.generate(**batch, max_new_tokens=options.max_new_tokens, do_sample=True, temperature=1.0, top_k=0)
        is_end = torch.isin(rows[:, width:], torch.tensor(ends))
        return [int(row.nonzero()[0]) + 1 if row.any() else len(row) for row in is_end]

    rates: dict[str, list[float]] = {"sampler": [], "generate": []}
    lengths: list[int] = []
    for pair in range(options.pairs + 1):  # the first pair warms up
        torch.manual_seed(pair)
        for name, function in (("sampler", ours), ("generate", theirs)):
            seconds, found = timed(function)
            if pair:
                rates[name].append(sum(found) / seconds)
                lengths += found
    ratios = [a / b for a, b in zip(rates["sampler"], rates["generate"], strict=True)]
    print(f"{len(copies)} completions a rollout, {options.pairs} pairs; completion length: mean "
          f"{statistics.mean(lengths):.0f}, longest {max(lengths)} tokens")
    for name, values in rates.items():
        print(f"{name:9} useful tokens per second: {spread(values)}")
    print(f"ratio sampler / generate: {spread(ratios)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("generation", help=generation.__doc__, allow_abbrev=False)
    command.add_argument("--model", required=True, help="a model that knows the format: RUN/model")
    command.add_argument("--task", default="countdown", choices=["countdown", "gsm8k"])
    command.add_argument("--prompts", type=int, default=16)
    command.add_argument("--group", type=int, default=16, help="completions of each prompt")
    command.add_argument("--max-new-tokens", type=int, default=128)
    command.add_argument("--pairs", type=int, default=7)
    command.set_defaults(run=generation)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
