"""The catalogue of the package is well-formed and consistent, and a malformed one is refused with the reason."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
import yaml
from pydantic import ValidationError

from codebrush.conversion import llamagen, taming
from codebrush.conversion.state_dict_rules import extract
from codebrush.errors import PackError, UsageError
from codebrush.hub.catalogue import HUB_MIRROR, FileEntry, ModelEntry, load_catalogue
from codebrush.models.vqgan import VQGAN, VQGANConfig

CATALOGUE = load_catalogue()
FILES = [(model, file) for model in CATALOGUE.models.values() for file in model.files]
PUBLISHED_VQGAN: dict[str, Any] = {
    "image_size": 256,
    "channels": 128,
    "channel_multipliers": (1, 1, 2, 2, 4),
    "res_blocks": 2,
    "attention_resolutions": (16,),
    "middle_attention": True,
    "latent_channels": 256,
    "code_dim": 256,
    "quantizer": "vector",
    "l2_normalized": False,
}
FACTOR = {"f16": 16, "f8": 8}  # as in the names of taming's models
WHOLE = {
    "models": {
        "a-clip": {
            "kind": "clip",
            "title": "A CLIP",
            "licence": "MIT",
            "paper": None,
            "files": [{"path": "a.pt", "size": 3, "sha256": "0" * 64, "mirrors": ["https://example.org/a.pt"]}],
        },
        "a-vqgan": {
            "kind": "vqgan",
            "title": "A VQGAN",
            "licence": "MIT",
            "paper": "2012.09841",
            "files": [{"path": "v.ckpt", "size": None, "sha256": None, "mirrors": ["/v.ckpt", "file:///v.ckpt"]}],
        },
    },
    "packs": {"both": {"title": "Both", "image_size": 256, "members": {"clip": "a-clip", "vqgan": "a-vqgan"}}},
}


def changed(path: str, value: Any) -> dict:
    """WHOLE with another value at a dotted path."""
    whole = yaml.safe_load(yaml.safe_dump(WHOLE))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    place = whole
    for parent in parents:
        place = place[parent]
    place[last] = value
    return whole


def write(folder: Path, content: Any) -> Path:
    path = folder / "catalogue.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_the_catalogue_has_the_documented_models_and_packs() -> None:
    kinds = [model.kind for model in CATALOGUE.models.values()]
    assert (kinds.count("clip"), kinds.count("vqgan"), kinds.count("transformer")) == (14, 5, 5)
    assert set(CATALOGUE.packs) == {"imagenet", "imagenet-1024", "imagenet-vitb16", "openimages"}
    assert CATALOGUE.pack("imagenet").members.clip == "clip-vit-b32"


@pytest.mark.parametrize(("model", "file"), FILES, ids=[f"{model.name}-{file.path}" for model, file in FILES])
def test_each_file_is_well_formed(model: ModelEntry, file: FileEntry) -> None:
    assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
    for mirror in file.mirrors:
        parts = urlsplit(mirror)
        assert (parts.scheme == "https" and parts.hostname and "." in parts.hostname) or HUB_MIRROR.fullmatch(mirror)
    if file.sha256 is None:  # what nothing verifies comes from its origin, and from one version
        hosts = {urlsplit(mirror).netloc for mirror in file.mirrors}
        assert len(hosts) == 1
        assert hosts == {"heibox.uni-heidelberg.de"} or re.search(r"@[0-9a-f]{40}$", file.mirrors[0])


def test_openais_addresses_contain_the_sha256() -> None:
    found = 0
    for _, file in FILES:
        for mirror in file.mirrors:
            if "openaipublic." in mirror:
                assert re.fullmatch(rf".*/clip/models/{file.sha256}/{re.escape(file.path)}", mirror)
                found += 1
    assert found == 2 * 9


def test_a_file_in_several_entries_is_described_alike() -> None:
    seen: dict[str, tuple[int | None, str | None]] = {}
    for _, file in FILES:
        for mirror in file.mirrors:
            assert seen.setdefault(mirror, (file.size, file.sha256)) == (file.size, file.sha256)


def test_the_image_size_of_a_pack_is_a_multiple_of_its_vqgans_factor() -> None:
    for pack in CATALOGUE.packs.values():
        vqgan = CATALOGUE.pack_models(pack)["vqgan"]
        factor = next(factor for name, factor in FACTOR.items() if name in vqgan.name.split("-"))
        assert pack.image_size % factor == 0


@pytest.mark.parametrize(
    ("name", "millions", "changes"),
    [
        ("vqgan-imagenet-f16-16384", 76, {"codebook_size": 16384}),
        ("vqgan-imagenet-f16-1024", 72, {"codebook_size": 1024}),
        (
            "vqgan-openimages-f8-8192",
            69,
            {
                "codebook_size": 8192,
                "channel_multipliers": (1, 1, 2, 4),
                "attention_resolutions": (32,),
                "quantizer": "gumbel",
                "kl_weight": 1e-8,
            },
        ),
        ("llamagen-vq-c2i", 72, {"codebook_size": 16384, "code_dim": 8, "l2_normalized": True}),
        ("llamagen-vq-t2i", 72, {"codebook_size": 16384, "code_dim": 8, "l2_normalized": True}),
    ],
)
def test_the_configs_agree_with_the_published_sizes(name: str, millions: int, changes: dict[str, Any]) -> None:
    """A model of the published size, without weights: the conversion reads its config with the catalogue's."""
    with torch.device("meta"):
        model = VQGAN(VQGANConfig(**PUBLISHED_VQGAN | changes))
    assert round(sum(weight.numel() for weight in model.parameters()) / 1e6) == millions
    if name.startswith("llamagen"):
        rules, config_of = llamagen.vq_rules(5), llamagen.vq_config
    else:
        rules = taming.GUMBEL_RULES if "openimages" in name else taming.VQ_RULES
        config_of = taming.vqgan_config
    found = config_of(extract(model, rules), CATALOGUE.model(name).config, name)
    assert found == model.config


