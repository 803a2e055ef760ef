"""Sampling many completions fast: local.py is ours, vllm.py the twin for vLLM."""
