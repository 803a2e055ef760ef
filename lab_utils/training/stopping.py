"""Stopping early: after some steps of a run, by hand, or by SIGTERM, which ends training after a checkpoint, from which
a resumed run continues with equal metrics.

SageMaker sends SIGTERM two minutes before it reclaims a spot instance, and when a job is stopped.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainerState


class TrainingInterrupted(KeyboardInterrupt):
    """The user interrupted a run. The message says where, and what running it again does."""

    @classmethod
    def at_step(cls, description: str, state: TrainerState, checkpoint: Path | None) -> TrainingInterrupted:
        then = f"to resume from step {checkpoint.name.removeprefix('checkpoint-')}." if checkpoint else (
            "and it starts from step 0, because it had no checkpoint yet.")
        return cls(f"{description} stopped at step {state.global_step} of {state.max_steps}: run it again {then}")

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows: the message without a traceback."""
        return [str(self)]


class StopAfter(TrainerCallback):
    """Ends training after a number of steps, with the learning rates that a whole run has at these steps."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step >= self.steps


class StopOnSIGTERM(TrainerCallback):
    """Saves a checkpoint and stops at the first step after SIGTERM that is a multiple of `every`.

    Args:
        every: steps between points from which a resumed run has equal metrics: whole rollouts and logging periods.

    Afterwards, `stopped` says whether it did. Any of several processes may get the signal; all stop at the same step.
    """

    requested = False  # belongs to the process, not to one trainer: the signal may come between two stages

    def __init__(self, every: int):
        self.every = every
        self.stopped = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Treat SIGTERM as a request while the block runs. Outside it ends the process at once, and nothing is lost."""
        if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
            yield
            return
        before = signal.signal(signal.SIGTERM, self._request)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        requested = torch.tensor(float(StopOnSIGTERM.requested), device=args.device)
        if args.world_size > 1:
            torch.distributed.all_reduce(requested, op=torch.distributed.ReduceOp.MAX)
        if requested:
            self.stopped = control.should_save = control.should_training_stop = True
            StopOnSIGTERM.requested = False

    @staticmethod
    def _request(signum, frame):
        StopOnSIGTERM.requested = True
