"""What the scaling model says of published runs that no constant of it comes from."""

import pytest
from scaling_published import BOUND, Check, calibrations, checks


@pytest.fixture(scope="module")
def checked() -> list[Check]:
    return checks()


def test_each_is_foretold_within_the_bound_or_a_miss_with_its_reason(checked: list[Check]):
    wrong = list[str]()
    for check in checked:
        is_far = abs(check.deviation) > BOUND
        if is_far != bool(check.miss):
            wrong.append(
                f"{check.what}: {check.deviation:+.0%}, {'no' if is_far else 'though within the bound, a'} miss"
            )
        if 0 < len(check.miss) <= 40:
            wrong.append(f"{check.what}: '{check.miss}' is no reason")
    assert wrong == []
    assert any(check.miss for check in checked)


def test_most_are_foretold_and_of_several_sources(checked: list[Check]):
    within = [check for check in checked if not check.miss]
    assert len(within) >= 15
    assert len({check.source for check in within}) >= 5


def test_constants_are_of_a_reasonable_size():
    values = {it.constant: it.value for it in calibrations()}
    assert len(values) == len(calibrations())
    limits = {name: (0.05, 0.7) if name.startswith("utilisation") else (0.0, float("inf")) for name in values}
    assert {name: value for name, value in values.items() if not limits[name][0] < value < limits[name][1]} == {}
