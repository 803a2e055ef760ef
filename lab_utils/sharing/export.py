"""Sharing a trained model: one folder with weights, tokenizer and model card, a zip file of it, the Hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, HfApi, ModelCardData, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from ..config import RunConfig
from ..evaluation import Evaluation
from ..models import adapter_base, export_model
from ..runs import RunDirectory
from ..tasks import load_task

SYNTHETIC = {"countdown": "synthetic Countdown problems", "gsm8k": "synthetic word problems in GSM8K's format"}


class ExportError(ValueError):
    """A model that cannot be exported or pushed; the message says what to do."""


def export_run(run: RunDirectory, folder: str | Path) -> Path:
    """Write a run's model as a folder that transformers and vLLM load by themselves, with a model card.

    Raises:
        ExportError: the run has no trained model, or `folder` holds something already.
        ModelLoadError, RunDirectoryError: the model or the configuration cannot be read.
    """
    folder, config = Path(folder), run.config()
    if not run.model_dir.is_dir():
        raise ExportError(f"{run.path} has no trained model yet: train it, or name the run directory of one stage, "
                          "such as OUTPUT_DIR/grpo.")
    if folder.exists() and any(folder.iterdir()):
        raise ExportError(f"{folder} is not empty, and an export never overwrites: remove it or choose another folder.")
    export_model(run.model_dir, folder, config.model)
    (folder / "README.md").write_text(model_card(run), encoding="utf-8")
    return folder


def zip_folder(folder: str | Path) -> Path:
    """Pack a folder into FOLDER.zip beside it."""
    folder = Path(folder).resolve()
    return Path(shutil.make_archive(str(folder), "zip", folder.parent, folder.name))


# --- The model card --------------------------------------------------------------------------------------------------


def model_card(run: RunDirectory) -> str:
    """Say what a model is: data, recipe, metrics and limits, from what the run directory holds, in the Hub's format.

    Without an eval.json the card says that nothing was measured.
    """
    config = run.config()
    evaluation = Evaluation.load(run.evaluation_path) if run.evaluation_path.exists() else None
    stage = run.path.name if run.path.name in config.stages else config.stages[-1]
    name = config.recipe if config.recipe.endswith(stage) else f"{config.recipe}-{stage}"
    sections = [
        f"---\n{_metadata(config, evaluation, name, stage)}\n---",
        f"# {name}",
        f"{_base(config)}, fine-tuned by {_stages(config, stage)} on {_data(config)}. It answers in the format "
        f"{_format(config)} and was made in a workshop, to be looked at rather than relied on.",
        f"## Data\n\nThe training split of {_data(config)}{_limit(config.task.train_limit)}. Every problem is a chat "
        f"of two messages, as here; ask it the same way, with the tokenizer's chat template:\n\n{_example(config)}",
        f"## Recipe\n\n{_recipe(run, config, stage)}",
        f"## Metrics\n\n{_metrics(evaluation)}",
        f"## Limits\n\n{_limits(config, evaluation)}",
    ]
    return "\n\n".join(sections) + "\n"


def _base(config: RunConfig) -> str:
    if config.model.name == "tiny":
        return "The workshop's tiny Qwen2-architecture model (a million parameters)"
    return config.model.name if config.model.name.count("/") == 1 else Path(config.model.name).name  # no local paths


def _stages(config: RunConfig, stage: str) -> str:
    return " and then ".join(name.upper() for name in config.stages[: config.stages.index(stage) + 1])


def _data(config: RunConfig) -> str:
    if config.task.source == "synthetic":
        return SYNTHETIC[config.task.name]
    return load_task(config.task.name).hub_id if config.task.source == "hub" else "a local data set"


def _limit(limit: int | None) -> str:
    return "" if limit is None else f", at most {limit:,} problems"


def _format(config: RunConfig) -> str:
    return {"think": "`<think>…</think><answer>…</answer>`", "hash": "of a worked solution that ends `#### N`",
            "reasoning": "`<reasoning>…</reasoning><answer>…</answer>`"}[config.task.response_format]


def _example(config: RunConfig) -> str:
    task = load_task(config.task.name, config.task.response_format)
    row = {"nums": [3, 7, 25], "target": 46} if task.name == "countdown" else {
        "question": "Anna has 3 pens and buys 4 more. How many pens has she?"}
    return "\n\n".join(f"> **{message['role']}:** {message['content']}".replace("\n", "\n> ")
                       for message in task.prompt(row))


def _recipe(run: RunDirectory, config: RunConfig, stage: str) -> str:
    settings = yaml.safe_dump(config.model_dump()[stage], sort_keys=False)
    rewards = " + ".join(f"{weight:g} · {name}" for name, weight in config.rewards.items())
    trained = "a LoRA adapter, merged into the base model" if adapter_base(str(run.model_dir)) else "all weights"
    trained += ", on a base quantised to 4 bits" if config.model.load_in_4bit else ""
    packages = {name: version for name, version in run.environment()["packages"].items() if version}
    lines = [f"- recipe `{config.recipe}` on the hardware tier `{config.hardware}`, seed {config.seed}",
             f"- trained: {trained}",
             *([f"- reward: {rewards}"] if stage != "sft" else []),
             "- " + ", ".join(f"{name} {version}" for name, version in packages.items()),
             f"\n<details><summary>Settings of the stage {stage}</summary>\n\n```yaml\n{settings}```\n\n</details>"]
    return "\n".join(lines)


def _metrics(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return "Nothing was measured: this run was not evaluated."
    summary, how = evaluation.summary(), evaluation.settings
    low, high = summary["accuracy_interval"]
    k, passed = list(summary["pass_at"].items())[-1]
    rows = [("accuracy (right and in the format)", f"{summary['accuracy']:.1%} [{low:.1%}, {high:.1%}]"),
            ("accuracy, answer found anywhere", f"{summary['accuracy_lenient']:.1%}"),
            ("response format kept", f"{summary['format_rate']:.1%}"),
            (f"cut off at {how['max_new_tokens']} tokens", f"{summary['truncation_rate']:.1%}"),
            ("tokens a response", f"{summary['mean_length']:.0f}"),
            *([(f"pass@{k}", f"{passed:.1%}")] if int(k) > 1 else [])]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (f"{summary['questions']} problems of the test split × {summary['num_samples']} samples at temperature "
            f"{how['temperature']:g}; 95% interval.\n\n| measure | value |\n|---|---|\n{table}")


def _limits(config: RunConfig, evaluation: Evaluation | None) -> str:
    only = ", and measured on nothing else" if evaluation else ""
    limits = [f"Trained for one kind of problem and one prompt{only}.",
              "The reward looks at the answer. A right answer can come with wrong steps."]
    if config.task.source == "synthetic":
        limits.append("The problems are generated, with a small vocabulary. No figure here carries over to real text.")
    if config.hardware == "smoke":
        limits.append("Trained for a handful of steps by a test: it has learned nothing.")
    limits.append("One seed. Not trained to be safe or truthful; it will answer anything in the same format.")
    return "\n".join(f"- {limit}" for limit in limits)


def _metadata(config: RunConfig, evaluation: Evaluation | None, name: str, stage: str) -> str:
    on_hub = config.task.source == "hub"
    results = None
    if evaluation is not None:
        kind = _data(config) if on_hub else config.task.source
        results = [EvalResult(task_type="text-generation", dataset_type=kind, dataset_name=_data(config),
                              dataset_split="test", metric_type="accuracy", metric_value=round(evaluation.accuracy, 4))]
    data = ModelCardData(
        language="en", library_name="transformers", pipeline_tag="text-generation",
        tags=["trl", stage, config.task.name],
        license="mit" if config.model.name == "tiny" else None,  # otherwise the base model's, whose page has it
        base_model=config.model.name if config.model.name.count("/") == 1 else None,
        datasets=_data(config) if on_hub else None, model_name=name, eval_results=results)
    return data.to_yaml()


# --- The Hub ---------------------------------------------------------------------------------------------------------


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = True, dry_run: bool = False) -> str:
    """Upload an exported folder to the Hub, or say what would be uploaded.

    The token comes from HF_TOKEN or `hf auth login`. No message holds it.

    Returns:
        What was done, or would be, in words.

    Raises:
        ExportError: a name that the Hub does not take, no model in the folder, no token, or a refusal by the Hub.
    """
    folder, token = Path(folder), get_token()
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ExportError(f"{repo_id!r} is no name of a Hub repository: {error}") from None
    if repo_id.count("/") != 1:
        raise ExportError(f"{repo_id!r} must be of the form YOUR-NAME/MODEL-NAME.")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not any(path.suffix == ".safetensors" for path in files):
        raise ExportError(f"There is no model in {folder}: export a run to it first.")
    listed = [f"  {path.relative_to(folder)!s:<28}{path.stat().st_size / 1e3:>12,.1f} kB" for path in files]
    kind = "private" if private else "public"
    if dry_run:
        found = "a token was found" if token else "no token was found: run `hf auth login` first, or set HF_TOKEN"
        address = f"https://huggingface.co/{repo_id}"
        return "\n".join([f"would upload to the {kind} repository {address} ({found}):", *listed])
    if not token:
        raise ExportError("There is no token for the Hub. Run `hf auth login`, or set HF_TOKEN to one that may write.")
    try:
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload from the RL workshop")
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().replace(token, "(token)")
        raise ExportError(f"The Hub did not take {repo_id}: {reason[:500]}") from None  # the cause might show the token
    return "\n".join([f"uploaded to the {kind} repository https://huggingface.co/{repo_id}:", *listed])


def describe(folder: str | Path) -> list[dict[str, Any]]:
    """The files of a model folder or a checkpoint: name, size in kB, and what each is for."""
    return [{"file": path.name, "kB": round(path.stat().st_size / 1e3, 1), "what it is for": FILES.get(path.name, "")}
            for path in sorted(Path(folder).iterdir()) if path.is_file()]


FILES = {
    "config.json": "the architecture: layers, widths, heads, vocabulary, dtype",
    "generation_config.json": "how to sample by default, and the tokens that end a response",
    "model.safetensors": "the weights: a header that names every tensor, then their bytes, and nothing that could run",
    "adapter_config.json": "LoRA: which base model, which layers, rank and alpha",
    "adapter_model.safetensors": "LoRA: the two small matrices of every adapted layer",
    "tokenizer.json": "the vocabulary and how text is cut into tokens",
    "tokenizer_config.json": "special tokens, such as the one that ends a turn",
    "chat_template.jinja": "how messages become one text; a prompt without it is foreign to the model",
    "value_head.safetensors": "PPO's critic; the model does not need it",
    "optimizer.pt": "Adam's two running means of every trained weight: needed to resume, not to use the model",
    "scheduler.pt": "where the learning rate stands",
    "scaler.pt": "float16 only: how the loss is scaled",
    "rng_state.pth": "the state of the random numbers, so that a resumed run draws the same ones",
    "trainer_state.json": "the step, and everything logged so far",
    "training_args.bin": "the Trainer's arguments, as a Python pickle: never load one from strangers, it can run code",
    "README.md": "the model card",
}
