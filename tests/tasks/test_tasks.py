"""Tests of lab_utils.tasks: generators with known answers, disjoint splits, correctness, rows that cannot be used."""

import json
import random

import pytest

from lab_utils import WorkshopError
from lab_utils.sharing.chat import QuestionError, as_prompt
from lab_utils.tasks import RowError, load_task, visible
from lab_utils.tasks.countdown import LARGEST_RESULT, all_attempts, solve, split_of
from lab_utils.tasks.expressions import evaluate
from lab_utils.tasks.word_problems import LARGEST, generate_problem, load_templates
from lab_utils.teaching.inspection import side_by_side


def test_every_word_problem_agrees_with_its_independent_formula():
    drawn, keys = set(), {}
    for split in ("train", "test"):
        rng = random.Random(f"formula {split}")
        problems = [generate_problem(split, rng) for _ in range(3000)]
        for problem in problems:
            assert evaluate(problem.formula) == problem.answer, problem
            for line in problem.solution.splitlines()[:-1]:
                left, _, rest = line.split("<<")[1].partition("=")
                assert evaluate(left) == int(rest.split(">>")[0]), line
            assert problem.solution.endswith(f"\n#### {problem.answer}") and 1 <= problem.answer <= LARGEST
            assert "{" not in problem.question + problem.solution
            assert not problem.question[0].islower() and problem.question.endswith(("?", "."))
        drawn |= {(problem.key.split()[0], problem.steps) for problem in problems}
        keys[split] = {problem.key for problem in problems}
    assert {steps for _, steps in drawn} == {1, 2, 3, 4}
    assert len(drawn) == len(load_templates()) >= 40, "every template is drawn"
    assert not keys["train"] & keys["test"], "no template with the same numbers in both splits"


def test_countdown_splits_share_no_set_of_numbers():
    task = load_task("countdown")
    train = {tuple(sorted(row["nums"])) for row in task.dataset("train", 3000)}
    test = {tuple(sorted(row["nums"])) for row in task.dataset("test", 1000)}
    assert not train & test
    assert all(split_of(list(nums)) == "test" for nums in test)
    assert split_of([1, 2, 3]) == split_of([3, 1, 2]), "the order of the numbers does not matter"


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_countdown_problem_is_solvable_and_every_attempt_is_true(split):
    task = load_task("countdown")
    for row in task.dataset(split, 300):
        solutions = solve(row["nums"], row["target"])
        assert solutions and all(task.is_correct(f"<answer>{solution}</answer>", row) for solution in solutions)
        for steps, expression, value in all_attempts(tuple(sorted(row["nums"])), LARGEST_RESULT):
            assert evaluate(expression) == value
            for step in steps.split(", "):
                left, right = step.split(" = ")
                assert evaluate(left) == int(right)


@pytest.mark.parametrize("name, response_format", [
    ("countdown", "think"), ("countdown", "plain"), ("gsm8k", "reasoning"), ("gsm8k", "think"), ("gsm8k", "hash"),
    ("gsm8k", "plain")])
def test_demonstrations_have_the_format_and_repeat(name, response_format):
    task = load_task(name, response_format)
    rows = list(task.dataset("train", 300))
    texts = [task.demonstration(row) for row in rows]
    assert texts == [task.demonstration(row) for row in rows]
    assert all(task.has_format(text) for text in texts)
    right = [task.is_correct(text, row) for text, row in zip(texts, rows, strict=True)]
    # Countdown's demonstrations give up on purpose; a word problem's always end in the gold answer
    assert 0.4 < sum(right) / len(right) < 0.8 if name == "countdown" else all(right)


def test_countdown_demonstrations_check_themselves_truthfully():
    task = load_task("countdown")
    for row in task.dataset("train", 500):
        text = task.demonstration(row)
        lines = text.removeprefix("<think>").split("</think>")[0].splitlines()
        assert task.attempts(text) == len(lines)
        for line in lines:
            assert line.endswith(" yes" if line.rsplit(" ", 2)[-2] == str(row["target"]) else " no")
        assert task.is_correct(text, row) == lines[-1].endswith(" yes")


@pytest.mark.parametrize("completion, strict, lenient", [
    ("<think>x</think><answer>(7 * 3) + 25</answer>", True, True),
    ("<answer>25+7*3</answer>", True, True),
    ("7 * 3 + 25", False, True),
    ("so it is\n(7 * 3) + 25 = 46", False, True),
    ("<answer>7 * 3 + 25 = 46</answer>", False, False),
    ("<answer>7 * 3 + 25", False, False),
    ("", False, False),
])
def test_countdown_correctness(completion, strict, lenient):
    task, row = load_task("countdown"), {"nums": [3, 7, 25], "target": 46}
    assert task.is_correct(completion, row) is strict
    assert task.is_correct([{"role": "assistant", "content": completion}], row) is strict
    assert task.is_correct_lenient(completion, row) is lenient


@pytest.mark.parametrize("response_format, completion, strict, lenient", [
    ("reasoning", "<reasoning>\n40 + 32 = 72\n</reasoning>\n<answer>\n72\n</answer>", True, True),
    ("reasoning", "<answer>$72.00</answer>", True, True),
    ("reasoning", "The answer is 72.", False, True),
    ("reasoning", "<answer>71</answer> or 72", False, True),
    ("hash", "40 + 32 = 72\n#### 72", True, True),
    ("hash", "<answer>72</answer>", False, True),
    ("think", "<think>72</think><answer>71</answer>", False, False),
    ("hash", "6 * 12\n#### 72\nQuestion: 5 apples", True, True),
    ("reasoning", "<answer>72</answer> in 3 steps", True, True),
])
def test_gsm8k_correctness(response_format, completion, strict, lenient):
    task, row = load_task("gsm8k", response_format), {"question": "?", "answer": "72"}
    assert task.is_correct(completion, row) is strict
    assert task.is_correct_lenient(completion, row) is lenient


