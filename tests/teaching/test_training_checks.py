"""The exercises of the notebooks 06 to 10: other solutions than ours pass as well."""

import math
import re
import statistics

import numpy as np
import pytest

from lab_utils.teaching import checks


def expected_without_signal(solve_rates, num_generations):
    p = np.array(solve_rates)
    return (p**num_generations + (1 - p) ** num_generations).mean()


def failed_and_given_up(responses):
    text = "\n\n".join(responses)
    return [len(re.findall(r"\bno\b", text)), len(re.findall(r"\bno\s*</think>", text))]


def redrawn_differences(before, after, draws):
    difference = np.array(after) - np.array(before)
    return [difference[draw].mean() for draw in draws]


def scatter(curve):
    return math.sqrt(statistics.fmean(np.diff(curve) ** 2) / 2)


def perfect_critic(p_yes, p_give_up, attempts):
    if attempts == 0:
        return []
    later = perfect_critic(p_yes, p_give_up, attempts - 1)
    return [p_yes + (1 - p_yes) * (1 - p_give_up) * (later[0] if later else 0), *later]


@pytest.mark.parametrize(
    "solution", [expected_without_signal, failed_and_given_up, redrawn_differences, scatter, perfect_critic])
def test_solutions_pass(solution, capsys):
    assert getattr(checks, f"check_{solution.__name__}")(solution), capsys.readouterr().out
