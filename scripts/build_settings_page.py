"""Write SETTINGS.md: every key of a run with its meaning, what more and less of it do, its default and its source.

    python scripts/build_settings_page.py            # after a change of the schema or of scripts/settings.yaml
    python scripts/build_settings_page.py --check    # fail if the page is not the one that would be written

Keys and defaults come from the schema. A key without a text here, or a text without a key, is an error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lab_utils import REPOSITORY, WorkshopError, exit_status
from lab_utils.config import schema

PAGE = REPOSITORY / "SETTINGS.md"
TEXTS = yaml.safe_load((REPOSITORY / "scripts" / "settings.yaml").read_text(encoding="utf-8"))
HEAD = """\
# Every setting

Written by `python scripts/build_settings_page.py`. Change a setting with `--set KEY=VALUE`. The defaults are those of
`lab_utils/config/schema.py`; recipes and tiers set others, and the `config.yaml` of a run has what it used. In the last
column, `TRL` has the setting under this name, and `workshop` marks our own.
"""
SECTIONS = {"": schema.RunConfig, "task": schema.TaskSettings, "model": schema.ModelSettings,
            "model.lora": schema.LoraSettings, "sft": schema.SFTSettings, "grpo": schema.GRPOSettings,
            "ppo": schema.PPOSettings, "evaluation": schema.EvaluationSettings, "tracking": schema.TrackingSettings}
STAGES = ("sft", "grpo", "ppo")
SET_BY_LOAD = {"recipe", "hardware", "hardware_reason"}

def keys() -> Iterator[tuple[str, str, str]]:
    """Yield section, key and default of every setting that a user can set; the stages share their texts."""
    for section, kind in SECTIONS.items():
        for name, field in kind.model_fields.items():
            key = f"{section}.{name}".lstrip(".")
            if key not in SET_BY_LOAD and (key not in SECTIONS or key == "model.lora"):
                yield section, name, "(required)" if field.is_required() else in_yaml(field.default)


def text_name(section: str, name: str) -> str:
    """Return the key in settings.yaml: the full one, or the name alone if a stage has it too."""
    full = f"{section}.{name}".lstrip(".")
    return full if full in TEXTS and section not in STAGES else name


def in_yaml(default: Any) -> str:
    text = yaml.safe_dump(default, default_flow_style=True).removesuffix("...\n").strip()
    return f"`{text}`"


def page() -> str:
    """Return the page; raise WorkshopError if keys and texts do not agree."""
    found = list(keys())
    used = {text_name(section, name) for section, name, _ in found}
    if missing := sorted(used ^ TEXTS.keys()):
        raise WorkshopError(f"Keys without a text, or texts without a key: {', '.join(missing)}. Correct "
                            "scripts/settings.yaml.")
    lines = [HEAD]
    for section in SECTIONS:
        rows = [(name, default) for place, name, default in found if place == section]
        lines += [f"## {section or 'A run'}", "", "| key | meaning | more, or on | less, or off | default | from |",
                  "|---|---|---|---|---|---|"]
        for name, default in rows:
            text = TEXTS[text_name(section, name)]
            cells = [text["meaning"], text.get("more", ""), text.get("less", ""), default, text["from"]]
            lines.append(f"| `{f'{section}.{name}'.lstrip('.')}` | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is not up to date")
    arguments = parser.parse_args(argv)
    text = page()
    if arguments.check:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            raise WorkshopError(f"{Path(PAGE).name} is not up to date: run python scripts/build_settings_page.py.")
    else:
        PAGE.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    sys.exit(exit_status(main))
