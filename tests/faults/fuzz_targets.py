"""The readers that are fuzzed, with words that are put into their inputs and their shares of the time."""

from fuzz_data import (
    CELLS,
    MARKS,
    YAML,
    make_captions,
    make_catalogues,
    make_conditions,
    make_metadata_csv,
    make_metadata_jsonl,
    make_parquet,
    make_prompts,
    make_recipes,
    make_robots,
    make_shards,
    make_tables,
    make_whole_shards,
)
from fuzz_models import (
    JSON_WORDS,
    OPCODES,
    make_bodies,
    make_checkpoints,
    make_latents,
    make_manifests,
    make_models,
    make_pack_values,
    make_packs,
    make_pictures,
    make_replays,
)
from fuzzing import Target

TARGETS = {
    target.name: target
    for target in (
        Target("prompts", "parser", make_prompts, MARKS, 2),
        Target(
            "conditions", "parser", make_conditions, [b" in ", b" is null", b"==", b"'", b"`", b"{", b"}", b",", b"!r"]
        ),
        Target(
            "robots.txt", "parser", make_robots, [b"User-agent:", b"Disallow: ", b"*", b"$", b"%", b"Crawl-delay: "]
        ),
        Target("captions", "parser", make_captions, CELLS, 2),
        Target("tables", "parser", make_tables, CELLS, 3),
        Target("metadata.csv", "source", make_metadata_csv, CELLS),
        Target("metadata.jsonl", "source", make_metadata_jsonl, CELLS),
        Target("Parquet", "source", make_parquet, [b"PAR1"], 2),
        Target(
            "tar",
            "parser",
            make_shards,
            [b"ustar\x0000", b"0.png", b"PaxHeader", b"GNU.sparse.map", b"14 size=999\n"],
            2,
        ),
        Target("tar as a source", "source", make_whole_shards, [b"0.png"]),
        Target("recipes", "parser", make_recipes, YAML, 2),
        Target("catalogues", "parser", make_catalogues, YAML),
        Target(
            "pictures",
            "picture",
            make_pictures,
            [b"IHDR", b"IDAT", b"iTXt", b"\xff\xda", b"\xff\xe1", b"Exif\0\0", b"VP8X", b"ANIM"],
            6,
        ),
        Target("manifests in PNG", "parser", make_manifests, [b"iTXtcodebrush", b"IHDR", b"IDAT", b"IEND", b"zTXt"]),
        Target("replays", "model", make_replays, (), 1),
        Target("packs", "model", make_packs, [b"{", b"}", b'"F32"', b"null", b"[1,2]"], 2),
        Target("values in packs", "model", make_pack_values, (), 1),
        Target("checkpoints and pickles", "parser", make_checkpoints, OPCODES, 3),
        Target("configs of checkpoints", "model", make_models, ()),
        Target("latents", "parser", make_latents, [b'"F16"', b'"I64"', b'"codes"', b"[]"]),
        Target("bodies of requests", "server", make_bodies, JSON_WORDS, 2),
    )
}
