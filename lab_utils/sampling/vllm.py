"""Sampling with vLLM: the same call and the same results as local.sample, for thousands of completions at once.

vLLM is imported only by the functions that need it, because that takes seconds and most machines do not have it.
In rollouts TRL runs its own vLLM (`use_vllm`); the last section has what TRL lacks there.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedTokenizerBase

from ..models import adapter_base, end_token_ids, export_model, model_location
from .local import Completion, check_sizes, encode_prompts

if TYPE_CHECKING:
    from trl.generation.vllm_generation import VLLMGeneration
    from vllm import LLM

    from ..config import ModelSettings

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def vllm_engine(name: str | Path, settings: ModelSettings, *, own_process: bool = True,
                **options: Any) -> Iterator[LLM]:
    """Load a model into vLLM, and free its memory at the end of the `with` block.

    Args:
        name: "tiny", a path or a Hub id. A LoRA adapter is merged into its base model first.
        settings: only `dtype` is used.
        own_process: run vLLM in a separate process, whose end frees all of its memory.
        options: arguments of vllm.LLM, for example max_model_len.

    Raises:
        ModelLoadError: an adapter whose base model cannot be loaded.
    """
    from vllm import LLM

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(own_process))  # TRL's colocate mode leaves a 0
    options = {"logprobs_mode": "processed_logprobs", **options}  # at the sampling temperature, as the loss wants them
    if not torch.cuda.is_available():
        options = {"enforce_eager": True, **options}  # compiling for a CPU takes minutes
    with tempfile.TemporaryDirectory() as folder:
        location = model_location(name)
        if adapter_base(location) is not None:
            location = str(export_model(location, folder, settings))
        if torch.cuda.is_available():  # after the export has freed its memory
            options = {"gpu_memory_utilization": free_share(), **options}
        engine = LLM(model=location, dtype=settings.dtype, seed=0, **options)
    try:
        yield engine
    finally:
        engine.llm_engine.engine_core.shutdown()


def free_share() -> float:
    """Return the share of the GPU's memory that vLLM may take: nine tenths of what is free."""
    gc.collect()  # a trainer refers to itself, and would keep its model
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return round(0.9 * free / total, 2)


def sample(
    engine: LLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[dict[str, str]] | str],
    *,
    num_samples: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | None = None,
    batch_size: int | None = None,
) -> list[list[Completion]]:
    """Sample completions of prompts, as `local.sample` does; vLLM itself decides how many run at once.

    The same seed gives the same completions on the same machine, but not those of `local.sample`. With top_p < 1 the
    log-probabilities are those after the cut. `batch_size` exists for the common signature and is not used.
    """
    from vllm import SamplingParams

    check_sizes(num_samples=num_samples, max_new_tokens=max_new_tokens)
    ends = end_token_ids(engine.llm_engine.model_config.hf_config, tokenizer)
    # vLLM counts the seed up from sample to sample of a request.
    seeds = [None if seed is None else (seed * 1_000_003 + index) * num_samples for index in range(len(prompts))]
    settings = [SamplingParams(n=num_samples, temperature=temperature, top_p=top_p, max_tokens=max_new_tokens,
                               seed=request_seed, stop_token_ids=ends, logprobs=0, detokenize=False)
                for request_seed in seeds]
    requests = engine.generate([{"prompt_token_ids": ids} for ids in encode_prompts(tokenizer, prompts)], settings,
                               use_tqdm=False)
    return [[_completion(output, tokenizer, ends) for output in request.outputs] for request in requests]


def _completion(output: Any, tokenizer: PreTrainedTokenizerBase, ends: list[int]) -> Completion:
    ids = list(output.token_ids)
    logprobs = [token[id].logprob for token, id in zip(output.logprobs, ids, strict=True)]
    return Completion(tokenizer.decode(ids, skip_special_tokens=True), ids, logprobs, ids[-1] in ends)


# --- Rollouts with TRL's vLLM ----------------------------------------------------------------------------------------


@contextmanager
def launcher_variables_restored() -> Iterator[None]:
    """Restore what TRL sets for vLLM: the next trainer of this process would take itself for one of several."""
    before = {name: os.environ.get(name) for name in LAUNCHER_VARIABLES}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@torch.no_grad()
def policy_weights(model: PeftModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights of a model with a LoRA adapter under the names of its base model, the adapter added.

    The base weights are only read. TRL would merge the adapter into them and take it out again at every transfer, and
    in bfloat16 the rounding of both stays in the base (github.com/huggingface/trl/issues/6688).
    """
    adapted = {id(module.base_layer.weight): module for module in model.modules() if isinstance(module, LoraLayer)}
    for name, weight in model.named_parameters():
        if model.prefix in name:  # the adapter itself
            continue
        merged = weight.data
        if id(weight) in adapted:
            layer = adapted[id(weight)]
            for adapter in layer.active_adapters:
                merged = merged.float() + layer.get_delta_weight(adapter).float()
        yield name.removeprefix("base_model.model.").replace(".base_layer", ""), merged.to(weight.dtype)


def stop_engine(generation: VLLMGeneration) -> None:
    """Wake and stop the vLLM of a finished run, so that the next run of this process can start its own.

    A sleeping engine's memory is already released, and stopping it would release it again
    (github.com/vllm-project/vllm/issues/36651).
    """
    engine, generation.llm = generation.llm, None
    if generation.enable_sleep_mode:
        for part in ("weights", "kv_cache"):  # vLLM skips a part that is awake
            engine.wake_up(tags=[part])
    engine.llm_engine.engine_core.shutdown()
    del engine
    gc.collect()
    torch.cuda.empty_cache()
