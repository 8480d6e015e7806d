"""Writes a pack's flow as a folder that `diffusers.DiffusionPipeline.from_pretrained` opens.

    model_index.json, pipeline.py    what is in the folder, and the class that draws with it
    vqvae/                           the VQGAN, as diffusers' own VQModel
    scheduler/                       diffusers' Euler steps for flows
    transformer/, text_encoder/      our flow transformer, and our CLIP with its tokenizer

diffusers itself is needed only to open the folder.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from codebrush.conversion.state_dict_rules import Rule, extract
from codebrush.errors import PackError, UsageError
from codebrush.files import new_folder, write_errors, write_json
from codebrush.generation.options import FlowSettings
from codebrush.generation.sampling.sampler import draw_options
from codebrush.models.layers.convolution import norm_groups
from codebrush.models.pretrained import config_to_dict
from codebrush.models.vqgan import VQGAN, VQGANConfig
from codebrush.pack.pack import Pack

WEIGHTS = "diffusion_pytorch_model.safetensors"
NETWORKS = "codebrush.generation.diffusers.networks"
PIPELINE = '''"""Draws with a flow that Codebrush trained. It needs Codebrush: pip install "codebrush[diffusers]".

    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    pipe("a red apple", seed=0).images[0].save("apple.png")
"""

from codebrush.generation.diffusers.pipeline import CodebrushFlowPipeline  # noqa: F401
'''


def to_diffusers(pack: Pack, out: str | Path) -> dict[str, Any]:
    """Write the flow, VQGAN and CLIP of a pack into the new folder `out`; returns what was written.

    Raises:
        UsageError: if `out` exists.
        PackError: if the pack has no flow, or diffusers' VQModel has no place for something in its VQGAN.
        CodebrushError: if `out` cannot be written.
    """
    out = Path(out)
    if out.exists():
        raise UsageError(f"{out} is already there: name another folder with --out, or remove it")
    if not pack.has("flow"):
        raise pack.missing("flow")
    settings = _vqmodel_settings(pack.vqgan.config)
    models = {"transformer": ("FlowNetwork", pack.flow), "text_encoder": ("CLIPEncoder", pack.clip)}
    usual = draw_options(pack, {"n": 1, "seed": 0, "flow": FlowSettings()})
    index: dict[str, Any] = {"_class_name": ["pipeline", "CodebrushFlowPipeline"], "guidance_scale": usual.cfg}
    index |= {"vqvae": ["diffusers", "VQModel"], "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    index |= {name: [NETWORKS, kind] for name, (kind, _) in models.items()}
    try:
        with write_errors(out), new_folder(out) as part:
            write_json(part / "model_index.json", index)
            (part / "pipeline.py").write_text(PIPELINE, encoding="utf-8")
            _write(part / "vqvae", "VQModel", settings, _vqmodel_tensors(pack.vqgan))
            write_json(
                _made(part / "scheduler") / "scheduler_config.json",
                {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0},
            )
            for name, (kind, model) in models.items():
                _write(part / name, kind, {"settings": config_to_dict(model.config)}, _wrapped(model))
            pack.tokenizer.save(part / "text_encoder")
    except SafetensorError as error:
        raise PackError(f"{out} cannot be written: {error}") from error
    return {
        "kind": "flow",
        "layout": "codebrush",
        "written": "diffusers",
        "out": str(out),
        "parameters": sum(p.numel() for model in (pack.flow, pack.clip, pack.vqgan) for p in model.parameters()),
        "tokenizer": True,
        "files": {str(f.relative_to(out)): f.stat().st_size for f in sorted(out.rglob("*")) if f.is_file()},
    }


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _write(folder: Path, kind: str, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    write_json(_made(folder) / "config.json", {"_class_name": kind, **settings})
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _wrapped(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network of ours as those of the classes in `networks`."""
    return {f"network.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}


def _vqmodel_settings(config: VQGANConfig) -> dict[str, Any]:
    """The config of diffusers' VQModel. Raises PackError for what it has no place for."""
    groups = {norm_groups(channels, config.norm_groups) for channels in (config.channels, *config.level_channels)}
    if config.quantizer != "vector":
        raise PackError("diffusers' VQModel has no Gumbel quantizer: the flow of this pack cannot be written for it")
    if len(groups) > 1:
        raise PackError(
            "diffusers' VQModel has as many groups in every group norm, and the VQGAN of this pack has "
            f"{', '.join(map(str, sorted(groups)))}: train one whose channels are all multiples of its norm_groups"
        )
    attended = [config.attends(level) for level in range(len(config.channel_multipliers))]
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["AttnDownEncoderBlock2D" if attends else "DownEncoderBlock2D" for attends in attended],
        "up_block_types": ["AttnUpDecoderBlock2D" if attends else "UpDecoderBlock2D" for attends in attended[::-1]],
        "block_out_channels": list(config.level_channels),
        "layers_per_block": config.res_blocks,
        "latent_channels": config.latent_channels,
        "sample_size": config.image_size,
        "num_vq_embeddings": config.codebook_size,
        "norm_num_groups": groups.pop(),
        "vq_embed_dim": config.code_dim,
        "scaling_factor": 1.0,
        "mid_block_add_attention": config.middle_attention,
    }


