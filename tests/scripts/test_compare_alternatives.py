"""scripts/compare_alternatives.py: notebook 14 once per seed, and what happens if it fails."""

import json
from pathlib import Path

import compare_alternatives
import pytest

from lab_utils import WorkshopError

ROW = {"low": 0.2, "high": 0.4, "in_format": 0.3, "lenient": 0.3, "format": 1.0, "truncated": 0.0, "pass@8": 0.8,
       "tokens": 30.0, "attempts": 1.3, "tokens, training": 0, "tokens, answer": 30.0, "seconds": 0.0,
       "difference": 0.1, "difference_low": 0.0, "difference_high": 0.2, "p_value": 0.1}


@pytest.fixture
def executed(monkeypatch):
    """Replace the execution of the notebook: its results depend on the seed, and seed 9 fails."""
    def execute(notebook, copy, parameters):
        seed, folder = parameters["SEED"], Path(parameters["OUTPUT_DIR"]) / "countdown"
        folder.mkdir()
        rows = [{"model": "SFT", "accuracy": 0.3, **ROW}, {"model": "DPO", "accuracy": 0.4 + seed / 10, **ROW}]
        (folder / "what_else.json").write_text(json.dumps({"seed": seed, "questions": 4, "rows": rows}))
        return "cell [3]: no" if seed == 9 else None

    monkeypatch.setattr(compare_alternatives, "execute", execute)


def test_every_seed_has_its_folder_and_all_are_recorded(executed, tmp_path, capsys):
    compare_alternatives.main(["--seeds", "0", "2", "--output-dir", str(tmp_path)])
    recorded = json.loads((tmp_path / "what_else.json").read_text())
    assert [one["seed"] for one in recorded] == [0, 2]
    assert (tmp_path / "seed-2" / "countdown").is_dir()
    mean = next(line for line in capsys.readouterr().out.split("Mean over 2")[1].splitlines() if "DPO" in line)
    assert mean.split()[1] == "0.5"


def test_a_notebook_that_fails_is_named(executed, tmp_path):
    with pytest.raises(WorkshopError, match=r"Seed 9 failed.*14_what_else\.ipynb"):
        compare_alternatives.main(["--seeds", "9", "--output-dir", str(tmp_path)])
