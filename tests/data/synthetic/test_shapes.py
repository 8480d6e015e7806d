import json
import resource

import numpy as np
import pytest
from PIL import Image, ImageFilter

from codebrush.data.sources.captioned_images import open_source
from codebrush.data.synthetic.outlines import COLOURS, SHAPES
from codebrush.data.synthetic.scene_folder import write_shapes
from codebrush.data.synthetic.shape_recognition import recognise_shape
from codebrush.data.synthetic.shapes import BACKGROUNDS, PLACES, scene
from codebrush.data.synthetic.wording import NUMBERS
from codebrush.errors import CodebrushError, DataError, UsageError


def test_a_scene_is_the_same_every_time_and_no_other():
    first, again = scene(3, 7), scene(3, 7)
    assert first.image.tobytes() == again.image.tobytes()
    assert (first.caption, first.captions, first.objects) == (again.caption, again.captions, again.objects)
    pictures = {scene(seed, index).image.tobytes() for seed in range(4) for index in range(25)}
    assert len(pictures) == 100


def test_a_scene_does_not_depend_on_its_size_in_pixels():
    small, large = scene(1, 5, size=32), scene(1, 5, size=128)
    assert small.captions == large.captions
    scaled = np.asarray(large.image.reduce(4), float)
    assert np.abs(scaled - np.asarray(small.image, float)).mean() < 2


def test_single_objects_are_plain():
    scenes = [scene(0, index, 32, objects=1) for index in range(300)]
    for drawn in scenes:
        (thing,) = drawn.objects
        assert drawn.background == "white"
        article = "an" if thing.colour == "orange" else "a"
        assert drawn.captions == (
            f"a {thing.size} {thing.colour} {thing.shape}",
            f"{article} {thing.colour} {thing.shape}",
        )
        assert drawn.caption in drawn.captions
    assert {thing.colour for drawn in scenes for thing in drawn.objects} == set(COLOURS)
    assert {thing.shape for drawn in scenes for thing in drawn.objects} == set(SHAPES)


def test_another_seed_shows_other_pictures_of_the_same_objects():
    train = [scene(0, index, 32, objects=1) for index in range(400)]
    unseen = [scene(1, index, 32, objects=1) for index in range(400)]
    assert not {drawn.image.tobytes() for drawn in train} & {drawn.image.tobytes() for drawn in unseen}
    assert {drawn.captions[0] for drawn in unseen} <= {drawn.captions[0] for drawn in train} | {
        drawn.captions[0] for drawn in unseen
    }
    assert len({drawn.captions[0] for drawn in train} & {drawn.captions[0] for drawn in unseen}) > 80


def test_boxes_lie_around_the_shapes():
    for index in range(100):
        drawn = scene(2, index, 64)
        pixels = np.asarray(drawn.image, float)
        apart = np.abs(pixels - BACKGROUNDS[drawn.background]).sum(axis=-1) > 60
        inside = np.zeros((64, 64), bool)
        for left, top, right, bottom in (thing.box for thing in drawn.objects):
            assert 0 <= left < right <= 64
            assert 0 <= top < bottom <= 64
            window = np.s_[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]
            assert not inside[window].any(), "two shapes overlap"
            assert apart[window].mean() > 0.2
            soft = 0.3  # by how much an antialiased edge may extend
            inside[int(top - soft) : int(np.ceil(bottom + soft)), int(left - soft) : int(np.ceil(right + soft))] = 1
        assert not (apart & ~inside).any()


def centre(thing) -> tuple[float, float]:
    left, top, right, bottom = thing.box
    return (left + right) / 2, (top + bottom) / 2


def test_places_are_true():
    found = set()
    for index in range(400):
        drawn = scene(4, index, 64)
        if len(drawn.objects) > 1:
            continue
        column, row = (int(share * 3 / 64) for share in centre(drawn.objects[0]))
        said = [place for place in PLACES.values() if any(text.endswith(place) for text in drawn.captions)]
        found.update(said)
        for place in said:
            words = {"left": column == 0, "right": column == 2, "top": row == 0, "bottom": row == 2}
            assert all(words[word] for word in words if word in place.split()), (place, column, row)
    assert found == set(PLACES.values())


def test_relations_are_true():
    relations = {"to the left of": 0, "to the right of": 0, "above": 0, "below": 0}
    for index in range(300):
        drawn = scene(5, index, objects=2)
        names = {f"{thing.colour} {thing.shape}": centre(thing) for thing in drawn.objects}
        for text in drawn.captions:
            for relation in relations:
                if f" {relation} " not in text:
                    continue
                first, second = (
                    next(place for name, place in names.items() if name in part) for part in text.split(f" {relation} ")
                )
                relations[relation] += 1
                (x, y), (u, v) = first, second
                holds = {"to the left of": x < u, "to the right of": x > u, "above": y < v, "below": y > v}
                assert holds[relation], text
    assert min(relations.values()) > 100