def test_plain_text_asks_without_a_chat_and_takes_the_last_line_as_the_answer():
    task, row = load_task("countdown", "plain"), {"nums": [3, 7, 25], "target": 46}
    assert task.prompt(row) == load_task("countdown").prompt(row)[-1]["content"] + "\n"
    assert task.dataset("test", 3)["prompt"] == [task.prompt(row) for row in task.dataset("test", 3)]
    for text, correct in (("7 + 3 = 10 no\n(7 * 3) + 25", True), ("(7 * 3) + 25\n7 + 3", False), ("", False),
                          ("<answer>(7 * 3) + 25</answer>", False)):
        assert task.is_correct(text, row) is correct
    assert load_task("gsm8k", "plain").is_correct("The answer is 72.\n#### 72", {"answer": "72"})


def test_unknown_names_say_what_exists():
    with pytest.raises(WorkshopError, match="'gsm9k': choose one of countdown, gsm8k"):
        load_task("gsm9k")
    with pytest.raises(WorkshopError, match="'hash': choose one of think"):
        load_task("countdown", "hash")


@pytest.mark.parametrize("arguments, message", [
    ({"split": "dev"}, "'dev': choose 'train' or 'test'"),
    ({"split": "train", "limit": 0}, "limit=0 leaves no rows: give"),
    ({"split": "train", "source": "nowhere.jsonl"}, "no file nowhere.jsonl: give the path"),
    ({"split": "train", "source": "hub"}, "'openai/gsm8k' could not be loaded .* offline with source='synthetic'"),
])
def test_a_split_that_cannot_be_loaded(monkeypatch, arguments, message):
    def load_dataset(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr("lab_utils.tasks.sources.load_dataset", load_dataset)
    with pytest.raises(WorkshopError, match=message):
        load_task("gsm8k").dataset(**arguments)


def write(path, lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return str(path)


def test_json_lines_load_like_the_synthetic_rows(tmp_path):
    source = write(tmp_path / "train.jsonl", [{"question": "2+2?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"}, ""])
    for given in (source, str(tmp_path)):
        rows = load_task("gsm8k", "hash").dataset("train", source=given)
        assert rows["answer"] == ["4"] and rows[0]["prompt"][-1]["content"] == "2+2?"
    assert load_task("gsm8k", "hash").demonstration(rows[0]) == "2 + 2 = 4\n#### 4"


@pytest.mark.parametrize("task, line, reason", [
    ("gsm8k", '{"question": "a", "answer"', "line 2: not valid JSON"),
    ("gsm8k", "[1, 2]", "line 2: the line is a JSON list, not an object"),
    ("gsm8k", {"question": "a"}, "line 2: the column 'answer' is missing"),
    ("gsm8k", {"question": "", "answer": "#### 4"}, "line 2: the column 'question'"),
    ("gsm8k", {"question": "a", "answer": "four"}, "line 2: answer='four' has no gold number"),
    ("gsm8k", {"question": "a", "answer": "#### 3/4"}, "line 2: answer='#### 3/4' has no gold number"),
    ("gsm8k", {"question": "a", "answer": "so #### 12,5"}, "line 2: answer='so #### 12,5' has no gold number"),
    ("countdown", {"nums": [3, 7, 25]}, "line 2: the column 'target'"),
    ("countdown", {"nums": "3 7", "target": 4}, "line 2: nums='3 7'"),
    ("countdown", {"nums": [3, 7], "target": "10"}, "line 2: target='10'"),
    ("countdown", {"nums": [1, 1, 1], "target": 50}, "line 2: no expression that uses each .* once equals 50"),
    ("countdown", {"nums": [5], "target": 5}, "line 2: nums=\\[5\\] does not fit: give two to six"),
])
def test_a_bad_row_is_named_by_file_line_and_reason(tmp_path, task, line, reason):
    good = {"question": "a", "answer": "#### 4", "nums": [2, 2], "target": 4}
    source = write(tmp_path / "rows.jsonl", [good, line])
    with pytest.raises(RowError, match=f"rows.jsonl, {reason}"):
        load_task(task).dataset("train", source=source)


def test_countdown_accepts_what_needs_fractions_or_negative_numbers():
    row = {"nums": [3, 8, 3, 8], "target": 24}  # 8 / (3 - 8 / 3)
    assert load_task("countdown").check_row(row) == row


@pytest.mark.parametrize("hidden", ["\x1b[2J", "\x9b2J", "\x07", "\r", "\x00", "\u202e", "\u2066", "\u200f", "\u200b",
                                    "\u2028", "\ud800", "\U000e0041"])
def test_characters_that_change_what_is_seen_are_shown_as_escapes(hidden):
    shown = visible(f"7 + 5{hidden} = 12\n\tü中")
    assert shown.encode("utf-8") and shown.splitlines()[1] == "\tü中"
    assert all(char.isprintable() for char in shown if char not in "\n\t") and "\\" in shown
    assert hidden not in side_by_side({"base": f"a{hidden}b", "trained": "c"})
    with pytest.raises(QuestionError, match="control characters"):
        as_prompt(load_task("gsm8k"), f"2 + 2{hidden}")
