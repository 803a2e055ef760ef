"""Self-checks of the notebook "Dataset formatting"."""

from ...tasks.answers import numbers_match
from .runner import Case, Check

check_extract_hash_answer = Check("{} texts, and the correct answer for each.", [
    Case("48 + 24 = 72 clips in all.\n#### 72", gives="72", hint="The number follows '#### ', at the end of the text."),
    Case("She needs 1000 beads.\n#### 1,000", gives="1,000", hint="A number can contain a comma: allow it."),
    Case("It got colder.\n#### -3", gives="-3", hint="A number can be negative: allow a minus sign."),
    Case("The answer is 72.", gives=None, hint="Without '#### ' there is no answer: strict means strict."),
    Case("#### 72\n#### 5", gives="72", hint="Of several answers, the first one counts."),
    Case("#### 72 clips", gives="72", hint="The number ends where the digits end."),
    Case("#### 72.5", gives="72.5", hint="Do not cut a number at its decimal point: 72.5 is not 72."),
    Case("#### 72 clips in 3 boxes", gives="72", hint="The number ends where the digits end; 3 is another number."),
    Case("So we get ####", gives=None, hint="No number after the marker: return None."),
    Case("", gives=None, hint="An empty completion has no answer: return None."),
], same=lambda got, wanted: got is None if wanted is None else numbers_match(got, wanted))

check_make_labels = Check("the loss will see the completion and nothing else.", [
    Case([5, 6, 7], [8, 9], gives=[-100, -100, -100, 8, 9], hint="-100 for every prompt token, then the completion."),
    Case([5], [8, 9, 2], gives=[-100, 8, 9, 2], hint="The model must also learn the last token, which ends the turn."),
    Case([8, 9], [8, 9], gives=[-100, -100, 8, 9], hint="The position of a token counts, not its value."),
], same=lambda got, wanted: list(got) == wanted)

START, END, NEWLINE, SYSTEM, USER, ASSISTANT, _ = 1, 2, 3, 10, 11, 12, -100  # the tokens of the exercise
HEADER = [_, _, _]  # the labels of a turn's header
check_labels_of_conversation = Check("{} conversations, and only the assistant is learned.", [
    Case([START, USER, NEWLINE, 50, END, NEWLINE, START, ASSISTANT, NEWLINE, 60, 61, END, NEWLINE],
         gives=[*HEADER, _, _, _, *HEADER, 60, 61, END, _],
         hint="The answer 60, 61 and the END after it get labels; its header and the line break after END do not."),
    Case([START, USER, NEWLINE, 50, END, NEWLINE, START, ASSISTANT, NEWLINE, 60, END, NEWLINE,
          START, USER, NEWLINE, 51, END, NEWLINE, START, ASSISTANT, NEWLINE, 61, END, NEWLINE],
         gives=[*HEADER, _, _, _, *HEADER, 60, END, _, *HEADER, _, _, _, *HEADER, 61, END, _],
         hint="There are two turns of the assistant: learn both, and nothing of the user's turn between them."),
    Case([START, USER, NEWLINE, 50, ASSISTANT, NEWLINE, 51, END, NEWLINE, START, ASSISTANT, NEWLINE, 60, END, NEWLINE],
         gives=[*HEADER, _, _, _, _, _, _, *HEADER, 60, END, _],
         hint="Here the user writes the word 'assistant' and a line break. A turn begins only with START before it."),
    Case([START, USER, NEWLINE, 50, END, NEWLINE, START, ASSISTANT, NEWLINE, 60, NEWLINE, 61, END, NEWLINE],
         gives=[*HEADER, _, _, _, *HEADER, 60, NEWLINE, 61, END, _],
         hint="An answer can hold line breaks: only END ends the turn."),
    Case([START, SYSTEM, NEWLINE, 40, END, NEWLINE, START, USER, NEWLINE, 60, END, NEWLINE,
          START, ASSISTANT, NEWLINE, 60, END, NEWLINE],
         gives=[*HEADER, _, _, _, *HEADER, _, _, _, *HEADER, 60, END, _],
         hint="Token 60 occurs in two turns. Decide by position, not by token."),
    Case([START, USER, NEWLINE, 50, END, NEWLINE, START, ASSISTANT, NEWLINE],
         gives=[*HEADER, _, _, _, *HEADER], hint="The assistant has not written anything yet: nothing gets a label."),
], same=lambda got, wanted: list(got) == wanted)