@pytest.mark.parametrize("objects", [2, 3, 4, 5, 6])
def test_counts_are_true(objects):
    counted = 0
    for index in range(60):
        drawn = scene(6, index, objects=objects)
        assert len(drawn.objects) == objects
        kinds = {(thing.colour, thing.shape) for thing in drawn.objects}
        if len(kinds) == 1:
            counted += 1
            assert drawn.captions[0].startswith(NUMBERS[objects] + " ")
            assert drawn.captions[0].split()[1] == drawn.objects[0].colour
        else:
            assert len(kinds) == objects
            for colour, shape in kinds:
                assert any(f"{colour} {shape}" in text for text in drawn.captions)
    assert counted > 3


def test_the_background_is_drawn_and_named():
    for index in range(60):
        drawn = scene(8, index)
        assert drawn.captions[-1].endswith(f"on a {drawn.background} background")
        assert drawn.image.getpixel((0, 0)) == BACKGROUNDS[drawn.background]


@pytest.mark.parametrize("arguments", [{"size": 4}, {"seed": -1}, {"index": -1}, {"objects": 0}, {"objects": 7}])
def test_options_out_of_range(arguments):
    with pytest.raises(UsageError, match="a scene needs"):
        scene(**{"seed": 0, "index": 0, **arguments})


def noisy(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image, float)
    noise = np.random.default_rng(0).normal(0, 12, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda image: image,
        lambda image: image.filter(ImageFilter.GaussianBlur(0.7)),
        lambda image: image.filter(ImageFilter.GaussianBlur(1.0)),
        noisy,
    ],
    ids=["true", "blurred", "more blurred", "noisy"],
)
def test_the_rule_reads_single_objects(size, spoil):
    wrong = []
    for index in range(200):
        drawn = scene(9, index, size, objects=1)
        (thing,) = drawn.objects
        if recognise_shape(spoil(drawn.image)) != (thing.colour, thing.shape):
            wrong.append((thing, recognise_shape(spoil(drawn.image))))
    assert len(wrong) <= 2, wrong  # 1 in 100


def test_the_rule_reads_every_background_and_place():
    read = wrong = 0
    for index in range(800):
        drawn = scene(10, index, 32)
        if len(drawn.objects) == 1:
            read += 1
            wrong += recognise_shape(drawn.image) != (drawn.objects[0].colour, drawn.objects[0].shape)
    assert read > 150
    assert wrong <= read // 100


def test_the_rule_takes_the_largest_of_several():
    for index in range(300):
        drawn = scene(11, index, 64, objects=2)
        first, second = drawn.objects
        plain = {first.shape, second.shape} <= {"circle", "square"}  # a large star has a small area
        if plain and {first.size, second.size} == {"small", "large"}:
            large = first if first.size == "large" else second
            assert recognise_shape(drawn.image) == (large.colour, large.shape)


@pytest.mark.parametrize("colour", ["white", (205, 205, 205), "red"])
def test_the_rule_finds_nothing_on_an_empty_picture(colour):
    assert recognise_shape(Image.new("RGB", (32, 32), colour)) is None


def test_the_rule_copes_with_noise():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    colour, shape = recognise_shape(Image.fromarray(noise)) or ("", "")
    assert colour in COLOURS
    assert shape in SHAPES


def test_the_rule_reads_large_pictures():
    drawn = scene(12, 0, 400, objects=1)
    assert recognise_shape(drawn.image) == (drawn.objects[0].colour, drawn.objects[0].shape)


def test_written_scenes_are_a_source(tmp_path):
    calls = []
    count = write_shapes(tmp_path / "scenes", 12, 32, seed=3, progress=lambda *call: calls.append(call))
    assert (count, calls) == (12, [(done, 12) for done in range(1, 13)])
    source = open_source(tmp_path / "scenes")
    assert len(source) == 12
    for index in range(12):
        drawn = scene(3, index, 32)
        assert source.captions(index) == list(drawn.captions)
        assert source.image(index).tobytes() == drawn.image.tobytes()
        row = source.row(index)
        assert row["count"] == len(row["objects"]) == len(drawn.objects)
        assert row["objects"][0]["colour"] == drawn.objects[0].colour
    assert len(open_source(tmp_path / "scenes", where=["count >= 1"], captions=["{caption}"])) == 12
    lines = (tmp_path / "scenes" / "metadata.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["file_name"] == "images/000000.png"


def test_scenes_are_not_written_into_an_existing_folder(tmp_path):
    (tmp_path / "scenes").mkdir()
    write_shapes(tmp_path / "scenes", 1, size=16)
    with pytest.raises(DataError, match="already exists"):
        write_shapes(tmp_path / "scenes", 1, size=16)
    with pytest.raises(UsageError, match="the number of scenes must be 1 or more"):
        write_shapes(tmp_path / "none", 0)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CodebrushError, match=f"cannot write {tmp_path / 'file' / 'deep'}"):
        write_shapes(tmp_path / "file" / "deep", 1)


def test_scenes_are_written_completely_or_not_at_all(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # a longer file fails as on a full disk
    try:
        with pytest.raises(CodebrushError, match=r"cannot write .*scenes"):
            write_shapes(tmp_path / "scenes", 20, size=32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
