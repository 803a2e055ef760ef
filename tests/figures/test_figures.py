"""Every figure shows the numbers of its run directories and evaluations, and methods keep their colors."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from lab_utils import REPOSITORY, figures
from lab_utils import config as configuration
from lab_utils.evaluation import Evaluation
from lab_utils.figures.style import colors, label_ends
from lab_utils.runs import RunDirectory

pytestmark = pytest.mark.unit


def make_run(path, accuracy):
    run = RunDirectory.create(configuration.load("countdown-grpo", "cpu"), path)
    for step in range(1, 31):
        share = accuracy * step / 30
        metrics = {"seconds": 4.0 * step, "loss": 1 / step, "reward": share + 0.1, "accuracy": share,
                   "completions/mean_length": 30 + step, "attempts": 1 + step / 20,
                   "rewards/format_reward/mean": 1.0, "rewards/equation_reward/mean": share}
        run.append_metrics(step, metrics)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs")
    return {
        "GRPO": [make_run(directory / f"{seed}" / "grpo", 0.5 + seed / 20) for seed in range(3)],
        "random reward": [make_run(directory / "random" / "grpo", 0.1)],
    }


def make_evaluation(share, seed):
    rng = np.random.default_rng(seed)
    answers = [
        [{"text": "", "extracted": "1", "correct": bool(c), "correct_lenient": True, "has_format": True,
          "finished": True, "num_tokens": int(10 + 5 * c), "attempts": int(1 + c),
          "rewards": {"format_reward": 1.0, "equation_reward": float(c), "length_penalty": -0.5}}
         for c in rng.random(4) < share]
        for _ in range(20)
    ]
    examples = [{"question": str(i), "prompt": [], "gold": "1", "completions": c} for i, c in enumerate(answers)]
    return Evaluation(examples, {"rewards": {"format_reward": 0.1, "equation_reward": 1.0, "length_penalty": 0.2}})


@pytest.fixture(scope="module")
def evaluations():
    return {"base": make_evaluation(0.0, 0), "SFT": make_evaluation(0.3, 1), "GRPO": make_evaluation(0.8, 2)}


def titles(figure):
    return [ax.get_title(loc="left") for ax in figure.axes if ax.get_visible()]


def heights(ax):
    return [bar.get_height() for bar in ax.patches]


# The style


def test_a_method_has_one_color_and_others_differ():
    first = colors(["base", "GRPO, seed 1", "extra SFT", "length reward", "honest reward"])
    assert first[:3] == [figures.METHOD_COLORS[name] for name in ("base", "grpo", "extra sft")]
    assert len(set(first)) == 5


def test_labels_at_the_ends_do_not_overlap():
    figure, ax = plt.subplots()
    ax.set_ylim(0, 1)
    label_ends(ax, [(0.98, "a", "k"), (0.99, "b", "k"), (0.2, "c", "k")], gap=0.1)
    at = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert at["b"] - at["a"] == pytest.approx(0.1) and at["b"] <= 1.0
    plt.close(figure)


# Training


def test_training_of_one_run_and_of_several(runs, tmp_path):
    one = figures.plot_training({"GRPO": runs["GRPO"][0]})
    assert titles(one) == ["Reward", "Accuracy", "Response length", "Attempts"]
    several = figures.plot_training(runs, tmp_path / "new" / "several.png", x="minutes")
    assert (tmp_path / "new" / "several.png").exists()
    accuracy = several.axes[1]
    assert len(accuracy.lines) == 3 + 1 + 1 + 1  # a line per run and a mean per method
    assert {text.get_text(): text.get_color() for text in accuracy.texts} == {
        "GRPO": figures.METHOD_COLORS["grpo"], "random reward": figures.METHOD_COLORS["random"]}
    assert accuracy.get_xlim()[1] == pytest.approx(2.0, abs=0.05)  # 30 steps of 4 seconds
    mean = accuracy.lines[3].get_ydata()
    assert mean[15] == pytest.approx(0.55 * 15 / 30)  # of 0.5, 0.55 and 0.6, over the steps 14, 15 and 16
    assert "thick: mean of 3 seeds, as a trailing mean" in several.get_supxlabel()


def test_metrics_that_were_not_logged_have_no_panel(runs):
    assert titles(figures.plot_training({"GRPO": runs["GRPO"]}, metrics=("loss", "entropy"))) == ["Loss"]


def test_sft_shows_the_loss(runs):
    (ax,) = figures.plot_sft(runs["GRPO"][0]).axes
    assert list(ax.lines[0].get_ydata()) == [1 / step for step in range(1, 31)]


def test_reward_components_add_up_to_the_total(runs):
    (ax,) = figures.plot_reward_components(runs["GRPO"][0]).axes
    assert [text.get_text() for text in ax.texts] == ["total", "format × 0.1", "equation × 1"]
    total, *parts = [line.get_ydata() for line in ax.lines[::2]]  # each thin line is followed by its smoothed one
    assert list(sum(parts)) == pytest.approx(list(total))


def test_metrics_of_a_log_have_a_panel_each():
    values = {"grpo:reward": [0.1, 0.2, 0.3], "grpo:accuracy": [0.0, 0.1, 0.4], "sft:loss": [2.0]}
    figure = figures.plot_log(values)
    assert titles(figure) == ["Reward", "Accuracy", "Loss"]
    assert list(figure.axes[1].lines[0].get_ydata()) == [0.0, 0.1, 0.4]
    assert figure.axes[0].lines[0].get_color() == figures.METHOD_COLORS["grpo"]


# Evaluations


def test_accuracy_bars_have_the_height_of_the_accuracy(evaluations):
    bars = heights(figures.plot_accuracy_bars(evaluations).axes[0])
    assert bars[4] == evaluations["GRPO"].accuracy and bars[5] == 1.0


def test_pass_at_k_has_a_curve_per_model(evaluations):
    (ax,) = figures.plot_pass_at_k(evaluations).axes
    assert [list(line.get_ydata()) for line in ax.lines] == [list(e.pass_at.values()) for e in evaluations.values()]


@pytest.mark.parametrize("name", ["attempts", "num_tokens"])
def test_attempts_and_lengths_are_shares_of_all_responses(evaluations, name):
    figure = figures.plot_attempts(evaluations, name=name)
    for ax, evaluation in zip(figure.axes, evaluations.values(), strict=True):
        every, correct = heights(ax)[:len(ax.patches) // 2], heights(ax)[len(ax.patches) // 2:]
        assert sum(every) == pytest.approx(1.0) and sum(correct) == pytest.approx(evaluation.accuracy)


def test_rewards_are_stacked_up_to_the_total_and_their_histograms_count_all_responses(evaluations):
    figure = figures.plot_rewards(evaluations)
    assert titles(figure) == ["What the reward is made of", "Format", "Equation", "Length penalty", "Total"]
    assert heights(figure.axes[0])[3:6] == pytest.approx([0.1, evaluations["SFT"].accuracy, -0.1])
    assert [bar.get_y() for bar in figure.axes[0].patches[3:6]] == pytest.approx([0.0, 0.1, 0.0])  # penalties: down
    for ax in figure.axes[1:5]:
        assert sum(heights(ax)) == pytest.approx(len(evaluations))  # 100% for each model


def test_problem_accuracy_counts_questions_by_their_correct_answers(evaluations):
    correct = evaluations["SFT"].scores().sum(axis=1)
    expected = [float((correct == n).mean()) for n in range(5)]
    assert heights(figures.plot_problem_accuracy(evaluations["SFT"]).axes[0]) == expected


def test_the_story_begins_with_a_problem_that_rl_solved(runs, evaluations):
    figure = figures.plot_story({"GRPO": runs["GRPO"]}, evaluations)
    example = evaluations["SFT"].examples[int(figure.get_suptitle())]
    solved = evaluations["GRPO"].examples[int(figure.get_suptitle())]
    assert not example["completions"][0]["correct"] and solved["completions"][0]["correct"]
    assert titles(figure)[:2] == ["Before reinforcement learning (SFT): wrong",
                                  "After reinforcement learning (GRPO): correct"]
    assert heights(figure.axes[-1]) == [evaluation.accuracy for evaluation in evaluations.values()]
    assert "20 questions × 4 samples, 95% intervals" == figure.axes[-1].get_xlabel()


# Single lessons

RECORDED = REPOSITORY / "notebooks" / "recorded" / "runs"


def test_advantages_stand_beside_their_rewards():
    left, right = figures.plot_advantages([1.1, 0.1, 0.0], [1.15, -0.5, -0.66]).axes
    assert heights(left) == [1.1, 0.1, 0.0] and heights(right) == [1.15, -0.5, -0.66]


def test_the_overview_has_nine_panels_and_shows_curves_that_stay_at_zero():
    run = RunDirectory(RECORDED / "F")  # earns nothing
    figure = figures.plot_overview(run, RunDirectory(RECORDED / "healthy"))
    assert len(figure.axes) == 9 and all(ax.get_ylim()[0] < 0 for ax in figure.axes)
    assert {text.get_text() for text in figure.axes[2].texts} == {"format", "equation"}
    healthy, checked = [line for line in figure.axes[1].lines if line.get_linewidth() == 1.2]  # the thin ones
    assert healthy.get_color() == figures.METHOD_COLORS["healthy"] != checked.get_color()
    assert list(checked.get_ydata()) == list(run.metrics()["accuracy"])


def test_side_by_side_every_curve_is_in_view():
    runs = {letter: RunDirectory(RECORDED / letter) for letter in "ACFGH"}
    figure = figures.plot_side_by_side(runs, RunDirectory(RECORDED / "healthy"), "accuracy")
    assert titles(figure) == list(runs)
    for ax in figure.axes[:len(runs)]:
        low, high = ax.get_ylim()
        assert all(low < min(line.get_ydata()) and max(line.get_ydata()) < high for line in ax.lines)


def test_cost_is_a_curve_or_a_diamond():
    methods = {"vote": ([30, 60, 120], [0.2, 0.3, 0.35]), "GRPO": ([64], [0.6])}
    curve, point = figures.plot_cost(methods).axes[0].lines
    assert list(curve.get_xdata()) == [30, 60, 120] and list(curve.get_ydata()) == [0.2, 0.3, 0.35]
    assert (point.get_marker(), point.get_color()) == ("D", figures.METHOD_COLORS["grpo"])


def test_a_search_shows_every_trial_and_each_fresh_seed():
    def trial(number, state, accuracy, probe):
        return {"trial": number, "state": state, "accuracy": accuracy, "probe": {"5": probe}, "settings": {}}

    result = {"trials": [trial(0, "complete", 0.5, 0.4), trial(1, "pruned", None, 0.1), trial(2, "complete", 0.7, 0.6),
                         {**trial(3, "fail", None, 0), "probe": {}}],
              "fresh": {"default": [0.5, 0.4], "trial 2": [0.6, 0.5]}, "best": 2, "validation_questions": 200,
              "test_questions": 500, "importance": {"grpo.beta": 0.9, "grpo.learning_rate": 0.1}}
    left, right = figures.plot_search(result).axes
    assert [line.get_ydata().tolist() for line in left.lines[:3]] == [[0.5, 0.7], [0.1], [0.7]]
    assert [line.get_ydata().tolist() for line in left.lines[3:5]] == [[0.5, 0.4], [0.6, 0.5]]
    assert [text.get_text() for text in right.get_yticklabels()] == ["grpo.learning_rate", "grpo.beta"]
    assert [text.get_text() for text in left.get_xticklabels()][-2:] == ["default\nfresh", "trial 2\nfresh"]
    assert "too few" in figures.plot_search({**result, "importance": {}}).axes[1].get_xlabel()
