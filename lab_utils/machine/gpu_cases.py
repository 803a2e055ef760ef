"""What `scripts/gpu_check.sh` measures, one function per kind of case, and the worker process that calls them.

The worker reads a case per line of standard input, {"function": ..., "arguments": {...}}, and answers with a line of
JSON: what was found, or {"error": ...}. The answers have a pipe of their own, because libraries print.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
import timeit
from pathlib import Path
from typing import TextIO

import torch
from transformers.utils import is_bitsandbytes_available
from trl.import_utils import is_vllm_available

from .. import REPOSITORY
from ..config import RunConfig, detect_hardware, load, with_overrides
from ..evaluation import evaluate_run
from ..models import end_token_ids, load_model, load_tokenizer
from ..runs import RunDirectory
from ..sampling import vllm as vllm_sampling
from ..sampling.local import encode_prompts, sample_token_ids
from ..tasks import load_task
from ..training import grpo, ppo, sft
from ..training.rl import steps_per_rollout
from ..training.stages import TRAIN
from .memory import check_memory, skeleton
from .step_times import Clock, machine, random_model
from .step_times import measure as measure_steps

ARGUMENTS = {"grpo": grpo.grpo_arguments, "ppo": ppo.ppo_arguments}


def describe() -> dict:
    """Return the machine, what is installed, and the rates of a product of two large matrices and of a copy."""
    on_gpu = torch.cuda.is_available()
    place, size = ("cuda", 8192) if on_gpu else ("cpu", 512)
    found = {"machine": machine(), "gpu": on_gpu, "cores": os.cpu_count(), "vllm": is_vllm_available(),
             "bitsandbytes": is_bitsandbytes_available(), "tier": detect_hardware()[0],
             "memory_gb": torch.cuda.get_device_properties(0).total_memory / 1e9 if on_gpu else 0.0,
             "bfloat16": not on_gpu or torch.cuda.get_device_capability()[0] >= 8}

    def seconds(work) -> float:
        work()  # warms up
        Clock.now()
        return min(timeit.repeat(lambda: (work(), Clock.now()), number=1, repeat=5))

    for dtype in ("bfloat16", "float16", "float32"):
        a = torch.randn(size, size, device=place, dtype=getattr(torch, dtype))
        found[f"{dtype}_tflops"] = 2 * size**3 / seconds(lambda a=a: a @ a) / 1e12
    found["copy_gb_per_second"] = 2 * a.numel() * a.element_size() / seconds(a.clone) / 1e9
    return found


def make_model(shape: str, folder: str) -> dict:
    """Write a model of a known shape with random weights to a folder."""
    return {"parameters": skeleton(str(random_model(shape, Path(folder)))).num_parameters()}


def steps(recipe: str, hardware: str, stage: str, model: str, rollouts: int, ceiling_tflops: dict[str, float],
          settings: dict) -> dict:
    """Train steps of a recipe's stage as a tier does, from a model with random weights; return seconds and memory."""
    config = load(recipe, hardware, {
        "stages": [stage], "task.source": "synthetic", "task.train_limit": 512, "model.name": model,
        "tracking.tensorboard": False, "grpo.use_vllm": False, "ppo.use_vllm": False, "evaluation.use_vllm": False,
        f"{stage}.save_steps": 10**6, **settings})
    check_memory(config)
    with tempfile.TemporaryDirectory() as folder:
        each = 2 if stage == "sft" else steps_per_rollout(ARGUMENTS[stage](config, RunDirectory(folder)))
    config = with_overrides(config, {f"{stage}.max_steps": rollouts * each})
    return measure_steps(config, stage, ceiling_tflops[config.model.dtype])


