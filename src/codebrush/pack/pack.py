"""A pack's folder in; CLIP with its tokenizer, VQGAN and code transformer that belong together out.

mypack/pack.json      name, version, licence, image size, provenance, and the folder of each member
mypack/clip/          config.json, model.safetensors, tokenizer.json, tokenizer_config.json
mypack/vqgan/         config.json, model.safetensors
mypack/transformer/   config.json, model.safetensors
mypack/captioner/     config.json, model.safetensors, tokenizer.json, tokenizer_config.json
mypack/upscaler/      config.json, model.safetensors
mypack/bank/          config.json, model.safetensors
mypack/prior/         config.json, model.safetensors
mypack/translator/    config.json, model.safetensors

A member may lie elsewhere, as those of the packs of published models do. Without a code transformer pictures come from
guidance alone; without a captioner there are no captions and answers, without an upscaler nothing is enlarged; without
a translator the code transformer translates, where it was taught to, and without a bank of known pictures or a prior
no embedding is found for a text.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

from codebrush.errors import PackError
from codebrush.models.captioner import Captioner, CaptionerConfig, patch_features
from codebrush.models.clip import CLIP, CLIPConfig
from codebrush.models.code_transformer import CodeTransformer, CodeTransformerConfig
from codebrush.models.condition import Condition
from codebrush.models.image_encoder import make_image_encoder
from codebrush.models.pretrained import CONFIG_FILE, WEIGHTS_FILE, read_config
from codebrush.models.prior import Bank, BankConfig, Prior, PriorConfig
from codebrush.models.text_encoder import make_text_encoder
from codebrush.models.translator import Translator, TranslatorConfig
from codebrush.models.upscaler import Upscaler, UpscalerConfig
from codebrush.models.vqgan import VQGAN, VQGANConfig
from codebrush.text.tokenizer import Tokenizer

BUILT_IN = Path(__file__).parents[1] / "packs"
PACK_FILE = "pack.json"
FORMAT = 1
MEMBERS = ("clip", "transformer", "vqgan")  # whose weights make a picture what it is
NEEDED = ("clip", "vqgan")  # by every pack
OPTIONAL = ("captioner", "upscaler", "bank", "prior", "translator")  # beside them
HOME_VARIABLE = "CODEBRUSH_HOME"
HASHED_FILES = (CONFIG_FILE, WEIGHTS_FILE, "tokenizer.json", "tokenizer_config.json")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
T = TypeVar("T")


class Pack:
    """The members of one pack, each loaded (float32, eval mode, CPU) when it is first asked for.

    `folder` is where it lies, `source` what it was asked for by, and `info` what its pack.json says.
    Opening reads the configs alone and checks that the members fit together; whatever is missing, damaged
    or does not fit is a PackError.
    """

    def __init__(self, folder: str | Path, source: str | Path | None = None) -> None:
        self.folder = Path(folder)
        self.source = str(source or folder)
        self.info = _read_info(self.folder)
        self.name: str = self.info["name"]
        _guarded(self.folder, self._check_fit)

    def member(self, name: str) -> Path:
        """The folder of the member `name`: clip, vqgan, transformer, captioner, upscaler, bank, prior or translator."""
        return self.folder / self.info["members"][name]

    @property
    def image_size(self) -> int:
        """Side of the square pictures that this pack draws, in pixels."""
        return self.info["image_size"]

    @cached_property
    def clip(self) -> CLIP:
        """Judges how well a picture fits a text."""
        place = self.member("clip")
        return _guarded(place, CLIP.from_pretrained, place)

    @cached_property
    def vqgan(self) -> VQGAN:
        """Turns pictures into codes and back."""
        place = self.member("vqgan")
        return _guarded(place, VQGAN.from_pretrained, place)

    def has(self, name: str) -> bool:
        """Whether this pack has the member `name`. One without a transformer draws by guidance alone."""
        return name in self.info["members"]

    @cached_property
    def transformer(self) -> CodeTransformer:
        """Writes codes from text. A pack that has none raises PackError."""
        if not self.has("transformer"):
            raise PackError(f"the pack '{self.name}' has no code transformer: use --method guide, with --init random")
        place = self.member("transformer")
        return _guarded(place, CodeTransformer.from_pretrained, place)

    @cached_property
    def captioner(self) -> Captioner:
        """Writes captions and answers. A pack that has none raises PackError."""
        place = self._captioner_place()
        return _guarded(place, Captioner.from_pretrained, place)

    @cached_property
    def upscaler(self) -> Upscaler:
        """Enlarges pictures. A pack that has none raises PackError."""
        if not self.has("upscaler"):
            raise PackError(f"the pack '{self.name}' has no upscaler: train one with codebrush train upscaler")
        place = self.member("upscaler")
        return _guarded(place, Upscaler.from_pretrained, place)

    @cached_property
    def bank(self) -> Bank:
        """Embeddings of known pictures. A pack that has none raises PackError."""
        if not self.has("bank"):
            raise PackError(f"the pack '{self.name}' has no bank of pictures: name a database of codebrush index")
        return _guarded(self.member("bank"), Bank.from_pretrained, self.member("bank"))

    @cached_property
    def prior(self) -> Prior:
        """From a text's embedding to a picture's. A pack that has none raises PackError."""
        if not self.has("prior"):
            raise PackError(f"the pack '{self.name}' has no learned prior: use --prior retrieval or none")
        return _guarded(self.member("prior"), Prior.from_pretrained, self.member("prior"))

    @cached_property
    def translator(self) -> Translator:
        """From a picture to the same in another style. A pack that has none raises PackError."""
        if not self.has("translator"):
            raise PackError(f"the pack '{self.name}' has no translator: train one with codebrush train translator")
        return _guarded(self.member("translator"), Translator.from_pretrained, self.member("translator"))

    @cached_property
    def words(self) -> Tokenizer:
        """The captioner's own vocabulary."""
        words = _guarded(self._captioner_place(), Tokenizer.from_pretrained, self._captioner_place())
        config = read_config(CaptionerConfig, self.member("captioner"))
        made, read = (words.vocab_size, words.context_length), (config.vocab_size, config.context_length)
        if made != read:
            self._misfit(
                f"captioner reads {read[0]} words, {read[1]} a row", f"tokenizer beside it has {made[0]}, {made[1]}"
            )
        return words

    def _captioner_place(self) -> Path:
        if not self.has("captioner"):
            raise PackError(f"the pack '{self.name}' has no captioner: train one with codebrush train captioner")
        return self.member("captioner")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Texts to the token ids that the CLIP reads."""
        tokenizer = _guarded(self.member("clip"), Tokenizer.from_pretrained, self.member("clip"))
        config = read_config(CLIPConfig, self.member("clip")).text
        rows = getattr(config, "vocab_size", tokenizer.vocab_size)  # another library's encoder may not say
        if tokenizer.vocab_size > rows:
            self._misfit(f"tokenizer has {tokenizer.vocab_size} tokens", f"CLIP has {rows}")
        if tokenizer.context_length > config.context_length:
            made, read = tokenizer.context_length, config.context_length
            self._misfit(f"tokenizer makes rows of {made} tokens", f"CLIP reads {read}")
        return tokenizer

    @cached_property
    def hash(self) -> str:
        """sha256 (hex) over configs, weights and vocabulary of the members that draw; pack.json does not count."""
        return self.hash_of(*(name for name in MEMBERS if self.has(name)))

    def hash_of(self, *names: str) -> str:
        """sha256 (hex) over the configs, weights and vocabulary of the members `names`."""
        digest = hashlib.sha256()
        for name in names:
            for file in HASHED_FILES:
                path = self.member(name) / file
                if not path.is_file():
                    continue
                try:
                    with path.open("rb") as opened:
                        content = hashlib.file_digest(opened, "sha256").hexdigest()
                except OSError as error:
                    raise PackError(f"{path} cannot be read: {error.strerror or error}") from error
                digest.update(f"{name}/{file} {content}\n".encode())
        return digest.hexdigest()

    def _check_fit(self) -> None:
        clip = read_config(CLIPConfig, self.member("clip"))
        vqgan = read_config(VQGANConfig, self.member("vqgan"))
        if clip.image.embed_dim != clip.text.embed_dim:
            texts, pictures = clip.text.embed_dim, clip.image.embed_dim
            self._misfit(f"CLIP's texts are {texts} wide", f"CLIP's pictures are {pictures} wide")
        if self.image_size % vqgan.factor:
            self._misfit(f"VQGAN has {vqgan.factor} pixels a code", f"pictures are {self.image_size} wide")
        if self.has("transformer"):
            self._check_transformer(clip, vqgan)
        if self.has("captioner"):
            self._check_captioner(clip)
        if self.has("upscaler"):
            read_config(UpscalerConfig, self.member("upscaler"))
        if self.has("translator"):
            factor = read_config(TranslatorConfig, self.member("translator")).factor
            if self.image_size % factor:
                self._misfit(f"translator takes multiples of {factor} pixels", f"pictures are {self.image_size} wide")
        for name, kind in (("bank", BankConfig), ("prior", PriorConfig)):
            if self.has(name) and (width := read_config(kind, self.member(name)).embed_dim) != clip.image.embed_dim:
                self._misfit(f"{name} holds vectors of {width}", f"CLIP's have {clip.image.embed_dim}")

    def _check_captioner(self, clip: CLIPConfig) -> None:
        captioner = read_config(CaptionerConfig, self.member("captioner"))
        with torch.device("meta"):  # sizes without weights
            blank = torch.zeros(1, 3, *clip.image.image_shape)
            made = patch_features(make_image_encoder(clip.image), blank, captioner.levels).shape
        if made[1:] != (captioner.patches, captioner.feature_width):
            reads = f"{captioner.patches} x {captioner.feature_width}"
            self._misfit(f"captioner reads features of {reads}", f"CLIP makes {made[1]} x {made[2]}")

    def _check_transformer(self, clip: CLIPConfig, vqgan: VQGANConfig) -> None:
        transformer = read_config(CodeTransformerConfig, self.member("transformer"))
        if transformer.codebook_size != vqgan.codebook_size:
            self._misfit(f"transformer writes {transformer.codebook_size} codes", f"VQGAN has {vqgan.codebook_size}")
        side, grid = vqgan.factor, tuple(transformer.grid)
        if grid != (self.image_size // side,) * 2:
            self._misfit(
                f"transformer draws a grid of {grid[0]} x {grid[1]} codes",
                f"VQGAN has {side} x {side} pixels a code and pictures are {self.image_size} wide",
            )
        if transformer.text_features:
            with torch.device("meta"):  # sizes without weights
                width = make_text_encoder(clip.text).feature_width
            if transformer.text_features != width:
                reads = transformer.text_features
                self._misfit(f"transformer reads text features {reads} wide", f"CLIP makes them {width} wide")
        width = clip.text.embed_dim
        for embedding in (transformer.text_embedding, transformer.image_embedding):
            if embedding not in (0, width):
                self._misfit(f"transformer reads embeddings {embedding} wide", f"CLIP makes them {width} wide")

    def _misfit(self, one: str, other: str) -> None:
        raise PackError(f"{self.folder}: its members do not fit together: the {one}, but the {other}")


def built_in_packs() -> list[str]:
    """Names of the packs that come with the package."""
    return sorted(path.parent.name for path in BUILT_IN.glob(f"*/{PACK_FILE}"))


def home() -> Path:
    """Where downloaded models and packs lie: $CODEBRUSH_HOME, else codebrush in the user's cache folder."""
    if named := os.environ.get(HOME_VARIABLE):
        return Path(named).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "codebrush"


