"""The configuration: every recipe on every tier, overrides, and the message for each way to get it wrong."""

import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import yaml

from lab_utils import REPOSITORY, config, rewards
from lab_utils.config import ConfigError, RunConfig, load, read_config
from lab_utils.config.rules import REWARDS
from lab_utils.tasks import load_task

pytestmark = pytest.mark.unit

RECIPES = ["countdown-grpo", "countdown-ppo", "gsm8k-grpo", "gsm8k-sft-ppo", "reasoning-sft-grpo"]
GPU_TIERS = ["t4", "a10g", "a10g-x4", "a100", "a100-x8", "h200"]
TIERS = ["cpu", "smoke", *GPU_TIERS]


def error_of(recipe="countdown-grpo", hardware="cpu", overrides=None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(recipe, hardware, overrides)
    return str(caught.value)


# --- What ships ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hardware", TIERS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_loads_on_every_tier(recipe, hardware, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load(recipe, hardware)
    assert (loaded.recipe, loaded.hardware, loaded.hardware_reason) == (recipe, hardware, "chosen by name")
    assert yaml.safe_load(loaded.to_yaml()) == loaded.model_dump()
    (tmp_path / "config.yaml").write_text(loaded.to_yaml(), encoding="utf-8")
    assert read_config(tmp_path / "config.yaml") == loaded


@pytest.mark.parametrize("hardware", GPU_TIERS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_gpu_tiers_change_how_a_recipe_fits_not_what_is_learned(recipe, hardware):
    plain, fitted = load(recipe, "a10g"), load(recipe, hardware)
    processes = config.load_tier(hardware).processes

    def learned(loaded: RunConfig, processes: int) -> dict:
        sft, grpo, ppo = loaded.sft, loaded.grpo, loaded.ppo
        return {
            "task": loaded.task, "model": loaded.model.name, "rewards": loaded.rewards, "stages": loaded.stages,
            "sft": (sft.learning_rate, sft.num_train_epochs, sft.max_length),
            "sft batch": sft.per_device_train_batch_size * sft.gradient_accumulation_steps * processes,
            "grpo": (grpo.beta, grpo.num_generations, grpo.num_iterations, grpo.max_completion_length, grpo.loss_type),
            "ppo": (ppo.learning_rate, ppo.beta, ppo.num_generations, ppo.num_iterations, ppo.max_completion_length),
            **({"grpo batch": grpo.per_device_train_batch_size * grpo.gradient_accumulation_steps * processes}
               if "grpo" in loaded.stages else {}),
            **({"ppo batches": (ppo.rollout_size * processes, ppo.per_device_train_batch_size
                                * ppo.gradient_accumulation_steps * processes)}
               if "ppo" in loaded.stages else {}),
        }

    assert learned(fitted, processes) == learned(plain, 1)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_cpu_tier_runs_offline_on_the_tiny_model(recipe):
    loaded = load(recipe, "cpu")
    assert loaded.task.source == "synthetic"
    assert loaded.model == config.ModelSettings(name="tiny", device="cpu", dtype="float32")
    assert loaded.stages[0] == "sft"
    assert not (loaded.grpo.use_vllm or loaded.ppo.use_vllm)
    epochs = loaded.grpo.num_train_epochs  # all else is the tiny model's, whatever the recipe
    assert loaded.grpo == load("countdown-grpo", "cpu", {"grpo.num_train_epochs": epochs}).grpo


def test_a_cpu_tier_trains_sft_first_unless_stages_are_requested():
    assert load("countdown-ppo", "a10g").stages == ["ppo"]
    assert load("countdown-ppo", "cpu").stages == ["sft", "ppo"]
    assert load("gsm8k-grpo", "smoke").stages == ["sft", "grpo"]
    assert load("gsm8k-grpo", "cpu", ["stages=[grpo]"]).stages == ["grpo"], "asking for stages gives just those"


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("countdown-ppo", {  # the SageMaker example
            "model.name": "Qwen/Qwen2.5-0.5B-Instruct", "model.lora.r": 16, "model.lora.alpha": 32,
            "ppo.learning_rate": 1.41e-5, "ppo.per_device_train_batch_size": 4, "ppo.steps_per_generation": 4,
            "ppo.gradient_accumulation_steps": 2, "rewards": {"format_reward": 0.1, "equation_reward": 1.0},
        }),
        ("gsm8k-sft-ppo", {  # the QLoRA example
            "model.name": "Qwen/Qwen2.5-0.5B", "model.load_in_4bit": True, "model.dtype": "bfloat16",
            "model.lora.target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            "sft.num_train_epochs": 3.0, "sft.per_device_train_batch_size": 4, "ppo.per_device_train_batch_size": 4,
            "sft.gradient_checkpointing": True, "task.response_format": "hash",
            "rewards": {"numeric_match_reward": 1.0},
        }),
        ("reasoning-sft-grpo", {  # the R1-style pipeline
            "model.name": "Qwen/Qwen2.5-0.5B-Instruct", "model.lora.r": 8, "model.lora.alpha": 16,
            "model.lora.dropout": 0.05, "model.lora.target_modules": ["q_proj", "v_proj"],
            "sft.max_length": 1024, "sft.num_train_epochs": 1.0, "sft.per_device_train_batch_size": 4,
            "sft.gradient_accumulation_steps": 4, "sft.learning_rate": 2e-5, "grpo.learning_rate": 1e-6,
            "grpo.num_iterations": 3, "grpo.num_generations": 2, "grpo.beta": 0.1, "grpo.max_prompt_length": 512,
            "grpo.max_completion_length": 512, "grpo.num_train_epochs": 1.0, "grpo.per_device_train_batch_size": 4,
            "grpo.gradient_accumulation_steps": 4, "grpo.logging_steps": 10, "grpo.save_steps": 50,
            "sft.logging_steps": 10, "sft.save_steps": 50, "task.response_format": "think",
            "rewards": {"cosine_scaled_accuracy_reward": 0.5, "format_reward": 0.1, "reasoning_reward": 0.15,
                        "conciseness_reward": 0.05, "repetition_penalty_reward": 0.2},
        }),
        ("gsm8k-grpo", {  # the Colab notebook; 64 completions an update are its 1 × 4 prompts with 16 completions each
            "model.name": "Qwen/Qwen2.5-0.5B-Instruct", "model.lora": None, "model.dtype": "bfloat16",
            "grpo.learning_rate": 5e-6, "grpo.adam_beta1": 0.9, "grpo.adam_beta2": 0.99,
            "grpo.lr_scheduler_type": "cosine", "grpo.num_generations": 16, "grpo.per_device_train_batch_size": 4,
            "grpo.gradient_accumulation_steps": 16, "grpo.num_train_epochs": 1.0, "grpo.save_steps": 100,
            "task.response_format": "reasoning",
            "rewards": dict.fromkeys(["correctness_reward", "int_reward", "strict_format_reward", "soft_format_reward",
                                      "xmlcount_reward"], 1.0),
        }),
    ],
)
def test_recipes_hold_the_numbers_of_the_examples_they_follow(recipe, expected):
    loaded = load(recipe, "a10g").model_dump()
    for key, value in expected.items():
        found = loaded
        for part in key.split("."):
            found = found[part]
        assert found == value, key


