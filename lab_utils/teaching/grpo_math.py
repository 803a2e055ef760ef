"""GRPO's loss in plain tensors, one readable function for each stage of "GRPO from scratch".

    rewards -> advantages -> log-probabilities -> ratio -> clipped objective (- KL) -> one number

Shapes: B completions (whole groups of the same prompt, one after the other), each padded to T tokens; `mask` (B, T) is
1 on the tokens of a completion and 0 on its padding. Training itself uses TRL's GRPOTrainer; tests compare the two.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

STD_EPSILON = 1e-4  # TRL's; keeps a group of equal rewards at advantage 0 instead of dividing 0 by 0


def group_advantages(rewards: Tensor, num_generations: int, scale: bool = True) -> Tensor:
    """Compare each completion with the others of its group: (B,) rewards -> (B,) advantages.

    DeepSeekMath (arXiv 2402.03300), section 4.1.2: the reward minus the group's mean, divided by the group's
    standard deviation. `scale=False` leaves out the division, as Dr. GRPO does (arXiv 2503.20783, section 3.2).

    >>> group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), num_generations=4, scale=False).tolist()
    [0.75, -0.25, -0.25, -0.25]
    """
    groups = rewards.view(-1, num_generations)
    advantages = groups - groups.mean(dim=1, keepdim=True)
    if scale:
        advantages = advantages / (groups.std(dim=1, keepdim=True) + STD_EPSILON)
    return advantages.view(-1)


def token_logps(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, num_tokens: int, temperature: float = 1.0
) -> Tensor:
    """Return the log-probability of each of the last `num_tokens` (T) tokens of every row, given all before it: (B, T).

    The logits at a position predict the *next* token, so the logits for a token are one position before it.
    """
    logits = model(input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=num_tokens + 1).logits[:, :-1]
    logps = (logits.float() / temperature).log_softmax(dim=-1)  # (B, T, V)
    return logps.gather(-1, input_ids[:, -num_tokens:, None])[:, :, 0]


def clipped_objective(
    ratio: Tensor, advantages: Tensor, epsilon: float = 0.2, epsilon_high: float | None = None
) -> Tensor:
    """Return what every token adds to the objective, which is maximized: (B, T) ratios and (B,) advantages -> (B, T).

    PPO (arXiv 1707.06347), equation 7. `epsilon_high` is the upper bound if it differs: DAPO's clip-higher
    (arXiv 2503.14476, section 3.1).

    >>> clipped_objective(torch.tensor([[1.1, 1.5], [1.1, 1.5]]), torch.tensor([1.0, -1.0])).tolist()
    [[1.100000023841858, 1.2000000476837158], [-1.100000023841858, -1.5]]
    """
    high = epsilon if epsilon_high is None else epsilon_high
    clipped_ratio = ratio.clamp(1 - epsilon, 1 + high)
    return torch.min(ratio * advantages[:, None], clipped_ratio * advantages[:, None])


def kl_estimate(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Estimate KL(policy || reference) from the sampled tokens alone, one estimate per token: (B, T).

    Schulman's k3 (joschu.net/blog/kl-approx.html; DeepSeekMath, equation 4): exp(d) - d - 1, d = reference - policy.
    It is never negative, and correct on average over tokens that the policy samples. Its own gradient is, on average,
    that of KL(reference || policy); see `grpo_loss`.
    """
    difference = ref_logps - logps
    return difference.exp() - difference - 1


def aggregate(per_token_loss: Tensor, mask: Tensor, loss_type: str, max_completion_length: int) -> Tensor:
    """Turn (B, T) losses into one number. The loss types differ in the weight of a long completion's tokens:

    - "grpo": the mean over each completion, then over completions (DeepSeekMath, equation 3).
    - "dapo": the mean over all tokens of the batch (DAPO, section 3.3).
    - "dr_grpo": the sum over all tokens, divided by the constant B * max_completion_length (Dr. GRPO, section 3.2).
    """
    if loss_type == "grpo":
        return ((per_token_loss * mask).sum(dim=1) / mask.sum(dim=1)).mean()
    if loss_type == "dapo":
        return (per_token_loss * mask).sum() / mask.sum()
    if loss_type == "dr_grpo":
        return (per_token_loss * mask).sum() / (len(mask) * max_completion_length)
    raise ValueError(f"loss_type={loss_type!r} is not implemented here: choose 'grpo', 'dapo' or 'dr_grpo'.")


def grpo_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    loss_type: str = "dapo",
    max_completion_length: int,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    beta: float = 0.0,
    ref_logps: Tensor | None = None,
) -> Tensor:
    """Return the loss that TRL's GRPOTrainer minimizes, from (B, T) log-probabilities and (B,) advantages.

    Args:
        logps: those of the policy in training, with their gradient.
        old_logps: those of the policy that sampled the completions; equal to `logps` in the first pass over a batch.
        beta: the weight of the KL estimate. Above 0 it needs `ref_logps`, those of the reference policy. As in TRL (and
            DeepSeek-V3.2, arXiv 2512.02556, section 3.1) the estimate is multiplied by the ratio. Value and gradient
            are then those of the KL on average, also for tokens of an old policy. The ratio matters even where it is 1:
            its gradient is the part that the estimate lacks.
    """
    ratio = (logps - old_logps).exp()
    per_token_loss = -clipped_objective(ratio, advantages, epsilon, epsilon_high)
    if beta:
        per_token_loss = per_token_loss + beta * ratio * kl_estimate(logps, ref_logps)
    return aggregate(per_token_loss, mask, loss_type, max_completion_length)
