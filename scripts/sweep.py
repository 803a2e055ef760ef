"""Search settings with Optuna, then compare the best with the default on seeds that the search has not used.

    python scripts/sweep.py --recipe countdown-grpo --hardware cpu --output-dir runs/sweep
    python scripts/sweep.py --recipe countdown-grpo --hardware cpu --output-dir runs/other --trials 20 \\
        --search grpo.learning_rate=5e-5..5e-4:log --search grpo.num_generations=4,8,16

--search KEY=LOW..HIGH searches a range, KEY=LOW..HIGH:log the same on a logarithmic scale, KEY=A,B,C some values.
Between two whole numbers, whole numbers are searched. Without --search, learning rate, KL coefficient, group size and
weight of the format reward are searched around the recipe's own values. The first trial has the own values.

All trials start from the same SFT model with the same seed. None sees a test question: up to VALIDATION questions are
taken out of the training data. A probe asks some of them during training, and a trial below the median of the others
at the same step is pruned (with probe_rollouts = 0 none is). A trial's value is its accuracy on all of them after
training. The best of many such values is too good on average. So the best setting and the default are trained again
with fresh seeds, and the test questions compare the two.

Ctrl-C loses nothing: the same command resumes the trial. More --trials extend a finished search. OUTPUT_DIR has the
study (study.db), the validation questions, all runs, and the results: sweep.json and sweep.png.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import yaml
from measure_learning import evaluated, in_points, trained
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from transformers import TrainerCallback

from lab_utils import WorkshopError, exit_status
from lab_utils.config import ConfigError, RunConfig, load, short_name
from lab_utils.evaluation import Evaluation, PairedDifference, paired_bootstrap
from lab_utils.figures import plot_search
from lab_utils.runs import RunDirectory, write_atomically, written_whole
from lab_utils.tasks import load_task
from lab_utils.training.rl import TrainingDiverged

VALIDATION = 200  # at most so many validation questions
LEAST_FOR_IMPORTANCE = 4  # completed trials


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--recipe", default="countdown-grpo", help="its last stage, grpo or ppo, is searched")
    parser.add_argument("--hardware", default="auto", help="the tier (default: auto)")
    parser.add_argument("--search", action="append", default=[], metavar="KEY=LOW..HIGH[:log]|A,B,C",
                        help="a setting to search, such as grpo.beta=0.0..0.2; may be repeated")
    parser.add_argument("--trials", type=int, default=12, help="trials in all, those of earlier commands included")
    parser.add_argument("--fresh-seeds", type=int, default=3, help="seeds of the comparison at the end")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings",
                        help="change a setting of every run; may be repeated")
    parser.add_argument("--output-dir", type=Path, required=True)
    arguments = parser.parse_args(argv)
    if arguments.trials < 1 or arguments.fresh_seeds < 1:
        parser.error(f"--trials {arguments.trials} and --fresh-seeds {arguments.fresh_seeds} must be at least 1")
    return arguments


def config_of(arguments: argparse.Namespace, changes: Mapping[str, Any]) -> RunConfig:
    return load(arguments.recipe, arguments.hardware,
                [*arguments.settings, *(f"{key}={json.dumps(value)}" for key, value in changes.items())])


# --- The search space ------------------------------------------------------------------------------------------------


def default_search(config: RunConfig) -> list[str]:
    """Return what is searched without --search: a range around the recipe's value of each setting."""
    stage = config.stages[-1]
    settings = getattr(config, stage)
    groups = [str(size) for size in sorted({settings.num_generations, 4, 8, 16}) if settings.rollout_size % size == 0]
    formats = [f"rewards.{name}=0.0..{3 * weight:.2g}" for name, weight in config.rewards.items() if "format" in name]
    return [f"{stage}.learning_rate={settings.learning_rate / 3:.2g}..{3 * settings.learning_rate:.2g}:log",
            f"{stage}.beta=0.0..{2 * settings.beta or 0.1:.2g}",
            *([f"{stage}.num_generations={','.join(groups)}"] if len(groups) > 1 else []), *formats[:1]]


def parse_search(texts: Sequence[str], stage: str) -> dict[str, BaseDistribution]:
    """Return Optuna's distribution of every setting to search; raise ConfigError if one cannot be read."""
    space: dict[str, BaseDistribution] = {}
    for text in texts:
        key, _, values = text.partition("=")
        if key.split(".")[0] not in (stage, "rewards"):
            raise ConfigError(f"--search {text}: all trials start from one model, so only {stage}.KEY and "
                              "rewards.NAME can be searched. Change other settings with --set.")
        low, dots, high = values.removesuffix(":log").partition("..")
        try:
            if dots:
                ends = json.loads(low), json.loads(high)
                kind = IntDistribution if all(isinstance(end, int) for end in ends) else FloatDistribution
                space[key] = kind(*ends, log=values.endswith(":log"))
            else:
                space[key] = CategoricalDistribution(yaml.safe_load(f"[{values}]"))
            if space[key].single():
                raise ValueError("it has one value only")
        except (ValueError, TypeError, yaml.YAMLError) as error:
            raise ConfigError(f"--search {text} cannot be searched ({error}): write KEY=LOW..HIGH, KEY=LOW..HIGH:log "
                              "with LOW above 0, or KEY=A,B,C.") from None
    return space