def installed_packs() -> list[str]:
    """Names of the packs of published models that `codebrush packs download` has put together here."""
    return sorted(path.parent.name for path in (home() / "packs").glob(f"*/{PACK_FILE}"))


def open_pack(source: str | Path) -> Pack:
    """The pack called `source`: a built-in or downloaded name, else a folder, else a hub id (owner/name), which is
    fetched.

    A folder that bears a built-in name is reached as ./name. With HF_HUB_OFFLINE=1 the hub's local cache
    alone is read. Raises PackError where there is no such pack, or it is damaged.
    """
    folder = local_pack(source)
    if folder is not None:
        return Pack(folder, source)
    name = str(source)
    if HUB_ID.fullmatch(name) and not name.startswith("."):
        return Pack(_fetch(name), source)
    if "/" in name or os.sep in name:
        raise PackError(f"there is no folder '{name}': check its path, or use a built-in pack ({_names()})")
    raise PackError(
        f"there is no pack '{name}': name one that is here ({_names()}), a folder, or a hub id (owner/name); "
        "codebrush packs list shows what can be downloaded"
    )


def local_pack(source: str | Path) -> Path | None:
    """The folder that `source` names on this machine; None where only the hub could have it."""
    if isinstance(source, str) and source in built_in_packs():
        return BUILT_IN / source
    if isinstance(source, str) and source in installed_packs():
        return home() / "packs" / source
    return Path(source) if str(source) and Path(source).exists() else None


