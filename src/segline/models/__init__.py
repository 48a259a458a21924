"""One architecture a file; every class maps `[B, C, *S]` to logits `[B, K, *S]`, any size."""