def own_values(config: RunConfig, space: Mapping[str, BaseDistribution]) -> dict[str, Any] | None:
    """Return the recipe's own values of the searched settings, or None if the search space does not have them."""
    settings = {**config.model_dump(), "rewards": {short_name(name): weight for name, weight in config.rewards.items()}}
    found = {}
    for key, values in space.items():
        section, _, name = key.partition(".")
        found[key] = own = settings[section].get(short_name(name))
        choices = getattr(values, "choices", None)
        if own not in choices if choices else own is None or not values.low <= own <= values.high:
            return None
    return found


# --- Trials ----------------------------------------------------------------------------------------------------------


def without_test_questions(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Return the settings with which validation questions, taken out of the training rows, replace the test questions.

    Both splits are in FOLDER, with the column names of the original.
    """
    if not folder.exists():
        limit = config.task.train_limit
        rows = load_task(config.task).dataset("train", limit and limit + VALIDATION, config.task.source)
        if len(rows) < 10:
            raise ConfigError(f"task.source = {config.task.source!r} has {len(rows)} training rows, too few to take "
                              "validation questions out of them: give at least 10.")
        with written_whole(folder) as unfinished:
            unfinished.mkdir()
            for split, part in rows.train_test_split(min(VALIDATION, len(rows) // 5), seed=0).items():
                lines = [json.dumps({config.task.columns.get(name, name): value for name, value in row.items()
                                     if name != "prompt"}, ensure_ascii=False) for row in part]
                (unfinished / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    questions = len((folder / "test.jsonl").read_bytes().splitlines())
    return {"task.source": str(folder.resolve()), "task.test_limit": questions}


class ReportProbe(TrainerCallback):
    """Reports the accuracy on the probe to Optuna, and ends a trial that is below the median at the same step."""

    def __init__(self, trial: optuna.Trial):
        self.trial = trial

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "probe/accuracy" in logs:
            self.trial.report(logs["probe/accuracy"], state.global_step)
            if self.trial.should_prune():
                raise optuna.TrialPruned(f"at step {state.global_step} it is below the median of the other trials")


def open_study(path: Path, command: dict[str, Any], first: dict[str, Any] | None) -> optuna.Study:
    """Return the study in a SQLite file; a new one with its first trial waiting.

    Raises:
        ConfigError: the study was made by another command.
    """
    try:
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA schema_version")
    except sqlite3.Error as error:
        raise WorkshopError(f"{path} is damaged or not a study ({error}): remove it to search again.") from None
    # The probe at step 1 comes before the first update, and says nothing about a trial: no pruning there.
    study = optuna.create_study(storage=f"sqlite:///{path}", study_name="sweep", direction="maximize",
                                pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
                                load_if_exists=True)
    if "command" not in study.user_attrs:
        if first:
            study.enqueue_trial(first)
        study.set_user_attr("command", command)
    if changed := [name for name, value in study.user_attrs["command"].items() if command[name] != value]:
        there = study.user_attrs["command"][changed[0]]
        raise ConfigError(f"The search in {path} was started with {changed[0]} = {there}, not {command[changed[0]]}: "
                          "give the same command, or another --output-dir.")
    return study


def search(study: optuna.Study, space: dict[str, BaseDistribution], start: str, source: dict[str, Any],
           arguments: argparse.Namespace) -> None:
    """Run trials until the study has as many as are requested; first resume one that was interrupted."""
    while sum(trial.state.is_finished() for trial in study.trials) < arguments.trials:
        # A seed for each trial: a search that was resumed makes the trials that it would have made anyway.
        seed = 1000 * config_of(arguments, {}).seed + len(study.trials)
        study.sampler = optuna.samplers.TPESampler(n_startup_trials=5, seed=seed)
        interrupted = study.get_trials(states=[TrialState.RUNNING])
        trial = optuna.Trial(study, interrupted[0]._trial_id) if interrupted else study.ask(space)
        print(f"\nTrial {trial.number}: {trial.params}", flush=True)
        try:
            config = config_of(arguments, {**source, **trial.params})
            run = trained(arguments.output_dir / "trials" / f"{trial.number:03d}", config.stages[-1], config,
                          model=start, callbacks=[ReportProbe(trial)])
            shutil.rmtree(run.checkpoints_dir, ignore_errors=True)
            study.tell(trial, evaluated(run, config).accuracy)
        except optuna.TrialPruned as pruned:
            study.tell(trial, state=TrialState.PRUNED)
            print(f"Trial {trial.number} is pruned: {pruned}.")
        except (ConfigError, TrainingDiverged) as error:  # values that do not fit together, or too high a learning rate
            study.tell(trial, state=TrialState.FAIL)
            print(f"Trial {trial.number} has failed: {error}")


# --- The comparison with fresh seeds, and the result -----------------------------------------------------------------


def compare(settings_of: dict[str, dict[str, Any]], start: str, source: dict[str, Any],
            arguments: argparse.Namespace) -> dict[str, list[Evaluation]]:
    """Train each setting with every fresh seed; return its evaluations on the test questions, one for each seed."""
    config = config_of(arguments, {})
    return {name: [
        evaluated(trained(arguments.output_dir / "fresh" / f"seed-{seed}" / name.replace(" ", "-"), config.stages[-1],
                          config_of(arguments, {**source, **settings, "seed": seed}), model=start), config)
        for seed in range(config.seed + 1, config.seed + 1 + arguments.fresh_seeds)
    ] for name, settings in settings_of.items()}


def result_of(study: optuna.Study, fresh: dict[str, list[Evaluation]], validation_questions: int) -> dict[str, Any]:
    """Return the content of sweep.json. The last of `fresh` is the best setting."""
    importance = {}
    if len(study.get_trials(states=[TrialState.COMPLETE])) >= LEAST_FOR_IMPORTANCE:
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()  # fANOVA's would need scikit-learn
        importance = optuna.importance.get_param_importances(study, evaluator=evaluator)
    per_problem = [np.mean([one.per_problem for one in seeds], axis=0) for seeds in fresh.values()]
    return {
        **study.user_attrs["command"], "validation_questions": validation_questions,
        "test_questions": len(per_problem[0]), "best": study.best_trial.number,
        "trials": [{"trial": trial.number, "state": trial.state.name.lower(),
                    "accuracy": trial.value if trial.state == TrialState.COMPLETE else None, "settings": trial.params,
                    "probe": {str(step): trial.intermediate_values[step] for step in sorted(trial.intermediate_values)}}
                   for trial in study.trials],
        "importance": importance,
        "fresh": {name: [one.accuracy for one in seeds] for name, seeds in fresh.items()},
        "best_minus_default": paired_bootstrap(per_problem[0], per_problem[-1])._asdict(),
    }


def print_result(result: dict[str, Any]) -> None:
    trials = pd.json_normalize(result["trials"]).rename(columns=lambda name: name.removeprefix("settings."))
    print(f"\n{trials.to_string(index=False, na_rep='', float_format='{:.3g}'.format)}\n")
    best = result["trials"][result["best"]]
    print(f"Best of {len(trials)} trials: trial {best['trial']}, {best['accuracy']:.1%} of "
          f"{result['validation_questions']} validation questions.")
    print(f"With fresh seeds, on {result['test_questions']} test questions:")
    for name, seeds in result["fresh"].items():
        print(f"    {name}: {np.mean(seeds):.1%} ({', '.join(f'{accuracy:.1%}' for accuracy in seeds)})")
    print(f"    best − default: {in_points(PairedDifference(**result['best_minus_default']))}")


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    config = config_of(arguments, {})
    stage = config.stages[-1]
    if stage == "sft":
        raise ConfigError(f"stages = {config.stages} end with sft, and settings of grpo or ppo are searched: choose a "
                          "recipe or --set stages=[sft,grpo].")
    texts = arguments.search or default_search(config)
    space = parse_search(texts, stage)
    for key, values in space.items():  # an end that cannot work is an error now, not in the middle of the search
        for value in getattr(values, "choices", None) or (values.low, values.high):
            config_of(arguments, {key: value})
    print("Searching", *texts, sep="\n    --search ")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder, first = arguments.output_dir, own_values(config, space)
    with RunDirectory(folder).locked():
        command = {"recipe": arguments.recipe, "hardware": config.hardware, "set": arguments.settings, "search": texts}
        study = open_study(folder / "study.db", command, first)
        source = without_test_questions(config, folder / "validation")
        start = config.model.name
        if "sft" in config.stages:
            start = str(trained(folder / "sft", "sft", config_of(arguments, source)).model_dir)
        search(study, space, start, source, arguments)
        if not study.get_trials(states=[TrialState.COMPLETE]):
            raise WorkshopError(f"None of {len(study.trials)} trials was completed: read what failed above, and search "
                                "other ranges in another --output-dir.")
        best = study.best_trial
        settings_of = {"default": {}} | ({f"trial {best.number}": best.params} if best.params != first else {})
        result = result_of(study, compare(settings_of, start, source, arguments), source["task.test_limit"])
    print_result(result)
    write_atomically(folder / "sweep.json", json.dumps(result, indent=1) + "\n")
    plot_search(result, folder / "sweep.png")
    print(f"Written: {folder / 'sweep.json'} and {folder / 'sweep.png'}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
