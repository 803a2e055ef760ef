"""Self-checks of the notebook "GRPO from scratch"."""

from collections.abc import Callable

import torch

from .runner import Case, Check, close_tensor

check_group_advantages = Check("{} batches, each group compared with itself.", [
    Case([1.0, 0.0, 0.0, 0.0], 4, gives=[1.5, -0.5, -0.5, -0.5],
         hint="Subtract the mean (0.25) and divide by the standard deviation (0.5, with n - 1, as `std` computes it)."),
    Case([0.0, 1.0, 1.0, 1.0], 4, gives=[-1.5, 0.5, 0.5, 0.5],
         hint="Subtract the mean (0.75) and divide by the standard deviation (0.5)."),
    Case([1.0, 0.0, 0.0, 0.0, 11.0, 10.0, 10.0, 10.0], 4, gives=[1.5, -0.5, -0.5, -0.5, 1.5, -0.5, -0.5, -0.5],
         hint="Two groups, each with its own mean and deviation: the rows of `rewards.view(-1, num_generations)`."),
    Case([1.0, 0.0, 1.0, 0.0], 2, gives=[0.7071, -0.7071, 0.7071, -0.7071],
         hint="Here a group has two completions: use num_generations."),
    Case([1.0, 1.0, 1.0, 1.0], 4, gives=[0.0, 0.0, 0.0, 0.0],
         hint="All rewards are equal, so the advantages are 0. 0 / 0 is not a number: divide by std + 1e-4."),
], call=lambda function, rewards, num_generations: function(torch.tensor(rewards), num_generations), same=close_tensor)


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
], call=_call_clipped_loss, same=close_tensor)
