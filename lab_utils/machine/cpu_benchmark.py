"""GRPO in three ways with the same model, data, rewards and settings: the worker of `python scripts/benchmark.py cpu`.

    this project   lab_utils.training.grpo
    TRL            trl.GRPOTrainer with the same GRPOConfig: transformers generates, and the forward pass is TRL's own
    plain loop     the teaching loop of this file

Each way runs in a separate process, so that its memory is its own. The processes take turns, one step at a time, so
that drift of the machine hits all of them alike. A step is split into

    rollout     sampling the completions
    reference   log-probabilities under the reference model
    rewards     reward functions
    update      everything else, nearly all of it the forward and backward pass and the optimizer
"""

from __future__ import annotations

import dataclasses
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import TextIO
from unittest import mock

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, get_scheduler
from trl import GRPOTrainer

from .. import REPOSITORY, WorkshopError
from ..config import RunConfig, load, with_overrides
from ..evaluation import evaluate
from ..figures.style import OTHER_COLORS, finish, panels, tidy_axes
from ..models import end_token_ids, load_model, load_tokenizer
from ..runs import RunDirectory, write_atomically
from ..tasks import load_task
from ..teaching.grpo_math import group_advantages, grpo_loss, token_logps
from ..training import grpo
from ..training.rl import filter_long_prompts, rewards_of
from ..training.stages import finished_run
from .step_times import machine, random_model, spread, table

PARTS = ("rollout", "reference", "rewards", "update")
PROBE_EVERY = 3  # steps
GAIN = 0.30  # points of accuracy to be gained, as a share


@dataclasses.dataclass(frozen=True)
class Case:
    """What a process does: steps of GRPO in one of the three ways, from a start model."""

    method: str  # a key of METHODS
    model: str
    hardware: str
    steps: int  # to take; the learning rate still follows the configuration's max_steps
    seed: int = 0
    probe: int = 0  # held-out problems, asked twice each before the first step and after every third
    settings: tuple[str, ...] = ()


def run_config(case: Case) -> RunConfig:
    """Return the tier's configuration of countdown-grpo, without files that a benchmark does not need."""
    config = load("countdown-grpo", case.hardware, case.settings)
    return with_overrides(config, {"seed": case.seed, "tracking.tensorboard": False, "grpo.save_steps": 10**6,
                                   "grpo.max_steps": max(case.steps, config.grpo.max_steps)})


# --- The worker: one way of training, which takes a step when asked ---------------------------------------------------


class StepClock(TrainerCallback):
    """Wait for a line of `turns` before each step, then write the step's wall and CPU seconds to `answers` as JSON."""

    def __init__(self, case: Case, turns: TextIO, answers: TextIO):
        self.case, self.turns, self.answers = case, turns, answers
        self.steps, self.started, self.paused = 0, self.now(), np.zeros(2)

    @staticmethod
    def now() -> np.ndarray:
        return np.array([time.perf_counter(), time.process_time()])

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the seconds of the `with` block as this part of the step."""
        start = self.now()
        yield
        self.seconds[name] += self.now() - start

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the seconds of the `with` block out of the run's time."""
        start = self.now()
        yield
        self.paused += self.now() - start

    def watch(self, model: PreTrainedModel) -> None:
        """Count the tokens that pass through the model with a gradient, padding included."""
        def count(module, inputs):
            if torch.is_grad_enabled():
                self.updated_tokens += inputs[0].numel()

        self.model = model
        model.get_input_embeddings().register_forward_pre_hook(count)
        self.extra = {"start_accuracy": self.accuracy()} if self.case.probe else {}

    def accuracy(self) -> float:
        with self.pause():
            config = run_config(self.case)
            task = load_task(config.task.name, config.task.response_format)
            return evaluate(self.model, load_tokenizer(self.case.model), task,
                            task.dataset("test", self.case.probe, config.task.source), num_samples=2,
                            max_new_tokens=config.grpo.max_completion_length).accuracy

    def begin(self) -> None:
        with self.pause():
            if not self.turns.readline():
                raise SystemExit  # no more steps are wanted
        self.seconds = {name: np.zeros(2) for name in PARTS}
        self.sampled_tokens = self.updated_tokens = 0
        self.start = self.now()

    def end(self) -> bool:
        """Report the step; say whether it was the last."""
        whole, elapsed = self.now() - self.start, self.now() - self.started - self.paused
        self.seconds["update"] = whole - sum(self.seconds.values())
        self.steps += 1
        last = self.steps == self.case.steps
        if self.case.probe and (last or self.steps % PROBE_EVERY == 0):
            self.extra["accuracy"] = self.accuracy()
        row = {
            "step": self.steps, "seconds": whole[0], "cpu_seconds": whole[1], "elapsed_seconds": elapsed[0],
            **{f"{name}_seconds": wall for name, (wall, _) in self.seconds.items()},
            **{f"{name}_cpu_seconds": cpu for name, (_, cpu) in self.seconds.items()},
            "sampled_tokens": self.sampled_tokens, "updated_tokens": self.updated_tokens,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
            "parameters": self.model.num_parameters(), "threads": torch.get_num_threads(), **self.extra,
        }
        self.extra.pop("accuracy", None)
        self.answers.write(json.dumps(row) + "\n")
        self.answers.flush()
        return last

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.watch(model)

    def on_step_begin(self, args, state, control, **kwargs):
        self.begin()

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = self.end()