def learn(stage: str, seed: int, hardware: str, problems: int) -> dict:
    """Train the tiny model on this device with SFT, then GRPO or PPO; return accuracy and that of the CPU's runs."""
    config = on_device(load(f"countdown-{stage}", hardware, {
        "seed": seed, "task.test_limit": problems, "evaluation.num_samples": 4, f"{stage}.save_steps": 10**6}))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        first = sft.train(config, f"{folder}/sft")
        run = TRAIN[stage](config, f"{folder}/{stage}", model=first.model_dir)
        seconds = time.perf_counter() - start
        before, after = (evaluate_run(done, config) for done in (first, run))
    recorded = json.loads((REPOSITORY / "notebooks" / "recorded" / "grpo_and_ppo.json").read_text(encoding="utf-8"))
    cpu = [row for row in recorded["rows"] if row["model"] == stage.upper()]
    cpu_low, cpu_high = min(row["low"] for row in cpu), max(row["high"] for row in cpu)
    low, high = after.accuracy_interval
    return {"sft_accuracy": before.accuracy, "accuracy": after.accuracy, "low": low, "high": high, "cpu_low": cpu_low,
            "cpu_high": cpu_high, "as_on_the_cpu": low <= cpu_high and cpu_low <= high,
            "train_seconds": round(seconds, 1)}


def resume() -> dict:
    """Stop a run after two of three steps, resume it, and compare it with one that was not stopped."""
    config = on_device(load("countdown-grpo", "smoke", {
        "grpo.max_steps": 3, "grpo.lr_scheduler_type": "constant", "model.lora": {"r": 8}}))
    with tempfile.TemporaryDirectory() as folder:
        whole = grpo.train(config, f"{folder}/whole")
        grpo.train(with_overrides(config, {"grpo.max_steps": 2}), f"{folder}/halves")
        halves = grpo.train(config, f"{folder}/halves", resume=True)
        weights = [load_model(run.model_dir).state_dict() for run in (whole, halves)]
    return {"largest_difference": max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])}


def rollout(engine: str, model: str, rows: int, tokens: int) -> dict:
    """Sample completions of chat prompts, 16 of each, with our sampler or vLLM, as a rollout does."""
    settings = load("countdown-grpo", detect_hardware()[0]).model
    tokenizer, prompts = load_tokenizer(model), load_task("countdown").dataset("test", max(1, rows // 16))["prompt"]
    if engine == "vllm":
        with vllm_sampling.vllm_engine(model, settings, own_process=False) as llm:
            def sampled() -> int:
                found = vllm_sampling.sample(llm, tokenizer, prompts, num_samples=16, max_new_tokens=tokens)
                return sum(len(completion.token_ids) for group in found for completion in group)
            return timed_rollout(sampled)
    policy = load_model(model, settings).eval()
    ids = encode_prompts(tokenizer, prompts)
    ends = end_token_ids(policy.config, tokenizer)
    return timed_rollout(lambda: sum(len(found) for found, _ in sample_token_ids(
        policy, ids, [16] * len(ids), end_ids=ends, max_new_tokens=tokens)))


def timed_rollout(sampled) -> dict:
    """Return seconds and tokens per second of the second of two calls."""
    sampled()
    start = Clock.now()
    tokens = sampled()
    seconds = Clock.now() - start
    return {"rollout_seconds": round(seconds, 3), "sampled_tokens": tokens,
            "sampled_tokens_per_second": round(tokens / seconds)}


def on_device(config: RunConfig) -> RunConfig:
    """Return a configuration of a CPU tier that uses the GPU, if there is one, and leaves no logs."""
    return with_overrides(config, {"model.device": "auto", "tracking.tensorboard": False})


FUNCTIONS = {function.__name__: function for function in (describe, make_model, steps, learn, resume, rollout)}


def work(answers: TextIO) -> None:
    """Answer the cases on standard input until it ends, or until CUDA fails: nothing works after that."""
    for line in sys.stdin:
        case, broken = json.loads(line), False
        try:
            found = FUNCTIONS[case["function"]](**case["arguments"])
        except Exception as error:  # a case that fails is a result
            reason = (str(error).strip() or "no message").splitlines()[0]
            found = {"error": f"{type(error).__name__}: {reason[:300]}"}
            broken = isinstance(error, torch.AcceleratorError)
        print(json.dumps(found), file=answers, flush=True)
        if broken:
            break
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    work(os.fdopen(int(sys.argv[1]), "w"))
