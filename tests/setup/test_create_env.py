"""What setup/create_env.sh asks uv and pip to install; a recorder replaces both, so nothing is installed."""

import os
import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from lab_utils import REPOSITORY
from lab_utils.machine.environment import COLABS_OWN, read_pins

# A Python that records the arguments of uv and pip, pretends to have a version of torch, and works as usual otherwise.
PYTHON = """#!/bin/sh
case "$1 $2" in
    "-m pip") shift 2; echo "$*" >>"{log}"; [ "$1" != config ] || echo "{pip_config}"; exit 0 ;;
    "-m uv") shift 2; echo "uv $*" >>"{log}"; exit {uv_status} ;;
    "-m ipykernel") exit 0 ;;
esac
case "$2" in
    *"version(sys.argv[1])"*) case "$3" in
        torch) echo "{torch}" ;; numpy) echo 2.0.2 ;; pandas) echo 2.2.2 ;; matplotlib) echo 3.10.0 ;;
        ipython) echo 7.34.0 ;; ipykernel) echo 6.17.1 ;; esac; exit 0 ;;
    *"print(sys.prefix)"*) echo "{prefix}"; exit 0 ;;
esac
exec "{real}" "$@"
"""
# Colab in the middle of 2026, with Python 3.12
COLAB = {"numpy": "2.0.2", "pandas": "2.2.2", "matplotlib": "3.10.0", "ipython": "7.34.0", "ipykernel": "6.17.1"}
NVIDIA_SMI = "#!/bin/sh\necho 'GPU 0: Tesla T4 (UUID: GPU-0)'\n"


