"""The commands that are disturbed, and the campaign that does it; their unbroken runs are shared by a module."""

from collections.abc import Iterator
from typing import Any

import pytest
from campaign import Campaign, Work
from works import gather_work, make_works

from rude_server import rude_server


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Work]]:
    given = tmp_path_factory.mktemp("given")
    with rude_server() as server:
        yield {**make_works(given), "gather": gather_work(given / "gathered", server)}


@pytest.fixture(scope="module")
def campaign(works: dict[str, Work], processes: Any, tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return Campaign(works, tmp_path_factory.mktemp("campaign"), processes, seed=0)
