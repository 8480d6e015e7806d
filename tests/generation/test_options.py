"""Options inside and outside their ranges."""

import math

import numpy as np
import pytest

from codebrush.errors import UsageError
from codebrush.generation.options import DrawOptions

GOOD = {
    "n": 2,
    "seed": 0,
    "cfg": 3.0,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "rerank": 2,
}
BAD = [
    ("n", 0),
    ("n", 1025),
    ("n", 1.5),
    ("n", None),
    ("seed", -1),
    ("seed", 2**63),
    ("cfg", math.inf),
    ("cfg", -1),
    ("cfg", "much"),
    ("temperature", math.nan),
    ("temperature", -0.1),
    ("top_k", -1),
    ("top_p", 0),
    ("top_p", 7),
    ("top_p", 10**400),
    ("min_p", 1.01),
    ("retouch", -1),
    ("retouch", 17),
    ("steps", 0),
    ("rerank", 1),
    ("rerank", 5000),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_what_is_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"^{name} must be ") as caught:
        DrawOptions(**{**GOOD, name: value})
    assert "\n" not in str(caught.value)


def test_bounds_are_in_range_and_numpy_numbers_are_taken() -> None:
    options = DrawOptions(
        n=np.int64(1024), seed=2**63 - 1, cfg=0, temperature=0, top_k=0, top_p=1e-300, min_p=1, rerank=4096
    )
    assert type(options.n) is int
    assert type(options.cfg) is float
