"""The table of `make bench` holds what each benchmark notes: times, memory, recall, and how costs grow."""

from table import growth, table

TIMES = {"peer": [2.0, 2.2, 4.0], "codebrush": [1.0, 1.0, 1.0]}
ROWS = [
    {"title": "a step", "times": TIMES, "flops": 5e9, "read": {}, "load": 0.2, "threads": 2},
    {"title": "a step", "way": "codebrush", "megabytes": 1234},
    {"title": "a search", "recall": 0.987},
    {"growth": "reading", "cells": ["reading", "1 / 2", "3 / 4", "5 / 6", "1.00", "0.90", "0.10"]},
]
CEILINGS = {"memory": 3e10, "float32": 1e11, "bf16": 1e10}


def test_every_kind_of_row_has_its_place() -> None:
    found = table(ROWS, CEILINGS)
    assert found[2] == "| a step | peer | 2.2 s | 1 s | 2.20 (2.00 to 4.00) | 50% of bf16 | 0.2 |"
    assert found[-2:] == [
        "- a step, codebrush: at most 1,234 MB of memory",
        "- a search: recall at 10: 0.987",
    ]
    assert growth(ROWS)[-1] == "| reading | 1 / 2 | 3 / 4 | 5 / 6 | 1.00 | 0.90 | 0.10 |"
    assert growth(ROWS[:3]) == []
