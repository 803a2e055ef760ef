"""The capstone: score the teams' models on hidden problems, and rank them on a page.

    python scripts/capstone.py score ada=runs/ada/grpo bo=runs/bo/grpo --secret "a few words" --output-dir runs/capstone
    python scripts/capstone.py page runs/capstone

The secret words generate the hidden problems, so that no file holds them before. Publish the words afterwards: the same
command then gives the same scores to everyone. `page` reads FOLDER/NAME/results.json, which `score` writes. It also
ranks what notebook 13 has written, with `--method GRPO`. The rules are in notebooks/INSTRUCTOR.md.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import sys
from pathlib import Path
from typing import Any

import jinja2

from lab_utils import WorkshopError, exit_status
from lab_utils.config import load
from lab_utils.runs import RunDirectory, RunDirectoryError, write_atomically
from lab_utils.tasks import Task, load_task, visible
from lab_utils.tasks.base import SYNTHETIC_ROWS

METHOD = "capstone"  # the entry in results.json that `score` writes
MOST_BYTES = 1_000_000  # of a results.json
COLUMNS = ("generated tokens", "attempts", "questions × samples")
PAGE = jinja2.Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Leaderboard</title><style>
:root { color-scheme: light dark; }
body { font: 18px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; } td { overflow-wrap: anywhere; }
th, td { text-align: left; padding: .4rem 1rem .4rem 0; border-bottom: 1px solid #8886; }
.line { position: relative; width: 16rem; height: 1rem; background: #8882; }
.line i { position: absolute; top: .4rem; height: .2rem; background: #1f77b4; }
.line b { position: absolute; top: .1rem; width: .8rem; height: .8rem; margin-left: -.4rem; border-radius: 50%;
          background: #1f77b4; }
</style></head><body>
<h1>Leaderboard</h1>
<p>Accuracy on the same problems. The line is the 95% interval from 0 to 100%. A rank such as 1–3 means that the
intervals overlap: other problems could change the order.</p>
<table><tr><th>rank</th><th>name</th><th>accuracy</th><th>95% interval</th><th></th>
{%- for column in columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in rows %}<tr><td>{{ row.rank }}</td><td>{{ row.name }}</td><td>{{ "%.1f%%" | format(100 * row.accuracy) }}
</td><td>{{ "%.1f to %.1f%%" | format(100 * row.low, 100 * row.high) }}</td>
<td><div class="line"><i style="left:{{ 100 * row.low }}%;width:{{ 100 * (row.high - row.low) }}%"></i>
<b style="left:{{ 100 * row.accuracy }}%"></b></div></td>
{%- for column in columns %}<td>{{ row.others[column] }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% if problems %}<h2>Left out</h2><ul>{% for problem in problems %}<li>{{ problem }}</li>{% endfor %}</ul>{% endif %}
</body></html>
""", autoescape=True)


def hidden_rows(task: Task, secret: str, wanted: int) -> list[dict[str, Any]]:
    """Return different problems that depend on the secret, none of which is in the public training or test split."""
    public, rng = set(), random.Random(f"{task.name} test")
    while len(public) < SYNTHETIC_ROWS["test"]:
        public.add(task.generate("test", rng)[0])
    rows, rng = {}, random.Random(f"{task.name} {secret}")
    while len(rows) < wanted:
        key, row = task.generate("test", rng)
        if key not in public:
            rows.setdefault(key, row)
    return list(rows.values())


