"""The benchmark of a step, on the CPU with the tiny shape: the parts add up, the memory is that of the process."""

from pathlib import Path

import pytest

from lab_utils.config import load
from lab_utils.machine import step_times
from lab_utils.machine.memory import skeleton
from lab_utils.models import load_model, load_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return step_times.random_model("tiny", tmp_path_factory.mktemp("random") / "model")


def test_a_random_model_has_the_shape_and_none_of_the_knowledge(model):
    random, trained = load_model(model), load_model("tiny")
    assert random.num_parameters() == trained.num_parameters() == skeleton(str(model)).num_parameters()
    assert (random.model.embed_tokens.weight - trained.model.embed_tokens.weight).abs().max() > 0.01
    assert load_tokenizer(model)("7 * 6")["input_ids"] == load_tokenizer("tiny")("7 * 6")["input_ids"]


@pytest.mark.component
@pytest.mark.parametrize("stage", ["sft", "grpo", "ppo"])
def test_the_parts_of_a_step_add_up(model, stage):
    config = load("gsm8k-sft-ppo", "smoke", {
        "stages": [stage], "model.name": str(model), "tracking.tensorboard": False, f"{stage}.max_steps": 3,
        "rewards": {"numeric_match_reward": 1.0}, "grpo.max_completion_length": 32, "ppo.max_completion_length": 32})
    found = step_times.measure(config, stage, ceiling_tflops=1.0)
    parts = [found[f"{part}_seconds"] for part in ("rollout", "scoring", "update") if f"{part}_seconds" in found]
    assert len(parts) == (1 if stage == "sft" else 3)
    assert min(parts) > 0 and sum(parts) == pytest.approx(found["step_seconds"], abs=5e-3)
    assert 0 < found["ceiling_share"] < 1 and found["trained_tokens_per_second"] > 0
    low, high = map(float, found["estimated_gb"].split(" to "))
    assert 0.3 < low < found["peak_gb"] and low < high
