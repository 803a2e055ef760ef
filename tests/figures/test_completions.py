"""The completions browser shows every recorded completion, and whatever a model wrote stays text."""

import base64
import hashlib
import json
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from lab_utils import config as configuration
from lab_utils.figures import browse_completions
from lab_utils.figures.completions import INLINE_STEPS
from lab_utils.runs import RunDirectory, RunDirectoryError

HOSTILE = [
    "</script><script>document.title = 'HACKED'</script>",
    "<!--<script> <img src=x onerror=\"document.title='HACKED'\">",
    "&lt;b&gt; &quot; \" ' \\u003c ` ${1} ]]>",
    "7 + 5 \u202e = 21 \u2028 \u2029 \x00 \x1b[2J \u200b",
    "COMPLETIONS_DATA SCRIPT_DIGEST",
]


def row(step, completion, **more):
    return {"step": step, "question": f"make {step}", "gold": "7", "completion": completion, "extracted": None,
            "correct": False, "reward": 0.1, **more}


def new_run(path, rows):
    run = RunDirectory.create(configuration.load("countdown-grpo", "smoke"), path)
    path.joinpath("completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


class Page(HTMLParser):
    """The elements of a page as a browser finds them; `scripts` holds the attributes and the text of each script."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts, self.open = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if self.open is False and tag == "script":
            self.scripts.append([dict(attributes), ""])
            self.open = True

    def handle_endtag(self, tag):
        self.open = self.open and tag != "script"

    def handle_data(self, data):
        if self.open:
            self.scripts[-1][1] += data

    @property
    def data(self):
        return json.loads(self.scripts[0][1], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.fixture
def hostile(tmp_path):
    rows = [row(1, text, question=text, gold=text, extracted=text, reward=float("nan"), rewards={text: 1.0},
                tokens={"text": [text, "x"], "value": [0.5, float("inf")]}) for text in HOSTILE]
    return new_run(tmp_path / "run", rows)


def test_hostile_text_stays_data(hostile, tmp_path):
    inline = browse_completions(hostile, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert [attributes for attributes, _ in page.scripts] == [{"type": "application/json", "id": "data"}, {}]
    assert "onerror" not in {name for _, attributes in page.tags for name in attributes}
    shown = [response for group in page.data["steps"][0]["groups"] for response in group["rows"]]
    assert [one["completion"] for one in shown[:3]] == HOSTILE[:3] and shown[4]["completion"] == HOSTILE[4]
    assert shown[3]["completion"] == r"7 + 5 \u202e = 21 \u2028 \u2029 \x00 \x1b[2J \u200b"
    assert shown[0]["reward"] is None and shown[0]["tokens"]["value"] == [0.5, None]

    digest = base64.b64encode(hashlib.sha256(page.scripts[1][1].encode()).digest()).decode()
    (policy,) = [attributes["content"] for tag, attributes in page.tags if tag == "meta" and "content" in attributes
                 and "http-equiv" in attributes]
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy

    (frame,) = [attributes for tag, attributes in Page(inline._repr_html_()).tags if tag == "iframe"]
    assert frame["srcdoc"] == text and frame["sandbox"] == "allow-scripts"


@pytest.mark.component
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
@pytest.mark.parametrize("where", ["file", "notebook"])
def test_a_browser_shows_hostile_text_and_runs_none_of_it(hostile, tmp_path, where):
    inline = browse_completions(hostile, tmp_path / "page.html")
    if where == "notebook":  # a script in the frame could name the page around it only if the frame were not sandboxed
        (tmp_path / "page.html").write_text(f"<!DOCTYPE html><title>notebook</title>{inline._repr_html_()}")
    result = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
         "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         f"file://{tmp_path / 'page.html'}"], capture_output=True, text=True, timeout=120)
    assert "HACKED</title>" not in result.stdout
    if where == "file":
        assert "<title>What the model wrote: run</title>" in result.stdout
        assert "critic's value 0.50" in result.stdout
        assert "&lt;/script&gt;&lt;script&gt;document.title = 'HACKED'&lt;/script&gt;</span>" in result.stdout
        assert len(Page(result.stdout).scripts) == 2


def test_a_step_has_its_groups_and_the_inline_view_has_few_steps(tmp_path):
    run = new_run(tmp_path / "run", [
        row(step, text, question=question) for step in range(1, 100, 4)
        for question, text in (("make 7", "3 + 4"), ("make 7", "5 + 2"), ("make 8", "4 + 4"))])
    inline = browse_completions(run, tmp_path / "page.html")
    steps, few = Page((tmp_path / "page.html").read_text()).data["steps"], Page(inline.page).data["steps"]
    assert [step["step"] for step in steps] == list(range(1, 100, 4))
    assert [[one["completion"] for one in group["rows"]] for group in steps[0]["groups"]] == [["3 + 4", "5 + 2"],
                                                                                              ["4 + 4"]]
    assert len(few) == INLINE_STEPS and (few[0]["step"], few[-1]["step"]) == (1, 97)
    assert few[0]["groups"][0]["rows"][0]["tokens"] is None, "runs of earlier versions have none"


def test_a_run_without_completions_is_an_error(tmp_path):
    with pytest.raises(RunDirectoryError, match="'question': give a run directory that GRPO or PPO has trained"):
        browse_completions(new_run(tmp_path / "run", [{"step": 1}]))
