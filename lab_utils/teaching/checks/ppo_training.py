"""Self-checks of the notebook "PPO training"."""

from .runner import Case, Check, Wrong, close


def _gae(rewards, values, gamma, lam):
    advantages, next_value, next_advantage = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        next_advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
        next_value = value
        advantages.insert(0, next_advantage)
    return advantages


def _same_numbers(got, wanted):
    return len(got) == len(wanted) and all(map(close, got, wanted))


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
], wrong=[
    Wrong(lambda r, v, gamma, lam: [a + b for a, b in zip(_gae(r, v, gamma, lam), v, strict=True)],
          "These are the returns, the critic's targets. The advantage is the actual return minus the value."),
    Wrong(lambda r, v, gamma, lam: _gae(r, v, gamma, 0.0),
          "These are the surprises alone. Add the next advantage, times gamma * lam: here every token gets 1."),
    Wrong(lambda r, v, gamma, lam: _gae(r, v, gamma, 1.0),
          "You leave out lam: with lam = 0 only the next prediction counts."),
    Wrong(lambda r, v, gamma, lam: _gae(r, v, 1.0, gamma * lam),
          "gamma discounts twice: also the next value in delta = r + gamma * V(next) - V."),
    Wrong(lambda r, v, gamma, lam: _gae(r, v, gamma, lam)[::-1],
          "The order is wrong: you went from the last token to the first, so turn the list round."),
    Wrong(lambda r, v, gamma, lam: _gae([0] * (len(r) - 1) + r[-1:], v, gamma, lam),
          "Only the last reward is used. Every token can have a reward of its own, for example a KL penalty."),
], call=lambda gae, **arguments: gae(*arguments.values()), same=_same_numbers)


def _critic(p_yes, p_give_up, attempts):
    values, after_no = [], 0.0
    for _ in range(attempts):
        values.insert(0, p_yes + (1 - p_yes) * after_no)
        after_no = (1 - p_give_up) * values[0]
    return values


check_perfect_critic = Check("{} searches.", [
    Case(0.5, 0.5, 1, gives=[0.5], hint="One attempt: it succeeds with p_yes, and after a `no` nothing can be won."),
    Case(0.5, 0.5, 2, gives=[0.625, 0.5],
         hint="After the first `no` it expects 0.5 * 0.5 = 0.25, so before it 0.5 + 0.5 * 0.25."),
    Case(0.25, 1.0, 3, gives=[0.25, 0.25, 0.25], hint="It always gives up, so there is only ever one attempt."),
    Case(0.5, 0.0, 3, gives=[0.875, 0.75, 0.5],
         hint="It never gives up: it fails only if all attempts that are left fail."),
    Case(0.2, 0.5, 3, gives=[0.312, 0.28, 0.2], hint="Begin with the last attempt and go back, one `no` at a time."),
], wrong=[
    Wrong(lambda p_yes, p_give_up, attempts: [1 - (1 - p_yes)**left for left in range(attempts, 0, -1)],
          "This policy never gives up. After each `no` only a share 1 - p_give_up goes on."),
    Wrong(lambda p_yes, p_give_up, attempts: _critic(p_yes, p_give_up, attempts)[::-1],
          "The values are correct, but the first attempt comes first: it has the most chances left."),
    Wrong(lambda p_yes, p_give_up, attempts: [p_yes] * attempts,
          "You count this attempt only. A `no` is not the end: add what the next attempts can still win."),
    Wrong(lambda p_yes, p_give_up, attempts: [p_yes / (1 - (1 - p_yes) * (1 - p_give_up))] * attempts,
          "This is a search without a last attempt. Here there is room for a number of them, so the chances shrink."),
    Wrong(lambda p_yes, p_give_up, attempts: _critic(p_yes, 1 - p_give_up, attempts),
          "p_give_up is the probability to stop. The next attempt is made with probability 1 - p_give_up."),
], same=_same_numbers)
