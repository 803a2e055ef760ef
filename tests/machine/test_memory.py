"""Estimates: the exact parts against exact counts, every tier × recipe × stage inside its memory, what is refused."""

import math

import estimate as script
import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

from lab_utils import REPOSITORY, exit_status
from lab_utils.config import ConfigError, hardware_names, load, load_tier, recipe_names, with_overrides
from lab_utils.machine.memory import KEPT, architecture, check_memory, hours, memory, optimizer_steps, skeleton
from lab_utils.models import ModelLoadError, lora_config
from lab_utils.runs import RunDirectory
from lab_utils.training import grpo, ppo, sft

GPU_TIERS = [name for name in hardware_names() if load_tier(name).gpus]
STAGES = [(recipe, hardware, stage) for recipe in recipe_names() for hardware in GPU_TIERS
          for stage in load(recipe, hardware).stages]
PARAMETERS = {  # the totals that the Hub shows for the safetensors files
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768, "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688, "Qwen/Qwen3-0.6B": 596_049_920, "Qwen/Qwen3-1.7B": 1_720_574_976,
}
FULL = PARAMETERS["Qwen/Qwen2.5-0.5B-Instruct"]


# --- The exact parts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_known_models_have_the_published_numbers_of_parameters(name):
    assert skeleton(name).num_parameters() == PARAMETERS[name]


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B", "Qwen/Qwen3-0.6B"])
def test_an_adapter_is_counted_as_peft_makes_it(name, targets):
    config = load("gsm8k-grpo", "t4", {"model.name": name, "model.lora": {"r": 8, "target_modules": targets}})
    with torch.device("meta"):
        model = get_peft_model(AutoModelForCausalLM.from_config(architecture(name)), lora_config(config.model))
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    held = memory(config, "grpo").held
    assert held["optimizer"] == pytest.approx(8 * trained / 1e9), "Adam has two float32 moments"
    assert held["weights"] == pytest.approx((4 * trained + 2 * skeleton(name).num_parameters()) / 1e9)


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B", "Qwen/Qwen3-0.6B"])
def test_the_cache_is_that_of_transformers(name):
    config = load("gsm8k-grpo", "t4", {"model.name": name})
    cache = skeleton(name)(input_ids=torch.zeros(1, 1, dtype=torch.long, device="meta")).past_key_values
    token = sum(2 * (layer.keys.numel() + layer.values.numel()) for layer in cache.layers)
    longest = config.grpo.max_prompt_length + config.grpo.max_completion_length
    assert memory(config, "grpo").held["KV cache"] == pytest.approx(config.grpo.rollout_size * longest * token / 1e9)


@pytest.mark.parametrize("changes, part, gigabytes", [
    ({}, "weights", 4 * FULL / 1e9),
    ({}, "vLLM", 0.3 * 24),
    ({"grpo.vllm_enable_sleep_mode": False}, "gradients", 4 * FULL / 1e9),
    ({"grpo.beta": 0.04}, "reference", 2 * FULL / 1e9),
    ({"grpo.beta": 0.04, "model.lora": {"r": 16}}, "reference", 0),  # the model without its adapter
])
def test_what_each_setting_holds(changes, part, gigabytes):
    held = memory(load("gsm8k-grpo", "a10g", changes), "grpo").held
    assert held.get(part, 0) == pytest.approx(gigabytes)


def test_several_processes_hold_the_gradients_twice():
    alone, together = (memory(load("gsm8k-grpo", hardware, {"grpo.vllm_enable_sleep_mode": False}), "grpo").held
                       for hardware in ("a10g", "a10g-x4"))
    assert together["gradients"] == 2 * alone["gradients"] and together["weights"] == alone["weights"]


def test_four_bits_are_four_bits():
    whole, quantized = (memory(load("gsm8k-sft-ppo", "a10g", {"model.load_in_4bit": on}), "sft").held["weights"]
                        for on in (False, True))
    linear = 357_826_560  # 0.36 B without embeddings, as published, minus biases and norms
    assert whole - quantized == pytest.approx(linear * (2 - 4.127 / 8) / 1e9)


# --- The ranges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", [Qwen2Config, Qwen3Config])
def test_what_autograd_keeps_lies_in_the_range(kind, checkpointing):
    config = kind(vocab_size=64, hidden_size=128, intermediate_size=640, num_hidden_layers=8, num_attention_heads=4,
                  num_key_value_heads=2, head_dim=32)
    model, (rows, length), kept = AutoModelForCausalLM.from_config(config).train(), (4, 128), {}
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.base_model(input_ids=torch.zeros(rows, length, dtype=torch.long), use_cache=False)
    size = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)
    low, high = KEPT[checkpointing]
    if checkpointing:  # the range has one layer more: its activations are computed again in the backward pass
        low, high = 0.9, high - KEPT[False][0] / 8
    assert low < size / (4 * rows * length * 8 * 128) < high


