"""Loading a configuration: recipe ⊕ hardware tier ⊕ overrides, validated before any model is loaded.

    config = load("countdown-grpo", hardware="cpu", overrides={"grpo.beta": 0.04})

A *recipe* (recipes/*.yaml) says what is learned, a *tier* (hardware/*.yaml) how it fits the machine. Later wins:

    defaults < recipe < the tier's `set` < the tier's `recipes: <this recipe>` < overrides
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError, check_known, shown
from .own_code import located
from .rules import problems
from .schema import RunConfig, Tier, validate

RECIPES = Path(__file__).parent / "recipes"
HARDWARE = Path(__file__).parent / "hardware"
MOST_BYTES = 100_000  # of one YAML file


def load(
    recipe: str | os.PathLike,
    hardware: str = "auto",
    overrides: Mapping[str, Any] | Iterable[str] | None = None,
) -> RunConfig:
    """Merge recipe, hardware tier and overrides into one validated RunConfig.

    Args:
        recipe: one of `recipe_names()`, or the path of your own .yaml file of the same shape. Paths of data and code in
            it count from its folder.
        hardware: one of `hardware_names()`, or "auto" to choose by what the machine has (`hardware_reason` says why).
        overrides: {"grpo": {"beta": 0.04}}, {"grpo.beta": 0.04}, or ["grpo.beta=0.04"] as on the command line.
            `rewards.NAME=null` removes a reward. Overriding `stages` gives exactly those stages, without the sft
            stage that the tiers of the tiny model put first.

    Raises:
        ConfigError: a name does not exist, or a value has the wrong type or range or does not fit the others.
    """
    reason, missing = "chosen by name", {}
    if hardware == "auto":
        hardware, reason = detect_hardware()
        if load_tier(hardware).gpus and importlib.util.find_spec("vllm") is None:
            missing = {stage: {"use_vllm": False} for stage in ("grpo", "ppo")}
            reason += "; vLLM is not installed, so transformers samples, which is slower"
    tier = load_tier(hardware)
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        path = RECIPES / f"{check_known('recipe', str(recipe), recipe_names())}.yaml"
    own = located(read_yaml(path), path.parent.resolve())
    changes = located(_nested(overrides or {}), Path.cwd(), path.parent.resolve())
    if path.parent != RECIPES and (source := _source(own)) and (path.parent / source).exists():
        own["task"] = {**own["task"], "source": str((path.parent / source).resolve())}

    values: dict[str, Any] = {}
    data = {"task": {"source": _source(own)}} if _source(own) not in (None, "hub") else {}
    # `data` once more: a tier's synthetic problems stand in for those of the Hub only.
    for layer in (own, *_layers(tier, path.stem), data, missing, changes):
        for key in ("recipe", "hardware", "hardware_reason"):
            if key in layer:
                raise ConfigError(f"{key} = {shown(layer[key])} cannot be set here: use load(recipe, hardware) or "
                                  "--recipe and --hardware.")
        values = _merge(values, layer)
    stages = values.get("stages")
    if tier.base_model_needs_sft and "stages" not in changes and isinstance(stages, list) and "sft" not in stages:
        values["stages"] = ["sft", *stages]
    return _validated({"recipe": path.stem, "hardware": tier.name, "hardware_reason": reason, **values})


def with_overrides(config: RunConfig, overrides: Mapping[str, Any] | Iterable[str]) -> RunConfig:
    """Return a changed copy of a configuration, validated like the original; overrides as in `load`."""
    return _validated(_merge(config.model_dump(), located(_nested(overrides), Path.cwd())))


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def hardware_names() -> list[str]:
    return sorted(path.stem for path in HARDWARE.glob("*.yaml"))


def load_tier(name: str) -> Tier:
    """Read a hardware tier; raises ConfigError for an unknown name."""
    check_known("hardware tier", name, [*hardware_names(), "auto"])
    return validate(Tier, read_yaml(HARDWARE / f"{name}.yaml"))


def read_config(path: str | os.PathLike) -> RunConfig:
    """Read the config.yaml of a run directory; raises ConfigError if it is not valid."""
    path = Path(path)
    return _validated(located(read_yaml(path), path.parent.resolve()))


def _source(values: Mapping[str, Any]) -> str | None:
    """Return `task.source` of unchecked settings, or None."""
    task = values.get("task")
    source = task.get("source") if isinstance(task, Mapping) else None
    return source if isinstance(source, str) else None


def _layers(tier: Tier, recipe: str) -> list[dict[str, Any]]:
    """Return what a tier changes in a recipe, in the order in which it is merged."""
    before = _layers(load_tier(tier.based_on), recipe) if tier.based_on else []
    return [*before, tier.set, tier.recipes.get(recipe, {})]


def detect_hardware() -> tuple[str, str]:
    """Choose the tier for this machine; return its name and the reason in words for the learner."""
    import torch  # only "auto" needs it, and importing it takes seconds

    if not torch.cuda.is_available():
        return "cpu", "auto: no CUDA GPU found, so the tiny model trains on the CPU"
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    memory = min(gpu.total_memory for gpu in gpus) / 2**30
    found = f"auto: found {len(gpus)} × {gpus[0].name} with {memory:.0f} GiB"
    # A GPU sold with 16 GB reports a little less.
    fitting = [name for name in ("t4", "a10g", "a100", "h200") if memory >= 0.9 * load_tier(name).memory_gb]
    if not fitting:
        return "cpu", f"{found}; the smallest GPU tier needs 16 GB"
    if gpus[0].major < 8:
        return "t4", f"{found}; GPUs before the Ampere generation have no bfloat16"
    together = {"a10g": "a10g-x4", "a100": "a100-x8"}.get(fitting[-1])
    if together and len(gpus) >= load_tier(together).gpus:
        return together, f"{found}; start with: {launch_command(together)} ..."
    return fitting[-1], found + ("; set CUDA_VISIBLE_DEVICES=0 to use one of them" if len(gpus) > 1 else "")


def launch_command(tier: str) -> str:
    """Return the command that starts scripts/train.py on a tier of several GPUs: one process for each."""
    return f"accelerate launch --config_file setup/accelerate/{tier}.yaml scripts/train.py"


class _Loader(yaml.SafeLoader):
    """SafeLoader without merge keys (<<), with which a kilobyte can fill the memory."""

    def flatten_mapping(self, node):
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("merge keys (<<) are not supported: write the values out")


def parse_yaml(text: str) -> Any:
    """Parse YAML; raise yaml.YAMLError for whatever is wrong with it, such as the date 2024-13-45 or deep nesting."""
    try:
        return yaml.load(text, _Loader)
    except (ValueError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds sections; raise ConfigError if it cannot be read."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{path} has more than {MOST_BYTES:,} bytes, too many for a configuration: "
                              "choose another file.")
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text in UTF-8: save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}): give a YAML file, or one of {', '.join(recipe_names())}."
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: correct that line. {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} contains {shown(values)}: write sections such as 'task:' and 'grpo:'.")
    return values


def _nested(overrides: Mapping[str, Any] | Iterable[str]) -> dict[str, Any]:
    """Return overrides in any of their three forms as nested dictionaries."""
    if isinstance(overrides, Mapping):
        pairs = list(overrides.items())
    else:
        pairs = []
        for text in [overrides] if isinstance(overrides, str) else overrides:
            key, equals, value = text.partition("=")
            if not key or not equals:
                raise ConfigError(f"The override {shown(text)} has no value: write KEY=VALUE, such as grpo.beta=0.04.")
            try:
                pairs.append((key.strip(), parse_yaml(value)))
            except yaml.YAMLError:
                raise ConfigError(f"The value in {shown(text)} is not valid YAML: quote it, {key}='...'.") from None
    nested: dict[str, Any] = {}
    for key, value in pairs:
        for part in reversed(str(key).split(".", 1 if str(key).startswith("rewards.") else -1)):  # rewards.a.py:b
            value = {part: value}
        nested = _merge(nested, value)
    return nested


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` changed by `over`: mappings are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _validated(values: dict[str, Any]) -> RunConfig:
    if isinstance(rewards := values.get("rewards"), dict):  # null removes a reward
        values = values | {"rewards": {name: weight for name, weight in rewards.items() if weight is not None}}
    config = validate(RunConfig, values)
    tier = load_tier(config.hardware)
    if found := problems(config, tier):
        raise ConfigError("\n".join(found))
    if tier.gpus == 0 and config.task.source == "hub":
        warnings.warn("task.source = 'hub' downloads the dataset: without a network, use 'synthetic'.", stacklevel=3)
    return config
