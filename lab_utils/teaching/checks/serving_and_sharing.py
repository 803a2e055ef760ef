"""Self-checks of the notebook "Serving and sharing"."""

from collections.abc import Callable

import torch
from torch import Tensor

from .runner import Case, Check, Wrong, close_tensor


def _call_merge_lora(merge_lora: Callable, *matrices: list, alpha: float, then: str = "merged") -> Tensor:
    weight, lora_A, lora_B = (torch.tensor(matrix, dtype=torch.float) for matrix in matrices)
    merged = merge_lora(weight, lora_A, lora_B, alpha)
    return weight if then == "weight" else merged


check_merge_lora = Check("{} layers merged.", [
    Case([[0, 0], [0, 0]], [[1, 2]], [[3], [4]], alpha=1, gives=[[3, 6], [4, 8]],
         hint="B is (out, r) and A is (r, in): B @ A has the shape of the weight."),
    Case([[1, 0], [0, 1]], [[1, 2]], [[3], [4]], alpha=1, gives=[[4, 6], [4, 9]],
         hint="Add the update to the base model's weight."),
    Case([[0, 0], [0, 0]], [[1, 2]], [[3], [4]], alpha=2, gives=[[6, 12], [8, 16]],
         hint="The update is alpha / r * B @ A."),
    Case([[0, 0], [0, 0]], [[1, 0], [0, 1]], [[1, 2], [3, 4]], alpha=1, gives=[[0.5, 1], [1.5, 2]],
         hint="Scale the update by alpha / r, where r is the number of rows of A: here 2."),
    Case([[1, 1, 1], [1, 1, 1]], [[1, 2, 3]], [[1], [0]], alpha=1, gives=[[2, 3, 4], [1, 1, 1]],
         hint="A layer need not be square: (out, r) @ (r, in)."),
    Case([[1, 0], [0, 1]], [[1, 2]], [[0], [0]], alpha=16, gives=[[1, 0], [0, 1]],
         hint="LoRA starts with B = 0: nothing has changed."),
    Case([[0, 0], [0, 0]], [[1, 2]], [[3], [4]], alpha=1, then="weight", gives=[[0, 0], [0, 0]],
         hint="Return a new tensor, `weight + ...`: `weight += ...` overwrites the base model's weight."),
], wrong=[
    Wrong(lambda weight, a, b, alpha: alpha / a.shape[0] * (b @ a), "That is the update only. Add it to the weight."),
    Wrong(lambda weight, a, b, alpha: weight + b @ a, "You left out the factor alpha / r."),
    Wrong(lambda weight, a, b, alpha: weight + alpha * (b @ a), "You multiplied by alpha: divide by r as well."),
    Wrong(lambda weight, a, b, alpha: weight + alpha / a.shape[1] * (b @ a),
          "A has the shape (r, in): r is its number of rows, lora_A.shape[0]."),
    Wrong(lambda weight, a, b, alpha: weight.add_(alpha / a.shape[0] * (b @ a)),
          "Return a new tensor, `weight + ...`: you changed the base model's weight itself."),
], call=_call_merge_lora, same=close_tensor)


def _fit(config, parameters, memory, tokens, heads="num_key_value_heads", per_head=4, of_weights=2, rest=int):
    """Return how many responses fit; each argument after `tokens` changes one rule, as a typical wrong answer does."""
    per_token = per_head * config["num_hidden_layers"] * config[heads] * config["head_dim"]
    return rest((memory - of_weights * parameters) / (per_token * tokens))


SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
QWEN = {"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 64}
check_responses_at_once = Check("{} servers.", [
    Case(SMALL, 180_000, 1_000_000, 100, gives=50,
         hint="128 bytes per token. 640,000 bytes are left beside the weights, for 5,000 tokens."),
    Case(SMALL, 100_000, 1_000_000, 100, gives=62, hint="800,000 / 12,800 is 62.5; half a response is none: use //."),
    Case(SMALL, 600_000, 1_000_000, 100, gives=0, hint="The weights alone do not fit: 0 responses, and not fewer."),
    Case(SMALL | {"num_key_value_heads": 4}, 180_000, 1_000_000, 100, gives=25,
         hint="With as many key-value heads as attention heads a token takes twice the memory."),
    Case(QWEN, 494_000_000, 16_000_000_000, 1024, gives=1193,
         hint="24 layers, 2 key-value heads, head_dim 64: 12,288 bytes per token."),
], wrong=[
    Wrong(lambda *server: max(0, _fit(*server, heads="num_attention_heads")),
          "Keys and values have num_key_value_heads heads, which several attention heads share."),
    Wrong(lambda *server: max(0, _fit(*server, per_head=2)),
          "A token takes 4 bytes per layer, head and dimension: a key and a value, of 2 bytes each."),
    Wrong(lambda *server: max(0, _fit(*server, per_head=1)),
          "Count a key and a value, and 2 bytes for each number: a factor of 4 is missing."),
    Wrong(lambda *server: _fit(*server, of_weights=0), "The weights are in the same memory: subtract 2 * parameters."),
    Wrong(lambda *server: max(0, _fit(*server, of_weights=1)), "A weight takes 2 bytes: subtract 2 * parameters."),
    Wrong(lambda *server: _fit(*server, rest=lambda fit: int(fit // 1)),
          "A model that is too large leaves room for no response: max(0, ...)."),
    Wrong(lambda *server: max(0.0, _fit(*server, rest=float)), "A part of a response is none: round down with //."),
])
