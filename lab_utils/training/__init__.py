"""The training stages, one function each: `sft.train`, `grpo.train`, `ppo.train`."""

import os

# TRL warns at every run that `rollout_func` may change; the pinned version and the tests answer for that.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


class TrainingStopped(Exception):
    """SIGTERM came, and the run is saved. The message says how to go on."""
