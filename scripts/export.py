"""Export a trained model for others: a folder with weights and a model card, a zip file of it, the Hugging Face Hub.

    python scripts/export.py outputs/countdown-grpo/grpo --output-dir shared/my-model
    python scripts/export.py outputs/countdown-grpo/grpo --output-dir shared/it --zip --push-to me/it --dry-run
    python scripts/export.py path/to/adapter --recipe gsm8k-grpo --output-dir shared/merged    # no run: no model card

A LoRA adapter is merged into its base model. The Hub's token comes from HF_TOKEN or `hf auth login` and is never shown.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lab_utils import exit_status
from lab_utils.runs import RunDirectory, config_of
from lab_utils.sharing.export import describe, export_run, push_to_hub, write_folder, zip_folder


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("run", help="the run directory of a trained model; or, with --recipe, a model folder, an "
                        "adapter or a Hub id")
    parser.add_argument("--recipe", help="for a model without a run directory: its settings, such as dtype")
    parser.add_argument("--hardware", default="auto", help="with --recipe: the hardware tier; default: auto")
    parser.add_argument("--output-dir", type=Path, required=True, help="the folder to write, new or empty")
    parser.add_argument("--zip", action="store_true", help="also write OUTPUT_DIR.zip")
    parser.add_argument("--push-to", metavar="NAME/MODEL", help="also upload it to this repository of the Hub")
    parser.add_argument("--public", action="store_true", help="make the repository public; default: private")
    parser.add_argument("--dry-run", action="store_true", help="with --push-to: only list what would be uploaded")
    options = parser.parse_args(argv)
    if options.dry_run and not options.push_to:
        parser.error("--dry-run needs --push-to: add --push-to NAME/MODEL")

    if options.recipe:
        settings = config_of(options.run, options.recipe, options.hardware).model
        folder = write_folder(options.run, settings, options.output_dir)
    else:
        folder = export_run(RunDirectory(options.run), options.output_dir)
    print(f"{folder}:")
    for file in describe(folder):
        print(f"  {file['file']:<28}{file['kB']:>12,.1f} kB   {file['what it is for']}")
    if options.zip:
        archive = zip_folder(folder)
        print(f"{archive}: {archive.stat().st_size / 1e3:,.1f} kB")
    if options.push_to:
        print(push_to_hub(folder, options.push_to, private=not options.public, dry_run=options.dry_run))


if __name__ == "__main__":
    sys.exit(exit_status(main))
