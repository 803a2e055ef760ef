"""PPO: the algorithm against its definitions, the trainer against hand-written gradients, its hold on TRL, resuming."""

import types

import pytest
import torch
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from lab_utils import config as configuration
from lab_utils.models import load_model
from lab_utils.runs import TIMING_COLUMNS, RunDirectory
from lab_utils.teaching.metrics import meaning
from lab_utils.training import ppo, rl, shared_prompt
from lab_utils.training.ppo import (
    Critic,
    explained_variance,
    generalized_advantages,
    load_critic,
    masked_whiten,
    token_rewards,
    token_values,
    value_loss,
)

LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}

# --- The algorithm ---------------------------------------------------------------------------------------------------


def gae_by_definition(rewards, values, gamma, lam):
    """Return A_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V_{t+1} − V_t, for one completion without padding."""
    values = [*values, 0.0]
    deltas = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(len(rewards))]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


@settings(deadline=None, max_examples=200)
@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(1, 5), length=st.integers(1, 30), padded=st.booleans(),
       gamma=st.floats(0, 1), lam=st.floats(0, 1))
def test_gae_equals_its_definition(seed, batch, length, padded, gamma, lam):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, batch, length, generator=generator, dtype=torch.float64)
    if padded:  # completions of different lengths, 0 among them
        mask = torch.arange(length) < torch.randint(0, length + 1, (batch, 1), generator=generator)
    else:  # tokens that do not count anywhere, such as the output of tools
        mask = torch.rand(batch, length, generator=generator) < 0.7
    advantages, returns = generalized_advantages(rewards, values, mask, gamma, lam)
    for row in range(batch):
        there = mask[row]
        wanted = gae_by_definition(rewards[row, there].tolist(), values[row, there].tolist(), gamma, lam)
        assert advantages[row, there].tolist() == pytest.approx(wanted, abs=1e-12, rel=1e-12)
        assert torch.equal(returns[row, there], advantages[row, there] + values[row, there])
        assert advantages[row, ~there].eq(0).all() and returns[row, ~there].eq(0).all()


def test_group_means_as_values_give_the_advantages_of_grpo():
    scores = torch.tensor([1.0, 0.0, 0.1, 1.1, 0.0, 0.0, 0.0, 1.1])
    group_mean = scores.view(2, 4).mean(1).repeat_interleave(4)
    mask = torch.arange(9) < torch.tensor([9, 3, 1, 5, 4, 9, 2, 6])[:, None]
    rewards = token_rewards(scores, torch.zeros(8, 9), None, mask, beta=0.0)
    advantages, _ = generalized_advantages(rewards, group_mean[:, None].expand(8, 9), mask, gamma=1.0, lam=1.0)
    assert torch.allclose(advantages, (scores - group_mean)[:, None] * mask, atol=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_an_optimal_critic_has_nothing_to_add_to_deterministic_completions(gamma, lam):
    scores, lengths = torch.tensor([1.0, 0.5]), torch.tensor([6, 4])
    mask = torch.arange(8) < lengths[:, None]
    rewards = token_rewards(scores, torch.zeros(2, 8), None, mask, beta=0.0)
    values = scores[:, None] * gamma ** (lengths[:, None] - 1 - torch.arange(8))
    advantages, returns = generalized_advantages(rewards, values, mask, gamma, lam)
    assert torch.allclose(advantages, torch.zeros(2, 8), atol=1e-6)
    assert torch.allclose(returns, values * mask, atol=1e-6)


def test_token_rewards_by_hand():
    logps, ref_logps = torch.tensor([[-1.0, -2.0, -3.0]] * 3), torch.tensor([[-1.5, -2.0, -1.0]] * 3)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]])
    rewards = token_rewards(torch.tensor([1.0, 2.0, 3.0]), logps, ref_logps, mask, beta=0.1)
    wanted = torch.tensor([[-0.05, 0.0, 1.2], [-0.05, 2.0, 0.0], [0.0, 0.0, 0.0]])  # no token, no reward
    assert torch.allclose(rewards, wanted)


