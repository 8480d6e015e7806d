"""Fits the steps of guidance into memory: what one needs, decoding in tiles, recomputed activations."""
