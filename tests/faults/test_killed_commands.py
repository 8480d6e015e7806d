"""Commands are ended by SIGKILL, SIGTERM or Ctrl-C at random moments: nothing is half written under its final name, no
message is a traceback, and taken up again they end as if they had been left alone, bit for bit where that is promised.

One of each in `make test`, or in `make test-slow` where another file has the like; `make test-long` ends each forty
times, 240 in all."""

from typing import Any

import pytest
from campaign import Campaign
from works import NAMES

ELSEWHERE = {"train-clip", "guide"}  # in test_resume of the engine, and test_guided_run


@pytest.mark.parametrize(  # test_resume ends the training of a VQGAN, many times
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ELSEWHERE)) for name in NAMES[1:]]
)
def test_a_command_that_is_ended_goes_on(name: str, campaign: Campaign) -> None:
    campaign.end_once(name, 0)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_forty_ends_of_each(name: str, campaign: Campaign, record_property: Any) -> None:
    campaign.end_times(name, 40)
    for (work, end), count in sorted(campaign.counts.items()):
        if work == name:
            record_property(end, count)
            print(f"{name}: {end} {count}")
