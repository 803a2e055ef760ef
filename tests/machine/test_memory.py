"""The estimator: parts against exact counts, every tier × recipe × stage inside its memory, advice that helps."""

import math
import re
import shlex

import estimate as script
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

from lab_utils import TINY_MODEL
from lab_utils import config as configuration
from lab_utils.config import ConfigError, LoraSettings, load, load_tier
from lab_utils.machine import memory as estimate
from lab_utils.models import ModelLoadError, load_model, lora_config
from lab_utils.runs import RunDirectory
from lab_utils.training import grpo, ppo, sft

GPU_TIERS = ["t4", "a10g", "a10g-x4", "a100", "h200"]
STAGES = [(recipe, hardware, stage) for recipe in configuration.recipe_names() for hardware in GPU_TIERS
          for stage in load(recipe, hardware).stages]
SMALL = {
    "Qwen2": Qwen2Config(vocab_size=64, hidden_size=128, intermediate_size=512, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True),
    "Qwen3": Qwen3Config(vocab_size=64, hidden_size=128, intermediate_size=384, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=64, tie_word_embeddings=True),
}


# --- The parts, against exact counts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name, parameters", [  # the totals that the Hub shows for the safetensors files
    ("Qwen/Qwen2.5-0.5B", 494_032_768), ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768), ("Qwen/Qwen3-0.6B", 596_049_920),
    ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304), ("Qwen/Qwen3-1.7B", 1_720_574_976),
    ("Qwen/Qwen2.5-3B-Instruct", 3_085_938_688), ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512)])
def test_the_shapes_have_the_published_numbers_of_parameters(name, parameters):
    assert estimate.model_shape(name).parameters == parameters


def test_the_tiny_model_is_counted_like_the_one_that_is_loaded():
    assert estimate.model_shape("tiny").parameters == load_model("tiny").num_parameters()
    assert estimate.model_shape("tiny") == estimate.model_shape(str(TINY_MODEL))


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B", "Qwen/Qwen3-0.6B"])
def test_an_adapter_has_as_many_parameters_as_peft_makes(name, targets):
    settings = configuration.ModelSettings(name=name, lora=LoraSettings(r=8, alpha=16, target_modules=targets))
    with torch.device("meta"):
        model = get_peft_model(AutoModelForCausalLM.from_config(estimate.architecture(name)), lora_config(settings))
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert estimate.model_shape(name).adapter_parameters(settings.lora) == trainable


