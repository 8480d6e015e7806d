"""Plans work past one machine, with numbers: training CLIP ViT-B/32 on 400 M pairs, an f16 VQGAN and a 700 M code
transformer, serving 1,000 pictures/s and searching 1 G vectors.

    python benchmarks/scaling_model.py                        the plan's tables
    python benchmarks/scaling_model.py --check                published figures beside what the model says
    python benchmarks/scaling_model.py --price h100-80=2.2    with another price in dollars an hour
    python benchmarks/scaling_model.py --docs docs/scaling.md    writes the tables into the page

Runs in seconds on any machine; nothing is trained. `scaling_devices.py` has the devices and the formulas of
collectives, `scaling_networks.py` the FLOPs, `scaling_training.py` and `scaling_serving.py` the model,
`scaling_published.py` where its constants come from.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import scaling_published as published
from scaling_devices import DEVICES, PRICES_OF, Host, checkpoint_bytes, training_bytes
from scaling_networks import Network, clip_of, code_transformer, painter, transformer_flops, vqgan
from scaling_page import Cell, Table, number, percent, written
from scaling_serving import (
    QUERY_SECONDS,
    SCANNED_A_CORE,
    Index,
    core_seconds,
    devices_for,
    largest_batch,
    search_hosts,
    serve,
)
from scaling_training import (
    DECODED_A_CORE,
    SAMPLE_BYTES,
    Run,
    checkpoints,
    cores_needed,
    fits,
    hours,
    memory,
    money,
    step,
    throughput,
)

PAIRS, PICTURES, VECTORS = 32 * 400e6, 50e6, 1e9  # CLIP's samples, the VQGAN's pictures, the vectors searched
PAINTED = 1e9  # pictures that the code transformer sees
RATE = 1000  # pictures/s served
CLIP_BATCH = 32_768  # of all devices
GLOBAL_BATCH = {"VQGAN": 512, "code transformer": 1024}
HOSTS = {"host": Host()}
SUMMARY = ("work", "on", "time", "money", "bottleneck", "what moves it")


def run_of(work: str, device: str, devices: int, **changes: object) -> Run:
    """The plan's run of "CLIP", "VQGAN" or "code transformer" on so many devices."""
    nets: dict[str, tuple[Callable[[], Network], float, str]] = {
        "CLIP": (lambda: clip_of("ViT-B/32"), PAIRS, "clip"),
        "VQGAN": (vqgan, PICTURES, "pixels"),
        "code transformer": (lambda: code_transformer(painter()), PAINTED, "codes"),
    }
    make, samples, kind = nets[work]
    batch = max(1, GLOBAL_BATCH.get(work, CLIP_BATCH) // devices)
    used = published.UTILISATIONS[device][kind]()
    run = Run(make(), samples, device, devices, batch, used, straggling=published.straggling())
    run = replace(run, decodes=work != "code transformer", **changes)
    return run if fits(run) else replace(run, recompute=True)


def devices_table() -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            it.bf16 / 1e12,
            it.tf32 / 1e12,
            it.memory / 1e9,
            it.bandwidth / 1e9,
            it.inside / 1e9,
            it.network / 1e9,
            it.price,
        )
        for name, it in DEVICES.items()
    ]
    header = ("device", "bf16 TFLOP/s", "tf32", "memory GB", "GB/s", "link GB/s", "network GB/s", "$/h")
    return Table("devices", f"Devices; prices are assumptions of {PRICES_OF}", header, rows)


def constants_table() -> Table:
    rows: list[tuple[Cell, ...]] = [(it.constant, it.value, it.source) for it in published.calibrations()]
    return Table("constants", "Constants, and the runs they come from", ("constant", "value", "from"), rows)


def networks_table() -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, net, samples in (
        ("CLIP ViT-B/32", clip_of("ViT-B/32"), PAIRS),
        ("VQGAN f16, 256 pixels", vqgan(), PICTURES),
        ("code transformer, 77 + 256 tokens", code_transformer(painter()), PAINTED),
    ):
        trained = 3 * net.forward + net.extra
        flops = (net.forward / 1e9, trained / 1e9, samples / 1e6, samples * trained / 1e18)
        held = (training_bytes(net.parameters) / 1e9, net.activations / 1e6)
        rows.append((name, net.parameters / 1e6, *flops, *held))
    header = (
        "network",
        "M weights",
        "GFLOP forward",
        "GFLOP a step",
        "M samples",
        "EFLOP",
        "GB of state",
        "MB kept a sample",
    )
    return Table("networks", "Networks, by sample", header, rows)


