"""What a run is: recipe ⊕ hardware tier ⊕ overrides, as one validated `RunConfig`. Nothing else configures anything."""

from .errors import ConfigError
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
from .own_code import CODE, is_own, own_files, portable, short_name
from .schema import LoraSettings, ModelSettings, PPOSettings, RLSettings, RunConfig, TaskSettings, Tier
