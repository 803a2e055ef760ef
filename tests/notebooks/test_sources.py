"""Every notebook keeps the house rules, and the generated editions are what their source gives."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import build_notebooks
import jupytext
import pytest
from latex2mathml.converter import convert

from lab_utils import REPOSITORY
from lab_utils.teaching import checks
from lab_utils.teaching.checks.runner import Case, Check

NOTEBOOKS = REPOSITORY / "notebooks"
SOURCES = sorted((NOTEBOOKS / "src").glob("[0-9][0-9]_*.py"))
MOST_LINES = 25
PARAMETERS = ("RECIPE", "HARDWARE", "OUTPUT_DIR", "SEED")


every_notebook = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def code_cells(source: Path) -> list:
    return [cell for cell in jupytext.read(source, fmt="py:percent").cells if cell.cell_type == "code"]


def test_the_notebooks_are_what_their_sources_give():
    files = build_notebooks.build_all(NOTEBOOKS)
    assert [str(path) for path in build_notebooks.stale_files(files)] == []
    assert [str(path) for path in build_notebooks.orphans(NOTEBOOKS)] == []


def test_the_table_of_contents_lists_every_notebook():
    listed = re.findall(r"\]\((\d\d_\w+)\.ipynb\)", (NOTEBOOKS / "README.md").read_text(encoding="utf-8"))
    assert listed == [source.stem for source in SOURCES]


@every_notebook
def test_no_cell_is_longer_than_25_lines(source):
    long = [cell.source for cell in code_cells(source) if len(cell.source.splitlines()) > MOST_LINES]
    assert long == [], f"move the code into lab_utils and call it, or split the cell ({MOST_LINES} lines at most)"


@every_notebook
def test_the_parameters_cell_has_every_parameter_as_a_literal(source):
    (parameters,) = [cell for cell in code_cells(source) if "parameters" in cell.metadata.get("tags", [])]
    for name in PARAMETERS:
        assert re.search(rf"^{name} = (\"[^\"]*\"|\d+)( *#.*)?$", parameters.source, re.M), f"{name} = <literal>"


@every_notebook
def test_there_is_an_exercise_and_a_self_check(source):
    exercises = [cell for cell in code_cells(source) if "# YOUR CODE HERE" in cell.source]
    assert exercises, "no cell has the line '# YOUR CODE HERE'"
    assert all("# >>> solution" in cell.source for cell in exercises), "an exercise has no solution"
    assert any(re.search(r"\bchecks\.check_\w+\(", cell.source) for cell in code_cells(source)), "no self-check"


@every_notebook
def test_the_learner_edition_shows_no_solution_before_it_is_opened(source):
    exercise = json.loads(build_notebooks.build(source, learner=True))["cells"]
    shown = "\n".join("".join(cell["source"]) for cell in exercise if "jupyter" not in cell["metadata"])
    shown = re.sub(r"<details>.*?</details>", "", shown, flags=re.DOTALL)
    for cell in code_cells(source):
        for solution in re.findall(r"# >>> solution\n(.*?)# <<< solution", cell.source, re.DOTALL):
            assert solution not in shown
    assert "# YOUR CODE HERE\n" in shown and "<<< solution" not in shown


@every_notebook
def test_every_exercise_has_a_cell_that_goes_on_with_ours(source):
    exercise = json.loads(build_notebooks.build(source, learner=True))["cells"]
    ours = "\n".join("".join(cell["source"]) for cell in exercise if "jupyter" in cell["metadata"])
    for cell in code_cells(source):
        if "# >>> solution" in cell.source:
            first = build_notebooks.complete_cell(cell).splitlines()[0]
            assert f"    {first}" in ours, "a check cell, checks.check_...(answer), follows the exercise"


@every_notebook
@pytest.mark.parametrize("edition", ["", "exercises"])
def test_every_link_leads_to_a_file(source, edition):
    notebook = NOTEBOOKS / edition / f"{source.stem}.ipynb"
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", "".join(cell["source"])):
            if cell["cell_type"] == "markdown":
                assert (notebook.parent / link).exists(), f"{link} in {edition} {source.stem}"


@every_notebook
def test_the_formulas_become_mathml(source):
    """The report draws formulas as MathML. A dollar sign that means money is written \\$."""
    for cell in jupytext.read(source, fmt="py:percent").cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"```.*?```|`[^`]*`", "", cell.source, flags=re.DOTALL)
            for block, inline in re.findall(r"(?<!\\)\$\$(.+?)\$\$|(?<![\\$])\$(?!\$)(.+?)(?<!\\)\$", text, re.DOTALL):
                assert convert(block or inline).startswith("<math")


# The generator

SOURCE = """\
# %% [markdown]
# # A notebook

