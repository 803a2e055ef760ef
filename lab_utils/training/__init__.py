"""The training stages, one function each: `sft.train`, `grpo.train`, `ppo.train`."""

import os
import sys

# TRL warns at every run that `rollout_func` may change; the pinned version and the tests cover that.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
# TRL imports MLflow for seconds if it is installed, as with the SDK of SageMaker. The workshop does not use it.
os.environ.setdefault("DISABLE_MLFLOW_INTEGRATION", "TRUE")

# TRL imports wandb if it is installed, which takes seconds, and again for each model card and for timings. transformers
# imports it for a run with tracking.wandb, and tells it the metrics.
if "wandb" not in sys.modules:
    sys.modules["wandb"] = None
    import trl.extras.profiling
    import trl.trainer.base_trainer
    import trl.trainer.grpo_trainer
    import trl.trainer.sft_trainer

    del sys.modules["wandb"]
    trl.trainer.base_trainer.is_wandb_available = trl.extras.profiling.is_wandb_available = lambda: False
