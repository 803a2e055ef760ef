"""The run directory: what one training stage leaves behind, and the callbacks that write it while training.

    config.yaml        the resolved configuration          metrics.csv        one row per logged step
    environment.json   versions, machine, git commit       completions.jsonl  sampled completions, with their rewards
    checkpoints/       checkpoint-N, to resume from        tensorboard/       the metrics again, for TensorBoard
    model/             the trained model                   eval.json          the evaluation, with every example
    figures/           figures made from this run

Nothing else passes from one stage to the next: notebooks, plots and cloud jobs read run directories.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import os
import platform
import subprocess
import time
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
import yaml
from tqdm.auto import tqdm
from transformers import TrainerCallback

from .config import RunConfig

if TYPE_CHECKING:
    from .evaluation import Evaluation

PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "bitsandbytes", "vllm"
)  # fmt: skip

# Columns of metrics.csv that measure the machine, not the model: they differ between two runs of the same seed.
TIMING_COLUMNS = ("seconds", "step_time")


class RunDirectoryError(ValueError):
    """A run directory cannot be used; the message says what was found and what to do."""


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` through a temporary file, so that a killed process leaves the old or the new content."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", newline="")
    os.replace(temporary, path)


def describe_environment() -> dict[str, Any]:
    """What a result may depend on: versions, platform, processor, GPUs, git commit. No user, host or path names."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":", 1)[1].strip() if models else cpu
    return {
        "python": platform.python_version(),
        "packages": versions,
        "platform": platform.platform(),
        "cpu": cpu or platform.machine(),
        "cpu_count": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):  # git is not installed
        return None
    return result.stdout.strip() if result.returncode == 0 else None


