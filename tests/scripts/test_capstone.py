"""scripts/capstone.py: hidden problems, the budget, and a page made from files that others wrote."""

import json
import shutil

import capstone
import pytest

from lab_utils import WorkshopError
from lab_utils.runs import RunDirectory
from lab_utils.tasks import load_task


def problem_of(row):
    return (tuple(sorted(row["nums"])), row["target"])


def test_hidden_problems_depend_on_the_secret_and_are_in_no_public_split():
    task = load_task("countdown")
    hidden = [problem_of(row) for row in capstone.hidden_rows(task, "tulips", 100)]
    assert hidden == [problem_of(row) for row in capstone.hidden_rows(task, "tulips", 100)]
    assert len(set(hidden)) == 100
    others = {problem_of(row) for row in capstone.hidden_rows(task, "daisies", 100)}
    assert len(set(hidden) & others) < 10
    public = [problem_of(row) for split in ("train", "test") for row in task.synthetic_rows(split, None)]
    assert not set(hidden) & set(public)


@pytest.mark.component
def test_scores_are_written_for_runs_within_the_budget(run, tmp_path, capsys):
    sft = shutil.copytree(run.path, tmp_path / "sft")
    RunDirectory(sft).append_metrics(1, {"loss": 1.0})
    run.append_metrics(1, {"completions/mean_length": 30.0})
    out, of_rollout = tmp_path / "out", 30 * run.config().grpo.rollout_size
    command = ["score", f"ada={run.path}", f"start={sft}", "--secret", "x", "--hardware", "smoke", "--problems", "4",
               "--samples", "2", "--output-dir", str(out)]
    capstone.main([*command, "--tokens", str(of_rollout - 1)])
    assert capsys.readouterr().out.count("not scored") == 1
    assert not (out / "ada").exists() and (out / "start" / "results.json").exists()
    capstone.main([*command, "--tokens", str(of_rollout)])
    result = json.loads((out / "ada" / "results.json").read_text())["capstone"]
    low, high = result["interval"]
    assert low <= result["accuracy"] <= high and result["questions × samples"] == "4 × 2"
    assert not run.evaluation_path.exists()  # the learner's own evaluation stays
    assert capstone.write_page(out, "capstone").exists()


@pytest.mark.parametrize("entry", ["runs/ada", "ada=", "../ada=runs/ada", "ada=nowhere"])
def test_what_is_no_team_and_run_is_refused_before_anything_is_written(entry, tmp_path):
    with pytest.raises(WorkshopError, match=r"such as (ada=)?runs/ada/grpo"):
        capstone.main(["score", entry, "--secret", "x", "--output-dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def submit(folder, name, result):
    (folder / name).mkdir()
    text = result if isinstance(result, str) else json.dumps({"capstone": result})
    (folder / name / "results.json").write_text(text)


def test_a_rank_is_a_range_where_intervals_overlap(tmp_path):
    for name, low, accuracy, high in (("c", 0.2, 0.25, 0.3), ("a", 0.5, 0.6, 0.7), ("b", 0.45, 0.55, 0.65)):
        submit(tmp_path, name, {"accuracy": accuracy, "interval": [low, high], "generated tokens": "59,000"})
    page = capstone.write_page(tmp_path, "capstone").read_text()
    cells = [part.split("</tr>")[0] for part in page.split("<tr><td>")[1:]]
    assert [cell.split("<")[0] for cell in cells] == ["1–2", "1–2", "3"]
    assert "<td>a</td>" in cells[0] and "60.0%" in cells[0] and "50.0 to 70.0%" in cells[0] and "59,000" in cells[0]


@pytest.mark.parametrize("result", [
    "not json", "[]", '{"capstone": 1}', {"accuracy": 0.9}, {"accuracy": 0.9, "interval": [0.8]},
    {"accuracy": 0.9, "interval": [0.91, 0.99]}, {"accuracy": 90, "interval": [80, 95]},
    {"accuracy": float("nan"), "interval": [0, 1]}, {"accuracy": "0.5", "interval": [0, 1]}, "[" * 100_000,
])
def test_a_result_without_an_interval_is_left_out_and_named(result, tmp_path):
    submit(tmp_path, "good", {"accuracy": 0.5, "interval": [0.4, 0.6]})
    submit(tmp_path, "bad", result)
    page = capstone.write_page(tmp_path, "capstone").read_text()
    assert page.count("<tr>") == 2 and "bad: results.json needs" in page


def test_everything_that_a_learner_wrote_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    submit(tmp_path, "<img src=x onerror=alert(1)>", {
        "accuracy": 0.5, "interval": [0.4, 0.6], "attempts": evil, "generated tokens": "\u202e000,1", "<b>": "x"})
    submit(tmp_path, evil.replace("/", ""), {"accuracy": evil, "interval": [0, 1]})
    page = capstone.write_page(tmp_path, "capstone").read_text(encoding="utf-8")
    assert "<script" not in page and "<img" not in page and "\u202e" not in page and "&lt;img" in page


def test_a_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(WorkshopError, match="--method"):
        capstone.main(["page", str(tmp_path)])
