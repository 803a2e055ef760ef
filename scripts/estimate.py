"""Print how much memory and time runs take, without starting them; lab_utils/machine/memory.py has the assumptions.

    python scripts/estimate.py                                          every recipe on every GPU tier, as a table
    python scripts/estimate.py --recipe gsm8k-grpo --hardware a10g      one run, with the parts that are exact
    python scripts/estimate.py --recipe gsm8k-grpo --hardware a10g --set model.name=Qwen/Qwen2.5-1.5B-Instruct
    python scripts/estimate.py --recipe gsm8k-grpo --hardware a10g --step-seconds 9.5      hours, from a step you timed
"""

from __future__ import annotations

import argparse
import sys

from lab_utils import exit_status
from lab_utils.config import hardware_names, load, load_tier, recipe_names
from lab_utils.machine import memory

WITHOUT_VLLM = {"grpo.use_vllm": False, "ppo.use_vllm": False, "evaluation.use_vllm": False}  # as on Colab


def table() -> str:
    """Return the ranges of GB and hours of every recipe on every GPU tier, and on Colab's A100, as Markdown."""
    tiers = [tier for tier in map(load_tier, hardware_names()) if tier.gpus]
    tiers.sort(key=lambda tier: (tier.memory_gb, tier.gpus))
    rows = [["recipe", "stage", *(f"{tier.name} ({tier.memory_gb:g} GB)" for tier in tiers), "Colab's A100 (40 GB)"],
            ["---"] * (3 + len(tiers))]
    for recipe in recipe_names():
        configs = [*(load(recipe, tier.name) for tier in tiers), load(recipe, "a100", WITHOUT_VLLM)]
        rows += [[recipe, stage, *(memory.in_words(config, stage) for config in configs)]
                 for stage in configs[0].stages]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--recipe", help="one recipe; default: a table of all")
    parser.add_argument("--hardware", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings")
    parser.add_argument("--step-seconds", type=float, help="seconds of an optimizer step, if you timed one")
    arguments = parser.parse_args(argv)
    if arguments.recipe is None:
        print(table())
        return
    config = load(arguments.recipe, arguments.hardware, arguments.settings)
    print(f"{config.recipe} with {config.model.name} on {config.hardware}\n{memory.describe(config)}", flush=True)
    for stage in config.stages if arguments.step_seconds else ():
        steps = memory.optimizer_steps(config, stage)
        hours = steps * arguments.step_seconds / 3600
        print(f"{stage}: {steps:,} steps of {arguments.step_seconds:g} s: {hours:.1f} h")
    memory.check_memory(config)


if __name__ == "__main__":
    sys.exit(exit_status(main))
