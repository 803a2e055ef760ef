"""The completions browser: an HTML page with what a model wrote while it was trained, to open alone or in a notebook.

The page holds its data and its program, and loads nothing. What models write is data: it is stored as JSON in which no
character ends a tag, the program puts it on the page as text, and the browser runs no other script in it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ..runs import RunDirectory, RunDirectoryError, write_atomically
from ..tasks import visible

TEMPLATE = Path(__file__).with_name("completions.html")
INLINE_STEPS = 8
NEEDED = ("step", "question", "gold", "completion", "extracted", "correct", "reward")
OPTIONAL = ("rewards", "advantage", "tokens")  # runs of earlier versions do not have them


class CompletionsPage:
    """A page that a notebook shows in a frame."""

    def __init__(self, page: str):
        self.page = page

    def __repr__(self) -> str:
        return f"<completions browser, {len(self.page) / 1000:.0f} kB; a notebook shows it>"

    def _repr_html_(self) -> str:
        return (
            '<style>[data-jp-theme-light="false"] .completions-browser { color-scheme: dark; }</style>'
            '<iframe class="completions-browser" title="Completions browser" sandbox="allow-scripts" '
            'style="width: 100%; box-sizing: border-box; height: 680px; border: 1px solid #888" '
            f'srcdoc="{html.escape(self.page)}"></iframe>'
        )


def browse_completions(run: RunDirectory, path: str | Path | None = None) -> CompletionsPage:
    """Return the completions that a run recorded, to look at in a notebook: a group at a time, with a slider for steps.

    Tokens are colored by what the run recorded for them: the critic's value, the advantage, or how much the updates on
    their rollout changed their log-probability.

    Args:
        path: write the page with all recorded steps to this file, too. The notebook's has at most `INLINE_STEPS`, among
            them the first and the last.

    Raises:
        RunDirectoryError: the run has no completions, or they are damaged.
    """
    frame = run.completions()
    if missing := [name for name in NEEDED if name not in frame]:
        raise RunDirectoryError(f"{run.completions_path} has no completion with {missing[0]!r}: give a run directory "
                                "that GRPO or PPO has trained.")
    steps = [_step(step, rows.to_dict("records")) for step, rows in frame.groupby("step")]
    shown = sorted(set(np.linspace(0, len(steps) - 1, INLINE_STEPS).round().astype(int)))
    if path is not None:
        write_atomically(Path(path), _page(run, steps))
    return CompletionsPage(_page(run, [steps[i] for i in shown]))


def _step(step: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the groups of a step: rows that follow each other with the same question."""
    groups = [
        {"question": question, "gold": gold,
         "rows": [{name: row.get(name) for name in NEEDED[3:] + OPTIONAL} for row in group]}
        for (question, gold), group in groupby(rows, key=lambda row: (row["question"], row["gold"]))
    ]
    return {"step": int(step), "groups": groups}


def _page(run: RunDirectory, steps: list[dict[str, Any]]) -> str:
    config = run.config()
    about = {"run": run.path.name, "recipe": config.recipe, "tier": config.hardware, "model": config.model.name,
             "weights": config.rewards, "steps": steps}
    template = TEMPLATE.read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template.replace("SCRIPT_DIGEST", digest).replace("COMPLETIONS_DATA", _json(about))


def _json(value: Any) -> str:
    """Return JSON for a script element: no character of it can end the element, and none is invisible."""
    finite = json.loads(json.dumps(value), parse_constant=lambda name: None)  # JSON has no NaN
    text = json.dumps(_shown(finite), separators=(",", ":"))  # ASCII: other characters are escaped
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _shown(value: Any) -> Any:
    """Return a JSON value whose texts show their control characters and bidirectional marks."""
    if isinstance(value, dict):
        return {visible(key): _shown(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shown(item) for item in value]
    return visible(value) if isinstance(value, str) else value
