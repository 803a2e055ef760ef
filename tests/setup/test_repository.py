"""The repository itself: the pins agree with each other, the layout is the one that the README describes."""

import os
import re
import subprocess
import sys

import pytest
import tomllib
import yaml
from packaging.requirements import Requirement

from lab_utils import REPOSITORY
from lab_utils.machine import environment
from lab_utils.machine.environment import Check, read_pins

REQUIREMENTS = REPOSITORY / "setup" / "requirements"


def all_pins() -> dict[str, str]:
    return {package: pin for file in REQUIREMENTS.glob("*.txt") for package, pin in read_pins(file).items()}


def project() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_environment_yml_has_the_pins_of_cpu_txt():
    dependencies = yaml.safe_load((REPOSITORY / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    (pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    wanted = read_pins(REQUIREMENTS / "base.txt") | read_pins(REQUIREMENTS / "cpu.txt")
    assert dict(line.split("==") for line in pip) == wanted


def test_every_requirement_is_pinned_exactly():
    for file in REQUIREMENTS.glob("*.txt"):
        for line in file.read_text(encoding="utf-8").splitlines():
            assert re.fullmatch(r"(#.*|-r [\w.-]+|[\w.-]+==[\w.]+)?", line), f"{file.name}: {line!r} is no exact pin"


def test_one_package_has_one_pin():
    pins: dict[str, set[str]] = {}
    for file in REQUIREMENTS.glob("*.txt"):
        for package, pin in read_pins(file).items():
            pins.setdefault(package.lower(), set()).add(pin)
    assert {package: found for package, found in pins.items() if len(found) > 1} == {}


def test_the_ranges_of_pyproject_admit_the_pins():
    extras = project()["optional-dependencies"]
    pins = {package.lower(): pin for package, pin in all_pins().items()}
    for line in [*project()["dependencies"], *(line for extra in extras.values() for line in extra)]:
        requirement = Requirement(line)
        assert pins[requirement.name.lower()] in requirement.specifier, line


def test_the_installed_packages_are_the_pins():
    installed = {package: environment.installed_version(package) for package in read_pins(REQUIREMENTS / "base.txt")}
    assert installed == read_pins(REQUIREMENTS / "base.txt")


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "environment.yml", ".ci/run", "setup/create_env.sh"])
def test_the_file_is_there(name):
    assert (REPOSITORY / name).is_file()


def test_no_module_of_the_package_imports_from_scripts():
    for file in (REPOSITORY / "lab_utils").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) scripts\b", file.read_text(encoding="utf-8"), re.MULTILINE), file


def test_every_python_file_says_what_it_is_for():
    folders = ("lab_utils", "scripts", "setup", "tests")
    files = [file for folder in folders for file in (REPOSITORY / folder).rglob("*.py")]
    silent = [str(file) for file in files if not re.match(r'(#!.*\n)?r?"""\S', file.read_text(encoding="utf-8"))]
    assert silent == []


def test_no_bash_feature_that_macos_lacks():
    """macOS ships bash 3.2, without associative arrays, mapfile and ${x,,}; set -e would end a script in the middle."""
    scripts = [*REPOSITORY.glob("scripts/*.sh"), *REPOSITORY.glob("setup/*.sh"), REPOSITORY / ".ci" / "run"]
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        assert "set -euo pipefail" in text, script
        assert not re.search(r"declare -A|local -A|mapfile|readarray|\$\{\w+(,,|\^\^)|&>>|\|&", text), script


# The set-up script, without installing anything


def create_env(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "setup/create_env.sh", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_create_env_refuses_an_unknown_option():
    result = create_env("--develop")
    assert result.returncode == 2
    assert "--develop" in result.stderr and "--dev" in result.stderr


def test_create_env_names_the_active_environment(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    result = create_env("--print-python", VIRTUAL_ENV=str(tmp_path))
    assert (result.returncode, result.stdout.strip()) == (0, str(python))


def test_create_env_says_what_to_do_without_a_recent_python(tmp_path):
    """An environment whose Python is too old is named, with the remedy; nothing is installed."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1 && exit 0\nexit 1\n')
    python.chmod(0o755)
    result = create_env(VIRTUAL_ENV=str(tmp_path))
    assert result.returncode == 1
    assert "Python 3.9.1" in result.stderr and "3.11" in result.stderr and "conda create" in result.stderr


# The environment check


def test_a_missing_package_is_needed_and_another_version_is_a_note(monkeypatch):
    monkeypatch.setattr(environment, "installed_version", {"trl": None, "peft": "0.1.0"}.get)
    missing, other = environment._package("trl", "1.16.0"), environment._package("peft", "0.21.2")
    assert (missing.found, missing.required) == ("not installed", True) and "create_env.sh" in missing.verdict
    assert (other.found, other.required) == ("0.1.0", False) and other.verdict.startswith("note")


def test_a_missing_package_that_is_only_for_gpus_is_a_note(monkeypatch):
    monkeypatch.setattr(environment, "installed_version", lambda package: None)
    assert environment._package("vllm", "0.31.0", required=False).verdict.startswith("note")


def test_the_cpu_build_counts_as_the_pinned_torch(monkeypatch):
    monkeypatch.setattr(environment, "installed_version", lambda package: "2.13.0+cpu")
    assert environment._package("torch", "2.13.0").verdict == "OK"


def test_a_folder_without_write_permission_is_reported(tmp_path):
    assert environment._writable(tmp_path).verdict == "OK"
    assert environment._writable(tmp_path / "nowhere").verdict.startswith("MISSING")


def test_the_table_closes_with_what_is_missing():
    fine, advice = Check("a", "1", "1"), Check("b", "0", "1", "get b", required=False)
    assert environment.format_table([fine, advice]).endswith("Everything needed is here.")
    assert environment.format_table([fine, Check("c", "no", "yes", "get c")]).endswith("Needed and missing: c.")


def test_the_check_works_without_any_package():
    """-S and -I hide site-packages, as on a machine where nothing is installed."""
    result = subprocess.run(
        [sys.executable, "-I", "-S", "setup/check_environment.py"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 1, result.stderr
    assert re.search(r"^torch +not installed +\S+ +MISSING: run: bash setup/create_env.sh$", result.stdout, re.M)
