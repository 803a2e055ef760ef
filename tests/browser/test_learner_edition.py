"""What a learner sees, in headless Chromium: a learner edition in JupyterLab, and the page of a run's completions.

Screenshots stay in pytest's temporary folder.

Chromium is driven by its DevTools protocol, for which jupyter_server's own websocket-client is enough.
"""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import build_notebooks
import jupytext
import pytest
import websocket

from lab_utils import REPOSITORY
from lab_utils.figures import browse_completions
from lab_utils.runs import RunDirectory

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.component,
    pytest.mark.timeout(600),
    pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on PATH (apt-get install chromium)"),
]
NAME, TOKEN, PATIENCE = "03_sft_warmup", "workshop", 300
FLAGS = ("--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync --window-size=1200,1000 --remote-debugging-port=0").split()
NO_NEWS = {"fetchNews": "false", "checkForUpdates": False}

HELPERS = """\
window.panel = () => [...(window.jupyterapp?.shell?.widgets('main') ?? [])].find(one => one.content);
window.cells = () => panel()?.content.widgets ?? [];"""


def wait(condition: Callable, what: str):
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"no {what} after {PATIENCE} s"
        time.sleep(0.2)
    return found


class Page:
    """A tab of the browser."""

    def __init__(self, port: int, pictures: Path):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as tabs:
            address = next(tab["webSocketDebuggerUrl"] for tab in json.load(tabs) if tab["type"] == "page")
        self.socket = websocket.create_connection(address, timeout=PATIENCE, suppress_origin=True)
        self.calls, self.pictures = 0, pictures

    def call(self, method: str, **parameters) -> dict:
        self.calls += 1
        self.socket.send(json.dumps({"id": self.calls, "method": method, "params": parameters}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.calls:
            pass  # an event
        assert "error" not in answer, answer
        return answer["result"]

    def js(self, code: str):
        """Return the value of an expression, after its promise is kept."""
        result = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def picture(self, name: str) -> None:
        image = self.call("Page.captureScreenshot")["data"]
        (self.pictures / f"{name}.png").write_bytes(base64.b64decode(image))

    # What a learner does. `cells` are JupyterLab's widgets.

    def cells(self) -> list[dict]:
        return self.js("cells().map(c => ({source: c.model.sharedModel.getSource(), type: c.model.type, "
                       "outputs: c.model.type == 'code' ? c.model.outputs.toJSON() : []}))")

    def show(self, i: int) -> None:
        self.js(f"panel().content.activeCellIndex = {i}; panel().content.scrollToItem({i})")

    def type(self, i: int, text: str) -> None:
        """Write `text` over the text of a cell."""
        self.show(i)
        self.js("panel().content.mode = 'edit'; panel().content.activeCell.editor.focus()")
        self.call("Input.dispatchKeyEvent", type="keyDown", key="a", modifiers=2, commands=["selectAll"])
        self.call("Input.insertText", text=text)
        assert self.cells()[i]["source"] == text

    def run(self, i: int, which: str = "run-cell") -> str:
        """Run a cell, or those `run-all-above` or `run-all-below` it. Return what it printed."""
        self.show(i)
        self.js(f"jupyterapp.commands.execute('notebook:{which}')")
        return "".join("".join(output.get("text", "")) for output in self.cells()[i]["outputs"])


@pytest.fixture
def tab(tmp_path) -> Iterator[Page]:
    """Open an empty tab."""
    profile = tmp_path / "profile"
    browser = subprocess.Popen([BROWSER, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ready = profile / "DevToolsActivePort"
        tab = Page(int(wait(lambda: ready.exists() and ready.read_text().split(), "browser")[0]), tmp_path)
        tab.call("Emulation.setFocusEmulationEnabled", enabled=True)  # commands act on the part that has the focus
        yield tab
    finally:
        browser.terminate()
        browser.wait()


@pytest.fixture
def page(tmp_path, tab) -> Iterator[Page]:
    """Open a copy of the learner edition, as set-up makes it, at tier smoke."""
    (tmp_path / "workshop" / "notebooks" / "mine").mkdir(parents=True)
    (tmp_path / "workshop" / "lab_utils").symlink_to(REPOSITORY / "lab_utils")
    edition = (REPOSITORY / "notebooks" / "exercises" / f"{NAME}.ipynb").read_text(encoding="utf-8")
    copy = tmp_path / "workshop" / "notebooks" / "mine" / f"{NAME}.ipynb"
    copy.write_text(edition.replace('HARDWARE = \\"cpu\\"', 'HARDWARE = \\"smoke\\"'), encoding="utf-8")
    settings = tmp_path / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(NO_NEWS))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "JUPYTER_RUNTIME_DIR": str(tmp_path),
                   "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings")}
    lab = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser",
         f"--ServerApp.port={port}", f"--IdentityProvider.token={TOKEN}",
         f"--ServerApp.root_dir={tmp_path / 'workshop'}"],
        env=environment, stdout=(tmp_path / "lab.log").open("w"), stderr=subprocess.STDOUT)
    try:
        wait(lambda: "is running at" in (tmp_path / "lab.log").read_text(), "JupyterLab")
        tab.call("Page.enable")
        tab.call("Page.addScriptToEvaluateOnNewDocument", source=HELPERS)
        tab.call("Page.navigate", url=f"http://127.0.0.1:{port}/lab/tree/notebooks/mine/{NAME}.ipynb?token={TOKEN}")
        wait(lambda: tab.js("cells().length"), "notebook")
        tab.js("jupyterapp.shell.activateById(panel().id)")
        wait(lambda: tab.js("panel().sessionContext.session?.kernel?.status == 'idle'"), "kernel")
        yield tab
    finally:
        lab.terminate()  # it ends its kernels
        lab.wait()


