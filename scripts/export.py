"""Export a trained model for others: one folder with weights and a model card, a zip file of it, the Hugging Face Hub.

    python scripts/export.py outputs/countdown-grpo/grpo --output-dir shared/my-model
    python scripts/export.py outputs/countdown-grpo/grpo --output-dir shared/it --zip --push-to me/it --dry-run

A LoRA adapter is merged into its base model. The Hub's token comes from HF_TOKEN or `hf auth login` and is never shown;
--dry-run lists what would be uploaded. The exit status is 2, with one message, where something that you gave cannot
work.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lab_utils.config import ConfigError
from lab_utils.models import ModelLoadError
from lab_utils.runs import RunDirectory, RunDirectoryError
from lab_utils.sharing.export import ExportError, describe, export_run, push_to_hub, zip_folder


def run(arguments: list[str] | None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("run", type=Path, help="the run directory of a trained model")
    parser.add_argument("--output-dir", type=Path, required=True, help="the folder to write, new or empty")
    parser.add_argument("--zip", action="store_true", help="also write OUTPUT_DIR.zip")
    parser.add_argument("--push-to", metavar="NAME/MODEL", help="also upload it to this repository of the Hub")
    parser.add_argument("--public", action="store_true", help="make the repository public; private by default")
    parser.add_argument("--dry-run", action="store_true", help="with --push-to: say what would be uploaded, no more")
    options = parser.parse_args(arguments)
    if options.dry_run and not options.push_to:
        parser.error("--dry-run says what --push-to would upload: give --push-to NAME/MODEL")

    folder = export_run(RunDirectory(options.run), options.output_dir)
    print(f"{folder}:")
    for file in describe(folder):
        print(f"  {file['file']:<28}{file['kB']:>12,.1f} kB   {file['what it is for']}")
    if options.zip:
        archive = zip_folder(folder)
        print(f"{archive}: {archive.stat().st_size / 1e3:,.1f} kB")
    if options.push_to:
        print(push_to_hub(folder, options.push_to, private=not options.public, dry_run=options.dry_run))


def main(arguments: list[str] | None = None) -> int:
    try:
        run(arguments)
    except (ConfigError, ExportError, ModelLoadError, RunDirectoryError) as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
