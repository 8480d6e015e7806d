"""The learning rate schedule of a guided run: linear warmup, then constant, linear or cosine decay."""

import math

from codebrush.generation.guided.guide_options import GuideOptions


def learning_rate(step: int, options: GuideOptions) -> float:
    """The learning rate of `step`, of which 0 is the first."""
    return options.learning_rate * _factor(step, options)


def _factor(step: int, options: GuideOptions) -> float:
    if step < options.warmup:
        return (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, options.steps - options.warmup)
    if options.schedule == "linear":
        return 1 - done
    return (1 + math.cos(math.pi * done)) / 2 if options.schedule == "cosine" else 1.0
