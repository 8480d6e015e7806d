"""Files of the golden set that are no checkpoints: pictures, strings, the published vocabulary."""

from collections.abc import Callable
from pathlib import Path

import pytest

from golden_files import FOLDERS


@pytest.fixture(scope="session")
def golden_file() -> Callable[[str], Path]:
    """Where the file of a name lies; the test is skipped where it is not at hand."""

    def find(name: str) -> Path:
        for folder in FOLDERS:
            if (folder / name).is_file():
                return folder / name
        pytest.skip(f"needs shared/golden/{name} beside the checkout")

    return find
