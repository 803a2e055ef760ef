"""The repository itself: pins agree with each other and with the imports; shell scripts and the workflow are valid."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lab_utils import REPOSITORY, installed_version
from lab_utils.machine.environment import read_pins

REQUIREMENTS = REPOSITORY / "setup" / "requirements"
SHELL_SCRIPTS = [*sorted(REPOSITORY.glob("scripts/*.sh")), *sorted(REPOSITORY.glob("setup/**/*.sh")),
                 REPOSITORY / ".ci" / "run"]
TOOLS = Path(sys.executable).parent  # where pip puts the commands of packages


def declared_requirements() -> list[Requirement]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for lines in (project["dependencies"], *extras) for line in lines]


# Pins


def test_environment_yml_has_the_pins_of_cpu_txt():
    dependencies = yaml.safe_load((REPOSITORY / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    (pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    wanted = read_pins(REQUIREMENTS / "base.txt") | read_pins(REQUIREMENTS / "cpu.txt")
    assert dict(line.split("==") for line in pip) == wanted


def test_every_requirement_is_pinned_exactly():
    for file in REQUIREMENTS.glob("*.txt"):
        for line in file.read_text(encoding="utf-8").splitlines():
            assert re.fullmatch(r"(#.*|-r [\w.-]+|[\w.-]+==[\w.]+)?", line), f"{file.name}: {line!r} is no exact pin"


def test_one_package_has_one_pin_which_its_range_in_pyproject_admits():
    pins: dict[str, set[str]] = {}
    for file in REQUIREMENTS.glob("*.txt"):
        for package, pin in read_pins(file).items():
            pins.setdefault(canonicalize_name(package), set()).add(pin)
    assert {package: found for package, found in pins.items() if len(found) > 1} == {}
    for requirement in declared_requirements():
        [pin] = pins[canonicalize_name(requirement.name)]
        assert pin in requirement.specifier, requirement


def test_the_installed_packages_are_the_pins():
    pins = read_pins(REQUIREMENTS / "base.txt")
    assert {package: installed_version(package) for package in pins} == pins


# Imports


def imported_packages(folder: str) -> set[str]:
    """Return the top-level packages that a folder imports, without the standard library and `lab_utils`."""
    packages = set()
    for file in (REPOSITORY / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                packages |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                packages.add(node.module.partition(".")[0])
    return packages - sys.stdlib_module_names - {"lab_utils"}


def test_every_imported_package_is_declared_in_pyproject():
    imported = imported_packages("lab_utils")  # never a script
    scripts = {file.stem for file in (REPOSITORY / "scripts").glob("*.py")}
    for folder in ("scripts", "setup", "notebooks/src"):
        imported |= imported_packages(folder) - scripts
    declared = {canonicalize_name(requirement.name) for requirement in declared_requirements()}
    distributions = packages_distributions()  # vLLM is not installed on a CPU: its distribution has the import's name
    needed = {canonicalize_name(name) for package in imported for name in distributions.get(package, [package])}
    assert needed <= declared, needed - declared


# Shell scripts and continuous integration


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda script: script.name)
def test_a_shell_script_passes_shellcheck_and_runs_on_macos(script):
    """macOS ships bash 3.2, without associative arrays, mapfile and ${x,,}."""
    result = subprocess.run([TOOLS / "shellcheck", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    text = script.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text
    assert not re.search(r"declare -A|local -A|mapfile|readarray|\$\{\w+(,,|\^\^)|&>>|\|&", text)


def test_the_workflow_is_valid_and_runs_the_test_command_of_the_readme():
    workflow = REPOSITORY / ".github" / "workflows" / "ci.yml"
    result = subprocess.run([TOOLS / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", workflow],
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    steps = [step for job in yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
             for step in job["steps"]]
    command = "bash scripts/run_tests.sh"
    assert command in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert command in [step.get("run") for step in steps]
