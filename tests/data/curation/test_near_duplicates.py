"""Near duplicates: copies are found however they were saved, and pictures that only resemble them are not."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from codebrush.data.curation.near_duplicates import (
    COPY_CELLS,
    ENOUGH,
    LITTLE,
    NOTHING,
    NearIndex,
    alike_copies,
    detail,
    fingerprint,
    perceptual_hash,
    quality,
    same_detail,
    same_tint,
    tint,
)
from codebrush.data.synthetic.shapes import scene
from codebrush.errors import UsageError

COUNT = 60
SCENES = [scene(0, index, 96).image for index in range(COUNT)]


def index_of(images: list[Image.Image], distance: int) -> NearIndex:
    marks = [fingerprint(image) for image in images]
    shapes = np.array([mark.shape for mark in marks], np.uint64)
    return NearIndex(shapes, np.array([mark.copy for mark in marks]), distance)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


@pytest.mark.parametrize(
    "change",
    [
        lambda image: jpeg(image, 40),
        lambda image: image.resize((48, 48), Image.Resampling.LANCZOS),
        lambda image: image.resize((150, 150), Image.Resampling.BICUBIC),
        lambda image: Image.eval(image, lambda value: round(value * 0.96)),
    ],
    ids=["jpeg", "half", "larger", "darker"],
)
def test_copies_are_found(change):
    """Each copy is compared with its original; at least 95 % are found."""
    index = index_of([*SCENES, *(change(image) for image in SCENES)], 6)
    found = 0
    for row in range(COUNT):
        own = NearIndex(index.shapes, index.copies, 6)
        own.add(row)
        found += own.find(COUNT + row) == row
    assert found >= 0.95 * COUNT


def test_other_pictures_are_not_found():
    """Scenes that share a shape in another colour, or a colour in another place."""
    index = index_of(SCENES, 6)
    twins = []
    for row in range(COUNT):
        if (twin := index.find(row)) is not None:
            twins.append((row, twin))
        index.add(row)
    assert twins == []


def disc(colour: str, mark: str | None = None) -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((4, 4, 60, 60), fill=colour)
    if mark is not None:
        draw.rectangle((26, 26, 38, 38), fill=mark)
    return image


@pytest.mark.parametrize(
    "other", [disc("blue"), disc("orange"), disc("gold", "white")], ids=["blue", "orange", "marked"]
)
def test_the_copy_decides_where_the_hash_cannot(other: Image.Image):
    index = index_of([disc("gold"), other], 15)
    index.add(0)
    assert index.find(0) == 0
    assert index.find(1) is None


def test_plain_pictures_have_a_hash_without_noise():
    assert perceptual_hash(Image.new("RGB", (50, 40), (90, 90, 90))) == perceptual_hash(
        Image.new("RGB", (99, 9), (91, 91, 91))
    )


def test_exact_pixels_and_size_count():
    image = SCENES[0]
    assert fingerprint(image).pixels == fingerprint(image.copy()).pixels
    changed = image.copy()
    changed.putpixel((3, 3), (1, 2, 3))
    assert fingerprint(changed).pixels != fingerprint(image).pixels
    flat = Image.new("RGB", (8, 2))
    assert fingerprint(flat).pixels != fingerprint(Image.new("RGB", (2, 8))).pixels


@pytest.mark.parametrize("distance", [0, 1, 4, 6, 15])
def test_bands_miss_none_within_the_distance(distance: int):
    """Compared with all pairs, for hashes at the largest distance allowed and one bit beyond."""
    rng = np.random.default_rng(distance)
    originals = rng.integers(0, 2**63, 200, dtype=np.uint64)
    shapes = [*originals]
    for number, value in enumerate(originals):
        flips = rng.permutation(64)[: distance + number % 2]
        shapes.append(np.uint64(int(value) ^ sum(1 << int(bit) for bit in flips)))
    index = NearIndex(np.array(shapes), np.zeros((400, COPY_CELLS), np.uint8), distance)
    for row in range(200):
        index.add(row)
    assert [index.find(200 + row) for row in range(200)] == [row if row % 2 == 0 else None for row in range(200)]


@pytest.mark.parametrize("distance", [-1, 16])
def test_distances_out_of_range(distance: int):
    with pytest.raises(UsageError, match=f"0 to 15 of 64 bits, not {distance}$"):
        NearIndex(np.zeros(1, np.uint64), np.zeros((1, COPY_CELLS), np.uint8), distance)


def burst(place: int) -> Image.Image:
    """A shot of a ball before a landscape."""
    image = Image.linear_gradient("L").resize((640, 480)).convert("RGB")
    ImageDraw.Draw(image).ellipse((place - 60, 140, place + 60, 260), fill="orange")
    return image


def test_shots_of_a_burst_are_no_copies():
    """The hash hardly differs, the tiny copy does."""
    first, second = fingerprint(burst(200)), fingerprint(burst(225))
    assert (first.shape ^ second.shape).bit_count() <= 8
    assert alike_copies(first.copy[None], first.copy).tolist() == [True]
    assert alike_copies(first.copy[None], second.copy).tolist() == [False]
    assert index_of([burst(200), burst(225)], 15).find(1) is None


def logo(box: tuple[int, int, int, int], colour: str = "white") -> Image.Image:
    image = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(image).ellipse(box, fill=colour)
    return image


LOGOS = [logo((20, 20, 140, 140)), logo((60, 5, 90, 155)), logo((5, 70, 155, 90))]


def test_white_logos_on_transparency_differ():
    marks = [fingerprint(image) for image in LOGOS]
    assert len({mark.pixels for mark in marks}) == 1  # all white
    assert len({mark.exact for mark in marks}) == 3
    assert [mark.shows for mark in marks] == [ENOUGH] * 3
    index = index_of([*LOGOS, LOGOS[1].resize((80, 80))], 8)
    for row in range(3):
        assert index.find(row) is None
        index.add(row)
    assert index.find(3) == 1  # a smaller copy


def test_transparency_counts_where_both_have_some():
    badge = logo((40, 40, 120, 120), "navy")
    backed = Image.alpha_composite(logo((5, 5, 155, 155)), badge)  # with a white disc behind it
    flat = Image.alpha_composite(Image.new("RGBA", badge.size, "white"), badge)
    marks = [fingerprint(image) for image in (badge, backed, flat)]
    assert len({mark.pixels for mark in marks}) == 1
    assert len({mark.exact for mark in marks}) == 3
    assert marks[2].alpha == 0
    copies = np.array([mark.copy for mark in marks])
    assert alike_copies(copies, marks[0].copy).tolist() == [True, False, True]
    assert alike_copies(copies, marks[2].copy).tolist() == [True, True, True]


@pytest.mark.parametrize(
    "image",
    [Image.new("RGB", (64, 64), "white"), Image.new("RGBA", (9, 9)), Image.new("RGBA", (9, 9), (200, 0, 0, 128))],
)
def test_pictures_of_one_colour_show_nothing(image: Image.Image):
    assert fingerprint(image).shows == NOTHING


def test_thin_lines_show_little():
    image = Image.new("RGB", (640, 640), "white")
    ImageDraw.Draw(image).line((100, 300, 130, 300), fill="black")
    assert fingerprint(image).shows == LITTLE


def test_the_better_file_is_out_of_bins_larger_animated_and_lossless():
    ranked = [
        quality("d/a.png", (20, 20), False, True, False),
        quality("d/a.gif", (10, 10), True, True, False),
        quality("d/a.png", (10, 10), False, False, True),
        quality("d/a.png", (10, 10), False, False, False),
        quality("d/a.webp", (10, 10), False, True, True),
        quality("d/a.jpg", (10, 10), False, True, False),
        quality("d/@eaDir/a.png", (9000, 9000), False, False, True),
    ]
    assert ranked == sorted(ranked, reverse=True)
    assert len(set(ranked)) == len(ranked)
    assert 0 < min(ranked) < max(ranked) < 2**63
    aside = quality("d/@eaDir/a.png", (5, 5), False, False, False)
    for folder in ("Trash", ".Trash-1000", "@Recycle", "#recycle", "$RECYCLE.BIN", "lost+found", "a/.thumbnails/b"):
        assert quality(f"/home/x/{folder}/a.png", (5, 5), False, False, False) == aside
    for name in ("d/trash.png", "d/trashcan/a.png", "thumbs"):
        assert quality(name, (5, 5), False, False, False) > aside


def _chat(seed: int) -> Image.Image:
    """A screenshot of a chat, 360 x 780; the seed decides what the small text says, and not where it stands."""
    random = np.random.default_rng(seed)
    picture = Image.new("RGB", (360, 780), (236, 229, 221))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    draw.rectangle((0, 0, 360, 40), fill=(7, 94, 84))
    for number, top in enumerate(range(60, 720, 60)):
        left = 12 if number % 2 else 90
        draw.rounded_rectangle((left, top, left + 250, top + 48), 8, fill=(220, 248, 198) if number % 2 else "white")
        for line in range(2):
            words = " ".join(
                "".join(random.choice(list("abdefghiklmnorstuvw"), random.integers(2, 9))) for _ in range(9)
            )
            while font.getlength(words) > 230:
                words = words[:-1]
            draw.text((left + 8, top + 6 + 18 * line), words, font=font, fill=(20, 20, 20))
    return picture


def _waves(seed: int) -> Image.Image:
    """Random waves and noise, like a photo: 400 x 300."""
    random = np.random.default_rng(seed)
    parts = [
        Image.fromarray(random.integers(0, 256, (n, n, 3), np.uint8)).resize((400, 300), 3) for n in (4, 12, 40, 110)
    ]
    mixed = np.sum([np.asarray(part, np.float32) / rank for rank, part in enumerate(parts, 1)], 0) / 2.1
    return Image.fromarray((mixed + random.normal(0, 4, mixed.shape)).clip(0, 255).astype(np.uint8))


def test_screenshots_that_differ_in_small_text_are_not_the_same() -> None:
    pictures = [_chat(seed) for seed in range(4)]
    for one, other in itertools.combinations(pictures, 2):
        a, b = fingerprint(one), fingerprint(other)
        assert (a.shape ^ b.shape).bit_count() <= 8
        assert alike_copies(a.copy[None], b.copy)[0], "the fingerprints alone take them for the same"
        assert not same_detail(detail(one), detail(other))


@pytest.mark.parametrize(
    "picture", [_chat(0), _waves(0), scene(0, 0, 400, objects=6).image], ids=["chat", "photo", "shapes"]
)
def test_copies_have_the_same_detail(picture: Image.Image) -> None:
    original = detail(picture)
    assert original is not None
    files = [("JPEG", {"quality": 75}), ("JPEG", {"quality": 20}), ("WEBP", {"quality": 40}), ("PNG", {})]
    for side in (None, 128, 150, 200, 256, 600):
        scale = 1 if side is None else side / min(picture.size)
        size = (round(picture.width * scale), round(picture.height * scale))
        for kernel in (Image.Resampling.LANCZOS, Image.Resampling.BILINEAR):
            for kind, options in files:
                data = io.BytesIO()
                picture.resize(size, kernel).save(data, kind, **options)
                with Image.open(data) as copy:
                    assert same_detail(original, detail(copy)), (side, kernel, kind, options)
    assert same_detail(original, detail(Image.eval(picture, lambda level: min(255, level + 8)))), "brighter everywhere"
    assert detail(picture.resize((127, 300))) is None
    assert same_detail(original, None)


def with_face(skin: tuple[int, int, int]) -> Image.Image:
    """A drawn person of whom little but the clothes is seen."""
    picture = Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((34, 52, 94, 124), fill=(40, 60, 150))
    draw.ellipse((44, 8, 84, 54), fill=(90, 90, 100))
    draw.ellipse((54, 26, 74, 44), fill=skin)
    return picture


def test_people_who_differ_in_the_tone_of_their_skin_are_not_the_same() -> None:
    light, dark = with_face((247, 222, 206)), with_face((243, 210, 162))
    assert alike_copies(fingerprint(light).copy[None], fingerprint(dark).copy)[0]
    assert same_detail(detail(light), detail(dark))
    assert not same_tint(tint(light), tint(dark))
    larger = dark.resize((256, 256), Image.Resampling.LANCZOS)
    assert same_tint(tint(dark), tint(larger))
    assert same_tint(tint(dark), tint(jpeg(dark, 60)))
    assert same_tint(tint(light), None)
    red, green, blue = dark.split()
    bluer = Image.merge("RGB", (red.point(lambda v: v - 9), green.point(lambda v: v - 5), blue))
    assert same_tint(tint(dark), tint(bluer))  # another white balance changes all of it
