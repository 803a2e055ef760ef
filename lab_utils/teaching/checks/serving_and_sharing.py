"""Self-check of the notebook "Serving and sharing"."""

from collections.abc import Callable

import torch
from torch import Tensor

from .runner import Case, Check, close_tensor


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
], call=_call_merge_lora, same=close_tensor)