@pytest.fixture
def set_up(tmp_path):
    """Return a function that runs create_env.sh on a pretended machine: output and their arguments, call by call."""

    def run(torch: str = "", gpu: bool = True, colab: bool = False, uv_status: int = 0,
            pip_config: str = "") -> tuple[str, list[str]]:
        log = tmp_path / "pip.log"
        log.write_text("")
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        python = PYTHON.format(log=log, torch=torch, prefix=tmp_path, real=sys.executable, uv_status=uv_status,
                               pip_config=pip_config)
        smi = NVIDIA_SMI if gpu else "#!/bin/sh\nexit 9\n"
        for name, text in (("python", python), ("python3", python), ("nvidia-smi", smi)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        done = subprocess.run(
            ["bash", "setup/create_env.sh"], cwd=REPOSITORY, capture_output=True, text=True, timeout=100,
            env={**os.environ, "VIRTUAL_ENV": "" if colab else str(tmp_path), "CONDA_PREFIX": "",
                 "COLAB_RELEASE_TAG": "release-colab" if colab else "", "PATH": f"{folder}:{os.environ['PATH']}"})
        assert done.returncode == 0, done.stderr
        return done.stdout, log.read_text().splitlines()

    return run


@pytest.mark.parametrize("torch", ["2.11.0+cu128", "2.13.0+cu130"])
def test_what_colabs_kernel_has_imported_stays(set_up, tmp_path, torch):
    """New files under a running kernel end in "cannot import name 'RenderMode' from 'matplotlib.ft2font'"."""
    printed, calls = set_up(torch=torch, colab=True)
    requirements, constraint = tmp_path / ".rl-workshop-requirements", tmp_path / ".rl-workshop-constraint"
    (packages,) = [call for call in calls if str(requirements) in call]
    assert f"-c {constraint}" in packages and "base.txt" not in packages and "vllm" not in packages
    kept = {"torch": torch, **COLAB}
    assert read_pins(constraint) == kept and "keeping Colab's numpy==2.0.2" in printed
    asked = read_pins(requirements)
    assert {"trl", "transformers", "datasets"} < set(asked)
    assert not {"torch", *COLABS_OWN} & set(asked)


def test_everything_that_colab_gets_runs_with_what_colab_has():
    """No package of base.txt, nor what it requires, forbids the versions that stay."""
    pins = read_pins(REPOSITORY / "setup" / "requirements" / "base.txt")
    waiting = [name for name in pins if name not in COLABS_OWN]
    seen = set(waiting)
    while waiting:
        package = waiting.pop()
        try:
            needed = map(Requirement, metadata.requires(package) or [])
        except metadata.PackageNotFoundError:
            continue  # for another platform
        for requirement in needed:
            if requirement.marker is None or requirement.marker.evaluate({"python_version": "3.12", "extra": ""}):
                name = requirement.name.lower()
                version = {**COLAB, "torch": "2.11.0"}.get(name)
                assert version is None or version in requirement.specifier, f"{package} requires {requirement}"
                if name not in seen and name not in COLAB:
                    seen.add(name)
                    waiting.append(name)
    assert "pyarrow" in seen


def test_another_torch_stays_and_vllm_which_needs_the_pinned_one_is_left_out(set_up, tmp_path):
    printed, calls = set_up(torch="2.9.0+cu128")
    (packages,) = [call for call in calls if "base.txt" in call]
    pin = read_pins(REPOSITORY / "setup" / "requirements" / "gpu.txt")["bitsandbytes"]
    constraint = tmp_path / ".rl-workshop-constraint"
    assert f"-r setup/requirements/base.txt -c {constraint} bitsandbytes=={pin}" in packages
    assert constraint.read_text() == "torch==2.9.0+cu128\n"
    assert "keeping the installed torch 2.9.0+cu128" in printed and "vLLM is left out" in printed
    assert not any("gpu.txt" in call or "torch==2.13" in call or "vllm" in call for call in calls)

    assert "up to date" in set_up(torch="2.9.0+cu128")[0], "the second time nothing is installed"


@pytest.mark.parametrize("torch", ["", "2.13.0+cu130"])
def test_a_machine_with_a_gpu_gets_vllm(set_up, torch):
    _, calls = set_up(torch=torch)
    assert [call for call in calls if "-r setup/requirements/gpu.txt" in call], calls
    assert not any("whl/cpu" in call for call in calls)


def test_a_machine_without_a_gpu_gets_the_cpu_build(set_up):
    _, calls = set_up(gpu=False)
    if sys.platform == "linux":
        assert any("https://download.pytorch.org/whl/cpu torch==" in call for call in calls)
    assert any("-r setup/requirements/cpu.txt" in call for call in calls)


def test_uv_installs_and_pip_only_where_uv_cannot(set_up, tmp_path):
    def installers(**machine):
        (tmp_path / ".rl-workshop-set-up").unlink(missing_ok=True)
        calls = set_up(gpu=False, **machine)[1]
        return [call.split()[0] for call in calls if "-r setup/requirements/cpu.txt" in call]

    assert installers() == ["uv"]
    assert installers(uv_status=2) == ["uv", "install"]
    assert installers(pip_config="global.index-url='https://mirror.example/simple'") == ["install"]
    assert installers(pip_config="global.extra-index-url='https://mirror.example/simple'") == ["uv"]


# Without a fake Python: what ends before anything is installed


def create_env(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", "setup/create_env.sh", *arguments], cwd=REPOSITORY, env={**os.environ, **variables},
                          capture_output=True, text=True, timeout=60)


def test_an_unknown_option_is_refused():
    result = create_env("--develop")
    assert result.returncode == 2
    assert "--develop" in result.stderr and "--dev" in result.stderr


def test_the_active_environment_is_used(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    result = create_env("--print-python", VIRTUAL_ENV=str(tmp_path))
    assert (result.returncode, result.stdout.strip()) == (0, str(python))


def test_an_environment_with_an_old_python_is_refused_with_the_remedy(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1 && exit 0\nexit 1\n')
    python.chmod(0o755)
    result = create_env(VIRTUAL_ENV=str(tmp_path))
    assert result.returncode == 1
    assert "Python 3.9.1" in result.stderr and "3.11" in result.stderr and "conda create" in result.stderr
