"""Targets of fuzzing: pictures, manifests, packs, checkpoints and requests."""

import base64
import io
import json
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from fuzz_parts import PIXELS, ROOT, Made, changed, encoded, in_file, png
from PIL import Image, PngImagePlugin
from safetensors.torch import save

from codebrush import Codebrush
from codebrush.conversion.checkpoints import read_checkpoint
from codebrush.conversion.convert import open_model
from codebrush.data.decoding.images import decode_image, format_of, read_manifest, size_of
from codebrush.data.synthetic.shapes import scene
from codebrush.errors import CodebrushError
from codebrush.generation.latent_files import file_latents
from codebrush.pack.pack import open_pack
from packs import micro_captioner, micro_flow, micro_tokenizer, micro_transformer, micro_vqgan, write_micro_pack
from photo_files import small_dng

# Pictures


def pictures() -> list[bytes]:
    rgb, grey = scene(0, 1, 24).image.convert("RGB"), scene(0, 2, 24).image.convert("L")
    rgba, palette = rgb.convert("RGBA"), rgb.quantize(16)
    exif = Image.Exif()
    exif[274] = 6
    frames = [scene(0, number, 24).image.convert("RGB") for number in range(3)]
    several = {"save_all": True, "append_images": frames[1:]}
    found = [
        encoded(rgb, "PNG", exif=exif), encoded(palette, "PNG", transparency=0), encoded(rgba, "PNG"),
        encoded(frames[0], "PNG", **several),
        encoded(Image.new("I;16", (9, 9), 700), "PNG"), encoded(rgb, "JPEG", exif=exif),
        encoded(rgb, "JPEG", progressive=True),
        encoded(rgb.convert("CMYK"), "JPEG"), encoded(grey, "JPEG"), encoded(frames[0], "GIF", **several),
        encoded(palette, "GIF"),
        encoded(rgba, "WEBP"), encoded(rgb, "WEBP", lossless=True), encoded(frames[0], "WEBP", **several),
        encoded(rgb, "BMP"), encoded(palette, "BMP"),
        encoded(rgb, "TIFF", compression="tiff_lzw"), encoded(frames[0], "TIFF", **several),
        encoded(rgb, "TIFF", compression="jpeg"),
        encoded(grey.convert("F"), "TIFF"), encoded(rgb, "TIFF", compression="tiff_adobe_deflate"),
        encoded(rgb, "PPM"), encoded(grey.convert("1"), "PPM"),
        encoded(rgba, "ICO"), encoded(rgb, "JPEG2000"), encoded(rgb, "DIB"), encoded(frames[0], "MPO", **several),
        small_dng(scene(0, 3, 96).image.convert("RGB"), 6),
    ]  # fmt: skip
    with suppress(Exception):  # a build of Pillow without it
        found.append(encoded(rgb, "AVIF"))
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        found.append(encoded(rgb, "HEIF"))
    return found


def make_pictures(folder: Path) -> Made:
    def read(data: bytes) -> None:
        with suppress(CodebrushError):
            decode_image(data, max_pixels=PIXELS)
        with suppress(CodebrushError):
            decode_image(data, keep_mode=True, wanted=8, max_pixels=PIXELS)
        for ask in (format_of, size_of):
            with suppress(CodebrushError):
                ask(data)

    return pictures(), read


MANIFEST = {
    "format": 1, "codebrush": "0.2.0", "method": "sample", "prompt": "a red circle", "seed": 3, "index": 0,
}  # fmt: skip


def make_manifests(folder: Path) -> Made:
    def with_text(text: str, compressed: bool) -> bytes:
        info = PngImagePlugin.PngInfo()
        info.add_itxt("codebrush", text, zip=compressed)
        return png(pnginfo=info)

    seeds = [with_text(json.dumps({"a": [1, {"b": None}]} | MANIFEST), compressed) for compressed in (True, False)]
    return seeds, lambda data: read_manifest(io.BytesIO(data))


