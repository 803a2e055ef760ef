"""Self-check of the notebook "PPO training"."""

from .runner import Case, Check, close

check_gae = Check("{} completions, equal to the double sum that defines GAE.", [
    Case(rewards=[0, 0, 1], values=[0, 0, 0], gamma=1.0, lam=1.0, gives=[1, 1, 1],
         hint="The critic expects nothing, and 1 comes at the end: every token gets 1."),
    Case(rewards=[0, 0, 1], values=[0.25, 0.5, 0.75], gamma=1.0, lam=1.0, gives=[0.75, 0.5, 0.25],
         hint="With gamma = lam = 1 the advantage is the actual return minus the value."),
    Case(rewards=[0, 0, 1], values=[0.25, 0.5, 0.75], gamma=1.0, lam=0.0, gives=[0.25, 0.25, 0.25],
         hint="With lam = 0 only the next prediction counts: r + V(next) - V. After the last token V is 0."),
    Case(rewards=[0, 0, 0, 0, 1], values=[0.25, 0.5, 0.25, 0.5, 0.75], gamma=1.0, lam=0.5,
         gives=[0.2344, -0.0312, 0.4375, 0.375, 0.25],
         hint="Go through the tokens from the last to the first: A(t) = delta(t) + gamma * lam * A(t + 1)."),
    Case(rewards=[0, 0, 1], values=[0.25, 0.5, 0.75], gamma=0.5, lam=1.0, gives=[0, 0, 0.25],
         hint="gamma discounts twice: the next value in delta, and the next advantage."),
    Case(rewards=[-0.5, 0.25, 1], values=[0.5, 0.5, 0.5], gamma=0.5, lam=0.5, gives=[-0.7188, 0.125, 0.5],
         hint="Every token can have a reward of its own, for example a KL penalty."),
    Case(rewards=[1], values=[0.25], gamma=1.0, lam=0.5, gives=[0.75],
         hint="A single token: there is no next value and no next advantage."),
], call=lambda gae, **arguments: gae(*arguments.values()),
    same=lambda got, wanted: len(got) == len(wanted) and all(map(close, got, wanted)))