def test_whitened_advantages_have_mean_0_and_variance_1():
    advantages, mask = torch.randn(4, 9) * 3 + 2, torch.rand(4, 9) < 0.6
    whitened = masked_whiten(advantages, mask)
    assert whitened[mask].mean().item() == pytest.approx(0, abs=1e-6)
    assert whitened[mask].var(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert whitened[~mask].eq(0).all()


@pytest.mark.parametrize("mask", [torch.ones(2, 3), torch.zeros(2, 3)])
def test_equal_rewards_and_empty_completions_are_neutral(mask):
    """All completions earn the same as the critic expects, or none has a token: nothing is learned, nothing is NaN."""
    constant = torch.full((2, 3), 0.5)
    rewards = token_rewards(torch.tensor([0.5, 0.5]), constant, None, mask, beta=0.0)
    advantages, returns = generalized_advantages(rewards, constant, mask, gamma=1.0, lam=0.95)
    assert masked_whiten(advantages, mask).eq(0).all()
    assert [part.item() for part in value_loss(constant, constant, returns, mask, 0.2)] == [0, 0]
    assert explained_variance(constant, returns, mask).isnan()  # TRL leaves NaN out of its logs


def test_value_loss_by_hand():
    old, returns, mask = torch.zeros(1, 4), torch.tensor([[1.0, 1.0, 1.0, 9.0]]), torch.tensor([[1, 1, 1, 0]])
    values = torch.tensor([[0.1, 0.5, -0.5, 0.0]], requires_grad=True)
    loss, clipped = value_loss(values, old, returns, mask, epsilon=0.2)
    # 0.1 is near the old value; 0.5 is clipped to 0.2; −0.5 is clipped to −0.2, but the larger error counts
    assert loss.item() == pytest.approx(0.5 * (0.9**2 + 0.8**2 + 1.5**2) / 3)
    assert clipped.item() == pytest.approx(1 / 3)
    loss.backward()
    assert values.grad[0].tolist() == pytest.approx([-0.9 / 3, 0.0, -1.5 / 3, 0.0])


def test_the_critic_reads_the_state_and_the_mean_of_the_states_so_far():
    critic = Critic(3)
    torch.nn.init.normal_(critic.head.weight)
    hidden = torch.randn(2, 5, 3)
    for t in range(5):
        features = torch.cat([hidden[:, t], hidden[:, : t + 1].mean(1)], dim=-1)
        torch.testing.assert_close(critic(hidden)[:, t], critic.head(features)[:, 0])
    later = hidden.clone()
    later[:, 3:] = 100.0  # what comes later, padding included, changes nothing
    torch.testing.assert_close(critic(later)[:, :3], critic(hidden)[:, :3])


def test_explained_variance():
    returns, mask = torch.tensor([[0.0, 1.0, 2.0, 7.0]]), torch.tensor([[1, 1, 1, 0]])
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(torch.full((1, 4), 3.0), returns, mask) == 0
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3)
    assert explained_variance(returns, torch.ones(1, 4), mask).isnan()


# --- The trainer -----------------------------------------------------------------------------------------------------


def digits_reward(completions, **columns):
    """Give what untrained models earn too: 0.2 for each of the first five characters that is a digit."""
    return [0.2 * sum(c.isdigit() for c in completion[0]["content"][:5]) for completion in completions]


def ppo_config(**changes):
    """Configure a few steps: 16 completions per rollout, 2 epochs of 2 updates of 2 mini-batches of 4."""
    overrides = {"stages": ["ppo"], "rewards": {"format_reward": None, "equation_reward": 1.0},
                 "task.train_limit": 64, "tracking.tensorboard": False, "ppo.max_completion_length": 32,
                 "ppo.per_device_train_batch_size": 4, "ppo.steps_per_generation": 4,
                 "ppo.gradient_accumulation_steps": 2, "ppo.num_iterations": 2,
                 "ppo.num_generations": 2, "ppo.max_steps": 8, "ppo.save_steps": 4,
                 "ppo.critic_learning_rate": 1e-2}
    return configuration.load("countdown-ppo", "smoke", overrides | changes)