def make_replays(folder: Path) -> Made:
    """Manifests of pictures that were really drawn, with fields that hold other things."""
    pack = write_micro_pack(folder / "pack", transformer=micro_transformer(image_embedding=24), flow=micro_flow())
    brush = Codebrush.from_pretrained(pack, device="cpu")
    drawn = brush.generate("a red circle | a dog:-0.5", n=1, rerank=1, seed=1)[0]
    made = [
        drawn.manifest, brush.vary(drawn.image, n=1, rerank=1)[0].manifest,
        brush.generate("a circle", n=1, method="guide", steps=1, cutouts=1)[0].manifest,
        brush.edit(drawn.image, "a square", box=(0, 0, 16, 16), n=1, rerank=1, method="flow", steps=1)[0].manifest,
        brush.generate("a circle", n=1, rerank=1, method="flow", steps=1)[0].manifest,
    ]  # fmt: skip
    seeds = [bytes([number]) + bytes(range(number, number + 6)) for number in range(len(made))]

    def read(data: bytes) -> None:
        if not data:
            return
        manifest = changed(made[data[0] % len(made)], data[1:])
        options = manifest.get("options") if isinstance(manifest, dict) else None
        guided = made[data[0] % len(made)]["method"] == "guide"
        if guided and isinstance(options, dict) and options.get("steps") is None:
            options["steps"] = 1  # the usual number takes minutes, as it should
        brush.replay(manifest, [drawn.image], named_files=False)

    return seeds, read


# Packs and checkpoints


def make_packs(folder: Path) -> Made:
    """One of a pack's files is changed; the first byte says which."""
    pack = write_micro_pack(folder / "pack", captioner=micro_captioner(), words=micro_tokenizer())
    files = sorted(path for path in pack.rglob("*") if path.suffix in (".json", ".safetensors"))
    kept = {path: path.read_bytes() for path in files}

    def read(data: bytes) -> None:
        path = files[data[0] % len(files)] if data else files[0]
        try:
            path.write_bytes(data[1:])
            opened = open_pack(pack)
            opened.check_tokenizers()
            for name in (
                "clip",
                "vqgan",
                "transformer",
                "captioner",
                "tokenizer",
                "captioner_tokenizer",
                "styles",
                "hash",
            ):
                getattr(opened, name)
        finally:
            path.write_bytes(kept[path])

    return [bytes([number]) + kept[path] for number, path in enumerate(files)], read


def make_pack_values(folder: Path) -> Made:
    """The values of a pack's JSON files are changed, which stay JSON."""
    seeds, read = make_packs(folder)
    values = [(each[:1], json.loads(each[1:])) for each in seeds if each[1:2] == b"{" and len(each) < 20_000]

    def changed_values(data: bytes) -> object:
        first, value = values[(data[0] if data else 0) % len(values)]
        return read(first + json.dumps(changed(value, data[1:])).encode())

    return [bytes([number]) + bytes(range(40 + number, 46 + number)) for number in range(len(values))], changed_values


def make_checkpoints(folder: Path) -> Made:
    seeds = []
    tensors = {"a.weight": torch.ones(4, 3), "a.bias": torch.ones(4).half(), "steps": torch.tensor(7)}
    script = torch.jit.trace(torch.nn.Linear(3, 4), torch.ones(2, 3))
    content = {"epoch": 3, "state_dict": tensors, "hyper_parameters": {"lr": 1e-4, "names": ["a", "b"]}}
    for name, write in {
        "zip": lambda path: torch.save(content, path),
        "legacy": lambda path: torch.save(content, path, _use_new_zipfile_serialization=False),
        "script": lambda path: torch.jit.save(script, str(path)),
    }.items():
        write(folder / name)
        seeds.append((folder / name).read_bytes())
    plain = {"a": [1, 2.5, "x", None, True, b"bytes"], "b": {"c": (1, 2)}}
    seeds += [save(tensors), *(pickle.dumps(plain, protocol) for protocol in range(6))]
    return seeds, in_file(folder / "model.pt", read_checkpoint)


OPCODES = [
    b"c__builtin__\neval\n", b"ctorch\nload\n", b"cos\nsystem\n", b"(", b"t", b"R", b"}", b"]", b"(lp0\n",
    b"\x8c\x04name", b"\x93", b"b", b"s", b"u", b"e", b"0", b"2", b"h\x00", b"q\x00",
    b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f", b"T\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"\x8b\xff\xff\xff\x7f",
    b"X\xff\xff\xff\xff", b"\x80\x04\x95", b"r\xff\xff\xff\xff", b".", b"Q", b"\x81", b"i",
]  # fmt: skip


