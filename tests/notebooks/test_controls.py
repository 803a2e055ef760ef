"""The random-reward control replaces every reward that stands for a correct answer, in each recipe."""

import re

import measure_learning
import pytest

from lab_utils import REPOSITORY, rewards
from lab_utils.config import load

RECIPES = sorted(path.stem for path in (REPOSITORY / "lab_utils" / "config" / "recipes").glob("*.yaml"))


def of_notebook_08(config):
    """Run the notebook's own line."""
    source = (REPOSITORY / "notebooks" / "src" / "08_evaluation.py").read_text(encoding="utf-8")
    names = {"config": config, "rewards": rewards, "random_reward": measure_learning.random_reward}
    exec(re.search(r"^by_coin = .*$", source, re.M)[0], names)
    return names["by_coin"]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("control", [of_notebook_08, measure_learning.with_random_correctness])
def test_no_reward_of_the_control_depends_on_the_correct_answer(control, recipe):
    config = load(recipe, "cpu")
    expected = ["random_reward" if name in rewards.CORRECTNESS else name for name in config.rewards]
    assert [function.__name__ for function in control(config)] == expected
    assert "random_reward" in expected