@pytest.fixture
def new_trainer(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_prompt, "TOKENS", 40)  # several forward passes, of completions of similar length

    def build(reward=digits_reward, **changes):
        config = ppo_config(**changes)
        run = RunDirectory.create(config, tmp_path / "run")
        arguments = ppo.ppo_arguments(config, run)
        trainer = rl.make_trainer("ppo", ppo.PPOTrainer, config, arguments, run, config.model.name, [reward])
        trainer.current_gradient_accumulation_steps = config.ppo.gradient_accumulation_steps  # set by train()
        torch.nn.init.normal_(trainer.critic.head.weight, std=0.05)  # a critic that says something
        trainer.model.train()
        return trainer
    return build


def a_rollout(trainer):
    torch.manual_seed(0)
    rows = [row for row in trainer.train_dataset.select(range(8)) for _ in range(2)]
    return trainer._generate_and_score_completions(rows)


def plain_forward(model, rollout, temperature):
    """Return log-probabilities and last hidden states of the completion tokens, with transformers alone."""
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
    mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
    width = rollout["completion_ids"].shape[1]
    outputs = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    logps = (outputs.logits[:, -width - 1:-1] / temperature).log_softmax(-1)
    logps = logps.gather(2, rollout["completion_ids"][:, :, None])[:, :, 0]
    return logps, outputs.hidden_states[-1][:, -width - 1:-1]


@pytest.mark.component
@pytest.mark.parametrize("changes", [{}, {"ppo.num_iterations": 1, "ppo.gradient_accumulation_steps": 4}],
                         ids=["several steps per rollout", "one step per rollout"])
def test_values_of_the_hook_equal_a_plain_forward_pass(new_trainer, changes):
    trainer = new_trainer(**changes)
    rollout = a_rollout(trainer)
    mask = rollout["completion_mask"].bool()
    with torch.no_grad():
        logps, hidden = plain_forward(trainer.model, rollout, trainer.temperature)
    assert torch.allclose(rollout["old_values"][mask], trainer.critic(hidden)[mask], atol=1e-5)
    assert torch.allclose(rollout["old_per_token_logps"][mask], logps[mask], atol=1e-5)
    assert rollout["old_values"][mask].std() > 0
    for row in range(3):  # and the helper of notebook 10, without padding
        prompt = rollout["prompt_ids"][row][rollout["prompt_mask"][row].bool()].tolist()
        completion = rollout["completion_ids"][row][mask[row]].tolist()
        values = token_values(trainer.model, trainer.critic, prompt, completion)
        assert torch.allclose(values, rollout["old_values"][row][mask[row]], atol=1e-5)


@pytest.mark.component
@pytest.mark.parametrize("changes", [{}, {"ppo.beta": 0.5, "ppo.gradient_checkpointing": True},
                                     {"model.lora": LORA, "ppo.beta": 0.5}],
                         ids=["full", "full with KL, checkpointing", "LoRA with KL"])
