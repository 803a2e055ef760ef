"""GRPO in three ways with the same model, data, rewards and settings: the worker of `python scripts/benchmark.py cpu`.

    this project   lab_utils.training.grpo
    TRL            trl.GRPOTrainer with the same GRPOConfig: transformers generates, and the forward pass is TRL's own
    plain loop     the teaching loop of this file

Every run has its own process, and so its own memory. The ways take turns, run by run, so that drift of the machine hits
all of them alike. Where a run ends at the gain, ours is too short to meet more than one moment of the machine, so it is
taken before, between and after the others', and its median counts. A step is split into

    rollout     sampling the completions
    reference   log-probabilities under the reference model
    rewards     reward functions
    update      everything else, nearly all of it the forward and backward pass and the optimizer
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
from transformers import TrainerCallback, get_scheduler
from trl import GRPOTrainer

from .. import REPOSITORY, WorkshopError, exit_status
from ..config import RunConfig, with_overrides
from ..evaluation import evaluate
from ..figures.style import OTHER_COLORS, finish, panels
from ..models import end_token_ids, load_model, load_tokenizer
from ..rewards.own import rewards_of
from ..runs import RunDirectory, write_atomically
from ..tasks import load_task
from ..teaching.grpo_math import group_advantages, grpo_loss, token_logps
from ..training import grpo
from ..training.rl import filter_long_prompts
from ..training.stages import finished_run
from .step_times import machine, random_model, spread, table

SECTIONS = {"steps": ["pair"], "learning": ["seed"], "scaling": ["series", "size"]}  # what labels their rows
PARTS = ("rollout_seconds", "reference_seconds", "rewards_seconds", "update_seconds")
GAIN = 0.30  # accuracy to be gained, as a share
PROBE_PROBLEMS, PROBE_SAMPLES = 200, 4  # held-out problems after every step, and answers to each
SIZES = {"group size": [8, 16, 32], "completion length": [96, 192, 384], "hidden size": [64, 128, 256]}


# --- One run, in one of the three ways --------------------------------------------------------------------------------


class StepClock(TrainerCallback):
    """Measure the steps of a run by part. With `probe`, follow its accuracy too, and stop it at the gain."""

    def __init__(self, config: RunConfig, probe: bool):
        self.config, self.probe = config, probe
        self.started, self.probe_seconds = time.perf_counter(), 0.0
        self.steps: list[dict[str, float]] = []
        self.curve: list[list[float]] = []  # seconds of training, accuracy
        self.seconds_to_gain: float | None = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the seconds of the `with` block as this part of the step."""
        start = time.perf_counter()
        yield
        self.step[name] += time.perf_counter() - start

    def extend_curve(self) -> None:
        """Ask the held-out problems. The time that this takes does not count as training."""
        start, task, settings = time.perf_counter(), load_task(self.config.task), self.config.grpo
        found = evaluate(self.model, load_tokenizer(self.config.model.name), task,
                         task.dataset("test", PROBE_PROBLEMS, self.config.task.source), num_samples=PROBE_SAMPLES,
                         max_new_tokens=settings.max_completion_length, temperature=settings.temperature)
        self.curve.append([start - self.started - self.probe_seconds, found.accuracy])
        if found.accuracy >= self.curve[0][1] + GAIN:
            self.seconds_to_gain = self.curve[-1][0]
        self.probe_seconds += time.perf_counter() - start

    def on_train_begin(self, *event, model, **kwargs):
        def count(module, inputs):
            if torch.is_grad_enabled():
                self.step["updated_tokens"] += inputs[0].numel()  # padding included

        self.model = model
        model.get_input_embeddings().register_forward_pre_hook(count)
        if self.probe:
            self.extend_curve()

    def on_step_begin(self, *event, **kwargs):
        self.step = dict.fromkeys([*PARTS, "sampled_tokens", "updated_tokens"], 0.0)
        self.start = time.perf_counter()

    def on_step_end(self, args=None, state=None, control=None, **kwargs):
        whole = time.perf_counter() - self.start
        self.step["update_seconds"] = whole - sum(self.step[name] for name in PARTS)
        self.steps.append(self.step | {"step_seconds": whole})
        if self.probe:
            self.extend_curve()
        if control and self.seconds_to_gain is not None:
            control.should_training_stop = True

    def result(self) -> dict:
        """Return the means of the steps after the first, which warms up, and what the run learned."""
        step = pd.DataFrame(self.steps[1:] or self.steps).mean().to_dict()
        operations = 6 * self.model.num_parameters() * step["updated_tokens"]
        return {
            **step, "mean_length": round(step["sampled_tokens"] / self.config.grpo.rollout_size, 1),
            "tokens_per_second": round(step["sampled_tokens"] / step["step_seconds"]),
            "update_gflops": operations / step["update_seconds"] / 1e9,
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
            "seconds_to_gain": self.seconds_to_gain, "curve": self.curve}


