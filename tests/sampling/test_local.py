"""The sampler draws from the same distribution as transformers.generate, and its log-probabilities are the model's."""

import pytest
import torch

from lab_utils import WorkshopError
from lab_utils.models import end_token_ids, load_model, load_tokenizer
from lab_utils.sampling.local import Completion, apply_top_p, draw, prompt_ids, sample, sample_token_ids
from lab_utils.tasks import load_task

pytestmark = pytest.mark.component


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


@pytest.fixture(scope="module")
def model():
    return load_model("tiny").eval()


@pytest.fixture(scope="module")
def prompts():
    """Return plain prompts, to which the base model writes answers of different lengths; the first two are the same."""
    words, countdown = (load_task(name, "plain").dataset("test", 3)["prompt"] for name in ("gsm8k", "countdown"))
    return [words[0], *words, *countdown]


def encode(tokenizer, prompts):
    return [prompt_ids(tokenizer, prompt) for prompt in prompts]


def test_greedy_output_equals_generate(model, tokenizer, prompts):
    ids = encode(tokenizer, prompts)
    ends = end_token_ids(model.config, tokenizer)
    ours = sample_token_ids(model, ids, [1] * len(ids), end_ids=ends, max_new_tokens=48, temperature=0)
    lengths = set()
    for prompt, (tokens, _) in zip(ids, ours, strict=True):
        reference = model.generate(torch.tensor([prompt]), max_new_tokens=48, do_sample=False)[0, len(prompt):].tolist()
        assert tokens == reference
        lengths.add(len(tokens))
    assert len(lengths) > 1, "completions of different lengths, so that rows left the batch"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_a_plain_forward_pass(model, tokenizer, prompts, temperature):
    ids = encode(tokenizer, prompts)
    torch.manual_seed(0)
    sampled = iter(sample_token_ids(model, ids, [5] * len(ids), end_ids=end_token_ids(model.config, tokenizer),
                                    max_new_tokens=40, temperature=temperature))
    for prompt in ids:
        for _ in range(5):
            tokens, logps = next(sampled)
            with torch.no_grad():
                logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1:-1] / temperature
            wanted = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
            assert torch.allclose(torch.tensor(logps), wanted, atol=1e-5)


def test_samples_follow_the_model_distribution(model, tokenizer, prompts):
    """The first token's frequencies match its probabilities within five standard errors, padded rows included."""
    ids = encode(tokenizer, prompts[1:3])
    count = 4000
    torch.manual_seed(1)
    ends = end_token_ids(model.config, tokenizer)
    sampled = sample_token_ids(model, ids, [count, count], end_ids=ends, max_new_tokens=1)
    for index, prompt in enumerate(ids):
        with torch.no_grad():
            probabilities = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
        tokens = torch.tensor([ids[0] for ids, _ in sampled[index * count:(index + 1) * count]])
        frequency = torch.bincount(tokens, minlength=len(probabilities)) / count
        error = (probabilities * (1 - probabilities) / count).sqrt()
        assert ((frequency - probabilities).abs() < 5 * error + 2 / count).all()


def test_draws_follow_the_probabilities_to_the_last_token():
    """Chi-square over a large vocabulary with a long tail; tokens of probability 0, ahead or behind, never come."""
    weights = torch.cat([torch.zeros(3), 1 / torch.arange(1.0, 2000), torch.zeros(3)])
    probabilities, count = (weights / weights.sum()).expand(20_000, -1), 20_000
    tokens = torch.cat([draw(probabilities, torch.Generator().manual_seed(seed)) for seed in range(5)])[:, 0]
    counts = torch.bincount(tokens, minlength=len(weights)).double()
    assert counts[:3].sum() == counts[-3:].sum() == 0
    expected = 5 * count * probabilities[0, 3:-3].double()
    squares = ((counts[3:-3] - expected) ** 2 / expected).sum().item()
    freedom = len(expected) - 1
    assert abs(squares - freedom) < 5 * (2 * freedom) ** 0.5  # mean and variance of the chi-square distribution


def test_logits_that_are_nan_stop_sampling_with_a_message(model, tokenizer, prompts, monkeypatch):
    monkeypatch.setattr(model.lm_head, "forward", lambda states: torch.full((*states.shape[:-1], 952), torch.nan))
    with pytest.raises(WorkshopError, match="probabilities are NaN.*learning rate"):
        sample(model, tokenizer, prompts[:2], max_new_tokens=4)


def test_sample_groups_by_prompt_repeats_with_a_seed_and_restores_the_mode(model, tokenizer, prompts):
    model.train()
    first, again, other = (sample(model, tokenizer, prompts, num_samples=3, max_new_tokens=16, seed=seed, batch_size=7)
                           for seed in (0, 0, 1))
    assert model.training
    model.eval()
    assert first == again != other
    assert [len(group) for group in first] == [3] * len(prompts)
    completion = first[0][0]
    assert isinstance(completion, Completion) and len(completion.token_ids) == len(completion.logprobs) <= 16
    assert completion.finished == (completion.token_ids[-1] in end_token_ids(model.config, tokenizer))


def test_more_samples_than_the_batch_holds_are_split(model, tokenizer, prompts):
    groups = sample(model, tokenizer, prompts[:2], num_samples=5, max_new_tokens=4, seed=0, batch_size=2)
    assert [len(group) for group in groups] == [5, 5]


def test_top_p_keeps_the_smallest_sufficient_set():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert torch.isinf(apply_top_p(logits, 0.8)).tolist() == [[False, False, True, True]]
    assert torch.isinf(apply_top_p(logits, 0.81)).tolist() == [[False, False, False, True]]
    assert torch.isinf(apply_top_p(logits, 0.01)).tolist() == [[False, True, True, True]]


def test_bad_arguments_are_named(model, tokenizer, prompts):
    with pytest.raises(ValueError, match="num_samples = 0 must be at least 1"):
        sample(model, tokenizer, prompts, num_samples=0)
