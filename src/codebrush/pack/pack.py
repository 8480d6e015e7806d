"""Opens a pack: a folder with models that belong together, each loaded when it is first used.

mypack/pack.json      name, version, licence, image size, provenance, and the folder of each member
mypack/clip/          config.json, model.safetensors, tokenizer.json, tokenizer_config.json
mypack/vqgan/         config.json, model.safetensors
mypack/captioner/     config.json, model.safetensors, tokenizer.json, tokenizer_config.json
...                   and so on for each member; `pack.members` lists them all

A member may be a folder elsewhere, as in the packs of published models. Without a code or flow transformer pictures
come from guidance alone; without a captioner there are no captions and answers, without an upscaler nothing is
enlarged; without a translator a painter translates, if it was trained to, and without a bank of known pictures or a
prior no picture embedding is found for a text.
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

from codebrush.errors import PackError, first_line, lacks_memory
from codebrush.files import file_sha256, from_home
from codebrush.models.bank import Bank
from codebrush.models.captioner import Captioner
from codebrush.models.clip import CLIP
from codebrush.models.code_transformer import CodeTransformer, CodeTransformerConfig
from codebrush.models.condition import Condition
from codebrush.models.flow_transformer import FlowTransformer, FlowTransformerConfig
from codebrush.models.pretrained import CONFIG_FILE, WEIGHTS_FILE, PretrainedModel, read_config
from codebrush.models.prior import Prior
from codebrush.models.translator import Translator, TranslatorConfig
from codebrush.models.upscaler import Upscaler
from codebrush.models.vqgan import VQGAN
from codebrush.pack.members import MEMBERS, PAINTERS, Misfits, member_of, missing_from
from codebrush.pack.once import made_once
from codebrush.text.tokenizer import Tokenizer

BUILT_IN = Path(__file__).parents[1] / "packs"
PACK_FILE = "pack.json"
FORMAT = 1
STYLE_TEXT = "{prompt}, {style} style"
HOME_VARIABLE = "CODEBRUSH_HOME"
HASHED_FILES = (CONFIG_FILE, WEIGHTS_FILE, "tokenizer.json", "tokenizer_config.json")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
T = TypeVar("T")
Model = TypeVar("Model", bound=PretrainedModel)


class Pack:
    """The members of one pack, each loaded (float32, eval mode, CPU) when it is first used.

    `folder` is the pack's folder, `source` what its pictures say they are from, usually what it was opened by, and
    `info` the content of its pack.json. Opening reads only the configs and checks that the members fit together.

    Raises:
        PackError: if something is missing, damaged or does not fit.
    """

    def __init__(self, folder: str | Path, source: str | Path | None = None) -> None:
        self.folder = Path(folder)
        self.source = str(source or folder)
        self.info = _read_info(self.folder)
        self.name: str = self.info["name"]
        _guarded(self.folder, self._check_fit)

    @property
    def image_size(self) -> int:
        """Side of the square pictures that this pack draws, in pixels."""
        return self.info["image_size"]

    def has(self, name: str) -> bool:
        """Whether this pack has the member `name`. One without a painter draws by guidance alone."""
        return name in self.info["members"]

    def member(self, name: str) -> Path:
        """The folder of the member `name`, one of `MEMBERS`."""
        return self.folder / self.info["members"][name]

    def load(self, model: type[Model]) -> Model:
        """The pack's member of a class: read from its folder, float32, eval mode, CPU.

        Raises:
            PackError: if the pack has none, or it is damaged.
        """
        return self._load(member_of(model).name, model)

    def _load(self, name: str, model: type[Model]) -> Model:
        self._require(name)
        return _guarded(self.member(name), model.from_pretrained, self.member(name))

    def config(self, kind: type[T]) -> T:
        """The config of the member whose configs are of this class, without its weights. Raises PackError if there is
        none."""
        name = next(name for name, member in MEMBERS.items() if member.model.config_class is kind)
        self._require(name)
        return read_config(kind, self.member(name))

    @made_once
    def clip(self) -> CLIP:
        """Scores how well a picture fits a text."""
        return self.load(CLIP)

    @made_once
    def vqgan(self) -> VQGAN:
        """Turns pictures into codes and back."""
        return self.load(VQGAN)

    @made_once
    def transformer(self) -> CodeTransformer:
        """Draws codes from text."""
        return self.load(CodeTransformer)

    @made_once
    def flow(self) -> FlowTransformer:
        """Draws latents from text."""
        return self.load(FlowTransformer)

    @made_once
    def scorer(self) -> CLIP:
        """Scores finished pictures and never guides, so that no picture was made to please it."""
        return self._load("scorer", CLIP)

    @made_once
    def captioner(self) -> Captioner:
        """Writes captions and answers."""
        return self.load(Captioner)

    @made_once
    def upscaler(self) -> Upscaler:
        """Enlarges pictures."""
        return self.load(Upscaler)

    @made_once
    def bank(self) -> Bank:
        """Holds embeddings of known pictures, among which those near a text are found."""
        return self.load(Bank)

    @made_once
    def prior(self) -> Prior:
        """Predicts the embedding of a picture from that of a text."""
        return self.load(Prior)

    @made_once
    def translator(self) -> Translator:
        """Redraws a picture in another style."""
        return self.load(Translator)

    @made_once
    def tokenizer(self) -> Tokenizer:
        """Texts to the token ids that the CLIP reads."""
        return self._tokenizer("clip")

    @made_once
    def scorer_tokenizer(self) -> Tokenizer:
        """Texts to the token ids that the scorer reads."""
        return self._tokenizer("scorer")

    @made_once
    def captioner_tokenizer(self) -> Tokenizer:
        """Texts to the token ids that the captioner reads and writes."""
        return self._tokenizer("captioner")

    def check_tokenizers(self) -> None:
        """Read every tokenizer. Raises PackError for one that does not fit its member."""
        for name, member in MEMBERS.items():
            if self.has(name) and member.tokenizer_misfits is not None:
                self._tokenizer(name)

    def _tokenizer(self, name: str) -> Tokenizer:
        self._require(name)
        member, place = MEMBERS[name], self.member(name)
        tokenizer = _guarded(place, Tokenizer.from_pretrained, place)
        if member.tokenizer_misfits is not None:
            config = read_config(member.model.config_class, place)
            self._refuse(member.tokenizer_misfits(config, tokenizer.vocab_size, tokenizer.context_length))
        return tokenizer

    @cached_property
    def styles(self) -> tuple[str, list[str]]:
        """How prompts say a style, with {prompt} and {style}, and the names of the styles that it was trained with.

        They are what pack.json says; else those that its code transformer or its translator was trained to draw.
        """
        if known := self.info.get("styles"):
            return known["text"], known["names"]
        names = self.info.get("translation", {}).get("styles", [])
        if not names and self.has("translator"):
            names = list(self.config(TranslatorConfig).styles)
        return STYLE_TEXT, names

    def __repr__(self) -> str:
        return f"<Pack {self.summary}>"

    @property
    def summary(self) -> str:
        """Name, version, size of pictures and members, in a line."""
        named = " ".join([self.name, str(self.info.get("version") or "")]).strip()
        return f"{named}: {self.image_size}x{self.image_size} pixels; {', '.join(self.info['members'])}"

    def missing(self, name: str) -> PackError:
        """The error line for a pack without the member `name`, with the remedy."""
        return PackError(f"the pack '{self.name}' {missing_from(self.info['members'], name)}")

    def _require(self, name: str) -> None:
        if not self.has(name):
            raise self.missing(name)

    @cached_property
    def hash(self) -> str:
        """sha256 (hex) over configs, weights and vocabulary of the members that draw; pack.json does not count."""
        return self.hash_of(*sorted(name for name, member in MEMBERS.items() if member.draws and self.has(name)))

    def hash_of(self, *names: str) -> str:
        """sha256 (hex) over the configs, weights and vocabulary of the members `names`."""
        digest = hashlib.sha256()
        for name in names:
            for file in HASHED_FILES:
                path = self.member(name) / file
                if not path.is_file():
                    continue
                try:
                    content = file_sha256(path)
                except OSError as error:
                    raise PackError(f"{path} cannot be read: {error.strerror or error}") from error
                digest.update(f"{name}/{file} {content}\n".encode())
        return digest.hexdigest()

    def _check_fit(self) -> None:
        present = {name: member for name, member in MEMBERS.items() if self.has(name)}
        configs = {name: read_config(each.model.config_class, self.member(name)) for name, each in present.items()}
        for member in present.values():
            self._refuse(member.misfits(configs, self.image_size))

    def _refuse(self, misfits: Misfits) -> None:
        for one, other in misfits:
            raise PackError(f"{self.folder}: its members do not fit together: the {one}, but the {other}")


def built_in_packs() -> list[str]:
    """Names of the packs that come with the package."""
    return sorted(path.parent.name for path in BUILT_IN.glob(f"*/{PACK_FILE}"))


def home() -> Path:
    """The folder of downloaded models and packs: $CODEBRUSH_HOME, or codebrush in the user's cache folder."""
    if named := os.environ.get(HOME_VARIABLE):
        return Path(from_home(named))
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "codebrush"


