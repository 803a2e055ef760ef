"""Proximal policy optimization (Schulman et al. 2017, arXiv 1707.06347) with a critic, on top of TRL's GRPOTrainer.

GRPO asks about a completion: was it better than its group? PPO asks about every token: did this make things better?
A *critic* predicts, before each token, the return still to come, and generalized advantage estimation (GAE, Schulman et
al. 2015, arXiv 1506.02438) turns its predictions into one advantage per token. The functions below are the algorithm.
The trainer uses them instead of GRPOTrainer's group advantages, and inherits everything else: sampling, rewards, the
clipped policy loss, LoRA, logging, checkpoints.

Shapes: B completions, T completion tokens (padded), D hidden size. `mask_BT` is true for tokens and false for padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback
from trl import GRPOConfig
from trl.trainer.utils import use_adapter

from ..config import RunConfig
from ..runs import VALUE_HEAD_FILE, RunDirectory
from .rl import RLTrainer, rl_arguments, train_rl
from .shared_prompt import backbone

# --- The algorithm ---------------------------------------------------------------------------------------------------


def masked_mean(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the mean over unmasked tokens; 0 if there are none."""
    mask_BT = mask_BT.bool()
    return x_BT.masked_fill(~mask_BT, 0).sum() / mask_BT.sum().clamp(min=1)


