"""A text encoder of Hugging Face with a projection into CLIP's space."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from torch import Tensor, nn

from codebrush.errors import PackError
from codebrush.models.layers.pooling import masked_mean
from codebrush.optional import require


@dataclass(frozen=True)
class PretrainedTextConfig:
    """How to rebuild a Hugging Face encoder: `architecture` is the JSON text of its config.

    `pooling`: "mean" averages all tokens that are not padding, "first" reads the first token. `projection` into CLIP's
    space: a matrix ("linear"), one with a bias ("bias"), two with GELU between them ("mlp"), or "none".
    """

    architecture: str
    context_length: int
    embed_dim: int
    pad_id: int = 0
    pooling: Literal["mean", "first"] = "mean"
    projection: Literal["linear", "bias", "mlp", "none"] = "linear"

    @property
    def feature_width(self) -> int:
        """D, the width of the encoder's `features`.

        Raises:
            PackError: if transformers is not installed.
        """
        return self.huggingface().hidden_size

    def huggingface(self) -> Any:
        """The architecture as a config of transformers.

        Raises:
            PackError: if transformers is not installed.
        """
        values = json.loads(self.architecture)
        return _transformers().AutoConfig.for_model(values.pop("model_type"), **values)


class PretrainedText(nn.Module):
    """A Hugging Face text encoder (BERT, RoBERTa, MiniLM, ...) with a projection into CLIP's space.

    Raises:
        PackError: if transformers is not installed.
    """

    def __init__(self, config: PretrainedTextConfig):
        super().__init__()
        architecture = config.huggingface()
        self.config = config
        self.encoder: Any = _transformers().AutoModel.from_config(architecture).float()  # may name a half type
        self.projection = _projection(config, architecture.hidden_size)

    @classmethod
    def from_huggingface(cls, folder: str | Path, embed_dim: int, context_length: int = 77) -> "PretrainedText":
        """The encoder in `folder` (config.json and weights as transformers saves them), float32, in eval mode.

        Its projection to `embed_dim` is new. `context_length` is the most tokens a text may have.

        Raises:
            PackError: if the folder holds no readable text encoder, or transformers is not installed.
        """
        transformers = _transformers()
        try:
            encoder = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, SafetensorError) as error:
            detail = " ".join(str(error).split())[:200]
            raise PackError(f"{folder} holds no Hugging Face text encoder: {detail}") from error
        values = encoder.config.to_dict()
        values.pop("_name_or_path", None)  # a path of this machine
        room = values.get("max_position_embeddings", context_length)
        for name, module in encoder.named_modules():
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
                room -= module.padding_idx + 1  # RoBERTa and its kin count positions from there
        model = cls(
            PretrainedTextConfig(
                architecture=json.dumps(values, sort_keys=True),
                context_length=min(context_length, room),
                embed_dim=embed_dim,
                pad_id=values.get("pad_token_id") or 0,
            )
        )
        model.encoder.load_state_dict(encoder.state_dict())
        return model.eval()

    def features(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> the encoder's last hidden states (B, T, D)."""
        mask = (tokens != self.config.pad_id).long()
        return self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> (B, E), projected and not of unit length."""
        x = self.features(tokens)
        pooled = x[:, 0] if self.config.pooling == "first" else masked_mean(x, tokens != self.config.pad_id)
        return self.projection(pooled)


def _projection(config: PretrainedTextConfig, width: int) -> nn.Module:
    if config.projection == "none":
        return nn.Identity()
    if config.projection == "mlp":
        inner = (width + config.embed_dim) // 2
        return nn.Sequential(
            nn.Linear(width, inner, bias=False), nn.GELU(), nn.Linear(inner, config.embed_dim, bias=False)
        )
    linear = nn.Linear(width, config.embed_dim, bias=config.projection == "bias")
    nn.init.normal_(linear.weight, std=width**-0.5)
    return linear


def _transformers() -> Any:
    require("transformers", "this text encoder needs", error=PackError)
    import transformers

    return transformers
