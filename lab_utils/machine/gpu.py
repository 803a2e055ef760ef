"""Can this machine run a configuration? Called once per run, before training, by whatever starts the run."""

from __future__ import annotations

import gc
import os

import torch
from transformers.utils import is_bitsandbytes_available
from trl.import_utils import is_vllm_available

from .. import REPOSITORY
from ..config import ConfigError, RunConfig, launch_command, load_tier
from ..models import local_gpu
from .environment import read_pins
from .memory import check_memory, memory

REPORTED = 0.93  # share of its nominal memory that a GPU reports at least: the driver and ECC take theirs


def check_machine(config: RunConfig) -> None:
    """Raise ConfigError, with the fix, if this machine cannot run a configuration.

    This checks bitsandbytes and, on a tier with GPUs, that torch can use them, their number and memory, bfloat16, the
    number of processes and vLLM, and that each stage has room for what it must hold.
    """
    tier = load_tier(config.hardware)
    if config.model.load_in_4bit and not is_bitsandbytes_available():
        pin = read_pins(REPOSITORY / "setup" / "requirements" / "gpu.txt")["bitsandbytes"]
        raise ConfigError("model.load_in_4bit = True, but bitsandbytes is not installed: run pip install "
                          f"bitsandbytes=={pin}, or pass --set model.load_in_4bit=false.")
    if tier.gpus == 0:
        return
    if not torch.cuda.is_available():
        raise ConfigError(f"The hardware tier {tier.name} needs {tier.gpus} CUDA GPU(s), but {_why_no_gpu()}")
    visible = torch.cuda.device_count()
    if visible < tier.gpus:
        raise ConfigError(f"The hardware tier {tier.name} needs {tier.gpus} CUDA GPU(s), but torch sees {visible}: "
                          "choose --hardware auto, or check CUDA_VISIBLE_DEVICES and nvidia-smi.")
    if visible > 1 == tier.gpus:  # transformers would split every batch over all of them
        raise ConfigError(f"The hardware tier {tier.name} trains on 1 GPU, but torch sees {visible}: put "
                          "CUDA_VISIBLE_DEVICES=0 before the command.")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes != tier.processes:
        start = launch_command(tier.name) if tier.gpus > 1 else "python scripts/train.py"
        raise ConfigError(f"The hardware tier {tier.name} trains with {tier.processes} process(es), not {processes}: "
                          f"start with {start} ... A notebook is one process and trains on one GPU: put "
                          "%env CUDA_VISIBLE_DEVICES=0 in its first cell and set HARDWARE = \"auto\".")

    properties = torch.cuda.get_device_properties(local_gpu())
    total, free = properties.total_memory / 1e9, _free_gb()
    if total < REPORTED * tier.memory_gb:
        raise ConfigError(f"The hardware tier {tier.name} is for GPUs of {tier.memory_gb:g} GB, but the "
                          f"{properties.name} here has {total:.1f} GB: choose --hardware auto.")
    if config.model.dtype == "bfloat16" and properties.major < 8:
        raise ConfigError("model.dtype = 'bfloat16' needs a GPU of the Ampere generation or newer, but the "
                          f"{properties.name} here has compute capability {properties.major}.{properties.minor}: "
                          "choose --hardware t4.")
    for stage in config.stages:
        if stage != "sft" and getattr(config, stage).use_vllm and not is_vllm_available():
            raise ConfigError(f"{stage}.use_vllm = True, but vLLM is not installed: run bash setup/create_env.sh "
                              f"(Linux with an NVIDIA GPU), or sample without it: pass --set {stage}.use_vllm=false.")
    check_memory(config)
    for stage in config.stages:
        needed = memory(config, stage)
        if free < needed.least:
            raise ConfigError(f"{stage} needs {needed}, but the {properties.name} here has {free:.1f} of "
                              f"{total:.1f} GB free: stop the other processes that nvidia-smi shows.")


def _free_gb() -> float:
    gc.collect()  # an earlier stage's trainer refers to itself
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(local_gpu())[0] / 1e9


def _why_no_gpu() -> str:
    """Return the reason why torch sees no GPU, and the fix."""
    if torch.version.cuda is None:
        return ("the installed torch is a build for CPUs: choose --hardware cpu, or on a machine with a GPU run "
                "pip install -r setup/requirements/gpu.txt in a new environment.")
    try:
        torch.cuda.init()
    except RuntimeError as error:  # such as "The NVIDIA driver on your system is too old (found version 12020). ..."
        reason = str(error).strip().split(". ")[0]
        if "driver" in reason and "too old" in reason:
            return (f"torch {torch.__version__} is built for CUDA {torch.version.cuda} ({reason}): update the driver "
                    "(nvidia.com/drivers), or install a torch built for the CUDA version that nvidia-smi shows.")
        return f"torch cannot use one ({reason}): choose --hardware cpu, or check the driver with nvidia-smi."
    return "torch sees none: choose --hardware cpu, or check CUDA_VISIBLE_DEVICES and nvidia-smi."
