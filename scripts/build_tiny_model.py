"""Build the tiny base model that ships with the workshop: about a million parameters, from synthetic text alone.

    python scripts/build_tiny_model.py --output-dir lab_utils/models/tiny-qwen2

It learns to calculate with two numbers up to 100, to try and check Countdown attempts, and to solve templated word
problems, as plain text. It never sees a chat template, the tags <think> and <answer>, or a problem of a test split. Two
quiet CPU cores take about 20 minutes. The same seed gives the same model on the same machine and library versions.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from trl.chat_template_utils import qwen2_5_chat_template

from lab_utils import exit_status
from lab_utils.tasks import load_task
from lab_utils.tasks.countdown import LARGEST_RESULT, demonstrate, generate_row
from lab_utils.tasks.expressions import evaluate
from lab_utils.tasks.gsm8k import worked_steps
from lab_utils.tasks.word_problems import generate_problem

WHOLE_TOKENS = [" + ", " - ", " * ", " / ", " = ", ", ", "<think>", "</think>", "<answer>", "</answer>", "<reasoning>",
                "</reasoning>"]
# Qwen's own pre-tokenizer: transformers applies it to every "qwen2" checkpoint, so the BPE must be trained under it.
QWEN_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
                r"\s+(?!\S)|\s+")


@dataclass(frozen=True)
class Stage:
    """A stage of training; `hit_rates` and `give_up_rate` shape its Countdown documents.

    An attempt is correct with one of the `hit_rates`, drawn per document. A wrong one ends the document with the
    `give_up_rate`.
    """

    hit_rates: tuple[float, ...]
    give_up_rate: float
    documents: int
    row_length: int  # tokens in a packed row
    batch_size: int  # rows in a step
    steps: int
    learning_rate: float


# First short texts with many correct attempts teach to calculate and what leads to the target. Then come long searches,
# so that the tenth attempt is as sound as the first. Without them RL makes completions long and their sums wrong.
STAGES = (
    Stage(hit_rates=(0.5,), give_up_rate=0.7, documents=200_000, row_length=128, batch_size=64, steps=2600,
          learning_rate=3e-3),
    Stage(hit_rates=(0.1, 0.5), give_up_rate=0.1, documents=60_000, row_length=192, batch_size=43, steps=700,
          learning_rate=1e-3),
)


def countdown_document(rng: random.Random, stage: Stage) -> str:
    """Return a Countdown problem, attempts with their checks, and the expression of the last attempt."""
    row = generate_row("train", rng)
    tries, expression = demonstrate(row, rng, rng.choice(stage.hit_rates), stage.give_up_rate)
    return f"{load_task('countdown').prompt(row)[-1]['content']}\n{tries}\n{expression}"


def word_problem_document(rng: random.Random, stage: Stage) -> str:
    """Return a word problem with its worked solution or (half of the time) with only the answer."""
    problem = generate_problem("train", rng)
    steps = worked_steps(problem.solution) if rng.random() < 0.5 else f"The answer is {problem.answer}."
    return f"{problem.question}\n{steps}\n#### {problem.answer}"


def two_number_facts() -> list[str]:
    """Return every a + b, a - b, a * b, a / b over 1..100 whose result is a whole number in 1..100."""
    facts = []
    for a in range(1, LARGEST_RESULT + 1):
        for b in range(1, LARGEST_RESULT + 1):
            for operator in "+-*/":
                value = evaluate(f"{a} {operator} {b}")
                if value.denominator == 1 and 1 <= value <= LARGEST_RESULT:
                    facts.append(f"{a} {operator} {b} = {value}")
    return facts


def make_documents(rng: random.Random, stage: Stage) -> list[str]:
    """Mix Countdown, word problems and arithmetic drills."""
    facts = two_number_facts()
    makers = [countdown_document, word_problem_document, lambda rng, stage: "\n".join(rng.sample(facts, 8))]
    chosen = rng.choices(makers, weights=[0.6, 0.3, 0.1], k=stage.documents)
    return [make(rng, stage) for make in tqdm(chosen, desc="documents", mininterval=5)]


def build_tokenizer(documents: list[str]) -> Qwen2Tokenizer:
    """Train a BPE under Qwen's pre-tokenizer; whole numbers, operators and tags are tokens of their own."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN_PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    bpe.decoder = decoders.ByteLevel()
    tasks = [load_task("countdown"), *(load_task("gsm8k", name) for name in ("reasoning", "think", "hash"))]
    row = {"question": "", "nums": [1, 2, 3], "target": 6}
    prompts = [message["content"] for task in tasks for message in task.prompt(row)]
    roles = ["system", "user", "assistant"]  # of the chat template
    trainer = trainers.BpeTrainer(vocab_size=1024, min_frequency=20, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(documents + (prompts + roles) * 200, trainer)
    learned = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(vocab=learned["vocab"], merges=[tuple(merge) for merge in learned["merges"]],
                               unk_token=None, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=True)
                          for text in ("<|im_start|>", "<|im_end|>")], special_tokens=True)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in WHOLE_TOKENS])
    tokenizer.add_tokens([AddedToken(str(number), normalized=False, single_word=True)
                          for number in range(LARGEST_RESULT + 1)])
    tokenizer.chat_template = qwen2_5_chat_template
    tokenizer.model_max_length = 512
    return tokenizer


