"""What is known of a cluster before work begins, and how errors of its workers come back; nothing is started."""

import pytest

from codebrush.distributed.cluster import Cluster, joined, passed_on, sized
from codebrush.errors import CodebrushError, UsageError, lacks_memory


@pytest.fixture(autouse=True)
def installed() -> None:
    pytest.importorskip("ray", reason="Ray is not installed")


@pytest.mark.parametrize("address", ["my..host:6379", f"{'a' * 70}.org:6379", "ray://my..host:10001"])
def test_an_address_that_is_no_host_is_refused_in_one_line(address: str) -> None:
    match = rf"^no Ray cluster answers at {address} \(.+\): start one .+$"  # of one line
    with pytest.raises(CodebrushError, match=match), joined(address):
        pass


@pytest.mark.parametrize("port", ["0", "99999", "9" * 5_000])
def test_a_port_out_of_range_is_refused(port: str) -> None:
    with pytest.raises(UsageError, match="has no port from 1 to 65535"), joined(f"127.0.0.1:{port}"):
        pass


def test_workers_are_as_many_as_gpus_or_processors() -> None:
    assert sized({"CPU": 8.0, "GPU": 2.0}, None) == Cluster(2, 1.0)
    assert sized({"CPU": 8.0, "GPU": 2.0}, 4) == Cluster(4, 0.5)
    assert sized({"CPU": 8.0}, None) == Cluster(8, 0.0)
    assert sized({}, 3) == Cluster(3, 0.0)
    with pytest.raises(CodebrushError, match="the Ray cluster has no processor for workers: join a machine"):
        sized({"memory": 1e9}, None)


def test_workers_get_the_keys_of_storage_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = {"AWS_ACCESS_KEY_ID", "AWS_ENDPOINT", "AZURE_STORAGE_ACCOUNT_KEY", "CODEBRUSH_MAX_PIXELS"}
    others = {
        "CODEBRUSH_API_KEY",
        "CODEBRUSH_HOME",
        "CODEBRUSH_DEBUG",
        "GOOGLE_API_KEY",
        "AZURE_OPENAI_API_KEY",
        "HOME",
    }
    for name in (*needed, *others):
        monkeypatch.setenv(name, "1")
    assert needed <= passed_on().keys()
    assert others.isdisjoint(passed_on())


@pytest.mark.parametrize(
    "cause", [MemoryError("no memory"), OSError(28, "No space left on device"), RuntimeError("not enough memory")]
)
def test_errors_of_workers_are_those_of_one_process(cause: Exception) -> None:
    from ray.exceptions import RayTaskError

    from codebrush.distributed.workers import cause_of

    error = RayTaskError("work", f"Traceback:\n  of a worker\n{cause}", cause, "ray::Worker", 1, "127.0.0.1")
    raised = cause_of(error.as_instanceof_cause(), "picture 7")
    assert type(raised) is type(cause)
    assert str(raised) == str(cause)
    assert lacks_memory(raised) == lacks_memory(cause)
    assert "of a worker" in raised.__notes__[0]


def test_an_error_of_a_worker_that_cannot_travel_is_one_line() -> None:
    from ray.exceptions import RayTaskError

    from codebrush.distributed.workers import cause_of

    class Odd(Exception):
        def __reduce__(self) -> str:
            raise TypeError("cannot be pickled")

    error = RayTaskError("work", "Traceback:\n  of a worker\nOdd: it broke", Odd(), "ray::Worker", 1, "127.0.0.1")
    raised = cause_of(error, "picture 7")
    assert isinstance(raised, CodebrushError)
    assert str(raised) == "a worker failed at picture 7: Odd: it broke"
