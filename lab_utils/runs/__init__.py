"""Run directories: the only interface between stages, notebooks, plots and cloud jobs."""

from .callbacks import (
    MetricsCallback,
    PrintMetricsCallback,
    ProgressCallback,
    completion_in_words,
    parse_metrics_line,
    progress_bar,
    report_to,
    send_completions,
    wandb_run,
)
from .directory import (
    TIMING_COLUMNS,
    VALUE_HEAD_FILE,
    RunDirectory,
    RunDirectoryError,
    checkpoint_problem,
    config_of,
    describe_environment,
    holds_files,
    model_of,
    write_atomically,
    written_whole,
)
