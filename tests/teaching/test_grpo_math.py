"""The GRPO arithmetic against numbers worked out by hand, and the loss and gradients of TRL's GRPOTrainer."""

import math

import pytest
import torch
from torch.testing import assert_close

from lab_utils.teaching.grpo_math import (
    aggregate,
    clipped_objective,
    group_advantages,
    grpo_loss,
    kl_estimate,
    token_logps,
)

B, PROMPT, T = 8, 6, 12  # completions, tokens of a prompt, tokens of the longest completion


def test_advantages_of_two_groups():
    # Group 1: mean 0.25, standard deviation (n - 1) 0.5. Group 2: equal rewards, so nothing to learn.
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.1, 0.1, 0.1, 0.1])
    advantages = group_advantages(rewards, num_generations=4)
    assert_close(advantages[:4], torch.tensor([0.75, -0.25, -0.25, -0.25]) / 0.5001)
    assert_close(advantages[4:], torch.zeros(4))


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, 2.0),
        (1.5, 2.0, 2.4),  # clipped: no reward for going further than 1.2
        (0.5, 2.0, 1.0),  # not clipped: the way back is open
        (0.5, -2.0, -1.6),  # clipped: no reward for going further than 0.8
        (1.5, -2.0, -3.0),  # not clipped
    ],
)
def test_clipped_objective(ratio, advantage, expected):
    assert clipped_objective(torch.tensor([[ratio]]), torch.tensor([advantage])).item() == pytest.approx(expected)


def test_kl_estimate_is_the_divergence_on_average_and_never_negative():
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.25, 0.25])
    estimates = kl_estimate(policy.log(), reference.log())
    exact = sum(p * math.log(p / q) for p, q in zip(policy.tolist(), reference.tolist(), strict=True))
    assert (policy * estimates).sum().item() == pytest.approx(exact, abs=1e-6)
    assert (estimates >= 0).all() and kl_estimate(policy.log(), policy.log()).eq(0).all()


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("grpo", (1.0 + 3.0) / 2),  # both completions weigh the same
        ("dapo", (2 * 1.0 + 4 * 3.0) / 6),  # every token weighs the same
        ("dr_grpo", (2 * 1.0 + 4 * 3.0) / (2 * 10)),
    ],
)
def test_aggregate_two_tokens_of_1_and_four_of_3(loss_type, expected):
    losses = torch.tensor([[1.0, 1.0, 99.0, 99.0], [3.0, 3.0, 3.0, 3.0]])  # 99 stands on padding
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    assert aggregate(losses, mask, loss_type, max_completion_length=10).item() == pytest.approx(expected)


def test_in_the_first_pass_the_loss_says_nothing_but_its_gradient_does():
    logps = torch.full((2, 3), -1.0, requires_grad=True)
    advantages, mask = torch.tensor([1.0, -1.0]), torch.ones(2, 3)
    loss = grpo_loss(logps, logps.detach(), advantages, mask, loss_type="grpo", max_completion_length=3)
    loss.backward()
    assert loss.item() == pytest.approx(0)
    assert_close(logps.grad, -advantages[:, None].expand(2, 3) / 6)


def tiny_trainer(folder, **settings):
    """Return a GRPOTrainer around a random two-layer model, without a download or training."""
    from datasets import Dataset
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    from lab_utils.models import load_tokenizer

    torch.manual_seed(0)
    tokenizer = load_tokenizer("tiny")
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.3, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
    arguments = GRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        per_device_train_batch_size=B, num_generations=4, max_completion_length=20, num_iterations=2, **settings)
    prompts = Dataset.from_list([{"prompt": [{"role": "user", "content": "1 + 1"}]}])
    trainer = GRPOTrainer(model=model, args=arguments, train_dataset=prompts, processing_class=tokenizer,
                          reward_funcs=lambda completions, **columns: [0.0] * len(completions))
    trainer.current_gradient_accumulation_steps = 1  # set by Trainer.train, which is not called here
    trainer.model.train()
    return trainer


def random_batch(trainer):
    """Return left-padded prompts, completions of different lengths, and policies far enough apart for clipping."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([12, 3, 7, 1, 9, 12, 5, 2])
    prompt_mask = torch.ones(B, PROMPT, dtype=torch.long)
    prompt_mask[4:, :2] = 0
    completion_mask = (torch.arange(T) < lengths[:, None]).long()
    ids = torch.randint(0, trainer.model.config.vocab_size, (B, PROMPT + T), generator=generator)
    attention_mask = torch.cat([prompt_mask, completion_mask], dim=1)
    with torch.no_grad():
        logps = token_logps(trainer.model, ids, attention_mask, T, trainer.temperature)
    rewards = torch.tensor([1.0, 0.0, 0.1, 0.0, 1.1, 1.0, 0.0, 0.0])
    return {
        "prompt_ids": ids[:, :PROMPT],
        "prompt_mask": prompt_mask,
        "completion_ids": ids[:, PROMPT:],
        "completion_mask": completion_mask,
        "advantages": group_advantages(rewards, 4),
        "old_per_token_logps": logps + 0.3 * torch.randn(B, T, generator=generator),
        "ref_per_token_logps": logps + 0.5 * torch.randn(B, T, generator=generator),
        "num_items_in_batch": completion_mask.sum(),
    }


@pytest.mark.component
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_loss_and_gradients_equal_those_of_trl(tmp_path, loss_type, beta):
    trainer = tiny_trainer(tmp_path, loss_type=loss_type, epsilon=0.2, epsilon_high=0.28, temperature=0.7)
    trainer.beta = beta  # set here, or the trainer would want to load a reference model
    batch = random_batch(trainer)
    theirs = trainer._compute_loss(trainer.model, batch)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention_mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    ours = grpo_loss(
        token_logps(trainer.model, ids, attention_mask, T, temperature=0.7), batch["old_per_token_logps"],
        batch["advantages"], batch["completion_mask"], loss_type=loss_type, max_completion_length=20, epsilon=0.2,
        epsilon_high=0.28, beta=beta, ref_logps=batch["ref_per_token_logps"])
    assert trainer._metrics["train"]["clip_ratio/region_mean"][-1] > 0.05  # or the clip would go untested
    assert abs(theirs.item()) > 1e-3
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    parameters = list(trainer.model.parameters())
    for mine, other in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True):
        assert_close(mine, other, atol=1e-6, rtol=1e-4)


@pytest.mark.component
@pytest.mark.parametrize("scale", [True, False])
def test_advantages_equal_those_of_trl(tmp_path, scale):
    trainer = tiny_trainer(tmp_path, scale_rewards="group" if scale else "none")
    rewards = torch.tensor([1.0, 0.0, 0.1, 0.0, 0.5, 0.5, 0.5, 0.5])
    trainer._calculate_rewards = lambda *arguments: rewards[:, None]
    output = trainer._generate_and_score_completions([{"prompt": [{"role": "user", "content": "1 + 1"}]}] * B)
    assert_close(output["advantages"], group_advantages(rewards, 4, scale))
