"""What a code transformer is taught to draw from besides texts: embeddings, holes, other pictures of the same thing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_parts import check_parts
from stopped_runs import run_in_two

from codebrush.data.hole_filling import fill_holes
from codebrush.data.synthetic.scene_folder import write_shapes
from codebrush.errors import DataError, TrainingError
from codebrush.models.code_transformer import UNKNOWN, CodeTransformer
from codebrush.models.condition import Condition
from codebrush.models.vqgan import VQGAN
from codebrush.models.vqgan_sizes import vqgan_micro
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import CaptionTokens, SourceConfig, load_captioned
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.registry import STAGES
from codebrush.training.run_stage import make_network, make_task, run_stage
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.tasks.code_loss import code_likeness
from codebrush.training.tasks.code_noise import hide_codes
from codebrush.training.tasks.code_transformer import (
    TransformerRecipe,
    make_code_transformer,
    with_conditions,
)
from codebrush.training.tasks.conditions import (
    MOST_HOLE,
    ConditionSampler,
    OtherCaptions,
    given_rows,
    random_hole,
    rows_of_each,
)
from packs import micro_clip

GRID, CODES = (8, 8), 128
RECIPE = TransformerRecipe(
    width=16, layers=1, heads=2, text_length=6, image_share=0.25, hole_share=0.25, pair_share=0.25,
    pair_captions=("a {count} on {background}",), dropout=0.0,
)  # fmt: skip
LOOP = LoopConfig(steps=4, batch_size=8, warmup=1, ema_decay=0.5, threads=1, log_every=2, checkpoint_every=2)


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    """Thirty scenes, grouped by how many shapes they hold, with codes at random."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("scenes")
    write_shapes(folder / "scenes", 30, size=32)
    source = SourceConfig(str(folder / "scenes"), group="count").open()
    data = load_captioned(source, 32, folder / "cache")
    codes = np.random.default_rng(0).integers(0, CODES, (len(data), 64)).astype(np.int16)
    clip = micro_clip(Tokenizer.wordpiece().vocab_size).requires_grad_(False)
    vqgan = VQGAN(replace(vqgan_micro(), codebook_size=CODES)).eval()
    return Materials(data, {"clip": Tokenizer.wordpiece()}, {"clip": clip, "vqgan": vqgan}, codes=codes)


def drawer(materials: Materials, **shares: float) -> ConditionSampler:
    tokens = CaptionTokens(materials.data, materials.tokenizer)
    told = CaptionTokens(OtherCaptions(materials.data, RECIPE.pair_captions), materials.tokenizer)
    wanted = tuple(shares.get(name, 0.0) for name in ("image", "hole", "pair"))
    assert materials.codes is not None
    return ConditionSampler(materials.data, materials.codes, GRID, tokens, told, wanted)  # pyright: ignore


class TestDrawer:
    def test_each_kind_has_its_share(self, materials: Materials) -> None:
        rows, rng = np.arange(12), np.random.default_rng(1)
        found = drawer(materials, image=0.25, hole=0.25, pair=0.25).draw(rows, rng)
        assert found.images.shape == (3, 3, 32, 32)
        assert torch.equal(found.images, materials.data.images(rows[:3]))
        assert found.present[:, 2].tolist() == [True] * 3 + [False] * 9
        assert found.present[3:, :2].all()
        assert found.present[3:6, 3].all()
        assert not found.present[9:, 3].any()
        assert (found.holed.shape, found.source.shape) == ((6, 3, 32, 32), (9, 64))
        assert given_rows(vars(found)) == [slice(0, 3), slice(3, 6), slice(6, 9)]
        assert not found.holed[:3].any()
        assert not found.source[:6].any()
        for place, image in enumerate(materials.data.images(rows[3:6]).float() / 255):
            hole = ~found.shown[3 + place].view(8, 8).repeat_interleave(4, 0).repeat_interleave(4, 1)
            assert torch.equal(found.holed[3 + place], fill_holes(image, hole))
        for row in range(12):
            if 3 <= row < 6:
                assert torch.equal(found.learned[row], ~found.shown[row])
            else:
                assert found.learned[row].all()
                assert found.shown[row].all()

    def test_a_pair_shows_another_picture_of_its_group(self, materials: Materials) -> None:
        rng, groups = np.random.default_rng(1), materials.data.groups
        one, rows = drawer(materials, pair=1.0), np.arange(len(materials.data))
        found = one.draw(rows, rng)
        codes = torch.from_numpy(materials.codes.astype(np.int64))  # pyright: ignore
        for row in rows.tolist():
            alone = (groups == groups[row]).sum() == 1
            assert bool(found.shown[row].any()) is not alone
            if alone:
                assert not found.shown[row].any()
                continue
            (other,) = (codes == found.source[row]).all(1).nonzero().flatten().tolist()
            assert other != row
            assert groups[other] == groups[row]
            said = materials.data.source.row(materials.data.pixels.rows[row])
            wanted = materials.tokenizer([f"a {said['count']} on {said['background']}"], on_long="truncate")[0]
            assert torch.equal(found.tokens[row], wanted)
        crowd = int(np.bincount(groups)[groups].argmax())  # a row of the largest group
        assert len({one.partner(crowd, rng) for _ in range(50)}) > 1

    def test_the_same_numbers_draw_the_same(self, materials: Materials) -> None:
        one = drawer(materials, image=0.2, hole=0.3, pair=0.3)
        first, again = (vars(one.draw(np.arange(10), np.random.default_rng(4))) for _ in range(2))
        assert all(torch.equal(first[name], again[name]) for name in first)

    def test_a_batch_too_small_for_its_shares_is_refused(self, materials: Materials) -> None:
        assert [len(range(9)[part]) for part in rows_of_each(9, (0.01, 0.0, 0.5))] == [1, 0, 4]
        with pytest.raises(TrainingError, match="2 rows per process are too few for the recipe's image_share"):
            drawer(materials, image=0.1, hole=0.1, pair=0.1).draw(np.arange(2), np.random.default_rng(0))


