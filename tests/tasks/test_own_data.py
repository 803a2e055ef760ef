"""Data of the user's own: files of every kind, column names, splits, and files that are broken in every way."""

import codecs
import json
import warnings

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from lab_utils import WorkshopError
from lab_utils.config import TaskSettings
from lab_utils.tasks import RowError, load_task, sources

ROWS = [{"prompt": f"What is {i} plus 1?", "solution": i + 1} for i in range(40)]
COLUMNS = {"question": "prompt", "answer": "solution"}


def task_of(**settings):
    return load_task(TaskSettings(**{"name": "qa", "response_format": "think", "columns": COLUMNS, **settings}))


def jsonl(path, rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def problem_of(source, task=None, split="train") -> str:
    with pytest.raises(WorkshopError) as caught:
        (task or task_of()).dataset(split, source=str(source))
    return str(caught.value)


# --- Kinds of files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.csv", "mine.tsv", "mine.parquet", "semicolons.csv"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    path = tmp_path / name
    frame = pd.DataFrame(ROWS)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        jsonl(path, ROWS)
    else:
        frame.to_csv(path, index=False, sep={"mine.csv": ",", "mine.tsv": "\t"}.get(name, ";"))
    rows = task_of().dataset("train", source=str(path))
    assert len(rows) == 36 and set(rows.column_names) == {"prompt", "question", "answer"}
    assert rows[0]["question"].startswith("What is") and rows[0]["prompt"][-1]["content"] == rows[0]["question"]
    assert all(int(row["question"].split()[2]) + 1 == int(row["answer"]) for row in rows)


def test_a_file_of_excel_has_a_mark_line_feeds_of_windows_and_cells_of_several_lines(tmp_path):
    path = tmp_path / "excel.csv"
    table = 'prompt;solution\r\n"Which is it?\r\nA; B ""or"" C";B\r\n"Umlauts: äöü?";yes\r\n\r\n'
    path.write_bytes(codecs.BOM_UTF8 + table.encode())
    with pytest.warns(UserWarning, match="2 questions are too few to keep some for tests"):
        rows = task_of().dataset("train", source=str(path))
    assert rows["question"] == ['Which is it?\nA; B "or" C', "Umlauts: äöü?"] and rows["answer"] == ["B", "yes"]


def test_countdown_reads_lists_and_numbers_from_a_table(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text('nums,target\n"[3, 7, 25]",46\n"[2, 3]",6\n')
    (tmp_path / "test.csv").write_text('nums,target\n"[4, 5]",20\n')
    rows = load_task("countdown").dataset("train", source=str(tmp_path))
    assert rows["nums"] == [[3, 7, 25], [2, 3]] and rows["target"] == [46, 6]


def test_a_mapped_column_that_the_task_does_not_know_reaches_the_rewards(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [{**row, "level": "hard"} for row in ROWS])
    rows = task_of(columns={**COLUMNS, "difficulty": "level"}).dataset("train", source=source)
    assert set(rows["difficulty"]) == {"hard"}


def test_a_mapped_column_that_no_row_has_is_an_error_although_a_row_may_lack_it(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [{**row, "steps": "one more"} if i else row for i, row in enumerate(ROWS)])
    assert "completion" in task_of(columns={**COLUMNS, "completion": "steps"}).dataset("train", source=source)[0]
    message = problem_of(source, task_of(columns={**COLUMNS, "completion": "step"}))
    assert "task.columns.completion = 'step', but no row of" in message
    assert "Did you mean steps? The columns are prompt, solution, steps: correct the name" in message


# --- What is imitated ------------------------------------------------------------------------------------------------


def test_a_completion_is_imitated_as_it_is_or_as_the_reasoning(tmp_path):
    whole = "<think>One more is two.</think><answer>2</answer>"
    source = jsonl(tmp_path / "a.jsonl", [
        {"question": "a?", "completion": whole},
        {"question": "b?", "completion": "One more is two.", "answer": 2},
        {"question": "c?", "answer": "two"}])
    task = task_of(columns={})
    with pytest.warns(UserWarning, match="too few"):
        rows = list(task.dataset("train", source=source))
    assert [row["answer"] for row in rows] == ["2", "2", "two"]
    assert [task.demonstration(row) for row in rows] == [
        whole, whole, "<think>The answer is two.</think><answer>two</answer>"]
    assert all(task.is_correct(task.demonstration(row), row) for row in rows)


def test_a_completion_without_an_answer_is_refused(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [{"question": "a?", "completion": "It is two."}])
    assert "a.jsonl, line 1: the row has no answer, and its completion ('It is two.') has none in the response " \
        "format 'think': write it like '<think>...</think><answer>42</answer>'" in problem_of(source, load_task("qa"))


@pytest.mark.parametrize("predicted, gold, same", [
    ("Paris", "paris", True), ("B.", "b", True), ("New  York", "new york", True), ("$72", "72", True),
    ("72 clips", "72", False), ("B or C", "B", False), (None, "B", False), ("", "B", False)])
def test_an_answer_is_the_same_number_or_the_same_text(predicted, gold, same):
    completion = "no answer" if predicted is None else f"<answer>{predicted}</answer>"
    assert load_task("qa").is_correct(completion, {"answer": gold}) is same


# --- Splits ----------------------------------------------------------------------------------------------------------


def test_a_tenth_of_a_single_file_is_kept_for_tests(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", ROWS)
    train, test = (set(task_of().dataset(split, source=source)["question"]) for split in ("train", "test"))
    assert len(test) == 4 and len(train) == 36 and not train & test
    shuffled = jsonl(tmp_path / "b.jsonl", ROWS[::-1])
    assert set(task_of().dataset("test", source=shuffled)["question"]) == test, "the order of the rows does not matter"


def test_a_folder_has_both_splits_and_test_questions_leave_the_training_rows(tmp_path):
    jsonl(tmp_path / "train.jsonl", ROWS)
    jsonl(tmp_path / "test.jsonl", [*ROWS[:3], {"prompt": "new?", "solution": "x"}])
    with pytest.warns(UserWarning, match="left out 3 training rows whose question is in the test split, such as "
                                         "train.jsonl, line 1"):
        train = task_of().dataset("train", source=str(tmp_path))
    assert len(train) == 37 and len(task_of().dataset("test", source=str(tmp_path))) == 4
    (tmp_path / "test.jsonl").unlink()
    assert "has no test.jsonl, test.csv or test.parquet: add one" in problem_of(tmp_path, split="test")
    (tmp_path / "train.csv").write_text("prompt,solution\n")
    assert "has train.jsonl and train.csv: remove or rename" in problem_of(tmp_path)


def test_white_space_does_not_make_a_test_question_a_new_one(tmp_path):
    spaced = [{**row, "prompt": row["prompt"].replace(" ", "  ")} for row in ROWS]
    source = jsonl(tmp_path / "a.jsonl", [*ROWS, *spaced])
    splits = [[" ".join(row["question"].split()) for row in task_of().dataset(split, source=source)]
              for split in ("train", "test")]
    assert list(map(len, splits)) == [72, 8] and not set(splits[0]) & set(splits[1])
    jsonl(tmp_path / "train.jsonl", ROWS)
    jsonl(tmp_path / "test.jsonl", spaced[:3])
    with pytest.warns(UserWarning, match="left out 3 training rows whose question is in the test split"):
        assert len(task_of().dataset("train", source=str(tmp_path))) == 37


def test_repeated_rows_are_left_out_and_contradictions_are_errors(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [*ROWS, *ROWS[:2]])
    with pytest.warns(UserWarning, match="left out 2 rows that repeat an earlier one, such as a.jsonl, line 41"):
        assert len(task_of().dataset("train", source=source)) == 36
    source = jsonl(tmp_path / "b.jsonl", [*ROWS, {**ROWS[0], "solution": 5}])
    assert "b.jsonl, line 41: the question of b.jsonl, line 1 again, with the answer '5' instead of '1'. Remove one" \
        in problem_of(source)


def test_several_completions_of_one_question_are_all_kept(tmp_path):
    rows = [{"question": f"{i}?", "answer": i, "completion": text} for i in range(20) for text in ("one", "another")]
    assert len(task_of(columns={}).dataset("train", source=jsonl(tmp_path / "a.jsonl", rows))) == 36


# --- The Hub ---------------------------------------------------------------------------------------------------------


def test_a_dataset_on_the_hub_needs_no_test_split(monkeypatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return DatasetDict({"train": Dataset.from_list(ROWS)})

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    assert len(task_of().dataset("train", source="me/my-data:small")) == 36
    assert len(task_of().dataset("test", source="me/my-data")) == 4
    assert asked == [(("me/my-data", "small"), {"split": None}), (("me/my-data", None), {"split": None})]


@pytest.mark.parametrize("answer, message", [
    (FileNotFoundError("no such dataset"), "'me/data' could not be loaded .* check the name"),
    (ValueError("Config name is missing"), r"name is missing\): name one of its configurations, OWNER/NAME:CONFIG"),
    (DatasetDict({"dev": Dataset.from_list(ROWS)}), "no split 'train', only dev: download it"),
])
def test_a_dataset_that_cannot_be_used_says_why(monkeypatch, answer, message):
    def load_dataset(*_, **__):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    with pytest.raises(WorkshopError, match=message):
        task_of().dataset("train", source="me/data")


def test_the_task_of_own_questions_has_no_problems_of_its_own():
    assert "has no synthetic problems: set task.source" in problem_of("synthetic")
    assert "has no dataset of its own on the Hub: set task.source" in problem_of("hub")


# --- Broken files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line, problem", [
    ({"prompt": "a?"}, "data's column 'solution' is missing or empty.*this row has prompt.*task.columns.answer=NAME"),
    ({"prompt": "a?", "solution": None}, "column 'solution' is missing or empty"),
    ({"prompt": " ", "solution": 1}, "column 'prompt' is missing or empty"),
    ({"prompt": "a?", "solutions": 1}, "this row has prompt, solutions. Did you mean solutions"),
    ({"prompt": ["a?"], "solution": 1}, r"question=\"\['a\?'\]\" is a list: give text or a number"),
    ({"prompt": "a?", "solution": {"value": 1}}, "answer=.* is a dict: give text or a number"),
    ({"prompt": "a\0?", "solution": 1}, r"question='a\\x00\?' has control characters, such as NUL: remove"),
    ({"prompt": "a\x1b[2J?", "solution": 1}, "has control characters"),
    ("{", "not valid JSON"), ("prompt,solution", "not valid JSON"), ("null", "is a JSON NoneType, not an object"),
])
def test_a_broken_line_is_named_counted_and_can_be_left_out(tmp_path, line, problem):
    source = jsonl(tmp_path / "a.jsonl", [*ROWS[:20], line, *ROWS[20:]])
    with pytest.raises(RowError, match=f"^a.jsonl, line 21: .*{problem}") as caught:
        task_of().dataset("train", source=source)
    assert "1 of 41 rows cannot be used. To leave them out: --set task.drop_bad_rows=true" in str(caught.value)
    with pytest.warns(UserWarning, match="left out 1 rows that cannot be used, such as a.jsonl, line 21"):
        assert len(task_of(drop_bad_rows=True).dataset("train", source=source)) == 36


def test_many_broken_lines_are_counted_and_the_first_are_shown(tmp_path):
    message = problem_of(jsonl(tmp_path / "a.jsonl", [*ROWS, *["{"] * 300]))
    assert message.count("not valid JSON") == 5 and "… and 295 more." in message and "300 of 340 rows" in message


@pytest.mark.parametrize("content, problem", [
    (b"prompt,solution\na?,1,2\n", "line 2: 3 cells, but the header has 2 (prompt, solution). Put text with ','"),
    (b'prompt,solution\na?,1\n"never closed,2\nb?,3\n', "line 3: not valid CSV"),
    (b"prompt,prompt\na?,1\n", "line 1: the header ['prompt', 'prompt'] has empty or repeated names"),
    (b"prompt,solution\na?,caf\xe9\n", "line 2: the text is not valid UTF-8. Save the file as UTF-8 (in Excel"),
    ("prompt,solution\na?,1\n".encode("utf-16"), "not valid UTF-8"),
    (b"prompt,solution\na?,1\0\n", "control characters, such as NUL"),
    (b"prompt,solution\n" + b"x" * 1_100_000 + b",1\n", "line 2: not valid CSV (field larger than field limit"),
    (b"", "has no rows that can be used"),
    (b"prompt,solution\n", "has no rows that can be used"),
])
def test_a_broken_table_is_named_by_file_line_and_remedy(tmp_path, content, problem):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    message = problem_of(path)
    assert problem in message and len(message) < 600, message


def test_columns_with_other_names_are_no_reason_to_leave_out_every_row(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [{"q": f"{i}?", "a": i} for i in range(40)])
    message = problem_of(source, task_of(columns={}))
    assert message.count("task.columns.question=NAME") == 5 and message.endswith("40 of 40 rows cannot be used.")


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_list_is_refused_once_with_the_command_that_converts_it(tmp_path, monkeypatch, indent):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.json"
    path.write_bytes(codecs.BOM_UTF8 * (indent is None) + json.dumps(ROWS, indent=indent).encode())
    message = problem_of(path)
    assert message.startswith("mine.json starts with '[', like a JSON list. Write one object per line: python")
    path.write_text(json.dumps(ROWS))
    exec(message.partition('python -c "')[2].removesuffix('"'))
    assert len(task_of().dataset("train", source=str(tmp_path / "mine-rows.jsonl"))) == 36


def test_whole_numbers_stay_whole_beside_empty_cells(tmp_path):
    frame = pd.DataFrame({"prompt": [f"{i}?" for i in range(20)], "solution": [None, *range(1, 20)]})
    for name, types in (("float.parquet", "float64"), ("int.parquet", "Int64")):
        frame.astype({"solution": types}).to_parquet(tmp_path / name)
        with pytest.warns(UserWarning, match="left out 1 rows that cannot be used, such as .*, row 1: "):
            rows = task_of(drop_bad_rows=True).dataset("train", source=str(tmp_path / name))
        assert [row["answer"] + "?" for row in rows] == rows["question"]


def test_a_broken_parquet_file_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    assert "a.parquet: not a Parquet file that can be read" in problem_of(path)


def test_an_unknown_source_lists_what_there_is():
    assert "there is no file data.csv: give the path of a .jsonl, .csv or .parquet file" in problem_of("data.csv")


def test_good_data_gives_no_warning(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", ROWS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task_of().dataset("train", source=source)
