"""The table of stages, and a stage's finished run for a notebook that builds on it."""

from __future__ import annotations

from pathlib import Path

from ..config import RunConfig
from ..runs import RunDirectory
from . import grpo, ppo, sft

TRAIN = {"sft": sft.train, "grpo": grpo.train, "ppo": ppo.train}


def finished_run(config: RunConfig, folder: str | Path, stage: str) -> RunDirectory:
    """Return the run FOLDER/STAGE. If it has no trained model, train that stage first, and those before it.

    Args:
        config: the run's configuration; `config.stages` says which stages come before.
        folder: holds one run directory per stage, as scripts/train.py leaves them.
    """
    run = RunDirectory(Path(folder) / stage)
    if not run.has_model:
        print(f"No trained model in {run.path} yet: training it now (at tier cpu one to two minutes). "
              "scripts/fast_forward.py copies a finished one in seconds.")
        TRAIN[stage](config, run.path, model=start_model(config, folder, stage), resume=True)
    elif changed := run.changed_settings(config, stage):
        print(f"The run in {run.path} was trained with other settings ({', '.join(changed)}), and is used as it is. "
              "Delete it to train it again.")
    return run


def start_model(config: RunConfig, folder: str | Path, stage: str) -> str:
    """Return the model from which a stage starts: that of the stage before it in FOLDER, or the recipe's own."""
    before = config.stages[: config.stages.index(stage)]
    return str(finished_run(config, folder, before[-1]).model_dir) if before else config.model.name
