"""What a server is started with: its packs, where it keeps things, who may call it and how much they may ask for."""

from dataclasses import dataclass, field
from pathlib import Path

from codebrush.errors import UsageError
from codebrush.serving import KEY_VARIABLE
from codebrush.serving.jobs.limits import Limits

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Settings:
    """How a server runs. The first of `packs` answers requests that name no model; without `keys` everybody may call.

    Raises:
        UsageError: if it would listen beyond this machine without a key, and `no_key` does not say that it may.
    """

    packs: tuple[str, ...] = ("emoji",)
    data: Path = Path("outputs/serve")
    libraries: tuple[Path, ...] = ()  # folders that may be read for searches and trainings
    workers: int = 1  # processes that draw and read; 1: the server's own
    weights: str = "auto"  # with which code transformers draw, as in `Codebrush.from_pretrained`
    host: str = "127.0.0.1"
    port: int = 7860
    keys: tuple[str, ...] = field(default=(), repr=False)
    no_key: bool = False
    allowed_hosts: tuple[str, ...] = ()
    limits: Limits = Limits()
    max_body: int = 32 * 1024**2  # bytes of a request
    max_pixels: int = 1024 * 1024  # of a picture that is asked for
    max_input_pixels: int = 64_000_000  # of a picture that is sent
    grace: float = 30.0  # seconds that what runs has at the end
    page: bool = False  # whether it serves the page as well
    open_page: bool = False  # whether it opens the page in a browser of this machine

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and not self.keys and not self.no_key:
            raise UsageError(
                f"{self.host} can be reached from other machines: set {KEY_VARIABLE} to a key that callers must "
                "give, or say --no-key"
            )
