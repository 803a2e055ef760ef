"""Do the pins of a machine with a GPU still resolve? A dry run for other Pythons than yours; nothing is installed.

    pip install uv
    python scripts/check_gpu_pins.py                       Python 3.11 and 3.12, as setup/create_env.sh installs
    python scripts/check_gpu_pins.py --colab-torch 2.11.0   and what it installs beside the torch that Colab brings

Needs the network (package metadata only), so it is no part of the tests. Wheels only, for Linux on x86-64 with glibc
2.34 or newer, such as Ubuntu 22.04 and Amazon Linux 2023; for 2.28 llguidance, which vLLM needs, has no wheel.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[1] / "setup" / "requirements"
SHOWN = ("torch", "vllm", "transformers", "trl", "bitsandbytes", "numpy", "triton", "nvidia-cuda-runtime")


def resolve(lines: list[str], python: str, glibc: str) -> tuple[dict[str, str], str]:
    """Resolve requirements: {package: version}, empty where they do not resolve, and the resolver's complaint."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = ["uv", "pip", "compile", str(wanted), "--quiet", "--no-header", "--no-annotate", "--only-binary",
                   ":all:", "--python-version", python, "--python-platform", f"x86_64-manylinux_{glibc}"]
        done = subprocess.run(command, capture_output=True, text=True)
    found = dict(re.findall(r"^([\w.-]+)==(\S+)", done.stdout, re.MULTILINE))
    return (found if done.returncode == 0 else {}), done.stderr.strip()


def pins(file: str) -> list[str]:
    """The pins of a requirements file and of those that it includes."""
    lines: list[str] = []
    for line in (REQUIREMENTS / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            lines += pins(line.removeprefix("-r ").strip())
        elif line and not line.startswith("#"):
            lines.append(line)
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=["3.11", "3.12"], help="versions of Python to resolve for")
    parser.add_argument("--glibc", default="2_34", help="oldest glibc")
    parser.add_argument("--colab-torch", nargs="*", default=[], metavar="VERSION", help="a torch that must stay")
    options = parser.parse_args()
    if shutil.which("uv") is None:
        print("check_gpu_pins.py: uv is missing, which resolves for other Pythons: pip install uv", file=sys.stderr)
        return 2

    wanted = {"gpu.txt": pins("gpu.txt"), "cpu.txt (= environment.yml)": pins("cpu.txt")}
    bitsandbytes = [line for line in pins("gpu.txt") if line.startswith("bitsandbytes==")]
    for version in options.colab_torch:  # setup/create_env.sh keeps an installed torch, and leaves vLLM out then
        wanted[f"base.txt, bitsandbytes and torch {version}"] = [*pins("base.txt"), *bitsandbytes, f"torch=={version}"]

    failed = False
    for python in options.python:
        for name, lines in wanted.items():
            found, complaint = resolve(lines, python, options.glibc)
            failed |= not found
            shown = ", ".join(f"{package} {found[package]}" for package in SHOWN if package in found)
            outcome = f"{len(found)} packages: {shown}" if found else f"FAILS\n{complaint}"
            print(f"Python {python}, {name}: {outcome}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
