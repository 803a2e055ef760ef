"""The training stages, one function each: `sft.train`, `grpo.train`, `ppo.train`."""

import os
import sys

# TRL warns at every run that `rollout_func` may change; the pinned version and the tests cover that.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

# TRL imports wandb if it is installed, which takes seconds. A run with tracking.wandb imports it itself.
if "wandb" not in sys.modules:
    sys.modules["wandb"] = None
    import trl.trainer.grpo_trainer
    import trl.trainer.sft_trainer  # noqa: F401

    del sys.modules["wandb"]
