"""Group-relative policy optimization (DeepSeekMath, arXiv 2402.03300) with TRL's GRPOTrainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import TrainerCallback
from trl import GRPOConfig

from ..config import RunConfig
from ..runs import RunDirectory
from .rl import RLTrainer, rl_arguments, train_rl


def grpo_arguments(config: RunConfig, run: RunDirectory) -> GRPOConfig:
    """Translate a run's `grpo` settings to TRL's configuration."""
    return rl_arguments(config, run, config.grpo)


def train(config: RunConfig, output_dir: str | Path, *, model: str | Path | None = None, resume: bool = False,
          reward_funcs: Sequence[Callable] | None = None, callbacks: Sequence[TrainerCallback] = ()) -> RunDirectory:
    """Train with GRPO on the task's prompts.

    Args:
        config: the run's configuration; this stage reads `task`, `model`, `rewards` and `grpo`.
        output_dir: the run directory to write.
        model: the start model, for example an SFT run's `model` folder; `config.model.name` when None.
        resume: continue from the run directory's last checkpoint.
        reward_funcs: your own reward functions instead of the named ones, weighted by `config.rewards` in this order.

    Returns:
        The run directory; the trained model (an adapter with LoRA) is in its `model` folder.
    """
    return train_rl("grpo", RLTrainer, grpo_arguments, config, output_dir, model=model, resume=resume,
                    reward_funcs=reward_funcs, callbacks=callbacks)