def pack(tokenizer: Qwen2Tokenizer, documents: list[str], row_length: int) -> torch.Tensor:
    """Pack documents, each ended by the end-of-text token, into rows of equal length; padding (-100) fills the rest."""
    rows, row = [], []
    for ids in tokenizer(documents, add_special_tokens=False)["input_ids"]:
        ids = ids[: row_length - 1] + [tokenizer.eos_token_id]
        if len(row) + len(ids) > row_length:
            rows.append(row + [-100] * (row_length - len(row)))
            row = []
        row = row + ids
    return torch.tensor(rows)


def arithmetic_accuracy(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer) -> float:
    """Return the share of all two-number facts that the model completes correctly (greedy, after a line break)."""
    facts = two_number_facts()
    prompts, results = zip(*(fact.rsplit(" = ", 1) for fact in facts), strict=True)
    ids = torch.tensor(tokenizer(["\n" + prompt + " = " for prompt in prompts])["input_ids"])
    with torch.no_grad():
        predicted = torch.cat([model(input_ids=chunk).logits[:, -1].argmax(-1) for chunk in ids.split(2048)])
    wanted = torch.tensor(tokenizer(list(results))["input_ids"])[:, 0]
    return (predicted == wanted).float().mean().item()


def train(model: Qwen2ForCausalLM, rows: torch.Tensor, stage: Stage, seed: int) -> None:
    """Train on next-token prediction with AdamW; the rate warms up, stays, and falls to zero in the last third."""
    generator = torch.Generator().manual_seed(seed)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
                                  lr=stage.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, 1.0, max(0.0, 3 * (1 - step / stage.steps))))
    model.train()
    progress = tqdm(range(stage.steps), desc="training", mininterval=5)
    order = torch.empty(0, dtype=torch.long)
    for _ in progress:
        if len(order) < stage.batch_size:
            order = torch.randperm(len(rows), generator=generator)
        batch, order = rows[order[: stage.batch_size]], order[stage.batch_size :]
        loss = model(input_ids=batch.clamp(min=0), labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()


def new_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """Return an untrained model of about a million parameters in Qwen2's architecture."""
    return Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=448, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, use_sliding_window=False,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--output-dir", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of data and weights (default %(default)s)")
    parser.add_argument("--start", type=Path, help="the folder of a finished stage 1: run only stage 2")
    options = parser.parse_args()

    started = time.perf_counter()
    torch.manual_seed(options.seed)
    folder = options.start
    for number, stage in list(enumerate(STAGES, 1))[1 if options.start else 0:]:
        documents = make_documents(random.Random(f"{options.seed} stage {number}"), stage)
        if folder is None:
            tokenizer = build_tokenizer(documents[:20_000])
            model = new_model(tokenizer)
        else:
            tokenizer = Qwen2Tokenizer.from_pretrained(folder)
            model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
        train(model, pack(tokenizer, documents, stage.row_length), stage, options.seed + number)
        folder = options.output_dir if stage is STAGES[-1] else options.output_dir.with_name("stage-1")
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        print(f"stage {number}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens; correct two-number "
              f"sums (in bfloat16): {arithmetic_accuracy(model.float(), tokenizer):.4f}; saved to {folder} after "
              f"{time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(exit_status(main))