def open_clip(source: str | Path) -> tuple[CLIP, Tokenizer]:
    """The CLIP and tokenizer of a pack, or of a folder that holds just them; float32, eval mode, CPU.

    Raises PackError where there is no such pack or folder, or it is damaged.
    """
    folder = clip_folder(source)
    return _guarded(folder, CLIP.from_pretrained, folder), _guarded(folder, Tokenizer.from_pretrained, folder)


def clip_folder(source: str | Path) -> Path:
    """Where the CLIP of a pack lies; a folder that holds nothing but one is its own answer."""
    folder = Path(source)
    if local_pack(source) == folder and not (folder / PACK_FILE).exists() and (folder / CONFIG_FILE).exists():
        return folder
    return open_pack(source).member("clip")


def clip_hash(folder: Path) -> str:
    """sha256 (hex) of the weights of the CLIP in `folder`: what its embeddings, and all made of them, depend on."""
    with (folder / WEIGHTS_FILE).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@torch.no_grad()
def text_condition(clip: CLIP, tokens: torch.Tensor, config: CodeTransformerConfig) -> Condition:
    """What `clip` makes of tokens (B, T), as far as a transformer of this config reads it; without
    gradient.
    """
    features = mask = embedding = None
    if config.text_features:
        features = clip.text_encoder.features(tokens)  # (B, T, D)
        mask = tokens != clip.config.text.pad_id
    if config.text_embedding:
        embedding = clip.encode_text(tokens)  # (B, E)
    return Condition(text_features=features, text_mask=mask, text_embedding=embedding)


