"""Self-checks of the notebook "Policy gradients"."""

from collections.abc import Callable

import torch

from .runner import Case, Check, Wrong, close_tensor


def _estimates(logits: torch.Tensor, actions: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    return rewards[:, None] * (torch.nn.functional.one_hot(actions, len(logits)) - logits.softmax(-1))


def _call_gradient_estimates(function: Callable, probabilities: list, actions: list, rewards: list) -> torch.Tensor:
    return function(torch.tensor(probabilities).log(), torch.tensor(actions), torch.tensor(rewards))


check_gradient_estimates = Check("{} cases, each pull with its own row.", [
    Case(probabilities=[0.5, 0.5], actions=[0], rewards=[4.0], gives=[[2.0, -2.0]],
         hint="The gradient of log π(arm 0) is (0.5, -0.5) here, times the reward."),
    Case(probabilities=[0.5, 0.3, 0.2], actions=[2], rewards=[-2.0], gives=[[1.0, 0.6, -1.6]],
         hint="A negative reward pushes the pulled arm down and the others up."),
    Case(probabilities=[0.5, 0.5], actions=[0, 1, 1], rewards=[1.0, 2.0, 0.0],
         gives=[[0.5, -0.5], [-1.0, 1.0], [0.0, 0.0]],
         hint="Each row uses its own reward: rewards (N,) has to become (N, 1), `rewards[:, None]`."),
], call=_call_gradient_estimates, same=close_tensor, wrong=[
    Wrong(lambda logits, actions, rewards: rewards[:, None] * torch.nn.functional.one_hot(actions, len(logits)),
          "The logits of the other arms count, too: they are in the logarithm of the softmax's sum."),
    Wrong(lambda logits, actions, rewards: _estimates(logits, actions, rewards) * logits.softmax(-1)[actions, None],
          "Do not multiply by the probability of the pulled arm: likely arms are drawn more often by themselves."),
    Wrong(lambda logits, actions, rewards: -_estimates(logits, actions, rewards),
          "The sign is wrong. This gradient leads *up*: a reward above 0 raises the logit of the pulled arm."),
    Wrong(lambda *pulls: _estimates(*pulls).mean(0), "Return one row per pull. The mean is taken later."),
])


def _others(groups: torch.Tensor) -> torch.Tensor:
    return groups.sum(dim=1, keepdim=True) - groups


def _grouped(advantages: Callable) -> Callable:
    return lambda rewards, num_generations: advantages(rewards.view(-1, num_generations)).view(-1)


check_leave_one_out = Check("{} batches, each completion compared with the others of its group.", [
    Case([1.0, 0.0, 0.0, 0.0], 4, gives=[1.0, -1 / 3, -1 / 3, -1 / 3],
         hint="The others of the first completion have the mean 0, those of the second one the mean 1/3."),
    Case([4.0, 2.0, 0.0], 3, gives=[3.0, 0.0, -3.0],
         hint="The others of the first completion are 2 and 0, so it gets 4 - 1 = 3."),
    Case([1.0, 0.0, 11.0, 10.0], 2, gives=[1.0, -1.0, 1.0, -1.0],
         hint="Two groups, each with its own others: the rows of `rewards.view(-1, num_generations)`."),
], call=lambda function, rewards, num_generations: function(torch.tensor(rewards), num_generations), same=close_tensor,
    wrong=[
        Wrong(_grouped(lambda groups: groups - groups.mean(dim=1, keepdim=True)),
              "This subtracts the mean of the whole group. Leave each completion's own reward out of its baseline."),
        Wrong(_grouped(lambda groups: groups - _others(groups) / groups.shape[1]),
              "The others are one fewer: divide their sum by num_generations - 1."),
        Wrong(_grouped(lambda groups: groups - _others(groups)),
              "Subtract the others' *mean*: divide their sum by how many they are."),
        Wrong(lambda rewards, _: rewards - (rewards.sum() - rewards) / (len(rewards) - 1),
              "The others are those of the same group, not of the whole batch."),
    ])