def timed(trainer: type[GRPOTrainer], clock: StepClock) -> type[GRPOTrainer]:
    """Return the trainer class with its parts timed."""

    class Timed(trainer):
        def _generate(self, prompts):
            with clock.part("rollout_seconds"):
                generated = super()._generate(prompts)
            clock.step["sampled_tokens"] += sum(map(len, generated[1]))
            return generated

        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            if torch.is_grad_enabled():
                return super()._get_per_token_logps_and_entropies(*args, **kwargs)
            with clock.part("reference_seconds"):
                return super()._get_per_token_logps_and_entropies(*args, **kwargs)

        def _calculate_rewards(self, *args):
            with clock.part("rewards_seconds"):
                return super()._calculate_rewards(*args)

    return Timed


def train_here(config: RunConfig, clock: StepClock, folder: Path) -> None:
    """Train as this project does."""
    with mock.patch.object(grpo, "RLTrainer", timed(grpo.RLTrainer, clock)):
        grpo.train(config, folder, callbacks=[clock])


def train_with_trl(config: RunConfig, clock: StepClock, folder: Path) -> None:
    """Train with TRL's own trainer."""
    tokenizer, rows, rewards = materials(config)
    arguments = grpo.grpo_arguments(config, RunDirectory.create(config, folder))
    trainer = timed(GRPOTrainer, clock)(
        model=load_model(config.model.name, config.model), args=arguments, train_dataset=rows, reward_funcs=rewards,
        processing_class=tokenizer, callbacks=[clock])
    trainer.train()


def materials(config: RunConfig) -> tuple:
    """Return the tokenizer, training rows and reward functions, as this project's training makes them."""
    tokenizer = load_tokenizer(config.model.name)
    task = load_task(config.task)
    rows = task.dataset("train", config.task.train_limit, config.task.source)
    return (tokenizer, filter_long_prompts(rows, tokenizer, config.grpo.max_prompt_length),
            rewards_of(config, None, config.grpo.max_completion_length, task))