def score(arguments: argparse.Namespace) -> None:
    from measure_learning import generated_tokens  # these take seconds to import

    from lab_utils.evaluation import evaluate_run

    runs = {}
    for entry in arguments.runs:
        name, _, path = entry.partition("=")
        if not re.fullmatch(r"[\w-]{1,40}", name) or not path or name in runs:
            raise WorkshopError(f"{entry!r} is not NAME=RUN: give each team its own name of letters and digits and the "
                                "folder of its run, such as ada=runs/ada/grpo.")
        runs[name] = RunDirectory(path)
        if not runs[name].has_model:
            raise RunDirectoryError(f"{path} has no trained model ({runs[name].model_problem}): give the folder of one "
                                    "finished stage, such as runs/ada/grpo.")
    hidden = arguments.output_dir / "hidden.jsonl"
    task = load_task(load(arguments.recipe, arguments.hardware).task.name)
    rows = hidden_rows(task, arguments.secret, arguments.problems)
    write_atomically(hidden, "".join(json.dumps(row) + "\n" for row in rows))
    # Not the configuration of the team's run: everyone is asked in the same way.
    config = load(arguments.recipe, arguments.hardware, {
        "task.source": str(hidden), "task.test_limit": arguments.problems,
        "evaluation.num_samples": arguments.samples})
    for name, run in runs.items():
        sampled = "completions/mean_length" in run.metrics()  # supervised training generates nothing
        tokens = round(generated_tokens(run).iloc[-1]) if sampled else 0
        if tokens > arguments.tokens:
            print(f"{name}: {tokens:,} generated tokens, more than {arguments.tokens:,}: not scored.")
            continue
        evaluation = evaluate_run(run.model_dir, config)
        print(f"{name}: {tokens:,} generated tokens, {evaluation}")
        result = {"accuracy": evaluation.accuracy, "interval": list(evaluation.accuracy_interval),
                  "generated tokens": f"{tokens:,}", "attempts": f"{evaluation.mean_attempts:.2f}",
                  "questions × samples": f"{len(evaluation.examples)} × {evaluation.num_samples}"}
        write_atomically(arguments.output_dir / name / "results.json", json.dumps({METHOD: result}, indent=1) + "\n")


def read_result(path: Path, method: str) -> dict[str, Any]:
    """Return one line of the page; raise WorkshopError if results.json has no such method, or no interval."""
    name = visible(path.parent.name)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError
        table = json.loads(path.read_text(encoding="utf-8"))
        found = table[method]
        numbers = [found["accuracy"], *found["interval"]]
        accuracy, low, high = numbers
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers) or not (
                0 <= low <= accuracy <= high <= 1):
            raise ValueError
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise WorkshopError(f"{name}: results.json needs {method!r} with an accuracy and a 95% interval around it, "
                            "all from 0 to 1: run notebook 13, or score the run, again.") from None
    others = {column: visible(str(found.get(column, "")))[:40] for column in COLUMNS}
    return {"name": name[:40], "accuracy": accuracy, "low": low, "high": high, "others": others}


def write_page(folder: Path, method: str) -> Path:
    """Write FOLDER/leaderboard.html, one file that needs no network; name on it what could not be ranked."""
    rows, problems = [], []
    for path in sorted(folder.glob("*/results.json")):
        try:
            rows.append(read_result(path, method))
        except WorkshopError as error:
            problems.append(str(error))
            print(f"left out: {error}", file=sys.stderr)
    if not rows:
        raise WorkshopError(f"{folder} has no NAME/results.json with {method!r}: collect one folder per learner, or "
                            "name another entry with --method.")
    rows.sort(key=lambda row: -row["accuracy"])
    for row in rows:
        best = 1 + sum(other["low"] > row["high"] for other in rows)
        worst = len(rows) - sum(other["high"] < row["low"] for other in rows)
        row["rank"] = f"{best}" if best == worst else f"{best}–{worst}"
    shown = [column for column in COLUMNS if any(row["others"][column] for row in rows)]
    write_atomically(folder / "leaderboard.html", PAGE.render(rows=rows, columns=shown, problems=problems))
    return folder / "leaderboard.html"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    scoring = commands.add_parser("score", help="evaluate models on the hidden problems")
    scoring.add_argument("runs", nargs="+", metavar="NAME=RUN", help="a team's name and the folder of its run")
    scoring.add_argument("--secret", required=True, help="words from which the problems are generated")
    scoring.add_argument("--recipe", default="countdown-grpo")
    scoring.add_argument("--hardware", default="cpu")
    scoring.add_argument("--problems", type=int, default=200)
    scoring.add_argument("--samples", type=int, default=8)
    scoring.add_argument("--tokens", type=int, default=60_000, help="the most that a run may have generated")
    scoring.add_argument("--output-dir", type=Path, default=Path("runs/capstone"))
    page = commands.add_parser("page", help="write the leaderboard")
    page.add_argument("folder", type=Path, help="holds NAME/results.json")
    page.add_argument("--method", default=METHOD, help="the entry of results.json (default: capstone)")
    arguments = parser.parse_args(argv)
    if arguments.command == "score":
        score(arguments)
    else:
        print(f"Leaderboard: {write_page(arguments.folder, arguments.method)}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