@pytest.mark.parametrize("grid", [(8, 8), (1, 2), (2, 1), (3, 5)])
def test_holes_are_some_and_not_all(grid: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    holes = np.stack([random_hole(grid, rng) for _ in range(300)])
    sizes = holes.sum((1, 2))
    assert sizes.min() >= 1
    assert sizes.max() <= MOST_HOLE * holes[0].size
    assert holes.any(0).all()  # anywhere
    if grid == (8, 8):
        assert holes[:, 2:6, 2:6].all((1, 2)).any()
        assert sizes.std() > 8


def test_the_hole_of_a_single_code_is_that_code() -> None:
    assert random_hole((1, 1), np.random.default_rng(0)).tolist() == [[True]]


def test_a_recipe_gives_the_network_its_conditions(materials: Materials) -> None:
    clip: Any = materials.models["clip"]
    sizes = make_code_transformer(RECIPE, clip, CODES, GRID).config
    assert (sizes.image_embedding, sizes.source_codes) == (24, True)
    assert sizes.text_embedding == 24
    bare = TransformerRecipe(width=16, layers=1, heads=2, pooled_text=False)
    sizes = make_code_transformer(bare, clip, CODES, GRID).config
    assert (sizes.image_embedding, sizes.source_codes, sizes.text_embedding) == (0, False, 0)
    with pytest.raises(ValueError, match="add up to more than 1"):
        TransformerRecipe(hole_share=0.6, pair_share=0.6)


def test_a_network_of_texts_learns_more_and_draws_as_it_did(materials: Materials) -> None:
    clip: Any = materials.models["clip"]
    bare = replace(RECIPE, image_share=0.0, hole_share=0.0, pair_share=0.0)
    old = make_code_transformer(bare, clip, CODES, GRID).eval()
    assert with_conditions(old, bare, clip) is old
    plan = StagePlan("transformer", RECIPE, LOOP)
    grown = make_network(plan, materials, start=old)
    assert isinstance(grown, CodeTransformer)
    assert (grown.config.image_embedding, grown.config.source_codes) == (24, True)
    for name, value in old.state_dict().items():
        if name != "prefix_positions":
            assert torch.equal(grown.state_dict()[name], value)
    text = Condition(text_features=torch.randn(1, 6, 32), text_embedding=torch.randn(1, 24))
    before, after = old.prefix(text, 1), grown.eval().prefix(text, 1)
    assert after.shape[1] == before.shape[1] + 1  # a source takes no room where there is none
    assert torch.equal(before[:, :7], after[:, :7])
    assert torch.equal(before[:, -1], after[:, -1])


def test_a_network_that_learns_modulation_draws_as_it_did(materials: Materials) -> None:
    """Its new prefix vector aside, each block does what it did: the gates are open, and nothing shifts or scales."""
    clip: Any = materials.models["clip"]
    old = make_code_transformer(replace(RECIPE, modulation=False), clip, CODES, GRID).eval()
    grown = with_conditions(old, replace(RECIPE, modulation=True), clip).eval()
    assert grown.config.modulation
    codes = torch.randint(0, CODES, (2, 64))
    condition = Condition(text_features=torch.randn(2, 6, 32), text_embedding=torch.randn(2, 24))
    with torch.no_grad():
        assert torch.equal(grown(codes, condition), old(codes, condition))
    bag = make_code_transformer(replace(RECIPE, pooled_text=False), clip, CODES, GRID)
    assert with_conditions(bag, replace(RECIPE, modulation=True), clip).config.text_embedding == 24
    classes = CodeTransformer(replace(old.config, labels=3))
    with pytest.raises(TrainingError, match="reads classes, and no text modulates it: set modulation to false"):
        with_conditions(classes, replace(RECIPE, modulation=True, image_share=0.0), clip)


def test_the_loss_is_of_codes_in_the_hole_alone(materials: Materials) -> None:
    plan = StagePlan("transformer", replace(RECIPE, image_share=0.0, hole_share=1.0, pair_share=0.0), LOOP)
    task = make_task(plan, materials, make_network(plan, materials).eval())
    batch = task.batch(np.arange(4), np.random.default_rng(0))
    with torch.no_grad():
        (objective,) = task.objectives(batch, 0)
        condition = task._condition(batch)  # pyright: ignore
        before = torch.where(batch["shown"], condition.source_codes, batch["codes"])[:, :-1]
        logits = task.networks["transformer"](before, condition)
    nats = -logits.log_softmax(-1).gather(2, batch["codes"][..., None])[..., 0]
    assert objective.loss.item() == pytest.approx(nats[batch["learned"]].mean().item(), rel=1e-5)
    assert 0 < batch["learned"].float().mean() < 1


@torch.no_grad()
def test_soft_codes_are_those_of_the_vqgan(materials: Materials) -> None:
    recipe = replace(RECIPE, image_share=0.0, hole_share=0.0, pair_share=0.0, soft_codes=0.05)
    plan = StagePlan("transformer", recipe, LOOP)
    network = make_network(plan, materials).eval()
    task = make_task(plan, materials, network)
    batch = task.batch(np.arange(4), np.random.default_rng(0))
    (objective,) = task.objectives(batch, 0)
    vqgan: Any = materials.models["vqgan"]
    book = vqgan.quantizer.vectors
    targets = code_likeness(book, 0.05)[batch["codes"]]
    order = torch.cdist(book, book).flatten().argsort()
    for weight in (network.code_embedding.weight, network.head.weight):  # neighbours begin as neighbours
        apart = torch.cdist(weight, weight).flatten()
        assert apart[order[CODES : CODES + 200]].mean() < 0.5 * apart[order[-200:]].mean()
        assert weight.std() == pytest.approx(0.02, rel=0.2)
    logits = network(batch["codes"][:, :-1], task._condition(batch))  # pyright: ignore
    assert objective.loss.item() == pytest.approx(-(targets * logits.log_softmax(-1)).sum(-1).mean().item(), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("block", [1, 2])
def test_a_masked_network_learns_hidden_codes_from_the_others(materials: Materials, block: int) -> None:
    recipe = replace(RECIPE, image_share=0.25, hole_share=0.0, pair_share=0.25, masked=True, block=block)
    plan = StagePlan("transformer", recipe, LOOP)
    network = make_network(plan, materials).eval()
    assert network.config.masked
    task = make_task(plan, materials, network)
    batch = task.batch(np.arange(8), np.random.default_rng(0))
    (objective,) = task.objectives(batch, 0)
    codes, nats, hits = batch["codes"][:, network.order], [], []
    hidden = batch["learned"][:, network.order]
    condition = task._condition(batch)  # pyright: ignore
    for row in range(8):
        given = condition.rows(slice(row, row + 1))
        if not batch["present"][row, 3]:
            given = replace(given, source_codes=None, source_mask=None)
        logits = network(codes[row : row + 1].masked_fill(hidden[row], UNKNOWN), given)[0]  # (N, K)
        written = -logits.log_softmax(-1).gather(1, codes[row][:, None])[:, 0]
        nats.append(written[hidden[row]])
        hits.append((logits.argmax(-1) == codes[row])[hidden[row]])
    assert objective.loss.item() == pytest.approx(torch.cat(nats).mean().item(), rel=1e-5)
    assert objective.metrics["accuracy"].item() == pytest.approx(torch.cat(hits).float().mean().item())


def test_codes_are_hidden_by_the_cosine() -> None:
    shares = hide_codes(torch.zeros(4000, 64)).float().mean(1)
    assert shares.min() >= 1 / 64
    assert shares.mean().item() == pytest.approx(2 / np.pi + 0.5 / 64, abs=0.02)  # the half comes of rounding up
    assert shares.median().item() == pytest.approx(np.cos(np.pi / 4), abs=0.03)
    assert hide_codes(torch.zeros(50, 1)).all()


def test_a_masked_network_needs_no_holes(materials: Materials) -> None:
    with pytest.raises(ValueError, match="a masked network fills holes as it is: set hole_share to 0"):
        TransformerRecipe(masked=True, hole_share=0.1)
    clip: Any = materials.models["clip"]
    plain = replace(RECIPE, hole_share=0.0, pair_share=0.0)
    masked = make_code_transformer(replace(plain, masked=True), clip, CODES, GRID)
    holed = replace(plain, hole_share=0.25)
    with pytest.raises(TrainingError, match="begin from is masked and fills holes as it is: set hole_share to 0"):
        with_conditions(masked, holed, clip)
    adapted = STAGES["transformer"].adapt(holed, materials, masked, True)
    assert with_conditions(masked, adapted, clip) is masked
    codes = make_code_transformer(plain, clip, CODES, GRID)
    assert STAGES["transformer"].adapt(holed, materials, codes, True) == holed
    with pytest.raises(TrainingError, match="begin from draws code after code: set masked to false"):
        with_conditions(codes, replace(plain, masked=True), clip)


@torch.no_grad()
def test_nothing_of_what_was_in_a_hole_is_read(materials: Materials) -> None:
    plan = StagePlan("transformer", replace(RECIPE, image_share=0.0, hole_share=1.0, pair_share=0.0), LOOP)
    task = make_task(plan, materials, make_network(plan, materials).eval())
    batch = task.batch(np.arange(4), np.random.default_rng(0))
    pixels = batch["shown"].view(4, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = torch.where(pixels, materials.data.images(np.arange(4)).float() / 255, torch.rand(4, 3, 32, 32))
    changed = {**batch, "holed": fill_holes(other, ~pixels[:, 0])}
    first, second = (task._condition(each).source_codes for each in (batch, changed))  # pyright: ignore
    assert torch.equal(first, second)
    vqgan: Any = materials.models["vqgan"]
    assert torch.equal(first, vqgan.quantize(vqgan.encode(batch["holed"]))[1].flatten(1))


@pytest.mark.parametrize("block", [1, 2])
@torch.no_grad()
def test_rows_with_and_without_a_source_are_read_apart_and_have_equal_weight(materials: Materials, block: int) -> None:
    plan = StagePlan("transformer", replace(RECIPE, block=block), LOOP)
    task = make_task(plan, materials, make_network(plan, materials).eval())
    batch = task.batch(np.arange(12), np.random.default_rng(1))
    (objective,) = task.objectives(batch, 0)
    condition, network = task._condition(batch), task.networks["transformer"]  # pyright: ignore
    nats = []
    before = batch["codes"].clone()
    before[3:6] = torch.where(batch["shown"][3:6], condition.source_codes[3:6], before[3:6])
    order = network.order.tolist()
    assert (order == list(range(64))) is (block == 1)
    for row in range(12):
        given = condition.rows(slice(row, row + 1))
        if not batch["present"][row, 3]:
            given = replace(given, source_codes=None, source_mask=None)
        logits = network(before[row : row + 1, order[:-1]], given)[0]
        written = -logits.log_softmax(-1).gather(1, batch["codes"][row][order, None])[:, 0]
        nats.append(written[batch["learned"][row][order]])
    assert batch["present"][:, 3].sum() == 6
    assert objective.loss.item() == pytest.approx(torch.cat(nats).mean().item(), rel=1e-5)


@pytest.mark.parametrize("changes", [{}, {"hole_share": 0.0, "masked": True}, {"pair_share": 0.0}], ids=str)
def test_a_step_in_parts_has_the_conditions_and_the_mean_of_the_whole(
    changes: dict[str, Any], materials: Materials, tmp_path: Path
) -> None:
    """One row of each condition among eight, of which each part has two; and codes count equally in parts with few."""
    shares = {"image_share": 0.1, "hole_share": 0.1, "pair_share": 0.1, "condition_dropout": 0.0, **changes}
    parts = check_parts(StagePlan("transformer", replace(RECIPE, **shares), LOOP), materials, tmp_path, 4)
    given = [[rows.stop - rows.start for rows in given_rows(part)] for part in parts]
    wanted = [int(shares[name] > 0) for name in ("image_share", "hole_share", "pair_share")]
    assert np.sum(given[:4], axis=0).tolist() == np.sum(given[4:], axis=0).tolist() == wanted


def test_a_stopped_run_ends_at_the_same_bits(materials: Materials, tmp_path: Path) -> None:
    plan = StagePlan("transformer", replace(RECIPE, block=2), LOOP)
    whole = run_stage(plan, materials, tmp_path / "whole")
    again = run_in_two(plan, materials, tmp_path / "part", stop_after=2)
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_wrong_template_is_named() -> None:
    with pytest.raises(DataError, match="the caption template"):
        TransformerRecipe(pair_captions=("{label",))
