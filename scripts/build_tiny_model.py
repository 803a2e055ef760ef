"""Build the tiny base model that ships with the workshop: about a million parameters, from synthetic text alone.

    python scripts/build_tiny_model.py --output-dir lab_utils/models/tiny-qwen2

It learns to calculate with two numbers up to 100, to try and check Countdown attempts, and to solve templated word
problems, as plain text. It never sees a prompt or a response in the chat format, a search longer than those of the SFT
warm-up, or a problem of a test split. It took 21 minutes on two cores, a quarter of them beside other work. The same
seed gives the same model with the same machine and library versions; one thread and two gave the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

from lab_utils import exit_status  # before torch: it says how torch's threads wait

# isort: split
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from trl.chat_template_utils import qwen2_5_chat_template

from lab_utils.tasks import load_task
from lab_utils.tasks.countdown import LARGEST_RESULT, all_attempts, demonstrate, generate_row
from lab_utils.tasks.expressions import evaluate

WHOLE_TOKENS = [" + ", " - ", " * ", " / ", " = ", ", ", "<think>", "</think>", "<answer>", "</answer>", "<reasoning>",
                "</reasoning>"]
ROLES = ["system", "user", "assistant"]  # of the chat template
# Qwen's own pre-tokenizer: transformers applies it to every "qwen2" checkpoint, so the BPE must be trained under it.
QWEN_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
                r"\s+(?!\S)|\s+")


DOCUMENTS = 200_000
ROW_LENGTH = 256  # tokens
BATCH_SIZE = 24  # rows in a step
STEPS = 1900
LEARNING_RATE = 3e-3
LINES = 8  # in the longest list
# Countdown and word problems are what the warm-up demonstrates, in its proportions, but as plain text. Lists and checks
# make long texts sound (the eighth sum as correct as the first) without showing a search: that is left to RL. Markup
# makes tags and turn marks known tokens: a warm-up that had to move them far would damage the sums on the way.
MIX = {"countdown": 0.42, "ways": 0.12, "check": 0.06, "words": 0.26, "sums": 0.1, "markup": 0.04}
WORDS = "red blue apples pencils a the how many in each box of price total left then makes row".split()


def countdown_document(rng: random.Random) -> str:
    """Return a Countdown problem, attempts as in a demonstration of the warm-up, and the last attempt's expression."""
    row = generate_row("train", rng)
    tries, expression = demonstrate(row, rng)
    return f"{load_task('countdown', 'plain').prompt(row)}{tries}\n{expression}"


def ways_document(rng: random.Random) -> str:
    """Return a list of ways to combine three numbers, as many as asked for: long and sound, but not a search."""
    row = generate_row("train", rng)
    attempts = all_attempts(tuple(sorted(row["nums"])), LARGEST_RESULT)
    count = rng.randint(2, LINES)
    lines = "\n".join(steps for steps, _, _ in rng.choices(attempts, k=count))
    return f"Combine the numbers {', '.join(map(str, row['nums']))} in {count} ways.\n{lines}"


