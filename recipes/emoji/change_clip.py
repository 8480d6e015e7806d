"""Adapts a flow or a captioner to another CLIP, so that a short training can go on with it.

    python recipes/emoji/change_clip.py flow runs/emoji/painter-flow-2/model drawings.parquet \
        --before emoji --after runs/emoji/clip-more-icons/model --out runs/emoji/flow-for-clip/model
    python recipes/emoji/change_clip.py captioner runs/emoji/captioner-10/model drawings.parquet --before emoji ...

Whatever a network takes from CLIP, a linear layer reads first. That layer is replaced by the one that, given what the
other CLIP says of the training pictures and their captions, comes nearest to what the old layer made of the old CLIP
(least squares with a small ridge); everything else stays. Prints, for each layer, the share of its output's variance
that the new one explains on pictures of the val split.
"""

import argparse
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from painter_table import MAIN, OTHERS
from torch import Tensor, nn

from codebrush.data.sources.captioned_images import open_source
from codebrush.evaluation.rows import embed_texts
from codebrush.models.captioner import Captioner, patch_features
from codebrush.models.clip import CLIP
from codebrush.models.flow_transformer import FlowTransformer
from codebrush.pack.pack import open_clip
from codebrush.training.dataset import Captioned, load_captioned

RIDGE = 1e-4  # of the mean square of the inputs
BATCH = 128
CAPTIONS = ("{label}", "{label}, {tags}", "{tags}", "{label}, {style} style")
STYLES = ", ".join((*MAIN, *OTHERS, "noto-v1", "emojione", "fxemoji"))  # what the networks learn from
Pairs = Iterable[tuple[Tensor, Tensor]]  # inputs of the old and of the new layer, (N, D) each


def refit(layer: nn.Linear, inputs: int, known: Pairs, held: Pairs) -> float:
    """Make the first `inputs` columns of a layer read the other inputs, and return the share of variance it explains.

    Args:
        layer: what is changed; columns after the first `inputs` stay.
        inputs: D.
        known: what the least squares are fitted on.
        held: what the result is measured on.
    """
    old = layer.weight[:, :inputs].double()
    gram, cross = torch.zeros(inputs + 1, inputs + 1).double(), torch.zeros(inputs + 1, len(old)).double()
    for before, after in known:
        rows = _with_one(after)
        gram += rows.T @ rows
        cross += rows.T @ (before.double() @ old.T)
    ridge = RIDGE * gram.diagonal()[:-1].mean() * torch.eye(inputs + 1).double()
    ridge[-1, -1] = 0  # the constant
    found = torch.linalg.solve(gram + ridge, cross)  # (D + 1, outputs)
    targets, made = zip(*((before.double() @ old.T, _with_one(after) @ found) for before, after in held), strict=True)
    target, left = torch.cat(targets), torch.cat(targets) - torch.cat(made)
    assert layer.bias is not None
    layer.weight[:, :inputs] = found[:-1].T.float()
    layer.bias += found[-1].float()
    return 1 - float(left.square().sum() / (target - target.mean(0)).square().sum())


def _with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows.double(), torch.ones(len(rows), 1).double()], dim=1)


class Drawings:
    """The pictures of a split, as two CLIPs see them."""

    def __init__(self, table: Path, split: str, clips: tuple[str, str], cache: Path):
        source = open_source(table, split=split, where=("skin_tone is null", f"style in {STYLES}"), captions=CAPTIONS)
        self.clips = [open_clip(clip) for clip in clips]
        first, second = (clip.image_size for clip, _ in self.clips)
        if first != second:
            raise SystemExit(f"one CLIP reads pictures of {first} pixels, the other of {second}")
        self.data: Captioned = load_captioned(source, first, cache)

    def texts(self) -> Pairs:
        """The embeddings of all captions."""
        captions = sorted({text for row in range(len(self.data)) for text in self.data.captions(row)})
        before, after = (embed_texts(clip, tokenizer, captions) for clip, tokenizer in self.clips)
        yield before, after

    def pictures(self, see: Callable[[CLIP, Tensor], Tensor] = CLIP.encode_image) -> Pairs:
        """What `see` makes of all pictures with each CLIP, batch by batch."""
        for start in range(0, len(self.data), BATCH):
            images = self.data.images(range(start, min(start + BATCH, len(self.data)))).float() / 255
            before, after = (see(clip, images) for clip, _ in self.clips)
            yield before.flatten(0, -2), after.flatten(0, -2)


def adapt_flow(flow: FlowTransformer, known: Drawings, held: Drawings) -> None:
    """Let the projections of the text's and of the picture's embedding read those of the new CLIP."""
    (old, _), (new, _) = known.clips
    if not torch.equal(old.text_encoder.token_embedding.weight, new.text_encoder.token_embedding.weight):
        raise SystemExit("the CLIPs have other token embeddings, which the flow reads as they are")
    for name, pairs in (("text_embedding", Drawings.texts), ("image_embedding", Drawings.pictures)):
        layer = flow.get_submodule(f"projections.{name}.0")
        assert isinstance(layer, nn.Linear)
        explained = refit(layer, layer.in_features, pairs(known), pairs(held))
        print(f"{name}: {100 * explained:.1f} % of the variance", flush=True)


def adapt_captioner(captioner: Captioner, known: Drawings, held: Drawings) -> None:
    """Let the projection of the patches read the new CLIP's feature maps; what the stem adds is read as before."""

    def see(clip: CLIP, images: Tensor) -> Tensor:
        features = patch_features(clip.image_encoder, clip.normalise(images), captioner.config.levels)
        return captioner.feature_norm(features)

    width = captioner.config.feature_width
    explained = refit(captioner.patch_projection, width, known.pictures(see), held.pictures(see))
    print(f"patches: {100 * explained:.1f} % of the variance", flush=True)


@torch.no_grad()
def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("member", choices=("flow", "captioner"))
    parser.add_argument("network", type=Path, help="folder of its weights")
    parser.add_argument("drawings", type=Path)
    parser.add_argument("--before", required=True, help="pack or folder of the CLIP that it reads")
    parser.add_argument("--after", required=True, help="pack or folder of the CLIP that it is to read")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    kind, adapt = {"flow": (FlowTransformer, adapt_flow), "captioner": (Captioner, adapt_captioner)}[given.member]
    network = kind.from_pretrained(given.network).eval()
    clips = given.before, given.after
    with TemporaryDirectory() as cache:
        known, held = (Drawings(given.drawings, split, clips, Path(cache)) for split in ("train", "val"))
        adapt(network, known, held)
    part = given.out.with_name(f"{given.out.name}.part")
    network.save_pretrained(part)
    for file in given.network.glob("tokenizer*"):
        shutil.copy(file, part)
    part.rename(given.out)  # there once it is whole


if __name__ == "__main__":
    main()
