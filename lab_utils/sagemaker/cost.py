"""What a job costs: prices by instance and region, an estimated duration, and the ceiling.

instances.yaml ships with the workshop and dates each price. `refresh` asks AWS's price list and writes the answer to a
cache on this machine, which then takes precedence.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..config import ConfigError
from .session import SageMakerError

INSTANCES = Path(__file__).with_name("instances.yaml")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "rl-workshop" / "sagemaker-prices.yaml"


@functools.cache
def known() -> dict[str, Any]:
    """Return the content of instances.yaml."""
    return yaml.safe_load(INSTANCES.read_text(encoding="utf-8"))


def default_instance(hardware: str) -> str:
    """Return the instance type for a tier; raise SageMakerError for a tier without one."""
    if hardware not in known()["default_instance"]:
        raise SageMakerError(f"The tier {hardware!r} has no default instance type, because SageMaker rents H200 GPUs "
                             "only by eight: choose --hardware a100, or name an --instance-type.")
    return known()["default_instance"][hardware]


@dataclass(frozen=True)
class Price:
    """USD per instance hour on demand, with its source."""

    usd: float
    source: str


def price(instance_type: str, region: str) -> Price | None:
    """Return the price of an instance hour, or None if it is not known."""
    cached = _cached()
    if instance_type in cached["usd"].get(region, {}):
        return Price(cached["usd"][region][instance_type], f"AWS's price list, {cached['captured'][region]}")
    found = known()["instances"].get(instance_type, {}).get("usd", {}).get(region)
    return Price(found[0], known()["sources"][found[1]]) if found else None


def _cached() -> dict[str, Any]:
    if not CACHE.is_file():
        return {"captured": {}, "usd": {}}
    return yaml.safe_load(CACHE.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Cost:
    """The cost of a job in USD. An unknown price or duration is None."""

    price: Price | None
    hours: tuple[float, float] | None  # shortest and longest expected
    estimated: bool  # calculated, not from a timed run
    max_run_hours: float  # SageMaker then stops the job
    keep_alive_hours: float
    spot: bool
    instances: int
    where: str  # "2 × ml.g5.2xlarge in us-east-1"

    @property
    def hourly(self) -> float | None:
        """Return the cost of an hour on all machines."""
        return self.price and self.instances * self.price.usd

    @property
    def ceiling_hours(self) -> float:
        return self.max_run_hours + self.keep_alive_hours

    @property
    def ceiling(self) -> float | None:
        """Return the cost of a job that runs until SageMaker stops it, with its whole time in the warm pool."""
        return self.hourly and self.hourly * self.ceiling_hours

    def __str__(self) -> str:
        if self.price is None:
            return (f"Cost: the price of {self.where} is unknown, for at most {self.ceiling_hours:g} hours: run "
                    "launch_sagemaker.py cost --refresh to ask AWS for it.")
        lines = [f"Cost: {self.where}, {self.hourly:g} USD an hour ({self.price.source})"]
        if self.hours:
            least, most = (hours * self.hourly for hours in self.hours)
            lines.append(f"  expected  {self.hours[0]:g} to {self.hours[1]:g} hours, {least:.2f} to {most:.2f} USD"
                         + (", an estimate: this job has not been timed" if self.estimated else ""))
        else:
            lines.append("  expected  unknown")
        lines.append(f"  ceiling   {self.ceiling_hours:g} hours, {self.ceiling:.2f} USD; SageMaker stops the job then")
        if self.hours and self.hours[1] > self.max_run_hours:
            lines.append(f"  too low   a limit of {self.max_run_hours:g} h may stop the job unfinished, at full price: "
                         f"pass --max-run-hours {math.ceil(self.hours[1])}")
        if self.spot:
            lines.append("  spot      up to 90% cheaper, depending on demand; the sums above are without this discount")
        return "\n".join(lines)


def cost_of(job: Any) -> Cost:
    """Return the cost of a TrainingJob or EvaluationJob."""
    found, count = None, f"{job.instances} × " if job.instances > 1 else ""
    changed = any(getattr(job, name, None) for name in ("stages", "limit", "overrides"))  # those change the duration
    if not changed and job.instances == 1:
        found = known()["hours"].get(job.hardware)
    estimate = None if found else estimated_hours(job)
    return Cost(
        price=price(job.instance, job.region),
        hours=tuple(found) if found else estimate,
        estimated=estimate is not None,
        max_run_hours=job.max_run_hours,
        keep_alive_hours=getattr(job, "keep_alive_minutes", 0) / 60,
        spot=getattr(job, "spot", False),
        instances=job.instances,
        where=f"{count}{job.instance} in {job.region}",
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
        with job.processes_counted():
            stages = [hours(config, stage) for stage in config.stages]
    except (ConfigError, ModelLoadError):  # the preflight says what is wrong
        return None
    if None in stages:
        return None
    return round(0.25 + sum(low for low, _ in stages), 1), round(0.25 + sum(high for _, high in stages), 1)


def refresh(region: str, boto_session: Any) -> dict[str, float]:
    """Ask AWS's price list for the training prices of the known instances in a region, and write them to the cache."""
    client = boto_session.client("pricing", region_name="us-east-1")  # few regions serve the price list
    found = {}
    for instance_type in known()["instances"]:
        filters = {"regionCode": region, "instanceName": instance_type, "component": "Training"}
        answer = client.get_products(ServiceCode="AmazonSageMaker", FormatVersion="aws_v1", Filters=[
            {"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in filters.items()])
        for product in map(json.loads, answer["PriceList"]):
            for term in product["terms"].get("OnDemand", {}).values():
                for dimension in term["priceDimensions"].values():
                    if dimension["unit"].startswith("Hr") and float(dimension["pricePerUnit"]["USD"]):
                        found[instance_type] = float(dimension["pricePerUnit"]["USD"])
    if not found:
        raise SageMakerError(f"AWS's price list has no training prices for the region {region}: check --region. The "
                             "prices that ship with the workshop stay in use.")
    cached = _cached()
    cached["captured"][region], cached["usd"][region] = datetime.date.today().isoformat(), found
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    CACHE.write_text(yaml.safe_dump(cached), encoding="utf-8")
    return found


def table(region: str) -> str:
    """Return the prices of a region as text."""
    rows = [f"USD per instance hour in {region}, on demand"]
    for name, facts in known()["instances"].items():
        gpus = f"{facts['gpus']} × {facts['memory_gb']} GB GPU" if facts["gpus"] else f"{facts['memory_gb']} GB, no GPU"
        tiers = ", ".join(tier for tier, instance in known()["default_instance"].items() if instance == name)
        found = price(name, region)
        usd = f"{found.usd:8.3f}  {found.source}" if found else "       ?  unknown: cost --refresh asks AWS"
        rows.append(f"{name:18} {gpus:16} {tiers:12} {usd}")
    return "\n".join(rows)
