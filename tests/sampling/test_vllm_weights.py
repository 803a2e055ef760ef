"""What rollouts with vLLM need beside TRL: weights of the policy, an engine that stops, and a clean environment.

The engine here is a stand-in: a transformers model in bfloat16 behind the methods of vLLM that TRL calls, with vLLM's
rules for sleeping. tests/vllm_cpu has vLLM itself, in float32.
"""

import os
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl.generation import vllm_generation

from lab_utils import TINY_MODEL
from lab_utils import config as configuration
from lab_utils.models import load_model
from lab_utils.sampling.local import sample_token_ids
from lab_utils.sampling.vllm import LAUNCHER_VARIABLES
from lab_utils.training import grpo, ppo, rl

pytestmark = pytest.mark.component
STAGES = {"grpo": grpo, "ppo": ppo}


class Engine:
    """Stands in for vllm.LLM: at most one per process with sleep mode, and none may be stopped asleep."""

    running = 0

    def __init__(self, model, enable_sleep_mode, max_model_len, **options):
        assert Engine.running == 0, "CuMem allocator can only be used for one instance per process."
        Engine.running += 1
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        self.asleep, self.synced = set(), []
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=self.load_weights))
        self.llm_engine = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=max_model_len),
            engine_core=SimpleNamespace(shutdown=self.shutdown),
            model_executor=SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner)))

    def sleep(self, level):
        self.asleep = {"weights", "kv_cache"}
        for weight in self.model.parameters():
            weight.data.fill_(torch.nan)  # level 2 discards them

    def wake_up(self, tags):
        self.asleep -= set(tags)

    def shutdown(self):
        assert not self.asleep, "the memory of a sleeping engine is released twice"
        Engine.running -= 1

    def load_weights(self, weights):
        for name, weight in weights:
            self.model.get_parameter(name).data.copy_(weight)

    def reset_prefix_cache(self):
        self.synced.append({name: weight.clone() for name, weight in self.model.state_dict().items()})

    def generate(self, prompts, sampling_params, use_tqdm):
        assert not self.asleep
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        sampled = sample_token_ids(self.model, ids, [1] * len(ids), end_ids=sampling_params["stop_token_ids"],
                                   max_new_tokens=sampling_params["max_tokens"])
        outputs = []
        for prompt, (tokens, logps) in zip(ids, sampled, strict=True):
            logprobs = [{token: SimpleNamespace(logprob=logp, rank=1)}
                        for token, logp in zip(tokens, logps, strict=True)]
            outputs.append(SimpleNamespace(prompt_token_ids=prompt,
                                           outputs=[SimpleNamespace(token_ids=tokens, logprobs=logprobs)]))
        return outputs


@pytest.fixture
def engines(monkeypatch):
    """Let TRL use the stand-in, and return the list of the engines that it makes."""
    made = []

    def make(**options):
        made.append(Engine(**options))
        return made[-1]

    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "LLM", make, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", dict, raising=False)
    monkeypatch.setattr(Engine, "running", 0)
    return made


def bfloat16_config(stage, recipe="countdown-grpo", lora=True):
    """Return a configuration in bfloat16 with vLLM, which the rules of the CPU tiers do not admit."""
    config = configuration.load(recipe, "smoke", {
        "model.lora": {"r": 8, "alpha": 16} if lora else None, "tracking.tensorboard": False,
        f"{stage}.learning_rate": 1e-3, f"{stage}.max_steps": 3, f"{stage}.save_steps": 2, "ppo.num_iterations": 1,
        f"{stage}.warmup_ratio": 0.0, f"{stage}.max_completion_length": 32})
    settings = getattr(config, stage).model_copy(update={"use_vllm": True, "vllm_enable_sleep_mode": True})
    model = config.model.model_copy(update={"dtype": "bfloat16"})
    return config.model_copy(update={stage: settings, "model": model})


def digits(completions, **columns):
    return [float(sum(character.isdigit() for character in completion[0]["content"])) for completion in completions]


@pytest.mark.parametrize("stage", STAGES)
def test_trainer_sampler_and_saved_model_have_one_policy(stage, engines, tmp_path, monkeypatch):
    config, trainers = bfloat16_config(stage, f"countdown-{stage}"), []
    make = rl.make_trainer
    monkeypatch.setattr(rl, "make_trainer", lambda *args: trainers.append(make(*args)) or trainers[-1])
    run = STAGES[stage].train(config, tmp_path / "run", reward_funcs=[digits, digits])

    start = load_file(TINY_MODEL / "model.safetensors")
    trained = {name.removeprefix("base_model.model.").replace(".base_layer", ""): weight.detach()
               for name, weight in trainers[0].model.named_parameters()}
    assert all(torch.equal(trained[name], weight.bfloat16()) for name, weight in start.items() if name in trained), \
        "training changes the adapter only"
    last = engines[0].synced[-1]  # sent after two of three steps
    evaluated = load_model(run.checkpoints_dir / "checkpoint-2", config.model).state_dict()
    assert all(torch.equal(last[name], weight) for name, weight in evaluated.items())
    assert any(not torch.equal(weight, start[name].bfloat16()) for name, weight in last.items() if name in start)


@pytest.mark.parametrize("lora", [True, False], ids=["LoRA", "all weights"])
def test_runs_follow_each_other_in_one_process(lora, engines, tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "29511")
    before = {name: os.environ.get(name) for name in LAUNCHER_VARIABLES}
    for name in ("first", "second"):
        grpo.train(bfloat16_config("grpo", lora=lora), tmp_path / name, reward_funcs=[digits, digits])
        assert {name: os.environ.get(name) for name in LAUNCHER_VARIABLES} == before
    assert len(engines) == 2 and Engine.running == 0


def test_a_run_that_fails_stops_its_engine_too(engines, tmp_path):
    def fails(completions, **columns):
        raise ZeroDivisionError

    with pytest.raises(ValueError, match="'fails' raised ZeroDivisionError"):
        grpo.train(bfloat16_config("grpo"), tmp_path / "run", reward_funcs=[fails, fails])
    assert Engine.running == 0 and "RANK" not in os.environ
