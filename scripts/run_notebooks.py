"""Execute the numbered notebooks in order with papermill and write a report that needs no network to read.

    python scripts/run_notebooks.py                                     all, at tier cpu, into runs/cpu-DATE-TIME
    python scripts/run_notebooks.py --hardware smoke                    a handful of steps each: does every line run?
    python scripts/run_notebooks.py --only 06,08 --output-dir runs/mine  continue in a folder that has 03's model

The notebooks share the output folder (their parameter OUTPUT_DIR): 06 starts from the model that 03 trained, 08
evaluates the models of 03 and 06, and 13 draws all of it. The report is in OUTPUT_DIR/report: an executed copy and a
page of each notebook, a page to browse what each run's model wrote, and index.html with the notebooks' status, the
figures that they saved as OUTPUT_DIR/figures/*.png (first the one named *_story.png), and the results of
OUTPUT_DIR/results.json, if there is one:

    {"GRPO": {"accuracy": 0.61, "interval": [0.57, 0.65], ... more columns ...}, ...}
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import papermill
from latex2mathml.converter import convert as mathml
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import CoalesceStreamsPreprocessor, Preprocessor

from lab_utils import REPOSITORY, WorkshopError, exit_status
from lab_utils.tasks import visible

MATHML_NAMESPACE = "http://www.w3.org/1998/Math/MathML"
STDERR_STYLE = '.jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"] { background: #f5f5f5; }'
ANSI = re.compile(r"\x1b\[[0-9;]*m")
INDEX = jinja2.Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
:root { color-scheme: light dark; --ink: #222; --dim: #555; --line: #ddd; --bad: #b00020; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eaeaea; --dim: #b0b0b0; --line: #444; --bad: #ff8a80; --page: #161616; } a { color: #8ab4f8; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
  background: var(--page); }
table { border-collapse: collapse; margin: 1rem 0 2rem; }
th, td { text-align: left; padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid var(--line); }
figure { margin: 2rem 0; } figcaption, .dim { color: var(--dim); } img { max-width: 100%; background: white; }
.failed { color: var(--bad); font-weight: 600; }
</style></head><body>
<h1>{{ title }}</h1>
<p>A small language model answers problems, a program scores each response, and training makes the responses with higher
scores more probable: reinforcement learning. This page shows what that changed in one run of the workshop.</p>
{% for caption, png in story.items() %}
<figure><img alt="{{ caption }}" src="data:image/png;base64,{{ png }}"><figcaption>Top: a test problem and the model's
first response to it before and after reinforcement learning. It is the first problem that went from wrong to correct,
with three attempts if there is such a problem. Bottom: how often the model was right while it was trained, how many
attempts it made per response, and how often each model is right on problems that it was not trained on.</figcaption>
</figure>
{% endfor %}
{% if results %}<h2>Results</h2>
<table><tr><th>method</th><th>accuracy</th><th>95% interval</th>
{%- for column in columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for method, row in results.items() %}<tr><td>{{ method }}</td><td>{{ "%.1f%%" | format(100 * row.accuracy) }}</td>
{#- #}<td>{{ "%.1f%% to %.1f%%" | format(100 * row.interval[0], 100 * row.interval[1]) }}</td>
{%- for column in columns %}<td>{{ row[column] }}</td>{% endfor %}</tr>
{% endfor %}</table>
<p class="dim">base: the model before any training here. SFT: the base model after supervised fine-tuning on
demonstrations of the response format. GRPO and PPO: two methods of reinforcement learning, from the SFT model. Two
controls: extra SFT imitates more demonstrations, and random reward is GRPO with coin tosses as scores.</p>{% endif %}
{% if completions %}<h2>What the models wrote</h2>
<p>Each page shows the responses of one training run, with rewards and advantages, step by step:
{% for name, link in completions.items() %}<a href="{{ link | urlencode }}">{{ name }}</a>{{ ", " if not loop.last }}
{% endfor %}</p>{% endif %}
<h2>Notebooks</h2>
<table><tr><th>notebook</th><th>status</th><th>minutes</th></tr>
{% for name, entry in status | dictsort %}<tr><td>
{%- if entry.seconds is none %}{{ name }}{% else %}<a href="{{ name }}.html">{{ name }}</a>{% endif %}</td>
{#- #}<td class="{{ entry.status }}">{{ entry.status }}</td>
{#- #}<td>{{ "%.1f" | format(entry.seconds / 60) if entry.seconds is not none }}</td></tr>
{% endfor %}</table>
{% if figures %}<h2>All figures</h2>{% endif %}
{% for caption, png in figures.items() %}
<figure><img alt="{{ caption }}" src="data:image/png;base64,{{ png }}"><figcaption>{{ caption }}</figcaption></figure>
{% endfor %}</body></html>
""", autoescape=True)


