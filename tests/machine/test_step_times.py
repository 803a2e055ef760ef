"""The benchmark of a step, on the CPU with the tiny shape: the parts add up, the memory is that of the process."""

from pathlib import Path

import pandas as pd
import pytest

from lab_utils.config import load_tier
from lab_utils.machine import step_times
from lab_utils.machine.memory import skeleton
from lab_utils.machine.step_times import Case
from lab_utils.models import load_model, load_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return step_times.random_model("tiny", tmp_path_factory.mktemp("random") / "model")


def case(model: Path, **changes) -> Case:
    values = {"stage": "grpo", "engine": "transformers", "hardware": "smoke", "model": str(model)}
    return Case(**{"batch_size": 8, "rollout": 8, "completion": 32, "steps": 1} | values | changes)


def test_a_random_model_has_the_shape_and_none_of_the_knowledge(model):
    random, trained = load_model(model), load_model("tiny")
    assert random.num_parameters() == trained.num_parameters() == skeleton(str(model)).num_parameters()
    assert (random.model.embed_tokens.weight - trained.model.embed_tokens.weight).abs().max() > 0.01
    assert load_tokenizer(model)("7 * 6")["input_ids"] == load_tokenizer("tiny")("7 * 6")["input_ids"]


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
@pytest.mark.parametrize("hardware", ["t4", "a10g", "a100", "h200"])
def test_a_case_becomes_a_valid_configuration_on_every_tier(stage, hardware):
    engine = "transformers" if hardware == "t4" else "vllm"
    config = step_times.run_config(case(Path("model"), stage=stage, hardware=hardware, engine=engine, batch_size=4,
                                        rollout=64, completion=512, steps=3, settings=("model.lora={r: 4}",)))
    settings = getattr(config, stage)
    assert (config.stages, config.task.source, config.model.lora.r) == ([stage], "synthetic", 4)
    assert (settings.max_completion_length, settings.gradient_accumulation_steps, settings.max_steps) == (512, 16, 4)
    assert settings.use_vllm == (load_tier(hardware).name != "t4")


@pytest.mark.component
@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_the_parts_of_a_step_add_up(model, stage):
    found = step_times.measure(case(model, stage=stage))
    parts = [found[f"{part}_seconds"] for part in ("rollout", "scoring", "update")]
    assert min(parts) > 0 and sum(parts) == pytest.approx(found["step_seconds"], abs=1e-3)
    assert 0 < found["mean_length"] <= 32
    assert found["sampled_tokens_per_second"] == pytest.approx(8 * found["mean_length"] / parts[0], rel=0.01)
    low, high = map(float, found["estimated_gb"].split(" to "))
    assert 0.3 < low < found["peak_gb"] and low < high


def test_results_are_written_as_table_and_figure_with_what_failed(tmp_path):
    row = {"stage": "ppo", "engine": "vllm", "batch_size": 8, "rollout_seconds": 1.0, "scoring_seconds": 0.5,
           "update_seconds": 2.0, "step_seconds": 3.5, "trained_tokens_per_second": 100.0, "peak_gb": 1.5}
    failed = {"stage": "grpo", "engine": "vllm", "batch_size": 16, "error": "OutOfMemoryError: CUDA out of memory"}
    step_times.write([row, failed], tmp_path, "some machine")
    frame = pd.read_csv(tmp_path / "gpu_benchmark.csv")
    assert frame["error"].tolist()[1] == failed["error"] and frame["step_seconds"][0] == 3.5
    text = (tmp_path / "gpu_benchmark.md").read_text()
    assert text.startswith("some machine\n") and "| ppo | vllm | 8 |" in text and "out of memory" in text
    assert (tmp_path / "gpu_benchmark.png").is_file()


@pytest.mark.component
def test_a_case_that_fails_is_a_row_with_its_reason(tmp_path):
    found = step_times.measure_alone(case(tmp_path / "nothing"))
    assert "could not be loaded" in found["error"] and found["stage"] == "grpo"