@pytest.mark.parametrize("recipe, stage, steps", [
    ("gsm8k-grpo", "grpo", math.ceil(7473 * 16 / 64)), ("countdown-grpo", "grpo", 2 * 1000 * 8 // 64),
    ("countdown-grpo", "sft", math.ceil(1000 / 16)), ("gsm8k-sft-ppo", "ppo", 800)])
@pytest.mark.parametrize("hardware", ["a10g", "a10g-x4"])
def test_steps_follow_from_the_problems_on_every_tier(recipe, stage, steps, hardware):
    assert optimizer_steps(load(recipe, hardware), stage) == steps


def test_what_saves_memory_and_time_is_seen_to():
    config = load("gsm8k-grpo", "a10g", {"grpo.gradient_checkpointing": False, "grpo.per_device_train_batch_size": 16,
                                         "grpo.gradient_accumulation_steps": 4})
    for change in ({"grpo.gradient_checkpointing": True}, {"grpo.max_completion_length": 256}):
        assert memory(with_overrides(config, change), "grpo").high < memory(config, "grpo").high
    assert hours(with_overrides(config, {"grpo.use_vllm": False}), "grpo") > hours(config, "grpo")
    assert hours(load("gsm8k-grpo", "cpu"), "grpo") is None
    assert hours(with_overrides(config, {"task.source": "synthetic"}), "grpo") is None, "the steps are not known"


# --- Every tier × recipe × stage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe, hardware, stage", STAGES)
def test_trl_takes_the_settings_and_nothing_is_refused(recipe, hardware, stage, tmp_path, monkeypatch):
    config, tier = load(recipe, hardware), load_tier(hardware)
    monkeypatch.setattr("trl.trainer.base_config._BaseConfig.world_size", tier.processes, raising=False)
    make = {"sft": sft.sft_arguments, "grpo": grpo.grpo_arguments, "ppo": ppo.ppo_arguments}[stage]
    arguments, settings = make(config, RunDirectory(tmp_path)), getattr(config, stage)
    assert arguments.per_device_train_batch_size == settings.per_device_train_batch_size
    assert arguments.gradient_checkpointing == settings.gradient_checkpointing
    assert arguments.learning_rate == settings.learning_rate
    if stage != "sft":
        assert (arguments.beta, arguments.reward_weights) == (settings.beta, list(config.rewards.values()))
        assert arguments.generation_batch_size == settings.rollout_size * arguments.world_size
        assert arguments.use_vllm == settings.use_vllm
        assert arguments.vllm_mode == "colocate"
        assert arguments.vllm_importance_sampling_mode == "token_truncate"  # TRL's default multiplies over a completion
        assert arguments.vllm_importance_sampling_clip_max == settings.vllm_importance_sampling_clip_max == 3.0
    needed, (least, most) = memory(config, stage), hours(config, stage)
    assert needed.least < needed.low < needed.high < tier.memory_gb
    assert 0 < least < most
    check_memory(config)


@pytest.mark.parametrize("hardware", GPU_TIERS)
@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "Qwen/Qwen2.5-1.5B-Instruct"])
def test_the_other_models_of_the_workshop_are_not_refused(name, hardware):
    for recipe in ("countdown-ppo", "gsm8k-sft-ppo", "reasoning-sft-grpo", "countdown-grpo"):
        check_memory(load(recipe, hardware, {"model.name": name}))


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe, hardware, changes, parts", [
    ("gsm8k-grpo", "a10g", {"model.name": "Qwen/Qwen2.5-3B-Instruct"},
     ["needs 49.4 GB (optimizer 24.7, ", "a10g has 24 GB: pass --set model.lora='{r: 16, alpha: 32}'"]),
    ("countdown-grpo", "t4", {"grpo.max_completion_length": 32768}, ["(KV cache ", "lower grpo.max_completion_length"]),
    ("gsm8k-grpo", "a10g", {"grpo.vllm_gpu_memory_utilization": 0.9}, ["lower grpo.vllm_gpu_memory_utilization"]),
    ("countdown-grpo", "a10g", {"grpo.vllm_gpu_memory_utilization": 0.1}, ["leaves no room", "well above 0.13,"])])
def test_what_cannot_fit_is_refused_with_the_settings_that_lower_it(recipe, hardware, changes, parts):
    with pytest.raises(ConfigError) as caught:
        check_memory(load(recipe, hardware, changes))
    assert [part for part in parts if part not in str(caught.value)] == [], caught.value


def test_the_setting_in_a_refusal_is_valid_and_helps():
    check_memory(load("gsm8k-grpo", "a10g", ["model.name=Qwen/Qwen2.5-3B-Instruct", "model.lora={r: 16, alpha: 32}"]))


def test_an_unknown_model_says_what_is_known():
    with pytest.raises(ModelLoadError, match="(?s)'nobody/nothing' is not known.*: choose .*Qwen/Qwen2.5-0.5B"):
        skeleton("nobody/nothing")


def test_the_script_prints_a_table_and_one_run(capsys):
    script.main([])
    table = capsys.readouterr().out
    assert table.count("\n") == 2 + len(STAGES) / len(GPU_TIERS) and "| gsm8k-grpo | grpo |" in table
    in_readme = (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("| recipe | stage |")[2]
    rows = f"| recipe | stage |{in_readme}".partition("\n\n")[0].splitlines()
    assert len(rows) == 7 and set(rows) <= set(table.splitlines()), "README: copy the rows that estimate.py prints"
    script.main(["--recipe", "gsm8k-grpo", "--hardware", "a10g", "--step-seconds", "10"])
    assert "1,869 steps of 10 s: 5.2 h" in capsys.readouterr().out
    too_large = ["--recipe", "gsm8k-grpo", "--hardware", "a10g", "--set", "model.name=Qwen/Qwen2.5-3B"]
    assert exit_status(lambda: script.main(too_large)) == 2
    assert "needs" in capsys.readouterr().err