def test_the_table_of_rewards_is_that_of_the_rewards_package():
    assert set(REWARDS) == set(rewards.__all__) - {"combine_rewards", "CORRECTNESS"}
    for name, (tasks, formats) in REWARDS.items():
        for task in tasks:
            assert formats & set(load_task(task).response_formats), name


# --- Overrides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        {"grpo": {"beta": 0.04, "num_generations": 8}, "seed": 3},
        {"grpo.beta": 0.04, "grpo.num_generations": 8, "seed": 3},
        ["grpo.beta=0.04", "grpo.num_generations=8", "seed=3"],
        ["grpo={beta: 0.04, num_generations: 8}", "seed=3"],
        ("grpo.beta=1", "grpo.beta=0.04", " grpo.num_generations =8", "seed=3"),
    ],
)
def test_overrides_in_all_forms(overrides):
    loaded = load("countdown-grpo", "cpu", overrides)
    assert (loaded.grpo.beta, loaded.grpo.num_generations, loaded.seed) == (0.04, 8, 3)
    assert loaded.grpo.learning_rate == load("countdown-grpo", "cpu").grpo.learning_rate, "the rest stays"


@pytest.mark.parametrize("text", ["1e-5", "1.0e-5", "0.00001", "'1e-5'"])
def test_a_float_may_be_written_as_1e_5_although_yaml_reads_it_as_text(text):
    assert load("countdown-grpo", "cpu", [f"grpo.learning_rate={text}"]).grpo.learning_rate == 1e-5