def installed_packs() -> list[str]:
    """Names of the packs of published models that `codebrush packs download` has installed."""
    return sorted(path.parent.name for path in (home() / "packs").glob(f"*/{PACK_FILE}"))


def open_pack(source: str | Path, called: str | None = None) -> Pack:
    """The pack called `source`: a built-in or downloaded name, or a folder, or a hub id (owner/name), which is fetched.

    A folder with the name of a built-in pack is opened as ./name. With HF_HUB_OFFLINE=1 only the hub's local cache is
    read. Pictures that it makes say `called`, if given, instead of `source`.

    Raises:
        PackError: if there is no such pack, or it is damaged.
    """
    folder = local_pack(source)
    if folder is not None:
        return Pack(folder, called or source)
    name = str(source)
    if HUB_ID.fullmatch(name) and not name.startswith("."):
        return Pack(_fetch(name), called or source)
    if "/" in name or os.sep in name:
        raise PackError(f"there is no folder '{name}': check its path, or use a built-in pack ({_names()})")
    raise PackError(
        f"there is no pack '{name}': name one that is installed ({_names()}), a folder, or a hub id (owner/name); "
        "codebrush packs list shows what can be downloaded"
    )


def local_pack(source: str | Path) -> Path | None:
    """The folder that `source` names on this machine; None if only the hub could have it."""
    if isinstance(source, str) and source in built_in_packs():
        return BUILT_IN / source
    if isinstance(source, str) and source in installed_packs():
        return home() / "packs" / source
    return Path(source) if str(source) and Path(source).exists() else None


