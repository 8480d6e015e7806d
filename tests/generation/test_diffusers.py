"""A flow of ours in a pipeline of diffusers, and our CLIP as the guide of one that knows nothing of us."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codebrush import Codebrush
from codebrush.cli.main import run
from codebrush.errors import PackError, UsageError
from codebrush.generation.diffusers.clip_guidance import clean_latents, clip_guidance_callback, noise_level
from codebrush.generation.diffusers.export import to_diffusers
from codebrush.generation.options import FlowSettings
from codebrush.generation.sampling.flow import Lead, draw_latents, picture_noise
from codebrush.models.clip import CLIP
from codebrush.models.vqgan import VQGAN
from codebrush.models.vqgan_sizes import vqgan_micro
from codebrush.pack.pack import encode_condition
from packs import micro_clip, micro_flow, write_micro_pack

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'codebrush[diffusers]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*")
STEPS = 4
STILL: dict[str, Any] = dict.fromkeys(("crop_std", "pad", "flip", "turn", "shift", "colour", "noise"), 0)


@pytest.fixture(autouse=True)
def own_modules(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers copies the pipeline.py of a folder to its cache."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("hf")))


@pytest.fixture(scope="module")
def brush(tmp_path_factory: pytest.TempPathFactory) -> Codebrush:
    """A pack whose VQGAN has attention, and codes and latents of any length."""
    torch.manual_seed(3)
    config = replace(
        vqgan_micro(), attention_resolutions=(8,), middle_attention=True, l2_normalized=False, res_blocks=2
    )
    vqgan, flow = VQGAN(config).eval(), micro_flow(unit_latents=False)
    with torch.no_grad():
        vqgan.decoder.conv_out.weight.mul_(8)
        vqgan.quantizer.codebook.normal_()
        flow.mean.normal_()
        flow.deviation.uniform_(0.5, 1.5)
    folder = tmp_path_factory.mktemp("packs") / "any"
    write_micro_pack(folder, vqgan=vqgan, flow=flow, defaults={"cfg": 2.0})
    return Codebrush.from_pretrained(folder, device="cpu", weights="float32")


def opened(folder: Path) -> Any:
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(brush: Codebrush, tmp_path: Path) -> Any:
    to_diffusers(brush.pack, tmp_path / "pipe")
    return opened(tmp_path / "pipe")


def images(pipe: Any, prompt: Any = "a red circle", **options: Any) -> np.ndarray:
    found = pipe(prompt, num_inference_steps=STEPS, output_type="np", **options).images
    return np.asarray(found)


def drawn(brush: Codebrush, prompt: str = "a red circle", n: int = 2, **options: Any) -> np.ndarray:
    """The same pictures by `generate`, in the order of their numbers, decoded from their codes."""
    results = brush.generate(prompt, n, 5, method="flow", sampler="euler", steps=STEPS, rerank=n, **options)
    codes = torch.stack([each.codes for each in sorted(results, key=lambda each: each.manifest["index"])])
    with torch.no_grad():
        return brush.vqgan.decode_codes(codes).clamp(0, 1).movedim(1, -1).numpy()


def test_the_same_seeds_give_the_same_pictures(brush: Codebrush, pipe: Any) -> None:
    two = {"num_images_per_prompt": 2, "seed": 5}
    plain = images(pipe, **two)
    assert np.abs(plain - drawn(brush)).max() < 1e-3
    assert np.abs(images(pipe, guidance_scale=1, **two) - drawn(brush, cfg=1)).max() < 1e-3
    assert np.abs(images(pipe, height=16, width=24, **two) - drawn(brush, size="24x16")).max() < 1e-3
    weighted = {"negative_prompt": "a blue square"}
    assert (
        np.abs(
            images(pipe, "a dog:1.5|a cat:-0.5", **two, **weighted) - drawn(brush, "a dog:1.5|a cat:-0.5", **weighted)
        ).max()
        < 1e-3
    )
    several = images(pipe, ["a dog", "a red circle"], **two)
    assert np.abs(several[2:] - plain).max() < 1e-3
    assert np.abs(several[:2] - drawn(brush, "a dog")).max() < 1e-3
    assert np.abs(several[:2] - plain).max() > 0.1
    (picture,) = pipe("a red circle", num_inference_steps=STEPS, seed=5).images
    (own,) = brush.generate("a red circle", 1, 5, method="flow", sampler="euler", steps=STEPS, rerank=1)
    assert np.abs(np.asarray(picture, dtype=int) - np.asarray(own.image, dtype=int)).max() <= 1
    assert pipe.config.guidance_scale == 2.0


def test_unit_vectors_are_compared_as_such(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = Codebrush.from_pretrained(
        write_micro_pack(tmp_path / "unit", flow=micro_flow()), device="cpu", weights="float32"
    )
    to_diffusers(own.pack, tmp_path / "pipe")
    found = images(opened(tmp_path / "pipe"), num_images_per_prompt=2, seed=5)
    assert np.abs(found - drawn(own)).max() < 1e-3


def test_its_vqmodel_reads_and_quantises_like_our_vqgan(brush: Codebrush, pipe: Any) -> None:
    seen = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        latent = brush.vqgan.encode(seen)
        torch.testing.assert_close(pipe.vqvae.encode(seen * 2 - 1).latents, latent, atol=1e-4, rtol=1e-4)
        ours = brush.vqgan.decode(brush.vqgan.quantize(latent)[0])
        torch.testing.assert_close((pipe.vqvae.decode(latent).sample + 1) / 2, ours, atol=1e-4, rtol=1e-4)


def test_a_callback_sees_and_changes_every_step_and_schedulers_can_be_changed(pipe: Any) -> None:
    seen = []

    def shift(pipe: Any, number: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        seen.append((number, round(float(timestep))))
        return {"latents": given["latents"] + 1}

    plain, changed = images(pipe, seed=5), images(pipe, seed=5, callback_on_step_end=shift)
    assert seen == [(0, 1000), (1, 750), (2, 500), (3, 250)]
    assert np.abs(plain - changed).max() > 0.1
    first, again = (images(pipe, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, plain)
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    assert images(pipe, seed=5).shape == (1, 32, 32, 3)


def test_it_is_saved_by_diffusers_too(pipe: Any, tmp_path: Path) -> None:
    pipe.text_encoder.save_pretrained(tmp_path / "clip")
    again = type(pipe.text_encoder).from_pretrained(tmp_path / "clip")
    assert torch.equal(
        again.condition(["a dog"], pipe.flow.config).text_embedding,
        pipe.text_encoder.condition(["a dog"], pipe.flow.config).text_embedding,
    )


def test_the_command_line_writes_the_folder(
    brush: Codebrush, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["convert", str(brush.pack.folder), "--to", "diffusers", "--out", str(tmp_path / "out"), "--json"]
    assert run(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["written"]) == ("flow", "diffusers")
    assert {"model_index.json", "vqvae/config.json", "text_encoder/tokenizer.json"} <= set(report["files"])
    assert images(opened(tmp_path / "out")).shape == (1, 32, 32, 3)
    assert run(command) == 2
    assert "is already there" in capsys.readouterr().err
    assert run([*command, "--kind", "clip"]) == 2
    assert "--kind is of no use with --to diffusers" in capsys.readouterr().err


def test_what_cannot_be_written_is_one_line(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PackError, match="has no flow transformer"):
        to_diffusers(Codebrush.from_pretrained(micro_pack).pack, tmp_path / "out")
    uneven = VQGAN(replace(vqgan_micro(), channels=12, channel_multipliers=(1, 1, 2)))
    pack = write_micro_pack(tmp_path / "uneven", vqgan=uneven, flow=micro_flow())
    with pytest.raises(PackError, match="the VQGAN of this pack has 6, 8: train one"):
        to_diffusers(Codebrush.from_pretrained(pack).pack, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert run(["convert", str(tmp_path), "--to", "diffusers", "--out", str(tmp_path / "out")]) == 1
    assert "is not a pack: it has no pack.json" in capsys.readouterr().err


def stable_diffusion(scheduler: Any) -> Any:
    """A pipeline of Stable Diffusion with random weights, which draws 32 x 32 pixels from embeddings of a text."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=8, attention_head_dim=2,
        norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionPipeline(
        vae, None, None, unet.eval(), scheduler, None, None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def painted(pipe: Any, callback: Any = None, steps: int = 5) -> torch.Tensor:
    texts = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1))
    drawn = pipe(
        prompt_embeds=texts[:1], negative_prompt_embeds=texts[1:], height=32, width=32, num_images_per_prompt=2,
        num_inference_steps=steps, generator=torch.Generator().manual_seed(2), output_type="pt",
        callback_on_step_end=callback,
    )  # fmt: skip
    return drawn.images


