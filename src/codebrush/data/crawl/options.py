"""How pictures are downloaded: waits, limits, retries, what is stored; with their defaults."""

from dataclasses import dataclass, field

from codebrush.errors import UsageError


@dataclass(frozen=True)
class FetchLimits:
    """`timeout` is the longest wait for the next byte and `deadline` that for a whole picture, both in seconds."""

    timeout: float = 10.0
    deadline: float = 60.0
    max_bytes: int = 20_000_000
    allow_local: bool = False  # whether private addresses may be asked


@dataclass(frozen=True)
class GatherOptions:
    """How to fetch and what to store. Values out of range raise UsageError.

    `workers` pictures are fetched at once, up to `at_once` of them from one site. Requests to one site start `delay`
    seconds apart, or more if its robots.txt asks for it. A failure that may pass is retried `retries` times, `pause`
    seconds later and then after twice as long each time. `resize` scales larger pictures down to that shorter side,
    in pixels. `contact` is sent along with each request.
    """

    workers: int = 16
    at_once: int = 2
    delay: float = 0.1
    retries: int = 2
    pause: float = 1.0
    resize: int | None = None
    shard_rows: int = 1_000
    contact: str = ""
    limits: FetchLimits = field(default_factory=FetchLimits)

    def __post_init__(self) -> None:
        least = {"workers": 1, "at_once": 1, "delay": 0, "retries": 0, "pause": 0, "shard_rows": 1}
        low = [name for name, value in least.items() if getattr(self, name) < value]
        if low or (self.resize is not None and self.resize < 1):
            raise UsageError(f"--{(low or ['resize'])[0].replace('_', '-')} is too low")
        if not all(value > 0 for value in (self.limits.timeout, self.limits.deadline, self.limits.max_bytes)):
            raise UsageError("--timeout, --deadline and --max-bytes must be above 0")
        if not (self.contact.isascii() and self.contact.isprintable()):
            raise UsageError("--contact must be plain ASCII, like mailto:me@example.org")
