"""Commands are ended by SIGKILL, SIGTERM or Ctrl-C at random moments: nothing is half written under its final name, no
message is a traceback, and taken up again they end as if they had been left alone, bit for bit where that is promised.

Some once in `make test` and `make test-slow`; `make test-long` ends each forty times, 520 in all."""

from typing import Any

import pytest
from campaign import Campaign
from works import KILLED

SLOW = ("train-clip", "guide")  # test_resume of the engine and test_guided_run have the like


@pytest.mark.parametrize(
    "name", ["index", "curate", "upscale", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_a_command_that_is_ended_goes_on(name: str, campaign: Campaign) -> None:
    campaign.end_once(name, 0)


@pytest.mark.long
@pytest.mark.parametrize("name", KILLED)
def test_forty_ends_of_each(name: str, campaign: Campaign, record_property: Any) -> None:
    end_many_times(name, 40, campaign, record_property)


@pytest.mark.long
def test_ends_of_an_index_that_workers_of_ray_make(campaign: Campaign, record_property: Any) -> None:
    pytest.importorskip("ray", exc_type=ImportError)
    end_many_times("index-ray", 6, campaign, record_property)  # each starts a cluster, which takes ten seconds


def end_many_times(name: str, count: int, campaign: Campaign, record_property: Any) -> None:
    campaign.end_times(name, count)
    for (work, end), count in sorted(campaign.counts.items()):
        if work == name:
            record_property(end, count)
            print(f"{name}: {end} {count}")
