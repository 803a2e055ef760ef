"""Sharing a trained model: export, serving, chat."""
