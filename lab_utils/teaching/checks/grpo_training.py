"""Self-check of the notebook "GRPO training"."""

from .runner import Case, Check, close

check_share_without_signal = Check("{} batches.", [
    Case([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 4, gives=0.5,
         hint="`rewards` is a list with two groups: in the first one reward differs, in the second none does."),
    Case([1.0, 1.0, 1.0, 1.0], 4, gives=1.0, hint="All correct is no signal either: no completion is better."),
    Case([0.0, 0.0, 1.0, 1.0], 2, gives=1.0, hint="Compare within a group: each of these two is constant."),
    Case([0.0, 1.0, 0.0, 1.0], 4, gives=0.0, hint="Here the group has four completions: use num_generations."),
    Case([1.1, 1.1, 0.1, 0.1, 1.1, 0.1], 2, gives=2 / 3, hint="Rewards can be any numbers, not only 0 and 1."),
    Case([0.1, 0.1, 0.1, 0.0], 4, gives=0.0, hint="Even a small difference, here in the format, is a signal."),
    Case([0.0, 1.0, 1.0, 0.0], 4, gives=0.0, hint="Compare all rewards of a group, not only the first with the last."),
], same=close)
