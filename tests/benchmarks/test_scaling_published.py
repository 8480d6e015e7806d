"""What the scaling model says of published runs that no constant of it comes from."""

import pytest
from scaling_published import BOUND, Check, calibrations, checks

CHECKS = checks()


@pytest.mark.parametrize("check", [check for check in CHECKS if not check.miss], ids=lambda check: check.what)
def test_it_is_foretold_within_the_bound(check: Check):
    assert abs(check.deviation) <= BOUND


@pytest.mark.parametrize("check", [check for check in CHECKS if check.miss], ids=lambda check: check.what)
def test_a_miss_is_one_and_has_its_reason(check: Check):
    assert abs(check.deviation) > BOUND
    assert len(check.miss) > 40


def test_most_are_foretold_and_of_several_sources():
    within = [check for check in CHECKS if not check.miss]
    assert len(within) >= 15
    assert len({check.source for check in within}) >= 5


def test_constants_are_of_a_reasonable_size():
    values = {it.constant: it.value for it in calibrations()}
    shares = [value for name, value in values.items() if name.startswith("utilisation")]
    assert all(0.05 < share < 0.7 for share in shares)
    assert len(values) == len(calibrations())
    assert all(value > 0 for value in values.values())
