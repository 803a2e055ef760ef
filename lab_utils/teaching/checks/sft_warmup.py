"""Self-checks of the notebook "SFT warm-up"."""

import torch

from .runner import Case, Check, Wrong, close

HALF, QUARTER, SIXTH = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [1 / 6, 1 / 6, 2 / 3]
check_completion_loss = Check("{} examples, each token predicted by the row before it.", [
    Case(probabilities=[HALF, QUARTER, SIXTH], labels=[-100, 0, 1], gives=0.6931,
         hint="Row t predicts token t + 1: rows 0 and 1 predict tokens 1 and 2, with a probability of 0.5 each."),
    Case(probabilities=[HALF, QUARTER, SIXTH], labels=[-100, -100, 2], gives=1.3863,
         hint="One token has a label: divide by the number of labeled tokens, and leave -100 out."),
    Case(probabilities=[HALF, QUARTER, SIXTH], labels=[2, 2, 2], gives=1.3863,
         hint="Nothing predicts the first token, so its label does not count. Rows 0 and 1 give the others 0.25 each."),
    Case(probabilities=[HALF, HALF, HALF, HALF], labels=[-100, 1, -100, 0], gives=1.0397,
         hint="-100 can come after a label: choose by label."),
], call=lambda loss, probabilities, labels: loss(torch.tensor(probabilities).log(), torch.tensor(labels)), same=close)


def _live(chance: float, size: int) -> float:
    return 1 - chance**size - (1 - chance) ** size


check_live_share = Check("{} sets of problems.", [
    Case([0.5], 2, gives=0.5, hint="Two of the four outcomes are live: yes-no and no-yes."),
    Case([0.25], 4, gives=0.6797, hint="1 - 0.25**4 - 0.75**4: leave out the all-wrong and the all-correct groups."),
    Case([0.75], 4, gives=0.6797, hint="All correct teaches as little as all wrong: subtract both."),
    Case([0.0, 1.0], 16, gives=0.0,
         hint="Neither problem is ever live. Compute each problem's share first, and then the mean."),
    Case([0.05, 0.5], 16, gives=0.7799, hint="Take the mean over problems, not the sum: (0.5599 + 1.0) / 2."),
    Case([0.5, 0.5], 1, gives=0.0, hint="A group of one response has nothing to compare."),
], wrong=[
    Wrong(lambda chances, size: sum(1 - (1 - chance) ** size for chance in chances) / len(chances),
          "You count the groups with a correct response. All-correct groups teach nothing either: subtract them too."),
    Wrong(lambda chances, size: _live(sum(chances) / len(chances), size),
          "You put the mean chance into the formula. Compute each problem's share first, and then the mean."),
    Wrong(lambda chances, size: sum(_live(chance, size) for chance in chances),
          "You added up the shares of the problems: divide by their number."),
    Wrong(lambda chances, size: sum(0 < chance < 1 for chance in chances) / len(chances),
          "A problem with a chance between 0 and 1 is not live every time: how likely is a group of one kind?"),
], same=close)