def timed(trainer: type[GRPOTrainer], clock: StepClock) -> type[GRPOTrainer]:
    """Return the trainer class with its parts timed."""

    class Timed(trainer):
        def _generate(self, prompts):
            with clock.part("rollout"):
                generated = super()._generate(prompts)
            clock.sampled_tokens += sum(map(len, generated[1]))
            return generated

        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            if torch.is_grad_enabled():
                return super()._get_per_token_logps_and_entropies(*args, **kwargs)
            with clock.part("reference"):
                return super()._get_per_token_logps_and_entropies(*args, **kwargs)

        def _calculate_rewards(self, *args):
            with clock.part("rewards"):
                return super()._calculate_rewards(*args)

    return Timed


def train_here(case: Case, config: RunConfig, clock: StepClock, folder: Path) -> None:
    """Train as this project does."""
    with mock.patch.object(grpo, "RLTrainer", timed(grpo.RLTrainer, clock)):
        grpo.train(config, folder, model=case.model, callbacks=[clock])


def train_with_trl(case: Case, config: RunConfig, clock: StepClock, folder: Path) -> None:
    """Train with TRL's own trainer."""
    tokenizer, rows, rewards = materials(case, config)
    arguments = grpo.grpo_arguments(config, RunDirectory.create(config, folder))
    trainer = timed(GRPOTrainer, clock)(model=load_model(case.model, config.model), args=arguments, train_dataset=rows,
                                        reward_funcs=rewards, processing_class=tokenizer, callbacks=[clock])
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def materials(case: Case, config: RunConfig) -> tuple[PreTrainedTokenizerBase, Dataset, list[Callable]]:
    """Return the tokenizer, training rows and reward functions, as this project's training makes them."""
    tokenizer = load_tokenizer(case.model)
    task = load_task(config.task.name, config.task.response_format)
    rows = task.dataset("train", config.task.train_limit, config.task.source)
    return (tokenizer, filter_long_prompts(rows, tokenizer, config.grpo.max_prompt_length),
            rewards_of(config, None, config.grpo.max_completion_length))


