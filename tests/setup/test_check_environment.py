"""The table of setup/check_environment.py: what is missing, and what is only worth a note."""

import re
import subprocess
import sys

from lab_utils import REPOSITORY
from lab_utils.machine import environment
from lab_utils.machine.environment import Check


def test_a_missing_package_is_needed_and_another_version_is_a_note(monkeypatch):
    monkeypatch.setattr(environment, "installed_version", {"trl": None, "peft": "0.1.0"}.get)
    missing, other = environment._package("trl", "1.16.0"), environment._package("peft", "0.21.2")
    assert (missing.found, missing.required) == ("not installed", True) and "create_env.sh" in missing.verdict
    assert (other.found, other.required) == ("0.1.0", False) and other.verdict.startswith("note")


def test_a_missing_package_that_is_only_for_gpus_is_a_note(monkeypatch):
    monkeypatch.setattr(environment, "installed_version", lambda package: None)
    assert environment._package("vllm", "0.31.0", required=False).verdict.startswith("note")


def test_what_colab_has_of_its_own_is_not_asked_for(monkeypatch):
    asked = {check.what for check in environment.run_checks()}
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    left_out = asked - {check.what for check in environment.run_checks()}
    assert {"numpy", "matplotlib", "jupyterlab"} <= left_out <= set(environment.COLABS_OWN)


def test_the_cpu_build_counts_as_the_pinned_torch(monkeypatch):
    monkeypatch.setattr(environment, "installed_version", lambda package: "2.13.0+cpu")
    assert environment._package("torch", "2.13.0").verdict == "OK"


def test_a_folder_without_write_permission_is_reported(tmp_path):
    assert environment._writable(tmp_path).verdict == "OK"
    assert environment._writable(tmp_path / "nowhere").verdict.startswith("MISSING")


def test_the_table_closes_with_what_is_missing():
    fine, advice = Check("a", "1", "1"), Check("b", "0", "1", "get b", required=False)
    assert environment.format_table([fine, advice]).endswith("Everything required is here.")
    assert environment.format_table([fine, Check("c", "no", "yes", "get c")]).endswith("Required but missing: c.")


def test_the_check_works_without_any_package():
    """-S and -I hide site-packages, as on a machine where nothing is installed."""
    result = subprocess.run(
        [sys.executable, "-I", "-S", "setup/check_environment.py"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 1, result.stderr
    assert re.search(r"^torch +not installed +\S+ +MISSING: run: bash setup/create_env.sh$", result.stdout, re.M)
