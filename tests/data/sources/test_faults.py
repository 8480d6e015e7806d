"""What is raised while a source is read: of a source it is one line, and a fault of this package stays what it is."""

import json
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Value, config
from datasets.exceptions import DatasetGenerationError
from datasets.utils.tqdm import tqdm
from written_sources import write_parquet

from codebrush.data.sources.cached_rows import cached_rows
from codebrush.data.sources.captioned_images import open_source
from codebrush.data.sources.tables import load_from_hub
from codebrush.data.sources.unread import Unread
from codebrush.errors import DataError, lacks_memory


@pytest.mark.parametrize("info", [3, {"features": 3}, {"features": {"caption": 3}}])
def test_a_parquet_file_that_describes_its_columns_as_nonsense_is_refused_in_one_line(tmp_path, picture, info):
    table = pa.table({"image": [picture()], "caption": ["a"]})
    described = table.replace_schema_metadata({"huggingface": json.dumps({"info": info})})
    pq.write_table(described, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read: .+") as caught:
        open_source(tmp_path / "a.parquet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"0.parquet": [[{"a": 1}]], "1.parquet": [["a", "b"]]}, "Couldn't cast"),
        ({"set.py": None}, "Dataset scripts are no longer supported"),
    ],
    ids=["shards that disagree", "a script"],
)
def test_whatever_is_raised_of_a_hub_data_set_is_one_line(tmp_path, monkeypatch, picture, files, reason):
    for name, captions_of in files.items():
        if captions_of is None:
            (tmp_path / "set").mkdir()
            (tmp_path / "set" / name).touch()
        else:
            write_parquet(tmp_path / "set" / name, image=[picture()], caption=captions_of)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=rf"^set.*cannot be read: {reason}") as caught:
        load_from_hub("set")  # of one that is not there in the cache, it is the folder of this name
    assert "\n" not in str(caught.value)


class Hub(BaseHTTPRequestHandler):
    """Answers whatever it is asked with `status`, `error` and `body`."""

    status, error, body = 200, "", b""

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("X-Error-Code", self.error)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine that answers as the class above says."""
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield monkeypatch
        server.shutdown()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((404, "RepoNotFound", b""), "the hub has no such data set (no data set of this name, or a private one)"),
        ((500, "", b""), "the hub does not answer (Server error"),
        ((200, "", b"<p>Sign in to use this network"), "the hub does not answer (Expecting value"),
    ],
    ids=["none", "broken", "no hub"],
)
def test_what_the_hub_answers_is_said_in_one_line(hub, answer, said):
    for name, value in zip(("status", "error", "body"), answer, strict=True):
        hub.setattr(Hub, name, value)
    with pytest.raises(DataError) as caught:
        load_from_hub("codebrush-tests/set")
    assert str(caught.value).startswith(f"codebrush-tests/set: no such file or folder, and {said}")
    assert str(caught.value).endswith("; correct the name, or set HF_HUB_OFFLINE=1 to use an earlier download")
    assert "\n" not in str(caught.value)


def test_a_name_that_the_hub_does_not_allow_is_said_in_one_line(hub):
    with pytest.raises(DataError, match=r"^a\.\.b/c: .* the hub has no such data set \(Cannot have -- or \.\."):
        load_from_hub("a..b/c")


@pytest.mark.parametrize("fault", [TypeError, AttributeError, ValueError])
def test_a_fault_of_the_call_is_not_said_of_the_hub(hub, fault):
    def broken(*_: object, **__: object) -> None:
        raise fault("a bug of ours")

    hub.setattr("huggingface_hub.HfApi.dataset_info", broken)
    with pytest.raises(fault, match="a bug of ours"):
        load_from_hub("codebrush-tests/set")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_fault_of_a_library_that_reads_sources_is_the_sources(tmp_path, monkeypatch, wrapped):
    """Also of what such a library calls, and of what it has no class of its own for."""

    def read(*_: object) -> None:
        try:
            httpx.Client(transport=Unwilling()).get("http://localhost/")
        except httpx.HTTPError as error:
            if not wrapped:
                raise
            raise DatasetGenerationError from error

    monkeypatch.setattr("codebrush.data.sources.tables.read_tables", read)
    (tmp_path / "a.csv").write_text("file_name,caption\na.png,a\n")
    with pytest.raises(DataError, match=r"a\.csv: cannot be read: it hung up"):
        open_source(tmp_path / "a.csv")


class Unwilling(httpx.BaseTransport):
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        raise httpx.RemoteProtocolError("it hung up", request=request)


@pytest.mark.parametrize(
    ("place", "broken", "kind"),
    [
        ("read_object", lambda line: {"caption": object()}, DatasetGenerationError),  # called back by `datasets`
        ("described", lambda dataset: dataset.nothing, AttributeError),
    ],
)
def test_a_fault_of_this_package_is_not_said_of_the_source(tmp_path, monkeypatch, place, broken, kind):
    monkeypatch.setattr(f"codebrush.data.sources.table_reader.{place}", broken)
    (tmp_path / "a.jsonl").write_text('{"file_name": "a.png", "caption": "a"}\n')
    with pytest.raises(kind) as caught:
        open_source(tmp_path / "a.jsonl")
    assert caught.value.__cause__ is None or isinstance(caught.value.__cause__, TypeError)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("fault", [MemoryError("of 4 GB"), AttributeError("a bug of ours")])
def test_what_is_not_the_sources_fault_is_not_said_of_it(tmp_path, monkeypatch, fault, wrapped):
    def read(*_: object) -> None:
        if wrapped:
            raise DatasetGenerationError from fault  # as `datasets` does while it reads rows
        raise fault

    monkeypatch.setattr("codebrush.data.sources.tables.read_tables", read)
    (tmp_path / "a.csv").write_text("file_name,caption\na.png,a\n")
    with pytest.raises((MemoryError, AttributeError, DatasetGenerationError)) as caught:
        open_source(tmp_path / "a.csv")
    assert isinstance(caught.value, DatasetGenerationError if wrapped and not lacks_memory(fault) else type(fault))


def test_reading_starts_no_thread_that_watches_bars(tmp_path: Path) -> None:
    """Where there is no memory for it, Python waits for that thread for ever."""
    (file := tmp_path / "any.csv").touch()
    usual = tqdm.monitor_interval
    rows = cached_rows(_watched, [(file, "train")], {"interval": Value("int64")}, Unread("any"), tmp_path / "cache")
    assert rows["interval"][:] == [0]
    assert tqdm.monitor_interval == usual > 0


def _watched(files: Iterable[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    yield {"interval": tqdm.monitor_interval}
