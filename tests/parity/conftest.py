"""Files of the golden set other than checkpoints: pictures, strings, the published vocabulary."""

from collections.abc import Callable
from pathlib import Path

import pytest

from golden_files import FOLDERS


@pytest.fixture(scope="session")
def golden_file() -> Callable[[str], Path]:
    """Finds a file by its name; the test is skipped if it is missing."""

    def find(name: str) -> Path:
        for folder in FOLDERS:
            if (folder / name).is_file():
                return folder / name
        pytest.skip(f"needs shared/golden/{name} beside the checkout")

    return find
