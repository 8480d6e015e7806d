"""CLIP's text encoders: `TextTransformer`, `BagOfWords`, and `PretrainedText` around a Hugging Face encoder.

Each turns tokens (B, T) int64 into one vector a text (B, E), and with `features` into one a token (B, T, D), where D is
its `feature_width`. Their configs all have `context_length`, `pad_id` and `embed_dim`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from codebrush.errors import PackError
from codebrush.models.transformer import Activation, Transformer, TransformerConfig, make_norm


@dataclass(frozen=True)
class TextTransformerConfig:
    """Sizes of a text transformer. `token_width` 0 means that token vectors are as wide as the blocks.

    `pooling`: "argmax" reads the position of the largest token id (OpenAI's end of text), "end" that of the first
    `end_id`, "last" the last position; "mean" averages all that is not padding.

    The rest are choices that published models make differently. Without `mask_padding` an encoder that is not causal
    attends to padding as well (SigLIP). `hidden` is the MLP's inner width; 0 means four times the width.
    """

    vocab_size: int
    context_length: int
    width: int
    layers: int
    heads: int
    embed_dim: int
    pad_id: int = 0
    end_id: int = 0
    causal: bool = True
    pooling: Literal["argmax", "end", "last", "mean"] = "argmax"
    activation: Activation = "gelu"
    token_width: int = 0
    dropout: float = 0.0
    hidden: int = 0
    norm_epsilon: float = 1e-5
    layer_scale: bool = False
    mask_padding: bool = True
    projection_bias: bool = False

    @property
    def trunk(self) -> TransformerConfig:
        """Sizes of the blocks."""
        return TransformerConfig(
            self.width,
            self.layers,
            self.heads,
            hidden=self.hidden,
            activation=self.activation,
            norm_epsilon=self.norm_epsilon,
            dropout=self.dropout,
            layer_scale=self.layer_scale,
        )


@dataclass(frozen=True)
class BagOfWordsConfig:
    """Sizes of a bag of words. Padding and the tokens in `special_ids` (start, end, ...) are left out of the mean."""

    vocab_size: int
    context_length: int
    token_width: int
    embed_dim: int
    pad_id: int = 0
    special_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class PretrainedTextConfig:
    """How to rebuild a Hugging Face encoder: `architecture` is the JSON text of its config.

    `pooling`: "mean" averages all tokens that are not padding, "first" reads the first token.
    """

    architecture: str
    context_length: int
    embed_dim: int
    pad_id: int = 0
    pooling: Literal["mean", "first"] = "mean"


TextEncoderConfig = TextTransformerConfig | BagOfWordsConfig | PretrainedTextConfig


def masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    """Mean of `features` (B, T, D) over the tokens where `mask` (B, T) is True; zero where there is none."""
    weights = mask.to(features.dtype).unsqueeze(-1)  # (B, T, 1)
    return (features * weights).sum(1) / weights.sum(1).clamp(min=1)


class TextTransformer(nn.Module):
    """CLIP's text transformer (Radford et al. 2021, section 2.4), causal or bidirectional."""

    def __init__(self, config: TextTransformerConfig):
        super().__init__()
        self.config = config
        token_width = config.token_width or config.width
        self.token_embedding = nn.Embedding(config.vocab_size, token_width)
        self.token_projection = nn.Linear(token_width, config.width) if config.token_width else nn.Identity()
        self.position_embedding = nn.Parameter(torch.randn(config.context_length, config.width) * 0.01)
        self.transformer = Transformer(config.trunk)
        self.final_norm = make_norm(config.trunk)
        self.projection = nn.Linear(config.width, config.embed_dim, bias=config.projection_bias)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.projection.weight, std=config.width**-0.5)

    @property
    def feature_width(self) -> int:
        """D, the width of `features`."""
        return self.config.width

    def _end(self, tokens: Tensor) -> Tensor:
        """Position of the token that is pooled, (B,): for pooling by mean, the last that is not padding."""
        if self.config.pooling == "argmax":
            return tokens.argmax(1)
        if self.config.pooling == "end":
            return (tokens == self.config.end_id).int().argmax(1)
        if self.config.pooling == "last":
            return torch.full_like(tokens[:, 0], tokens.shape[1] - 1)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return ((tokens != self.config.pad_id) * positions).amax(1)

    def features(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> (B, T, D), after the final norm; what is at padding means nothing."""
        x = self.token_projection(self.token_embedding(tokens))  # (B, T, D)
        x = x + self.position_embedding[: tokens.shape[1]]
        mask = None if self.config.causal or not self.config.mask_padding else tokens != self.config.pad_id
        return self.final_norm(self.transformer(x, causal=self.config.causal, mask=mask))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> (B, E), projected and not of unit length."""
        end = self._end(tokens)
        if self.config.causal or self.config.mask_padding:
            tokens = tokens[:, : int(end.max()) + 1]  # tokens after the last end change no output
        x = self.features(tokens)
        if self.config.pooling == "mean":
            return self.projection(masked_mean(x, tokens != self.config.pad_id))
        return self.projection(x[torch.arange(len(x), device=x.device), end])


class BagOfWords(nn.Module):
    """Continuous bag of words (Mikolov et al. 2013): the mean of the tokens' vectors, projected. Order is lost."""

    def __init__(self, config: BagOfWordsConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.token_width)
        self.projection = nn.Linear(config.token_width, config.embed_dim)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    @property
    def feature_width(self) -> int:
        """D, the width of `features`."""
        return self.config.token_width

    def features(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> their vectors (B, T, token_width)."""
        return self.token_embedding(tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> (B, E), projected and not of unit length."""
        words = tokens != self.config.pad_id
        for special in self.config.special_ids:
            words = words & (tokens != special)
        return self.projection(masked_mean(self.token_embedding(tokens), words))


class PretrainedText(nn.Module):
    """A Hugging Face text encoder (BERT, RoBERTa, MiniLM, ...) with a projection into CLIP's space.

    Raises:
        PackError: if transformers is not installed.
    """

    def __init__(self, config: PretrainedTextConfig):
        super().__init__()
        transformers = _transformers()
        values = json.loads(config.architecture)
        architecture = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
        self.config = config
        self.encoder: Any = transformers.AutoModel.from_config(architecture).float()  # may name a half type
        self.projection = nn.Linear(architecture.hidden_size, config.embed_dim, bias=False)
        nn.init.normal_(self.projection.weight, std=architecture.hidden_size**-0.5)

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

    @property
    def feature_width(self) -> int:
        """D, the width of `features`."""
        return self.encoder.config.hidden_size

    def features(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> the encoder's last hidden states (B, T, D)."""
        mask = (tokens != self.config.pad_id).long()
        return self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> (B, E), projected and not of unit length."""
        x = self.features(tokens)
        pooled = x[:, 0] if self.config.pooling == "first" else masked_mean(x, tokens != self.config.pad_id)
        return self.projection(pooled)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise PackError("this text encoder needs transformers: pip install 'codebrush[text]'") from error
    return transformers


def make_text_encoder(config: TextEncoderConfig) -> TextTransformer | BagOfWords | PretrainedText:
    """A freshly initialised text encoder of the kind and sizes of `config`."""
    if isinstance(config, TextTransformerConfig):
        return TextTransformer(config)
    if isinstance(config, BagOfWordsConfig):
        return BagOfWords(config)
    return PretrainedText(config)
