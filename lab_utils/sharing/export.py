"""Sharing a trained model: one folder with weights, tokenizer and model card, a zip file of it, the Hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from .. import WorkshopError
from ..config import ModelSettings
from ..evaluation import Evaluation
from ..models import adapter_base, export_model
from ..runs import RunDirectory, written_whole
from ..tasks import load_task
from ..tasks.sources import on_hub
from .chat import as_prompt

TINY = "The workshop's tiny Qwen2-architecture model (a million parameters)"
SYNTHETIC = {"countdown": "synthetic Countdown problems", "gsm8k": "synthetic word problems in GSM8K's format"}
FORMATS = {"think": "`<think>…</think><answer>…</answer>`", "hash": "of a worked solution that ends with `#### N`",
           "reasoning": "`<reasoning>…</reasoning><answer>…</answer>`"}


EXAMPLES = {"countdown": "9 14 20 25", "gsm8k": "Anna has 3 pens and buys 4 more. How many pens does she have now?"}


class ExportError(WorkshopError):
    """A model that cannot be exported or pushed; the message says what to do."""


def export_run(run: RunDirectory, folder: str | Path) -> Path:
    """Write a run's model, with a model card, as a folder that transformers and vLLM load without the workshop.

    Raises:
        ExportError: the run has no trained model, or `folder` is not empty or cannot be written.
        ModelLoadError, RunDirectoryError: the model or the configuration cannot be read.
    """
    config = run.config()
    if not run.has_model:
        raise ExportError(f"{run.path} has no trained model: train it, or give the run directory of one stage, such as "
                          "OUTPUT_DIR/grpo.")
    return write_folder(run.model_dir, config.model, folder, model_card(run))


def write_folder(model: str | Path, settings: ModelSettings, folder: str | Path, card: str | None = None) -> Path:
    """Write any model, with its adapter merged, and a model card if there is one; errors as in `export_run`."""
    folder = Path(folder)
    if folder.is_file() or folder.is_dir() and any(folder.iterdir()):
        raise ExportError(f"{folder} is not empty, and an export never overwrites: remove it or choose another folder.")
    try:
        with written_whole(folder) as whole:
            export_model(model, whole, settings)
            if card:
                (whole / "README.md").write_text(card, encoding="utf-8")
    except OSError as error:
        raise ExportError(f"Cannot write to {folder} ({error.strerror}): choose a writable folder with free "
                          "space.") from None
    return folder


def zip_folder(folder: str | Path) -> Path:
    """Pack a folder into FOLDER.zip beside it."""
    folder = Path(folder).resolve()
    return Path(shutil.make_archive(str(folder), "zip", folder.parent, folder.name))


def model_card(run: RunDirectory) -> str:
    """Describe a model from its run directory, in the Hub's format: data, recipe, metrics and limits.

    Without an eval.json the card reports no metrics.
    """
    config = run.config()
    task, source = load_task(config.task), config.task.source
    named = on_hub(source)
    hub_id = task.hub_id if source == "hub" else named and named["id"]
    stage = run.path.name if run.path.name in config.stages else config.stages[-1]
    stages = config.stages[: config.stages.index(stage) + 1]
    name = config.recipe if config.recipe.endswith(stage) else f"{config.recipe}-{stage}"
    tiny, base_on_hub = config.model.name == "tiny", config.model.name.count("/") == 1
    data = hub_id or (SYNTHETIC.get(task.name) if source == "synthetic" else "a local dataset")  # no local paths
    evaluation = Evaluation.load(run.evaluation_path) if run.evaluation_path.exists() else None
    kind = hub_id or ("synthetic" if source == "synthetic" else "local")
    results = evaluation and [EvalResult(
        task_type="text-generation", dataset_type=kind, dataset_name=data,
        dataset_split="test", metric_type="accuracy", metric_value=round(evaluation.accuracy, 4))]
    metadata = ModelCardData(
        language="en", library_name="transformers", pipeline_tag="text-generation", tags=["trl", stage, task.name],
        license="mit" if tiny and source == "synthetic" else None,  # otherwise up to the base model and the data
        base_model=config.model.name if base_on_hub else None, datasets=hub_id,
        model_name=name, eval_results=results)
    card = ModelCard.from_template(
        metadata,
        template_str=Path(__file__).with_name("model_card.md.jinja").read_text(encoding="utf-8"),
        name=name,
        config=config,
        stage=stage,
        stages=" and then ".join(name.upper() for name in stages),
        base=TINY if tiny else config.model.name if base_on_hub else Path(config.model.name).name,  # no local paths
        data=data,
        response_format=FORMATS[task.response_format],
        example=as_prompt(task, EXAMPLES.get(task.name, "…")),
        is_adapter=adapter_base(str(run.model_dir)) is not None,
        packages=", ".join(f"{name} {version}" for name, version in run.environment()["packages"].items() if version),
        settings=yaml.safe_dump(config.model_dump()[stage], sort_keys=False),
        evaluation=evaluation and evaluation.summary(),
        sampling=evaluation and evaluation.settings,
    )
    return f"{card}\n"


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = True, dry_run: bool = False) -> str:
    """Upload an exported folder to the Hub and return a report; with `dry_run`, only report what would be uploaded.

    The token comes from HF_TOKEN or `hf auth login`. No message shows it.

    Raises:
        ExportError: the Hub does not allow the name, the folder has no model, there is no token, or the Hub refuses.
    """
    folder, token = Path(folder), get_token()
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ExportError(f"{repo_id!r} is not a valid name of a Hub repository ({error}): use "
                          "YOUR-NAME/MODEL-NAME.") from None
    if repo_id.count("/") != 1:
        raise ExportError(f"{repo_id!r} is not a Hub repository: use YOUR-NAME/MODEL-NAME.")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not any(path.suffix == ".safetensors" for path in files):
        raise ExportError(f"There is no model in {folder}: export a run to it first.")
    listed = [f"  {path.relative_to(folder)!s:<28}{path.stat().st_size / 1e3:>12,.1f} kB" for path in files]
    target = f"the {'private' if private else 'public'} repository https://huggingface.co/{repo_id}"
    if dry_run:
        found = "a token was found" if token else "no token was found: run `hf auth login` first, or set HF_TOKEN"
        return "\n".join([f"would upload to {target} ({found}):", *listed])
    if not token:
        raise ExportError("There is no token for the Hub: run `hf auth login`, or set HF_TOKEN to a token with write "
                          "access.")
    try:
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload from the RL workshop")
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().replace(token, "(token)")
        raise ExportError(f"The Hub refused {repo_id}: {reason[:500]}") from None  # the cause might show the token
    return "\n".join([f"uploaded to {target}:", *listed])


def describe(folder: str | Path) -> list[dict[str, Any]]:
    """List the files of a model folder or a checkpoint: name, size in kB, and what each is for."""
    return [{"file": path.name, "kB": round(path.stat().st_size / 1e3, 1), "what it is for": FILES.get(path.name, "")}
            for path in sorted(Path(folder).iterdir()) if path.is_file()]


FILES = {
    "config.json": "the architecture: layers, widths, heads, vocabulary, dtype",
    "generation_config.json": "the default sampling settings, and the tokens that end a response",
    "model.safetensors": "the weights: a header that names every tensor, then their bytes; no code that could run",
    "adapter_config.json": "LoRA: which base model, which layers, rank and alpha",
    "adapter_model.safetensors": "LoRA: the two small matrices of every adapted layer",
    "tokenizer.json": "the vocabulary and how text is cut into tokens",
    "tokenizer_config.json": "special tokens, such as the one that ends a turn",
    "chat_template.jinja": "how messages become one text; the model knows no other form of prompt",
    "value_head.safetensors": "PPO's critic; the model does not need it",
    "optimizer.pt": "Adam's two running means of every trained weight: needed to resume, not to use the model",
    "scheduler.pt": "the position in the learning rate's schedule",
    "scaler.pt": "float16 only: how the loss is scaled",
    "rng_state.pth": "the state of the random number generators, so that a resumed run draws the same ones",
    "trainer_state.json": "the step, and everything logged so far",
    "training_args.bin": "the Trainer's arguments, a Python pickle that can run code: load only files that you trust",
    "README.md": "the model card",
}