def saved_for_backward(model, rows: int, length: int) -> int:
    """Bytes that autograd really keeps of a forward pass, without the weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, :5] = 0
    half = next(model.parameters()).dtype == torch.bfloat16
    saving = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with saving, torch.autocast("cpu", torch.bfloat16, enabled=half):
        model.base_model(input_ids=torch.zeros(rows, length, dtype=torch.long), attention_mask=mask, use_cache=False)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_activations_are_what_autograd_keeps(name, half, checkpointing):
    rows, length, shape = 4, 128, estimate.shape_of(SMALL[name])
    model = AutoModelForCausalLM.from_config(SMALL[name]).train()
    if half:
        model = get_peft_model(model.bfloat16(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
        model.enable_input_require_grads()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    number = 2 if half else 4
    each = shape.hidden * number if checkpointing else shape.layer_activations(number)
    expected = rows * length * shape.layers * each
    measured = saved_for_backward(model, rows, length)
    outside = 2 * rows * length * shape.hidden * 4  # the embeddings and the last norm, which the estimate leaves out
    assert expected * 0.9 <= measured <= expected * 1.1 + outside


# --- Every tier × recipe × stage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe, hardware, stage", STAGES)
def test_trl_takes_the_settings_and_the_estimate_fits(recipe, hardware, stage, tmp_path, monkeypatch):
    config, tier = load(recipe, hardware), load_tier(hardware)
    monkeypatch.setattr("trl.trainer.base_config._BaseConfig.world_size", tier.processes, raising=False)
    make = {"sft": sft.sft_arguments, "grpo": grpo.grpo_arguments, "ppo": ppo.ppo_arguments}[stage]
    arguments, settings = make(config, RunDirectory(tmp_path)), getattr(config, stage)
    assert arguments.per_device_train_batch_size == estimate.micro_batch(config, stage)
    assert arguments.gradient_checkpointing == settings.gradient_checkpointing
    if stage != "sft":
        assert arguments.generation_batch_size == estimate.rollout_rows(config, stage) * arguments.world_size
        assert arguments.use_vllm == settings.use_vllm
        if settings.use_vllm:
            assert arguments.vllm_mode == "colocate"
    needed = estimate.memory(config, stage)
    assert needed.fits, estimate.describe(config)
    assert 1.0 < needed.peak < tier.memory_gb
    assert estimate.hours(config, stage) > 0
    estimate.check_memory(config)


@pytest.mark.parametrize("hardware", GPU_TIERS)
@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "Qwen/Qwen2.5-1.5B-Instruct"])
def test_the_other_models_of_the_workshop_fit_with_lora(name, hardware):
    for recipe in ("countdown-ppo", "gsm8k-sft-ppo", "reasoning-sft-grpo", "countdown-grpo"):
        estimate.check_memory(load(recipe, hardware, {"model.name": name}))


def test_what_each_setting_saves():
    config = load("gsm8k-grpo", "a10g")

    def part(name, phase="update", **changes):
        changed = load("gsm8k-grpo", "a10g", {f"grpo.{key}" if key != "lora" else "model.lora": value
                                              for key, value in changes.items()})
        return estimate.memory(changed, "grpo").phases[phase].get(name, 0)

    shape = estimate.model_shape(config.model.name)
    assert part("optimizer") == pytest.approx(shape.parameters * 8 / 1e9), "Adam has two float32 moments"
    assert part("optimizer", lora={"r": 16}) == pytest.approx(shape.adapter_parameters(LoraSettings()) * 8 / 1e9)
    assert part("activations", gradient_checkpointing=False) > 7 * part("activations")
    assert part("vLLM") == 0 and part("vLLM", "rollout") == pytest.approx(7.2), "asleep during the update"
    assert part("vLLM", vllm_enable_sleep_mode=False) == pytest.approx(7.2)
    assert part("reference", beta=0.04) == pytest.approx(shape.parameters * 2 / 1e9), "in bfloat16"
    assert part("reference", beta=0.04, lora={"r": 16}) == 0, "the model without its adapter"
    assert part("KV cache", "rollout", use_vllm=False) == pytest.approx(1.5 * 64 * 1024 * shape.kv_bytes(2) / 1e9)


def test_ppo_counts_the_critic():
    shared = estimate.memory(load("countdown-ppo", "a10g"), "ppo").phases["update"]
    assert shared["critic"] == pytest.approx(1793 * 4 / 1e9), "a linear layer on 896 hidden states and their mean"


def test_four_bits_are_four_bits():
    whole, quantised = (estimate.memory(load("gsm8k-sft-ppo", "a10g", {"model.load_in_4bit": on}), "sft")
                        for on in (False, True))
    saved = whole.phases["update"]["weights"] - quantised.phases["update"]["weights"]
    linear = sum(i * o for _, i, o in estimate.model_shape("Qwen/Qwen2.5-0.5B").linear)
    assert linear == 357_826_560, "0.36 B without embeddings, as published, minus biases and norms"
    assert saved == pytest.approx(linear * (2 - 4.127 / 8) / 1e9)


@pytest.mark.parametrize("recipe, stage, steps", [
    ("gsm8k-grpo", "grpo", math.ceil(7473 * 16 / 64)), ("countdown-grpo", "grpo", 2 * 1000 * 8 // 64),
    ("countdown-grpo", "sft", math.ceil(1000 / 16)), ("gsm8k-sft-ppo", "ppo", 800)])
@pytest.mark.parametrize("hardware", ["a10g", "a10g-x4"])
def test_steps_follow_from_the_problems_wherever_it_runs(recipe, stage, steps, hardware):
    assert estimate.optimizer_steps(load(recipe, hardware), stage) == steps


# --- What does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe, hardware, settings", [
    ("gsm8k-grpo", "t4", ["model.name=Qwen/Qwen2.5-7B-Instruct"]),
    ("gsm8k-grpo", "a10g", ["model.name=Qwen/Qwen2.5-3B-Instruct"]),
    ("gsm8k-grpo", "a10g", ["model.name=Qwen/Qwen2.5-7B", "grpo.gradient_checkpointing=false"]),
    ("countdown-grpo", "a10g", ["grpo.gradient_checkpointing=false", "grpo.per_device_train_batch_size=64",
                                "grpo.gradient_accumulation_steps=1"]),
    ("reasoning-sft-grpo", "t4", ["sft.per_device_train_batch_size=512", "sft.gradient_accumulation_steps=1"])])
def test_what_cannot_fit_is_refused_with_settings_that_do(recipe, hardware, settings):
    config = load(recipe, hardware, settings)
    with pytest.raises(ConfigError, match=r"needs about [\d.]+ GB, and the tier .* This would fit: --set ") as caught:
        estimate.check_memory(config)
    advised = [word for word in shlex.split(str(caught.value).split("This would fit: ")[1]) if word != "--set"]
    estimate.check_memory(load(recipe, hardware, [*settings, *advised]))


def test_where_no_setting_helps_a_tier_is_named():
    config = load("countdown-grpo", "t4", ["model.name=Qwen/Qwen2.5-7B", "grpo.max_completion_length=32768",
                                           "model.load_in_4bit=true"])
    with pytest.raises(ConfigError, match="take a smaller model"):
        estimate.check_memory(config)


def test_a_share_of_vllm_that_cannot_hold_the_model_names_one_that_can():
    config = load("countdown-grpo", "a10g", ["grpo.vllm_gpu_memory_utilization=0.15"])
    with pytest.raises(ConfigError, match=r"0\.15 gives vLLM 3\.6 GB.*A value that would do: (0\.\d+)") as caught:
        estimate.check_memory(config)
    share = re.search(r"would do: (0\.\d+)", str(caught.value))[1]
    estimate.check_memory(load("countdown-grpo", "a10g", [f"grpo.vllm_gpu_memory_utilization={share}"]))


def test_an_unknown_model_says_what_is_known():
    with pytest.raises(ModelLoadError, match="(?s)'nobody/nothing' is not known.*Qwen/Qwen2.5-0.5B"):
        estimate.model_shape("nobody/nothing")


# --- The script ------------------------------------------------------------------------------------------------------


def test_the_script_prints_a_table_and_one_run(capsys):
    assert script.main([]) == 0
    table = capsys.readouterr().out
    assert table.count("\n") == 2 + len(STAGES) / len(GPU_TIERS) and "| gsm8k-grpo | grpo |" in table
    assert script.main(["--recipe", "gsm8k-grpo", "--hardware", "a10g", "--step-seconds", "10"]) == 0
    assert "1,869 steps of 10.0 s: 5.2 h" in capsys.readouterr().out
    assert script.main(["--recipe", "gsm8k-grpo", "--hardware", "t4", "--set", "model.name=Qwen/Qwen2.5-7B"]) == 2
    assert "This would fit" in capsys.readouterr().err


def test_lower_precision_and_shorter_completions_never_need_more():
    base = load("gsm8k-grpo", "a100")
    shorter = load("gsm8k-grpo", "a100", {"grpo.max_completion_length": 128})
    assert estimate.memory(shorter, "grpo").peak < estimate.memory(base, "grpo").peak
