"""What a job costs: prices by instance and region, an estimate where there is something to go by, and the ceiling.

instances.yaml ships with the workshop and says when and where each price was captured; `refresh` asks AWS's price list
and keeps the answer in a cache of yours, which then goes first.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..config import ConfigError
from .session import SageMakerError

INSTANCES = Path(__file__).with_name("instances.yaml")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "rl-workshop" / "sagemaker-prices.yaml"
ASK_ABOVE = 5.0  # USD: a job that can cost more is asked for


@functools.cache
def known() -> dict[str, Any]:
    """instances.yaml."""
    return yaml.safe_load(INSTANCES.read_text(encoding="utf-8"))


def default_instance(hardware: str) -> str:
    """The instance type for a tier; raises SageMakerError where there is none to recommend."""
    try:
        return known()["default_instance"][hardware]
    except KeyError:
        raise SageMakerError(f"There is no instance type to recommend for the tier {hardware!r}: SageMaker rents H200 "
                             "GPUs only by eight. Choose --hardware a100, or name an --instance-type.") from None


@dataclass(frozen=True)
class Price:
    """USD per instance hour on demand, and where that was read."""

    usd: float
    source: str


def price(instance_type: str, region: str) -> Price | None:
    """The price of an instance hour, or None where it is not known."""
    if CACHE.is_file():
        cached = yaml.safe_load(CACHE.read_text(encoding="utf-8"))
        if (found := cached["usd"].get(region, {}).get(instance_type)) is not None:
            return Price(found, f"AWS's price list, {cached['captured'][region]}")
    found = known()["instances"].get(instance_type, {}).get("usd", {}).get(region)
    return Price(found[0], known()["sources"][found[1]]) if found else None


@dataclass(frozen=True)
class Cost:
    """What a job costs, in USD; None where a price or a duration is not known."""

    price: Price | None
    hours: tuple[float, float] | None  # least and most
    estimated: bool  # by lab_utils.machine.memory, not from a run that was timed
    ceiling_hours: float
    spot: bool
    where: str  # "ml.g5.2xlarge in us-east-1"

    @property
    def ceiling(self) -> float | None:
        """What it costs if it runs until SageMaker stops it, and stays in the warm pool to its end."""
        return self.price and self.price.usd * self.ceiling_hours

    def __str__(self) -> str:
        if self.price is None:
            return (f"Cost: the price of {self.where} is not known here; at most {self.ceiling_hours:g} hours. "
                    "`launch_sagemaker.py cost --refresh` asks AWS for it.")
        lines = [f"Cost: {self.where}, {self.price.usd:g} USD an hour ({self.price.source})"]
        if self.hours:
            least, most = (hours * self.price.usd for hours in self.hours)
            lines.append(f"  expected  {self.hours[0]:g} to {self.hours[1]:g} hours, {least:.2f} to {most:.2f} USD"
                         + (", an estimate: nobody has timed it yet" if self.estimated else ""))
        else:
            lines.append("  expected  not known")
        lines.append(f"  ceiling   {self.ceiling_hours:g} hours, {self.ceiling:.2f} USD; SageMaker stops the job then")
        if self.spot:
            lines.append("  spot      AWS takes off up to 90%, by the day's supply; the sums above are without it")
        return "\n".join(lines)


def cost_of(job: Any) -> Cost:
    """The cost of a TrainingJob or EvaluationJob."""
    hours = known()["hours"]
    found = None
    if not any(getattr(job, name, None) for name in ("stages", "limit", "overrides")):  # those change the duration
        found = hours["any"].get(job.hardware) or hours.get(job.recipe_name, {}).get(job.hardware)
    estimate = None if found else estimated_hours(job)
    return Cost(
        price=price(job.instance, job.region),
        hours=tuple(found) if found else estimate,
        estimated=estimate is not None,
        ceiling_hours=job.max_run_hours + getattr(job, "keep_alive_minutes", 0) / 60,
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


def refresh(region: str, boto_session: Any) -> dict[str, float]:
    """Ask AWS's price list for training prices of the known instances in a region, and write them into the cache."""
    client = boto_session.client("pricing", region_name="us-east-1")  # the price list is served from few regions
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
        raise SageMakerError(f"AWS's price list names no training price in {region}. Is the region right? The prices "
                             "that ship with the workshop stay in use.")
    cached = yaml.safe_load(CACHE.read_text(encoding="utf-8")) if CACHE.is_file() else {"captured": {}, "usd": {}}
    cached["captured"][region], cached["usd"][region] = datetime.date.today().isoformat(), found
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    CACHE.write_text(yaml.safe_dump(cached), encoding="utf-8")
    return found


def table(region: str) -> str:
    """The prices of a region as text."""
    rows = [f"USD per instance hour in {region}, on demand"]
    for name, facts in known()["instances"].items():
        gpus = f"{facts['gpus']} × {facts['memory_gb']} GB GPU" if facts["gpus"] else f"{facts['memory_gb']} GB, no GPU"
        tiers = ", ".join(tier for tier, instance in known()["default_instance"].items() if instance == name)
        found = price(name, region)
        usd = f"{found.usd:8.3f}  {found.source}" if found else "       ?  not known: cost --refresh asks AWS"
        rows.append(f"{name:18} {gpus:16} {tiers:12} {usd}")
    return "\n".join(rows)
