"""Draws a sheet of pictures with a painter in training, as the preview that training saves."""

import torch
from PIL import Image

from codebrush.data.contact_sheet import contact_sheet
from codebrush.data.decoding.images import to_pil
from codebrush.generation.options import FlowSettings, SamplingFilters
from codebrush.generation.sampling.decoding import draw_codes, picture_uniforms
from codebrush.generation.sampling.flow import draw_latents, picture_noise
from codebrush.models.clip import CLIP
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.flow_transformer import FlowTransformer
from codebrush.models.vqgan import VQGAN
from codebrush.pack.pack import encode_condition
from codebrush.training.dataset import evenly
from codebrush.training.stage import Materials

PICTURES = 16  # of a sheet


@torch.no_grad()
def draw_preview(
    materials: Materials, network: CodeTransformer | FlowTransformer, count: int = PICTURES
) -> Image.Image:
    """Draw `count` captions spread over the training rows, always from the same random numbers."""
    clip, vqgan = materials.need(CLIP), materials.need(VQGAN)
    rows = evenly(len(materials.data), count)
    captions = [materials.data.captions(int(row))[0] for row in rows]
    condition = encode_condition(clip, materials.tokenizer, captions, network.config)
    if isinstance(network, FlowTransformer):
        noise = picture_noise(0, range(len(rows)), (network.config.latent_channels, *network.config.grid))
        latent = draw_latents(network, condition, noise, FlowSettings(), cfg=3.0)
        images = vqgan.decode(vqgan.quantize(latent.to(vqgan.last_layer.device))[0])
    else:
        uniforms = picture_uniforms(0, range(len(rows)), network.config.code_count)
        codes = draw_codes(network, [(condition, 1.0)], uniforms, SamplingFilters(cfg=3.0))
        images = vqgan.decode_codes(codes.to(vqgan.last_layer.device))
    return contact_sheet([to_pil(image) for image in images], captions)