def test_first_step_is_the_hand_written_policy_gradient(new_trainer, changes):
    """The ratio is 1, and the gradient that of −mean(A log π) + vf_coef · ½ mean((V − R)²), over the accumulation."""
    trainer = new_trainer(**changes)
    reference = load_model(trainer.model.config._name_or_path)
    moved = dict(trainer.model.named_parameters())
    with torch.no_grad():  # as in the middle of a run: the policy is no longer the reference
        for name, weight in moved.items():
            if weight.requires_grad and not name.startswith("critic"):
                weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    rollout = a_rollout(trainer)
    mask, beta = rollout["completion_mask"].bool(), trainer.settings.beta

    # Advantages: scores at the last token, minus the KL to the reference at every token.
    with torch.no_grad():
        logps, hidden = plain_forward(trainer.model, rollout, trainer.temperature)
        ref_logps, _ = plain_forward(reference, rollout, trainer.temperature)
        values = trainer.critic(hidden)
    texts = trainer.processing_class.batch_decode(
        [ids[there] for ids, there in zip(rollout["completion_ids"], mask, strict=True)], skip_special_tokens=True)
    scores = torch.tensor(digits_reward([[{"content": text}] for text in texts]))
    rewards = -beta * (logps - ref_logps) * mask
    rewards[torch.arange(16), mask.sum(1) - 1] += scores
    advantages, returns = torch.zeros(2, *mask.shape)
    for row in range(16):
        there = mask[row]
        found = gae_by_definition(rewards[row, there].tolist(), values[row, there].tolist(), 1.0, 0.95)
        advantages[row, there] = torch.tensor(found)
        returns[row, there] = advantages[row, there] + values[row, there]
    advantages[mask] = (advantages[mask] - advantages[mask].mean()) / advantages[mask].std(correction=0)
    assert torch.allclose(rollout["advantages"], advantages, atol=1e-4)
    assert torch.allclose(rollout["returns"], returns, atol=1e-4)

    trainer._compute_loss(trainer.model, rollout).backward()
    found = {name: weight.grad.clone() for name, weight in moved.items() if weight.requires_grad}
    trainer.model.zero_grad()
    logps, hidden = plain_forward(trainer.model, rollout, trainer.temperature)
    policy = -(advantages * logps)[mask].mean()
    critic = 0.5 * ((trainer.critic(hidden) - returns)[mask] ** 2).mean()
    ((policy + trainer.settings.vf_coef * critic) / 2).backward()
    for name, gradient in found.items():
        assert torch.allclose(gradient, moved[name].grad, atol=1e-6 + 1e-4 * gradient.abs().max()), name
    metrics = trainer._metrics["train"]
    assert metrics["approx_kl"][-1] == pytest.approx(0, abs=1e-9)  # ratio 1
    assert metrics["clip_ratio/region_mean"][-1] == 0
    if beta:
        assert metrics["kl"][-1] == pytest.approx((logps - ref_logps)[mask].mean().item(), abs=1e-4)


@pytest.mark.component
def test_padding_changes_neither_loss_nor_gradient(new_trainer):
    trainer = new_trainer()
    rollout = a_rollout(trainer)
    rollout["old_per_token_logps"] = rollout["old_per_token_logps"] - 0.1  # so that clipping is at work
    short, pad = rollout["completion_mask"].bool(), 7
    assert not short.all(), "completions of different lengths"
    padded = dict(rollout)
    padded["completion_ids"] = torch.where(short, rollout["completion_ids"], 11)  # other content at padding
    padded["prompt_ids"] = torch.where(rollout["prompt_mask"].bool(), rollout["prompt_ids"], 13)
    for name in ("completion_ids", "completion_mask", "advantages", "returns", "old_values", "old_per_token_logps"):
        padded[name] = torch.nn.functional.pad(padded[name], (0, pad), value=0 if name == "completion_mask" else 5)
    for name in ("prompt_ids", "prompt_mask"):
        padded[name] = torch.nn.functional.pad(padded[name], (pad, 0), value=5 if name == "prompt_ids" else 0)

    results = []
    for inputs in (rollout, padded):
        trainer.model.zero_grad()
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        results.append((loss, {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}))
    (loss, gradients), (padded_loss, padded_gradients) = results
    assert loss.item() == pytest.approx(padded_loss.item(), abs=1e-6)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, padded_gradients[name], atol=1e-6 + 1e-4 * gradient.abs().max()), name


@pytest.mark.component
def test_warm_up_trains_the_critic_only(tmp_path):
    config = ppo_config(**{"ppo.critic_warmup_steps": 4, "ppo.max_steps": 4})
    run = ppo.train(config, tmp_path / "run", reward_funcs=[digits_reward])
    before, after = load_model("tiny").state_dict(), load_model(run.model_dir).state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    assert load_file(run.model_dir / "value_head.safetensors")["head.weight"].abs().sum() > 0
    assert (run.metrics()["value_loss"] > 0).all()
    for tokens in run.completions()["tokens"]:
        assert set(tokens["value"]) == set(tokens["logp_change"]) == {0.0}, "both as before the first update"
        assert len(tokens["text"]) == len(tokens["value"]) == len(tokens["advantage"]) and any(tokens["advantage"])


