"""Tests on the real GSM8K; skipped unless its JSON Lines files are in ../shared/gsm8k."""

import json
import re

import pytest

from lab_utils import REPOSITORY, rewards
from lab_utils.tasks import load_task
from lab_utils.tasks.answers import extract_hash_answer, numbers_match

FOLDER = REPOSITORY.parent / "shared" / "gsm8k"

pytestmark = [
    pytest.mark.component,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="the real GSM8K is not at ../shared/gsm8k"),
]

# What the exact_match of lm-evaluation-harness ignores (lm_eval/tasks/gsm8k/gsm8k.yaml).
IGNORED = [",", r"\$", r"(?s).*#### ", r"\.$"]


def harness_exact_match(predicted: str, gold: str) -> bool:
    for pattern in IGNORED:
        predicted, gold = re.sub(pattern, "", predicted), re.sub(pattern, "", gold)
    return predicted.lower() == gold.lower()


@pytest.fixture(scope="module")
def solutions() -> list[str]:
    """Return the `answer` column of all 8,792 rows: worked solutions that end in `#### N`."""
    lines = [line for name in ("train", "test") for line in (FOLDER / f"{name}.jsonl").read_text("utf-8").splitlines()]
    return [json.loads(line)["answer"] for line in lines]


def test_comparison_agrees_with_the_harness(solutions):
    """Compare each gold answer with the whole solution of its own row and of the rows around it."""
    golds = [extract_hash_answer(solution) for solution in solutions]
    for distance in (0, 1, 2, 3):
        for predicted, solution, gold in zip(golds[distance:], solutions, golds, strict=False):
            assert numbers_match(predicted, gold) == harness_exact_match(predicted, solution)


def test_every_gold_answer_earns_full_reward(solutions):
    golds = [extract_hash_answer(solution) for solution in solutions]
    texts = [f"<reasoning>\n{steps}\n</reasoning>\n<answer>\n{gold}\n</answer>"
             for steps, gold in zip(solutions, golds, strict=True)]
    for answer in (golds, solutions):
        assert set(rewards.correctness_reward(texts, answer=answer)) == {2.0}
        assert set(rewards.numeric_match_reward(solutions, answer=answer)) == {1.0}
    for name in ("int_reward", "strict_format_reward", "soft_format_reward", "xmlcount_reward"):
        assert set(getattr(rewards, name)(texts)) == {0.5}, name


@pytest.mark.parametrize("response_format", ["reasoning", "think", "hash"])
def test_every_demonstration_is_correct(response_format):
    task = load_task("gsm8k", response_format)
    for split, count in (("train", 7473), ("test", 1319)):
        rows = task.dataset(split, source=str(FOLDER)).to_list()
        assert len(rows) == count
        for row in rows:
            demonstration = task.demonstration(row)
            assert task.is_correct(demonstration, row) and task.has_format(demonstration)
            assert task.is_correct_lenient(demonstration, row)
