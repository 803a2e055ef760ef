"""Loading a model from the package, a folder or the Hub, with or without a LoRA adapter; exporting it for servers."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from .. import TINY_MODEL, WorkshopError

logging.disable_progress_bar()  # a bar for every loaded and written file hides the one that matters

if TYPE_CHECKING:
    from ..config import ModelSettings

END_OF_TURN = "<|im_end|>"
# Qwen3's own mode without thinking, which puts an empty block before each answer. Its template puts that block into
# demonstrations but not into prompts, and takes <think> in a demonstration apart. A model with thinking switched on
# fills its tokens before it comes to the response format. With this template a completion is what the format says.
WITHOUT_THINKING = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' %}{{- '<think>\n\n</think>\n\n' }}{% endif %}
    {{- message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}"""


# For base models without a template: system message and question as paragraphs, and the end token after a response.
PLAIN_TEMPLATE = """\
{%- for message in messages %}
    {{- message.content + (eos_token if message.role == 'assistant' else '\n\n') }}
{%- endfor %}"""


class ModelLoadError(WorkshopError):
    """A model cannot be loaded; the message says which and what to do."""


def model_location(name: str | Path) -> str:
    """Return the path or Hub id of a model; "tiny" is the one that ships with the package."""
    return str(TINY_MODEL) if str(name) == "tiny" else str(name)


