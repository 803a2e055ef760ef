"""What a run is: recipe ⊕ hardware tier ⊕ overrides, as one validated `RunConfig`. Nothing else configures anything."""

from .load import (
    RECIPES,
    detect_hardware,
    hardware_names,
    launch_command,
    load,
    load_tier,
    read_config,
    read_yaml,
    recipe_names,
    with_overrides,
)
from .schema import ConfigError, LoraSettings, ModelSettings, PPOSettings, RLSettings, RunConfig, Tier