def select(notebooks: Path, only: str | None) -> list[Path]:
    """Return the numbered notebooks in order; `only` is a list of numbers such as "03,06"."""
    by_number = {path.name[:2]: path for path in sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))}
    if not by_number:
        raise WorkshopError(f"There are no numbered notebooks in {notebooks}: run python scripts/build_notebooks.py")
    numbers = sorted({number.strip().zfill(2) for number in only.split(",")}) if only else list(by_number)
    if unknown := [number for number in numbers if number not in by_number]:
        raise WorkshopError(f"--only: no notebook has the number {', '.join(unknown)}: choose from "
                            f"{', '.join(by_number)}.")
    return [by_number[number] for number in numbers]


def execute(notebook: Path, copy: Path, parameters: dict[str, Any]) -> str | None:
    """Run `notebook` into `copy`. Return None, or a failure's cell and the end of its error."""
    try:
        papermill.execute_notebook(
            notebook, copy, parameters, kernel_name="python3", cwd=notebook.parent, progress_bar=sys.stderr.isatty(),
            extra_arguments=["--log-level=ERROR"])  # the kernel's own log, not the notebook's
    except papermill.PapermillExecutionError as error:
        trace = "\n".join(ANSI.sub("", "\n".join(error.traceback)).splitlines()[-25:])
        return f"cell [{error.exec_count}]:\n\n{error.source}\n\nThe error ends:\n\n{trace}"
    except DeadKernelError:
        return "a cell that ended its Python process, probably because memory ran out (see the last cell with output)."
    return None


class MathMLRenderer(IPythonRenderer):
    """Formulas as MathML, which browsers draw themselves."""

    def block_math(self, body: str) -> str:
        return self._math(body, "block")

    def inline_math(self, body: str) -> str:
        return self._math(body, "inline")

    def _math(self, body: str, display: str) -> str:
        # HTML does not need the namespace, and nbconvert would turn it into prefixes in headings.
        return mathml(body.strip(), display=display).replace(f' xmlns="{MATHML_NAMESPACE}"', "")


class _VisibleOutput(Preprocessor):
    """Shows the control characters and bidirectional marks that a model may have written, but keeps ANSI colors."""

    def preprocess_cell(self, cell, resources, index):
        for output in cell.get("outputs", []):
            data = output.get("data", output)  # a stream has its text beside its name
            for kind in data.keys() & {"text", "text/plain", "text/html"}:
                kept = re.split(rf"({ANSI.pattern}|\r)", data[kind])
                data[kind] = "".join(text if i % 2 else visible(text) for i, text in enumerate(kept))
        return cell, resources


class OfflineHTML(HTMLExporter):
    """nbconvert's page without its scripts: they come from the network, and executed notebooks do not need them.

    Of a progress bar only the last state is shown, on gray: standard error is not only for errors.
    """

    preprocessors = [CoalesceStreamsPreprocessor, _VisibleOutput]

    @jinja2.pass_context
    def markdown2html(self, context, source: str) -> str:
        return MarkdownWithMath(renderer=MathMLRenderer(escape=False)).render(source)

    def from_notebook_node(self, notebook, resources=None, **kwargs):
        html, resources = super().from_notebook_node(notebook, resources, **kwargs)
        html = re.sub(r"<script\b.*?</script>", "", html, flags=re.DOTALL)
        return html.replace("</head>", f"<style>{STDERR_STYLE}</style></head>", 1), resources


def read_table(path: Path, numbers_of: Callable[[dict], list]) -> dict[str, dict[str, Any]]:
    """Read a JSON file {name: row} whose rows have certain numbers; without it, or if it is damaged, {}."""
    if not path.exists():
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        for row in table.values():
            sum(numbers_of(row))
        return table
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        print(f"{path} is damaged, so the report leaves it out: run the notebooks again that it is about.", flush=True)
        return {}


def write_page(copy: Path) -> None:
    html, _ = OfflineHTML().from_notebook_node(nbformat.read(copy, as_version=4), {"metadata": {"name": copy.stem}})
    copy.with_suffix(".html").write_text(html, encoding="utf-8")


