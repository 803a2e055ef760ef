"""The check of a GPU: on a CPU at tiny shapes, with workers that die or hang, and in a Python that lacks packages."""

import importlib.util
import io
import json
import os
import runpy
import subprocess
import sys
import threading
import zipfile

import gpu_check as script
import pytest

from lab_utils import REPOSITORY, WorkshopError
from lab_utils.config import load
from lab_utils.machine import gpu_check
from lab_utils.machine.gpu_check import Case, Check, Worker

H200 = {"gpu": True, "cores": 16, "tier": "h200", "memory_gb": 150.0, "bfloat16": True, "vllm": True,
        "bitsandbytes": False, "bfloat16_tflops": 788.0, "float16_tflops": 788.0, "float32_tflops": 50.0}
T4 = H200 | {"cores": 2, "tier": "t4", "memory_gb": 15.8, "bfloat16": False, "vllm": False, "bitsandbytes": True}
WORKER = """
import json, os, sys, time
answers = os.fdopen(int(sys.argv[1]), "w")
for line in sys.stdin:
    function = json.loads(line)["function"]
    if function == "dies":
        sys.exit("out of luck")
    if function == "hangs":
        time.sleep(60)
    print(json.dumps({"pid": os.getpid()}), file=answers, flush=True)
"""


@pytest.fixture
def workers_here(monkeypatch):
    """Let the program of the workers answer in this process, which has imported torch."""
    one_at_a_time = threading.Lock()

    class Here(Worker):
        PROGRAM = ("-c", WORKER)

        def answer(self, case, seconds):
            lines = json.dumps({"function": case.function, "arguments": case.arguments}) + "\n"
            answers, theirs = os.pipe()
            with one_at_a_time, monkeypatch.context() as patch, os.fdopen(answers) as answers:
                patch.setattr(sys, "argv", ["gpu_cases", str(theirs)])
                patch.setattr(sys, "stdin", io.StringIO(lines))
                runpy.run_module("lab_utils.machine.gpu_cases", run_name="__main__")
                return json.loads(answers.readline())

    monkeypatch.setattr(gpu_check, "Worker", Here)


@pytest.mark.component
def test_every_case_runs_on_a_cpu_at_tiny_shapes(tmp_path, workers_here):
    assert gpu_check.main(["--output-dir", str(tmp_path), "--minutes", "30"]) == 0
    cases = json.loads((tmp_path / "gpu_check.json").read_text())["cases"]
    assert {name: found["error"] for name, found in cases.items() if "error" in found} == {}
    not_run = {name for name, found in cases.items() if "not run" in found}
    assert not_run - {"rollout of 16 × 16 tokens, tiny, vLLM"} == {"t4", "a10g", "a10g-x4", "a100", "a100-x8", "h200"}
    assert {"learning, grpo, seed 0", "learning, ppo, seed 0"} < set(cases)
    assert cases["resume"]["largest_difference"] < 1e-5
    table = (tmp_path / "gpu_check.md").read_text()
    assert "; not a GPU" in table.splitlines()[0] and "| smoke, gsm8k-sft-ppo, ppo | " in table
    assert "- h200: not run it takes a GPU of 141 GB" in table


def test_the_script_starts_the_check_and_a_machine_that_cannot_be_described_ends_it(tmp_path):
    done = subprocess.run(
        ["bash", "scripts/gpu_check.sh", "--output-dir", tmp_path, "--minutes", "0"], cwd=REPOSITORY, text=True,
        capture_output=True, env=os.environ | {"PYTHON": sys.executable})
    assert done.returncode == 1 and "machine: not run no time was left" in done.stdout, done.stdout + done.stderr
    assert "- machine: not run no time was left" in (tmp_path / "gpu_check.md").read_text()


@pytest.fixture
def check(tmp_path, monkeypatch):
    monkeypatch.setattr(Worker, "PROGRAM", ("-c", WORKER))
    check = Check(tmp_path, minutes=5)
    yield check
    check.close()


