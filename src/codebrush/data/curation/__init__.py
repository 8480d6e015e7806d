"""Chooses the rows of a source that are worth training on."""