def make_models(folder: Path) -> Made:
    """The values of published configs are changed, and the tensors named otherwise; the first byte says whose."""
    golden = ROOT / "golden"
    kinds = {
        "open_clip_vit_a": "clip",
        "openai_clip_rn_a": "clip",
        "taming_net2net_a": "transformer",
        "llamagen_gpt_a": "transformer",
    }
    configs = {name: json.loads((golden / f"{name}.json").read_text())["config"] for name in kinds}

    def read(data: bytes) -> None:
        name = list(kinds)[(data[0] if data else 0) % len(kinds)]
        open_model(kinds[name], golden / f"{name}.safetensors", changed(configs[name], data[1:]))

    return [bytes([number, *range(20 * number, 20 * number + 5)]) for number in range(len(kinds))], read


def make_latents(folder: Path) -> Made:
    vqgan = micro_vqgan()
    seeds = [
        save({"codes": torch.zeros(8, 8, dtype=torch.int64)}),
        save({"latent": torch.zeros(1, vqgan.config.code_dim, 8, 8)}),
        save({"codes": torch.full((2, 8, 8), 127)}),
        save({"latent": torch.zeros(vqgan.config.code_dim, 2, 3, dtype=torch.float16)}),
    ]  # fmt: skip
    return seeds, in_file(folder / "init.safetensors", lambda path: file_latents(str(path), vqgan, (32, 32)))


# The server


class ServerFault(Exception):
    """The server answered with 500 or more, or with what is no JSON object."""


def make_bodies(folder: Path) -> Made:
    """Bodies of requests, as they are and with other values; the first byte says which operation."""
    from starlette.testclient import TestClient

    from codebrush.serving.app import make_app
    from codebrush.serving.jobs.engine import Engine
    from codebrush.serving.jobs.store import Store
    from codebrush.serving.library import Library
    from codebrush.serving.settings import Settings

    brush = Codebrush.from_pretrained(write_micro_pack(folder / "pack"), device="cpu")
    settings = Settings(packs=("micro",), data=folder / "data")
    engine = Engine({"micro": lambda: brush}, Store(settings.data), settings.limits, library=Library((), settings.data))
    client = TestClient(make_app(engine, settings), base_url="http://127.0.0.1", raise_server_exceptions=False)
    client.__enter__()
    picture = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/images/generations", {"prompt": "a red circle", "n": 1, "rerank": 1, "seed": 1, "size": "32x32"}),
        ("/v1/embeddings", {"input": ["a cat"], "model": "micro", "encoding_format": "base64"}),
        ("/v1/classify", {"image": picture, "labels": ["a cat", "a dog"]}),
        ("/v1/explain", {"image": picture, "text": "a cat"}),
        ("/v1/replay", {"image": picture}),
        ("/v1/caption", {"image": picture}),
        ("/v1/ask", {"image": picture, "question": "what?"}),
    ]  # fmt: skip
    seeds = [bytes([number]) + json.dumps(body).encode() for number, (_, body) in enumerate(bodies)]
    seeds += [bytes([number + 100, *range(30 * number, 30 * number + 5)]) for number in range(len(bodies))]

    def read(data: bytes) -> None:
        path, body = bodies[(data[0] if data else 0) % len(bodies)]
        content = data[1:] if data and data[0] < 100 else json.dumps(changed(body, data[1:])).encode()
        reply = client.post(path, content=content, headers={"content-type": "application/json"})
        if reply.status_code >= 500 and reply.status_code not in (501, 503, 507):
            raise ServerFault(f"{path}: {reply.status_code} {reply.text[:150]}")
        if reply.status_code >= 400 and not reply.json()["error"]["message"]:
            raise ServerFault(f"{path}: {reply.status_code} without a message")

    return seeds, read


JSON_WORDS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"true",
    b"NaN",
    b'"\\ud800"',
    b'"prompt":',
    b'"n":',
    b"1e400",
    b"-1",
    b'""',
]
