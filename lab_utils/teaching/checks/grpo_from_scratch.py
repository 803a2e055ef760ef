"""Self-checks of the notebook "GRPO from scratch"."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from ..grpo_math import aggregate, grpo_loss, kl_estimate, token_logps
from .runner import Case, Check, Wrong, close, close_tensor


def _down_the_columns(rewards: torch.Tensor, num_generations: int) -> torch.Tensor:
    centered = (groups := rewards.view(-1, num_generations)) - groups.mean(0)
    std = (centered.square().sum(0) / (len(groups) - 1)).sqrt()  # groups.std(0), without its warning about a single row
    return (centered / (std + 1e-4)).view(-1)


check_group_advantages = Check("{} batches, each group compared with itself.", [
    Case([1.0, 0.0, 0.0, 0.0], 4, gives=[1.5, -0.5, -0.5, -0.5],
         hint="Subtract the mean (0.25) and divide by the standard deviation (0.5, with n - 1, as `std` computes it)."),
    Case([0.0, 1.0, 1.0, 1.0], 4, gives=[-1.5, 0.5, 0.5, 0.5],
         hint="Subtract the mean (0.75) and divide by the standard deviation (0.5)."),
    Case([1.0, 0.0, 0.0, 0.0, 11.0, 10.0, 10.0, 10.0], 4, gives=[1.5, -0.5, -0.5, -0.5, 1.5, -0.5, -0.5, -0.5],
         hint="Two groups, each with its own mean and deviation: the rows of `rewards.view(-1, num_generations)`. Keep "
              "the mean as a column, with `mean(dim=1, keepdim=True)`, or it is subtracted along the wrong axis."),
    Case([1.0, 0.0, 1.0, 0.0], 2, gives=[0.7071, -0.7071, 0.7071, -0.7071],
         hint="Here a group has two completions: use num_generations."),
    Case([1.0, 1.0, 1.0, 1.0], 4, gives=[0.0, 0.0, 0.0, 0.0],
         hint="All rewards are equal, so the advantages are 0. 0 / 0 is not a number: divide by std + 1e-4."),
], call=lambda function, rewards, num_generations: function(torch.tensor(rewards), num_generations), same=close_tensor,
    wrong=[
        Wrong(_down_the_columns, "Groups are the rows: take mean and std along a row (dim=1), not down the columns."),
        Wrong(lambda rewards, size: (((g := rewards.view(-1, size)) - g.mean(1)) / (g.std(1) + 1e-4)).view(-1),
              "Keep the mean and std of each group as a column, with keepdim=True, or they meet the wrong axis."),
    ])


def _call_clipped_loss(clipped_loss: Callable, ratios: list, advantages: list, epsilon: float) -> torch.Tensor:
    old_logps = torch.full_like(torch.tensor(ratios), -1.0)
    return clipped_loss(old_logps + torch.tensor(ratios).log(), old_logps, torch.tensor(advantages), epsilon)


check_clipped_loss = Check("{} cases, clipped only where a token has gone far enough.", [
    Case(ratios=[[1.0]], advantages=[2.0], epsilon=0.2, gives=[[-2.0]],
         hint="Nothing has changed: the ratio is exp(0) = 1, the loss is *minus* the advantage."),
    Case(ratios=[[1.1]], advantages=[2.0], epsilon=0.2, gives=[[-2.2]],
         hint="The ratio is within the clip range: the loss is -ratio * advantage."),
    Case(ratios=[[2.0]], advantages=[1.0], epsilon=0.2, gives=[[-1.2]],
         hint="Good, and already twice as likely: clipped at 1 + epsilon."),
    Case(ratios=[[0.5]], advantages=[-1.0], epsilon=0.2, gives=[[0.8]],
         hint="Bad, and already half as likely: clipped at 1 - epsilon."),
    Case(ratios=[[2.0]], advantages=[-1.0], epsilon=0.2, gives=[[2.0]],
         hint="Bad, and twice as likely: the way back stays open. Take the smaller objective, then the minus sign."),
    Case(ratios=[[0.5]], advantages=[1.0], epsilon=0.2, gives=[[-0.5]],
         hint="Good, and half as likely: not clipped. Take the smaller of the two objectives."),
    Case(ratios=[[1.0, 2.0], [1.0, 0.5]], advantages=[1.0, -1.0], epsilon=0.2, gives=[[-1.0, -1.2], [1.0, 0.8]],
         hint="Two completions of two tokens: advantages (B,) has to become (B, 1), `advantages[:, None]`."),
    Case(ratios=[[1.0, 2.0, 1.0]] * 2, advantages=[1.0, -1.0], epsilon=0.2, gives=[[-1.0, -1.2, -1.0], [1.0, 2.0, 1.0]],
         hint="Two completions of three tokens: advantages (B,) has to become (B, 1), `advantages[:, None]`."),
], call=_call_clipped_loss, same=close_tensor)


# Token log-probabilities. The next token depends on the last one only: row t of this table is what follows token t.

TABLE = torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25], [0.125, 0.125, 0.75]]).log()


class _TableModel(torch.nn.Module):
    """A language model of three tokens. Without an attention mask it gives every token the same probability."""

    def __init__(self, offset: float = 0.0):
        super().__init__()
        self.table = torch.nn.Parameter(TABLE + offset)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, logits_to_keep: int = 0,
                **_: Any) -> SimpleNamespace:
        logits = self.table[input_ids] * (attention_mask is not None)
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


def _call_token_logps(function: Callable, input_ids: list, attention_mask: list, num_tokens: int,
                      offset: float = 0.0) -> torch.Tensor:
    return function(_TableModel(offset), torch.tensor(input_ids), torch.tensor(attention_mask), num_tokens)


def _without_shift(model: Any, ids: torch.Tensor, mask: torch.Tensor, num_tokens: int) -> torch.Tensor:
    return model(ids, mask).logits.log_softmax(-1)[:, -num_tokens:].gather(-1, ids[:, -num_tokens:, None])[..., 0]


def _raw_logits(model: Any, ids: torch.Tensor, mask: torch.Tensor, num_tokens: int) -> torch.Tensor:
    return model(ids, mask).logits[:, -num_tokens - 1:-1].gather(-1, ids[:, -num_tokens:, None])[..., 0]


check_token_logps = Check("{} batches, each token predicted from the position before it.", [
    Case([[0, 1, 2]], [[1, 1, 1]], 2, gives=[[-0.6931, -1.3863]],
         hint="The model gives the 1 a probability of 0.5, after the 0, and the 2 one of 0.25, after the 1."),
    Case([[0, 1, 2]], [[1, 1, 1]], 2, offset=3.0, gives=[[-0.6931, -1.3863]],
         hint="Here all logits are 3 higher, which changes no probability."),
    Case([[0, 0, 1, 2], [2, 2, 1, 0]], [[0, 1, 1, 1], [1, 1, 1, 0]], 2,
         gives=[[-0.6931, -1.3863], [-2.0794, -0.6931]], hint="Two rows, with padding."),
], call=_call_token_logps, same=close_tensor, wrong=[
    Wrong(_without_shift, "The logits at a position predict the *next* token: for the last 2 tokens take positions -3 "
                          "and -2, `logits[:, -num_tokens - 1:-1]`."),
    Wrong(_raw_logits, "Logits are scores. log_softmax over the vocabulary, the last dimension, makes them "
                       "log-probabilities."),
    Wrong(lambda *batch: token_logps(*batch).exp(), "These are probabilities. Return their logarithms."),
    Wrong(lambda model, ids, mask, num_tokens: token_logps(model, ids, None, num_tokens),
          "Pass attention_mask to the model, or it reads the padding as if it were text."),
    Wrong(lambda *batch: token_logps(*batch).sum(1), "Return one number per token, not their sum."),
])


# The KL term, on a vocabulary of three tokens whose probabilities are known: means over tokens are exact sums.


def _call_kl_term(kl_term: Callable, what: str, policy: list, old: list, reference: list) -> Any:
    logits = torch.tensor(policy).log().requires_grad_()
    logps, old_logps = logits.log_softmax(-1)[None], torch.tensor(old).log()[None]
    term = kl_term(logps, old_logps, torch.tensor(reference).log()[None])
    if not isinstance(term, torch.Tensor) or term.shape != logps.shape:
        return f"{type(term).__name__} of shape {tuple(getattr(term, 'shape', ()))}"
    mean = (old_logps.exp() * term).sum()
    if what == "gradient":
        return torch.autograd.grad(mean, logits)[0].tolist() if mean.requires_grad else [0.0] * 3
    return mean.item() if what == "mean" else min(term.min().item(), 0.0)


def _same_kl(got: Any, wanted: float | list) -> bool | str:
    if isinstance(got, str):
        return "Return one number per token, of the same shape as logps. The mean is taken later."
    return close_tensor(torch.tensor(got), wanted) if isinstance(wanted, list) else close(got, wanted)


POLICY, REFERENCE, OLD = [0.7, 0.2, 0.1], [0.5, 0.25, 0.25], [0.4, 0.4, 0.2]
check_kl_term = Check("{} properties: value, sign and gradient, also for tokens of an older policy.", [
    Case("mean", POLICY, POLICY, REFERENCE, gives=0.0993, hint="The mean over tokens of the policy must be the KL."),
    Case("lowest", POLICY, POLICY, REFERENCE, gives=0.0, hint="A token gets a negative number: look at k1, k2 and k3."),
    Case("gradient", POLICY, POLICY, REFERENCE, gives=[0.166, -0.0645, -0.1016],
         hint="The value is right, but the gradient is not that of KL(policy ‖ reference)."),
    Case("mean", POLICY, OLD, REFERENCE, gives=0.0993,
         hint="The value is wrong for tokens that another policy sampled. Which ratio corrects for that?"),
    Case("gradient", POLICY, OLD, REFERENCE, gives=[0.166, -0.0645, -0.1016],
         hint="The gradient is wrong for tokens that another policy sampled."),
], call=_call_kl_term, same=_same_kl, wrong=[
    Wrong(lambda new, old, ref: new - ref, "That is k1. It can be negative, and its gradient is 0 on average."),
    Wrong(lambda new, old, ref: (new - old).exp() * (new - ref),
          "Value and gradient are right, but k1 is negative for a token that the reference likes better."),
    Wrong(lambda new, old, ref: (ref - new) ** 2 / 2,
          "That is k2. Its gradient is right, but its value is only near the KL."),
    Wrong(lambda new, old, ref: kl_estimate(new, ref),
          "That is k3. Its value is right, but its own gradient is that of KL(reference ‖ policy). See the table."),
    Wrong(lambda new, old, ref: (new - old).detach().exp() * kl_estimate(new, ref),
          "Do not detach the ratio. It may be 1, but its gradient, ∇log π, is the part that k3 lacks."),
    Wrong(lambda new, old, ref: (old - new).exp() * kl_estimate(new, ref),
          "The ratio is upside down: it is new / old, exp(logps - old_logps)."),
    Wrong(lambda new, old, ref: (new - new.detach()).exp() * kl_estimate(new, ref),
          "This ratio is always 1. Compare with the policy that sampled: exp(logps - old_logps)."),
    Wrong(lambda new, old, ref: (new - old).exp() * kl_estimate(ref, new),
          "Mind the direction: d = ref_logps - logps. The tokens come from the policy, not from the reference."),
])


def _call_aggregate(function: Callable, losses: list, mask: list, loss_type: str, longest: int) -> torch.Tensor:
    return function(torch.tensor(losses), torch.tensor(mask), loss_type, longest)


TWO_AND_FOUR = {"losses": [[1.0, 1.0, 99.0, 99.0], [3.0, 3.0, 3.0, 3.0]], "mask": [[1, 1, 0, 0], [1, 1, 1, 1]]}
check_aggregate = Check("{} batches.", [
    Case(losses=[[2.0, 99.0]], mask=[[1, 0]], loss_type="dapo", longest=2, gives=2.0,
         hint="One token with loss 2, and one of padding. The result is one number."),
    Case(**TWO_AND_FOUR, loss_type="grpo", longest=10, gives=2.0,
         hint="grpo: first the mean of each completion over its own tokens (1 and 3), then the mean of these."),
    Case(**TWO_AND_FOUR, loss_type="dapo", longest=10, gives=14 / 6, hint="dapo: all six tokens count the same."),
    Case(**TWO_AND_FOUR, loss_type="dr_grpo", longest=10, gives=14 / 20,
         hint="dr_grpo: divide the sum by B * max_completion_length, here 2 * 10, whatever the batch holds."),
], call=_call_aggregate, same=close, wrong=[
    Wrong(lambda losses, mask, *_: losses.mean(), "99 stands on padding. Multiply by the mask before you sum."),
    Wrong(lambda losses, mask, *_: (losses * mask).mean(),
          "The padding counts as tokens with loss 0 here: divide by the number of tokens, mask.sum(), instead."),
    Wrong(lambda losses, mask, *_: aggregate(losses, mask, "dapo", 0),
          "grpo is not the mean over all tokens: each completion has the same weight, so divide row by row first."),
    Wrong(lambda losses, mask, *_: aggregate(losses, mask, "grpo", 0),
          "dapo is not the mean of the completions' means: each of the six tokens has the same weight."),
    Wrong(lambda losses, mask, loss_type, _: aggregate(losses, mask, loss_type, losses.shape[1]),
          "dr_grpo divides by the longest length *allowed*, 10 here. The width of this batch, 4, is chance."),
])


# The training step, of a model that is a table of logits. One step of plain gradient descent shows the gradient.


def _step(old: Callable = lambda logps, batch: batch["old_logps"], zero_grad: bool = True, clip: bool = True,
          own_reference: bool = True, update: bool = True, sign: float = 1.0) -> Callable:
    """Return the workshop's own training step, or with other arguments one that has a mistake."""
    def train_step(model, reference, optimizer, batch):
        inputs = batch["input_ids"], batch["attention_mask"], batch["mask"].shape[1]
        logps = token_logps(model, *inputs)
        ref_logps = token_logps(reference if own_reference else model, *inputs).detach()
        loss = sign * grpo_loss(logps, old(logps, batch), batch["advantages"], batch["mask"], beta=0.1,
                                ref_logps=ref_logps, max_completion_length=128)
        if zero_grad:
            optimizer.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if update:
            optimizer.step()
        return loss.item()

    return train_step