def test_whole_numbers_become_floats_and_nothing_else_is_converted():
    beta = load("countdown-grpo", "cpu", {"grpo.beta": 1}).grpo.beta
    assert beta == 1.0 and type(beta) is float
    assert "whole number" in error_of(overrides={"grpo.max_steps": 40.0})
    assert "true or false" in error_of(overrides={"grpo.use_vllm": 0})
    assert "finite number" in error_of(overrides={"grpo.beta": True})


def test_null_takes_a_reward_away_and_a_weight_of_0_keeps_it_on_record():
    assert load("countdown-grpo", "cpu", ["rewards.format_reward=null"]).rewards == {"equation_reward": 1.0}
    assert load("countdown-grpo", "cpu", ["rewards.format_reward=0"]).rewards["format_reward"] == 0.0


def test_lora_can_be_added_changed_and_taken_away():
    assert load("countdown-grpo", "a10g", ["model.lora.r=4"]).model.lora == config.LoraSettings(r=4, alpha=32)
    assert load("countdown-grpo", "a10g", ["model.lora=null"]).model.lora is None
    lora = load("gsm8k-grpo", "a10g", ["model.lora={target_modules: [q_proj]}"]).model.lora
    assert lora == config.LoraSettings(target_modules=["q_proj"])


def test_own_recipe_from_a_file(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("task: {name: gsm8k, response_format: hash}\nmodel: {name: tiny}\nstages: [ppo]\n"
                      "rewards: {numeric_match_reward: 1}\nppo: {learning_rate: 1e-5}\n")
    loaded = load(recipe, "a10g")
    assert (loaded.recipe, loaded.stages, loaded.ppo.learning_rate) == ("mine", ["ppo"], 1e-5)
    assert loaded.grpo.gradient_checkpointing, "sections that a recipe leaves out have their defaults"


# --- Mistakes, each with what its message must say -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        # names
        (["grpo.bata=1"], ["grpo.bata", "Did you mean grpo.beta?"]),
        (["beta=1"], ["no key beta", "grpo.beta or ppo.beta"]),
        (["gpro.beta=1"], ["gpro", "Did you mean grpo?"]),
        (["model.lora={rank: 8}"], ["model.lora.rank", "target_modules"]),
        (["rewards.equaton_reward=1"], ["equaton_reward", "Did you mean equation_reward?"]),
        (["stages=[sft, gppo]"], ["stages[1] = 'gppo'", "'sft', 'grpo' or 'ppo'", "Did you mean ppo?"]),
        (["task.name=gsm"], ["task.name = 'gsm'", "Did you mean gsm8k?"]),
        (["grpo.loss_type=dpao"], ["dpao", "Did you mean dapo?"]),
        (["hardware=t4"], ["hardware = 't4'", "--hardware"]),
        # form
        (["foo"], ["'foo'", "KEY=VALUE", "grpo.beta=0.04"]),
        ("foo", ["'foo'", "KEY=VALUE"]),
        (["grpo.beta=[1"], ["not valid YAML"]),
        (["grpo=3"], ["grpo = 3", "section", "learning_rate"]),
        (["rewards=5"], ["rewards = 5", "section"]),
        # types
        ({"grpo.num_generations": True}, ["grpo.num_generations = True", "whole number", "Default: 8"]),
        (["grpo.num_generations=eight"], ["'eight'", "whole number"]),
        (["grpo.learning_rate=fast"], ["grpo.learning_rate = 'fast'", "number", "Default: 1.0e-06"]),
        (["stages=sft"], ["stages = 'sft'", "list"]),
        (["model.name=3"], ["model.name = 3", "text"]),
        (["model.lora.target_modules=q_proj"], ["'q_proj'", "all-linear", "list"]),
        # ranges
        (["grpo.learning_rate=0"], ["grpo.learning_rate = 0", "at least 0.000000000001"]),
        (["grpo.temperature=0"], ["grpo.temperature = 0", "greater than 0", "Default: 1.0"]),
        (["evaluation.top_p=1.1"], ["evaluation.top_p = 1.1", "at most 1"]),
        (["model.lora.dropout=1"], ["model.lora.dropout = 1", "less than 1"]),
        (["grpo.beta=.nan"], ["grpo.beta = nan", "finite"]),
        (["rewards.equation_reward=.inf"], ["rewards.equation_reward = inf", "finite"]),
        (["grpo.num_generations=1"], ["grpo.num_generations = 1", "at least 2", "group"]),
        (["grpo.max_steps=0"], ["grpo.max_steps = 0", "-1"]),
        (["task.train_limit=0"], ["task.train_limit = 0", "at least 1", "null"]),
        # what must fit together
        (["stages=[grpo, sft]"], ["['grpo', 'sft']", "sft first", "['sft', 'grpo']"]),
        (["stages=[sft, sft]"], ["['sft', 'sft']", "different", "['sft']"]),
        (["task.response_format=hash"], ["task.response_format = 'hash'", "think"]),
        (["grpo.num_generations=7"], ["grpo.num_generations = 7", "256", "use 8"]),
        (["ppo.steps_per_generation=3", "ppo.gradient_accumulation_steps=2"],
         ["ppo.steps_per_generation = 3", "192 % (64 × 2) = 64", "use 4"]),
        (["ppo.num_generations=6"], ["ppo.num_generations = 6", "256 completions", "use 4"]),
        (["rewards.correctness_reward=1"], ["correctness_reward", "'countdown'", "column answer", "=null"]),
        (["rewards={format_reward: null, equation_reward: null}"], ["rewards = {}", "at least one", "grpo"]),
        (["rewards={format_reward: 0, equation_reward: 0}"], ["not 0"]),
        (["grpo.max_completion_length=16"], ["grpo.max_completion_length = 16", "at least 32", "'think'"]),
        (["sft.max_length=40"], ["sft.max_length = 40", "at least 64"]),
        (["evaluation.max_new_tokens=31"], ["evaluation.max_new_tokens = 31", "at least 32"]),
        (["evaluation.temperature=0"], ["evaluation.num_samples = 8", "must be 1"]),
        # the machine
        (["model.dtype=bfloat16"], ["model.dtype = 'bfloat16'", "'cpu'", "use float32"]),
        (["grpo.use_vllm=true"], ["grpo.use_vllm = True", "GPU"]),
        (["evaluation.use_vllm=true"], ["evaluation.use_vllm = True", "GPU"]),
    ],
)
def test_a_wrong_override_is_explained(overrides, parts):
    message = error_of(overrides=overrides)
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(
    ("recipe", "hardware", "overrides", "parts"),
    [
        ("countdwn-grpo", "cpu", None, ["'countdwn-grpo'", "Did you mean countdown-grpo?", "gsm8k-sft-ppo"]),
        ("countdown-grpo", "a10", None, ["'a10'", "Did you mean a10g?", "h200", "auto"]),
        ("nowhere/mine.yaml", "cpu", None, ["nowhere/mine.yaml", "cannot be read", "countdown-grpo"]),
        # the seed's own numbers, as TRL counts today
        ("gsm8k-grpo", "a100", {"grpo": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}},
         ["grpo.num_generations = 16", "4 completions", "16 with grpo.per_device_train_batch_size=4"]),
        # all processes count
        ("gsm8k-grpo", "a10g-x4", {"grpo": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}},
         ["8 completions", "processes 4", "grpo.per_device_train_batch_size=2"]),
        ("gsm8k-grpo", "a10g", {"grpo.steps_per_generation": 3}, ["4 × steps_per_generation 3", "12 completions"]),
        ("countdown-ppo", "a10g", ["ppo.steps_per_generation=3"], ["= 3", "12 % (4 × 2) = 4", "use 4"]),
        ("gsm8k-sft-ppo", "a10g", ["ppo.use_vllm=true"], ["ppo.use_vllm = True", "load_in_4bit", "vLLM"]),
        ("gsm8k-sft-ppo", "a10g", ["evaluation.use_vllm=true"], ["evaluation.use_vllm = True", "load_in_4bit"]),
        ("gsm8k-sft-ppo", "a10g", ["model.lora=null"], ["model.lora = None", "4 bits", "{r: 16"]),
        ("gsm8k-grpo", "t4", ["model.lora=null"], ["model.lora = None", "float16"]),
        ("gsm8k-grpo", "t4", ["model.dtype=bfloat16"], ["model.dtype = 'bfloat16'", "'t4'", "float16"]),
        ("gsm8k-grpo", "cpu", ["rewards.equation_reward=1"], ["equation_reward", "'gsm8k'", "nums and target"]),
        ("gsm8k-grpo", "cpu", ["rewards.numeric_match_reward=1"], ["numeric_match_reward", "'reasoning'"]),
        ("reasoning-sft-grpo", "cpu", ["rewards.strict_format_reward=1"], ["strict_format_reward", "'think'"]),
        ("gsm8k-sft-ppo", "cpu", ["grpo.beta=-1"], ["grpo.beta = -1"]),  # a section that no stage uses
    ],
)
def test_what_a_recipe_or_tier_rules_out_is_explained(recipe, hardware, overrides, parts):
    message = error_of(recipe, hardware, overrides)
    assert [part for part in parts if part not in message] == [], message