SCHEDULERS = {
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
    "euler": lambda: diffusers.EulerDiscreteScheduler(steps_offset=1),
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(),
    "dpm": lambda: diffusers.DPMSolverMultistepScheduler(solver_order=1, steps_offset=1),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_two_points_of_a_step_say_what_it_headed_for(name: str) -> None:
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(8)
    x, clean, noise = torch.zeros(1), torch.tensor([3.0]), torch.tensor([-2.0])
    for place, timestep in enumerate(scheduler.timesteps[:-1]):
        a, s = noise_level(scheduler, place)
        x = a * clean + s * noise  # the model knows the noise, or the way to it
        output = noise - clean if name == "flow" else noise
        after = scheduler.step(output, timestep, x, return_dict=False)[0]
        levels = [(a, s), noise_level(scheduler, place + 1)]
        torch.testing.assert_close(clean_latents(x, after, levels), clean, atol=1e-3, rtol=1e-3)


@pytest.fixture
def clip() -> CLIP:
    """One that pictures matter to: untrained, its class token hardly sees them."""
    clip = micro_clip()
    with torch.no_grad():
        for name, parameter in clip.image_encoder.named_parameters():
            if parameter.ndim > 1 and "position" not in name:
                parameter.mul_(8)
        clip.image_encoder.class_embedding.zero_()
    return clip


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_our_clip_guides_a_foreign_pipeline(brush: Codebrush, clip: CLIP, name: str) -> None:
    pipe = stable_diffusion(SCHEDULERS[name]())

    def drawn_with(prompt: str, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Two pictures, guided by views of the whole of each, and their scores."""
        pictures = painted(pipe, clip_guidance_callback(clip, brush.tokenizer, prompt, scale, cutouts=1, **STILL))
        with torch.no_grad():
            return pictures, clip.encode_image(pictures) @ clip.encode_text(brush.tokenizer(["a red circle"]))[0]

    (plain, least), (_, some), (guided, most) = (drawn_with("a red circle", scale) for scale in (0, 2, 10))
    assert torch.equal(plain, painted(pipe))
    assert (some > least + 0.004).all()
    assert (most > some + 0.02).all()
    assert torch.equal(guided, drawn_with("a red circle", 10)[0])
    assert (drawn_with("a blue square:0.01 | a red circle:-1", 2)[1] < least - 0.004).all()


def test_the_cutouts_follow_from_the_seed_and_its_options_count(brush: Codebrush, clip: CLIP) -> None:
    pipe = stable_diffusion(SCHEDULERS["ddim"]())

    def guided(**options: Any) -> torch.Tensor:
        return painted(pipe, clip_guidance_callback(clip, brush.tokenizer, "a red circle", 5, **options), 3)

    plain = guided(cutouts=2)
    assert torch.equal(plain, guided(cutouts=2))
    for other in ({"seed": 1}, {"cutouts": 3}, {"exclude": ["a dog"]}, {"distance": "cosine"}, {"turn": 90.0}):
        assert not torch.equal(plain, guided(**{"cutouts": 2, **other})), other


def test_it_pulls_a_flow_of_ours_as_clip_guidance_does(brush: Codebrush, pipe: Any) -> None:
    flow, how = pipe.flow, {"cutouts": 3}
    guide = clip_guidance_callback(brush.clip, brush.tokenizer, "a blue square", 1.0, seed=7, decode=pipe.decode, **how)
    found = pipe(
        "a red circle",
        num_inference_steps=STEPS,
        seed=5,
        guidance_scale=1,
        output_type="latent",
        callback_on_step_end=guide,
    ).images

    def gradient(latent: torch.Tensor, step: int) -> torch.Tensor:
        if step in (0, STEPS - 1):
            return torch.zeros_like(latent)
        direction = guide._direction(pipe, flow.normalise(latent), step)
        return direction / flow.deviation[:, None, None]

    condition = encode_condition(brush.clip, brush.tokenizer, ["a red circle"], flow.config)
    led = draw_latents(
        flow, condition, picture_noise(5, range(1), (8, 8, 8)), FlowSettings(STEPS, "euler"), lead=Lead(gradient, 1.0)
    )
    torch.testing.assert_close(found, flow.normalise(led), atol=1e-3, rtol=1e-3)


def test_what_it_cannot_guide_is_one_line(brush: Codebrush, pipe: Any) -> None:
    def guide(**options: Any) -> Any:
        return clip_guidance_callback(brush.clip, brush.tokenizer, "a dog", **options)

    for options, said in (
        ({"scale": -1}, "scale must be a number from 0 to 100, not -1"),
        ({"cutouts": 0}, "cutouts must be"),
        ({"cutn": 3}, "clip_guidance_callback has no option cutn: did you mean cutouts?"),
    ):
        with pytest.raises(UsageError, match=said):
            guide(**options)
    with pytest.raises(UsageError, match="cannot guide the steps of a EulerAncestralDiscreteScheduler"):
        painted(stable_diffusion(diffusers.EulerAncestralDiscreteScheduler(steps_offset=1)), guide(), 3)
    with pytest.raises(UsageError, match="a CodebrushFlowPipeline has no VAE: give decode"):
        images(pipe, callback_on_step_end=guide())
