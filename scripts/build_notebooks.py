"""Generate the notebooks from their one source.

notebooks/src/NN_name.py becomes notebooks/NN_name.ipynb (complete) and notebooks/exercises/NN_name.ipynb (the learner
edition, without the solutions). The table of contents in notebooks/README.md is copied beside the learner edition.

    python scripts/build_notebooks.py            write what has changed
    python scripts/build_notebooks.py --check    write nothing; fail and name the files that are out of date

A solution stands between two marker lines inside a code cell. Its hints follow in a Markdown cell with the tag "hints",
then the check:

    def advantages(rewards):
        # YOUR CODE HERE
        # >>> solution
        return rewards - rewards.mean()
        # <<< solution

    # %% [markdown] tags=["hints"]
    # 1. What to think of.
    # 2. Nearly the code.

    # %%
    checks.check_advantages(advantages)

Both editions fold the two hints. In the learner edition a line with `...` replaces the solution, which is folded below
the hints, and a collapsed cell after the check defines the solution if the check has not passed.

All notebooks share two texts. A code cell with the tag "setup" becomes notebooks/src/setup_cell.py, and the line
<!-- badges --> becomes the row of places to run the notebook and the road map.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import textwrap
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lab_utils import REPOSITORY, WorkshopError, exit_status

NOTEBOOKS = REPOSITORY / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SOLUTION = re.compile(r"^([ \t]*)# >>> solution\n(.*?)^\1# <<< solution(?:\n|$)", re.MULTILINE | re.DOTALL)
HINT = re.compile(r"^\d\. ", re.MULTILINE)
CHECK = re.compile(r"^checks\.(check_\w+)\((\w+)", re.MULTILINE)
FOLDED = "<details>\n<summary>{}</summary>\n\n{}\n\n</details>"
COLLAPSED = {"jupyter": {"source_hidden": True}, "cellView": "form"}  # in Jupyter; in Colab
CONTENTS = """# The notebooks, learner edition

