"""SFT, GRPO and PPO on the same completions, whatever the number of processes: what test_processes.py runs.

    torchrun --nproc-per-node=2 tests/training/process_runs.py OUTPUT_DIR

Every batch is 16 rows in micro-batches of 4: four in one process, two in each of two, one in each of four. In RL they
are one group of 16, which the processes share. So that all see the same completions, these are a function of the
prompt, sampled from the untrained model, and TRL's shuffling of a rollout is switched off: each process would shuffle
its own part.
"""

import os
import sys
import zlib
from pathlib import Path
from unittest import mock

import torch
from transformers import TrainerCallback

from lab_utils import config as configuration
from lab_utils.models import load_model
from lab_utils.sampling import local as generation
from lab_utils.training import grpo, ppo, rl, sft

STEPS = 2
ROWS = 16
RECORDED: dict[str, tuple] = {}


def run_config():
    rows, accumulation = ROWS // 4, 4 // int(os.environ.get("WORLD_SIZE", "1"))
    same = {"gradient_accumulation_steps": accumulation, "max_steps": STEPS, "save_steps": 100}
    return configuration.load("countdown-grpo", "smoke", {
        "tracking.tensorboard": False, "rewards.format_reward": None,
        "sft": same | {"per_device_train_batch_size": rows},
        "grpo": same | {"per_device_train_batch_size": rows, "num_generations": ROWS, "beta": 0.04,
                        "max_completion_length": 32, "log_completions_steps": 1},
        "ppo": same | {"per_device_train_batch_size": rows, "steps_per_generation": accumulation,
                       "num_iterations": 1,
                       "num_generations": ROWS, "beta": 0.05, "max_completion_length": 32, "log_completions_steps": 1}})


def spaces_reward(completions, **columns):
    """Reward something that varies among the completions of an untrained model."""
    return [completion[0]["content"].count(" ") / 10 for completion in completions]


def recorded_rollout(prompts, trainer):
    """Return this process's part of a group of completions, the same in every run."""
    question = prompts[0][-1]["content"]
    if question not in RECORDED:
        ids = trainer.processing_class.apply_chat_template(prompts[0], add_generation_prompt=True, return_dict=True)
        RECORDED[question] = ids["input_ids"], generation.sample_token_ids(
            load_model("tiny").eval(), [ids["input_ids"]], [ROWS], end_ids=trainer.eos_token_ids,
            max_new_tokens=trainer.args.max_completion_length,
            generator=torch.Generator().manual_seed(zlib.crc32(question.encode())))
    ids, completions = RECORDED[question]
    first = trainer.accelerator.process_index * len(prompts)
    mine = completions[first:first + len(prompts)]
    return {"prompt_ids": [ids] * len(mine), "completion_ids": [tokens for tokens, _ in mine],
            "logprobs": [logps for _, logps in mine]}


class KeepWeights(TrainerCallback):
    """Saves the weights of every process at the end, to see that they have stayed equal, and its random seed."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_end(self, args, state, control, model, **kwargs):
        torch.save({"weights": model.state_dict(), "seed": torch.initial_seed()},
                   self.path.with_suffix(f".{args.process_index}.pt"))


def run_all(output_dir: Path) -> None:
    config = run_config()
    same_order = mock.patch("trl.trainer.grpo_trainer.shuffle_sequence_dict", lambda batch: batch)
    with same_order, mock.patch.object(rl, "rollout", recorded_rollout):
        for name, stage in (("sft", sft), ("grpo", grpo), ("ppo", ppo)):
            rewards = {} if name == "sft" else {"reward_funcs": [spaces_reward]}
            stage.train(config, output_dir / name, callbacks=[KeepWeights(output_dir / name)], resume=True, **rewards)


def run_rank(rank: int, processes: int, port: int, output_dir: Path) -> None:
    """Run all in one of several processes, with the variables that torchrun sets."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
                   "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.stdout = sys.stderr = open(output_dir / f"{rank}.log", "w", buffering=1)
    run_all(output_dir)


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))
