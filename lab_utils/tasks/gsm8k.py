"""GSM8K: grade-school word problems (Cobbe et al. 2021, arXiv 2110.14168), three response formats.

A row: {"question": "Natalia sold clips to 48 friends ...", "answer": "72", "solution": "Natalia sold 48/2 = ..."}.
A correct answer: <answer>72</answer> in the formats "reasoning" and "think", `#### 72` at the end in "hash".
"""

from __future__ import annotations

import random
import re

from .answers import extract_hash_answer, extract_last_number, extract_xml_answer, numbers_match, parse_number
from .base import THINK_SYSTEM_PROMPT, Completion, Row, RowError, Task, completion_text
from .formats import has_reasoning_format, has_think_format
from .word_problems import generate_problem

SYSTEM_PROMPTS = {
    "reasoning": "Respond in the following format:\n<reasoning>\n...\n</reasoning>\n<answer>\n...\n</answer>",
    "think": THINK_SYSTEM_PROMPT,
    "hash": "Solve the problem step by step. End with a line of the form #### N, where N is the answer as a number.",
}
HURRIED_RATE = 0.7  # share of synthetic demonstrations that skip the steps, which RL learns to write
CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")  # GSM8K's <<48/2=24>> annotations are for a calculator, not for the reader


class GSM8K(Task):
    name = "gsm8k"
    hub_id = "openai/gsm8k"
    hub_config = "main"
    columns = ("question", "answer")
    response_formats = ("reasoning", "think", "hash", "plain")

    @property
    def system_prompt(self) -> str:
        return SYSTEM_PROMPTS[self.response_format]

    def question(self, row: Row) -> str:
        return row["question"]

    def gold(self, row: Row) -> str:
        return extract_hash_answer(str(row["answer"])) or str(row["answer"])

    def extract(self, completion: Completion) -> str | None:
        text = completion_text(completion)
        return extract_hash_answer(text) if self.response_format in ("hash", "plain") else extract_xml_answer(text)

    def has_format(self, completion: Completion) -> bool:
        if self.response_format in ("hash", "plain"):
            return self.extract(completion) is not None
        text = completion_text(completion)
        return has_reasoning_format(text) if self.response_format == "reasoning" else has_think_format(text)

    def is_correct(self, completion: Completion, row: Row) -> bool:
        return numbers_match(self.extract(completion), self.gold(row))

    def is_correct_lenient(self, completion: Completion, row: Row) -> bool:
        """Also accept the last number in the text (lm-evaluation-harness's flexible-extract)."""
        return self.is_correct(completion, row) or numbers_match(
            extract_last_number(completion_text(completion)), self.gold(row))

    def demonstration(self, row: Row) -> str:
        """Return the worked solution in the response format; a `hurried` row gets only the answer."""
        answer = self.gold(row)
        steps = f"The answer is {answer}." if row.get("hurried") else worked_steps(row["solution"])
        return {
            "reasoning": f"<reasoning>\n{steps}\n</reasoning>\n<answer>\n{answer}\n</answer>",
            "think": f"<think>{steps}</think><answer>{answer}</answer>",
            "hash": f"{steps}\n#### {answer}",
            "plain": f"{steps}\n#### {answer}",
        }[self.response_format]

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
        kept = {key: row[key] for key in ("hurried",) if key in row}
        return {"question": str(row["question"]), "answer": gold, "solution": answer, **kept}


def worked_steps(solution: str) -> str:
    """Return a GSM8K solution without its calculator marks and without its final `#### N` line.

    >>> worked_steps("Anna has 2 + 3 = <<2+3=5>>5 pens.\\n#### 5")
    'Anna has 2 + 3 = 5 pens.'
    """
    return CALCULATOR_MARK.sub("", solution).split("####")[0].strip()