@pytest.mark.component
@pytest.mark.parametrize("changes", [{}, {"model.lora": LORA}], ids=["full", "LoRA"])
def test_model_loads_without_its_critic_and_with_it(tmp_path, changes, recwarn):
    config = ppo_config(**changes, **{"ppo.max_steps": 4, "ppo.beta": 0.1})
    run = ppo.train(config, tmp_path / "run", reward_funcs=[digits_reward])
    metrics = run.metrics()
    for name in ("policy_loss", "value_loss", "approx_kl", "entropy", "clip_ratio/region_mean", "clip_ratio/value"):
        assert metrics[name].notna().all(), name
    for name in ("explained_variance", "explained_variance/lambda_1", "values/mean", "returns/mean", "advantages/mean",
                 "advantages/std", "kl"):
        assert metrics[name].notna().tolist() == [True, False, False, False], name  # once per rollout
    assert [name for name in metrics if name != "step" and not meaning(name)] == []
    model, start = load_model(run.model_dir), load_model("tiny")
    assert any(not torch.equal(weight, start.state_dict()[name]) for name, weight in model.state_dict().items())
    if "model.lora" not in changes:
        _, report = AutoModelForCausalLM.from_pretrained(run.model_dir, output_loading_info=True)
        assert not any(report.values()), report
    else:
        assert not any("critic" in name for name in load_file(run.model_dir / "adapter_model.safetensors"))
    values = token_values(model, load_critic(run.model_dir, model), [5, 6, 7], [8, 9])
    assert values.shape == (2,) and values.abs().sum() > 0


# --- Resuming --------------------------------------------------------------------------------------------------------


class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 6:
            raise KeyboardInterrupt


@pytest.mark.component
@pytest.mark.parametrize("changes", [{}, {"model.lora": LORA, "ppo.beta": 0.1, "ppo.critic_warmup_steps": 2}],
                         ids=["full", "LoRA, KL, warm-up"])
def test_an_interrupted_run_resumes_to_the_same_metrics(tmp_path, changes):
    whole = ppo.train(ppo_config(**changes), tmp_path / "whole", reward_funcs=[digits_reward])
    with pytest.raises(KeyboardInterrupt):
        ppo.train(ppo_config(**changes), tmp_path / "half", reward_funcs=[digits_reward], callbacks=[Interrupt()])
    resumed = ppo.train(ppo_config(**changes), tmp_path / "half", reward_funcs=[digits_reward], resume=True)

    assert whole.completions().equals(resumed.completions())
    wanted, found = (run.metrics().drop(columns=list(TIMING_COLUMNS)) for run in (whole, resumed))
    assert wanted.columns.tolist() == found.columns.tolist()
    for name in wanted:
        assert found[name].tolist() == pytest.approx(wanted[name].tolist(), abs=1e-5, nan_ok=True), name
    for file in ("value_head.safetensors", ("adapter_" if "model.lora" in changes else "") + "model.safetensors"):
        one, other = load_file(whole.model_dir / file), load_file(resumed.model_dir / file)
        assert all(torch.allclose(weight, other[name], atol=1e-6) for name, weight in one.items()), file


