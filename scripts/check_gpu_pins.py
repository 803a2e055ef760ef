"""Check that the pins still resolve, for other versions of Python than yours too. Nothing is installed.

    pip install uv
    python scripts/check_gpu_pins.py                       Python 3.11 to 3.13, as setup/create_env.sh installs
    python scripts/check_gpu_pins.py --colab-torch 2.11.0   also what it installs beside Colab's torch

It needs the network (package metadata only), so the tests do not run it. Wheels only, for Linux on x86-64 with glibc
2.34 or newer, such as Ubuntu 22.04 and Amazon Linux 2023; for 2.28 llguidance, which vLLM needs, has no wheel.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys

from lab_utils import REPOSITORY, WorkshopError, exit_status

REQUIREMENTS = REPOSITORY / "setup" / "requirements"
SHOWN = ("torch", "vllm", "transformers", "trl", "bitsandbytes", "numpy", "triton", "nvidia-cuda-runtime")


def resolve(lines: list[str], python: str, glibc: str) -> tuple[dict[str, str], str]:
    """Resolve requirements to {package: version}, empty if they do not resolve, and return the resolver's complaint."""
    command = ["uv", "pip", "compile", "-", "--quiet", "--no-header", "--no-annotate", "--only-binary", ":all:",
               "--python-version", python, "--python-platform", f"x86_64-manylinux_{glibc}"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
    found = dict(re.findall(r"^([\w.-]+)==(\S+)", done.stdout, re.MULTILINE))
    return (found if done.returncode == 0 else {}), done.stderr.strip()


def pins(file: str) -> list[str]:
    """Return the pins of a requirements file and of the files that it includes."""
    lines: list[str] = []
    for line in (REQUIREMENTS / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            lines += pins(line.removeprefix("-r ").strip())
        elif line and not line.startswith("#"):
            lines.append(line)
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=["3.11", "3.12", "3.13"], help="versions of Python")
    parser.add_argument("--glibc", default="2_34", help="oldest glibc")
    parser.add_argument("--colab-torch", nargs="*", default=[], metavar="VERSION",
                        help="torch versions that must not change")
    options = parser.parse_args()
    if shutil.which("uv") is None:
        raise WorkshopError("uv is missing: run pip install uv")

    wanted = {"gpu.txt": pins("gpu.txt"), "cpu.txt (= environment.yml)": pins("cpu.txt")}
    bitsandbytes = [line for line in pins("gpu.txt") if line.startswith("bitsandbytes==")]
    for version in options.colab_torch:  # create_env.sh keeps an installed torch, and leaves vLLM out
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
    sys.exit(exit_status(main))
