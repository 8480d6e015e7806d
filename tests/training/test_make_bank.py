"""Which pictures a bank holds."""

import numpy as np

from codebrush.training.make_bank import spread


def test_no_group_gets_a_second_row_before_every_group_has_one() -> None:
    groups = np.array([2, 2, 2, 0, 0, 1])
    assert spread(groups, 3).tolist() == [0, 3, 5]
    assert spread(groups, 5).tolist() == [0, 1, 3, 4, 5]
    assert spread(groups, 99).tolist() == [0, 1, 2, 3, 4, 5]


def test_too_many_groups_are_taken_from_the_whole_source() -> None:
    groups = np.repeat(np.arange(100), 3)
    rows = spread(groups, 10)
    assert len(rows) == 10
    assert len(set(groups[rows])) == 10
    assert (groups[rows][0], groups[rows][-1]) == (0, 99)
