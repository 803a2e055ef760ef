"""What a job costs: the prices of instances.yaml by instance and region, an estimated duration, and the ceiling."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..config import ConfigError
from .session import SageMakerError

INSTANCES = Path(__file__).with_name("instances.yaml")


@functools.cache
def known() -> dict[str, Any]:
    """Return the content of instances.yaml."""
    return yaml.safe_load(INSTANCES.read_text(encoding="utf-8"))


def default_instance(hardware: str) -> str:
    """Return the instance type for a tier; raise SageMakerError for a tier without one."""
    if hardware not in known()["default_instance"]:
        raise SageMakerError(f"The tier {hardware!r} has no default instance type, because SageMaker rents H200 GPUs "
                             "only by eight: choose --hardware a100, or pass an --instance-type.")
    return known()["default_instance"][hardware]


@dataclass(frozen=True)
class Price:
    """USD per instance hour on demand, with its source."""

    usd: float
    source: str


def price(instance_type: str, region: str) -> Price | None:
    """Return the price of an instance hour, or None if it is not known."""
    found = known()["instances"].get(instance_type, {}).get("usd", {}).get(region)
    return Price(found[0], known()["sources"][found[1]]) if found else None


@dataclass(frozen=True)
class Cost:
    """The cost of a job in USD. An unknown price or duration is None."""

    price: Price | None
    hours: tuple[float, float] | None  # shortest and longest expected
    estimated: bool  # calculated, not from a timed run
    ceiling_hours: float
    spot: bool
    where: str  # "ml.g5.2xlarge in us-east-1"

    @property
    def ceiling(self) -> float | None:
        """Return the cost of a job that runs until SageMaker stops it."""
        return self.price and self.price.usd * self.ceiling_hours

    def __str__(self) -> str:
        if self.price is None:
            return (f"Cost: the price of {self.where} is unknown, for at most {self.ceiling_hours:g} hours: "
                    "look it up at aws.amazon.com/sagemaker/pricing")
        lines = [f"Cost: {self.where}, {self.price.usd:g} USD an hour ({self.price.source})"]
        if self.hours:
            least, most = (hours * self.price.usd for hours in self.hours)
            lines.append(f"  expected  {self.hours[0]:g} to {self.hours[1]:g} hours, {least:.2f} to {most:.2f} USD"
                         + (", an estimate: this job has not been timed" if self.estimated else ""))
        else:
            lines.append("  expected  unknown")
        lines.append(f"  ceiling   {self.ceiling_hours:g} hours, {self.ceiling:.2f} USD; SageMaker stops the job then")
        if self.spot:
            lines.append("  spot      up to 90% cheaper, depending on demand; the sums above are without this discount")
        return "\n".join(lines)


def cost_of(job: Any) -> Cost:
    """Return the cost of a TrainingJob or EvaluationJob."""
    hours = known()["hours"]
    found = None
    if not any(getattr(job, name, None) for name in ("stages", "limit", "overrides")):  # those change the duration
        found = hours["any"].get(job.hardware) or hours.get(job.recipe_name, {}).get(job.hardware)
    estimate = None if found else estimated_hours(job)
    return Cost(
        price=price(job.instance, job.region),
        hours=tuple(found) if found else estimate,
        estimated=estimate is not None,
        ceiling_hours=job.max_run_hours,
        spot=getattr(job, "spot", False),
        where=f"{job.instance} in {job.region}",
    )


def estimated_hours(job: Any) -> tuple[float, float] | None:
    """Return the range of hours of a training job by machine/memory.py, with a quarter of an hour to start; None for
    evaluations, for a --limit, and if the machine or the model is unknown to it."""
    if not hasattr(job, "stages") or job.limit:
        return None
    from ..machine.memory import hours  # takes seconds to import
    from ..models import ModelLoadError

    try:
        config = job.config()
        stages = [hours(config, stage) for stage in config.stages]
    except (ConfigError, ModelLoadError):  # the preflight says what is wrong
        return None
    if None in stages:
        return None
    return round(0.25 + sum(low for low, _ in stages), 1), round(0.25 + sum(high for _, high in stages), 1)


def table(region: str) -> str:
    """Return the prices of a region as text."""
    rows = [f"USD per instance hour in {region}, on demand"]
    for name, facts in known()["instances"].items():
        gpus = f"{facts['gpus']} × {facts['memory_gb']} GB GPU" if facts["gpus"] else f"{facts['memory_gb']} GB, no GPU"
        tiers = ", ".join(tier for tier, instance in known()["default_instance"].items() if instance == name)
        found = price(name, region)
        usd = f"{found.usd:8.3f}  {found.source}" if found else "       ?  unknown"
        rows.append(f"{name:18} {gpus:16} {tiers:12} {usd}")
    return "\n".join(rows)
