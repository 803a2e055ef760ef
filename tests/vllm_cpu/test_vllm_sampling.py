"""Sampling and evaluating with vLLM give what transformers gives."""

import pytest
import torch

from lab_utils import config as configuration
from lab_utils.evaluation import Evaluation, evaluate_run
from lab_utils.models import load_model, load_tokenizer
from lab_utils.sampling import local
from lab_utils.sampling import vllm as vllm_sampling
from lab_utils.tasks import load_task

pytestmark = [pytest.mark.component, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def model():
    return load_model("tiny").eval()


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


@pytest.fixture(scope="module")
def prompts():
    """Ask two tasks, whose answers differ in length, also if the likeliest token is always taken."""
    return [prompt for name in ("gsm8k", "countdown")
            for prompt in load_task(name, "plain").dataset("test", 4, "synthetic")["prompt"]]


@pytest.fixture(scope="module")
def engine():
    with vllm_sampling.vllm_engine("tiny", configuration.load("countdown-grpo", "smoke").model) as engine:
        yield engine


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_transformers(engine, model, tokenizer, prompts, temperature):
    sampled = vllm_sampling.sample(engine, tokenizer, prompts, num_samples=4, max_new_tokens=64, seed=1,
                                   temperature=temperature)
    lengths = set()
    for prompt, completions in zip(prompts, sampled, strict=True):
        [prompt_ids] = local.encode_prompts(tokenizer, [prompt])
        for completion in completions:
            ids = torch.tensor([prompt_ids + completion.token_ids])
            with torch.no_grad():
                logits = model(ids).logits[0, len(prompt_ids) - 1:-1] / temperature
            wanted = logits.log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            assert (torch.tensor(completion.logprobs) - wanted).abs().max() <= 1e-4
            lengths.add(len(completion.token_ids))
    assert len(lengths) > 4, "completions of varied length"


def test_greedy_completions_are_those_of_the_local_sampler(engine, model, tokenizer, prompts):
    whole = local.sample(model, tokenizer, prompts, max_new_tokens=64, temperature=0.0)
    lengths = sorted(len(completion.token_ids) for [completion] in whole)
    how = {"max_new_tokens": lengths[-1] - 1, "temperature": 0.0}  # the longest is cut off
    ours = local.sample(model, tokenizer, prompts, **how)
    theirs = vllm_sampling.sample(engine, tokenizer, prompts, **how)
    for [a], [b] in zip(ours, theirs, strict=True):
        assert (a.token_ids, a.text, a.finished) == (b.token_ids, b.text, b.finished)
    assert {completion.finished for [completion] in theirs} == {True, False}


def test_a_seed_gives_the_same_completions_and_samples_differ(engine, tokenizer, prompts):
    first, again, other = (vllm_sampling.sample(engine, tokenizer, prompts, num_samples=3, max_new_tokens=48, seed=seed)
                           for seed in (0, 0, 1))
    assert first == again != other
    assert all(len({completion.text for completion in completions}) > 1 for completions in first)


def test_sizes_below_one_are_refused(engine, tokenizer, prompts):
    with pytest.raises(ValueError, match="num_samples = 0"):
        vllm_sampling.sample(engine, tokenizer, prompts, num_samples=0)


def test_an_adapter_is_evaluated_as_transformers_does(adapter_run, with_vllm):
    run = adapter_run(seed=0)
    config = run.config()
    texts = []
    for configured in (config, with_vllm(config, "evaluation")):
        evaluation = evaluate_run(run, configured)
        texts.append([example["completions"][0]["text"] for example in evaluation.examples])
    assert texts[0] == texts[1]
    assert Evaluation.load(run.evaluation_path).settings["sampler"] == "lab_utils.sampling.vllm.sample"
