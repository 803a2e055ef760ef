"""Every figure is drawn from run directories and evaluations, and saved; methods keep their colours."""


import numpy as np
import pytest

from lab_utils import REPOSITORY
from lab_utils import config as configuration
from lab_utils import figures as plotting
from lab_utils.evaluation import Evaluation
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
          "finished": True, "num_tokens": int(10 + 5 * c), "attempts": int(1 + c)} for c in rng.random(4) < share]
        for _ in range(20)
    ]
    examples = [{"question": str(i), "prompt": [], "gold": "1", "completions": c} for i, c in enumerate(answers)]
    return Evaluation(examples)


@pytest.fixture(scope="module")
def evaluations():
    return {"base": make_evaluation(0.0, 0), "SFT": make_evaluation(0.3, 1), "GRPO": make_evaluation(0.8, 2)}


def saved(path):
    return path.stat().st_size > 10_000


def test_training_of_one_run_and_of_several(runs, tmp_path):
    one = plotting.plot_training(runs["GRPO"][0], tmp_path / "one.png")
    several = plotting.plot_training(runs, tmp_path / "new" / "several.png", x="minutes")
    assert saved(tmp_path / "one.png") and saved(tmp_path / "new" / "several.png")
    assert [ax.get_title(loc="left") for ax in one.axes] == ["Reward", "Accuracy", "Response length", "Attempts"]
    accuracy = several.axes[1]
    assert len(accuracy.lines) == 3 + 1 + 1 + 1  # a line per run and a mean per method
    assert {text.get_text(): text.get_color() for text in accuracy.texts} == {
        "GRPO": plotting.METHOD_COLOURS["grpo"], "random reward": plotting.METHOD_COLOURS["random"]}
    assert accuracy.get_xlim()[1] == pytest.approx(2.0, abs=0.05)  # 30 steps of 4 seconds
    mean = accuracy.lines[3].get_ydata()
    assert mean[15] == pytest.approx(0.55 * 16 / 30)  # the mean of 0.5, 0.55 and 0.6


def test_metrics_that_were_not_logged_have_no_panel(runs):
    figure = plotting.plot_training(runs["GRPO"][0], metrics=("loss", "entropy"))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["Loss"]


RECORDED = REPOSITORY / "notebooks" / "recorded" / "runs"


def test_a_checkup_has_nine_panels_and_shows_curves_that_stay_at_zero(tmp_path):
    run = RunDirectory(RECORDED / "F")  # earns nothing
    figure = plotting.plot_checkup(run, RunDirectory(RECORDED / "healthy"), tmp_path / "checkup.png")
    assert saved(tmp_path / "checkup.png")
    assert len(figure.axes) == 9 and all(ax.get_ylim()[0] < 0 for ax in figure.axes)
    functions = figure.axes[2]
    assert {text.get_text() for text in functions.texts} == {"format", "equation"}
    healthy, ill = figure.axes[1].lines[0], figure.axes[1].lines[2]
    assert healthy.get_color() == plotting.METHOD_COLOURS["healthy"] != ill.get_color()
    assert list(ill.get_ydata()) == list(run.metrics()["accuracy"])


def test_side_by_side_every_curve_is_in_view(tmp_path):
    runs = {letter: RunDirectory(RECORDED / letter) for letter in "ACFGH"}
    figure = plotting.plot_side_by_side(runs, RunDirectory(RECORDED / "healthy"), "accuracy", tmp_path / "side.png")
    assert saved(tmp_path / "side.png")
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in shown] == list(runs)
    for ax in shown:
        low, high = ax.get_ylim()
        assert all(low < min(line.get_ydata()) and max(line.get_ydata()) < high for line in ax.lines)


def test_reward_components_add_up_to_the_total(runs, tmp_path):
    figure = plotting.plot_reward_components(runs["GRPO"][0], tmp_path / "components.png")
    assert saved(tmp_path / "components.png")
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert labels[0] == "total" and len(labels) == 1 + len(runs["GRPO"][0].config().rewards)


def test_figures_of_evaluations(evaluations, tmp_path):
    plotting.plot_accuracy_bars(evaluations, tmp_path / "accuracy.png")
    plotting.plot_pass_at_k(evaluations, tmp_path / "pass.png")
    plotting.plot_attempts(evaluations, tmp_path / "attempts.png")
    plotting.plot_attempts(evaluations, tmp_path / "length.png", name="num_tokens")
    assert all(saved(path) for path in tmp_path.iterdir()) and len(list(tmp_path.iterdir())) == 4


def test_accuracy_bars_have_the_height_of_the_accuracy(evaluations):
    bars = plotting.plot_accuracy_bars(evaluations).axes[0].patches
    assert bars[4].get_height() == evaluations["GRPO"].accuracy and bars[5].get_height() == 1.0


def test_sft_and_advantages(runs, tmp_path):
    plotting.plot_sft(runs["GRPO"][0], tmp_path / "sft.png")
    plotting.plot_advantages([1.1, 0.1, 0.0], [1.15, -0.5, -0.66], tmp_path / "advantages.png")
    assert saved(tmp_path / "sft.png") and saved(tmp_path / "advantages.png")


def test_a_method_has_one_colour_and_others_differ():
    first = plotting.colours(["base", "GRPO, seed 1", "extra SFT", "length reward", "honest reward"])
    assert first[:3] == [plotting.METHOD_COLOURS[name] for name in ("base", "grpo", "extra sft")]
    assert len(set(first)) == 5


def test_labels_at_the_ends_do_not_overlap():
    figure, ax = plotting.plt.subplots()
    ax.set_ylim(0, 1)
    plotting._label_ends(ax, [(0.98, "a", "k"), (0.99, "b", "k"), (0.2, "c", "k")], gap=0.1)
    heights = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert heights["b"] - heights["a"] == pytest.approx(0.1) and heights["b"] <= 1.0
    plotting.plt.close(figure)


def test_metrics_of_a_log_have_a_panel_each(tmp_path):
    values = {"grpo:reward": [0.1, 0.2, 0.3], "grpo:accuracy": [0.0, 0.1, 0.4], "sft:loss": [2.0]}
    figure = plotting.plot_log(values, tmp_path / "log.png")
    assert [ax.get_title(loc="left") for ax in figure.axes if ax.get_visible()] == ["Reward", "Accuracy", "Loss"]
    assert list(figure.axes[1].lines[0].get_ydata()) == [0.0, 0.1, 0.4] and saved(tmp_path / "log.png")
    assert figure.axes[0].lines[0].get_color() == plotting.METHOD_COLOURS["grpo"]


def test_problem_accuracy_counts_questions_by_their_right_answers(evaluations, tmp_path):
    figure = plotting.plot_problem_accuracy(evaluations["SFT"], tmp_path / "problems.png")
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    right = evaluations["SFT"].scores().sum(axis=1)
    assert heights == [float((right == n).mean()) for n in range(5)] and saved(tmp_path / "problems.png")