def test_a_worker_that_dies_or_hangs_is_replaced_and_the_check_goes_on(check, tmp_path):
    first = check.run(Case("first", "fine"))["pid"]
    assert check.run(Case("dies", "dies"))["not run"].startswith("its process died")
    second = check.run(Case("second", "fine"))["pid"]
    assert check.run(Case("hangs", "hangs"), most=0.5)["not run"] == "stopped after 0 s"
    third = check.run(Case("third", "fine"))["pid"]
    alone = check.run(Case("alone", "fine", alone=True))["pid"]
    check.side_by_side([Case("left", "fine"), Case("right", "dies")], most=20)
    assert len({first, second, third, alone}) == 4 and check.run(Case("last", "fine"))["pid"] == third
    written = json.loads((tmp_path / "gpu_check.json").read_text())["cases"]
    assert list(written) == ["first", "dies", "second", "hangs", "third", "alone", "left", "right", "last"]
    assert "out of luck" in (tmp_path / "log.txt").read_text()


def test_what_has_no_time_left_is_marked(check):
    check.deadline = 0
    assert check.run(Case("late", "fine")) == {"not run": "no time was left"}


@pytest.mark.parametrize("machine, tried, refused", [
    (H200, {"t4", "a10g", "a100", "h200"}, {"a10g-x4", "a100-x8"}),
    (T4, {"t4"}, {"a10g", "a10g-x4", "a100", "a100-x8", "h200"})])
def test_every_tier_and_stage_that_fits_is_planned_with_valid_settings(machine, tried, refused, tmp_path):
    planned = list(gpu_check.cases(machine, tmp_path))
    steps = [case for case in planned if case.function == "steps"]
    assert {case.arguments["hardware"] for case in steps} == tried and steps[0].arguments["hardware"] == machine["tier"]
    assert {case.name for case in planned if not case.function} == refused
    for case in steps:
        arguments = case.arguments
        load(arguments["recipe"], arguments["hardware"], arguments["settings"])
        shape = "Qwen2.5-1.5B" if arguments["recipe"] == "countdown-grpo" else "Qwen2.5-0.5B"
        assert arguments["model"] == str(tmp_path / shape)
    with_vllm = [case for case in planned if case.name.endswith("vLLM")]
    assert all((case.not_run == "") == machine["vllm"] and case.alone for case in with_vllm)
    assert any(case.not_run == "bitsandbytes is not installed" for case in steps) == (not machine["bitsandbytes"])
    assert len(gpu_check.learning_cases(machine)) == (4 if machine["cores"] == 16 else 2)


@pytest.fixture
def wheels(tmp_path):
    """Return a folder with small wheels of all carried packages, of which one has builds for two Pythons."""
    minor = sys.version_info.minor
    for name in script.CARRIED:
        for tag in (f"py3{minor}", f"py3{minor + 1}") if name == "multiprocess" else ("py3",):
            with zipfile.ZipFile(tmp_path / f"{name}-1.0-{tag}-none-any.whl", "w") as wheel:
                wheel.writestr(f"{name}/__init__.py", f"tag = '{tag}'")
    return tmp_path


def test_packages_that_are_missing_come_from_wheels(wheels, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    script.unpack(wheels, tmp_path / "unpacked")
    assert sorted(folder.name for folder in (tmp_path / "unpacked").iterdir()) == sorted(script.CARRIED)
    own = (tmp_path / "unpacked" / "multiprocess" / "__init__.py").read_text()
    assert own == f"tag = 'py3{sys.version_info.minor}'"
    with pytest.raises(WorkshopError, match="lacks trl, peft, datasets, dill, multiprocess: .* pass --wheels"):
        script.unpack(None, tmp_path / "unpacked")


def test_what_wheels_do_not_bring_is_named(monkeypatch):
    script.check_python()
    monkeypatch.setattr(script, "installed_version", lambda name: {"torch": "2.7.1+cu126"}.get(name))
    with pytest.raises(WorkshopError, match=r"torch 2.8 or newer \(found: 2.7.1.*transformers 5.0 .*\(found: none"):
        script.check_python()
