"""Trains a CLIP not to be deceived: by decoys, pictures that guidance by another CLIP made and that match no text."""

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.models.clip import CLIP
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import Captioned
from codebrush.training.streamed import Streamed
from codebrush.training.tasks.contrastive_loss import gather, scaled_cosines, sigmoid_loss

FITTED_ROWS = 256  # pictures by which a CLIP without a bias gets one


def decoy_loss(image: Tensor, own: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The sigmoid loss (Zhai et al. 2023, eq. 1) of decoys (D, E): no text matches them, not even their own.

    `own` (D, E) are the unit embeddings of what they were to become and `text` (B, E) those of the batch. As in
    `sigmoid_loss` the sum over the pairs is divided by B. Each process takes its share of the decoys, against the texts
    of all.
    """
    with torch.autocast(image.device.type, enabled=False):
        to_own = scale * (image.float() * own.float()).sum(1) + bias  # (D,)
    to_batch = scaled_cosines(image, gather(text), scale) + bias  # (D, N), of all processes
    return -(F.logsigmoid(-to_own).sum() + F.logsigmoid(-to_batch).sum()) / len(text)


@torch.no_grad()
def fit_bias(clip: CLIP, data: Captioned | Streamed, tokenizer: Tokenizer) -> None:
    """Give a CLIP of the softmax loss the scale and bias with which the sigmoid loss of `data` begins lowest.

    Without a bias the first steps would ruin it.
    """
    rows = data.sample(FITTED_ROWS)
    images = clip.eval().encode_image(data.images(rows).float() / 255)
    texts = clip.encode_text(tokenizer([data.captions(row)[0] for row in rows], on_long="truncate"))
    log_scale, bias = fit_logits(images, texts, torch.from_numpy(data.groups[rows]), float(clip.log_scale.exp()))
    clip.log_scale.fill_(log_scale)
    clip.logit_bias.fill_(bias)


@torch.enable_grad()
def fit_logits(image: Tensor, text: Tensor, groups: Tensor, scale: float) -> tuple[float, float]:
    """The log scale and the bias with the least `sigmoid_loss` of unit vectors (B, E), found by L-BFGS from `scale`."""
    image, text = image.detach(), text.detach()
    log_scale = torch.tensor(scale, dtype=torch.float64).log().requires_grad_()
    bias = torch.tensor(-scale / 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_scale, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = sigmoid_loss(image, text, log_scale.exp(), bias, groups)
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return float(log_scale.detach()), float(bias.detach())