# %% tags=["parameters"]
SEED = 0

# %%
def advantages(rewards):
    # YOUR CODE HERE
    # >>> solution
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]
    # <<< solution


advantages([1, 2])

# %% [markdown] tags=["hints"]
# 1. Think of
#    the mean.
# 2. `reward - mean`

# %%
checks.check_advantages(advantages)

# %%
advantages([1, 2])

# %%
advantages([1, 2])
"""


TABLE = "| # | notebook |\n|---|---|\n| 00 | [demo](00_demo.ipynb) |\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "00_demo.py").write_text(SOURCE)
    (tmp_path / "README.md").write_text(f"# All\n\n{TABLE}\nMore.\n")
    return tmp_path


def run_build(folder: Path, *arguments: str) -> int:
    return build_notebooks.main(["--notebooks", str(folder), *arguments])


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text())["cells"]


def test_the_two_editions(folder):
    assert run_build(folder) == 0
    complete, learner = cells(folder / "00_demo.ipynb"), cells(folder / "exercises" / "00_demo.ipynb")
    assert "".join(complete[2]["source"]) == (
        "def advantages(rewards):\n    # YOUR CODE HERE\n    mean = sum(rewards) / len(rewards)\n"
        "    return [reward - mean for reward in rewards]\n\n\nadvantages([1, 2])"
    )
    assert "".join(learner[2]["source"]) == (
        "def advantages(rewards):\n    # YOUR CODE HERE\n    ...\n\n\nadvantages([1, 2])"
    )
    assert complete[1]["metadata"] == {"tags": ["parameters"]}
    code = [cell for cell in complete if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


HINTS = """\
<details>
<summary>Hint 1</summary>

Think of
   the mean.

</details>
<details>
<summary>Hint 2</summary>

`reward - mean`

