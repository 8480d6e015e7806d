"""Whose turn it is among the jobs, where they are kept, and the engine that has them done."""
