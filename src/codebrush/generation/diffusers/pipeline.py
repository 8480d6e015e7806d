"""A pipeline of diffusers that draws with a flow of ours: the class behind the pipeline.py that `to_diffusers` writes.

The same seed gives the same pictures as `codebrush generate --method flow --sampler euler` with as many steps; the
picture of number i is that of the same number there, where CLIP then sorts them.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor

from codebrush.data.decoding.images import to_pil
from codebrush.errors import UsageError
from codebrush.generation.diffusers.networks import CLIPEncoder, FlowNetwork
from codebrush.generation.sampling.flow import check_patches, picture_noise
from codebrush.generation.sampling.weighted_conditions import guided_terms
from codebrush.models.condition import Condition
from codebrush.models.flow_transformer import FlowTransformer
from codebrush.models.quantizers.quantizer import nearest_codes, straight_through
from codebrush.text.prompt_writing import with_negative
from codebrush.text.prompts import parse_prompt
from codebrush.text.reading import read_prompt

OUTPUTS = ("pil", "np", "pt", "latent")
Terms = Sequence[tuple[Condition, float]]


class CodebrushFlowPipeline(DiffusionPipeline):
    """Text to picture by a rectified flow in the latent of a VQGAN.

    Any scheduler of diffusers for flows will do; `guidance_scale` is the pack's own.
    """

    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        vqvae: VQModel,
        transformer: FlowNetwork,
        text_encoder: CLIPEncoder,
        scheduler: Any,
        guidance_scale: float = 3.0,
    ) -> None:
        super().__init__()
        self.register_modules(vqvae=vqvae, transformer=transformer, text_encoder=text_encoder, scheduler=scheduler)
        self.register_to_config(guidance_scale=guidance_scale)

    @property
    def flow(self) -> FlowTransformer:
        """Our network."""
        return self.transformer.network

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 25,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Draw `num_images_per_prompt` pictures of each prompt.

        Args:
            prompt: in the syntax of Codebrush: "a dog", or "a dog:1.2 | blurry:-0.5".
            negative_prompt: what the pictures should not show.
            num_images_per_prompt: the pictures of one prompt have noise of their own.
            num_inference_steps: steps from noise to the picture.
            guidance_scale: of classifier-free guidance, 1 for none; None is the pack's own.
            height: in pixels; None is the pack's own, as for `width`. Both are multiples of the VQGAN's factor.
            width: see `height`.
            seed: of the noise, as in `codebrush generate`; not used if `generator` or `latents` is given.
            generator: of the noise, as elsewhere in diffusers.
            latents: the noise (B, d, h, w).
            output_type: "pil", "np" (B, H, W, 3), "pt" (B, 3, H, W), both in [0, 1], or "latent" (B, d, h, w).
            return_dict: an `ImagePipelineOutput`; else a tuple with the pictures.
            callback_on_step_end: called with the pipeline, the number of the step, its timestep and {"latents": ...};
                the latents that it returns are drawn on from.
            callback_on_step_end_tensor_inputs: "latents" alone.

        Raises:
            PromptError: if a prompt cannot be read.
            UsageError: if the size has no whole squares of codes, or the output type is unknown.
        """
        if output_type not in OUTPUTS:
            raise UsageError(f"output_type must be one of {', '.join(OUTPUTS)}, not {output_type}")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        scale = self.config["guidance_scale"] if guidance_scale is None else guidance_scale
        terms = [self._terms(text, negative_prompt, scale) for text in prompts]
        if latents is None:
            latents = self._noise(len(prompts), num_images_per_prompt, self._grid(height, width), seed, generator)
        check_patches(self.flow, latents)
        x = latents.to(self._execution_device, self.transformer.dtype)
        self._set_timesteps(num_inference_steps)
        with_bar: Any = self.progress_bar
        for number, timestep in enumerate(with_bar(self.scheduler.timesteps)):
            x = self.scheduler.step(self._velocity(x, timestep, terms), timestep, x, return_dict=False)[0]
            if callback_on_step_end is not None:
                given = {name: {"latents": x}[name] for name in callback_on_step_end_tensor_inputs}
                x = callback_on_step_end(self, number, timestep, given).pop("latents", x)
        images: Any = x if output_type == "latent" else self._output(x, output_type)
        return ImagePipelineOutput(images) if return_dict else (images,)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, d, h, w) of this pipeline -> pictures (B, 3, H, W) around [0, 1], not clamped.

        Each vector is replaced by the nearest code; its gradient passes unchanged.
        """
        latent = self.flow.denormalise(latents).to(self.vqvae.dtype)
        codebook = self.vqvae.quantize.embedding
        rows = latent.detach().movedim(1, -1)  # (B, h, w, d)
        codes = nearest_codes(rows.flatten(0, 2).float(), codebook.weight.float()).view(rows.shape[:3])
        chosen = straight_through(codebook(codes).movedim(-1, 1), latent)
        return (self.vqvae.decode(chosen, force_not_quantize=True).sample + 1) / 2

    def _output(self, latents: Tensor, output_type: str) -> Any:
        images = self.decode(latents).clamp(0, 1).float()
        if output_type == "pil":
            return [to_pil(image) for image in images]
        return images if output_type == "pt" else images.movedim(1, -1).cpu().numpy()

    def _terms(self, prompt: str, negative_prompt: str | None, scale: float) -> Terms:
        """The conditions of one prompt whose velocities are added up, each with its factor."""
        tokenizer = self.text_encoder.tokenizer
        text = read_prompt(prompt, tokenizer)
        if negative_prompt is not None and negative_prompt.strip():
            text = with_negative(text, read_prompt(negative_prompt, tokenizer))
        parts = parse_prompt(text).parts
        condition = self.text_encoder.condition([part.text for part in parts], self.flow.config)
        weighted = [(condition.rows(slice(row, row + 1)), part.weight) for row, part in enumerate(parts)]
        return guided_terms(weighted, scale, Condition())

    def _velocity(self, x: Tensor, timestep: Tensor, terms: Sequence[Terms]) -> Tensor:
        """The velocity (B, d, h, w) of the pictures of each prompt, one prompt after the other."""
        time = (timestep / self.scheduler.config.num_train_timesteps).to(x)
        velocities = []
        for part, summands in zip(x.chunk(len(terms)), terms, strict=True):
            times = time.expand(len(part))
            velocities.append(sum(share * self.transformer(part, times, condition) for condition, share in summands))
        return torch.cat(velocities)

    def _grid(self, height: int | None, width: int | None) -> tuple[int, int]:
        factor = 2 ** (len(self.vqvae.config.block_out_channels) - 1)
        if any(side is not None and side % factor for side in (height, width)):
            raise UsageError(f"a picture of {width}x{height} has no whole codes: use multiples of {factor}")
        rows, columns = self.flow.config.grid
        return height // factor if height else rows, width // factor if width else columns

    def _noise(
        self, prompts: int, each: int, grid: tuple[int, int], seed: int, generator: torch.Generator | None
    ) -> Tensor:
        """Noise (B, d, h, w): each prompt's pictures have that of `seed`, or all are drawn from `generator`."""
        shape = (self.flow.config.latent_channels, *grid)
        if generator is None:
            return picture_noise(seed, range(each), shape).repeat(prompts, 1, 1, 1)
        return torch.randn(prompts * each, *shape, generator=generator, device=generator.device)

    def _set_timesteps(self, steps: int) -> None:
        """Evenly from noise to the picture, where the scheduler can be told so."""
        given: dict[str, Any] = {"device": self._execution_device}
        if "sigmas" in inspect.signature(self.scheduler.set_timesteps).parameters:
            self.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist(), **given)
        else:
            self.scheduler.set_timesteps(steps, **given)