def test_a_learner_solves_an_exercise_and_trains(page):
    cells = page.cells()
    exercise = next(i for i, cell in enumerate(cells) if "# YOUR CODE HERE" in cell["source"])
    check = next(i for i in range(exercise, len(cells)) if cells[i]["source"].startswith("from lab_utils.teaching"))
    hints = check - 1
    source = jupytext.read(REPOSITORY / "notebooks" / "src" / f"{NAME}.py", fmt="py:percent").cells[exercise]
    solution = build_notebooks.complete_cell(source)

    page.run(check, "run-all-above")
    page.picture("1_blank")
    assert "completion_loss is not written yet" in page.run(check)
    folded = f"cells()[{hints}].node.querySelectorAll('details')"
    page.show(hints)
    assert page.js(f"[...{folded}].map(one => one.open)") == [False, False, False], "two hints and the solution"
    page.js(f"{folded}[0].querySelector('summary').click()")
    assert page.js(f"{folded}[0].open")
    page.picture("2_hint")

    page.type(exercise, "def completion_loss(logps, labels):\n    return -logps.sum().item() / 0")
    page.run(exercise)
    told = page.run(check)
    page.picture("3_wrong")
    assert told.startswith("Not yet: ") and "raised ZeroDivisionError" in told and "in your line: return -logps" in told
    page.type(exercise, solution)
    page.run(exercise)
    told = page.run(check)
    page.picture("4_right")
    assert told.startswith("OK: ")

    page.run(check + 1, "run-all-below")  # from "Go on with ours", which leaves the learner's answer alone
    cells = page.cells()
    outputs = [(i, output) for i, cell in enumerate(cells) for output in cell["outputs"]]
    assert cells[check + 1]["outputs"] == []
    red = [output for _, output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert red == []
    trained = next(i for i, cell in enumerate(cells) if "sft.train(" in cell["source"])
    page.show(trained)
    page.picture("5_progress")
    assert "SFT: 100%" in "".join("".join(output.get("text", "")) for output in cells[trained]["outputs"])
    figure = next(i for i, output in outputs if "image/png" in output.get("data", {}))
    page.show(figure)
    page.picture("6_figure")
    assert page.js(f"cells()[{figure}].node.querySelector('img').naturalWidth") > 300


def test_the_page_of_completions_goes_from_step_to_step(tab, tmp_path):
    path = tmp_path / "completions.html"
    browse_completions(RunDirectory(REPOSITORY / "notebooks" / "recorded" / "runs" / "A"), path)
    tab.call("Page.navigate", url=path.as_uri())
    step = "document.querySelector('#step-name')?.textContent"
    first = wait(lambda: tab.js(step), "step")
    assert tab.js("document.querySelectorAll('#group .card').length") > 1, "a group side by side"
    tab.js("document.querySelector('#after').click()")
    assert tab.js(step) != first
    tab.picture("completions")