def adapter_base(location: str) -> str | None:
    """Return the base model of a LoRA adapter folder, or None if the location is a whole model."""
    path = Path(location) / "adapter_config.json"
    if not path.is_file():
        return None
    try:
        base = str(json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (ValueError, KeyError, TypeError):
        raise ModelLoadError(f"{path} is damaged, or does not name its base model: copy the adapter again, or resume "
                             "the run that made it with --resume.") from None
    # On another machine the workshop's own model has another path.
    return str(TINY_MODEL) if Path(base).parts[-2:] == TINY_MODEL.parts[-2:] else base


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model ("tiny", a path or a Hub id).

    One that can think gets a chat template without thinking, and one without a template gets plain paragraphs.
    """
    location = model_location(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
    except Exception as error:  # damaged files raise errors of every kind
        raise _load_error("tokenizer", name, error) from error
    if tokenizer.chat_template is None:
        warnings.warn(f"The tokenizer of {str(name)!r} has no chat template: system message, question and response are "
                      "joined as paragraphs. If this is an instruct model, its files are incomplete.", stacklevel=2)
        tokenizer.chat_template = PLAIN_TEMPLATE
    if "enable_thinking" in tokenizer.chat_template:
        tokenizer.chat_template = WITHOUT_THINKING
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(name: str | Path, settings: ModelSettings | None = None, *,
               train_adapter: bool = False) -> PreTrainedModel | PeftModel:
    """Load a causal language model for training or sampling.

    Args:
        name: "tiny", a path or a Hub id. A folder with a LoRA adapter is merged into its base model; on a 4-bit base,
            which cannot be merged without loss, the adapter stays on top.
        settings: device, dtype and quantization (`config.model`); float32 on the CPU when None.
        train_adapter: keep a LoRA adapter on top of its base, to train it further. Training then saves one adapter and
            the name of its base; merged weights would be missing in that base.

    Returns:
        The model. Its completions end at the end of a chat turn as well as at its own end-of-text token.

    Raises:
        ModelLoadError: no model of that name, no access, incomplete files, or no room on the GPU.
    """
    location = model_location(name)
    base = adapter_base(location)
    arguments = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False,
                 "output_loading_info": True}
    if settings is not None:
        arguments["dtype"] = getattr(torch, settings.dtype)
        if settings.load_in_4bit:
            arguments["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=getattr(torch, settings.dtype))
    if settings is not None and on_gpu(settings):
        arguments["device_map"] = {"": local_gpu()}
    try:
        model, report = AutoModelForCausalLM.from_pretrained(model_location(base or location), **arguments)
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):  # bitsandbytes' fast way on a CPU, which has no gradients
                module.support_avx512bf16_for_cpu = False
        if base is not None:
            stays = train_adapter or (settings is not None and settings.load_in_4bit)
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "Found missing adapter keys")
                model = PeftModel.from_pretrained(model, location, is_trainable=train_adapter)
            model = model if stays else model.merge_and_unload()
    except Exception as error:  # damaged files raise errors of every kind
        if base is not None and Path(base).is_absolute() and not Path(base).exists():
            raise ModelLoadError(f"{name} is a LoRA adapter on the model {base}, which is missing here, because the "
                                 "adapter was trained on another machine: get the whole model from there (train.py "
                                 "--export, or the model.tar.gz of a SageMaker job).") from error
        raise _load_error("model", name, error) from error
    tokenizer = load_tokenizer(name)
    if problem := _weights_problem(model, report, tokenizer):
        raise ModelLoadError(f"The model {str(name)!r} is damaged, or its files belong to different models: {problem}. "
                             "Copy or download it again; if a run of yours made it, resume that run with --resume.")
    model.generation_config.eos_token_id = end_token_ids(model.config, tokenizer)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def _weights_problem(model: PreTrainedModel | PeftModel, report: dict,
                     tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return why loaded weights cannot be used, or None. transformers fills missing ones with random numbers."""
    for kind in ("missing", "unexpected"):
        if names := sorted(report[f"{kind}_keys"]):
            return f"{len(names)} {kind} weights, such as {names[0]}"
    if len(tokenizer) > (known := model.get_input_embeddings().num_embeddings):
        return f"the tokenizer has {len(tokenizer)} tokens and the model {known}"
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not weight.isfinite().all():
            return f"{name} has values that are NaN or infinite"
    return None


def on_gpu(settings: ModelSettings) -> bool:
    """Say whether a run uses a GPU: if there is one, unless its tier is for the processor."""
    return settings.device == "auto" and torch.cuda.is_available()


def local_gpu() -> int:
    """Return the number of this process's GPU; each process that a launcher has started has its own."""
    return int(os.environ.get("LOCAL_RANK", torch.cuda.current_device()))


def export_model(name: str | Path, directory: str | Path, settings: ModelSettings) -> Path:
    """Write a model as servers load it: adapter merged, in safetensors files, with its tokenizer and chat template.

    An adapter trained on a 4-bit base is merged into the unquantized base in `settings.dtype`. The generation config
    holds only the end tokens: Qwen's own adds a repetition penalty, with which the model was neither trained nor
    evaluated. Returns `directory`, which cannot be replaced as a whole: in a SageMaker job it is a mount point. Its
    config.json, without which it is no model, goes first and comes last.
    """
    directory = Path(directory)
    unfinished = directory / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)  # of a killed process
    model, tokenizer = load_model(name, settings.model_copy(update={"load_in_4bit": False})), load_tokenizer(name)
    model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id,
                                               pad_token_id=tokenizer.pad_token_id)
    try:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        (directory / "config.json").unlink(missing_ok=True)
        for path in sorted(unfinished.iterdir(), key=lambda path: path.name == "config.json"):
            path.replace(directory / path.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return directory


def end_token_ids(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end a completion: the model's end of text and the end of a chat turn."""
    return sorted({config.eos_token_id, tokenizer.eos_token_id, tokenizer.get_vocab().get(END_OF_TURN)} - {None})


def lora_config(settings: ModelSettings) -> LoraConfig | None:
    """Return the LoRA adapter of a configuration (Hu et al. 2021, arXiv 2106.09685), or None for full fine-tuning."""
    if settings.lora is None:
        return None
    return LoraConfig(r=settings.lora.r, lora_alpha=settings.lora.alpha, lora_dropout=settings.lora.dropout,
                      target_modules=settings.lora.target_modules, task_type="CAUSAL_LM")


def _load_error(what: str, name: str | Path, error: Exception) -> ModelLoadError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)

    def caused_by(*kinds: type[Exception]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if "trust_remote_code" in str(error):
        reason = "it brings its own program code, which the workshop never runs."
        step = "Choose a model of an architecture that transformers has, such as Qwen/Qwen2.5-0.5B-Instruct."
    elif caused_by(torch.OutOfMemoryError):
        step = ("The GPU has no room for it: free what another process or an earlier model holds (nvidia-smi "
                "shows which; restart the notebook's kernel), or use a smaller model.")
    elif caused_by(ImportError) and "bitsandbytes" not in str(error):
        step = "A package is missing or too old for this: python setup/check_environment.py says which, and the fix."
    elif caused_by(ImportError):
        step = ("4-bit weights need bitsandbytes: run bash setup/create_env.sh, or set model.load_in_4bit to false.")
    elif caused_by(GatedRepoError):
        step = (f"Its owner grants access on request: ask on https://huggingface.co/{name}, then run `hf auth login` "
                "with a token of your account. The Qwen models need neither.")
    elif caused_by(RepositoryNotFoundError):
        step = ("There is no such model on the Hub, or it is private (then run `hf auth login`). Check the spelling: "
                "OWNER/NAME, such as Qwen/Qwen2.5-0.5B-Instruct.")
    elif caused_by(LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.TransportError):
        step = ("The Hub cannot be reached. Unset HF_HUB_OFFLINE if it is set, check network and proxy, or run "
                f"`hf download {name}` on a machine with a network and copy the folder; --hardware cpu needs none.")
    else:
        step = ("Give 'tiny' (ships with the workshop), a folder written by a finished run (RUN/model), or a Hub id "
                "such as Qwen/Qwen2.5-0.5B-Instruct.")
    return ModelLoadError(f"The {what} {str(name)!r} could not be loaded: {reason[:300]}\n{step}")
