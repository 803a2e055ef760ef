"""Notebooks run: each numbered one at tier smoke, in order and in one folder; and the runner's own behavior."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_notebooks import main, write_index

from lab_utils import REPOSITORY, exit_status
from lab_utils.config import load
from lab_utils.runs import RunDirectory

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def run_notebooks(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/run_notebooks.py", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Run the runner in this process, which has imported its packages; return its status and what it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["run_notebooks.py", *arguments])
        return exit_status(main), "".join(capsys.readouterr())

    return run


# The workshop's notebooks


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> tuple[Path, str]:
    """Return the output folder and the console output of one run of all notebooks at tier smoke."""
    folder = tmp_path_factory.mktemp("smoke")
    return folder, run_notebooks("--hardware", "smoke", "--output-dir", str(folder)).stdout


@pytest.mark.notebook
@pytest.mark.timeout(900)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_at_tier_smoke(smoke, notebook):
    folder, console = smoke
    status = json.loads((folder / "report" / "status.json").read_text())
    assert status[notebook.stem]["status"] == "ok", console
    executed = (folder / "report" / notebook.name).read_text(encoding="utf-8")
    assert '"Not yet: ' not in executed, "a check rejects the workshop's own solution"


@pytest.mark.notebook
@pytest.mark.timeout(900)
def test_the_report_of_the_workshop_needs_no_network(smoke):
    folder, _ = smoke
    pages = list((folder / "report").glob("*.html"))
    assert len(pages) == len(NOTEBOOKS) + 1
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "<script" not in text
        assert not re.search(r"<(img|link|iframe)[^>]*(src|href)=.https?://", text), page.name


# The runner, with small notebooks


def notebook(*sources: str, markdown: str = "# A notebook") -> str:
    parameters = 'RECIPE = "countdown-grpo"\nHARDWARE = "auto"\nOUTPUT_DIR = "runs"\nSEED = 0'
    code = [{"cell_type": "code", "source": source, "metadata": {}} for source in (parameters, *sources)]
    code[0]["metadata"]["tags"] = ["parameters"]
    text = {"cell_type": "markdown", "source": markdown, "metadata": {}, "id": "text"}
    cells = [text, *({**cell, "id": f"c{i}", "outputs": [], "execution_count": None} for i, cell in enumerate(code))]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})


PREPARE = """\
import json
from pathlib import Path
out = Path(OUTPUT_DIR)
(out / "figures").mkdir()
(out / "figures" / "00_the-curve.png").write_bytes(b"png")
results = {"GRPO <b>": {"accuracy": 0.61, "interval": [0.57, 0.65], "questions": 500}}
(out / "results.json").write_text(json.dumps(results))
(out / "seen.txt").write_text(f"{HARDWARE} {SEED}")"""


@pytest.mark.component
def test_notebooks_share_a_folder_and_a_failing_cell_is_shown(tmp_path, run_here):
    formula = r"# A formula $\frac{r - \mu}{\sigma}$ and \$72"
    (tmp_path / "00_prepare.ipynb").write_text(notebook(PREPARE, markdown=formula))
    progress = "import sys\nfor share in ('10%', '100%'):\n    sys.stderr.write(chr(13) + share)"
    (tmp_path / "01_read.ipynb").write_text(notebook('print(open(OUTPUT_DIR + "/seen.txt").read())', progress))
    (tmp_path / "02_fails.ipynb").write_text(notebook("x = 1", "def share(part):\n    return part / 0\n\nshare(3)"))
    (tmp_path / "04_later.ipynb").write_text(notebook("print('never')"))
    out = tmp_path / "out"
    options = ("--notebooks", str(tmp_path), "--output-dir", str(out), "--hardware", "smoke")
    exit_code, console = run_here(*options, "--seed", "7")

    assert exit_code == 1
    assert re.search(r"^\[2/4\] 01_read: ok after \d+ s, \d+ s in all$", console, re.M)
    assert "02_fails failed in cell" in console
    assert "return part / 0" in console and "ZeroDivisionError" in console
    assert "[4/4]" not in console
    assert (out / "seen.txt").read_text() == "smoke 7"

    status = json.loads((out / "report" / "status.json").read_text())
    assert [status[name]["status"] for name in sorted(status)] == ["ok", "ok", "failed", "not run"]
    page = (out / "report" / "01_read.html").read_text()
    assert "smoke 7" in page and "<pre>100%" in page.replace("\r", ""), "only a progress bar's last state is shown"
    page = (out / "report" / "00_prepare.html").read_text()
    assert "<mfrac>" in page and "$72" in page and "<script" not in page
    index = (out / "report" / "index.html").read_text()
    assert "<td>GRPO &lt;b&gt;</td><td>61.0%</td><td>57.0% to 65.0%</td><td>500</td>" in index
    assert "<figcaption>00 the curve</figcaption>" in index and "data:image/png;base64,cG5n" in index

    # Fixed, the rest runs in the same folder.
    (tmp_path / "02_fails.ipynb").write_text(notebook("x = 1"))
    rest, console = run_here(*options, "--only", "2,04")
    assert rest == 0, console
    status = json.loads((out / "report" / "status.json").read_text())
    assert {entry["status"] for entry in status.values()} == {"ok"} and len(status) == 4


SLOW = """\
import os, time
from pathlib import Path
(Path(OUTPUT_DIR) / "kernel").write_text(str(os.getpid()))
time.sleep(120)"""


@pytest.mark.component
@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
def test_a_runner_that_was_killed_leaves_no_kernel_and_nothing_that_stops_the_same_command(tmp_path):
    (tmp_path / "00_first.ipynb").write_text(notebook())
    (tmp_path / "01_slow.ipynb").write_text(notebook(SLOW))
    out = tmp_path / "out"
    options = ("--notebooks", str(tmp_path), "--output-dir", str(out))
    runner = subprocess.Popen([sys.executable, "scripts/run_notebooks.py", *options], cwd=REPOSITORY)
    while not (out / "kernel").exists() or not (out / "kernel").read_text():
        assert runner.poll() is None
        time.sleep(0.1)
    runner.kill()
    runner.wait()
    status = json.loads((out / "report" / "status.json").read_text())
    assert [status[name]["status"] for name in sorted(status)] == ["ok", "not run"]
    deadline = time.monotonic() + 30  # the kernel looks for its parent every second
    while Path("/proc", (out / "kernel").read_text(), "cmdline").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert time.monotonic() < deadline, "a kernel left behind would go on training and hold the lock of its run"

    (tmp_path / "01_slow.ipynb").write_text(notebook("print('\\x1b[31mred\\x1b[0m \\u202eleft')"))
    (out / "report" / "01_slow.ipynb").write_text('{"cells": [')  # it was being written
    (out / "results.json").write_text('{"GRPO": {"accuracy": 0.')
    again = run_notebooks(*options)
    assert again.returncode == 0 and "results.json is damaged" in again.stdout
    page = (out / "report" / "01_slow.html").read_text()
    assert r"\u202eleft" in page and "ansi-red-fg" in page, "marks that reorder a line are shown; colors stay"


@pytest.mark.parametrize("content", ["", "[", "[]", "[" * 100_000, "\x00", '{"GRPO": 7}', '{"GRPO": {"accuracy": 0.5}}',
                                     '{"GRPO": {"accuracy": "high", "interval": [0, 1]}}'])
def test_damaged_results_are_left_out_of_the_report(tmp_path, content, capsys):
    (tmp_path / "results.json").write_text(content)
    (tmp_path / "report").mkdir()
    assert "Results" not in write_index(tmp_path, "title", {}).read_text()
    assert "results.json is damaged" in capsys.readouterr().out


def test_the_first_page_begins_with_the_story_and_links_to_what_models_wrote(tmp_path, capsys):
    for folder in ("report", "figures", "gsm8k/grpo"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "figures" / "13_story.png").write_bytes(b"story")
    (tmp_path / "figures" / "00_start.png").write_bytes(b"start")
    run = RunDirectory.create(load("countdown-grpo", "smoke"), tmp_path / "countdown" / "grpo")
    run.append_completions([{"step": 1, "question": "make 7", "gold": "7", "completion": "3 + 4", "extracted": "3 + 4",
                             "correct": True, "reward": 1.0}])
    (tmp_path / "gsm8k" / "grpo" / "completions.jsonl").write_text("{\n")
    page = write_index(tmp_path, "title", {}).read_text()
    assert page.count("c3Rvcnk=") == 1 and page.index("c3Rvcnk=") < page.index("Notebooks") < page.index("c3RhcnQ=")
    assert '<a href="completions/countdown-grpo.html">countdown/grpo</a>' in page and "gsm8k" not in page
    assert "3 + 4" in (tmp_path / "report" / "completions" / "countdown-grpo.html").read_text()
    assert "leaves out the completions of gsm8k/grpo" in capsys.readouterr().out


@pytest.mark.component
def test_a_kernel_that_dies_is_reported(tmp_path, run_here):
    (tmp_path / "00_dies.ipynb").write_text(notebook("import os", "os._exit(9)"))
    exit_code, console = run_here("--notebooks", str(tmp_path), "--output-dir", str(tmp_path / "out"))
    assert exit_code == 1
    assert "because memory ran out" in console and "Traceback" not in console


def test_an_unknown_number_is_an_error(tmp_path, run_here):
    (tmp_path / "00_first.ipynb").write_text(notebook())
    options = ("--notebooks", str(tmp_path), "--output-dir", str(tmp_path / "out"))
    exit_code, console = run_here(*options, "--only", "00,17")
    assert exit_code == 2
    assert "no notebook has the number 17: choose from 00" in console and not (tmp_path / "out").exists()