@pytest.mark.component
def test_a_run_killed_after_the_checkpoint_of_its_last_step_keeps_the_completions_of_a_rollout_in_progress(tmp_path):
    class KillAfterSave(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 6:  # the last, in the middle of the second rollout's updates
                raise KeyboardInterrupt

    config = ppo_config(**{"ppo.max_steps": 6})
    with pytest.raises(KeyboardInterrupt):
        ppo.train(config, tmp_path / "run", reward_funcs=[digits_reward], callbacks=[KillAfterSave()])
    run = ppo.train(config, tmp_path / "run", reward_funcs=[digits_reward], resume=True)
    assert set(run.completions()["step"]) == {1, 5}


def test_checkpoints_are_written_between_rollouts():
    class Run:
        checkpoints_dir = "somewhere"

    for save_steps, wanted in ((1, 4), (4, 4), (5, 8), (8, 8)):  # 4 optimizer steps per rollout
        assert ppo.ppo_arguments(ppo_config(**{"ppo.save_steps": save_steps}), Run()).save_steps == wanted


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.component
def test_equal_rewards_and_ended_at_once_completions_train_to_finite_weights(tmp_path, monkeypatch):
    def silent(prompts, trainer):  # half of the completions end at once, without a word
        sampled = sampler(prompts, trainer)
        for i in range(0, len(prompts), 2):
            sampled["completion_ids"][i] = [trainer.eos_token_ids[0]]
            sampled["logprobs"][i] = [-1.0]
        return sampled

    sampler = rl.rollout
    monkeypatch.setattr(rl, "rollout", silent)
    config = ppo_config(**{"ppo.max_steps": 4, "ppo.beta": 0.1})
    run = ppo.train(config, tmp_path / "run", reward_funcs=[lambda completions, **columns: [1.0] * len(completions)])
    assert all(weight.isfinite().all() for weight in load_model(run.model_dir).state_dict().values())
    assert run.metrics()["loss"].notna().all()


# --- What the trainer relies on in TRL -------------------------------------------------------------------------------

CHANGED = (f"TRL {trl.__version__} has changed what lab_utils/training/ppo.py builds on: {{}}. Compare its GRPOTrainer "
           "with PPOTrainer, or keep the TRL version of setup/requirements.")


@pytest.mark.component
def test_trl_contract(new_trainer):
    trainer = new_trainer(**{"ppo.beta": 0.1})
    assert trainer.ref_model is not None, CHANGED.format("beta > 0 no longer makes a reference model")
    base = types.SimpleNamespace(
        rollout=lambda rows: trl.GRPOTrainer._generate_and_score_completions(trainer, rows),
        loss=lambda inputs: trl.GRPOTrainer._compute_loss(trainer, trainer.model, inputs))
    rows = [row for row in trainer.train_dataset.select(range(8)) for _ in range(2)]

    calls = []
    forward = trainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = lambda model, *args, **kwargs: (
        calls.append(model), forward(model, *args, **kwargs))[1]
    inputs = base.rollout(rows)
    assert calls == [trainer.model], CHANGED.format(
        f"a rollout makes {len(calls)} forward passes where one, of the policy, was expected")
    wanted = {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "old_per_token_logps"}
    assert wanted <= inputs.keys(), CHANGED.format(f"a rollout lacks {sorted(wanted - inputs.keys())}")
    assert trainer.scores_B.shape == (16,), CHANGED.format("rewards do not have shape (completions, functions)")
    assert trainer.values_BT.shape == inputs["completion_ids"].shape, CHANGED.format(
        "the forward pass does not show the hidden states of every completion token")

    calls.clear()
    plain = base.loss(inputs)
    assert calls == [trainer.model], CHANGED.format("_compute_loss does not make one forward pass of the policy")
    per_token = inputs["advantages"][:, None].expand(inputs["completion_ids"].shape)
    assert torch.equal(base.loss(inputs | {"advantages": per_token}), plain), CHANGED.format(
        "_compute_loss does not take (B, T) advantages as it takes (B,)")
    assert "kl" not in trainer._metrics["train"], CHANGED.format("the loss has a KL term although trainer.beta is 0")
    mask, logps = inputs["completion_mask"], trainer.logps_BT
    by_hand = -(per_token * (logps - inputs["old_per_token_logps"]).exp() * mask).sum() / mask.sum() / 2
    assert plain.item() == pytest.approx(by_hand.item(), abs=1e-6), CHANGED.format(
        "the loss is not the mean over tokens divided by the accumulation (loss_type 'bnpo')")
