"""Tests of the tiny model: it loads like any Qwen2 checkpoint, tokenizes the same after a reload, and calculates."""

import random
import re
import statistics

import build_tiny_model as build_script
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lab_utils import TINY_MODEL
from lab_utils.tasks import load_task

pytestmark = pytest.mark.component


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY_MODEL)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32)


@pytest.fixture(scope="module")
def texts():
    """Return chat prompts and demonstrations of every format."""
    found = []
    for task in (load_task("countdown"), *(load_task("gsm8k", name) for name in ("reasoning", "think", "hash"))):
        for row in task.dataset("train", 50):
            found += [row["prompt"][0]["content"], row["prompt"][1]["content"], task.demonstration(row)]
    return found


def test_saved_and_reloaded_it_tokenizes_and_answers_the_same(model, tokenizer, texts, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is type(tokenizer)
    assert [again(text)["input_ids"] for text in texts] == [tokenizer(text)["input_ids"] for text in texts]
    prompt = tokenizer("7 * 6 = ", return_tensors="pt")["input_ids"]
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    outputs = [net.generate(prompt, max_new_tokens=12, do_sample=False) for net in (model, reloaded)]
    assert torch.equal(*outputs)


def test_text_survives_tokenization(tokenizer, texts):
    for text in [*texts, "Ünïcode, 1,000 and 3.5% of $72", "  two  spaces\n\n\tand a tab"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_numbers_and_tags_are_whole_tokens(tokenizer):
    tokens = tokenizer.tokenize("<think>7 * 6 = 42, 42 + 100 no</think><answer>(7 * 6)</answer>")
    assert tokens[:7] == ["<think>", "7", " * ", "6", " = ", "42", ", "]
    assert "100" in tokens and {"</think>", "<answer>", "</answer>"} <= set(tokens)


def test_it_calculates_with_two_numbers(model, tokenizer):
    assert build_script.arithmetic_accuracy(model, tokenizer) >= 0.99


def test_it_does_not_know_the_response_format(model, tokenizer):
    """The SFT warm-up has something to teach."""
    task = load_task("countdown")
    row = task.dataset("test", 1)[0]
    ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_tensors="pt",
                                        return_dict=True)["input_ids"]
    output = model.generate(ids, max_new_tokens=64, do_sample=False)[0, ids.shape[1]:]
    assert not task.has_format(tokenizer.decode(output, skip_special_tokens=True))


def test_the_build_sees_no_test_problem():
    rng = random.Random(3)
    held_out = {str(sorted(row["nums"])) for row in load_task("countdown").dataset("test", 300)}
    for _ in range(500):
        texts = [build_script.countdown_document(rng), build_script.ways_document(rng)]
        for text in texts:
            nums = re.findall(r"\d+", re.search(r"numbers ((\d+,? )+)", text)[1])
            assert str(sorted(map(int, nums))) not in held_out


def test_the_base_has_no_habit_to_be_reminded_of():
    """The build shows searches of the warm-up's length only, and word problems hurried as often as the warm-up does."""
    rng = random.Random(0)
    documents = [build_script.countdown_document(rng) for _ in range(1000)]
    attempts = statistics.fmean(sum(" = " in line for line in document.splitlines())
                                for document in documents)
    task = load_task("countdown")
    shown = statistics.fmean(task.attempts(task.demonstration(row)) for row in task.dataset("train", 1000))
    assert attempts == pytest.approx(shown, abs=0.1)
    words = [build_script.word_problem_document(rng) for _ in range(1000)]
    assert statistics.fmean("The answer is" in text for text in words) == pytest.approx(0.7, abs=0.05)
