"""Code transformers of published kinds that no stored checkpoint covers, against the same networks written plainly."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from codebrush.conversion.load import load_code_transformer
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.condition import Condition
from golden_files import close

WIDTH, HEADS, LAYERS, CODES, SIDE = 32, 2, 2, 24, 4
N = SIDE**2


def random_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {
        name: torch.randn(shape) * 0.3 + (name.endswith(("norm.weight", "ln1.weight")))
        for name, shape in shapes.items()
    }


def loaded(state: dict[str, Tensor], config: dict[str, Any], tmp_path: Any) -> CodeTransformer:
    save_file(state, tmp_path / "model.safetensors")
    return load_code_transformer(tmp_path / "model.safetensors", config)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of every head, (B, N, D) each, by the formula."""
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
    scores = q @ k.transpose(-2, -1) / math.sqrt(WIDTH // HEADS)
    scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def mingpt_state(positions: int) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "tok_emb.weight": (CODES, WIDTH),
        "pos_emb": (1, positions, WIDTH),
        "ln_f.weight": (WIDTH,),
        "ln_f.bias": (WIDTH,),
        "head.weight": (CODES, WIDTH),
    }
    for layer in range(LAYERS):
        for name in ("ln1", "ln2"):
            shapes |= {f"blocks.{layer}.{name}.weight": (WIDTH,), f"blocks.{layer}.{name}.bias": (WIDTH,)}
        for name in ("key", "query", "value", "proj"):
            shapes |= {
                f"blocks.{layer}.attn.{name}.weight": (WIDTH, WIDTH),
                f"blocks.{layer}.attn.{name}.bias": (WIDTH,),
            }
        shapes |= {f"blocks.{layer}.mlp.0.weight": (4 * WIDTH, WIDTH), f"blocks.{layer}.mlp.0.bias": (4 * WIDTH,)}
        shapes |= {f"blocks.{layer}.mlp.2.weight": (WIDTH, 4 * WIDTH), f"blocks.{layer}.mlp.2.bias": (WIDTH,)}
    return {f"transformer.{name}": value for name, value in random_state(shapes).items()}