class RunDirectory:
    """One stage's results on disk. `RunDirectory(path)` reads an existing run; `RunDirectory.create` starts one.

    >>> run = RunDirectory("outputs/countdown-grpo/grpo")      # doctest: +SKIP
    >>> run.metrics()[["step", "reward", "accuracy"]].tail(1)   # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    @classmethod
    def create(cls, config: RunConfig, path: str | os.PathLike, resume: bool = False) -> RunDirectory:
        """Make the directory and write config.yaml and environment.json.

        Args:
            config: the resolved `RunConfig`.
            path: a directory that does not exist or is empty, unless `resume`.
            resume: continue the run in `path` (or start it, where there is none yet).

        Raises:
            RunDirectoryError: the directory holds files and `resume` is false, or cannot be written.
        """
        run = cls(path)
        if os.environ.get("RANK", "0") != "0":  # of several processes, the first one writes
            return run
        if run.path.is_dir() and any(run.path.iterdir()) and not resume:
            raise RunDirectoryError(
                f"The output directory {run.path} is not empty, and a new run needs an empty one so that no results "
                "are overwritten. Continue the run in it with --resume (resume=True), or choose another directory."
            )
        if resume and run.config_path.exists():
            changed = _changed_keys(yaml.safe_load(run.config_path.read_text(encoding="utf-8")), config.to_dict())
            if changed:
                warnings.warn(
                    f"Resuming {run.path} with other settings than it was started with: {', '.join(changed)}. "
                    "Its metrics will not equal those of an uninterrupted run.",
                    stacklevel=2,
                )
        try:
            for directory in (run.path, run.checkpoints_dir, run.figures_dir):
                directory.mkdir(parents=True, exist_ok=True)
            write_atomically(run.config_path, config.to_yaml())
            write_atomically(run.path / "environment.json", json.dumps(describe_environment(), indent=2) + "\n")
        except OSError as error:
            raise RunDirectoryError(
                f"Cannot write to the output directory {run.path} ({error.strerror}). "
                "Choose a directory that you may write to, with free space, as --output-dir."
            ) from error
        return run

    # Where things are
    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def completions_path(self) -> Path:
        return self.path / "completions.jsonl"

    @property
    def evaluation_path(self) -> Path:
        return self.path / "eval.json"

    @property
    def model_dir(self) -> Path:
        return self.path / "model"

    @property
    def has_model(self) -> bool:
        """Whether the trained model is there and whole: a run can be killed while it is written."""
        weights = list(self.model_dir.glob("*.safetensors"))
        return bool(weights) and all(map(_is_complete_safetensors, weights))

    @property
    def checkpoints_dir(self) -> Path:
        return self.path / "checkpoints"

    @property
    def figures_dir(self) -> Path:
        return self.path / "figures"

    @property
    def tensorboard_dir(self) -> Path:
        return self.path / "tensorboard"

    # Reading
    def config(self) -> RunConfig:
        """The resolved configuration that the run was started with."""
        return RunConfig.from_yaml(self._existing(self.config_path))

    def environment(self) -> dict[str, Any]:
        """What the run was made with; see `describe_environment`."""
        return json.loads(self._existing(self.path / "environment.json").read_text(encoding="utf-8"))

    def metrics(self) -> pd.DataFrame:
        """metrics.csv: one row per logged step, in the order of the steps. Column `seconds` is the time trained."""
        frame = pd.read_csv(io.StringIO("".join(_whole_lines(self._existing(self.metrics_path)))))
        return frame.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)

    def completions(self) -> pd.DataFrame:
        """completions.jsonl: columns step, question, gold, completion, extracted, correct, reward."""
        return pd.DataFrame([json.loads(line) for line in _whole_lines(self._existing(self.completions_path))])

    def evaluation(self) -> Evaluation:
        """The saved evaluation of this run's model."""
        from .evaluation import Evaluation  # evaluation imports this module

        return Evaluation.load(self._existing(self.evaluation_path))

    def _existing(self, path: Path) -> Path:
        if not path.exists():
            raise RunDirectoryError(
                f"{self.path} has no {path.name}: it is not a run directory, or that stage has not got so far. "
                "A run of several stages has one run directory per stage, such as OUTPUT_DIR/sft and OUTPUT_DIR/grpo."
            )
        return path

    def last_checkpoint(self) -> Path | None:
        """The newest complete checkpoint, or None where there is none yet.

        A checkpoint that was being written when the process was killed is passed over, with a warning that names it.

        Raises:
            RunDirectoryError: there are checkpoints and none of them is complete.
        """
        found = [p for p in self.checkpoints_dir.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
        found.sort(key=lambda p: int(p.name.removeprefix("checkpoint-")), reverse=True)
        for checkpoint in found:
            problem = checkpoint_problem(checkpoint)
            if problem is None:
                return checkpoint
            warnings.warn(f"{checkpoint} is passed over: {problem}.", stacklevel=2)
        if found:
            raise RunDirectoryError(
                f"None of the {len(found)} checkpoints in {self.checkpoints_dir} is complete (newest: {found[0].name}, "
                f"{checkpoint_problem(found[0])}). Start again in another directory, or delete {self.path} first."
            )
        return None

    # Writing, while training
    def append_metrics(self, step: int, metrics: dict[str, float | None]) -> None:
        """Add one row to metrics.csv. A metric seen for the first time becomes a new last column."""
        row = {"step": step, **metrics}
        columns = []
        if self.metrics_path.exists():
            with open(self.metrics_path, encoding="utf-8", newline="") as file:
                columns = next(csv.reader(file))
        if set(row) <= set(columns):
            with open(self.metrics_path, "a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, columns, lineterminator="\n").writerow(row)
        else:
            columns += [name for name in row if name not in columns]
            rows = self._metric_rows() if self.metrics_path.exists() else []
            self._write_metrics(columns, [*rows, row])

    def append_completions(self, rows: list[dict[str, Any]]) -> None:
        """Add rows to completions.jsonl: step, question, gold, completion, extracted, correct, reward.

        `step` is the optimiser step that learns from the completion, `state.global_step + 1` while generating.
        """
        with open(self.completions_path, "a", encoding="utf-8", newline="") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def discard_after(self, step: int) -> None:
        """Drop metrics and completions of later steps: a resumed run will write them again."""
        if self.metrics_path.exists():
            rows = [row for row in self._metric_rows() if int(row["step"]) <= step]
            with open(self.metrics_path, encoding="utf-8", newline="") as file:
                columns = next(csv.reader(file))
            self._write_metrics(columns, rows)
        if self.completions_path.exists():
            lines = [line for line in _whole_lines(self.completions_path) if json.loads(line)["step"] <= step]
            write_atomically(self.completions_path, "".join(lines))

    def _metric_rows(self) -> list[dict[str, str]]:
        return list(csv.DictReader(_whole_lines(self.metrics_path)))

    def _write_metrics(self, columns: list[str], rows: list[dict[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.metrics_path, text.getvalue())


def model_of(source: str | os.PathLike) -> str:
    """The model that `source` means: a run directory's trained model, or itself (a model's path or name)."""
    model = RunDirectory(source).model_dir
    return str(model if model.is_dir() else source)


def _whole_lines(path: Path) -> list[str]:
    """The lines of a text file, without a last one that a killed process did not finish."""
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        return [line for line in file if line.endswith("\n")]


def _changed_keys(old: Any, new: Any, prefix: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        changed = [_changed_keys(old.get(key), new.get(key), f"{prefix}.{key}".strip(".")) for key in old | new]
        return sum(changed, [])
    return [] if old == new else [prefix]


def checkpoint_problem(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint that the Trainer wrote, or None. Reads headers only, so it is fast."""
    for name in ("trainer_state.json", "optimizer.pt", "scheduler.pt"):
        if not (checkpoint / name).exists():
            return f"{name} is missing"
    weights = sorted(checkpoint.glob("*.safetensors"))
    if not weights:
        return "the model file (*.safetensors) is missing"
    for path in sorted(checkpoint.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return f"{path.name} is not valid JSON"
        if path.name.endswith(".index.json"):
            missing = set(content["weight_map"].values()) - {file.name for file in weights}
            if missing:
                return f"{sorted(missing)[0]} is missing"
    for path in weights:
        if not _is_complete_safetensors(path):
            return f"{path.name} is truncated or damaged"
    for path in sorted([*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth"), *checkpoint.glob("*.bin")]):
        if not zipfile.is_zipfile(path):  # torch.save writes a zip file, whose directory comes last
            return f"{path.name} is truncated or damaged"
    return None


def _is_complete_safetensors(path: Path) -> bool:
    """Whether the file is as long as its header says (8 bytes of header length, JSON header, tensors)."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        header_length = int.from_bytes(file.read(8), "little")
        if header_length > size:
            return False
        try:
            header = json.loads(file.read(header_length))
        except ValueError:
            return False
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    return size == 8 + header_length + max(ends, default=0)


class MetricsCallback(TrainerCallback):
    """Writes what the Trainer logs to metrics.csv and, if wanted, TensorBoard (`tensorboard --logdir OUTPUT_DIR`).

    On resume, later rows than the checkpoint are dropped first, so the file ends like that of an uninterrupted run
    (but for `TIMING_COLUMNS`).
    """

    def __init__(self, run: RunDirectory, tensorboard: bool = False):
        self.run = run
        self.tensorboard = tensorboard
        self.writer = None

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self.run.discard_after(state.global_step)
        before = self.run._metric_rows() if self.run.metrics_path.exists() else []
        self.start = time.perf_counter() - (float(before[-1]["seconds"]) if before else 0.0)
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

            self.writer = SummaryWriter(str(self.run.tensorboard_dir), purge_step=state.global_step + 1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or "train_runtime" in logs:  # the summary after the last step
            return
        seconds = round(time.perf_counter() - self.start, 3)
        self.run.append_metrics(state.global_step, {"seconds": seconds, **logs})
        if self.writer is not None:
            for name, value in logs.items():
                if value is not None:
                    self.writer.add_scalar(f"train/{name}", value, state.global_step)
            self.writer.flush()

    def on_train_end(self, args, state, control, **kwargs):
        if self.writer is not None:
            self.writer.close()


class ProgressCallback(TrainerCallback):
    """One progress bar with the latest metrics, in place of the Trainer's own printing."""

    # metric -> what it is called on the bar
    SHOWN = {"loss": "loss", "reward": "reward", "accuracy": "accuracy", "completions/mean_length": "length"}

    def __init__(self, description: str = "training"):
        self.description = description
        self.bar = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.description, unit="step",
                dynamic_ncols=True, mininterval=0.5,
            )  # fmt: skip

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.bar is not None and "train_runtime" not in logs:
            # GRPO's loss stays near 0 whatever happens: show it only where there is no reward
            names = [n for n in self.SHOWN if logs.get(n) is not None and not (n == "loss" and "reward" in logs)]
            self.bar.set_postfix({self.SHOWN[name]: f"{logs[name]:.3g}" for name in names})

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()


class PrintMetricsCallback(TrainerCallback):
    """One line a logged step, for logs that a program reads, such as SageMaker's.

    metrics grpo step=10 of=44 loss=0.0012 reward=0.4125 accuracy=0.3375 completions/mean_length=41.2
    """

    def __init__(self, stage: str):
        self.stage = stage

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and "train_runtime" not in logs:
            values = " ".join(f"{name}={value:.6g}" for name, value in logs.items() if value is not None)
            print(f"metrics {self.stage} step={state.global_step} of={state.max_steps} {values}", flush=True)


def parse_metrics_line(line: str) -> tuple[str, dict[str, float]] | None:
    """Stage and values of a line that PrintMetricsCallback printed; None for any other line of a log."""
    marker, _, rest = line.partition(" ")
    stage, _, values = rest.partition(" ")
    if marker != "metrics" or not values.startswith("step="):
        return None
    try:
        return stage, {name: float(value) for name, value in (pair.split("=") for pair in values.split())}
    except ValueError:  # another process wrote into the same line
        return None


def wandb_environment(config: RunConfig) -> list[str]:
    """Prepare Weights & Biases so that it never asks for anything; returns the Trainer's `report_to`.

    Without WANDB_API_KEY the run is recorded offline (send it later with `wandb sync`).
    """
    if not config.tracking.wandb:
        return []
    if not os.environ.get("WANDB_API_KEY") and os.environ.get("WANDB_MODE") != "disabled":
        os.environ["WANDB_MODE"] = "offline"
    os.environ.setdefault("WANDB_PROJECT", "rl-workshop")
    return ["wandb"]


def show_completions(run: RunDirectory, step: int | None = None, n: int = 3) -> str:
    """A few completions sampled while training, as text: question, gold, response, extracted, reward.

    Args:
        step: a step with recorded completions (the nearest one is taken); the last by default.
        n: how many to show.
    """
    frame = run.completions()
    recorded = frame["step"].unique()
    step = recorded.max() if step is None else min(recorded, key=lambda other: abs(other - step))
    blocks = []
    for row in frame[frame["step"] == step].head(n).itertuples():
        verdict = "correct" if row.correct else "wrong"
        extracted = row.extracted if isinstance(row.extracted, str) else "nothing"  # pandas turns None into NaN
        blocks.append(
            f"── step {row.step} · {verdict} · reward {row.reward:.2f} ──\n"
            f"Question:  {row.question}\nGold:      {row.gold}\nResponse:  {row.completion}\nExtracted: {extracted}"
        )
    return "\n\n".join(blocks)
