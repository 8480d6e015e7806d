"""The figures of `card.py` in, the text of the pack's card out."""

from typing import Any

from codebrush.data.synthetic.questions import KINDS

SHOWN = {"clip": "accuracy", "transformer": "transformer_loss", "captioner": "accuracy", "prior": "cosine"}


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def table(*lines: tuple[Any, ...]) -> list[str]:
    """Rows of Markdown under the first as their head."""
    rows = ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]
    return [rows[0], "|---" * len(lines[0]) + "|", *rows[1:], ""]


def origin(info: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    """What the pack is and what it was made from."""
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
        f"Draws and judges small pictures in the manner of emoji, {info['image_size']} pixels square. Version "
        f"{info['version']}, {figures['megabytes']:.1f} MB; it opens in {figures['speed']['open']:.1f} s and draws "
        f"four pictures in {figures['speed']['draw four']:.1f} s on two CPU cores. It knows single things on white "
        "better than scenes, and what it has seen better than what it has not.",
        "",
        "## Made from",
        "",
        f"- **Data**: `{made['data']}` (sha256 `{made['data_sha256'][:16]}...`), its `train` split without skin-tone "
        "variants: 7,576 pictures of 1,757 concepts in five styles. `val` and `test` hold other concepts.",
        f"- **Licence**: {info['licence']}. Its words are those of a table distilled from all-MiniLM-L6-v2 "
        "(Apache-2.0); see NOTICE.",
        f"- **Recipe**: `{made['recipe']}/`, at commit `{made['commit'][:12]}`, torch {made['torch']}.",
        f"- **Machine**: {made['machine']}. {hours:.1f} hours of training in all{without}, the stages partly side "
        "by side.",
        "",
        *table(("stage", "steps", "batch", "seed", "seconds", "last training figures"), *stages),
        "The losses of the stages whose logs were kept:",
        "",
        "![training curves](curves.png)",
        "",
    ]


def understanding(info: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    """Zero-shot, retrieval, and words outside the captions."""
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
            f"A control run that never saw a Noto picture found the label of {percent(control)} of 1,527 Noto pictures "
            "of training concepts, among those pictures' labels, when it was trained; its weights were not kept.",
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
        f"Text to picture on the test split ({recall['queries']:.0f} labels, none seen in training): a right picture "
        f"is first "
        f"for {percent(recall['recall_at_1'])}, among ten for {percent(recall['recall_at_10'])}.",
        "",
        f"{some['queries']:.0f} words that are in no caption of the training split, from WordNet "
        f"(`recipes/emoji/synonyms.csv`), "
        "and how often one of the right pictures of the fluent-3d style is among the first. The table is the "
        "baseline that "
        "finds labels, not pictures; words that its vocabulary has in pieces alone it hardly knows.",
        "",
        *table(
            ("by", "first", "among five", f"among five, the {some['one_token_words']:.0f} that are one token"), *words
        ),
        "Questions about unseen drawn scenes, answered in exactly the right words:",
        "",
        *table(
            ("question", *figures["answers"]),
            *((kind, *(percent(part[kind]) for part in figures["answers"].values())) for kind in KINDS),
        ),
    ]


def making(figures: dict[str, Any]) -> list[str]:
    """Reconstruction and drawing, with the sheets."""
    kept, drawn = figures["test"]["reconstruction"], figures["drawing"]
    found = {
        name: percent(drawn[name]["r_precision"])
        for name in ("true pictures", "single", "best of 8", "unseen, best of 8")
    }
    styles = ", ".join(f"{style} {percent(share)}" for style, share in drawn["style_by_style"].items())
    return [
        "## Makes",
        "",
        f"Through the VQGAN's codes and back, test split: {kept['psnr']:.2f} dB PSNR, SSIM {kept['ssim']:.3f}, "
        f"{percent(kept['codebook_usage'])} of the codebook in use. Originals above:",
        "",
        "![reconstructions](reconstructions.png)",
        "",
        *table(
            (f"drawing, {drawn['prompts']} prompts", ""),
            (
                "seen concepts, single: the nearest training picture shows it",
                percent(drawn["nearest_picture_is_right"]),
            ),
            ("seen, single: a second CLIP finds the label among 100", found["single"]),
            ("seen, best of 8 by the pack's CLIP: the same", found["best of 8"]),
            ("true pictures of the same labels: the same", found["true pictures"]),
            (f"{drawn['unseen prompts']} unseen concepts, best of 8: the same", found["unseen, best of 8"]),
            ('single, "..., STYLE style": a judge of styles finds it', percent(drawn["style_is_followed"])),
        ),
        f"Fluent's colour and 3-D drawings are renderings of the same shapes and count as one style; told apart, "
        f"{percent(drawn['five_styles'])} are right. Style by style: {styles}. On true pictures of unseen concepts the "
        f"judge of styles is right in {percent(figures['style judge']['val_accuracy'])}, with the two told apart in "
        f"{percent(figures['style judge']['five_styles'])}.",
        "",
        "Before (the pack of version 0.1.0, 64 pixels) and after, the same 64 prompts and seeds, best of 8:",
        "",
        "![before](before.png)",
        "",
        "![after](after.png)",
        "",
        "All concepts of the test split, which no model of this pack has seen, best of 8, good and bad:",
        "",
        "![unseen](unseen.png)",
        "",
        "An article that a prompt begins with is left out: labels have none. Compositions:",
        "",
        "![composed](composed.png)",
        "",
        "What `vary`, `translate` and `edit --box` make of pictures that no model of this pack has seen:",
        "",
        "![edits](edits.png)",
        "",
    ]


def card(info: dict[str, Any], figures: dict[str, Any]) -> str:
    """README.md of a pack."""
    return "\n".join(origin(info, figures) + understanding(info, figures) + making(figures))
