"""Draws a sheet of pictures with a code transformer in training, as the preview that training saves."""

import torch
from PIL import Image

from codebrush.data.contact_sheet import contact_sheet
from codebrush.data.images import to_pil
from codebrush.generation.options import SamplingFilters
from codebrush.generation.sampling.decoding import draw_codes, picture_uniforms
from codebrush.models.code_transformer import CodeTransformer
from codebrush.pack.pack import encode_condition
from codebrush.training.dataset import evenly
from codebrush.training.stages import Materials

PICTURES = 16


@torch.no_grad()
def draw_preview(materials: Materials, network: CodeTransformer) -> Image.Image:
    """Draw PICTURES captions spread over the training rows, always from the same random numbers."""
    assert materials.clip is not None
    assert materials.vqgan is not None
    rows = evenly(len(materials.data), PICTURES)
    captions = [materials.data.captions(int(row))[0] for row in rows]
    condition = encode_condition(materials.clip, materials.tokenizer, captions, network.config)
    uniforms = picture_uniforms(0, range(len(rows)), network.config.code_count)
    codes = draw_codes(network, [(condition, 1.0)], uniforms, SamplingFilters(cfg=3.0))
    return contact_sheet(
        [to_pil(image) for image in materials.vqgan.decode_codes(codes.to(materials.vqgan.last_layer.device))], captions
    )
