"""Training on a base in 4 bits (NF4, double quantization) with an adapter on top, on a CPU: all that a GPU does.

In float32, because a CPU tier has no other dtype; the weights are stored and read back as on a GPU.
"""

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from lab_utils import TINY_MODEL
from lab_utils import config as configuration
from lab_utils.evaluation import evaluate_run
from lab_utils.models import adapter_base, export_model, load_model, load_tokenizer
from lab_utils.training import grpo, ppo, sft

pytestmark = pytest.mark.component
STAGES = {"sft": sft, "grpo": grpo, "ppo": ppo}
QUANTIZED = {"model.load_in_4bit": True, "model.lora": {"r": 8, "alpha": 16}, "tracking.tensorboard": False,
             "task.test_limit": 2, "evaluation.max_new_tokens": 32,
             "grpo.max_completion_length": 192, "ppo.max_completion_length": 192}  # some end earlier: rewards differ


def config_of(stage):
    return configuration.load("gsm8k-sft-ppo", "smoke", {
        **QUANTIZED, "rewards": {"numeric_match_reward": 1.0, "conciseness_reward": 1.0},
        f"{stage}.gradient_checkpointing": True, f"{stage}.max_steps": 2, f"{stage}.learning_rate": 1e-3,
        "ppo.num_iterations": 1})


@pytest.fixture(scope="module")
def warmed_up(tmp_path_factory):
    return sft.train(config_of("sft"), tmp_path_factory.mktemp("4bit") / "sft")


@pytest.fixture(scope="module")
def runs(warmed_up, tmp_path_factory):
    """Return a run of each stage."""
    folder = tmp_path_factory.mktemp("stages")
    return {"sft": warmed_up, **{stage: STAGES[stage].train(config_of(stage), folder / stage, model=warmed_up.model_dir)
                                 for stage in ("grpo", "ppo")}}


@pytest.fixture(scope="module")
def ids():
    return torch.tensor([load_tokenizer("tiny")("7 * 6 = 42, 42 + 3 = 45")["input_ids"]])


@torch.no_grad()
def logits(model, ids):
    return model.eval()(ids).logits


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains_an_adapter_and_leaves_the_base_in_four_bits(stage, runs, ids):
    run, config, start = runs[stage], config_of(stage), "tiny" if stage == "sft" else runs["sft"].model_dir
    assert run.metrics()["grad_norm"].gt(0).all() and adapter_base(str(run.model_dir)) == str(TINY_MODEL)
    trained, before = load_model(run.model_dir, config.model), load_model(start, config.model)
    quantized = [module for module in trained.modules() if isinstance(module, Linear4bit)]
    layers, projections = trained.config.num_hidden_layers, 7
    assert len(quantized) == layers * projections, "every projection, with the adapter beside it"
    assert quantized[0].weight.dtype == torch.uint8 and quantized[0].weight.quant_state.nested
    assert (logits(trained, ids) - logits(before, ids)).abs().max() > 1e-3
    assert (evaluate_run(run, config).accuracy >= 0) and run.evaluation_path.is_file()


def test_a_killed_run_resumes_with_its_adapter(runs, warmed_up, tmp_path, ids):
    config = config_of("ppo")
    half = configuration.with_overrides(config, {"ppo.max_steps": 1})
    ppo.train(half, tmp_path / "halves", model=warmed_up.model_dir)
    with pytest.warns(UserWarning, match="ppo.max_steps"):
        halves = ppo.train(config, tmp_path / "halves", model=warmed_up.model_dir, resume=True)
    first, second = (load_model(run.model_dir, config.model) for run in (runs["ppo"], halves))
    assert torch.allclose(logits(first, ids), logits(second, ids), atol=1e-4)


def test_the_export_is_the_adapter_in_the_unquantized_base(warmed_up, tmp_path, ids):
    config = config_of("sft")
    exported = load_model(export_model(warmed_up.model_dir, tmp_path / "export", config.model))
    assert not any(isinstance(module, Linear4bit) for module in exported.modules())
    whole = load_model(warmed_up.model_dir)  # no settings: the base in float32
    assert torch.allclose(logits(exported, ids), logits(whole, ids), atol=1e-5)
    assert not torch.allclose(logits(exported, ids), logits(load_model("tiny"), ids), atol=1e-3)
