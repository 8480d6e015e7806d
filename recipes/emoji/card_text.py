"""The text of the built-in pack's card, from the figures that `card.py` measures."""

from typing import Any

from codebrush.data.synthetic.questions import KINDS

SHOWN = {
    **{"clip": "accuracy", "scorer": "accuracy", "captioner": "accuracy", "prior": "cosine"},
    **{"flow": "flow_loss", "painter": "flow_loss"},
}


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def table(*lines: tuple[Any, ...]) -> list[str]:
    """A Markdown table; the first line is its header."""
    rows = ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]
    return [rows[0], "|---" * len(lines[0]) + "|", *rows[1:], ""]


def origin(info: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    """The section on what the pack is and how it was made."""
    made = info["provenance"]
    hours = sum(stage["seconds"] or 0 for stage in made["stages"].values()) / 3600
    untimed = [name for name, stage in made["stages"].items() if not stage["seconds"]]
    without = f", without {' and '.join(untimed)}, whose times were not kept" if untimed else ""
    stages = []
    for stage, facts in made["stages"].items():
        last, shown = facts["last"], SHOWN.get(stage.split("-")[0], "psnr")
        stages.append(
            (
                *(stage, last["step"], facts["plan"]["loop"]["batch_size"], facts["plan"]["loop"]["seed"]),
                *(facts["seconds"] or "", f"{shown} {last[shown]:.3f}" if shown in last else facts.get("log", "")),
            )
        )
    return [
        "# The `emoji` pack",
        "",
        f"Generates and understands small pictures in the style of emoji, {info['image_size']} pixels square. Version "
        f"{info['version']}, {figures['megabytes']:.1f} MB; it opens in {figures['speed']['open']:.1f} s and generates "
        f"four pictures in {figures['speed']['draw four']:.1f} s on two CPU cores. It is better at single objects on "
        "white than at scenes, and better at concepts that it was trained on than at others.",
        "",
        "## Made from",
        "",
        f"- **Data**: `{made['data']}` (sha256 `{made['data_sha256'][:16]}...`), its `train` split without skin-tone "
        "variants: 7,576 pictures of 1,757 concepts in five styles. `val` and `test` hold other concepts. CLIP and the "
        "captioner also saw 5,144 drawings of the same concepts in five more styles, and 4,916 icons; CLIP and scorer "
        "18,300 icons of one colour and 7,500 compositions made of the drawings, the flow one of the other styles and "
        "6,000 compositions; the decoder of the VQGAN four of the other styles. The upscaler saw 6,143 emoji of the "
        "train split at 256 pixels.",
        f"- **Licence**: {info['licence']}. Its token embeddings are distilled from all-MiniLM-L6-v2 (Apache-2.0); "
        "see NOTICE.",
        f"- **Recipe**: `{made['recipe']}/`, at commit `{made['commit'][:12]}`, torch {made['torch']}.",
        f"- **Machine**: {made['machine']}. {hours:.1f} hours of training in all{without}, some stages in parallel.",
        "",
        *table(("stage", "steps", "batch", "seed", "seconds", "last training figures"), *stages),
        "The losses of the stages whose logs exist:",
        "",
        "![training curves](curves.png)",
        "",
    ]


def understanding(info: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    """The section on zero-shot classification, retrieval, words outside the captions, and questions."""
    rows = [
        (name, f"{part['labels']:.0f}", percent(part["top1"]), percent(part["top5"]))
        for name, part in figures["zero-shot"].items()
    ]
    recall = figures["test"]["retrieval"]["text_to_image"]
    words = [
        (name, percent(part["recall_at_1"]), percent(part["recall_at_5"]), percent(part["one_token_recall_at_5"]))
        for name, part in figures["open words"].items()
    ]
    some = next(iter(figures["open words"].values()))
    control = info["provenance"]["stages"].get("clip-without-noto", {}).get("noto_top1")
    if any("never saw" in name for name in figures["zero-shot"]):
        control = None  # measured anew
    remembered = (
        []
        if control is None
        else [
            f"A control run that was trained without any Noto picture found the label of {percent(control)} of 1,527 "
            "Noto pictures of training concepts, among the labels of those pictures; its weights were not kept.",
            "",
        ]
    )
    return [
        "## Understands",
        "",
        "Picture to label, the label as the text:",
        "",
        *table(("pictures", "labels to choose from", "top-1", "top-5"), *rows),
        *remembered,
        f"Text to picture on the test split ({recall['queries']:.0f} labels, none seen in training): recall@1 is "
        f"{percent(recall['recall_at_1'])}, recall@10 {percent(recall['recall_at_10'])}.",
        "",
        f"How often {some['queries']:.0f} words that are in no caption of the training split, from WordNet "
        "(`recipes/emoji/synonyms.csv`), find a fitting picture of the fluent-3d style. The table is a baseline that "
        "finds labels, not pictures; it hardly knows words that its vocabulary splits into pieces.",
        "",
        *table(
            ("by", "first", "among five", f"among five, the {some['one_token_words']:.0f} that are one token"), *words
        ),
        "Questions about unseen synthetic scenes, answered correctly word for word:",
        "",
        *table(
            ("question", *figures["answers"]),
            *((kind, *(percent(part[kind]) for part in figures["answers"].values())) for kind in KINDS),
        ),
    ]


SAMPLED = (  # the card's words for each figure of drawings, and where it lies in them
    (
        "training concepts, single samples: the nearest training picture has the prompt's label",
        "nearest_picture_is_right",
    ),
    ("training concepts, single samples: a second CLIP finds the label among 100", "single"),
    ("training concepts, best of 8 by the pack's scorer: the same", "best of 8"),
    ("unseen concepts, best of 8: the same", "unseen, best of 8"),
    ('single samples, "..., STYLE style": a classifier finds that style', "style_is_followed"),
)


def making(figures: dict[str, Any]) -> list[str]:
    """The section on reconstruction and generation, with the sheets."""
    kept, drawn, earlier = figures["test"]["reconstruction"], figures["drawing"], figures.get("earlier drawing")
    packs = {"this pack": drawn} | ({} if earlier is None else {earlier["pack"]: earlier})

    def shown(part: dict[str, Any], figure: str) -> str:
        return percent(part[figure]["r_precision"] if isinstance(part[figure], dict) else part[figure])

    styles = ", ".join(f"{style} {percent(share)}" for style, share in drawn["style_by_style"].items())
    return [
        "## Makes",
        "",
        f"Through the VQGAN's codes and back, test split: {kept['psnr']:.2f} dB PSNR, SSIM {kept['ssim']:.3f}, "
        f"{percent(kept['codebook_usage'])} of the codebook in use. Originals above:",
        "",
        "![reconstructions](reconstructions.png)",
        "",
        f"What {drawn['prompts']} prompts of training concepts and {drawn['unseen prompts']} of unseen ones give, by "
        "two models that only measure: a second CLIP (`judge-2.yaml`), which has another architecture and has seen the "
        "unseen concepts too, and a classifier of styles. The second CLIP finds "
        f"{shown(drawn, 'true pictures')} of the true pictures of the first, "
        f"{shown(drawn, 'true pictures, unseen')} of the others.",
        "",
        *table(
            ("generation", *packs),
            *((line, *(shown(part, figure) for part in packs.values())) for line, figure in SAMPLED),
        ),
        f"Fluent's colour and 3-D drawings are renderings of the same shapes and count as one style; as two styles, "
        f"{percent(drawn['every_style'])} are correct. Style by style: {styles}. On true pictures of unseen concepts "
        f"the classifier of ten styles is correct in {percent(figures['style judge']['val_accuracy'])}, with those two "
        f"apart in {percent(figures['style judge']['every_style'])}.",
        "",
        f"Before ({'the pack that was installed' if earlier is None else earlier['pack']}) and after, with the same 64 "
        "prompts and seeds, best of 8:",
        "",
        "![before](before.png)",
        "",
        "![after](after.png)",
        "",
        "All concepts of the test split, which no model of this pack has seen, best of 8, without selection:",
        "",
        "![unseen](unseen.png)",
        "",
        "Compositions (the tokenizer drops a leading article, since labels have none):",
        "",
        "![composed](composed.png)",
        "",
        "Results of `vary`, `translate` and `edit --box` on pictures that no model of this pack has seen:",
        "",
        "![edits](edits.png)",
        "",
    ]


def card(info: dict[str, Any], figures: dict[str, Any]) -> str:
    """README.md of a pack."""
    return "\n".join(origin(info, figures) + understanding(info, figures) + making(figures))
