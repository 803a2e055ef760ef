"""What only the notebooks use: self-checks, the GRPO arithmetic, a close look at completions, diagnosing runs."""
