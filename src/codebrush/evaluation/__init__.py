"""Measures how good a pack's models are, with the usual metrics."""
