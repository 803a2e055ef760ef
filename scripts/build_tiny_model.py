"""Build the tiny base model that ships with the workshop: about a million parameters, from synthetic text alone.

    python scripts/build_tiny_model.py --output-dir lab_utils/assets/tiny-qwen2

It learns to calculate with two numbers up to 100, to try and check Countdown attempts, and to solve templated word
problems, as plain text. It never sees a chat template, the tags <think> and <answer>, or a problem of a test split. Two
quiet CPU cores take about 20 minutes. The same seed gives the same model on the same machine and library versions.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from trl.chat_template_utils import qwen2_5_chat_template

from lab_utils.expressions import evaluate
from lab_utils.tasks import load_task
from lab_utils.tasks.countdown import LARGEST_RESULT, demonstrate, generate_row
from lab_utils.tasks.gsm8k import worked_steps
from lab_utils.tasks.word_problems import generate_problem

ROW_LENGTH = 128  # tokens in a packed training row
WHOLE_TOKENS = [" + ", " - ", " * ", " / ", " = ", ", ", "<think>", "</think>", "<answer>", "</answer>", "<reasoning>",
                "</reasoning>"]
# Qwen's own pre-tokenizer: transformers applies it to every "qwen2" checkpoint, so the BPE must be trained under it.
QWEN_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
                r"\s+(?!\S)|\s+")


def countdown_document(rng: random.Random) -> str:
    """A Countdown problem, attempts with their checks, and the expression of the last attempt."""
    row = generate_row("train", rng)
    tries, expression = demonstrate(row, rng)
    return f"{load_task('countdown').prompt(row)[-1]['content']}\n{tries}\n{expression}"


def word_problem_document(rng: random.Random) -> str:
    """A word problem with its worked solution, or (half of the time) with nothing but the answer."""
    problem = generate_problem("train", rng)
    steps = worked_steps(problem.solution) if rng.random() < 0.5 else f"The answer is {problem.answer}."
    return f"{problem.question}\n{steps}\n#### {problem.answer}"


def two_number_facts() -> list[str]:
    """Every a + b, a - b, a * b, a / b over 1..100 whose result is a whole number in 1..100."""
    facts = []
    for a in range(1, LARGEST_RESULT + 1):
        for b in range(1, LARGEST_RESULT + 1):
            for operator in "+-*/":
                value = evaluate(f"{a} {operator} {b}")
                if value.denominator == 1 and 1 <= value <= LARGEST_RESULT:
                    facts.append(f"{a} {operator} {b} = {value}")
    return facts


def make_documents(rng: random.Random, count: int) -> list[str]:
    """Mix Countdown, word problems and arithmetic drills."""
    facts = two_number_facts()
    makers = [countdown_document, word_problem_document, lambda rng: "\n".join(rng.sample(facts, 8))]
    chosen = rng.choices(makers, weights=[0.6, 0.3, 0.1], k=count)
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


def pack(tokenizer: Qwen2Tokenizer, documents: list[str]) -> torch.Tensor:
    """Lay documents, each ended by the end-of-text token, into rows of ROW_LENGTH tokens; padding fills the rest."""
    rows, row = [], []
    for ids in tokenizer(documents, add_special_tokens=False)["input_ids"]:
        ids = ids[: ROW_LENGTH - 1] + [tokenizer.eos_token_id]
        if len(row) + len(ids) > ROW_LENGTH:
            rows.append(row + [-100] * (ROW_LENGTH - len(row)))
            row = []
        row = row + ids
    return torch.tensor(rows)


def arithmetic_accuracy(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer) -> float:
    """Share of all two-number facts that the model completes greedily, each after a line break."""
    facts = two_number_facts()
    prompts, results = zip(*(fact.rsplit(" = ", 1) for fact in facts), strict=True)
    ids = torch.tensor(tokenizer(["\n" + prompt + " = " for prompt in prompts])["input_ids"])
    with torch.no_grad():
        predicted = torch.cat([model(input_ids=chunk).logits[:, -1].argmax(-1) for chunk in ids.split(2048)])
    wanted = torch.tensor(tokenizer(list(results))["input_ids"])[:, 0]
    return (predicted == wanted).float().mean().item()


def train(model: Qwen2ForCausalLM, rows: torch.Tensor, steps: int, batch_size: int, learning_rate: float,
          seed: int) -> None:
    """Train on next-token prediction with AdamW; the rate warms up, stays, and falls to zero over the last third."""
    generator = torch.Generator().manual_seed(seed)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
                                  lr=learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, 1.0, max(0.0, (steps - step) / (steps / 3))))
    model.train()
    progress = tqdm(range(steps), desc="training", mininterval=5)
    order = torch.empty(0, dtype=torch.long)
    for _ in progress:
        if len(order) < batch_size:
            order = torch.randperm(len(rows), generator=generator)
        batch, order = rows[order[:batch_size]], order[batch_size:]
        loss = model(input_ids=batch.clamp(min=0), labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output-dir", type=Path, required=True, help="where the model folder is written")
    parser.add_argument("--steps", type=int, default=2600, help="training steps (default %(default)s)")
    parser.add_argument("--documents", type=int, default=200_000, help="documents to draw (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="rows of a step (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak learning rate (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of data and weights (default %(default)s)")
    options = parser.parse_args()

    start = time.perf_counter()
    documents = make_documents(random.Random(options.seed), options.documents)
    tokenizer = build_tokenizer(documents[:20_000])
    rows = pack(tokenizer, documents)
    torch.manual_seed(options.seed)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=448, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, use_sliding_window=False,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens, {len(rows):,} rows of {ROW_LENGTH}; "
          f"prepared in {time.perf_counter() - start:.0f} s")
    train(model, rows, options.steps, options.batch_size, options.learning_rate, options.seed)
    print(f"two-number sums right: {arithmetic_accuracy(model, tokenizer):.4f}")
    model.to(torch.bfloat16).save_pretrained(options.output_dir)
    tokenizer.save_pretrained(options.output_dir)
    print(f"two-number sums right after rounding to bfloat16: {arithmetic_accuracy(model.float(), tokenizer):.4f}")
    print(f"saved to {options.output_dir} after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
