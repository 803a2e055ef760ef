"""The run directory: what one training stage leaves behind.

    config.yaml        the resolved configuration          metrics.jsonl      one line per logged step
    environment.json   versions, machine, git commit       metrics.csv        the same as a table, for people
    checkpoints/       checkpoint-N, to resume from        completions.jsonl  sampled completions, with their rewards
    model/             the trained model                   eval.json          the evaluation, with every example
    tensorboard/       the metrics again, for TensorBoard  code/            copies of your own rewards and task

Nothing else passes from one stage to the next: notebooks, plots and cloud jobs read run directories.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import uuid
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open

from .. import WorkshopError, installed_version, is_full_disk
from ..config import CODE, RunConfig, load, own_files, portable, read_config, recipe_names, with_overrides

if os.name == "nt":
    import msvcrt
else:
    import fcntl

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "bitsandbytes", "vllm")

LOCK = ".lock"
VALUE_HEAD_FILE = "value_head.safetensors"  # PPO's critic, beside the model and in every checkpoint

# Metrics that measure the machine, not the model: they differ between two runs of the same seed.
TIMING_COLUMNS = ("seconds", "step_time")


class RunDirectoryError(WorkshopError):
    """A run directory cannot be used; the message says what was found and what to do."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or folder to; it replaces `path` when the block ends.

    A process that is killed, or a full disk, leaves the old content, the new content or (a folder only) nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        flush_to_disk(temporary)
        if path.is_dir():  # a folder with content cannot be replaced in one step
            remove_folder(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if temporary.is_file():  # rmtree removes folders only
            temporary.unlink()
    flush_to_disk(path.parent, files=False)


def flush_to_disk(path: Path, files: bool = True) -> None:
    """Wait until a file, or a folder with all that it holds, is on the disk, so that it survives a power cut."""
    for place in [*(path.rglob("*") if files else []), path]:
        if place.is_file() or place.is_dir() and os.name != "nt":  # Windows opens no folders
            descriptor = os.open(place, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def holds_files(folder: Path) -> bool:
    """Say whether there is any file in a folder; a start that failed may leave a lock and empty folders."""
    return any(path.is_file() and path.name != LOCK for path in folder.rglob("*"))


def remove_folder(path: Path) -> None:
    """Remove a folder, if it exists, without ever leaving a part of it under its name."""
    if path.is_dir():
        temporary = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:8]}")
        os.replace(path, temporary)
        shutil.rmtree(temporary)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` so that a killed process leaves the old or the new content."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def describe_environment() -> dict[str, Any]:
    """Return what a result may depend on: versions, platform, processor, GPUs, git commit; no user, host or path."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":", 1)[1].strip() if models else cpu
    return {
        "python": platform.python_version(),
        "packages": {package: installed_version(package) for package in PACKAGES},
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

        With `resume` the directory may hold a run, which keeps its checkpoints; its trained model goes.

        Raises:
            RunDirectoryError: the directory holds files and `resume` is false, or cannot be written.
        """
        run = cls(path)
        if os.environ.get("RANK", "0") != "0":  # of several processes, the first one writes
            return run
        run.check_free(resume)
        if resume and (changed := run.changed_settings(config)):
            warnings.warn(f"Resuming {run.path} with settings that have changed since it started: "
                          f"{', '.join(changed)}. Its metrics will differ from those of an uninterrupted run.",
                          stacklevel=2)
        with run._writing():
            remove_folder(run.model_dir)  # a model of fewer steps, which must not pass for that of this run
            for leftover in [*run.path.glob("*.tmp-*"), *run.checkpoints_dir.glob("*.tmp-*")]:  # of a killed process
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            run.checkpoints_dir.mkdir(parents=True, exist_ok=True)
            for _, file in own_files(config.model_dump()):
                with written_whole(run.path / CODE / file.name) as temporary:
                    shutil.copyfile(file, temporary)
            write_atomically(run.config_path, config.to_yaml())
            write_atomically(run.path / "environment.json", json.dumps(describe_environment(), indent=2) + "\n")
        return run

    def check_free(self, resume: bool = False) -> None:
        """Raise RunDirectoryError if the directory holds files and `resume` is false."""
        if not resume and holds_files(self.path):
            raise RunDirectoryError(
                f"The output directory {self.path} is not empty, and a new run would overwrite results: continue the "
                "run in it with --resume (resume=True), or choose another directory."
            )

    def changed_settings(self, config: RunConfig, stage: str | None = None) -> list[str]:
        """Return the settings that differ from the run's config.yaml; with `stage`, only what its training depends on.

        `task.test_limit` and the sections of other stages, of evaluation and of tracking do not change a trained model.
        """
        if not self.config_path.exists():
            return []
        before, now = self.config().model_dump(), config.model_dump()
        changed = _changed_keys(portable(before), portable(now))
        texts = {file.name: file.read_bytes() for _, file in own_files(before)}
        changed += [f"{section}.{file.name}" for section, file in own_files(now)
                    if texts.get(file.name) not in (None, file.read_bytes())]
        used = {"seed", "task", "model", stage, *(["rewards"] if stage != "sft" else [])}
        return [key for key in changed if stage is None or key.split(".")[0] in used and key != "task.test_limit"]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this directory while the block runs.

        The operating system holds the lock, and releases it however the process ends.
        """
        if os.environ.get("RANK", "0") != "0":  # the first of several processes holds it for all
            yield
            return
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / LOCK, "a")
        with file:
            try:
                if os.name == "nt":
                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                else:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise RunDirectoryError(f"Another process is training in {self.path}: wait until it ends, or choose "
                                        "another directory.") from None
            except OSError:  # some network file systems have no locks
                pass
            try:
                yield
            except Exception as error:  # torch has its own error for a full disk
                if not self.path.exists():
                    raise RunDirectoryError(f"{self.path} was moved or removed during training: move it back, then "
                                            "continue with --resume.") from error
                if is_full_disk(error) or shutil.disk_usage(self.path).free < 2**20:
                    raise RunDirectoryError(f"The disk that holds {self.path} is full: free space, then continue with "
                                            "--resume. Nothing before the last checkpoint is lost.") from error
                raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunDirectoryError(
                f"Cannot write to the output directory {self.path} ({error.strerror}): set --output-dir to a "
                "writable directory with free space."
            ) from error

    # Where things are
    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

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
        """Say whether the trained model is complete; its folder appears only when all of its files are written."""
        return self.model_problem is None

    @property
    def model_problem(self) -> str | None:
        """Return what is missing or damaged in the trained model, or None."""
        names = {path.name for path in self.model_dir.glob("*")}
        needed = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
        needed += ["adapter_model.safetensors"] if "adapter_config.json" in names else ["config.json"]
        if any(self.checkpoints_dir.glob(f"checkpoint-*/{VALUE_HEAD_FILE}")):  # a PPO run
            needed.append(VALUE_HEAD_FILE)
        missing = [name for name in needed if name not in names]
        return f"{missing[0]} is missing" if missing else _weights_problem(self.model_dir)

    @property
    def checkpoints_dir(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tensorboard_dir(self) -> Path:
        return self.path / "tensorboard"

    # Reading
    def config(self) -> RunConfig:
        """Return the resolved configuration that the run was started with."""
        return read_config(self._existing(self.config_path))

    def environment(self) -> dict[str, Any]:
        """Return what the run was made with; see `describe_environment`."""
        path = self._existing(self.path / "environment.json")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise RunDirectoryError(f"{path} is damaged: delete it; resuming the run with --resume writes it "
                                    "again.") from None

    def metrics(self) -> pd.DataFrame:
        """Return one row per logged step, in the order of the steps. Column `seconds` is the time trained."""
        frame = pd.DataFrame(_read_json_lines(self._existing(self.metrics_path)))
        if frame.empty:
            raise RunDirectoryError(f"{self.metrics_path} has no logged step: resume the run with --resume.")
        return frame.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)

    def completions(self) -> pd.DataFrame:
        """Return the recorded completions; `append_completions` explains the columns."""
        return pd.DataFrame(_read_json_lines(self._existing(self.completions_path, "grpo or OUTPUT_DIR/ppo")))

    def _existing(self, path: Path, such_as: str = "sft or OUTPUT_DIR/grpo") -> Path:
        if not path.exists():
            raise RunDirectoryError(f"{self.path} has no {path.name}: give the run directory of one stage that has "
                                    f"been trained, such as OUTPUT_DIR/{such_as}.")
        return path

    def last_checkpoint(self) -> Path | None:
        """Return the newest complete checkpoint, or None if there is none yet.

        A checkpoint that was being written when the process was killed is skipped, with a warning that names it.

        Raises:
            RunDirectoryError: there are checkpoints, and all of them were damaged later.
        """
        found, problems = self._checkpoints(), []
        for checkpoint in found:
            problem = checkpoint_problem(checkpoint)
            if problem is None:
                return checkpoint
            warnings.warn(f"{checkpoint} is skipped: {problem}.", stacklevel=2)
            problems.append(problem)
        if any(not problem.startswith("trainer_state.json") for problem in problems):  # the Trainer writes it last
            raise RunDirectoryError(
                f"None of the {len(found)} checkpoints in {self.checkpoints_dir} is complete (newest: {found[0].name}, "
                f"{problems[0]}): start again in another directory, or delete {self.path} first.")
        if found:
            warnings.warn(f"The run in {self.path} was stopped in its first checkpoint: it starts over.", stacklevel=2)
        return None

    def _checkpoints(self) -> list[Path]:
        """Return the checkpoints, complete or not, the newest first."""
        found = [p for p in self.checkpoints_dir.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
        return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")), reverse=True)

    # Writing, while training
    def append_metrics(self, step: int, metrics: dict[str, float | None]) -> None:
        _append_json_lines(self.metrics_path, [{"step": step, **metrics}])

    def finish_checkpoint(self, last: Path) -> None:
        """Keep the last checkpoint safe from a power cut. Then remove all but this one and the best or the one before.

        The Trainer would remove the oldest by the clock, which may have been set back.
        """
        for path in (self.metrics_path, self.completions_path, self.checkpoints_dir):
            if path.exists():
                flush_to_disk(path)
        others = [checkpoint for checkpoint in self._checkpoints() if checkpoint != last]
        state = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))
        best = Path(state["best_model_checkpoint"] or "").name
        for checkpoint in sorted(others, key=lambda path: path.name != best)[1:]:
            remove_folder(checkpoint)
        self.write_metrics_table()

    def write_metrics_table(self) -> None:
        """Write metrics.csv, the view of metrics.jsonl for people and spreadsheets."""
        if self.metrics_path.exists():
            write_atomically(self.path / "metrics.csv", self.metrics().to_csv(index=False, lineterminator="\n"))

    def append_completions(self, rows: list[dict[str, Any]]) -> None:
        """Add rows to completions.jsonl.

        They have step, question, gold, completion, extracted, correct, reward (the weighted sum), rewards (of each
        function) and advantage (PPO: the mean over tokens). `step` is the optimizer step that learns from the
        completion. The first rows of a step also have tokens: for each token its text, logp_change (by the updates on
        its rollout) and in PPO value and advantage. Runs of earlier versions lack rewards, advantage and tokens.
        """
        _append_json_lines(self.completions_path, rows)

    def discard_after(self, step: int) -> None:
        """Drop metrics and completions of later steps, and checkpoints that a killed process did not finish.

        A resumed run writes all of them again, and would leave half-written files in its own checkpoint.
        """
        for checkpoint in self._checkpoints():
            if not (checkpoint / "trainer_state.json").exists():  # the Trainer writes it last
                remove_folder(checkpoint)
        for path in (self.metrics_path, self.completions_path):
            if path.exists():
                rows = zip(_whole_lines(path), _read_json_lines(path), strict=True)
                write_atomically(path, "".join(line for line, row in rows if row["step"] <= step))


def model_of(source: str | os.PathLike) -> str:
    """Return the model that `source` means: a run directory's trained model, or itself (a model's path or name)."""
    run = RunDirectory(source)
    if run.model_dir.is_dir() and not run.has_model:
        raise RunDirectoryError(f"The model in {run.model_dir} is not complete ({run.model_problem}): resume the run "
                                "with --resume, which saves the model again.")
    return str(run.model_dir if run.has_model else source)


def config_of(source: str | os.PathLike, recipe: str | None = None, hardware: str = "auto") -> RunConfig:
    """Return the configuration for asking a model: that of its run directory, or a recipe's with this model's name."""
    runs = [RunDirectory(source), *([RunDirectory(Path(source).parent)] if Path(source).name == "model" else [])]
    found = next((run for run in runs if run.config_path.exists()), None)
    if recipe is not None:
        return with_overrides(load(recipe, hardware), {} if found else {"model.name": str(source)})
    if found is None:
        raise RunDirectoryError(
            f"{source} has no config.yaml: give the run directory of one stage that has been trained, such as "
            "OUTPUT_DIR/grpo, or for any other model name task and response format with --recipe "
            f"({', '.join(recipe_names())}, or your own .yaml file).")
    return found.config()


def _whole_lines(path: Path) -> list[str]:
    """Return the lines of a text file, without a last one that a killed process did not finish."""
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        return [line for line in file if line.endswith("\n")]


def _read_json_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(_whole_lines(path), 1):
        try:
            rows.append(json.loads(line))
            int(rows[-1]["step"])
        except (ValueError, LookupError, TypeError, RecursionError):
            raise RunDirectoryError(f"{path}, line {number} is damaged (not a JSON object with a step): remove that "
                                    "line.") from None
    return rows


def _append_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    with open(path, "a", encoding="utf-8", newline="") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _changed_keys(old: Any, new: Any, prefix: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        changed = [_changed_keys(old.get(key), new.get(key), f"{prefix}.{key}".strip(".")) for key in old | new]
        return sum(changed, [])
    return [] if old == new else [prefix]


def checkpoint_problem(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint that the Trainer wrote, or None. Reads headers only, so it is fast."""
    for name in ("trainer_state.json", "optimizer.pt", "scheduler.pt"):
        if not (checkpoint / name).exists():
            return f"{name} is missing"
    if problem := _weights_problem(checkpoint):
        return problem
    for path in sorted([*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth"), *checkpoint.glob("*.bin")]):
        if not zipfile.is_zipfile(path):  # torch.save writes a zip file, whose directory comes last
            return f"{path.name} is truncated or damaged"
    return None


def _weights_problem(folder: Path) -> str | None:
    """Return what is wrong with the weights and the JSON files in a folder, or None."""
    weights = sorted(folder.glob("*.safetensors"))
    if not [path for path in weights if path.name != VALUE_HEAD_FILE]:
        return "the model file (*.safetensors) is missing"
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return f"{path.name} is not valid JSON"
        if path.name.endswith(".index.json"):
            missing = set(content["weight_map"].values()) - {file.name for file in weights}
            if missing:
                return f"{sorted(missing)[0]} is missing"
    for path in weights:
        try:
            with safe_open(path, framework="numpy"):  # compares the header with the file's length
                pass
        except (SafetensorError, OSError):
            return f"{path.name} is truncated or damaged"
    return None
