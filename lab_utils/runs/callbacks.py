"""Trainer callbacks: what writes a run directory while it trains, and what the learner sees meanwhile."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from .. import installed_version
from ..config import RunConfig
from ..tasks import visible
from .directory import RunDirectory, RunDirectoryError


class MetricsCallback(TrainerCallback):
    """Writes what the Trainer logs to metrics.jsonl, and metrics.csv with every checkpoint and at the end.

    On resume, metrics later than the checkpoint are dropped first, so that the file ends like that of an uninterrupted
    run (except for `TIMING_COLUMNS`).
    """

    def __init__(self, run: RunDirectory):
        self.run = run

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self.run.discard_after(state.global_step)
        try:
            before = self.run.metrics()["seconds"].iloc[-1] if state.global_step else 0.0
        except RunDirectoryError:
            warnings.warn(f"{self.run.metrics_path} is missing or empty: it will hold only the steps after "
                          f"{state.global_step}.", stacklevel=2)
            before = 0.0
        self.start = time.perf_counter() - before

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and "train_runtime" not in logs:  # the summary after the last step
            seconds = round(time.perf_counter() - self.start, 3)
            self.run.append_metrics(state.global_step, {"seconds": seconds, **logs})

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.run.finish_checkpoint(self.run.checkpoints_dir / f"checkpoint-{state.global_step}")

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.run.write_metrics_table()


def progress_bar(**options) -> tqdm:
    """Return a progress bar as text. In a notebook it goes to standard output: standard error is shown in red."""
    return tqdm(file=sys.stdout if "ipykernel" in sys.modules else None, dynamic_ncols=True, **options)


class ProgressCallback(TrainerCallback):
    """Says what a run will do; shows a bar with the latest metrics and, after each quarter, one recorded completion."""

    # metric -> what it is called on the bar
    SHOWN = {"loss": "loss", "reward": "reward", "accuracy": "accuracy", "completions/mean_length": "length"}

    def __init__(self, description: str = "training", run: RunDirectory | None = None):
        self.description, self.run = description, run
        self.bar, self.quarter, self.shown = None, 0, None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            done = f", resumes after {state.global_step}" if state.global_step else ""
            saves = f", a checkpoint every {args.save_steps:g}" if args.save_strategy == "steps" else ""
            tqdm.write(f"{self.description}: {state.max_steps} steps{saves}{done}. On the bar: time used < time left.")
            self.bar = progress_bar(total=state.max_steps, initial=state.global_step, desc=self.description,
                                    unit="step", mininterval=0.5)

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.bar is not None and "train_runtime" not in logs:
            # GRPO's loss stays near 0 whatever happens: show it only if there is no reward
            names = [n for n in self.SHOWN if logs.get(n) is not None and not (n == "loss" and "reward" in logs)]
            self.bar.set_postfix({self.SHOWN[name]: f"{logs[name]:.3g}" for name in names})
            quarter = 4 * state.global_step // state.max_steps
            if self.run is not None and quarter > self.quarter:
                self.quarter = quarter
                with contextlib.suppress(RunDirectoryError):  # SFT samples nothing; damage is reported elsewhere
                    for row in self.run.completions().tail(1).to_dict("records"):
                        if row["step"] != self.shown:  # a short run records fewer steps than it has quarters
                            tqdm.write(completion_in_words(row), file=sys.stdout)
                        self.shown = row["step"]

    def close(self) -> None:
        """Close the bar. If an interrupted run left it open, later bars would print a new line at every update."""
        if self.bar is not None:
            self.bar.close()

    def on_train_end(self, args, state, control, **kwargs):
        self.close()


def completion_in_words(row: dict[str, Any], most: int = 600) -> str:
    """Return a recorded completion as text, its response cut down to `most` characters."""
    response, parts = str(row["completion"]), row.get("rewards")
    if len(response) > most:
        response = f"{response[: most // 2]} … {response[-most // 2:]}"
    each = ", ".join(f"{name} {value:.3g}" for name, value in parts.items()) if isinstance(parts, dict) else ""
    verdict = "correct" if row["correct"] else "wrong"
    extracted = row["extracted"] if isinstance(row["extracted"], str) else "nothing"  # pandas turns None into NaN
    return visible(f"step {row['step']}  question: {row['question']}  gold: {row['gold']}\n{response}\n"
                   f"extracted: {extracted} ({verdict})  reward: {row['reward']:.3g}{each and f' = {each}'}\n")


class PrintMetricsCallback(TrainerCallback):
    """Prints one line per logged step, for logs that a program reads, such as SageMaker's.

    metrics grpo step=10 of=44 loss=0.0012 reward=0.4125 accuracy=0.3375 completions/mean_length=41.2
    """

    def __init__(self, stage: str):
        self.stage = stage

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and "train_runtime" not in logs:
            values = " ".join(f"{name}={value:.6g}" for name, value in logs.items() if value is not None)
            print(f"metrics {self.stage} step={state.global_step} of={state.max_steps} {values}", flush=True)


def parse_metrics_line(line: str) -> tuple[str, dict[str, float]] | None:
    """Return stage and values of a line that PrintMetricsCallback printed; None for any other line of a log."""
    marker, _, rest = line.partition(" ")
    stage, _, values = rest.partition(" ")
    if marker != "metrics" or not values.startswith("step="):
        return None
    try:
        return stage, {name: float(value) for name, value in (pair.split("=") for pair in values.split())}
    except ValueError:  # another process wrote into the same line
        return None


def report_to(config: RunConfig, run: RunDirectory) -> list[str]:
    """Return the Trainer's `report_to`, and prepare each tracker so that it never asks for anything.

    Both write to the run directory (`tensorboard --logdir OUTPUT_DIR`). A key in WANDB_API_KEY, or WANDB_MODE "online",
    turns Weights & Biases on if no setting says otherwise. Without a key it records offline (send the run later with
    `wandb sync`).
    """
    trackers = []
    if config.tracking.tensorboard:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.tensorboard_dir)
        trackers.append("tensorboard")
    key, mode = os.environ.get("WANDB_API_KEY"), os.environ.get("WANDB_MODE")
    wanted = mode != "disabled" and bool(key or mode == "online") and installed_version("wandb") is not None
    if wanted if config.tracking.wandb is None else config.tracking.wandb:
        if not key and mode != "disabled":
            os.environ["WANDB_MODE"] = "offline"
        os.environ.setdefault("WANDB_PROJECT", "rl-workshop")
        trackers.append("wandb")
    return trackers


def send_completions(rows: Sequence[dict[str, Any]]) -> None:
    """Log recorded completions of one step to the current run of Weights & Biases, as a table."""
    import wandb

    plain = [{name: value for name, value in row.items() if name not in ("rewards", "tokens")} | row["rewards"]
             for row in rows]
    table = wandb.Table(columns=list(plain[0]), data=[list(row.values()) for row in plain], allow_mixed_types=True)
    wandb.log({"completions": table, "train/global_step": rows[0]["step"]})


@contextlib.contextmanager
def wandb_run(trackers: Sequence[str], run: RunDirectory) -> Iterator[None]:
    """Record the `with` block as one run of Weights & Biases, in the run directory, if it is among the trackers.

    transformers would start a run itself, in the current directory, and add the next stage of this process to it.
    """
    if "wandb" not in trackers:
        yield
        return
    import wandb

    wandb.init(dir=str(run.path), project=os.environ["WANDB_PROJECT"], mode=os.environ.get("WANDB_MODE") or None)
    try:
        yield
    finally:
        wandb.finish()