def check_document(rng: random.Random) -> str:
    """Return given expressions, and the check of each against the target: "yes" does not end it, nor does "no"."""
    row = generate_row("train", rng)
    attempts = all_attempts(tuple(sorted(row["nums"])), LARGEST_RESULT)
    hits = [attempt for attempt in attempts if attempt[2] == row["target"]]
    chosen = [rng.choice(hits if rng.random() < 0.3 else attempts) for _ in range(rng.randint(2, LINES // 2 + 1))]
    given = "\n".join(expression for _, expression, _ in chosen)
    checks = "\n".join(f"{steps} {'yes' if value == row['target'] else 'no'}" for steps, _, value in chosen)
    return f"Check which expressions equal {row['target']}.\n{given}\n{checks}"


def word_problem_document(rng: random.Random) -> str:
    """Return a word problem with its worked solution or, as often as in the warm-up, with only the answer."""
    task = load_task("gsm8k", "plain")
    _, row = task.generate("train", rng)
    row = task.check_row(row)
    return task.prompt(row) + task.demonstration(row)


def markup_document(rng: random.Random) -> str:
    """Return lines with a number, a sum or some words in tags or turn marks, none of them a prompt or a response."""
    lines = []
    for _ in range(rng.randint(3, LINES)):
        a, b = rng.randint(1, 50), rng.randint(1, 50)
        content = rng.choice([str(a), f"{a} + {b} = {a + b}", " ".join(rng.choices(WORDS, k=rng.randint(1, 4)))])
        if rng.random() < 0.4:
            lines.append(f"<|im_start|>{rng.choice(ROLES)}\n{content}<|im_end|>")
        else:
            tag, gap = rng.choice(["think", "answer", "reasoning"]), rng.choice(["", "", "\n"])
            lines.append(f"<{tag}>{gap}{content}{gap}</{tag}>")
    return "\n".join(lines)


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


def make_documents(rng: random.Random, count: int) -> list[str]:
    """Mix Countdown, lists, checks, word problems, arithmetic drills and markup."""
    facts = two_number_facts()
    makers = {"countdown": countdown_document, "ways": ways_document, "check": check_document,
              "words": word_problem_document, "sums": lambda rng: "\n".join(rng.sample(facts, LINES)),
              "markup": markup_document}
    chosen = rng.choices([makers[name] for name in MIX], weights=MIX.values(), k=count)
    return [make(rng) for make in tqdm(chosen, desc="documents", mininterval=5)]


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
    trainer = trainers.BpeTrainer(vocab_size=1024, min_frequency=20, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(documents + (prompts + ROLES) * 200, trainer)
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


def pack(tokenizer: Qwen2Tokenizer, documents: list[str]) -> torch.Tensor:
    """Join documents, each ended by the end-of-text token, and cut them into rows of equal length: (rows, length)."""
    tokens = [token for ids in tokenizer(documents, add_special_tokens=False)["input_ids"]
              for token in (*ids, tokenizer.eos_token_id)]
    rows = len(tokens) // ROW_LENGTH
    return torch.tensor(tokens[: rows * ROW_LENGTH]).view(rows, ROW_LENGTH)


def arithmetic_accuracy(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer) -> float:
    """Return the share of all two-number facts that the model completes correctly (greedy, after a line break)."""
    facts = two_number_facts()
    prompts, results = zip(*(fact.rsplit(" = ", 1) for fact in facts), strict=True)
    ids = torch.tensor(tokenizer(["\n" + prompt + " = " for prompt in prompts])["input_ids"])
    with torch.no_grad():
        predicted = torch.cat([model(input_ids=chunk).logits[:, -1].argmax(-1) for chunk in ids.split(2048)])
    wanted = torch.tensor(tokenizer(list(results))["input_ids"])[:, 0]
    return (predicted == wanted).float().mean().item()


def train(model: Qwen2ForCausalLM, rows: torch.Tensor, seed: int) -> None:
    """Train on next-token prediction; the learning rate warms up, stays, and falls to zero in the last third.

    Muon (Jordan 2024, kellerjordan.github.io/posts/muon) trains the matrices inside the layers, AdamW everything else.
    """
    inside = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name]
    embeddings = [model.get_input_embeddings().weight]  # also the head's
    norms_and_biases = [p for p in model.parameters() if p.ndim != 2]
    optimizers = [
        torch.optim.Muon(inside, lr=LEARNING_RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([{"params": embeddings, "weight_decay": 0.1},
                           {"params": norms_and_biases, "weight_decay": 0.0}], lr=LEARNING_RATE, betas=(0.9, 0.98)),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / 100, 1.0, max(0.0, 3 * (1 - step / STEPS))))
        for optimizer in optimizers
    ]
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    model.train()
    progress = tqdm(range(STEPS), desc="training", mininterval=5)
    for _ in progress:
        if len(order) < BATCH_SIZE:
            order = torch.randperm(len(rows), generator=generator)
        batch, order = rows[order[:BATCH_SIZE]], order[BATCH_SIZE:]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for update in (*optimizers, *schedules):
            update.step()
        model.zero_grad()
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
    options = parser.parse_args()

    started = time.perf_counter()
    documents = make_documents(random.Random(options.seed), DOCUMENTS)
    tokenizer = build_tokenizer(documents[:20_000])
    torch.manual_seed(options.seed)
    model = new_model(tokenizer)
    train(model, pack(tokenizer, documents), options.seed)
    model.to(torch.bfloat16).save_pretrained(options.output_dir)
    tokenizer.save_pretrained(options.output_dir)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens; correct two-number sums (in bfloat16): "
          f"{arithmetic_accuracy(model.float(), tokenizer):.4f}; saved to {options.output_dir} after "
          f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(exit_status(main))
