"""The commands that are disturbed, and the campaign that does it; their unbroken runs are shared by a module."""

from typing import Any

import pytest
from campaign import Campaign, Work
from works import make_works


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Work]:
    return make_works(tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="module")
def campaign(works: dict[str, Work], processes: Any, tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return Campaign(works, tmp_path_factory.mktemp("campaign"), processes, seed=0)