def masked_variance(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the variance (divided by n) over unmasked tokens."""
    return masked_mean((x_BT - masked_mean(x_BT, mask_BT)) ** 2, mask_BT)


def masked_whiten(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Shift and scale unmasked tokens to mean 0 and variance 1. Masked tokens get 0, and so do equal ones."""
    whitened_BT = (x_BT - masked_mean(x_BT, mask_BT)) / (masked_variance(x_BT, mask_BT) + 1e-8).sqrt()
    return whitened_BT.masked_fill(~mask_BT.bool(), 0)


def token_rewards(scores_B: Tensor, logps_BT: Tensor, ref_logps_BT: Tensor | None, mask_BT: Tensor,
                  beta: float) -> Tensor:
    """Spread a completion's score and its distance from the reference over its tokens.

    Every token costs beta · (log π − log π_ref), a sample of the KL divergence; the last one earns the score (Ouyang et
    al. 2022, arXiv 2203.02155, equation 2). A completion without tokens earns nothing.

    Args:
        scores_B: weighted sum of the reward functions.
        logps_BT, ref_logps_BT: log-probabilities of the tokens under policy and reference (None without a reference).
        beta: KL coefficient.

    Returns:
        (B, T), 0 at padding.
    """
    mask_BT = mask_BT.bool()
    left_BT = mask_BT.flip(1).cumsum(1).flip(1)  # tokens from here to the end
    rewards_BT = scores_B[:, None] * (mask_BT & (left_BT == 1))
    if ref_logps_BT is not None:
        rewards_BT = rewards_BT - beta * (logps_BT - ref_logps_BT).masked_fill(~mask_BT, 0)
    return rewards_BT


def generalized_advantages(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float,
                           lam: float) -> tuple[Tensor, Tensor]:
    """Estimate generalized advantages (Schulman et al. 2015, arXiv 1506.02438, equation 16), one completion per row.

        δ_t = r_t + γ V_{t+1} − V_t          how much better than expected was this token?
        A_t = Σ_l (γλ)^l δ_{t+l} = δ_t + γλ A_{t+1}

    After the last token V and A are 0. λ = 1 waits for the actual return (no bias, much noise), λ = 0 trusts the
    critic's next prediction. Masked tokens are skipped, whatever they contain.

    Returns:
        advantages and returns (A + V, the critic's target), both (B, T) and 0 where masked.
    """
    mask_BT = mask_BT.bool()
    advantages_BT = torch.zeros_like(values_BT)
    next_value_B = next_advantage_B = torch.zeros_like(values_BT[:, 0])
    for t in reversed(range(values_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        advantage_B = delta_B + gamma * lam * next_advantage_B
        next_advantage_B = torch.where(mask_BT[:, t], advantage_B, next_advantage_B)
        next_value_B = torch.where(mask_BT[:, t], values_BT[:, t], next_value_B)
        advantages_BT[:, t] = advantage_B
    return advantages_BT.masked_fill(~mask_BT, 0), (advantages_BT + values_BT).masked_fill(~mask_BT, 0)


def value_loss(values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor,
               epsilon: float) -> tuple[Tensor, Tensor]:
    """Return half the critic's squared error, clipped like the policy's ratio (as in OpenAI's PPO, baselines/ppo2).

    A prediction that has moved by more than epsilon since the rollout gains nothing by moving further.

    Returns:
        The mean loss over tokens, and the share of tokens where the clipped term counted.
    """
    clipped_BT = old_values_BT + (values_BT - old_values_BT).clamp(-epsilon, epsilon)
    error_BT, clipped_error_BT = (values_BT - returns_BT) ** 2, (clipped_BT - returns_BT) ** 2
    loss = 0.5 * masked_mean(torch.maximum(error_BT, clipped_error_BT), mask_BT)
    return loss, masked_mean((clipped_error_BT > error_BT).float(), mask_BT)


def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return 1 − Var(returns − values) / Var(returns): 1 for perfect, 0 for constant values, NaN for equal returns."""
    variance = masked_variance(returns_BT, mask_BT)
    explained = 1 - masked_variance(returns_BT - values_BT, mask_BT) / variance
    return torch.where(variance > 0, explained, torch.nan)


# --- The critic ------------------------------------------------------------------------------------------------------


class Critic(nn.Module):
    """Predicts the return still to come: one linear layer on the policy's final hidden states, which starts at 0.

    The layer sees the state before a token, and the mean of the completion's states so far: the state alone is made to
    predict the next token, and hardly remembers what was checked twenty tokens ago.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.head = nn.Linear(2 * hidden_size, 1)  # float32 whatever the policy's dtype
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Map the states before each token of a completion to values: (B, T, D) -> (B, T)."""
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            hidden_BTD = hidden_BTD.float()
            count_T = torch.arange(1, hidden_BTD.shape[1] + 1, device=hidden_BTD.device)
            mean_BTD = hidden_BTD.cumsum(1) / count_T[:, None]
            return self.head(torch.cat([hidden_BTD, mean_BTD], dim=-1)).squeeze(-1)


# --- The trainer -----------------------------------------------------------------------------------------------------


class PPOTrainer(RLTrainer):
    """A GRPOTrainer whose advantages come from a critic.

    `_get_per_token_logps_and_entropies` also computes values, `_with_advantages` gives every token its own advantage,
    and `_compute_loss` adds the value loss. test_trl_contract in tests/training/test_ppo.py checks what this relies on
    in TRL.
    """

    _tag_names = ["trl", "ppo"]
    _name = "PPO"
    _paper = {"title": "Proximal Policy Optimization Algorithms", "id": "1707.06347"}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # TRL adds the KL to the loss; here it is part of the rewards. Because args.beta > 0, TRL has made the reference
        # (a copy of the model, or its LoRA adapters switched off). From here on TRL's beta is 0: only ours counts.
        self.beta = 0.0
        critic = Critic(self.model.config.hidden_size).to(self.model.device)
        # Part of the model, so that optimizer, gradient clipping, data parallelism and zero_grad include it.
        self.model.add_module("critic", critic)
        self.critic = critic

    # Stage 1: a rollout. TRL samples and scores it; we turn scores into one advantage per token.

    def _generate(self, prompts: list):
        with self._critic_taken_off():  # vLLM is sent every weight of the model by name
            return super()._generate(prompts)

    def _with_advantages(self, rollout):
        settings, mask_BT = self.settings, rollout["completion_mask"].bool()
        with torch.no_grad():
            # TRL computes the old log-probabilities, and our critic then the values, unless every rollout is used for
            # one step only: the ratio is 1 then and needs none. The values are needed all the same.
            if "old_per_token_logps" not in rollout:
                rollout["old_per_token_logps"] = self._logps(self.model, rollout)
            values_BT, ref_logps_BT = self.values_BT, self._reference_logps(rollout) if settings.beta > 0 else None

        rewards_BT = token_rewards(self.scores_B, rollout["old_per_token_logps"], ref_logps_BT, mask_BT, settings.beta)
        advantages_BT, returns_BT = generalized_advantages(rewards_BT, values_BT, mask_BT, settings.gamma, settings.lam)

        # With λ < 1 the returns that the critic is trained on, and by custom is judged by, hold predictions of its own.
        # Actual returns (λ = 1) are the stricter test.
        _, actual_returns_BT = generalized_advantages(rewards_BT, values_BT, mask_BT, settings.gamma, lam=1.0)
        all_mask_BT, all_values_BT, all_advantages_BT = map(self._of_all, (mask_BT, values_BT, advantages_BT))
        for name, wanted_BT in (("explained_variance", returns_BT), ("explained_variance/lambda_1", actual_returns_BT)):
            self._log(name, explained_variance(all_values_BT, self._of_all(wanted_BT), all_mask_BT))
        self._log("values/mean", masked_mean(all_values_BT, all_mask_BT))
        self._log("returns/mean", masked_mean(self._of_all(returns_BT), all_mask_BT))
        self._log("advantages/mean", masked_mean(all_advantages_BT, all_mask_BT))
        self._log("advantages/std", masked_variance(all_advantages_BT, all_mask_BT).sqrt())
        if ref_logps_BT is not None:
            log_ratio_BT = self._of_all(rollout["old_per_token_logps"] - ref_logps_BT)
            self._log("kl", masked_mean(log_ratio_BT, all_mask_BT))

        if settings.whiten_advantages:
            first, (rows, length) = self.accelerator.process_index * len(mask_BT), mask_BT.shape
            advantages_BT = masked_whiten(all_advantages_BT, all_mask_BT)[first:first + rows, :length]
        return rollout | {"advantages": advantages_BT, "returns": returns_BT, "old_values": values_BT}

    # Stage 2: the updates. TRL's clipped policy loss with our advantages, plus the value loss.

    def _compute_loss(self, model, inputs):
        policy_loss = super()._compute_loss(model, inputs)
        mask_BT = inputs["completion_mask"].bool()
        log_ratio_BT = (self.logps_BT - inputs["old_per_token_logps"]).detach()
        critic_loss, clip_fraction = value_loss(self.values_BT, inputs["old_values"], inputs["returns"], mask_BT,
                                                self.settings.epsilon_value)
        accumulation = self.current_gradient_accumulation_steps if self.model.training else 1  # as TRL scales its own
        self._log("policy_loss", policy_loss.detach() * accumulation)
        self._log("value_loss", critic_loss.detach())
        self._log("clip_ratio/value", clip_fraction)
        # Non-negative and less noisy than the mean of −log ratio (Schulman 2020, joschu.net/blog/kl-approx.html).
        self._log("approx_kl", masked_mean(log_ratio_BT.exp() - 1 - log_ratio_BT, mask_BT))
        if self._critic_warms_up():
            policy_loss = 0.0 * policy_loss
        return policy_loss + self.settings.vf_coef * critic_loss / accumulation

    # One forward pass gives log-probabilities and values.

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, batch_size=None,
                                           **kwargs):
        *outputs, self.values_BT = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, batch_size=batch_size, **kwargs)
        self.logps_BT = outputs[0]
        return tuple(outputs)

    def _score(self, model, states, completion_ids, compute_entropy):
        return *super()._score(model, states, completion_ids, compute_entropy), self._values(states)

    def _forward(self, model, input_ids, attention_mask, logits_to_keep, **kwargs):
        """Return what GRPO's forward pass does, and the values: the critic reads the hidden states of the same pass."""
        hidden: list[Tensor] = []
        hook = backbone(self.accelerator.unwrap_model(model)).register_forward_hook(
            lambda module, inputs, output: hidden.append(output.last_hidden_state))
        try:
            outputs = super()._forward(model, input_ids, attention_mask, logits_to_keep, **kwargs)
        finally:
            hook.remove()
        return *outputs, self._values(hidden[0][:, -logits_to_keep - 1:-1])

    def _values(self, states: Tensor) -> Tensor:
        return self.critic(states.detach() if self._critic_warms_up() else states)

    def _reference_logps(self, rollout: dict) -> Tensor:
        if self.ref_model is not None:
            return self._logps(self.ref_model, rollout)
        model = self.accelerator.unwrap_model(self.model)
        with use_adapter(model, "ref" if "ref" in model.peft_config else None):
            return self._logps(self.model, rollout)

    def _critic_warms_up(self) -> bool:
        return self.state.global_step < self.settings.critic_warmup_steps

    def _of_all(self, x_BT: Tensor) -> Tensor:
        """Gather the rows of all processes, in their order, padded to the longest."""
        return self.accelerator.gather(self.accelerator.pad_across_processes(x_BT, dim=1))

    def _log(self, name: str, value: Tensor) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics[name].append(self.accelerator.gather(value.detach()).nanmean().item())

    # The critic's own learning rate, and its file in checkpoints.

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            super().create_optimizer(model)
            weights = list(self.critic.parameters())
            for group in self.optimizer.param_groups:
                group["params"] = [weight for weight in group["params"] if all(weight is not w for w in weights)]
            self.optimizer.add_param_group(
                {"params": weights, "lr": self.settings.critic_learning_rate, "weight_decay": 0.0})
        return self.optimizer

    @contextmanager
    def _critic_taken_off(self) -> Iterator[None]:
        """Detach the critic while the model is saved, loaded or sent to vLLM."""
        model = self.accelerator.unwrap_model(self.model)
        del model.critic
        try:
            yield
        finally:
            model.add_module("critic", self.critic)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        with self._critic_taken_off():
            super()._save(output_dir, state_dict)
        save_file(self.critic.state_dict(), Path(output_dir or self.args.output_dir) / VALUE_HEAD_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with self._critic_taken_off():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.critic.load_state_dict(load_file(Path(resume_from_checkpoint) / VALUE_HEAD_FILE))


# --- The stage -------------------------------------------------------------------------------------------------------


def ppo_arguments(config: RunConfig, run: RunDirectory) -> GRPOConfig:
    """Translate a run's `ppo` settings to TRL's configuration.

    A rollout is `steps_per_generation` batches; `gradient_accumulation_steps` of them make an optimizer step, and
    `num_iterations` passes over the rollout make

        num_iterations × steps_per_generation / gradient_accumulation_steps

    optimizer steps per rollout.
    """
    return rl_arguments(
        config, run, config.ppo,
        loss_type="bnpo",  # the mean over the tokens of a batch
        scale_rewards="none",
        ddp_find_unused_parameters=False,  # the critic is used, but after the forward pass in which DDP would look
    )


def load_critic(folder: str | Path, model: nn.Module) -> Critic:
    """Read the value head that a PPO run saved beside its model; `model` is that model, loaded with `load_model`."""
    critic = Critic(model.config.hidden_size)
    critic.load_state_dict(load_file(Path(folder) / VALUE_HEAD_FILE))
    return critic.to(model.device)


@torch.no_grad()
def token_values(model: nn.Module, critic: Critic, prompt_ids: list[int], completion_ids: list[int]) -> Tensor:
    """Return what the critic expects before each token of a completion: (T,), the first before anything is written."""
    ids = torch.tensor([prompt_ids + completion_ids], device=model.device)
    hidden = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state
    return critic(hidden[:, len(prompt_ids) - 1:-1])[0]


def train(config: RunConfig, output_dir: str | Path, *, model: str | Path | None = None, resume: bool = False,
          reward_funcs: Sequence[Callable] | None = None, callbacks: Sequence[TrainerCallback] = ()) -> RunDirectory:
    """Train with PPO on the task's prompts.

    Args:
        config: the run's configuration; this stage reads `task`, `model`, `rewards` and `ppo`.
        output_dir: the run directory to write.
        model: the start model, for example an SFT run's `model` folder; `config.model.name` when None.
        resume: continue from the run directory's last checkpoint.
        reward_funcs: your own reward functions instead of the named ones, weighted by `config.rewards` in this order.

    Returns:
        The run directory; the trained model (an adapter with LoRA) is in its `model` folder. The critic is there too,
        as value_head.safetensors; loading the model does not need it.
    """
    return train_rl("ppo", PPOTrainer, ppo_arguments, config, output_dir, model=model, resume=resume,
                    reward_funcs=reward_funcs, callbacks=callbacks)
