"""Manifests as they are written: their bytes are a format, and old pictures are replayed from them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codebrush.errors import ImageError, PackError
from codebrush.generation.manifest import (
    SAMPLED,
    before_upscaling,
    check_translator,
    damage_reported,
    drawn_manifest,
    edit_entry,
    foreign_manifest,
    guided_manifest,
    interpolated_manifest,
    picture_entry,
    read_drawn,
    read_edit,
    read_retrieval,
    resized_manifest,
    retrieval_entry,
    translated_manifest,
    upscaled_manifest,
)
from codebrush.generation.options import DrawOptions
from codebrush.generation.origin import versions
from codebrush.pack.pack import open_pack

OPTIONS = DrawOptions(n=1, seed=7, cfg=3.0, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, rerank=4)
ORIGIN = {"pack": {"name": "p", "source": "s", "hash": "h"}, "versions": {"torch": "2"}, "device": "cpu", "threads": 1}
ORIGIN_JSON = (
    '"pack": {"name": "p", "source": "s", "hash": "h"}, "versions": {"torch": "2"}, "device": "cpu", "threads": 1}'
)
DRAWN_JSON = (
    '"prompt": "a dog", "seed": 7, "index": 2, "options": {"n": 1, "cfg": 3.0, "temperature": 1.0, "top_k": 0, '
    '"top_p": 1.0, "min_p": 0.0, "rerank": 4}, "clip_score": 0.5, "size": [32, 16], ' + ORIGIN_JSON
)
FILE, MEMORY = picture_entry("ab", "/a.png"), picture_entry("cd")


@pytest.mark.parametrize(
    ("entry", "written"),
    [
        (SAMPLED, '{"method": "sample", '),
        (
            retrieval_entry("retrieve", "retrieval", 2, "", [("x", 0.5)], "ff"),
            '{"method": "retrieve", "retrieval": {"prior": "retrieval", "neighbours": 2, "bank": "", '
            '"found": [{"name": "x", "cosine": 0.5}], "hash": "ff"}, ',
        ),
        (
            retrieval_entry("retrieve", "none", 4, "", None, None),
            '{"method": "retrieve", "retrieval": {"prior": "none", "neighbours": 4, "bank": ""}, ',
        ),
        (
            edit_entry("vary", "", MEMORY),
            '{"method": "vary", "edit": {"prompt": "", "picture": {"sha256": "cd"}}, ',
        ),
        (
            edit_entry("edit", "a cat", FILE, strength=0.6),
            '{"method": "edit", "edit": {"prompt": "a cat", "picture": {"file": "/a.png", "sha256": "ab"}, '
            '"strength": 0.6}, ',
        ),
        (
            edit_entry("inpaint", "", FILE, MEMORY, extend={}),
            '{"method": "inpaint", "edit": {"prompt": "", "picture": {"file": "/a.png", "sha256": "ab"}, '
            '"mask": {"sha256": "cd"}}, ',
        ),
        (
            edit_entry("inpaint", "", FILE, box=(0, 1, 2, 3), extend={}),
            '{"method": "inpaint", "edit": {"prompt": "", "picture": {"file": "/a.png", "sha256": "ab"}, '
            '"box": [0, 1, 2, 3]}, ',
        ),
        (
            edit_entry("translate", "", FILE, style="3d"),
            '{"method": "translate", "edit": {"prompt": "", "picture": {"file": "/a.png", "sha256": "ab"}, '
            '"style": "3d"}, ',
        ),
    ],
)
def test_a_drawn_picture(entry: dict[str, Any], written: str) -> None:
    manifest = drawn_manifest(entry, "a dog", OPTIONS, 2, 0.5, (32, 16), ORIGIN)
    assert json.dumps(manifest) == written + DRAWN_JSON
    drawn = read_drawn(json.loads(json.dumps(manifest)))
    assert (drawn.prompt, drawn.options, drawn.index, drawn.threads) == ("a dog", OPTIONS, 2, 1)
    assert json.dumps(resized_manifest(manifest, (4, 8))) == json.dumps(manifest).replace("[32, 16]", "[4, 8]")


def test_a_size_is_an_option_of_its_own() -> None:
    manifest = drawn_manifest(SAMPLED, "a dog", replace(OPTIONS, size="32x16"), 2, 0.5, (32, 16), ORIGIN)
    assert manifest["options"]["size"] == "32x16"
    assert read_drawn(manifest).options.size == "32x16"


def test_details_are_read_as_they_were_written() -> None:
    entry = json.loads(json.dumps(edit_entry("inpaint", "a cat", FILE, box=(0, 1, 2, 3))))
    assert read_edit(entry) == {"kind": "inpaint", "prompt": "a cat", "picture": FILE, "box": (0, 1, 2, 3)}
    found = {"prior": "mlp", "neighbours": 4, "bank": ""}
    assert read_retrieval(retrieval_entry("retrieve", **found, found=None, digest="ff")) == found


def test_other_pictures(micro_pack: Path) -> None:
    translated = translated_manifest(edit_entry("translate", "", FILE, style="3d"), 0.5, (32, 16), "ee", ORIGIN)
    assert json.dumps(translated) == (
        '{"method": "translate", "edit": {"prompt": "", "picture": {"file": "/a.png", "sha256": "ab"}, "style": "3d"}, '
        '"prompt": "", "seed": 0, "index": 0, "clip_score": 0.5, "size": [32, 16], "translator": "ee", ' + ORIGIN_JSON
    )
    with pytest.raises(PackError, match="another translator"):
        check_translator(translated, open_pack(micro_pack))
    guided = guided_manifest({"prompt": "a dog", "n": 1}, 0, 0.5, (32, 16), 3, {"micro_batch": 1}, ["grew"], ORIGIN)
    assert json.dumps(guided) == (
        '{"method": "guide", "prompt": "a dog", "n": 1, "index": 0, "clip_score": 0.5, "size": [32, 16], "steps": 3, '
        '"plan": {"micro_batch": 1}, "events": ["grew"], ' + ORIGIN_JSON
    )
    assert json.dumps(interpolated_manifest(["a", "b"], "latents", 3, 7, 1, {"b": "ab"}, ORIGIN)) == (
        '{"method": "interpolate", "keys": ["a", "b"], "through": "latents", "frames": 3, "seed": 7, "index": 1, '
        '"files": {"b": "ab"}, ' + ORIGIN_JSON
    )
    assert json.dumps(foreign_manifest("a.jpg")) == (
        '{"method": "upscale", "source": "a.jpg", "versions": ' + json.dumps(versions()) + "}"
    )


def test_enlarging_is_added_at_the_end_and_taken_off_again(micro_pack: Path) -> None:
    class Pack:
        name = "p"

        def hash_of(self, member: str) -> str:
            return f"hash of {member}"

    pack: Any = Pack()
    drawn = {"method": "sample", "size": [1, 1], "threads": 1}
    once = upscaled_manifest(drawn, 2, (2, 2), pack)
    assert json.dumps(once) == (
        '{"method": "sample", "size": [2, 2], "threads": 1, '
        '"upscaled": [{"scale": 2, "pack": "p", "upscaler": "hash of upscaler"}]}'
    )
    assert [step["scale"] for step in upscaled_manifest(once, 4, (8, 8), pack)["upscaled"]] == [2, 4]
    assert before_upscaling(once) == {**drawn, "size": [2, 2]}


ERRORS = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)


@pytest.mark.parametrize("error", [kind("x") for kind in ERRORS])
def test_damage_is_one_line(error: Exception) -> None:
    with pytest.raises(ImageError, match="the picture's manifest is damaged") as caught, damage_reported():
        raise error
    assert "\n" not in str(caught.value)
