"""Generate word problems of one to four steps in GSM8K's own answer format, without a download.

The templates are in word_problems.yaml. Every number, result and answer is a whole number in 1..100, the range of the
tiny model. Template and numbers decide whether a problem belongs to the training or the test split; the names do not.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from .expressions import evaluate

LARGEST = 100
PEOPLE = {"Anna": "she", "Ben": "he", "Carla": "she", "David": "he", "Ella": "she", "Felix": "he", "Grace": "she",
          "Hugo": "he", "Iris": "she", "Jonas": "he", "Mina": "she", "Omar": "he"}
THINGS = ["apples", "pens", "books", "stickers", "marbles", "cards", "shells", "cookies", "stamps", "beads", "lemons",
          "candles"]
BOXES = ["boxes", "bags", "baskets", "jars"]
PLACES = ["farm", "school", "library", "bakery", "garden", "market"]


@dataclass(frozen=True)
class Problem:
    """One word problem; `solution` is in GSM8K's format: sentences with <<a+b=c>> marks, then `#### N`."""

    question: str
    solution: str
    answer: int
    formula: str  # another way to work out the answer, independent of the steps, with the numbers filled in
    steps: int
    split: str
    key: str  # template and numbers; the names make no difference


@cache
def load_templates() -> list[dict]:
    """Read the templates: question, numbers (name -> range), steps (sum -> sentence), formula."""
    return yaml.safe_load(Path(__file__).with_name("word_problems.yaml").read_text(encoding="utf-8"))


def fill_numbers(text: str, numbers: dict[str, int]) -> str:
    """Replace names by numbers: fill_numbers("a + r1", {"a": 2, "r1": 5}) is "2 + 5"."""
    return re.sub(r"[a-e]|r\d", lambda match: str(numbers[match[0]]), text)


def work_out(template: dict, numbers: dict[str, int]) -> list[tuple[str, int]] | None:
    """Return each step's sum and value, or None unless every value is a whole number in 1..LARGEST."""
    known = dict(numbers)
    worked = []
    for count, step in enumerate(template["steps"], 1):
        sum_text = fill_numbers(step, known)
        value = evaluate(sum_text)
        if value.denominator != 1 or not 1 <= value <= LARGEST:
            return None
        known[f"r{count}"] = int(value)
        worked.append((sum_text, int(value)))
    return worked


def generate_problem(split: str, rng: random.Random) -> Problem:
    """Draw a problem of the split: one in five problems, by template and numbers, is "test", the others are "train"."""
    templates = load_templates()
    index = rng.randrange(len(templates))
    template = templates[index]
    while True:
        numbers = {name: rng.randint(low, high) for name, (low, high) in template["numbers"].items()}
        worked = work_out(template, numbers)
        key = f"{index} {sorted(numbers.items())}"
        drawn_split = "test" if hashlib.sha256(key.encode()).digest()[0] % 5 == 0 else "train"
        if worked is not None and drawn_split == split:
            break
    people = rng.sample(sorted(PEOPLE), 3)
    things = rng.sample(THINGS, 2)
    words = {"N": people[0], "M": people[1], "O": people[2], "S": PEOPLE[people[0]], "T": things[0], "U": things[1],
             "B": rng.choice(BOXES), "P": rng.choice(PLACES)}
    question = template["question"].format(**words, **numbers)
    sentences = []
    for sentence, (sum_text, value) in zip(template["steps"].values(), worked, strict=True):
        marked = f"{sum_text} = <<{sum_text.replace(' ', '')}={value}>>{value}"
        sentences.append(sentence.format(marked, **words))
    answer = worked[-1][1]
    return Problem(question[0].upper() + question[1:], "\n".join([*sentences, f"#### {answer}"]), answer,
                   fill_numbers(template["formula"], numbers), len(worked), drawn_split, key)
