"""What the scaling model says of published runs that no constant of it comes from."""

import pytest
from scaling_published import BOUND, Check, calibrations, checks


@pytest.fixture(scope="module")
def checked() -> list[Check]:
    return checks()


def test_each_is_foretold_within_the_bound(checked: list[Check]):
    far = {check.what: check.deviation for check in checked if not check.miss and abs(check.deviation) > BOUND}
    assert not far


def test_each_miss_is_one_and_has_its_reason(checked: list[Check]):
    misses = [check for check in checked if check.miss]
    assert misses
    assert {check.what: check.deviation for check in misses if abs(check.deviation) <= BOUND} == {}
    assert [check.what for check in misses if len(check.miss) <= 40] == []


def test_most_are_foretold_and_of_several_sources(checked: list[Check]):
    within = [check for check in checked if not check.miss]
    assert len(within) >= 15
    assert len({check.source for check in within}) >= 5


def test_constants_are_of_a_reasonable_size():
    values = {it.constant: it.value for it in calibrations()}
    shares = [value for name, value in values.items() if name.startswith("utilisation")]
    assert all(0.05 < share < 0.7 for share in shares)
    assert len(values) == len(calibrations())
    assert all(value > 0 for value in values.values())
