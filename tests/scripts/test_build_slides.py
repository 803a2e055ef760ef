"""scripts/build_slides.py: what an instructor shows comes from the executed notebooks, and from nowhere else."""

import build_slides
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lab_utils import WorkshopError


def test_titles_figures_exercises_and_questions_become_slides(tmp_path):
    figure = new_output("display_data", {"image/png": "iVBORw0KGgo=\n"})
    text = new_output("stream", text="secret output")
    cells = [
        new_markdown_cell("# 06 · GRPO\n\n[Colab](x) · [all notebooks](README.md)\n\n> **You will learn** to train."),
        new_code_cell("import os", outputs=[text]),
        new_markdown_cell("## The loss\n\n$\\frac{a}{b}$ decides."),
        new_code_cell("plot()", outputs=[text, figure]),
        new_markdown_cell("## Exercise 1: a task\n\nWrite it."),
        new_markdown_cell("<details>a hint</details>", metadata={"tags": ["hints"]}),
        new_markdown_cell("## Left out\n\nNo figure follows.\n\n## Summary\n\n- Short.\n\n## Questions\n\n1. Why?"),
    ]
    (tmp_path / "report").mkdir()
    nbformat.write(new_notebook(cells=cells), tmp_path / "report" / "06_grpo.ipynb")
    build_slides.main([str(tmp_path)])
    page = (tmp_path / "report" / "slides.html").read_text(encoding="utf-8")
    slides = page.split("<section>")[1:]
    assert [slide.count("<img") for slide in slides] == [0, 1, 0, 0, 0]
    for slide, words in zip(slides, ("You will learn", "decides", "Write it", "Short", "Why?"), strict=True):
        assert words in slide
    assert "<mfrac>" in slides[1] and "base64,iVBORw0KGgo=" in slides[1]
    for absent in ("secret output", "a hint", "all notebooks", "Left out", "<script", "http://", "https://"):
        assert absent not in page.replace("http://www.w3.org", ""), absent


def test_a_folder_without_executed_notebooks_is_an_error(tmp_path):
    with pytest.raises(WorkshopError, match="run_notebooks.py --output-dir"):
        build_slides.main([str(tmp_path)])
