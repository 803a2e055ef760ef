"""A task of my own: sums, where an answer that is off by one is correct too."""

from lab_utils.tasks import Task
from lab_utils.tasks.answers import parse_number


class CloseSums(Task):
    columns = ("question", "answer")

    def is_correct(self, completion, row):
        answer = parse_number(self.extract(completion))
        return answer is not None and abs(answer - parse_number(self.gold(row))) <= 1
