"""Make slides from executed notebooks: one HTML file without scripts that needs no network.

    python scripts/run_notebooks.py --output-dir runs/yesterday     the day before
    python scripts/build_slides.py runs/yesterday                   writes runs/yesterday/report/slides.html

Each notebook gives its title with the box, every figure with the text before it, its exercises, "what you should see",
the summary and the questions. Scroll, or press space, page by page; printing gives one slide per page. The text has one
source, the notebooks: to change a slide, change its notebook.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import jinja2
import nbformat
from nbconvert.filters.markdown_mistune import MarkdownWithMath
from run_notebooks import MathMLRenderer

from lab_utils import WorkshopError, exit_status
from lab_utils.runs import write_atomically

SLIDE = re.compile(r"# |## (Exercise|What you should see|Summary|Questions)")  # headings of slides without a figure
HEADING = re.compile(r"^(?=#{1,2} )", re.MULTILINE)
PAGE = jinja2.Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Slides</title><style>
:root { color-scheme: light dark; }
html { scroll-snap-type: y mandatory; }
body { font: min(22px, 2.8vh)/1.4 system-ui, sans-serif; margin: 0; }
section { box-sizing: border-box; height: 100vh; padding: 3vh 6vw; overflow: auto; scroll-snap-align: start;
          break-after: page; display: flex; flex-direction: column; }
section > * { margin: .4rem 0; } .anchor-link { display: none; }
img { flex: 1 1 0; min-height: 0; max-width: 100%; object-fit: contain; }
table { border-collapse: collapse; font-size: 18px; } td, th { padding: .2rem .8rem; border-bottom: 1px solid #8886; }
pre { font-size: 18px; } footer { color: #777; font-size: 14px; margin-top: auto; }
</style></head><body>
{% for name, html, images in slides %}<section>{{ html | safe }}
{% for image in images %}<img alt="figure" src="data:image/png;base64,{{ image }}">{% endfor %}
<footer>{{ name }}</footer></section>
{% endfor %}</body></html>
""", autoescape=True)


def slides_of(notebook: nbformat.NotebookNode) -> Iterator[tuple[str, list[str]]]:
    """Yield the text and the figures of each slide of an executed notebook."""
    before = ""  # the text that leads to the next figure
    for cell in notebook.cells:
        if cell.cell_type == "code":
            data = [output.get("data", {}) for output in cell.outputs]
            if images := [one["image/png"].replace("\n", "") for one in data if "image/png" in one]:
                yield before, images
                before = ""
        elif "hints" not in cell.metadata.get("tags", []):
            for part in filter(str.strip, HEADING.split(cell.source)):
                paragraphs = [text for text in part.split("\n\n") if "all notebooks](" not in text]  # the badges
                before = "\n\n".join(paragraphs)
                if SLIDE.match(part) and len(paragraphs) > 1:  # not a heading alone
                    yield before, []
                    before = paragraphs[0]


def write_slides(report: Path) -> Path:
    """Write REPORT/slides.html from the executed notebooks in REPORT."""
    notebooks = sorted(report.glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        raise WorkshopError(f"{report} has no executed notebooks: run python scripts/run_notebooks.py --output-dir "
                            f"{report.parent} first.")
    render = MarkdownWithMath(renderer=MathMLRenderer(escape=False)).render
    slides = [(path.stem, render(text), images) for path in notebooks
              for text, images in slides_of(nbformat.read(path, as_version=4))]
    write_atomically(report / "slides.html", PAGE.render(slides=slides))
    return report / "slides.html"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="an output folder of run_notebooks.py")
    print(f"Slides: {write_slides(parser.parse_args(argv).folder / 'report')}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
