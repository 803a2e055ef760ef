"""The training stages, one function each: `sft.train`, `grpo.train`, `ppo.train`."""
