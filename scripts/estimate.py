"""Print how much memory and time runs will take, without starting them: an estimate, see lab_utils/machine/memory.py.

    python scripts/estimate.py                                             every recipe on every GPU tier, as a table
    python scripts/estimate.py --recipe gsm8k-grpo --hardware a10g         one run, part by part
    python scripts/estimate.py --recipe gsm8k-grpo --hardware a10g --set model.name=Qwen/Qwen2.5-1.5B-Instruct
    python scripts/estimate.py --recipe gsm8k-grpo --hardware a10g --step-seconds 9.5      hours, from a step you timed
"""

from __future__ import annotations

import argparse
import sys

from lab_utils import config as configuration
from lab_utils.config import ConfigError, load, load_tier
from lab_utils.machine import memory as estimate
from lab_utils.models import ModelLoadError


def table() -> str:
    """Peak GB and hours of every recipe on every GPU tier, as Markdown; what is planned with is the tier's memory."""
    tiers = [load_tier(name) for name in configuration.hardware_names()]
    tiers = sorted((tier for tier in tiers if tier.gpus), key=lambda tier: (tier.memory_gb, tier.gpus))
    lines = ["| recipe | stage | " + " | ".join(f"{tier.name} ({tier.memory_gb:g} GB)" for tier in tiers) + " |",
             "|---|---|" + "---|" * len(tiers)]
    for recipe in configuration.recipe_names():
        for stage in load(recipe, tiers[0].name).stages:
            cells = []
            for tier in tiers:
                config = load(recipe, tier.name)
                time = estimate.spoken(estimate.hours(config, stage))
                cells.append(f"{estimate.memory(config, stage).peak:.1f} GB, {time}")
            lines.append(f"| {recipe} | {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def details(config: configuration.RunConfig, step_seconds: float | None) -> str:
    """The parts of every stage's memory by phase, in GB, and its time."""
    lines = [f"{config.recipe} on {config.hardware}, {config.model.name}"]
    for stage in config.stages:
        needed = estimate.memory(config, stage)
        for phase, parts in needed.phases.items():
            total = sum(parts.values())
            lines.append(f"\n{stage}, {phase}: {total:.1f} of {load_tier(config.hardware).memory_gb:g} GB")
            lines += [f"  {name:22} {size:7.2f}" for name, size in sorted(parts.items(), key=lambda part: -part[1])]
        hours = estimate.hours(config, stage, step_seconds)
        if hours is not None:
            seconds = step_seconds or estimate.step_seconds(config, stage)
            roughly = "" if step_seconds else "roughly "
            lines.append(f"{stage}: {estimate.optimizer_steps(config, stage):,} steps of {roughly}{seconds:.1f} s: "
                         f"{estimate.spoken(hours)}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--recipe", help="one run; without it, the table of all")
    parser.add_argument("--hardware", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings")
    parser.add_argument("--step-seconds", type=float, help="seconds of an optimiser step, where you have timed one")
    arguments = parser.parse_args(argv)
    try:
        if arguments.recipe is None:
            print(table())
            return 0
        config = load(arguments.recipe, arguments.hardware, arguments.settings)
        print(details(config, arguments.step_seconds), flush=True)
        estimate.check_memory(config)
    except (ConfigError, ModelLoadError) as error:
        print(f"estimate.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
