"""Does this machine have what the workshop needs? A table with what was found, what is needed and how to mend it.

Uses the standard library only (and torch, where it is installed), so that it also answers where packages are missing.
`setup/check_environment.py` calls it, and so does the first cell of notebook 00.
"""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .config import RunConfig

REPOSITORY = Path(__file__).resolve().parents[1]
REQUIREMENTS = REPOSITORY / "setup" / "requirements"
TINY_MODEL = Path(__file__).parent / "assets" / "tiny-qwen2"
SET_UP = "run: bash setup/create_env.sh"
GIB = 1024**3


class Check(NamedTuple):
    """One row of the table. An empty `remedy` means OK; a remedy on a row that is not `required` is only advice."""

    what: str
    found: str
    needed: str
    remedy: str = ""
    required: bool = True

    @property
    def verdict(self) -> str:
        if not self.remedy:
            return "OK"
        return f"{'MISSING' if self.required else 'note'}: {self.remedy}"


def read_pins(path: str | os.PathLike) -> dict[str, str]:
    """The exact versions in a requirements file, {package: version}, without the files that it includes with -r."""
    lines = (line.split("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return dict(line.split("==") for line in lines if "==" in line)


def installed_version(package: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def check_machine(config: RunConfig) -> None:
    """Raise ConfigError, with the next step, where this machine cannot run a configuration: called before training.

    On a tier with GPUs: that torch can use them, their number and memory, bfloat16, the processes, vLLM and
    bitsandbytes, and that the run is estimated to fit.
    """
    from . import estimate
    from .config import ConfigError, launch_command, load_tier

    tier = load_tier(config.hardware)
    if tier.gpus == 0:
        return
    import torch

    from .models import local_gpu

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
    from .training.vllm_rollouts import check_vllm  # takes seconds

    for stage in config.stages:
        if stage != "sft":
            check_vllm(config, stage)
    if config.model.load_in_4bit and not is_installed("bitsandbytes"):
        pin = read_pins(REQUIREMENTS / "gpu.txt")["bitsandbytes"]
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
    import torch

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


def run_checks() -> list[Check]:
    """All rows of the table, in the order in which to mend them."""
    python = platform.python_version()
    too_old = "make an environment with Python 3.12" if sys.version_info < (3, 11) else ""
    return [
        Check("Python", python, "3.11 or newer", too_old),
        *(_package(package, pin) for package, pin in read_pins(REQUIREMENTS / "base.txt").items()),
        *_torch_and_gpu(),
        *_machine(),
        _tiny_model(),
        _writable(Path.cwd()),
    ]


def _package(package: str, pin: str, required: bool = True) -> Check:
    found = installed_version(package)
    if found is None:
        return Check(package, "not installed", pin if required else f"{pin} (optional)", SET_UP, required)
    advice = f"the workshop is tested with {pin}; to get it, {SET_UP}" if found.split("+")[0] != pin else ""
    return Check(package, found, pin, advice, required=False)  # another version is worth a note, no more


def _torch_and_gpu() -> list[Check]:
    pins = read_pins(REQUIREMENTS / "gpu.txt")
    rows = [_package("torch", pins.pop("torch"))]
    if rows[0].found == "not installed":
        return rows

    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            rows.append(Check(f"GPU {i}", f"{properties.name}, {properties.total_memory / GIB:.0f} GiB", "optional"))
        return rows + [_package(package, pin, required=False) for package, pin in pins.items()]
    advice = ""
    if shutil.which("nvidia-smi"):
        advice = "nvidia-smi exists but torch sees no GPU: compare the driver's CUDA version with torch's build"
    return [*rows, Check("GPU", "none (tier cpu)", "optional", advice, required=False)]


def _machine() -> list[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    disk = shutil.disk_usage(Path.cwd()).free / GIB
    return [
        Check("CPU cores", str(cores), "2", "expect twice the stated times" if cores < 2 else "", required=False),
        Check("memory", f"{memory:.0f} GiB", "8 GiB", "close other programs" if memory < 7 else "", required=False),
        Check("free disk", f"{disk:.0f} GiB", "2 GiB", "free some space here" if disk < 2 else ""),
    ]


def _tiny_model() -> Check:
    files = ("config.json", "tokenizer.json", "model.safetensors")
    missing = ", ".join(name for name in files if not (TINY_MODEL / name).is_file())
    if missing:
        return Check("tiny model", f"no {missing}", "in lab_utils/assets", "run: git checkout -- lab_utils/assets")
    size = sum(file.stat().st_size for file in TINY_MODEL.iterdir() if file.is_file()) / 1e6
    return Check("tiny model", f"{size:.1f} MB", "in lab_utils/assets")


def _writable(folder: Path) -> Check:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Check("writing here", "yes", "yes")
    except OSError as error:
        return Check("writing here", error.strerror or "no", "yes", f"choose another folder than {folder}")


def format_table(checks: list[Check]) -> str:
    """The rows as aligned text, with a closing line that says whether anything needed is missing."""
    rows = [("what", "found", "needed", "verdict"), *((c.what, c.found, c.needed, c.verdict) for c in checks)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:{widths[2]}}  {row[3]}" for row in rows]
    missing = [check.what for check in checks if check.required and check.remedy]
    closing = f"Needed and missing: {', '.join(missing)}." if missing else "Everything needed is here."
    return "\n".join([*lines, "", closing])


def check_environment() -> bool:
    """Print the table; True when nothing needed is missing."""
    checks = run_checks()
    print(format_table(checks))
    return not any(check.required and check.remedy for check in checks)
