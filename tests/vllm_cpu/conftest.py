"""vLLM on a CPU: skipped unless it is installed. scripts/run_vllm_tests.sh installs it and sets its environment."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl.import_utils import is_vllm_available

from lab_utils import config as configuration
from lab_utils.models import load_model, load_tokenizer
from lab_utils.runs import RunDirectory

REASON = "vLLM is not installed: run bash scripts/run_vllm_tests.sh, or RUN_VLLM=1 .ci/run"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if is_vllm_available():
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture(scope="session")
def with_vllm():
    """Return a function that turns vLLM on in a section of a CPU configuration.

    The rules of the configuration forbid that, because vLLM on a CPU gains nothing; `model_copy` does not validate.
    """

    def turn_on(config: configuration.RunConfig, section: str) -> configuration.RunConfig:
        settings = getattr(config, section).model_copy(update={"use_vllm": True})
        return config.model_copy(update={section: settings})

    return turn_on


@pytest.fixture(scope="session")
def adapter_run(tmp_path_factory):
    """Return a function that makes a run whose model is a LoRA adapter on the tiny model, with random weights."""

    def make(seed: int) -> RunDirectory:
        settings = {"task.test_limit": 8, "evaluation.max_new_tokens": 32, "evaluation.num_samples": 1,
                    "evaluation.temperature": 0.0}
        config = configuration.load("countdown-grpo", "smoke", settings)
        run = RunDirectory.create(config, tmp_path_factory.mktemp("adapter") / "grpo")
        torch.manual_seed(seed)
        lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(load_model("tiny"), lora).save_pretrained(run.model_dir)
        load_tokenizer("tiny").save_pretrained(run.model_dir)
        return run

    return make