def test_all_that_does_not_fit_together_is_reported_at_once():
    message = error_of(overrides=["grpo.num_generations=7", "sft.max_length=40", "model.dtype=float16"])
    assert "grpo.num_generations" in message and "sft.max_length" in message and "model.dtype" in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("task: [", ["not valid YAML"]),
        ("just text", ["write sections"]),
        ("model: {name: tiny}\nstages: [sft]", ["task is missing"]),
        ("task: {name: gsm8k}\nmodel: {name: tiny}\nstages: [sft]", ["task.response_format is missing", "reasoning"]),
        ("task: {name: gsm8k, response_format: hash}\nmodel: {name: tiny}", ["stages is missing", "list"]),
        ("recipe: countdown-grpo", ["recipe = 'countdown-grpo'", "--recipe"]),
        ("task:\nmodel: {name: tiny}\nstages: [sft]", ["task = None", "section"]),
    ],
)
def test_a_broken_recipe_file_is_explained(tmp_path, text, parts):
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    message = error_of(tmp_path / "mine.yaml", "a10g")
    assert [part for part in parts if part not in message] == [], message


def test_a_changed_config_of_a_run_directory_is_validated(tmp_path):
    text = load("countdown-grpo", "cpu").to_yaml().replace("num_generations: 16", "num_generations: 1")
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="num_generations = 1"):
        read_config(tmp_path / "config.yaml")


