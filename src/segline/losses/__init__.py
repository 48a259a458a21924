"""Losses on logits: one idea a file, every class `forward(logits, mask, weight=None)` -> scalar."""
