"""Self-checks of the notebook "Reward hacking"."""

import math

from .reward_design import OK, same_rewards, scored, with_messages
from .runner import Case, Check, Wrong, close

check_largest_bonus = Check("{} pairs of habits.", [
    Case(steps=(0.6, 31), guess=(0.1, 16), limit=40, gives=0.0667,
         hint="A guess loses 2.0 · (0.6 - 0.1) and saves 24 - 9 = 15 tokens more: divide."),
    Case(steps=(0.6, 53), guess=(0.1, 16), limit=40, gives=0.0417,
         hint="A response beyond the limit saves nothing, and not less than nothing: max(0, limit - tokens)."),
    Case(steps=(0.6, 31), guess=(0.1, 16), limit=40, correct=1.0, gives=0.0333,
         hint="Use the parameter `correct`: what a correct response pays."),
    Case(steps=(0.6, 31), guess=(0.1, 16), limit=24, gives=0.125, hint="Use the parameter `limit`."),
    Case(steps=(0.6, 60), guess=(0.1, 45), limit=40, gives=math.inf,
         hint="Both are longer than the limit, so a guess saves nothing: return math.inf."),
    Case(steps=(0.6, 16), guess=(0.1, 20), limit=40, gives=math.inf,
         hint="This guess is longer than the steps, so no bonus makes it pay: return math.inf, not a negative number."),
    Case(steps=(0.5, 30), guess=(0.5, 20), limit=40, gives=0.0,
         hint="This guess is as often correct and shorter: it pays at any bonus above 0."),
], wrong=[
    Wrong(lambda steps, guess, limit=40, correct=2.0: correct * (steps[0] - guess[0]) / (steps[1] - guess[1]),
          "You divide by the difference of the lengths. A response saves only what is below the limit, and never less "
          "than nothing: max(0, limit - tokens)."),
    Wrong(lambda steps, guess, limit=40, correct=2.0: correct * (steps[0] - guess[0]),
          "That is what a guess loses. Divide it by the tokens that a guess saves more."),
    Wrong(lambda steps, guess, limit=40, correct=2.0: correct * steps[0] / max(1, limit - guess[1]),
          "Compare the two habits: a guess is sometimes correct too, and the steps save some tokens too."),
], same=lambda got, wanted: got == wanted or close(got, wanted))

check_share_to_right = Check("{} audits.", [
    Case([2.4, 0.6, 0.0, 1.0], [False, True, True, False], gives=0.15, hint="0.6 of 4.0 goes to correct responses."),
    Case([1.0, 1.0, 1.0, 1.0], [True, False, False, False], gives=0.25, hint="Equal bonuses; one in four is correct."),
    Case([3.0, 1.0], [True, False], gives=0.75, hint="Weigh by the bonus; do not count responses."),
    Case([2.0, 2.0], [False, False], gives=0.0, hint="No correct response gets anything."),
    Case([0.5, 0.0], [True, True], gives=1.0, hint="All of the bonus goes to correct responses, though one gets none."),
    Case([0.0, 0.0], [True, False], gives=0.0, hint="Nothing is paid: return 0.0, do not divide by 0."),
], same=close)

GUESS = "<reasoning>\nThe answer is 72.\n</reasoning>\n<answer>\n72\n</answer>"
WORKED = "<reasoning>\n48 / 2 = 24\n48 + 24 = 72\n</reasoning>\n<answer>\n72\n</answer>"
check_short_and_right_reward = Check(OK, with_messages([
    scored(GUESS, 2.4, "Correct and short: 4.0 * (1 - 16 / 40). Ask task.is_correct: a completion never equals its "
           "gold answer.", answer="72", tokens=16, limit=40),
    scored(GUESS, 0.0, "Short and wrong: this is the hole. Ask task.is_correct.", answer="71", tokens=16, limit=40),
    scored(WORKED, 1.0, "Correct but longer: less, 4.0 * (1 - 30 / 40).", answer="72", tokens=30, limit=40),
    scored(WORKED, 0.0, "At the limit the bonus is 0.", answer="72", tokens=40, limit=40),
    scored(WORKED, 0.0, "Beyond the limit it is no penalty: max(0.0, ...).", answer="72", tokens=60, limit=40),
    scored("<answer>1,000</answer>", 3.0, "1,000 is 1000: ask task.is_correct.", answer="1000", tokens=10, limit=40),
    scored("72", 0.0, "Without <answer> tags there is no answer, however short.", answer="72", tokens=2, limit=40),
    scored("<answer>banana</answer>", 0.0, "No number, no bonus.", answer="72", tokens=3, limit=40),
    scored("", 0.0, "An empty completion is the shortest of all: no bonus.", answer="72", tokens=0, limit=40),
], "Keep the order of the completions. task.is_correct takes messages, too.") + [
    scored(GUESS, 2.0, "Use the parameter `limit`.", answer="72", tokens=16, limit=32),
], call=lambda reward, tokens, limit, **columns: reward(
    completion_ids=[[0] * count for count in tokens], limit=limit[0], **columns), same=same_rewards)
