"""Tensors in, tensors out: the networks and nothing else."""
