"""Models: the tiny one that ships, any Qwen checkpoint, LoRA adapters, 4 bits; exporting for servers."""

from .loading import (
    END_OF_TURN,
    ModelLoadError,
    adapter_base,
    end_token_ids,
    export_model,
    load_model,
    load_tokenizer,
    local_gpu,
    lora_config,
    model_location,
    on_gpu,
)
