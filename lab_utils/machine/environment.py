"""Does this machine have what the workshop needs? A table with what was found, what is needed and the fix.

This module uses the standard library only (and torch, if it is installed), so it also works before the set-up.
`setup/check_environment.py` calls it, and so does the first cell of notebook 00.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from .. import REPOSITORY, TINY_MODEL, installed_version

REQUIREMENTS = REPOSITORY / "setup" / "requirements"
SET_UP = "run: bash setup/create_env.sh"
GIB = 1024**3
# What the set-up leaves alone in Colab: its kernel has imported some of these, and the others serve its notebooks.
COLABS_OWN = ("numpy", "pandas", "matplotlib", "ipython", "ipykernel", "jupyterlab", "nbclient", "nbconvert",
              "nbformat", "papermill")


class Check(NamedTuple):
    """One row of the table. An empty `remedy` means OK; on a row that is not `required` it is only advice."""

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
    """Return the exact versions in a requirements file, {package: version}, without the files included with -r."""
    lines = (line.split("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return dict(line.split("==") for line in lines if "==" in line)


def run_checks() -> list[Check]:
    """Return all rows of the table, in the order in which to fix them."""
    python = platform.python_version()
    too_old = "make an environment with Python 3.12" if sys.version_info < (3, 11) else ""
    own = COLABS_OWN if "COLAB_RELEASE_TAG" in os.environ else ()
    pins = read_pins(REQUIREMENTS / "base.txt")
    return [
        Check("Python", python, "3.11 or newer", too_old),
        *(_package(package, pin) for package, pin in pins.items() if package not in own),
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
        return Check("tiny model", f"no {missing}", "in lab_utils/models", "run: git checkout -- lab_utils/models")
    size = sum(file.stat().st_size for file in TINY_MODEL.iterdir() if file.is_file()) / 1e6
    return Check("tiny model", f"{size:.1f} MB", "in lab_utils/models")


def _writable(folder: Path) -> Check:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Check("writing here", "yes", "yes")
    except OSError as error:
        return Check("writing here", error.strerror or "no", "yes", f"choose another folder than {folder}")


def format_table(checks: list[Check]) -> str:
    """Return the rows as aligned text, and a last line that says whether anything needed is missing."""
    rows = [("what", "found", "needed", "verdict"), *((c.what, c.found, c.needed, c.verdict) for c in checks)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:{widths[2]}}  {row[3]}" for row in rows]
    missing = [check.what for check in checks if check.required and check.remedy]
    closing = f"Required but missing: {', '.join(missing)}." if missing else "Everything required is here."
    return "\n".join([*lines, "", closing])


def check_environment() -> bool:
    """Print the table; return True if nothing needed is missing."""
    checks = run_checks()
    print(format_table(checks))
    return not any(check.required and check.remedy for check in checks)
