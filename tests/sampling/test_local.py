"""The sampler draws from the same distribution as transformers.generate, and its log-probabilities are the model's."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

from lab_utils import WorkshopError
from lab_utils.models import end_token_ids, load_model, load_tokenizer
from lab_utils.sampling import local
from lab_utils.sampling.local import Completion, apply_top_p, draw, encode_prompts, sample, sample_token_ids
from lab_utils.sampling.shared_prompts import can_share
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


def test_greedy_output_equals_generate(model, tokenizer, prompts):
    ids = encode_prompts(tokenizer, prompts)
    ends = end_token_ids(model.config, tokenizer)
    ours = sample_token_ids(model, ids, [1] * len(ids), end_ids=ends, max_new_tokens=48, temperature=0)
    lengths = set()
    for prompt, (tokens, _) in zip(ids, ours, strict=True):
        reference = model.generate(torch.tensor([prompt]), max_new_tokens=48, do_sample=False)[0, len(prompt):].tolist()
        assert tokens == reference
        lengths.add(len(tokens))
    assert len(lengths) > 1, "completions of different lengths, so that rows left the batch"


def random_model(kind, **changes):
    torch.manual_seed(0)
    attention = changes.pop("attn_implementation", None)
    config = kind(**{"vocab_size": 1015, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                     "num_attention_heads": 4, "num_key_value_heads": 2} | changes)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


MODELS = {  # how to make one, and whether its completions read the keys and values of their prompt together
    "tiny": (lambda: load_model("tiny"), True),
    "LoRA": (lambda: get_peft_model(load_model("tiny"), LoraConfig(
        target_modules="all-linear", init_lora_weights=False)), True),
    "Qwen3": (lambda: random_model(Qwen3Config, head_dim=16), True),
    "keys for every head": (lambda: random_model(Qwen2Config, num_key_value_heads=4), True),
    "eager attention": (lambda: random_model(Qwen2Config, attn_implementation="eager"), False),
    "sliding window": (lambda: random_model(
        Qwen2Config, use_sliding_window=True, sliding_window=20, max_window_layers=1), False),
}


PROMPTS = {
    "padded": lambda ids: ids,
    "begin and end alike": lambda ids: [ids[2][:10] + prompt[:12] + ids[2][-5:] for prompt in ids],
    "all one": lambda ids: [ids[2] for _ in ids],
}


@pytest.mark.parametrize(("name", "temperature", "kind"), [
    ("tiny", 0.7, "padded"), *((name, 1.0, "padded") for name in MODELS),
    *((name, 1.0, kind) for name in ("Qwen3", "sliding window") for kind in PROMPTS if kind != "padded")])
def test_logprobs_equal_a_plain_forward_pass(tokenizer, prompts, name, temperature, kind, monkeypatch):
    """Prompts have different numbers of completions, which end at different times."""
    make, shares = MODELS[name]
    model, answers = make().eval(), []
    attention = model.config._attn_implementation
    monkeypatch.setattr(local, "can_share", lambda *asked: answers.append(can_share(*asked)) or answers[-1])
    ids, counts = PROMPTS[kind](encode_prompts(tokenizer, prompts)), [5, 1, 7, 2, 5, 3, 4]
    torch.manual_seed(0)
    ends = [*end_token_ids(model.config, tokenizer), *range(50)]  # random models draw one of these before long
    sampled = sample_token_ids(model, ids, counts, end_ids=ends, max_new_tokens=40, temperature=temperature)
    assert answers == [shares] and model.config._attn_implementation == attention
    assert len({len(tokens) for tokens, _ in sampled}) > 3
    asked = [prompt for prompt, count in zip(ids, counts, strict=True) for _ in range(count)]
    for prompt, (tokens, logps) in zip(asked, sampled, strict=True):
        assert not set(tokens[:-1]) & set(ends) and (tokens[-1] in ends or len(tokens) == 40)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1:-1] / temperature
        wanted = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(logps), wanted, atol=1e-5)


def test_a_model_gets_its_own_attention_back_when_sampling_fails(tokenizer, prompts, monkeypatch):
    model = load_model("tiny").eval()
    monkeypatch.setattr(local, "draw", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample(model, tokenizer, prompts, max_new_tokens=4)
    assert model.config._attn_implementation == "sdpa"


def test_samples_follow_the_model_distribution(model, tokenizer, prompts):
    """The first token's frequencies match its probabilities within five standard errors, padded rows included."""
    ids = encode_prompts(tokenizer, prompts[1:3])
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