</details>"""


def test_hints_are_folded_and_only_the_learner_edition_folds_the_solution_below_them(folder):
    run_build(folder)
    complete, learner = ("".join(cells(folder / edition / "00_demo.ipynb")[3]["source"])
                         for edition in ("", "exercises"))
    assert complete == HINTS
    assert learner == HINTS + (
        "\n<details>\n<summary>Solution</summary>\n\n```python\nmean = sum(rewards) / len(rewards)\n"
        "return [reward - mean for reward in rewards]\n```\n\n</details>")


@pytest.mark.parametrize("passed", [True, False])
def test_a_collapsed_cell_after_the_check_goes_on_with_the_solution_if_the_answer_has_not_passed(
        folder, passed, monkeypatch, capsys):
    run_build(folder)
    check, ours = cells(folder / "exercises" / "00_demo.ipynb")[4:6]
    assert check["source"] == ["checks.check_advantages(advantages);"]
    assert ours["metadata"]["jupyter"] == {"source_hidden": True}
    expected = [Case([1, 2], gives=[-0.5, 0.5] if passed else None, hint="")]
    monkeypatch.setattr(checks, "check_advantages", Check("", expected), raising=False)
    learners = {"checks": checks, "advantages": lambda rewards: [-0.5, 0.5]}
    exec("".join(check["source"]), learners)
    mine = learners["advantages"]
    exec("".join(ours["source"]), learners)
    assert (learners["advantages"] is mine) == passed
    assert ("Going on with our solution." in capsys.readouterr().out) != passed


@pytest.mark.parametrize("hints", ["# 1. One.", "# Text.\n# 1. One.\n# 2. Two.", "# 1. One.\n# 2. Two.\n# 3. Three."])
def test_an_exercise_has_two_hints(folder, hints):
    begin, end = SOURCE.index("# 1. Think"), SOURCE.index("\n\n# %%\nchecks")
    (folder / "src" / "00_demo.py").write_text(SOURCE[:begin] + hints + SOURCE[end:])
    with pytest.raises(build_notebooks.SourceError, match=r"00_demo\.py: .* list of two"):
        run_build(folder)
    (folder / "src" / "00_demo.py").write_text(SOURCE.replace(' tags=["hints"]', ""))
    with pytest.raises(build_notebooks.SourceError, match="check_advantages has no hints"):
        run_build(folder)


def test_the_builder_writes_what_all_notebooks_share(folder):
    shared = '# %% [markdown]\n# # A title\n#\n# <!-- badges -->\n\n# %% tags=["setup"]\n# The set-up.\n'
    (folder / "src" / "00_demo.py").write_text(shared)
    (folder / "src" / "setup_cell.py").write_text("import os\n")
    run_build(folder)
    title, setup = ("".join(cell["source"]) for cell in cells(folder / "exercises" / "00_demo.ipynb"))
    assert setup == "import os"
    assert "](../../README.md#colab)" in title and "<!--" not in title
    assert (folder / "exercises" / "README.md").read_text().endswith(f"\n\n{TABLE}")


def test_the_road_map_marks_the_place_of_a_notebook(tmp_path):
    for name in ("00_demo", "05_now", "06_later"):
        (tmp_path / f"{name}.py").touch()
    assert build_notebooks.road_map(tmp_path / "05_now.py") == (
        "start [00](00_demo.ipynb) → **reinforcement learning** **05** [06](06_later.ipynb)")


def test_one_constant_opens_every_notebook_in_colab(folder, monkeypatch):
    monkeypatch.setattr(build_notebooks, "REPOSITORY_URL", "https://github.com/owner/name")
    (folder / "src" / "00_demo.py").write_text('# %% [markdown]\n# <!-- badges -->\n\n# %% tags=["setup"]\n# Text.\n')
    (folder / "src" / "setup_cell.py").write_text('REPOSITORY_URL = ""\n')
    run_build(folder)
    for edition in ("", "exercises/"):
        title, setup = ("".join(cell["source"]) for cell in cells(folder / edition / "00_demo.ipynb"))
        assert ("](https://colab.research.google.com/github/owner/name/blob/main/notebooks/"
                f"{edition}00_demo.ipynb)") in title
        assert setup == 'REPOSITORY_URL = "https://github.com/owner/name"'


SETUP = (NOTEBOOKS / "src" / "setup_cell.py").read_text()


def run_setup(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess:
    """Run the set-up cell in `folder` with its `bin` in front of PATH."""
    path = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **environment}
    cell = SETUP.replace('URL = ""', 'URL = "https://github.com/owner/name"')
    return subprocess.run([sys.executable, *options, "-c", cell], cwd=folder, env=path, capture_output=True, text=True)


def test_the_set_up_cell_outside_colab_installs_nothing_and_says_what_to_do(tmp_path):
    assert "clone its repository" in run_setup(tmp_path).stderr
    (tmp_path / "lab_utils").mkdir()
    assert "choose the kernel 'RL workshop'" in run_setup(tmp_path, "-S").stderr, "-S hides the packages"
    assert run_setup(tmp_path).returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_the_set_up_cell_in_colab_installs_again_after_an_installation_that_failed(tmp_path):
    (tmp_path / "bin").mkdir()
    programs = {"git": 'mkdir -p "$5/lab_utils" && touch "$5/lab_utils/__init__.py" && echo clone >> log',
                "bash": 'echo install >> "$(dirname "$0")/../log"; [ -e "$(dirname "$0")/../works" ]'}
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    assert run_setup(tmp_path, COLAB_RELEASE_TAG="1").returncode != 0
    (tmp_path / "works").touch()
    assert run_setup(tmp_path, COLAB_RELEASE_TAG="1").returncode == 0
    assert (tmp_path / "log").read_text().split() == ["clone", "install", "install"]


def test_a_change_to_one_cell_keeps_the_ids_of_the_others(folder):
    run_build(folder)
    before = [cell["id"] for cell in cells(folder / "00_demo.ipynb")]
    (folder / "src" / "00_demo.py").write_text(SOURCE.replace("# # A notebook", "# # Another title"))
    run_build(folder)
    after = [cell["id"] for cell in cells(folder / "00_demo.ipynb")]
    assert before[1:] == after[1:] and before[0] != after[0] and len(set(after)) == len(after)


def test_check_names_what_is_stale_and_what_has_no_source(folder, capsys):
    run_build(folder)
    assert run_build(folder, "--check") == 0
    (folder / "exercises" / "00_demo.ipynb").write_text("{}")
    (folder / "07_gone.ipynb").write_text("{}")
    (folder / "Untitled.ipynb").write_text("{}")
    assert run_build(folder, "--check") == 1
    told = capsys.readouterr().err
    assert "exercises/00_demo.ipynb" in told and "07_gone.ipynb" in told and "Untitled" not in told
    assert run_build(folder) == 1
    assert (folder / "07_gone.ipynb").exists(), "a file that is not ours to write is never removed"


@pytest.mark.parametrize(
    "broken",
    [
        SOURCE.replace("    # <<< solution\n", ""),
        SOURCE.replace("    # >>> solution\n", ""),
        SOURCE.replace("    # <<< solution", "# <<< solution"),
    ],
)
def test_a_marker_without_its_partner_is_an_error(folder, broken):
    (folder / "src" / "00_demo.py").write_text(broken)
    with pytest.raises(build_notebooks.SourceError, match=r"00_demo\.py"):
        run_build(folder)
    assert not (folder / "00_demo.ipynb").exists()
