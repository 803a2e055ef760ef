"""Ask the base model and the trained model the same question, side by side; or any other model.

    python scripts/chat.py outputs/countdown-grpo/grpo
    python scripts/chat.py outputs/gsm8k-grpo/grpo --question "Anna has 3 pens and buys 4 more. How many does she have?"
    python scripts/chat.py outputs/countdown-grpo/grpo --server http://127.0.0.1:8000     # started by scripts/serve.py
    python scripts/chat.py Qwen/Qwen2.5-0.5B-Instruct --recipe gsm8k-grpo --multi-turn   # or a model folder, an adapter

For Countdown type the numbers and, last, the target: 9 14 20 25. Every answer is appended to a JSON Lines file: query,
model, reasoning, answer and the whole response.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from lab_utils import exit_status
from lab_utils.config import RunConfig
from lab_utils.models import adapter_base, load_model, load_tokenizer
from lab_utils.runs import config_of, model_of
from lab_utils.sampling.local import encode_prompts, sample
from lab_utils.sharing.chat import (
    QuestionError,
    append_jsonl,
    as_prompt,
    chat_records,
    conversation,
    in_tiny_model_range,
    tiny_model_range,
)
from lab_utils.sharing.serving import ask, served_models
from lab_utils.tasks import load_task
from lab_utils.teaching.inspection import side_by_side

Model = Callable[[list[dict[str, str]]], str]  # prompt -> response


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("model", help="the run directory of a trained model; or, with --recipe, a model folder, an "
                        "adapter, a Hub id or 'tiny'")
    parser.add_argument("--recipe", help="task and response format for a model without a run directory: a recipe's "
                        "name or your own .yaml file")
    parser.add_argument("--hardware", default="auto", help="with --recipe: the hardware tier; default: auto")
    parser.add_argument("--base", help="the model to compare with; default: the base model of the run")
    parser.add_argument("--multi-turn", action="store_true", help="let each question continue the conversation")
    parser.add_argument("--server", metavar="URL", help="ask a server that scripts/serve.py started instead of loading "
                        "the trained model (and the base model, if the server has it)")
    parser.add_argument("--question", action="append", help="ask this and exit; may be repeated")
    parser.add_argument("--output", type=Path, default=Path("chat.jsonl"),
                        help="file to append to; default: chat.jsonl")
    parser.add_argument("--temperature", type=float, help="0: always the most likely token; default: the evaluation's")
    parser.add_argument("--max-new-tokens", type=int, help="default: that of the run's evaluation")
    return parser.parse_args(argv)


def questions(given: list[str] | None):
    """Yield the questions from the command line, or those that the user types until an empty line."""
    if given:
        yield from given
        return
    while True:
        try:
            query = input("\nquestion (empty to exit)> ").strip()
        except EOFError:
            return
        if not query:
            return
        yield query


def load_local(name: str, config: RunConfig, max_new_tokens: int, temperature: float) -> Model:
    model, tokenizer = load_model(model_of(name), config.model), load_tokenizer(model_of(name))

    def respond(prompt: list[dict[str, str]]) -> str:
        [ids] = encode_prompts(tokenizer, [prompt])
        tokens, most = len(ids), getattr(model.config, "max_position_embeddings", None)
        if most is not None and tokens + max_new_tokens > most:
            raise QuestionError(f"The conversation has {tokens} tokens, and with a response of up to {max_new_tokens} "
                                f"it does not fit into the {most} of {name}: start a new one, or lower "
                                "--max-new-tokens.")
        [[completion]] = sample(model, tokenizer, [prompt], temperature=temperature, max_new_tokens=max_new_tokens)
        return completion.text

    return respond


def main(argv: list[str] | None = None) -> None:
    options = parse_arguments(argv)
    config = config_of(options.model, options.recipe, options.hardware)
    task = load_task(config.task)
    base = options.base or (config.model.name if config.model.name != options.model else adapter_base(options.model))
    names = {**({"base": base} if base else {}), "trained": options.model}
    temperature = config.evaluation.temperature if options.temperature is None else options.temperature
    max_new_tokens = options.max_new_tokens or config.evaluation.max_new_tokens
    append_jsonl(options.output, [])  # a file that cannot be written is reported before models are loaded
    on_server = set(served_models(options.server)) if options.server else set()
    if options.base:
        on_server -= {"base"}
    models: dict[str, Model] = {}
    histories: dict[str, list[dict[str, str]]] = {label: [] for label in names}
    for label, name in names.items():
        if label in on_server:
            models[label] = lambda prompt, label=label: ask(
                options.server, prompt, model=label, max_new_tokens=max_new_tokens, temperature=temperature)
        else:
            models[label] = load_local(name, config, max_new_tokens, temperature)
    for query in questions(options.question):
        try:
            prompts = {label: conversation(history, as_prompt(task, query)) for label, history in histories.items()}
            responses = {label: respond(prompts[label]) for label, respond in models.items()}
        except QuestionError as error:
            if options.question:
                raise
            print(error)
            continue
        if config.model.name == "tiny" and config.task.source == "synthetic" and not in_tiny_model_range(task, query):
            print(f"Note: the tiny model knows only {tiny_model_range(task)}. Expect a wrong answer.")
        print("\n" + side_by_side(responses, shutil.get_terminal_size((120, 24)).columns))
        if options.multi_turn:
            histories = {label: [*prompts[label], {"role": "assistant", "content": response}]
                         for label, response in responses.items()}
        by_name = {names[label]: response for label, response in responses.items()}
        append_jsonl(options.output, chat_records(task, query, by_name))
    print(f"\nappended to {options.output}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
