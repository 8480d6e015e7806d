"""Passwords, keys and signatures stand in no message, report, manifest or pack."""

import json
import time
from pathlib import Path

import pytest

from codebrush import Codebrush
from codebrush.data.sources.unread import Unread
from codebrush.data.streaming.stream import Stream
from codebrush.errors import CodebrushError, DataError, without_secrets
from codebrush.pack.writing import pack_info
from codebrush.serving import KEY_VARIABLE
from codebrush.warned import heard, warn

SECRET = "s3cr3t"  # noqa: S105 - it is the tests' own
PASSWORDS = [  # with what ends a host or a name, not escaped
    *(f"a{sign}{SECRET}" for sign in "/?#@:"), *(f"{SECRET}{sign}a" for sign in "/?#"), f"12{SECRET}",
    f"/{SECRET}", f"a/b@{SECRET}", f"a'{SECRET}",
]  # fmt: skip
NAMES = ["pwd", "passwd", "pass", "db_password", "credentials", "jwt"]
ADDRESSES = [
    f"https://me:{SECRET}@host.example/a.tar",
    f"https://host.example/a.tar?x=1&X-Amz-Signature={SECRET}&y=2",
    f"https://host.example/a.tar?sig={SECRET}",
    f"s3://{SECRET}@bucket/a.tar",
    f"https://host.example/?access_token={SECRET}#part",
    *(f"https://me:{password}@host.example/a.tar" for password in PASSWORDS),
    *(f"https://host.example/a.tar?x=1&{name}={SECRET}" for name in NAMES),
    f"https://host.example/a.tar?pwd=a#{SECRET}",
    f"https://host.example/a.tar?x=1;token={SECRET}",
    f"https://host.example/#access_token={SECRET}",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_message_and_no_report_holds_a_secret(address: str) -> None:
    said: list[str] = []
    with heard(lambda text, _: said.append(text)):
        warn(f"{address}: cannot be read")
    unread = Unread("here")
    unread.name(address, f"{address} is not there")
    unread.note(f"{address}: read as another")
    unread.count(f"file of {address}")
    origin = Unread(address)
    origin.note("read as another")
    origin.count("picture")
    said += [
        *unread.lines,
        *origin.lines,
        json.dumps(unread.report),
        str(DataError(f"{address}: no such file")),
        repr(CodebrushError(address)),
    ]
    assert len(said) == 9
    for text in said:
        assert SECRET not in text
        assert "***" in text
        assert "host.example" in text or "bucket" in text


@pytest.mark.parametrize(
    "text",
    [
        "a@b.example",
        "https://host/a?key_frames=3 and more",
        "https://host/a@2x.png",
        "a cat :// b @ c",
        "x://y/z?monkey",
        "https://host:8080/a@2x.png",
        "http://[::1]:8080/a@2x.png",
        "file:///C:/a@2x.png and file://C:/a@2x.png",
        '{"a": "https://host:8080", "b": "a@b.example"}',
        "['https://host:80','a@b.example'] https://host: a@b",
        "s3://bucket/a:b@2x.png",
    ],
)
def test_other_texts_stay(text: str) -> None:
    assert without_secrets(text) == text


def test_what_stands_behind_an_address_stays() -> None:
    text = f"https://me:a/{SECRET}@host/a@2x.png?sig={SECRET}: no such file, https://b?key={SECRET}, c"
    assert without_secrets(text) == "https://***@host/a@2x.png?sig=***: no such file, https://b?key=***, c"


def test_no_text_takes_long() -> None:
    began = time.process_time()
    for text in ("://a:b" * 20_000, "://a:" + "b@" * 50_000, "://?" + "a" * 100_000, "://a?token=" + ":" * 100_000):
        without_secrets(text)
    assert time.process_time() - began < 5


def test_a_source_that_cannot_be_reached_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"https?://\*\*\*@127\.0\.0\.1:9/") as caught:
        Stream(f"http://me:{SECRET}@127.0.0.1:9/shards-0.tar?token={SECRET}", tmp_path / "cache", most=2)
    assert SECRET not in str(caught.value)


def test_a_pack_does_not_say_how_its_pictures_were_got() -> None:
    quoted = f'url != "https://a.example/?key={SECRET}"'
    plans = {"clip": {"replay": {"source": ADDRESSES[0]}, "where": [quoted]}}
    provenance = {"plans": plans, "rows": {"n": 3, "where": ("a", 1.5)}}
    info = pack_info(
        {"clip": "clip", "vqgan": "vqgan"},
        name="a",
        version="1",
        licence="x",
        image_size=32,
        provenance=provenance,
        more={},
    )
    assert SECRET not in json.dumps(info)
    assert info["provenance"]["rows"] == {"n": 3, "where": ["a", 1.5]}


def test_a_manifest_holds_nothing_of_the_environment(micro_pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (KEY_VARIABLE, "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRET)
    manifest = (
        Codebrush.from_pretrained(micro_pack, device="cpu").generate("a circle", n=1, rerank=1, seed=0)[0].manifest
    )
    assert SECRET not in json.dumps(manifest)