def _vqmodel_tensors(vqgan: VQGAN) -> dict[str, Tensor]:
    """The weights of a VQGAN by the names of diffusers' VQModel, whose codes are compared as they are."""
    tensors = extract(vqgan, _rules(len(vqgan.config.channel_multipliers)))
    tensors["quantize.embedding.weight"] = vqgan.quantizer.vectors.detach().clone()  # unit vectors, if ours are
    projections = {name: tensor for name, tensor in tensors.items() if ".to_" in name and tensor.ndim == 4}
    return tensors | {name: torch.flatten(tensor, 1) for name, tensor in projections.items()}  # linear, not 1 x 1


def _rules(levels: int) -> list[Rule]:
    """Our names -> those of VQModel, whose decoder counts its levels from the lowest resolution up."""
    places = {rf"encoder\.down\.{level}\.": f"encoder.down_blocks.{level}." for level in range(levels)}
    places |= {rf"decoder\.up\.{level}\.": f"decoder.up_blocks.{levels - 1 - level}." for level in range(levels)}
    rules = [Rule(r"quantizer\.codebook", "quantize.embedding.weight"), Rule(r"quantizer\..+", ())]
    for ours, theirs in places.items():
        rules += [
            Rule(ours + r"block\.(\d+)\.shortcut\.(.+)", theirs + r"resnets.\1.conv_shortcut.\2"),
            Rule(ours + r"block\.(\d+)\.(.+)", theirs + r"resnets.\1.\2"),
            *_attention(ours + r"attn\.(\d+)", theirs + r"attentions.\1"),
            Rule(ours + r"(down|up)sample\.(.+)", theirs + r"\1samplers.0.\2"),
        ]
    return [
        *rules,
        Rule(r"(..coder)\.mid\.block_1\.(.+)", r"\1.mid_block.resnets.0.\2"),
        Rule(r"(..coder)\.mid\.block_2\.(.+)", r"\1.mid_block.resnets.1.\2"),
        *_attention(r"(..coder)\.mid\.attn_1", r"\1.mid_block.attentions.0"),
        Rule(r"(..coder)\.norm_out\.(.+)", r"\1.conv_norm_out.\2"),
        Rule(r"((..coder\.)?(conv_in|conv_out|quant_conv|post_quant_conv)\..+)", r"\1"),
    ]


def _attention(ours: str, theirs: str) -> list[Rule]:
    """The rules of one attention; `ours` has one group."""
    return [
        Rule(ours + r"\.norm\.(.+)", theirs + r".group_norm.\2"),
        Rule(ours + r"\.([qkv])\.(.+)", theirs + r".to_\2.\3"),
        Rule(ours + r"\.proj_out\.(.+)", theirs + r".to_out.0.\2"),
    ]
