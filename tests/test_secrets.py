"""Passwords, keys and signatures stand in no message, report, manifest or pack."""

import json
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
ADDRESSES = [
    f"https://me:{SECRET}@host.example/a.tar",
    f"https://host.example/a.tar?x=1&X-Amz-Signature={SECRET}&y=2",
    f"https://host.example/a.tar?sig={SECRET}",
    f"s3://{SECRET}@bucket/a.tar",
    f"https://host.example/?access_token={SECRET}#part",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_message_and_no_report_holds_a_secret(address: str) -> None:
    said: list[str] = []
    with heard(lambda text, _: said.append(text)):
        warn(f"{address}: cannot be read")
    unread = Unread("here")
    unread.name(address, f"{address} is not there")
    said += [
        *unread.lines,
        json.dumps(unread.report),
        str(DataError(f"{address}: no such file")),
        repr(CodebrushError(address)),
    ]
    assert len(said) == 5
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
    ],
)
def test_other_texts_stay(text: str) -> None:
    assert without_secrets(text) == text


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