def training_table(work: str, runs: list[tuple[str, int]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for device, devices in runs:
        run = run_of(work, device, devices)
        spent = step(run)
        memory_of = f"{memory(run) / 1e9:.0f} GB" + (", again" if run.recompute else "")
        waits = percent((spent.exposed + spent.straggling) / spent.seconds)
        read = f"{number(cores_needed(run))} cores, {number(throughput(run) * SAMPLE_BYTES / 1e9)} GB/s"
        cost = (
            hours(run),
            money(run),
            throughput(run),
            read if run.decodes else "none",
            spent.sent / spent.seconds / 1e9,
        )
        rows.append((f"{devices} {device}", *cost, waits, memory_of, spent.bottleneck))
    header = (
        "devices",
        "hours",
        "$",
        "samples/s",
        "decoding",
        "GB/s sent each",
        "waits",
        "memory each",
        "bottleneck",
    )
    names = {"CLIP": "clip", "VQGAN": "vqgan", "code transformer": "codes"}
    samples = {"CLIP": PAIRS, "VQGAN": PICTURES, "code transformer": PAINTED}[work]
    title = f"Training, {work}: {samples / 1e6:,.0f} M samples, {GLOBAL_BATCH.get(work, CLIP_BATCH):,} a step"
    return Table(names[work], title, header, rows)


def levers_table() -> Table:
    """What moves the hours of CLIP on 64 A100, one change at a time."""
    base = run_of("CLIP", "a100-80", 64)
    trimmed = replace(base.network, forward=base.network.forward - _text_saved())
    changes: dict[str, Run] = {
        "as planned": base,
        "twice the devices": run_of("CLIP", "a100-80", 128),
        "eight times the devices": run_of("CLIP", "a100-80", 512),
        "twice the utilisation": replace(base, utilisation=2 * base.utilisation),
        "texts cut to the longest of a batch, some 32 tokens": replace(base, network=trimmed),
        "activations computed again": replace(base, recompute=True),
        "FSDP in place of DDP": replace(base, sharded=True),
        "two cores a device that decode, not twelve": replace(base, cores=2),
        "10 Gbit/s a host, not 1,600": replace(base, outside=1.25e9 / 8),
    }
    rows: list[tuple[Cell, ...]] = []
    for name, run in changes.items():
        waits = (step(run).exposed + step(run).straggling) / step(run).seconds
        rows.append((name, hours(run), money(run), percent(waits), step(run).bottleneck))
    header = ("change", "hours", "$", "waits", "bottleneck")
    return Table("levers", "What moves it: CLIP on 64 A100", header, rows)


def _text_saved() -> float:
    """Forward FLOPs of ViT-B/32's text encoder on 77 tokens less those on 32."""
    return transformer_flops(77, 512, 12, 2048) - transformer_flops(32, 512, 12, 2048)


def sharding_table() -> Table:
    """Bytes a device holds without activations, with DDP and with FSDP."""
    rows: list[tuple[Cell, ...]] = []
    for millions in (151, 751, 1400, 3100, 7000, 13_000):
        sizes = [training_bytes(millions * 1e6, over) / 1e9 for over in (1, 8, 64)]
        rows.append((f"{millions:,} M", *sizes))
    return Table("sharding", "GB of state a device", ("parameters", "DDP", "FSDP on 8", "FSDP on 64"), rows)


def checkpoints_table() -> Table:
    rows: list[tuple[Cell, ...]] = []
    for work, devices in (("CLIP", 64), ("CLIP", 512), ("code transformer", 64), ("code transformer", 512)):
        run = run_of(work, "a100-80", devices)
        every, lost = checkpoints(run)
        rows.append((f"{work}, {devices}", checkpoint_bytes(run.network.parameters) / 1e9, every / 60, f"{lost:.2%}"))
    return Table("checkpoints", "Checkpoints", ("run", "GB", "minutes between them", "time lost"), rows)


def serving_table() -> Table:
    config, rows = painter(), list[tuple[Cell, ...]]()
    for device in ("a100-80", "h100-80"):
        used = {kind: value() for kind, value in published.UTILISATIONS[device].items()}
        for engine in ("PyTorch", "vLLM"):
            for batch in (1, 16, 128, largest_batch(config, device)):
                one = serve(config, device, published.launch_of(engine), used, batch)
                count, late = devices_for(RATE, one)
                cost = count * DEVICES[device].price
                rows.append(
                    (f"{device}, {engine}", batch, one.seconds, one.rate, one.bound, count, percent(late), cost)
                )
    header = ("device, engine", "batch", "s a batch", "pictures/s", "bound by", "devices", "that wait", "$/h")
    return Table("serving", f"Serving {RATE:,} pictures/s of 256 pixels, guided", header, rows)


def indices() -> list[Index]:
    return [
        Index("flat, float32", 2048),
        Index("flat, 8 bits", 512),
        Index("IVF, 8 bits", 512, 1 << 20, 64, 128, exact=20),
        Index("IVF-PQ, 64 bytes", 64, 1 << 20, 64, 128, exact=200),
        Index("IVF-PQ, 16 bytes", 16, 1 << 20, 64, 128, exact=1000),
        Index("HNSW, 8 bits", 512, candidates=128, links=40),
    ]


def search_table() -> Table:
    rows: list[tuple[Cell, ...]] = []
    host, probing = HOSTS["host"], replace(published.probing(), rest=QUERY_SECONDS)
    for index in indices():
        scanned = SCANNED_A_CORE if index.code > 64 else published.SCANNED
        seconds = core_seconds(index, VECTORS, probing, scanned)
        parts, few = search_hosts(index, VECTORS, 100, seconds, host)
        _, many = search_hosts(index, VECTORS, 1000, seconds, host)
        cells = (index.bytes(VECTORS) / 1e9, parts, index.read(VECTORS) / 1e6, seconds * 1e3, index.exact)
        rows.append((index.name, *cells, few, many, many * host.price))
    header = (
        "index",
        "GB",
        "hosts to hold it",
        "MB read",
        "core-ms",
        "rows from disk",
        "hosts, 100/s",
        "1,000/s",
        "$/h",
    )
    return Table("search", f"Searching {VECTORS / 1e9:g} G vectors of 512", header, rows)


def filling_table() -> Table:
    """What it takes to embed the pictures and keep them."""
    rows: list[tuple[Cell, ...]] = []
    forward = clip_of("ViT-B/32").forward - _text_whole()
    for device in ("a100-80", "h100-80", "cpu-core"):
        speed = DEVICES[device].bf16 * published.UTILISATIONS[device]["clip"]() / forward
        spent = VECTORS / speed / 3600
        rows.append((device, speed, spent, spent * DEVICES[device].price, speed / DECODED_A_CORE))
    return Table(
        "filling", "Embedding 1 G pictures", ("device", "pictures/s", "device-hours", "$", "decoding cores each"), rows
    )


def _text_whole() -> float:
    return transformer_flops(77, 512, 12, 2048)


def bytes_table() -> Table:
    rows: list[tuple[Cell, ...]] = []
    stored = {
        "400 M pairs of 256 pixels": 400e6 * SAMPLE_BYTES,
        "their codes, 256 of 2 bytes": 400e6 * 512,
        "1 G embeddings, float32": VECTORS * 2048,
        "1 G embeddings, PQ of 64 bytes": VECTORS * 72,
    }
    for name, size in stored.items():
        rows.append((name, size / 1e12, size / 1e12 * HOSTS["host"].storage_price))
    return Table("bytes", "What is stored", ("what", "TB", "$ a month"), rows)


def tables() -> list[Table]:
    gpus = [("a100-80", count) for count in (8, 64, 128, 512)] + [("h100-80", count) for count in (8, 64)]
    return [
        summary_table(),
        devices_table(),
        constants_table(),
        networks_table(),
        training_table("CLIP", [*gpus, ("cpu-core", 64)]),
        levers_table(),
        training_table("VQGAN", [("a100-80", 8), ("a100-80", 64), ("h100-80", 8)]),
        training_table("code transformer", [("a100-80", 8), ("a100-80", 64), ("h100-80", 8), ("h100-80", 64)]),
        sharding_table(),
        checkpoints_table(),
        serving_table(),
        search_table(),
        filling_table(),
        bytes_table(),
        check_table(),
        misses_table(),
    ]


def summary_table() -> Table:
    """The plan in one line for each work."""
    rows: list[tuple[Cell, ...]] = []
    for work, devices, mover in (
        ("CLIP", 64, "utilisation; texts cut to the longest of a batch"),
        ("VQGAN", 8, "utilisation"),
        ("code transformer", 64, "H100 in place of A100"),
    ):
        run = run_of(work, "a100-80", devices)
        hosts = f"{devices} A100 in {run.hosts} host" + ("s" if run.hosts > 1 else "")
        cells = (hosts, f"{number(hours(run))} h", f"${number(money(run))}", step(run).bottleneck, mover)
        rows.append((f"train the {work}", *cells))
    return Table("summary", "The plan", SUMMARY, [*rows, _serving_summary(), _search_summary()])


def _serving_summary() -> tuple[Cell, ...]:
    used = {kind: value() for kind, value in published.UTILISATIONS["a100-80"].items()}
    one = serve(painter(), "a100-80", published.launch_of("vLLM"), used, 128)
    count, _ = devices_for(RATE, one)
    cost = f"${number(count * DEVICES['a100-80'].price)} an hour"
    return (f"serve {RATE:,} pictures/s", f"{count} A100", "", cost, one.bound, "larger batches; fewer steps a picture")


def _search_summary() -> tuple[Cell, ...]:
    index, host = indices()[3], HOSTS["host"]
    probing = replace(published.probing(), rest=QUERY_SECONDS)
    seconds = core_seconds(index, VECTORS, probing, published.SCANNED)
    _, hosts = search_hosts(index, VECTORS, 1000, seconds, host)
    shares = {
        "memory": index.bytes(VECTORS) / (hosts * host.memory * host.usable),
        "cores": 1000 * seconds / (hosts * host.cores),
    }
    most = max(shares, key=lambda name: shares[name])
    cost = f"${number(hosts * host.price)} an hour"
    bound = f"{most}, {percent(shares[most])} used"
    return ("search 1 G, 1,000/s", f"{hosts} host, {index.name}", "", cost, bound, "bytes a vector; lists read")


def misses_table() -> Table:
    rows: list[tuple[Cell, ...]] = [(it.what, f"{it.deviation:+.0%}", it.miss) for it in published.checks() if it.miss]
    return Table("misses", "Why some are missed", ("what", "deviation", "why"), rows)


def check_table() -> Table:
    rows: list[tuple[Cell, ...]] = []
    for it in published.checks():
        within = f"{it.deviation:+.0%}" + ("" if abs(it.deviation) <= published.BOUND else " (miss)")
        rows.append((it.what, it.published, it.predicted, it.unit, within, it.source))
    header = ("what", "published", "model", "unit", "deviation", "source")
    return Table("check", "Published figures, none of which a constant comes from", header, rows)


def set_price(text: str) -> None:
    """Take DEVICE=DOLLARS; beside the devices there are `host`, an hour of one without GPUs, and `storage`, a TB and
    month."""
    name, _, price = text.partition("=")
    try:
        dollars = float(price)
    except ValueError:
        dollars = -1.0
    if dollars < 0 or name not in (*DEVICES, "host", "storage"):
        raise SystemExit(f"--price '{text}': write NAME=DOLLARS with one of {', '.join(DEVICES)}, host, storage")
    if name in DEVICES:
        DEVICES[name] = replace(DEVICES[name], price=dollars)
    elif name == "host":
        HOSTS["host"] = replace(HOSTS["host"], price=dollars)
    else:
        HOSTS["host"] = replace(HOSTS["host"], storage_price=dollars)


def main() -> None:
    parser = argparse.ArgumentParser(description="Plans work past one machine.")
    parser.add_argument("--check", action="store_true", help="print published figures beside the model's")
    parser.add_argument(
        "--price", action="append", default=[], metavar="NAME=DOLLARS", help="dollars an hour; also of host and storage"
    )
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write the tables into this page")
    asked = parser.parse_args()
    for price in asked.price:
        set_price(price)
    if asked.docs:
        asked.docs.write_text(written(asked.docs.read_text(encoding="utf-8"), tables()), encoding="utf-8")
        return
    for table in [check_table(), misses_table()] if asked.check else tables():
        print(table.text() + "\n")


if __name__ == "__main__":
    main()
