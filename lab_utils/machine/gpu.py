"""Can this machine run a configuration? Called once, before training, by whatever starts a run."""

from __future__ import annotations

import gc
import os

import torch
from transformers.utils import is_bitsandbytes_available
from trl.import_utils import is_vllm_available

from .. import REPOSITORY
from ..config import ConfigError, RunConfig, launch_command, load_tier
from ..models import local_gpu
from . import memory as estimate
from .environment import read_pins


def check_machine(config: RunConfig) -> None:
    """Raise ConfigError, with the next step, where this machine cannot run a configuration: called before training.

    On a tier with GPUs: that torch can use them, their number and memory, bfloat16, the processes, vLLM and
    bitsandbytes, and that the run is estimated to fit.
    """
    tier = load_tier(config.hardware)
    if tier.gpus == 0:
        return
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if not torch.cuda.is_available():
        raise ConfigError(f"The hardware tier {tier.name} needs {tier.gpus} CUDA GPU(s), and {_why_no_gpu()}")
    visible = torch.cuda.device_count()
    if visible < tier.gpus:
        raise ConfigError(f"The hardware tier {tier.name} needs {tier.gpus} CUDA GPU(s), and torch sees {visible}. "
                          "Choose --hardware auto, or check CUDA_VISIBLE_DEVICES and nvidia-smi.")
    if visible > 1 == tier.gpus:  # transformers would split every batch over all of them
        raise ConfigError(f"The hardware tier {tier.name} trains on 1 GPU, and torch sees {visible}. Show it one: put "
                          "CUDA_VISIBLE_DEVICES=0 before the command.")
    if processes != tier.processes:
        start = launch_command(tier.name) if tier.gpus > 1 else "python scripts/train.py"
        raise ConfigError(f"The hardware tier {tier.name} trains with {tier.processes} process(es), not {processes}. "
                          f"Start with: {start} ... In a notebook, which is one process, train on one GPU: "
                          "%env CUDA_VISIBLE_DEVICES=0 in its first cell, and HARDWARE = \"auto\".")

    properties = torch.cuda.get_device_properties(local_gpu())
    found = f"the {properties.name} here"
    if properties.total_memory / 1e9 < estimate.HEADROOM * tier.memory_gb:
        raise ConfigError(f"The hardware tier {tier.name} is for GPUs of {tier.memory_gb:g} GB, and {found} has "
                          f"{properties.total_memory / 1e9:.1f} GB. Choose --hardware auto, or the tier below it.")
    if config.model.dtype == "bfloat16" and properties.major < 8:
        raise ConfigError(f"model.dtype = 'bfloat16' needs a GPU of the Ampere generation or newer, and {found} has "
                          f"compute capability {properties.major}.{properties.minor}. Choose --hardware t4.")
    for stage in config.stages:
        if stage != "sft" and getattr(config, stage).use_vllm and not is_vllm_available():
            raise ConfigError(f"{stage}.use_vllm = True, but vLLM is not installed. Install it with bash "
                              "setup/create_env.sh (Linux with an NVIDIA GPU), or sample without it: "
                              f"--set {stage}.use_vllm=false.")
    if config.model.load_in_4bit and not is_bitsandbytes_available():
        pin = read_pins(REPOSITORY / "setup" / "requirements" / "gpu.txt")["bitsandbytes"]
        raise ConfigError("model.load_in_4bit = True needs bitsandbytes, which is not installed. Install it with "
                          f"pip install bitsandbytes=={pin}, or give --set model.load_in_4bit=false.")
    estimate.check_memory(config)
    gc.collect()  # an earlier stage's trainer refers to itself
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(local_gpu())[0] / 1e9
    for stage in config.stages:
        needed = estimate.memory(config, stage).peak
        if free < needed - estimate.OVERHEAD_GB:
            raise ConfigError(f"{stage} needs about {needed:.1f} GB, and {found} has {free:.1f} GB free: another "
                              "process holds the rest. Find it with nvidia-smi and stop it (a notebook's kernel, say).")


def _why_no_gpu() -> str:
    """The reason in words why torch sees no GPU, and the next step."""
    if torch.version.cuda is None:
        return ("the installed torch is a build for CPUs. Choose --hardware cpu; on a machine with a GPU run "
                "pip install -r setup/requirements/gpu.txt in a new environment.")
    try:
        torch.cuda.init()
    except RuntimeError as error:  # such as "The NVIDIA driver on your system is too old (found version 12020). ..."
        reason = str(error).strip().split(". ")[0] + "."
        if "driver" in reason and "too old" in reason:
            return (f"torch {torch.__version__} is built for CUDA {torch.version.cuda}: {reason} Update the driver "
                    "(nvidia.com/drivers), or install a torch built for the CUDA version that nvidia-smi shows.")
        return f"torch cannot use one: {reason} Choose --hardware cpu, or check the driver with nvidia-smi."
    return "torch sees none. Choose --hardware cpu, or check CUDA_VISIBLE_DEVICES and nvidia-smi."
