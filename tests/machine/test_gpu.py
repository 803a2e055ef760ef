"""Machines that cannot run a GPU tier: one clear message each, with the fix; torch's answers are replaced."""

from types import SimpleNamespace

import pytest
import torch

from lab_utils.config import ConfigError, load
from lab_utils.machine import gpu
from lab_utils.machine.gpu import check_machine

A10G = SimpleNamespace(name="NVIDIA A10G", total_memory=int(22.1 * 2**30), major=8, minor=6)
T4 = SimpleNamespace(name="Tesla T4", total_memory=int(14.7 * 2**30), major=7, minor=5)


@pytest.fixture
def machine(monkeypatch):
    """Imitate a machine with GPUs and packages of your choice."""

    def build(gpus=(), *, free=None, packages=("vllm", "bitsandbytes"), cuda="13.0", init=None, processes=1):
        def fails():
            raise init

        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: gpus[i])
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (free or gpus[0].total_memory, gpus[0].total_memory))
        monkeypatch.setattr(torch.cuda, "init", fails if init else lambda: None)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(gpu, "is_vllm_available", lambda: "vllm" in packages)
        monkeypatch.setattr(gpu, "is_bitsandbytes_available", lambda: "bitsandbytes" in packages)
        monkeypatch.setenv("WORLD_SIZE", str(processes))

    return build


def message(hardware, recipe="gsm8k-grpo", overrides=None) -> str:
    with pytest.raises(ConfigError) as caught:
        check_machine(load(recipe, hardware, overrides))
    return str(caught.value)


def test_a_machine_that_fits_says_nothing(machine):
    machine([A10G])
    check_machine(load("gsm8k-grpo", "a10g"))
    machine([A10G] * 4, processes=4)
    check_machine(load("gsm8k-grpo", "a10g-x4"))
    machine([T4], packages=["bitsandbytes"])
    check_machine(load("gsm8k-sft-ppo", "t4"))
    machine()
    check_machine(load("gsm8k-grpo", "cpu"))


def test_no_gpu(machine):
    machine()
    assert "torch sees none: choose --hardware cpu, or check CUDA_VISIBLE_DEVICES" in message("a10g")
    machine(cuda=None)
    assert "build for CPUs" in message("a10g") and "requirements/gpu.txt" in message("a10g")


def test_a_driver_that_is_too_old(machine):
    machine(init=RuntimeError("The NVIDIA driver on your system is too old (found version 12020). Please update your "
                              "GPU driver by downloading and installing a new version from the URL: ..."))
    found = message("a10g")
    assert "CUDA 13.0 (The NVIDIA driver on your system is too old (found version 12020)): update the driver" in found
    machine(init=RuntimeError("CUDA unknown error - this may be due to an incorrectly set up environment. Setting ..."))
    assert "torch cannot use one (CUDA unknown error" in message("a10g")


def test_too_few_too_many_and_too_small_gpus(machine):
    machine([A10G])
    assert "needs 4 CUDA GPU(s), but torch sees 1" in message("a10g-x4")
    assert "GPUs of 40 GB, but the NVIDIA A10G here has 23.7 GB: choose --hardware auto" in message("a100")
    machine([A10G] * 4)
    assert "CUDA_VISIBLE_DEVICES=0" in message("a10g")
    assert "accelerate launch --config_file setup/accelerate/a10g-x4.yaml scripts/train.py" in message("a10g-x4")
    machine([SimpleNamespace(name="Tesla V100", total_memory=32 * 2**30, major=7, minor=0)])
    assert "compute capability 7.0: choose --hardware t4" in message("a10g")


def test_memory_that_another_process_holds(machine):
    machine([A10G], free=6e9)
    found = message("a10g")
    assert "needs 13.1 GB" in found and "A10G here has 6.0 of 23.7 GB free: stop the other processes that" in found
    assert "needs 49.4 GB" in message("a10g", overrides={"model.name": "Qwen/Qwen2.5-3B-Instruct"})


@pytest.mark.parametrize("package, recipe, hardware, expected", [
    ("vllm", "gsm8k-grpo", "a10g", ["use_vllm = True", "create_env.sh", "grpo.use_vllm=false"]),
    ("bitsandbytes", "gsm8k-sft-ppo", "a10g", ["load_in_4bit = True", "pip install bitsandbytes==",
                                               "--set model.load_in_4bit=false"]),
    ("bitsandbytes", "gsm8k-sft-ppo", "cpu", ["load_in_4bit = True", "pip install bitsandbytes=="])])
def test_a_package_that_is_missing(machine, package, recipe, hardware, expected):
    machine([A10G], packages=[name for name in ("vllm", "bitsandbytes") if name != package])
    four_bits = {"model": {"load_in_4bit": True, "lora": {"r": 4}}} if hardware == "cpu" else None
    found = message(hardware, recipe, four_bits)
    assert all(part in found for part in expected), found
