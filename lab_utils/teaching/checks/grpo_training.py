"""Self-checks of the notebook "GRPO training"."""

import math
import re

from .runner import Case, Check, Wrong, close


def _share(rewards, num_generations, same=lambda group: max(group) == min(group)):
    groups = [rewards[start:start + num_generations] for start in range(0, len(rewards), num_generations)]
    return sum(map(same, groups)) / len(groups)


check_share_without_signal = Check("{} batches.", [
    Case([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 4, gives=0.5,
         hint="`rewards` is a list with two groups: in the first one reward differs, in the second none does."),
    Case([1.0, 1.0, 1.0, 1.0], 4, gives=1.0, hint="All correct is no signal either: no completion is better."),
    Case([0.0, 0.0, 1.0, 1.0], 2, gives=1.0, hint="Compare within a group: each of these two is constant."),
    Case([0.0, 1.0, 0.0, 1.0], 4, gives=0.0, hint="Here the group has four completions: use num_generations."),
    Case([1.1, 1.1, 0.1, 0.1, 1.1, 0.1], 2, gives=2 / 3, hint="Rewards can be any numbers, not only 0 and 1."),
    Case([0.1, 0.1, 0.1, 0.0], 4, gives=0.0, hint="Even a small difference, here in the format, is a signal."),
    Case([0.0, 1.0, 1.0, 0.0], 4, gives=0.0, hint="Compare all rewards of a group, not only the first with the last."),
], wrong=[
    Wrong(lambda rewards, size: _share(rewards, size, lambda group: not any(group)),
          "You count the groups that earn nothing. All correct is no signal either."),
    Wrong(lambda rewards, size: _share(rewards, size, lambda group: max(group) != min(group)),
          "This is the share of groups *with* a signal. Return 1 minus it."),
    Wrong(lambda rewards, size: float(max(rewards) == min(rewards)),
          "You compare the whole batch. It can hold two groups or more: cut it into groups of num_generations first."),
    Wrong(lambda rewards, size: _share(rewards, size, lambda group: group[0] == group[-1]),
          "You compare the first reward of a group with the last one. Those between them count too."),
    Wrong(lambda rewards, size: _share(rewards, 4),
          "You always take four. Use num_generations: a group has two here, and each of these two is constant."),
    Wrong(lambda rewards, size: _share(rewards, size) * len(rewards) / size,
          "This is the number of such groups. Divide it by the number of groups, len(rewards) / num_generations."),
    Wrong(lambda rewards, size: _share(rewards, size) * len(rewards) / size**2,
          "Divide by the number of groups, not by num_generations, the size of one."),
], same=close)

check_expected_without_signal = Check("{} sets of problems.", [
    Case([0.5, 0.5], 2, gives=0.5, hint="Two samples at p = 0.5 agree half of the time: both correct or both wrong."),
    Case([1.0, 0.0], 2, gives=1.0, hint="Neither problem can give a signal: one is always solved, the other never."),
    Case([0.9], 8, gives=0.4305, hint="0.9**8 + 0.1**8: all eight correct, or all eight wrong."),
    Case([1.0, 0.8], 8, gives=0.5839, hint="Take each problem's own probability first, then the mean."),
    Case([0.25, 0.25, 1.0], 4, gives=0.5469, hint="Three problems: the mean of three probabilities."),
], wrong=[
    Wrong(lambda rates, size: (sum(rates) / len(rates))**size + (1 - sum(rates) / len(rates))**size,
          "You averaged the solve rates first. That assumes that all problems are equally hard: average last."),
    Wrong(lambda rates, size: sum(p**size for p in rates) / len(rates),
          "A group that is entirely wrong gives no signal either: add (1 - p)**num_generations."),
    Wrong(lambda rates, size: sum(p**size + (1 - p)**size for p in rates),
          "This is the sum over the problems. Divide it by their number."),
    Wrong(lambda rates, size: 1 - sum(p**size + (1 - p)**size for p in rates) / len(rates),
          "This is the share of groups *with* a signal."),
    Wrong(lambda rates, size: sum(p**size + (1 - p)**size for p in rates) / size,
          "Divide by the number of problems, len(solve_rates), not by the size of a group."),
    Wrong(lambda rates, size: math.prod(p**size + (1 - p)**size for p in rates),
          "You multiplied the probabilities. The share you expect is their mean: add, and divide by their number."),
    Wrong(lambda rates, size: rates**size + (1 - rates)**size,
          "solve_rates is a list, and a list has no power: take its numbers one by one, as p."),
], same=close)


def _failed_and_given_up(responses, pattern=r"\bno\b\s*(</think>)?"):
    found = [match for text in responses for match in re.findall(pattern, text)]
    return len(found), sum(match == "</think>" for match in found)


check_failed_and_given_up = Check("{} sets of responses.", [
    Case(["<think>9 - 2 = 7 no\n9 + 2 = 11 no</think><answer>9 + 2</answer>"], gives=(2, 1),
         hint="Two attempts fail, and </think> follows the second one only."),
    Case(["<think>9 - 2 = 7 no\n9 * 2 = 18 yes</think><answer>9 * 2</answer>"], gives=(1, 0),
         hint="After the only `no` another attempt follows. After `yes` the model stops because it has found it."),
    Case(["<think>9 - 2 = 7 no\n9 + 2 = 11 no"], gives=(2, 0),
         hint="This response was cut off: it has no </think>, so the model has not given up."),
    Case(["<think>4 + 1 = 5 yes</think><answer>4 + 1</answer>", "<think>4 - 1 = 3 no</think><answer>4 - 1</answer>"],
         gives=(1, 1), hint="Count over all responses."),
    Case(["I know nothing about this, not yet. <think>4 - 1 = 3 no\n</think>"], gives=(1, 1),
         hint="`nothing`, `know` and `not` are not the word `no`: match whole words. A line break may come before "
              "</think>."),
    Case([], gives=(0, 0), hint="No responses: return two zeros."),
], wrong=[
    Wrong(lambda responses: (sum(text.count("no") for text in responses),
                             sum("no</think>" in text for text in responses)),
          "`no` also stands inside other words, and a line break may come before </think>: use \\bno\\b and \\s*."),
    Wrong(lambda responses: (_failed_and_given_up(responses)[0], sum("</think>" in text for text in responses)),
          "You count every response that has </think>. A response that ends with `yes` has not given up."),
    Wrong(lambda responses: (sum("no" in text for text in responses), _failed_and_given_up(responses)[1]),
          "You count responses. Count attempts: one response can fail many times."),
    Wrong(lambda responses: (_failed_and_given_up(responses)[0],
                             sum(text.count("no") > 0 and "yes" not in text for text in responses)),
          "A response that was cut off has not given up: look for </think> right after the `no`."),
    Wrong(lambda responses: (sum(text.split().count("no") for text in responses), _failed_and_given_up(responses)[1]),
          "You miss a `no` with </think> right behind it, without a space: `no</think>`. Match the word: \\bno\\b."),
    Wrong(lambda responses: (len(re.findall(r"\bno\b", responses)), 0),
          "`responses` is a list of texts: search in each of them, and add up."),
    Wrong(lambda responses: _failed_and_given_up(responses)[::-1],
          "The order is: first the failed attempts, then those after which the model gave up."),
], same=lambda got, wanted: tuple(got) == wanted)
