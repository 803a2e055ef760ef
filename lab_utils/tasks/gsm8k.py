"""GSM8K: grade-school word problems (Cobbe et al. 2021, arXiv 2110.14168), three response formats.

A row: {"question": "Natalia sold clips to 48 friends ...", "answer": "72", "solution": "Natalia sold 48/2 = ..."}.
A correct answer: <answer>72</answer> in the formats "reasoning" and "think", `#### 72` at the end in "hash".
"""

from __future__ import annotations

import random
import re

from .answers import extract_hash_answer, extract_last_number, numbers_match, parse_number
from .base import Completion, Row, Task, completion_text
from .sources import RowError
from .word_problems import generate_problem

HURRIED_RATE = 0.7  # share of synthetic demonstrations that skip the steps, which RL learns to write
CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")  # GSM8K's <<48/2=24>> annotations are for a calculator, not for the reader


class GSM8K(Task):
    name = "gsm8k"
    hub_id = "openai/gsm8k"
    hub_config = "main"
    columns = ("question", "answer")
    response_formats = ("reasoning", "think", "hash", "plain")

    def gold(self, row: Row) -> str:
        return extract_hash_answer(str(row["answer"])) or str(row["answer"])

    def extract(self, completion: Completion) -> str | None:
        if self.response_format == "plain":
            return extract_hash_answer(completion_text(completion))
        return super().extract(completion)

    def is_correct(self, completion: Completion, row: Row) -> bool:
        return numbers_match(self.extract(completion), self.gold(row))

    def is_correct_lenient(self, completion: Completion, row: Row) -> bool:
        """Also accept the last number in the text (lm-evaluation-harness's flexible-extract)."""
        return self.is_correct(completion, row) or numbers_match(
            extract_last_number(completion_text(completion)), self.gold(row))

    def demonstration(self, row: Row) -> str:
        """Return the worked solution in the response format; a `hurried` row gets only the answer.

        A row with a `completion` gets that.
        """
        if row.get("completion"):
            return super().demonstration(row)
        answer = self.gold(row)
        steps = f"The answer is {answer}." if row.get("hurried") else worked_steps(row["solution"])
        return f"{steps}\n#### {answer}" if self.response_format == "plain" else self.formatted(steps, answer)

    def generate(self, split: str, rng: random.Random) -> tuple[str, Row]:
        problem = generate_problem(split, rng)
        return problem.key, {"question": problem.question, "answer": problem.solution,
                             "hurried": rng.random() < HURRIED_RATE}

    def check_row(self, row: Row) -> Row:
        """Split GSM8K's `answer` (worked solution ending in `#### N`) into `answer` (N) and `solution`."""
        answer = str(row["answer"])
        gold = answer.rsplit("####", 1)[-1].strip()  # the text after the mark, or all of it if there is no mark
        if parse_number(gold) is None:
            raise RowError(f"answer={answer[-60:]!r} has no gold number: end it with a line such as '#### 72', or give "
                           "the number alone.")
        kept = {key: row[key] for key in ("hurried", "completion") if row.get(key) is not None}
        return {"question": str(row["question"]), "answer": gold, "solution": answer, **kept}


def worked_steps(solution: str) -> str:
    """Return a GSM8K solution without its calculator marks and without its final `#### N` line.

    >>> worked_steps("Anna has 2 + 3 = <<2+3=5>>5 pens.\\n#### 5")
    'Anna has 2 + 3 = 5 pens.'
    """
    return CALCULATOR_MARK.sub("", solution).split("####")[0].strip()