def test_sizes_are_sums() -> None:
    assert CATALOGUE.model("clip-vit-b32").size == 353_976_522 + 1_356_917
    assert CATALOGUE.model("clip-vit-b32").size_is_whole
    partly = CATALOGUE.model("hf-clip-vit-l14")
    assert partly.size == sum(file.size for file in partly.files if file.size)
    assert not partly.size_is_whole
    assert CATALOGUE.model("vqgan-imagenet-f16-1024").size is None


def test_entries_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        CATALOGUE.model("clip-vit-b32").files[0].size = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        ("model", "clip-vit-b-32", "did you mean clip-vit-b32"),
        ("pack", "ImageNet", "did you mean imagenet"),
        ("entry", "openimage", "did you mean openimages"),
        ("entry", "zzzzzz", "packs list"),
        ("pack", "clip-vit-b32", "has no pack 'clip-vit-b32'"),
    ],
)
def test_for_an_unknown_name_similar_ones_are_suggested(kind: str, name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        getattr(CATALOGUE, kind)(name)


def test_another_catalogue_is_read(tmp_path: Path) -> None:
    catalogue = load_catalogue(write(tmp_path, WHOLE))
    assert catalogue.entry("a-clip") == catalogue.model("a-clip")
    assert catalogue.entry("both") == catalogue.pack("both")
    assert list(catalogue.pack_models(catalogue.pack("both"))) == ["clip", "vqgan"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (changed("models/a-clip/kind", "cat"), "models.a-clip.kind"),
        (changed("models/a-clip/colour", "red"), "colour"),
        (changed("models/a-clip/paper", 2012.09841), "paper"),
        (changed("models/a-clip/files/0/sha256", "0" * 63), "sha256"),
        (changed("models/a-clip/files/0/sha256", "Z" * 64), "sha256"),
        (changed("models/a-clip/files/0/size", 0), "size"),
        (changed("models/a-clip/files/0/size", "3"), "size"),
        (changed("models/a-clip/files/0/mirrors", []), "mirrors"),
        (changed("models/a-clip/files", []), "files"),
        (changed("models/a-clip/files", [WHOLE["models"]["a-clip"]["files"][0]] * 2), "two of its files"),
        (changed("models/A CLIP", WHOLE["models"]["a-clip"]), "name"),
        (changed("models/both", WHOLE["models"]["a-clip"]), "'both' is the name of both a model and a pack"),
        (changed("packs/both/members/clip", "a-vqgan"), "there is no such clip"),
        (changed("packs/both/members/vqgan", "none"), "there is no such vqgan"),
        (changed("packs/both/image_size", 0), "image_size"),
        ("models: [", "cannot be read"),
        ("[]", "cannot be read"),
        ("models: {a: 3}", "cannot be read"),
    ],
)
def test_a_malformed_catalogue_is_one_line(content: Any, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(PackError, match=re.escape(complaint)) as caught:
        load_catalogue(write(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_a_missing_catalogue_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="cannot be read"):
        load_catalogue(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "path", ["", "/a", "../a", "a/../b", "a//b", "./a", "a/", "~/a", "a\\b", "C:/a", ".hidden", "a\nb", "a b"]
)
def test_a_path_that_could_lead_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="plain relative path"):
        FileEntry(path=path, size=1, sha256=None, mirrors=("https://example.org/a",))


@pytest.mark.parametrize(
    "mirror",
    ["", "a.pt", "../a.pt", "ftp://example.org/a", "https://", "https://a b/c", "hf://owner/name/file", "hf://a@main"],
)
def test_a_mirror_of_another_kind_is_refused(mirror: str) -> None:
    with pytest.raises(ValidationError, match="is not an http"):
        FileEntry(path="a", size=1, sha256=None, mirrors=(mirror,))