def mingpt(state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Taming's GPT (Karpathy's minGPT): logits (B, n, K) of the token after each of `tokens` (B, n)."""

    def part(name: str) -> Tensor:
        return state[f"transformer.{name}"]

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, part(f"{name}.weight"), part(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), part(f"{name}.weight"), part(f"{name}.bias"))

    x = part("tok_emb.weight")[tokens] + part("pos_emb")[0, : tokens.shape[1]]
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        y = norm(x, f"{block}.ln1")
        y = attend(*(linear(y, f"{block}.attn.{name}") for name in ("query", "key", "value")))
        x = x + linear(y, f"{block}.attn.proj")
        y = norm(x, f"{block}.ln2")
        x = x + linear(F.gelu(linear(y, f"{block}.mlp.0")), f"{block}.mlp.2")
    return F.linear(norm(x, "ln_f"), part("head.weight"))


def net2net(condition: str, positions: int, **params: Any) -> dict[str, Any]:
    gpt = {"vocab_size": CODES, "block_size": positions, "n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH}
    first = {"ddconfig": {"resolution": SIDE * 4, "ch_mult": [1, 1, 2]}}
    return {
        "target": "taming.models.cond_transformer.Net2NetTransformer",
        "params": {
            "transformer_config": {"target": "taming.modules.transformer.mingpt.GPT", "params": gpt},
            "first_stage_config": {"target": "taming.models.vqgan.VQModel", "params": first},
            "cond_stage_config": {"target": condition},
            **params,
        },
    }


def test_tamings_unconditional_models_start_from_one_token(tmp_path: Any) -> None:
    state, codes = mingpt_state(N), torch.randint(0, CODES, (3, N))
    config = net2net("taming.modules.misc.coord.SOSProvider", N, sos_token=5)
    model = loaded(state, config, tmp_path)
    assert model.config.grid == (SIDE, SIDE)  # though there is no position for the last code
    tokens = torch.cat([torch.full((3, 1), 5), codes], dim=1)[:, :N]
    with torch.no_grad():
        close(model(codes)[:, :N], mingpt(state, tokens))


def test_tamings_translation_models_read_a_source_pictures_codes(tmp_path: Any) -> None:
    state, codes = mingpt_state(2 * N), torch.randint(0, CODES, (3, N))
    source = torch.randint(0, CODES, (3, SIDE, SIDE))
    model = loaded(state, net2net("taming.models.vqgan.VQModel", 2 * N), tmp_path)
    tokens = torch.cat([source.flatten(1), codes], dim=1)
    with torch.no_grad():
        close(model(codes, Condition(source_codes=source)), mingpt(state, tokens)[:, N - 1 :])


def llamagen_state(classes: int, hidden: int) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "cls_embedding.embedding_table.weight": (classes + 1, WIDTH),
        "tok_embeddings.weight": (CODES, WIDTH),
        "norm.weight": (WIDTH,),
        "output.weight": (CODES, WIDTH),
    }
    for layer in range(LAYERS):
        shapes |= {
            f"layers.{layer}.attention.wqkv.weight": (3 * WIDTH, WIDTH),
            f"layers.{layer}.attention.wo.weight": (WIDTH, WIDTH),
            f"layers.{layer}.feed_forward.w1.weight": (hidden, WIDTH),
            f"layers.{layer}.feed_forward.w2.weight": (WIDTH, hidden),
            f"layers.{layer}.feed_forward.w3.weight": (hidden, WIDTH),
            f"layers.{layer}.attention_norm.weight": (WIDTH,),
            f"layers.{layer}.ffn_norm.weight": (WIDTH,),
        }
    return random_state(shapes)


def llamagen(state: dict[str, Tensor], lead: Tensor, codes: Tensor) -> Tensor:
    """LlamaGen's GPT after one vector `lead` (B, D): logits (B, n + 1, K). The lead's queries and keys are zero."""
    x = torch.cat([lead[:, None], state["tok_embeddings.weight"][codes]], dim=1)
    quarter = WIDTH // HEADS // 4
    frequencies = 10_000.0 ** (-torch.arange(quarter) / quarter)
    angles = torch.stack(
        [torch.cat([row * frequencies, column * frequencies]) for row in range(SIDE) for column in range(SIDE)]
    )
    rotary = torch.cat([torch.zeros(1, 2 * quarter), torch.polar(torch.ones_like(angles), angles)])[: x.shape[1]]

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * state[f"{name}.weight"]

    def rotated(part: Tensor) -> Tensor:
        pairs = torch.view_as_complex(part.unflatten(-1, (HEADS, -1, 2)).contiguous())  # (B, N, heads, d / 2)
        return torch.view_as_real(pairs * rotary[None, :, None]).flatten(2)

    for layer in range(LAYERS):
        block = f"layers.{layer}"
        q, k, v = F.linear(norm(x, f"{block}.attention_norm"), state[f"{block}.attention.wqkv.weight"]).chunk(3, -1)
        x = x + F.linear(attend(rotated(q), rotated(k), v), state[f"{block}.attention.wo.weight"])
        y, inner = norm(x, f"{block}.ffn_norm"), f"{block}.feed_forward"
        y = F.silu(F.linear(y, state[f"{inner}.w1.weight"])) * F.linear(y, state[f"{inner}.w3.weight"])
        x = x + F.linear(y, state[f"{inner}.w2.weight"])
    return F.linear(norm(x, "norm"), state["output.weight"])


@pytest.mark.parametrize("hidden", [96, 64])
def test_llamagens_class_models(hidden: int, tmp_path: Any) -> None:
    state, codes, labels = llamagen_state(7, hidden), torch.randint(0, CODES, (3, N)), torch.tensor([0, 6, 3])
    model = loaded(state, {"n_head": HEADS, "block_size": N}, tmp_path)
    assert model.config.labels == 7
    table = state["cls_embedding.embedding_table.weight"]
    with torch.no_grad():
        close(model(codes, Condition(labels=labels)), llamagen(state, table[labels], codes))
        close(model(codes), llamagen(state, table[-1:].expand(3, -1), codes))  # the last row stands for no class
