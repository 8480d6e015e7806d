"""Says what to expect of a prompt: words that a pack hardly knows, and, of drawings that fail, what it knows nearby."""

import re
from collections.abc import Callable, Sequence

from codebrush.generation.result import Result
from codebrush.generation.scoring import UNLIKELY
from codebrush.pack.pack import Pack
from codebrush.text.prompts import parse_prompt
from codebrush.text.reading import named_texts, unread
from codebrush.text.tokenizer import Tokenizer
from codebrush.text.word_vectors import reads_the_same, word_vectors, words_in
from codebrush.warned import warn

NEAR = 3  # labels that are named
# Cosine of word vectors below which a label is not near: 95 % of 161 val concepts have one, and what they have below is
# silly (jar: jellyfish, plunger: eject button).
LEAST_NEAR = 0.45
ENDINGS = frozenset(("s", "es", "ed", "er", "ly", "y"))  # pieces of words that say something though they are short
SHORT = 3  # letters of a piece that says something
# Words without which hardly any sentence of German, French, Spanish, Italian, Dutch, Swedish or Portuguese goes, and
# that are no English words or names too (Las Vegas, Los Angeles, MIT).
OF_OTHER_LANGUAGES = frozenset((
    "auf", "avec", "dans", "der", "een", "ein", "eine", "einem", "einen", "für", "gli", "het", "les", "nel", "não",
    "och", "på", "uma", "una", "und", "une",
))  # fmt: skip


def known_labels(pack: Pack) -> list[str]:
    """What the pack's bank of pictures shows, without the style, each once; empty if it has no bank."""
    return list(dict.fromkeys(map(_unstyled(pack), pack.bank.config.names))) if pack.has("bank") else []


def _unstyled(pack: Pack) -> Callable[[str], str]:
    """A function that takes the words of a pack's styles off a text, such as ", noto style"."""
    wording, styles = pack.styles
    forms = [re.escape(wording.replace("{style}", style)).replace(re.escape("{prompt}"), "(.+)") for style in styles]
    form = re.compile("|".join(forms) or "(.+)")

    def unstyled(text: str) -> str:
        match = form.fullmatch(text)
        return next(filter(None, match.groups())) if match else text

    return unstyled


def _asked(pack: Pack, prompt: str) -> list[str]:
    """The parts of a prompt that are to show, the most important first, without the style."""
    parts, unstyled = sorted(parse_prompt(prompt).parts, key=lambda part: -part.weight), _unstyled(pack)
    return [unstyled(part.text) for part in parts if part.weight > 0]


def reads_english(pack: Pack) -> bool:
    """Whether the pack knows words by the distilled token table, and has a bank to say what it draws."""
    return pack.has("bank") and reads_the_same(pack.tokenizer)


def hardly_known(pack: Pack, prompt: str) -> list[str]:
    """The words of a prompt that the pack's CLIP can only spell, and that no label of its bank has.

    None for packs that do not read English by the distilled token table (see `reads_english`).
    """
    if not reads_english(pack):
        return []
    tokenizer, labels = pack.tokenizer, known_labels(pack)
    seen = {word for label in labels for word in words_in(label)}
    text = " ".join(_asked(pack, prompt))
    lost = {word.lower() for word in unread([text], tokenizer)}
    words = dict.fromkeys(word for word in words_in(text) if len(word) >= SHORT)
    return [word for word in words if word not in seen | lost and _is_spelt(word, tokenizer)]


def _is_spelt(word: str, tokenizer: Tokenizer) -> bool:
    """Whether a word falls into pieces that are no words themselves, unlike hatch + back or hedge + hog + s."""
    pieces = [str(tokenizer.backend.id_to_token(token)).removeprefix("##") for token in tokenizer.ids([word])[0]]
    vocabulary = tokenizer.backend.token_to_id
    return len(pieces) > 1 and not all(
        piece in ENDINGS or (len(piece) >= SHORT and vocabulary(piece) is not None) for piece in pieces
    )


def warn_of_words(pack: Pack, prompt: str) -> None:
    """One warning for what looks like another language, or else one for words that the pack hardly knows."""
    words, foreign = hardly_known(pack, prompt), _foreign(pack, prompt)
    if foreign:
        warn(f'"{foreign[0]}" looks like a word of another language: the pack was trained on English captions')
    elif words:
        warn(f"the pack hardly knows {named_texts(words)}, only its spelling: try other words")


def _foreign(pack: Pack, prompt: str) -> list[str]:
    """The words of a prompt that say it is of another language, for a pack that reads English."""
    found = [word for word in words_in(prompt) if word in OF_OTHER_LANGUAGES]
    return found if found and reads_english(pack) else []


def nearest_labels(pack: Pack, prompt: str, count: int = NEAR) -> list[str]:
    """Up to `count` labels of the pack's bank whose words mean nearly the same as the prompt's most important part.

    Words that the pack can only spell say nothing, nor does another language: their vectors are near anything.
    """
    labels, asked = known_labels(pack), _asked(pack, prompt)[:1]
    if not labels or _foreign(pack, prompt):
        return []
    spelt = hardly_known(pack, prompt)
    if spelt:
        words = [word for word in words_in(" ".join(asked)) if word not in spelt]
        asked = [" ".join(words)] if any(len(word) >= SHORT for word in words) else []
    if not asked:
        return []
    cosines, rows = (word_vectors(labels) @ word_vectors(asked)[0]).topk(min(count, len(labels)))
    return [labels[row] for row, cosine in zip(rows.tolist(), cosines.tolist(), strict=True) if cosine >= LEAST_NEAR]


def warn_of_failure(pack: Pack, prompt: str, results: Sequence[Result]) -> None:
    """A warning if the pack's scorer finds none of the results likely to show the prompt, with what is near."""
    if not results or any(result.verdict != UNLIKELY for result in results):
        return
    remedy, near, read = "", nearest_labels(pack, prompt), pack.tokenizer.ids  # which leaves out an article
    if own := [label for label in near if read([label]) == read(_asked(pack, prompt)[:1])]:
        remedy = f", though the pack was trained on '{own[0]}': try another seed, more pictures, or no style"
    elif near:
        remedy = f"; the nearest that this pack was trained on: {', '.join(near)}"
    elif known_labels(pack):
        remedy = "; nothing near it is among what this pack was trained on"
    which = "the picture is" if len(results) == 1 else "all pictures are"
    warn(f"{which} unlikely to show the prompt{remedy}")
