"""Tests on the real GSM8K, where its JSON Lines files lie next to the repository; skipped elsewhere."""

import json
import re

import pytest

from lab_utils import REPOSITORY, rewards
from lab_utils.tasks import load_task
from lab_utils.tasks.answers import extract_hash_answer, extract_last_number, numbers_match

FOLDER = REPOSITORY.parent / "shared" / "gsm8k"

pytestmark = [
    pytest.mark.component,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="the real GSM8K is not at ../shared/gsm8k"),
]

# lm-evaluation-harness, lm_eval/tasks/gsm8k/gsm8k.yaml: the two filters and what its exact_match ignores.
STRICT_MATCH = r"#### (\-?[0-9\.\,]+)"  # the first match
FLEXIBLE_EXTRACT = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"  # the last match
IGNORED = [",", r"\$", r"(?s).*#### ", r"\.$"]


def harness_filter(pattern: str, text: str, select: int) -> str:
    match = re.findall(pattern, text)[select]
    return match if isinstance(match, str) else next(group for group in match if group)


def harness_exact_match(predicted: str, gold: str) -> bool:
    for pattern in IGNORED:
        predicted, gold = re.sub(pattern, "", predicted), re.sub(pattern, "", gold)
    return predicted.lower() == gold.lower()


@pytest.fixture(scope="module")
def solutions() -> list[str]:
    """The `answer` column of all 8,792 rows: worked solutions that end in `#### N`."""
    lines = [line for name in ("train", "test") for line in (FOLDER / f"{name}.jsonl").read_text("utf-8").splitlines()]
    return [json.loads(line)["answer"] for line in lines]


def test_all_rows_are_there(solutions):
    golds = [extract_hash_answer(solution) for solution in solutions]
    assert len(golds) == 8792
    assert sum("," in gold for gold in golds) == 79 + 14
    assert sum(gold.startswith("-") for gold in golds) == 3 + 2


def test_extraction_agrees_with_the_harness(solutions):
    for solution in solutions:
        assert extract_hash_answer(solution) == harness_filter(STRICT_MATCH, solution, 0)
        assert extract_last_number(solution) == harness_filter(FLEXIBLE_EXTRACT, solution, -1)


def test_comparison_agrees_with_the_harness(solutions):
    """Each gold answer against itself, against the whole solution's and against those of its neighbours."""
    golds = [extract_hash_answer(solution) for solution in solutions]
    for distance in (0, 1, 2, 3):
        for predicted, solution, gold in zip(golds[distance:], solutions, golds, strict=False):
            assert numbers_match(predicted, gold) == harness_exact_match(predicted, solution)


def test_every_gold_answer_earns_full_reward(solutions):
    golds = [extract_hash_answer(solution) for solution in solutions]
    pairs = list(zip(solutions, golds, strict=True))
    reasoning = [f"<reasoning>\n{steps}\n</reasoning>\n<answer>\n{gold}\n</answer>" for steps, gold in pairs]
    think = [f"<think>{steps}</think><answer>{gold}</answer>" for steps, gold in pairs]
    for answer in (golds, solutions):
        assert set(rewards.correctness_reward(reasoning, answer=answer)) == {2.0}
        assert set(rewards.numeric_match_reward(solutions, answer=answer)) == {1.0}
        assert min(rewards.cosine_scaled_accuracy_reward(think, answer=answer)) >= 0.5
    assert set(rewards.int_reward(reasoning)) == {0.5}
    assert set(rewards.strict_format_reward(reasoning)) == {0.5}
    assert set(rewards.soft_format_reward(reasoning)) == {0.5}
    assert set(rewards.xmlcount_reward(reasoning)) == {0.5}
    assert set(rewards.format_reward(think)) == {1.0}


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