Work in the copies in `notebooks/mine`. [How the exercises and their checks work](../README.md#two-editions)

"""
GO_ON = """\
#@title Go on with ours, if you are stuck (an answer that has passed its check stays)
from lab_utils.teaching import checks

if not checks.{check}.passed_by(globals().get("{answer}")):
    print("Going on with our solution.")
{solution}"""
# The public address of the repository, https://github.com/OWNER/NAME. With it the badges open in Colab in one click and
# the set-up cell works there. After a change, run this script and commit the notebooks.
REPOSITORY_URL = ""
BADGES = """\
[Open in Colab]({colab}) · [run in SageMaker Studio Lab](../README.md#studio-lab) ·
[on your own machine](../README.md#your-own-machine) · [all notebooks](README.md)"""
STAGES = {"start": "00", "data": "01", "rewards": "02", "imitation": "03", "reinforcement learning": "04 05 06 07",
          "judging": "08 09", "a critic": "10", "cloud and serving": "11 12", "results": "13", "what else": "14"}
LINK = re.compile(r"\]\((?![a-z]+:|#|\d\d_|README\.md\))")  # to a file that is not beside this one in both editions


class SourceError(WorkshopError):
    """A source file cannot become a notebook."""


def badges(name: str, learner: bool) -> str:
    """Return the row of places to run a notebook."""
    path = f"notebooks/{'exercises/' if learner else ''}{name}.ipynb"
    colab = REPOSITORY_URL.replace("https://github.com", "https://colab.research.google.com/github")
    return BADGES.format(colab=f"{colab}/blob/main/{path}" if colab else "../README.md#colab")


def road_map(source: Path) -> str:
    """Return the stages of the workshop with links to their notebooks, the stage and number of this one in bold."""
    stems = {path.stem[:2]: path.stem for path in source.parent.glob("[0-9][0-9]_*.py")}
    stages = []
    for stage, numbers in STAGES.items():
        here = source.stem[:2] in numbers.split()
        links = [f"**{number}**" if stems[number] == source.stem else f"[{number}]({stems[number]}.ipynb)"
                 for number in numbers.split() if number in stems]
        if links:
            stages.append(" ".join([f"**{stage}**" if here else stage, *links]))
    return " → ".join(stages)


def solutions(cells: list[NotebookNode]) -> str:
    """Return what stands between the markers of some cells, without its indentation."""
    return "\n\n".join(textwrap.dedent(match[2]).strip() for cell in cells for match in SOLUTION.finditer(cell.source))


def complete_cell(cell: NotebookNode) -> str:
    """Return a cell's text for the complete edition: without the marker lines, with the solution."""
    return SOLUTION.sub(r"\2", cell.source).rstrip("\n") if cell.cell_type == "code" else cell.source


def learner_cell(cell: NotebookNode) -> str:
    """Return a cell's text for the learner edition, which lies one folder further down.

    A line `...` replaces each solution. Links lead one folder up.
    """
    if cell.cell_type == "code":
        return SOLUTION.sub(r"\1...\n", cell.source).rstrip("\n")
    return LINK.sub("](../", cell.source)


def folded_hints(cell: NotebookNode, name: str) -> list[str]:
    """Return the two hints of a cell, each folded."""
    first, *hints = HINT.split(cell.source)
    if first or len(hints) != 2:
        raise SourceError(f"{name}: a cell with the tag \"hints\" holds a list of two, '1. ...' and '2. ...', and not\n"
                          f"{cell.source[:200]}")
    return [FOLDED.format(f"Hint {i}", hint.strip()) for i, hint in enumerate(hints, start=1)]


def go_on(exercise: list[NotebookNode], check: re.Match) -> NotebookNode:
    """Return the cell that defines the solution of an exercise if the learner's answer has not passed its check."""
    solution = textwrap.indent("\n\n\n".join(map(complete_cell, exercise)), "    ")
    source = GO_ON.format(check=check[1], answer=check[2], solution=solution)
    return NotebookNode(cell_type="code", source=source, metadata=COLLAPSED)


def build(source: Path, learner: bool = False) -> str:
    """Return a source file's notebook, as .ipynb text: its complete edition, or its learner edition.

    Cell ids come from the cells' content, so that a change to one cell changes only that cell in the generated file.
    Raises SourceError for a solution marker without its partner, and for an exercise without its two hints.
    """
    cells, seen, exercise, hinted = [], set(), [], False

    def add(cell: NotebookNode, text: str, metadata: dict) -> None:
        identity = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        while identity in seen:
            identity += "-again"
        seen.add(identity)
        make = new_code_cell if cell.cell_type == "code" else new_markdown_cell
        cells.append(make(text, id=identity, metadata=metadata))

    for cell in jupytext.read(source, fmt="py:percent").cells:
        tags = cell.metadata.get("tags", [])
        if "setup" in tags:
            cell.source = (source.parent / "setup_cell.py").read_text(encoding="utf-8").strip()
            cell.source = cell.source.replace('REPOSITORY_URL = ""', f'REPOSITORY_URL = "{REPOSITORY_URL}"')
        cell.source = cell.source.replace("<!-- badges -->", f"{badges(source.stem, learner)}\n\n{road_map(source)}")
        text = learner_cell(cell) if learner else complete_cell(cell)
        if "# >>> solution" in text or "# <<< solution" in text:
            raise SourceError(
                f"{source.name}: a solution marker lacks its partner at the same indentation, in the cell that begins\n"
                f"{cell.source[:200]}\nWrite '# >>> solution' before the solution and '# <<< solution' after it."
            )
        if cell.cell_type == "code" and SOLUTION.search(cell.source):
            exercise.append(cell)
        if "hints" in tags:
            folded = folded_hints(cell, source.name)
            if learner:
                folded.append(FOLDED.format("Solution", f"```python\n{solutions(exercise)}\n```"))
            text, hinted = "\n".join(folded), True
        check = CHECK.search(cell.source) if cell.cell_type == "code" else None
        if check and text.splitlines()[-1].startswith("checks."):
            text += ";"  # so that Jupyter does not show the True or False that it returns
        add(cell, text, {"tags": tags} if tags else {})
        if exercise and check:
            if not hinted:
                raise SourceError(f"{source.name}: the exercise of {check[1]} has no hints: add a Markdown cell with "
                                  'the tag "hints" before the check.')
            if learner:
                cell = go_on(exercise, check)
                add(cell, cell.source, cell.metadata)
            exercise, hinted = [], False
    notebook = new_notebook(cells=cells, metadata=METADATA)
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def build_all(notebooks: Path) -> dict[Path, str]:
    """Return every generated file under `notebooks` with the text that it should have."""
    files = {}
    for source in sorted((notebooks / "src").glob("[0-9][0-9]_*.py")):
        files[notebooks / f"{source.stem}.ipynb"] = build(source)
        files[notebooks / "exercises" / f"{source.stem}.ipynb"] = build(source, learner=True)
    table = re.search(r"^\| # .*\n(\|.*\n)+", (notebooks / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    files[notebooks / "exercises" / "README.md"] = CONTENTS + table[0]  # its links lead to the files beside it
    return files


def stale_files(files: dict[Path, str]) -> list[Path]:
    """Return those of `files` (path → text it should have) that are missing or differ."""
    return [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]


def orphans(notebooks: Path) -> list[Path]:
    """Return the numbered notebooks that have no source file."""
    numbered = [*notebooks.glob("[0-9][0-9]_*.ipynb"), *notebooks.glob("exercises/[0-9][0-9]_*.ipynb")]
    return sorted(path for path in numbered if not (notebooks / "src" / f"{path.stem}.py").exists())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is out of date")
    parser.add_argument("--notebooks", type=Path, default=NOTEBOOKS, help="the folder with src/ (default: notebooks)")
    arguments = parser.parse_args(argv)
    files = build_all(arguments.notebooks)
    stale = stale_files(files)
    for path in stale:
        if arguments.check:
            print(f"{path} is out of date: run python scripts/build_notebooks.py", file=sys.stderr)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(files[path], encoding="utf-8", newline="\n")
            print(f"written: {path}")
    without_source = orphans(arguments.notebooks)
    for path in without_source:
        print(f"{path} has no source in notebooks/src: remove or rename it", file=sys.stderr)
    if not stale and not without_source:
        print(f"{len(files)} files are up to date.")
    return 1 if without_source or (arguments.check and stale) else 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