def train_plainly(config: RunConfig, clock: StepClock, folder: Path) -> None:
    """Train with the loop of a lesson: all that GRPO needs, one update per rollout, and nothing that makes it fast."""
    settings, (tokenizer, rows, rewards) = config.grpo, materials(config)
    policy, reference = (load_model(config.model.name, config.model) for _ in range(2))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay,
                                  betas=(settings.adam_beta1, settings.adam_beta2))
    schedule = get_scheduler(settings.lr_scheduler_type, optimizer, num_training_steps=settings.max_steps,
                             num_warmup_steps=math.ceil(settings.warmup_ratio * settings.max_steps))
    ends = torch.tensor(end_token_ids(policy.config, tokenizer))
    torch.manual_seed(config.seed)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.seed)).tolist()  # TRL's
    problems = settings.rollout_size // settings.num_generations  # of one step
    clock.on_train_begin(model=policy)
    for step in range(settings.max_steps):
        clock.on_step_begin()
        # Stage 1: a group of completions for every problem
        chosen = [rows[order[i % len(rows)]] for i in range(step * problems, (step + 1) * problems)
                  for _ in range(settings.num_generations)]
        with clock.part("rollout_seconds"):
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
        clock.step["sampled_tokens"] = int(mask.sum())
        # Stage 2: rewards become advantages
        with clock.part("rewards_seconds"):
            completions = [[{"role": "assistant", "content": text}]
                           for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
            columns = {name: [row[name] for row in chosen] for name in rows.column_names if name != "prompt"}
            scores = sum(weight * torch.tensor(function(completions=completions, completion_ids=tokens, **columns))
                         for function, weight in zip(rewards, config.rewards.values(), strict=True))
            advantages = group_advantages(scores, settings.num_generations, settings.scale_rewards == "group")
        # Stage 3: log-probabilities, loss, step
        batch = (input_ids, torch.cat([prompts["attention_mask"], mask], dim=1), mask.shape[1], settings.temperature)
        with clock.part("reference_seconds"), torch.no_grad():
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
        clock.on_step_end()
        if clock.seconds_to_gain is not None:
            break


METHODS = {"this project": train_here, "TRL": train_with_trl, "plain loop": train_plainly}


def measure(method: str, config: RunConfig, probe: bool = False) -> dict:
    """Train in one of the three ways and return what the clock found. This takes the whole process."""
    clock = StepClock(config, probe)
    with tempfile.TemporaryDirectory() as folder:
        METHODS[method](config, clock, Path(folder) / "run")
    return clock.result()


def measure_alone(method: str, config: RunConfig, probe: bool = False) -> dict:
    """Run `measure` in a separate process."""
    command = [sys.executable, "-m", __name__, method, config.model_dump_json(), *["probe"] * probe]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode:
        reason = next((line.strip() for line in reversed(done.stderr.splitlines()) if ": " in line), "no message")
        raise WorkshopError(f"{method} failed: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


# --- The parts of the benchmark ---------------------------------------------------------------------------------------


def comparisons(part: str, config: RunConfig, folder: Path, model: str | None, pairs: int,
                seeds: Sequence[int]) -> Iterator[tuple[dict, dict]]:
    """Yield what the three ways do in turn: labels for the table, and the settings that differ from `config`."""
    def start(stage: str) -> str:
        middle = with_overrides(config, {"grpo.max_steps": 15, "grpo.lr_scheduler_type": "constant"})
        return model or str(finished_run(middle, folder / "start", stage).model_dir)

    if part == "steps":
        for pair in range(pairs):
            yield {"pair": pair}, {"model.name": start("grpo"), "seed": pair, "grpo.max_steps": 4}
    elif part == "learning":
        for seed in seeds:
            yield {"seed": seed}, {"model.name": start("sft"), "seed": seed}
    else:
        base = {"model.name": start("grpo"), "grpo.max_steps": 2}
        for size in SIZES["group size"]:
            rows = config.grpo.rollout_size // config.grpo.num_generations * size
            yield {"series": "group size", "size": size}, {
                **base, "grpo.num_generations": size, "grpo.per_device_train_batch_size": rows}
        for size in SIZES["completion length"]:
            yield {"series": "completion length", "size": size}, {**base, "grpo.max_completion_length": size}
        short = {**base, "grpo.max_completion_length": min(SIZES["completion length"])}
        for size in SIZES["hidden size"]:  # with random weights, so completions hardly ever end early
            path = random_model("tiny", folder / f"hidden-{size}", hidden_size=size, intermediate_size=7 * size // 2)
            yield {"series": "hidden size", "size": size}, {**short, "model.name": str(path)}


def turns(part: str, number: int) -> list[str]:
    """Return the ways in the order of their runs; another one begins, or follows ours, in every comparison."""
    here, *others = METHODS
    if part == "learning":
        first, second = others if number % 2 == 0 else others[::-1]
        return [here, first, here, second, here]
    first = number % len(METHODS)
    return [*METHODS][first:] + [*METHODS][:first]


def matmul_gflops(size: int = 2048) -> float:
    """Return the GFLOP/s of a float32 product of two square matrices, the best of five."""
    matrix = torch.randn(size, size)
    return 2 * size**3 / min(timeit.repeat(lambda: matrix @ matrix, number=1, repeat=5)) / 1e9


def benchmark(config: RunConfig, folder: Path, parts: Sequence[str], *, model: str | None, pairs: int,
              seeds: Sequence[int]) -> dict:
    """Measure `parts` and write cpu_benchmark.json, .md and .png to `folder`; parts measured before stay in them.

    `model` is the start model. By default SFT makes that of `learning`, and 15 more steps of GRPO that of the others.
    """
    folder = folder.resolve()  # the runs start in the repository's root
    model = str(Path(model).resolve()) if model and Path(model).is_dir() else model
    config = with_overrides(config, {"tracking.tensorboard": False, "grpo.save_steps": 10**6, "grpo.probe_rollouts": 0})
    path = folder / "cpu_benchmark.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for part in parts:
        ceiling, rows = matmul_gflops(), []
        for number, (labels, changes) in enumerate(comparisons(part, config, folder, model, pairs, seeds)):
            for method in turns(part, number):
                found = measure_alone(method, with_overrides(config, changes), part == "learning")
                rows.append({**labels, "method": method, **found, "share_of_ceiling": found["update_gflops"] / ceiling})
            results[part] = {"machine": machine(), "tier": config.hardware, "ceiling_gflops": ceiling, "rows": rows}
            write_atomically(path, json.dumps(results, indent=1) + "\n")
            write_atomically(path.with_suffix(".md"), as_markdown(results))
            plot(results, path.with_suffix(".png"))
    return results


# --- Table and figure -------------------------------------------------------------------------------------------------

COLUMNS = ["step_seconds", *PARTS, "mean_length", "tokens_per_second", "peak_mb", "share_of_ceiling", "seconds_to_gain"]
NOTES = """A row is a run, its seconds the means of its steps after the first. Tokens per second are sampled tokens. The
ceiling is a product of float32 matrices, and the share what the update reaches of it: 6 × parameters × tokens through
the update, with padding and repeated prompts. Seconds to the gain, +30 points on held-out problems, include loading the
model and the first step, but not imports and the probe; empty if not reached. Ratios: median (minimum to maximum)."""


def by_method(rows: list[dict], part: str, column: str) -> pd.DataFrame:
    """Return a column of the results with a row for each comparison and a column for each way; medians of its runs."""
    values = pd.DataFrame(rows).astype({column: float}).groupby([*SECTIONS[part], "method"])[column].median()
    return values.unstack()[[*METHODS]]


def as_markdown(results: dict) -> str:
    """Return the results as tables: for each part its runs, and the ratios of this project to the others."""
    texts, (here, *others) = [NOTES], METHODS
    for part, found in results.items():
        frame = pd.DataFrame(found["rows"])[[*SECTIONS[part], "method", *COLUMNS]].round(3)
        runs = [[*frame], *frame.astype(object).where(frame.notna(), "").values.tolist()]
        ratios = [["ratio", *(f"{here} / {other}" for other in others)]]
        for column in ["seconds_to_gain"] if part == "learning" else ["step_seconds", "tokens_per_second"]:
            values = by_method(found["rows"], part, column)
            pairs = [(values[here] / values[other]).dropna() for other in others]
            ratios.append([column, *(spread(pair, 3) if len(pair) else "not reached" for pair in pairs)])
        texts += [f"## {part}", "{machine}, tier {tier}, ceiling {ceiling_gflops:,.0f} GFLOP/s".format(**found)]
        texts += [table(lines).replace("_", " ") for lines in (runs, ratios)]
    return "\n\n".join(texts) + "\n"


def plot(results: dict, path: Path) -> None:
    """Draw a panel for each part that was measured: a step by part, learning over seconds, growth of a step."""
    colors = dict(zip(METHODS, ["#0072B2", "#D55E00", "#7F7F7F"], strict=True))
    figure, axes = panels(len(results), len(results), 9, 6)
    for ax, (part, found) in zip(axes, results.items(), strict=True):
        if part == "steps":
            medians = pd.DataFrame(found["rows"]).groupby("method")[[*PARTS]].median().loc[[*METHODS]]
            medians.columns = [name.removesuffix("_seconds") for name in PARTS]
            medians.plot.barh(stacked=True, ax=ax, color=OTHER_COLORS)
            ax.set(title="A step of GRPO", xlabel="seconds", ylabel="")
        elif part == "learning":
            for row in found["rows"]:
                seconds, accuracy = zip(*row["curve"], strict=True)
                ax.plot(seconds, accuracy, color=colors[row["method"]], label=row["method"])
            ax.legend(handles={line.get_label(): line for line in ax.lines}.values())
            ax.set(title="Learning", xlabel="seconds of training", ylabel="share of held-out answers correct")
        else:
            seconds = by_method(found["rows"], part, "step_seconds")
            seconds.set_axis([f"{series} {size}" for series, size in seconds.index]).plot.barh(ax=ax, color=colors)
            ax.set(title="Growth of a step", xlabel="seconds", ylabel="")
    finish(figure, path)


def main() -> None:
    print(json.dumps(measure(sys.argv[1], RunConfig.model_validate_json(sys.argv[2]), "probe" in sys.argv[3:])))


if __name__ == "__main__":
    sys.exit(exit_status(main))