def write_completions(output_dir: Path) -> dict[str, str]:
    """Write OUTPUT_DIR/report/completions/*.html, one per training run; return name -> link."""
    report, links = output_dir / "report", {}
    for record in sorted(output_dir.rglob("completions.jsonl")):
        # Imported late: it takes seconds, and `--help` and wrong arguments need none of it.
        from lab_utils.figures import browse_completions
        from lab_utils.runs import RunDirectory

        place = record.parent.relative_to(output_dir)
        if "checkpoints" in place.parts:  # SageMaker's copy of a run directory
            continue
        page = report / "completions" / f"{'-'.join(place.parts)}.html"
        try:
            if not page.exists() or page.stat().st_mtime < record.stat().st_mtime:
                browse_completions(RunDirectory(record.parent), page)
            links[place.as_posix()] = page.relative_to(report).as_posix()
        except WorkshopError as error:
            print(f"The report leaves out the completions of {place}: {error}", flush=True)
    return links


def write_index(output_dir: Path, title: str, status: dict[str, dict[str, Any]]) -> Path:
    """Write OUTPUT_DIR/report/index.html: the story in one figure, the results, the notebooks and all figures.

    `status` is {notebook's stem: {"status": "ok" | "failed" | "not run", "seconds": float | None}}.
    """
    results = read_table(output_dir / "results.json", lambda row: [row["accuracy"], *row["interval"][:2]])
    columns = dict.fromkeys(key for row in results.values() for key in row if key not in ("accuracy", "interval"))
    figures = {re.sub(r"[_-]+", " ", figure.stem): base64.b64encode(figure.read_bytes()).decode()
               for figure in sorted((output_dir / "figures").glob("*.png"))}
    story = {caption: figures.pop(caption) for caption in list(figures) if caption.endswith(" story")}
    index = output_dir / "report" / "index.html"
    html = INDEX.render(title=title, story=story, results=results, columns=columns, figures=figures, status=status,
                        completions=write_completions(output_dir))
    index.write_text(html, encoding="utf-8")
    return index


def save_status(path: Path, status: dict[str, dict[str, Any]]) -> None:
    """Write status.json; a runner that is killed leaves the old or the new one."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(status, indent=2) + "\n")
    unfinished.replace(path)


def duration(seconds: float) -> str:
    """Return seconds as text for people: "42 s", "3 min 05 s"."""
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--hardware", default="cpu", help="the tier, for the notebooks' HARDWARE (default: cpu)")
    parser.add_argument("--output-dir", type=Path, help="default: a new folder, runs/HARDWARE-DATE-TIME")
    parser.add_argument("--only", help="numbers of notebooks, such as 03,06 (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--notebooks", type=Path, default=REPOSITORY / "notebooks",
                        help="folder of the notebooks (default: notebooks)")
    arguments = parser.parse_args()

    chosen = select(arguments.notebooks, arguments.only)
    default = Path("runs") / f"{arguments.hardware}-{datetime.now():%Y%m%d-%H%M%S}"
    output_dir = (arguments.output_dir or default).resolve()
    report = output_dir / "report"
    try:
        report.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkshopError(f"Cannot write to {report} ({error.strerror}): choose another --output-dir.") from None
    parameters = {"HARDWARE": arguments.hardware, "OUTPUT_DIR": str(output_dir), "SEED": arguments.seed}
    os.environ.setdefault("WANDB_MODE", "offline")  # kernels inherit it: no questions from W&B

    status_file = report / "status.json"
    status = read_table(status_file, lambda row: [len(row["status"]), row["seconds"] or 0])
    status.update({path.stem: {"status": "not run", "seconds": None} for path in chosen})
    save_status(status_file, status)
    print(f"{len(chosen)} notebooks at tier {arguments.hardware}, seed {arguments.seed}, into {output_dir}", flush=True)
    started = time.monotonic()
    for i, notebook in enumerate(chosen, start=1):
        print(f"[{i}/{len(chosen)}] {notebook.stem} ...", flush=True)
        begun = time.monotonic()
        failure = execute(notebook, report / notebook.name, parameters)
        seconds = time.monotonic() - begun
        write_page(report / notebook.name)
        status[notebook.stem] = {"status": "failed" if failure else "ok", "seconds": round(seconds, 1)}
        save_status(status_file, status)
        index = write_index(output_dir, f"Workshop run, tier {arguments.hardware}", status)
        times = f"{duration(seconds)}, {duration(time.monotonic() - started)} in all"
        print(f"[{i}/{len(chosen)}] {notebook.stem}: {'FAILED' if failure else 'ok'} after {times}", flush=True)
        if failure:
            print(f"\n{notebook.stem} failed in {failure}\n\nThe notebook so far: {report / notebook.name}")
            break
    print(f"\nReport: {index}", flush=True)
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