def train_plainly(case: Case, config: RunConfig, clock: StepClock, folder: Path) -> None:
    """Train with the loop of a lesson: all that GRPO needs, one update per rollout, and nothing that makes it fast."""
    settings, (tokenizer, rows, rewards) = config.grpo, materials(case, config)
    policy, reference = load_model(case.model, config.model), load_model(case.model, config.model)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay,
                                  betas=(settings.adam_beta1, settings.adam_beta2))
    schedule = get_scheduler(settings.lr_scheduler_type, optimizer, num_training_steps=settings.max_steps,
                             num_warmup_steps=math.ceil(settings.warmup_ratio * settings.max_steps))
    ends = torch.tensor(end_token_ids(policy.config, tokenizer))
    torch.manual_seed(config.seed)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.seed)).tolist()  # TRL's
    problems = settings.rollout_size // settings.num_generations  # of one step
    clock.watch(policy)
    for step in range(settings.max_steps):
        clock.begin()
        # Stage 1: a group of completions for every problem
        chosen = [rows[order[i % len(rows)]] for i in range(step * problems, (step + 1) * problems)
                  for _ in range(settings.num_generations)]
        with clock.part("rollout"):
            policy.eval()
            prompts = tokenizer.apply_chat_template(
                [row["prompt"] for row in chosen], add_generation_prompt=True, padding=True, return_dict=True,
                return_tensors="pt", tokenizer_kwargs={"padding_side": "left"})
            input_ids = policy.generate(
                **prompts, max_new_tokens=settings.max_completion_length, do_sample=True, top_k=0,
                top_p=settings.top_p, temperature=settings.temperature)  # (B, P + T)
            completion_ids = input_ids[:, prompts["input_ids"].shape[1]:]  # (B, T)
            is_end = torch.isin(completion_ids, ends).int()
            mask = (is_end.cumsum(1) - is_end == 0).int()  # 1 up to the first end token
            tokens = [row[:length].tolist() for row, length in zip(completion_ids, mask.sum(1), strict=True)]
        clock.sampled_tokens = int(mask.sum())
        # Stage 2: rewards become advantages
        with clock.part("rewards"):
            completions = [[{"role": "assistant", "content": text}]
                           for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
            columns = {name: [row[name] for row in chosen] for name in rows.column_names if name != "prompt"}
            scores = sum(weight * torch.tensor(function(completions=completions, completion_ids=tokens, **columns))
                         for function, weight in zip(rewards, config.rewards.values(), strict=True))
            advantages = group_advantages(scores, settings.num_generations, settings.scale_rewards == "group")
        # Stage 3: log-probabilities, loss, step
        batch = (input_ids, torch.cat([prompts["attention_mask"], mask], dim=1), mask.shape[1], settings.temperature)
        with clock.part("reference"), torch.no_grad():
            ref_logps = token_logps(reference, *batch)
        policy.train()
        logps = token_logps(policy, *batch)
        loss = grpo_loss(logps, logps.detach(), advantages, mask, loss_type=settings.loss_type, beta=settings.beta,
                         max_completion_length=settings.max_completion_length, epsilon=settings.epsilon,
                         epsilon_high=settings.epsilon_high, ref_logps=ref_logps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        if clock.end():
            break


METHODS = {"this project": train_here, "TRL": train_with_trl, "plain loop": train_plainly}


def work(case: Case, turns: TextIO, answers: TextIO) -> None:
    """Train as the case says: a step for every line of `turns`, reported to `answers`."""
    clock = StepClock(case, turns, answers)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        METHODS[case.method](case, run_config(case), clock, Path(folder) / "run")


class Worker:
    """A case in a separate process."""

    def __init__(self, case: Case):
        self.case, self.errors = case, tempfile.TemporaryFile("w+")
        command = [sys.executable, "-m", __name__, json.dumps(dataclasses.asdict(case))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
                                        text=True, cwd=REPOSITORY)

    def step(self) -> dict[str, float]:
        """Let the process take a step and return what it reports."""
        try:
            print(file=self.process.stdin, flush=True)
        except BrokenPipeError:
            pass  # the process has ended; the missing answer says so
        for line in self.process.stdout:
            if line.startswith("{"):  # imported packages print too
                return {"method": self.case.method, **json.loads(line)}
        self.errors.seek(0)
        reason = next((line.strip() for line in reversed(self.errors.readlines()) if ": " in line), "no message")
        raise WorkshopError(f"{self.case.method} ended before its step: {reason}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error) -> None:
        self.process.communicate()  # closes its input, so that it ends
        self.errors.close()


# --- The parts of the benchmark ---------------------------------------------------------------------------------------


def in_turn(round_number: int) -> list[str]:
    """Return the methods, beginning with another one in every round."""
    names, first = list(METHODS), round_number % len(METHODS)
    return names[first:] + names[:first]


def measure_steps(case: Case, pairs: int) -> list[dict]:
    """Return `pairs` steps of each method, taken in turn. Pair 0 comes before them and warms up."""
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(dataclasses.replace(case, method=name, steps=pairs + 1)))
                   for name in METHODS}
        return [{"pair": pair, **workers[name].step()} for pair in range(pairs + 1) for name in in_turn(pair)]


def measure_learning(case: Case, seed: int, to_the_end: bool) -> list[dict]:
    """Train in each way until the probe has gained 30 points, or to the last step; return one row for each way.

    Seconds count from the loading of model and data, without imports and without the time of the probe.
    """
    rows = []
    for name in in_turn(seed):
        with Worker(dataclasses.replace(case, method=name, seed=seed)) as worker:
            curve, reached = [], None
            for _ in range(case.steps):
                row = worker.step()
                curve = curve or [[0.0, row["start_accuracy"]]]
                if "accuracy" not in row:
                    continue
                curve.append([row["elapsed_seconds"], row["accuracy"]])
                if reached is None and row["accuracy"] >= row["start_accuracy"] + GAIN:
                    reached = row
                if reached and not to_the_end:
                    break
        rows.append({"method": name, "seed": seed, "seconds_to_gain": reached and reached["elapsed_seconds"],
                     "steps_to_gain": reached and reached["step"], "steps": row["step"],
                     "seconds": row["elapsed_seconds"], "curve": curve})
    return rows


def measure_scaling(case: Case, sizes: dict[str, Sequence[int]], folder: Path) -> list[dict]:
    """Return a step's time over group size and completion length, and over model size with random weights.

    A random model hardly ever ends its turn, so it has the smallest group and completion of the other series.
    """
    settings = run_config(case).grpo
    problems = settings.rollout_size // settings.num_generations

    def overrides(group: int, length: int) -> tuple[str, ...]:
        return (f"grpo.num_generations={group}", f"grpo.per_device_train_batch_size={problems * group}",
                f"grpo.max_completion_length={length}")

    cases = {("group size", size): dataclasses.replace(case, settings=overrides(size, settings.max_completion_length))
             for size in sizes["group size"]}
    cases |= {("completion length", size): dataclasses.replace(case, settings=overrides(settings.num_generations, size))
              for size in sizes["completion length"]}
    smallest = overrides(min(sizes["group size"]), min(sizes["completion length"]))
    for size in sizes["hidden size"]:
        model = random_model("tiny", folder / f"hidden-{size}", hidden_size=size, intermediate_size=7 * size // 2)
        cases["hidden size", size] = dataclasses.replace(case, model=str(model), settings=smallest)
    second_steps: dict[Case, list[dict]] = {}  # by case, because two of the series have one in common
    for one in cases.values():
        for name in METHODS if one not in second_steps else ():
            with Worker(dataclasses.replace(one, method=name)) as worker:  # alone, to leave it the memory
                worker.step()
                second_steps.setdefault(one, []).append(worker.step())
    return [{"series": series, "size": size, **row} for (series, size), one in cases.items()
            for row in second_steps[one]]


def measure_ceiling(size: int) -> dict[str, float]:
    """Return the GFLOP/s of a float32 product of two square matrices, by number of threads; the best of five."""
    matrix, before = torch.randn(size, size), torch.get_num_threads()
    found = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            matrix @ matrix
            seconds.append(time.perf_counter() - start)
        found[str(threads)] = 2 * size**3 / min(seconds[1:]) / 1e9
    torch.set_num_threads(before)
    return found


def benchmark(folder: Path, parts: Sequence[str], *, model: str | None, pairs: int, seeds: Sequence[int],
              to_the_end: bool, quick: bool) -> dict:
    """Measure `parts` and write cpu_benchmark.json, .md and .png to `folder`; parts measured before stay in them."""
    folder = folder.resolve()  # the workers run in the repository's root
    case = Case("this project", "", "cpu", steps=2)
    if quick:
        case = dataclasses.replace(case, hardware="smoke", settings=("grpo.max_completion_length=32",))
    config = run_config(case)
    if model is None and {"steps", "scaling"} & set(parts):  # in the middle of training: SFT and 15 steps of GRPO
        middle = with_overrides(config, {"grpo.max_steps": 1 if quick else 15, "grpo.lr_scheduler_type": "constant"})
        model = finished_run(middle, folder / "start", "grpo").model_dir
    here = model and Path(model).is_dir()
    case = dataclasses.replace(case, model=str(Path(model).resolve() if here else model))
    path = folder / "cpu_benchmark.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def keep(part: str, rows: list | dict) -> None:
        results[part] = {"machine": machine(), "tier": case.hardware, "rows": rows}
        write_atomically(path, json.dumps(results, indent=1) + "\n")
        write_atomically(path.with_suffix(".md"), as_markdown(results))
        plot(results, path.with_suffix(".png"))

    if "ceiling" in parts:
        keep("ceiling", measure_ceiling(256 if quick else 2048))
    if "steps" in parts:
        keep("steps", measure_steps(case, pairs))
    if "learning" in parts:
        start = finished_run(config, folder / "start", "sft").model_dir
        run = dataclasses.replace(case, model=str(start), steps=config.grpo.max_steps, probe=4 if quick else 100)
        rows = []
        for seed in seeds:
            rows += measure_learning(run, seed, to_the_end)
            keep("learning", rows)
    if "scaling" in parts:
        sizes = {"group size": (8, 16, 32), "completion length": (96, 192, 384), "hidden size": (64, 128, 256)}
        if quick:
            sizes = {"group size": (2,), "completion length": (32,), "hidden size": (64,)}
        keep("scaling", measure_scaling(case, sizes, folder))
    return results


# --- Tables and figure ------------------------------------------------------------------------------------------------


def of_method(rows: list[dict], name: str) -> list[dict]:
    """Return the timed rows of a method."""
    return [row for row in rows if row["method"] == name and row.get("pair") != 0]


def compared(seconds: dict[str, float | None]) -> list[str]:
    """Return this project's seconds as shares of the others', empty where a run did not reach its goal."""
    here, *others = (seconds[name] for name in METHODS)
    return [f"{here / other:.3f}" if here and other else "" for other in others]


RATIOS = [f"this project / {name}" for name in list(METHODS)[1:]]


def ceiling_in_words(results: dict) -> str:
    """Describe the most that this processor computes."""
    rates = [f"{rate:,.0f} GFLOP/s with {threads} thread(s)" for threads, rate in results["ceiling"]["rows"].items()]
    return f"float32 matrix product: {', '.join(rates)}."


def steps_in_words(results: dict) -> str:
    """Describe the paired steps: seconds by part, speed, memory, ratios, and the share of the ceiling."""
    rows = pd.DataFrame(results["steps"]["rows"])
    completions = run_config(Case("", "", results["steps"]["tier"], steps=1)).grpo.rollout_size
    ceiling = results.get("ceiling", {}).get("rows", {}).get(str(rows["threads"][0]))
    rows["tokens_per_second"] = rows["sampled_tokens"] / rows["seconds"]
    rows["rollout_tokens_per_second"] = rows["sampled_tokens"] / rows["rollout_seconds"]
    rows["rate"] = 6 * rows["parameters"] * rows["updated_tokens"] / rows["update_seconds"] / 1e9
    timed, first = rows[rows["pair"] > 0], rows[rows["pair"] == 0].set_index("method")
    lines = [["", "step, s", *(f"{part}, s" for part in PARTS), "CPU s", "first step, s", "mean length",
              "sampled tokens/s of step", "of rollout", "peak MB", "tokens through the update", "its GFLOP/s",
              "share of the ceiling"]]
    for name in METHODS:
        own = timed[timed["method"] == name]
        median = own.median(numeric_only=True)
        lines.append([
            name, spread(own["seconds"]), *(f"{median[f'{part}_seconds']:.3f}" for part in PARTS),
            f"{median['cpu_seconds']:.2f}", f"{first['seconds'][name]:.2f}",
            f"{own['sampled_tokens'].mean() / completions:.0f}", f"{median['tokens_per_second']:,.0f}",
            f"{median['rollout_tokens_per_second']:,.0f}", f"{own['peak_mb'].max():,.0f}",
            f"{median['updated_tokens']:,.0f}", f"{median['rate']:.0f}",
            f"{median['rate'] / ceiling:.0%}" if ceiling else ""])
    ratios = [["ratio of pairs", "seconds", "CPU seconds", "seconds per sampled token"]]
    pairs = timed.assign(per_token=1 / timed["tokens_per_second"]).pivot(index="pair", columns="method")
    for name, heading in zip(list(METHODS)[1:], RATIOS, strict=True):
        ratios.append([heading, *(spread(pairs[column, "this project"] / pairs[column, name], 3)
                                  for column in ("seconds", "cpu_seconds", "per_token"))])
    return (f"{completions} completions per step, {rows['parameters'][0]:,} parameters, {rows['threads'][0]} thread(s) "
            f"and {len(pairs)} pairs. Operations of the update: 6 × parameters × tokens through it, with padding and "
            f"repeated prompts.\n\n{table(lines)}\n\n{table(ratios)}")


def learning_in_words(results: dict) -> str:
    """Describe the whole runs: seconds to the gain, by seed."""
    rows = results["learning"]["rows"]
    lines = [["seed", "accuracy before", *(f"{name}, s (steps)" for name in METHODS), *RATIOS,
              "whole run, s (steps)"]]
    for seed in sorted({row["seed"] for row in rows}):
        runs = {row["method"]: row for row in rows if row["seed"] == seed}
        lines.append([
            seed, f"{runs['TRL']['curve'][0][1]:.1%}",
            *(f"{runs[name]['seconds_to_gain']:.0f} ({runs[name]['steps_to_gain']})" if runs[name]["steps_to_gain"]
              else "not reached" for name in METHODS),
            *compared({name: run["seconds_to_gain"] for name, run in runs.items()}),
            ", ".join(f"{runs[name]['seconds']:.0f} ({runs[name]['steps']})" for name in METHODS)])
    return (f"Seconds to +{100 * GAIN:.0f} points on held-out problems, model loading and first step included, imports "
            f"and probe excluded.\n\n{table(lines)}")


def scaling_in_words(results: dict) -> str:
    """Describe how a step grows: seconds by series, size and method."""
    lines = [["series", "size", *(f"{name}, s" for name in METHODS), *RATIOS]]
    for (series, size), rows in pd.DataFrame(results["scaling"]["rows"]).groupby(["series", "size"], sort=False):
        seconds = rows.set_index("method")["seconds"].to_dict()
        lines.append([series, size, *(f"{seconds[name]:.2f}" for name in METHODS), *compared(seconds)])
    return table(lines)


SECTIONS = {"ceiling": ceiling_in_words, "steps": steps_in_words, "learning": learning_in_words,
            "scaling": scaling_in_words}


def as_markdown(results: dict) -> str:
    """Return the results as tables, a section for each part that was measured."""
    return "\n\n".join(f"## {part}\n{results[part]['machine']}, tier {results[part]['tier']}\n\n{words(results)}"
                       for part, words in SECTIONS.items() if part in results) + "\n"


def plot(results: dict, path: Path) -> None:
    """Draw a panel for each part that was measured: a step by part, learning over seconds, growth of a step."""
    colors = dict(zip(METHODS, ["#0072B2", "#D55E00", "#7F7F7F"], strict=True))
    series = list(dict.fromkeys(row["series"] for row in results.get("scaling", {}).get("rows", [])))
    drawn = [part for part in ("steps", "learning") if part in results] + series
    if not drawn:
        return
    figure, axes = panels(len(drawn), min(2, len(drawn)), 7.5, 4.8)
    for ax, part in zip(axes, drawn, strict=True):
        if part == "steps":
            steps, left = results["steps"]["rows"], np.zeros(len(METHODS))
            for name, color in zip(PARTS, OTHER_COLORS, strict=False):
                widths = [statistics.median(row[f"{name}_seconds"] for row in of_method(steps, method))
                          for method in METHODS]
                ax.barh(list(METHODS), widths, left=left, color=color, label=name)
                left += widths
            ax.invert_yaxis()
            ax.grid(axis="x")
            ax.set(title="A step of GRPO", xlabel="seconds")
        elif part == "learning":
            for row in results["learning"]["rows"]:
                first = row["seed"] == results["learning"]["rows"][0]["seed"]
                ax.plot(*np.array(row["curve"]).T * [[1], [100]], color=colors[row["method"]],
                        label=row["method"] if first else None)
            ax.set(title="Learning", xlabel="seconds of training", ylabel="% of held-out answers correct")
        else:
            for name in METHODS:
                points = [(row["size"], row["seconds"]) for row in of_method(results["scaling"]["rows"], name)
                          if row["series"] == part]
                ax.plot(*np.array(points).T, "o-", color=colors[name], label=name)
            tidy_axes(ax)
            ax.margins(x=0.05)
            ax.set(title=f"A step by {part}", xlabel=part, ylabel="seconds", xticks=[size for size, _ in points])
        ax.legend(fontsize=12)
    finish(figure, path)


if __name__ == "__main__":
    values = json.loads(sys.argv[1])
    work(Case(**values | {"settings": tuple(values["settings"])}), sys.stdin, sys.stdout)
