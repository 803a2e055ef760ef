"""Chat templates: what a demonstration trains is what the model is asked for, for every model family and format."""

import pytest
from trl.chat_template_utils import qwen2_5_chat_template, qwen3_chat_template

from lab_utils.models import load_tokenizer
from lab_utils.tasks import load_task

FORMATS = [("countdown", "think"), ("gsm8k", "reasoning"), ("gsm8k", "think"), ("gsm8k", "hash")]


@pytest.mark.parametrize("template", [qwen2_5_chat_template, qwen3_chat_template], ids=["Qwen2.5", "Qwen3"])
@pytest.mark.parametrize("task, response_format", FORMATS)
def test_a_demonstration_follows_its_prompt_unchanged(task, response_format, template, tmp_path):
    tokenizer = load_tokenizer("tiny")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    tokenizer, task = load_tokenizer(tmp_path), load_task(task, response_format)
    row = task.dataset("train", 1)[0]
    answer = [{"role": "assistant", "content": task.demonstration(row)}]
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(row["prompt"] + answer, tokenize=False)
    assert whole == prompt + task.demonstration(row) + "<|im_end|>\n"