def encode_condition(
    clip: CLIP, tokenizer: Tokenizer, texts: Sequence[str], config: CodeTransformerConfig
) -> Condition:
    """`text_condition` of texts as they are typed, one row a text, on the device of `clip`."""
    return text_condition(clip, tokenizer(texts).to(clip.log_scale.device), config)


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / PACK_FILE
    if not path.is_file():
        raise PackError(f"{folder} is no pack: it has no {PACK_FILE}")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PackError(f"{path} is damaged ({error}): fetch or train the pack again") from error
    if not isinstance(info, dict):
        raise PackError(f"{path} is damaged (not a JSON object): fetch or train the pack again")
    if info.get("format") != FORMAT:
        raise PackError(f"{path} has format {info.get('format')!r}, not {FORMAT}: upgrade codebrush to read it")
    kinds = {"name": (str, "a text"), "image_size": (int, "a number"), "members": (dict, "an object")}
    for field, (kind, called) in kinds.items():
        if not isinstance(info.get(field), kind):
            raise PackError(f"{path}: its '{field}' must be {called}, not {info.get(field)!r}")
    if info["image_size"] < 1:
        raise PackError(f"{path}: its 'image_size' must be positive, not {info['image_size']}")
    for member in {*NEEDED, *(info["members"].keys() & {*MEMBERS, *OPTIONAL})}:
        if not isinstance(info["members"].get(member), str):
            raise PackError(f"{path}: its 'members' does not say where the {member} is")
    known = info.get("translation", {"text": "", "styles": []})
    kinds = {"text": str, "styles": list, "likeness": (int, float), "defaults": dict}
    empty = {"likeness": 0, "defaults": {}}
    if not (isinstance(known, dict) and all(isinstance({**empty, **known}.get(k), kind) for k, kind in kinds.items())):
        raise PackError(f"{path}: its 'translation' must be an object with a text and a list of styles, not {known!r}")
    if not isinstance(info.get("defaults", {}), dict):
        raise PackError(f"{path}: its 'defaults' must be an object, not {info['defaults']!r}")
    return info


def _guarded(place: Path, read: Callable[..., T], *arguments: Any) -> T:
    """Damage can make a reader raise nearly anything: it all becomes a PackError that names the place."""
    try:
        return read(*arguments)
    except PackError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise PackError(f"{place} is damaged ({reason}): fetch or train it again") from error


def _names() -> str:
    return ", ".join([*built_in_packs(), *installed_packs()]) or "none"


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.md"]))
    except Exception as error:  # its HTTP client, cache and validation each have exceptions of their own
        reason = (str(error) or type(error).__name__).strip().splitlines()[0][:200]
        raise PackError(f"no folder '{name}' is here, and the hub gave no such pack ({reason})") from error