def test_hub_data_on_a_cpu_tier_is_allowed_with_a_hint():
    with pytest.warns(UserWarning, match="network"):
        assert load("countdown-grpo", "cpu", ["task.source=hub"]).task.source == "hub"


# --- Choosing the tier -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "tier", "reason"),
    [
        ([], "cpu", "no CUDA GPU"),
        ([("Tesla T4", 14.7, 7)], "t4", "Tesla T4"),
        ([("GeForce GTX 1050", 4.0, 6)], "cpu", "16 GB"),
        ([("Tesla V100", 31.7, 7)], "t4", "bfloat16"),
        ([("NVIDIA A10G", 22.1, 8)], "a10g", "A10G"),
        ([("NVIDIA A10G", 22.1, 8)] * 4, "a10g-x4", "accelerate launch"),
        ([("NVIDIA A10G", 22.1, 8)] * 2, "a10g", "CUDA_VISIBLE_DEVICES=0"),
        ([("NVIDIA A100", 39.4, 8)], "a100", "1 × NVIDIA A100 with 39 GiB"),
        ([("NVIDIA H100", 79.2, 9)] * 4, "a100", "4 × NVIDIA H100"),
        ([("NVIDIA A100", 39.4, 8)] * 8, "a100-x8", "accelerate launch --config_file setup/accelerate/a100-x8.yaml"),
        ([("NVIDIA H200", 139.8, 9)], "h200", "H200"),
    ],
)
def test_auto_chooses_a_tier_and_says_why(monkeypatch, gpus, tier, reason):
    import torch

    properties = [SimpleNamespace(name=name, total_memory=gib * 2**30, major=major) for name, gib, major in gpus]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(properties))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(properties))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: properties[i])
    monkeypatch.setattr("importlib.util.find_spec", lambda package: True)
    loaded = load("gsm8k-grpo")
    assert loaded.hardware == tier
    assert loaded.hardware_reason.startswith("auto: ") and reason in loaded.hardware_reason
    assert loaded.grpo == load("gsm8k-grpo", tier).grpo

    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    without = load("gsm8k-grpo")
    assert not without.grpo.use_vllm
    assert ("vLLM is not installed" in without.hardware_reason) == (tier != "cpu")


@pytest.mark.parametrize("tier", [tier for tier in GPU_TIERS if config.load_tier(tier).gpus > 1])
def test_accelerate_starts_a_process_for_each_gpu(tier):
    from accelerate.commands.config.config_args import load_config_from_file  # takes seconds

    launched = load_config_from_file(str(REPOSITORY / "setup" / "accelerate" / f"{tier}.yaml"))
    assert launched.num_processes == config.load_tier(tier).gpus
    assert launched.distributed_type == "MULTI_GPU" and launched.mixed_precision == "no"


def test_importing_is_instant():
    """Neither the package nor the configuration imports torch or any other heavy library."""
    code = "import sys, lab_utils, lab_utils.config; print(len({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=REPOSITORY)
    assert done.stdout.strip() == "0"