def open_clip(source: str | Path) -> tuple[CLIP, Tokenizer]:
    """The CLIP and tokenizer of a pack, or of a folder with only these two; float32, eval mode, CPU.

    Raises:
        PackError: if there is no such pack or folder, or it is damaged.
    """
    folder = clip_folder(source)
    return _guarded(folder, CLIP.from_pretrained, folder), _guarded(folder, Tokenizer.from_pretrained, folder)


def clip_folder(source: str | Path) -> Path:
    """The folder of a pack's CLIP; for the folder of a CLIP, that folder itself."""
    folder = Path(source)
    if local_pack(source) == folder and not (folder / PACK_FILE).exists() and (folder / CONFIG_FILE).exists():
        return folder
    return open_pack(source).member("clip")


def clip_hash(folder: Path) -> str:
    """sha256 (hex) of the weights of the CLIP in `folder`, on which its embeddings depend."""
    return file_sha256(folder / WEIGHTS_FILE)


PainterConfig = CodeTransformerConfig | FlowTransformerConfig


@torch.no_grad()
def text_condition(clip: CLIP, tokens: torch.Tensor, config: PainterConfig) -> Condition:
    """The features and embeddings of tokens (B, T) by `clip` that a painter of this config reads; no gradient."""
    features = mask = embedding = None
    if config.text_features:
        features = clip.text_encoder.features(tokens)  # (B, T, D)
        mask = tokens != clip.config.text.pad_id
    if config.text_embedding:
        embedding = clip.encode_text(tokens)  # (B, E)
    return Condition(text_features=features, text_mask=mask, text_embedding=embedding)


def encode_condition(clip: CLIP, tokenizer: Tokenizer, texts: Sequence[str], config: PainterConfig) -> Condition:
    """`text_condition` of texts, one row each, on the device of `clip`."""
    return text_condition(clip, tokenizer(texts).to(clip.log_scale.device), config)


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / PACK_FILE
    if not path.is_file():
        raise PackError(f"{folder} is not a pack: it has no {PACK_FILE}")
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
    for name, member in MEMBERS.items():
        present = member.required or name in info["members"]
        if present and not isinstance(info["members"].get(name), str):
            raise PackError(f"{path}: its 'members' does not say where the {name} is")
    if info.get("painter") not in (None, *PAINTERS):
        raise PackError(f"{path}: its 'painter' must be {' or '.join(PAINTERS)}, not {info['painter']!r}")
    known = info.get("translation", {"text": "", "styles": []})
    kinds = {"text": str, "styles": list, "likeness": (int, float), "defaults": dict}
    empty = {"likeness": 0, "defaults": {}}
    if not (isinstance(known, dict) and all(isinstance({**empty, **known}.get(k), kind) for k, kind in kinds.items())):
        raise PackError(f"{path}: its 'translation' must be an object with a text and a list of styles, not {known!r}")
    styles = info.get("styles", {"text": "{prompt}", "names": []})
    if not (
        isinstance(styles, dict) and "{prompt}" in str(styles.get("text")) and isinstance(styles.get("names"), list)
    ):
        raise PackError(f"{path}: its 'styles' must be an object with a text with {{prompt}} and names, not {styles!r}")
    for field in ("defaults", "guidance"):
        if not isinstance(info.get(field, {}), dict):
            raise PackError(f"{path}: its '{field}' must be an object, not {info[field]!r}")
    return info


def _guarded(place: Path, read: Callable[..., T], *arguments: Any) -> T:
    """Turn any exception of a reader, which damaged files can cause, into a PackError that names the place; but for
    those of too little memory, which is not the file's fault."""
    try:
        return read(*arguments)
    except Exception as error:
        if isinstance(error, PackError) or lacks_memory(error):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise PackError(f"{place} is damaged ({reason}): fetch or train it again") from error


def _names() -> str:
    return ", ".join([*built_in_packs(), *installed_packs()]) or "none"


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.md"]))
    except Exception as error:  # its HTTP client, cache and validation all raise different exceptions
        reason = first_line(error)[:200]
        raise PackError(f"no folder '{name}' is here, and the hub gave no such pack ({reason})") from error