def _call_train_step(train_step: Callable, steps: int = 1, size: float = 1.0, old_ratio: float = 1.0,
                     reference_moved: bool = False) -> Any:
    """Return how far the weights move in some steps, or what is wrong in words."""
    model, reference = _TableModel(), _TableModel()
    if reference_moved:
        reference.table.data[0] += torch.tensor([2.0, -2.0, 0.0])
    ids = torch.tensor([[0, 0, 1], [0, 1, 2], [2, 0, 2]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mask": torch.ones(3, 2, dtype=torch.long),
             "advantages": size * torch.tensor([1.0, -0.5, -0.5]), "rewards": torch.tensor([1.0, 0.0, 0.0])}
    batch["old_logps"] = token_logps(model, ids, batch["attention_mask"], 2).detach() - torch.tensor(old_ratio).log()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(steps):
        loss = train_step(model, reference, optimizer, batch)
    if reference.table.grad is not None:
        return "a reference with a gradient"
    return (model.table.data - TABLE).tolist() if isinstance(loss, float) else f"a loss of type {type(loss).__name__}"


def _same_step(got: Any, wanted: list) -> bool | str:
    if isinstance(got, str):
        return ("The reference is not trained: use torch.no_grad() for its log-probabilities." if "reference" in got
                else "Return the loss as a plain number, loss.item().")
    return close_tensor(torch.tensor(got), wanted)


check_train_step = Check("{} updates, each equal to that of the workshop's own step.", [
    Case(**keywords, gives=_call_train_step(_step(), **keywords), hint=hint) for keywords, hint in (
        ({}, "The change of the weights is wrong. Minimize the result of grpo_loss, with its settings as they are."),
        ({"steps": 2}, "Two steps in a row: the change of the weights is wrong."),
        ({"size": 40.0}, "With large advantages the change of the weights is wrong."),
        ({"old_ratio": 1.1}, "With a batch of an older policy the change of the weights is wrong."),
        ({"reference_moved": True}, "With a reference that differs from the model the change of the weights is wrong."),
    )
], call=_call_train_step, same=_same_step, wrong=[
    Wrong(_step(update=False), "The weights did not change: call loss.backward() and then optimizer.step()."),
    Wrong(_step(old=lambda logps, batch: logps),
          "The old log-probabilities have a gradient, which cancels that of the new ones. Use batch['old_logps']."),
    Wrong(_step(sign=-1.0), "The weights move the opposite way: minimize grpo_loss, which has its minus sign."),
    Wrong(_step(zero_grad=False), "Gradients add up in PyTorch: call optimizer.zero_grad() before loss.backward()."),
    Wrong(_step(clip=False),
          "This batch has a large gradient: scale it to a norm of at most 1, with clip_grad_norm_, before the step."),
    Wrong(_step(old=lambda logps, batch: logps.detach()),
          "The ratio compares with the policy that sampled: pass batch['old_logps'], not the model's of now."),
    Wrong(_step(own_reference=False), "Pass the reference's log-probabilities as ref_logps, not the model's."),
])
