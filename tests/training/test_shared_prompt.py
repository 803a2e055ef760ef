"""Sharing prompts changes the work of a forward pass and nothing else: TRL's own pass is the reference."""

import pytest
import torch

from lab_utils import config as configuration
from lab_utils.runs import RunDirectory
from lab_utils.training import grpo, rl, shared_prompt
from lab_utils.training.shared_prompt import chunks_of_similar_length

pytestmark = pytest.mark.component

LENGTHS = (9, 1, 4, 12, 1, 7, 2, 12)  # of the completions
CASES = {
    "several chunks": {},
    "temperature": {"grpo.temperature": 0.7},
    "LoRA": {"model.lora": {"r": 4, "alpha": 8}},
    "gradient checkpointing": {"grpo.gradient_checkpointing": True},  # TRL's pass, cut to what is used
}


@pytest.fixture
def new_trainer(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_prompt, "TOKENS", 24)

    def build(changes):
        config = configuration.load("gsm8k-grpo", "smoke", {"grpo.beta": 0.1, "tracking.tensorboard": False} | changes)
        run = RunDirectory.create(config, tmp_path / "run")
        trainer = rl.make_trainer("grpo", rl.RLTrainer, config, grpo.grpo_arguments(config, run), run, "tiny")
        trainer.current_gradient_accumulation_steps = 1  # set by train()
        trainer.model.train()
        with torch.no_grad():  # the policy has moved away from the reference
            for weight in trainer.model.parameters():
                if weight.requires_grad:
                    weight += 0.005 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        return trainer
    return build


def a_batch(trainer, lengths=LENGTHS, padding=3, cut=None):
    """Rows of three prompts of different lengths, or all of `cut`, in no order, with `padding` columns too many."""
    tokenizer, random = trainer.processing_class, torch.Generator().manual_seed(0)
    prompts = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
               for prompt in trainer.train_dataset[:3]["prompt"]]
    assert len({len(prompt) for prompt in prompts}) == 3
    prompts = [prompt[:cut] for prompt in prompts]
    width, length = max(map(len, prompts)) + padding, max(lengths) + padding
    batch = {"prompt_ids": torch.full((len(lengths), width), tokenizer.pad_token_id),
             "completion_ids": torch.randint(900, (len(lengths), length), generator=random),
             "advantages": torch.randn(len(lengths), generator=random)}
    batch["num_items_in_batch"] = torch.tensor(sum(lengths))
    batch["prompt_mask"] = torch.zeros_like(batch["prompt_ids"])
    batch["completion_mask"] = (torch.arange(length) < torch.tensor(lengths)[:, None]).long()
    for row in range(len(lengths)):
        prompt = prompts[(row * 2) % 3]
        batch["prompt_ids"][row, width - len(prompt):] = torch.tensor(prompt)
        batch["prompt_mask"][row, width - len(prompt):] = 1
    return batch


def forward(method, model, batch, compute_entropy=True):
    return method(model, torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                  torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                  batch["completion_ids"].shape[1], batch_size=4, compute_entropy=compute_entropy)


@pytest.mark.parametrize(("lengths", "cut"), [(LENGTHS, None), ((1,) * 8, None), (LENGTHS, 40)],
                         ids=["lengths differ", "one token each", "prompts begin alike"])
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_loss_and_gradients_are_those_of_trls_pass(new_trainer, monkeypatch, changes, lengths, cut):
    trainer = new_trainer(changes)
    batch, plain = a_batch(trainer, lengths, cut=cut), super(rl.RLTrainer, trainer)._get_per_token_logps_and_entropies
    for model in {trainer.model, trainer.ref_model} - {None}:
        with torch.no_grad():
            ours, wanted = (forward(method, model, batch, compute_entropy=model is trainer.model)
                            for method in (trainer._get_per_token_logps_and_entropies, plain))
        assert torch.allclose(ours[0], wanted[0], atol=1e-5)
        assert ours[2] is wanted[2] is None
        if model is trainer.model:
            assert torch.allclose(ours[1], wanted[1], atol=1e-5)
        else:
            assert ours[1] is None
    batch["ref_per_token_logps"] = wanted[0]

    def loss_and_gradients():
        loss = trainer._compute_loss(trainer.model, batch)
        weights = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
        return loss, dict(zip(weights, torch.autograd.grad(loss, weights.values(), allow_unused=True), strict=True))

    loss, gradients = loss_and_gradients()
    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", plain)
    wanted_loss, wanted_gradients = loss_and_gradients()
    assert loss.item() == pytest.approx(wanted_loss.item(), rel=1e-5)
    largest = max(gradient.abs().max() for gradient in wanted_gradients.values() if gradient is not None)
    for name, gradient in wanted_gradients.items():
        if gradient is None:
            assert gradients[name] is None
        else:
            assert torch.allclose(gradients[name], gradient, rtol=1e-5, atol=1e-5 * largest), name


@pytest.mark.parametrize("cut", [None, 40], ids=["padded", "prompts begin alike"])
def test_each_prompt_is_computed_once(new_trainer, cut):
    trainer = new_trainer({})
    seen = []
    trainer.model.model.register_forward_pre_hook(lambda module, inputs, named: seen.append(named["input_ids"].shape),
                                                  with_kwargs=True)
    batch = a_batch(trainer, cut=cut)
    with torch.no_grad():
        forward(trainer._get_per_token_logps_and_entropies, trainer.model, batch)
    if cut is None:
        prompts = [(3, int(batch["prompt_mask"].sum(1).max()))]  # without the columns that are too many
    else:
        real = batch["prompt_ids"][:, -cut:]
        start = int((real == real[0]).all(0).int().argmin())
        prompts = [(1, start), (3, cut - start)]
        assert start > 5
    assert seen == [*prompts, (4, 3), (2, 8), (2, 11)]  # then the completions


def test_chunks_hold_rows_of_similar_length(monkeypatch):
    monkeypatch.setattr(shared_prompt, "TOKENS", 10)
    chunks = [chunk.tolist() for chunk in chunks_of_similar_length(torch.tensor([5, 30, 1, 2, 5, 2]))]
    assert chunks == [[2, 3, 5], [0, 4], [1]]
