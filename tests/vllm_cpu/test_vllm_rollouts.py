"""GRPO and PPO with rollouts from vLLM in the same process: at every step it samples from the current policy.

The number to watch on a GPU too is sampling/sampling_logp_difference/mean, the gap between vLLM's log-probabilities and
the trainer's. In float32 it is rounding (1e-6); with stale weights it grows while the reward looks normal.
"""

from functools import partial

import pytest
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration

from lab_utils import config as configuration
from lab_utils.models import load_tokenizer
from lab_utils.training import grpo, ppo

pytestmark = [pytest.mark.component, pytest.mark.timeout(300)]
LORA = {"r": 4, "alpha": 8}
GAP, LIMIT, STEPS = "sampling/sampling_logp_difference/mean", 1e-4, 4


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    vllm = pytest.importorskip("vllm")
    from vllm import _custom_ops

    # TRL names no dtype, and vLLM would round the model to bfloat16.
    monkeypatch.setattr(vllm_generation, "LLM", partial(vllm.LLM, dtype="float32", enforce_eager=True))
    # vLLM's CPU backend packs linear layers for oneDNN, and a packed layer takes no new weights.
    monkeypatch.setattr(_custom_ops, "_supports_onednn", False)


def digits(completions, **columns):
    return [sum(character.isdigit() for character in completion[0]["content"]) / 20 for completion in completions]


def length(completions, **columns):
    return [len(completion[0]["content"]) / 100 for completion in completions]


def train(stage, recipe, with_vllm, folder, lora=None, start="tiny"):
    """Train a few steps, at a learning rate that changes the policy a lot at every step, and return the metrics."""
    name = stage.__name__.rpartition(".")[2]
    settings = {f"{name}.max_steps": STEPS, f"{name}.learning_rate": 1e-3, f"{name}.warmup_ratio": 0.0,
                "tracking.tensorboard": False, "model.lora": lora,
                "ppo.num_iterations": 1}  # a rollout, and with it a gap, at every step
    config = with_vllm(configuration.load(recipe, "smoke", settings), name)
    return stage.train(config, folder / "run", model=start, reward_funcs=[digits, length]).metrics()


def assert_vllm_has_the_policy(metrics):
    assert len(metrics) == STEPS and metrics["grad_norm"].gt(0.1).all(), "the policy changed at every step"
    assert (metrics[GAP] < LIMIT).all(), f"stale weights in vLLM: {metrics[GAP].tolist()}"


@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "LoRA"])
def test_grpo(with_vllm, tmp_path, monkeypatch, lora):
    asked = []
    make = vllm_generation.SamplingParams
    monkeypatch.setattr(vllm_generation, "SamplingParams", lambda **how: asked.append(how) or make(**how))
    metrics = train(grpo, "countdown-grpo", with_vllm, tmp_path, lora)
    assert_vllm_has_the_policy(metrics)
    assert {"accuracy", "attempts", "completions/clipped_ratio"} <= set(metrics.columns)
    ends = load_tokenizer("tiny").convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert all(how["stop_token_ids"] == ends for how in asked)


def test_a_start_adapter_that_is_trained_further(with_vllm, tmp_path, adapter_run):
    """With a KL term there are two adapters: the policy's, which vLLM must get, and a copy of the start model's."""
    start = adapter_run(seed=3).model_dir
    metrics = train(grpo, "countdown-grpo", with_vllm, tmp_path, LORA, start)
    assert_vllm_has_the_policy(metrics)
    assert metrics["kl"].iloc[-1] > 0


def test_ppo(with_vllm, tmp_path):
    metrics = train(ppo, "countdown-ppo", with_vllm, tmp_path)
    assert_vllm_has_the_policy(metrics)
    assert {"value_loss", "explained_variance"} <= set(metrics.columns)


def test_stale_weights_are_detected(with_vllm, tmp_path, monkeypatch):
    """If vLLM gets the first weights and no others, the check above fails, but not at the first step."""
    sync, synced = VLLMGeneration.sync_weights, []

    def sync_once(self):
        synced.append(self)
        if len(synced) == 1:
            sync(self)

    monkeypatch.setattr(VLLMGeneration, "sync_weights", sync_once)
    metrics = train(grpo, "countdown-grpo", with_vllm, tmp_path)
    assert len(synced) == STEPS
    with pytest.raises(AssertionError, match="stale weights"):
        assert_vllm_has_the_policy(metrics)
    assert metrics[GAP][0] < LIMIT < metrics[GAP][1]
