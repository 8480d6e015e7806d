"""Pictures a second of a device that serves, and searches of a host; used by `scaling_model.py`."""

import math
from dataclasses import dataclass

from scaling_devices import DEVICES, MEMORY_SHARE, Host, servers_for, waiting
from scaling_networks import cached_bytes, transformer_flops, vqgan_decoder_flops

from codebrush.models.code_transformer_config import CodeTransformerConfig

GUIDED = 2  # rows a picture with classifier-free guidance
BUSY = 0.7  # of the time that a server may be busy
ID_BYTES = 8
# Our search of 200,000 x 512 by IVF_SQ in one partition (docs/log.md): 10.6 ms of a core, 3 of them the query itself
QUERY_SECONDS, SCANNED_A_CORE = 3e-3, 200_000 * 512 / 7.6e-3


@dataclass(frozen=True)
class Launch:
    """Seconds of a step of drawing that no byte or FLOP explains: of each layer's kernels, and of everything else."""

    layer: float
    rest: float


def decode_step(
    config: CodeTransformerConfig, device: str, rows: int, launch: Launch, utilisation: float, codes: int = 0
) -> float:
    """Seconds to draw the next code of `rows` sequences of which half of `codes` (all of a picture's) are drawn: the
    later of reading weights and caches, and computing; and the launches."""
    kind, codes = DEVICES[device], codes or config.code_count
    read = 2.0 * config.linear_weights + rows * cached_bytes(config, codes // 2)
    flops = rows * (
        2.0 * config.linear_weights + 4.0 * config.layers * config.width * (config.prefix_length + codes // 2)
    )
    busy = max(read / kind.bandwidth, flops / (kind.bf16 * utilisation))
    return launch.rest + config.layers * launch.layer + busy


@dataclass(frozen=True)
class Serving:
    """What one device draws, `batch` pictures together."""

    batch: int
    seconds: float  # of a batch
    codes: float  # seconds of it that codes take
    bound: str

    @property
    def rate(self) -> float:
        return self.batch / self.seconds


def serve(
    config: CodeTransformerConfig, device: str, launch: Launch, utilisation: dict[str, float], batch: int
) -> Serving:
    kind, rows = DEVICES[device], GUIDED * batch
    one = decode_step(config, device, rows, launch, utilisation["codes"])
    prefix = rows * transformer_flops(config.prefix_length, config.width, config.layers, 4 * config.width)
    codes = config.code_count * one + prefix / (kind.bf16 * utilisation["codes"])
    pixels = batch * vqgan_decoder_flops() / (kind.bf16 * utilisation["pixels"])
    launches = config.code_count * (launch.rest + config.layers * launch.layer)
    read = config.code_count * (2.0 * config.linear_weights + rows * cached_bytes(config, config.code_count // 2))
    parts = {"launches": launches, "pixels": pixels, "compute": codes - launches}
    if read / kind.bandwidth >= config.code_count * one - launches - 1e-9:
        parts["memory"] = parts.pop("compute")
    return Serving(batch, codes + pixels, codes, max(parts, key=lambda name: parts[name]))


def largest_batch(config: CodeTransformerConfig, device: str) -> int:
    """Pictures whose keys and values fit beside the weights, a power of two."""
    room = DEVICES[device].memory * MEMORY_SHARE - 2.2 * config.linear_weights
    return 2 ** int(math.log2(max(1.0, room / (GUIDED * cached_bytes(config, config.code_count)))))


def devices_for(rate: float, serving: Serving) -> tuple[int, float]:
    """Devices for `rate` pictures/s and the chance that a batch waits, each device a server of batches (M/M/c)."""
    load = rate / serving.rate
    count = servers_for(load, BUSY)
    return count, waiting(load, count)


@dataclass(frozen=True)
class Index:
    """How vectors are stored and searched: `code` bytes each, `lists` of an inverted file of which `probes` are read,
    found by a graph of the centres with `candidates`; `exact` rows are compared with the whole vectors on disk."""

    name: str
    code: int
    lists: int = 0
    probes: int = 0
    candidates: int = 0
    width: int = 512
    links: int = 0  # neighbours of each vector in a graph
    exact: int = 0

    def bytes(self, rows: float) -> float:
        """Of memory: codes and ids, centres in float32 with a graph of 64 links, or each vector's links."""
        return rows * (self.code + ID_BYTES + 8 * self.links) + self.lists * (4 * self.width + 4 * 64)

    def read(self, rows: float, uneven: float = 1.0) -> float:
        """Bytes of codes and ids that a query reads: of its lists, those near queries `uneven` times as long as the
        mean; in a graph of all neighbours of each candidate."""
        if self.links:
            return self.candidates * self.links * (self.code + ID_BYTES)
        share = self.probes / self.lists * uneven if self.lists else 1.0
        return rows * share * (self.code + ID_BYTES)


@dataclass(frozen=True)
class Probing:
    """Core-seconds of an inverted file's search besides reading: each candidate of the graph, each list, the rest."""

    candidate: float
    probe: float
    rest: float


def core_seconds(index: Index, rows: float, probing: Probing, scanned: float, uneven: float = 1.0) -> float:
    """Of one query on a core that reads `scanned` bytes/s."""
    read = index.read(rows, uneven) / scanned
    return probing.rest + index.candidates * probing.candidate + index.probes * probing.probe + read


def search_hosts(index: Index, rows: float, rate: float, seconds: float, host: Host) -> tuple[int, int]:
    """Hosts that hold all parts once, and hosts for `rate` queries/s; each query goes to every part."""
    parts = math.ceil(index.bytes(rows) / (host.memory * host.usable))
    by_cores = host.cores * BUSY / seconds
    by_memory = host.bandwidth * parts * BUSY / index.read(rows)
    each = min(by_cores * parts, by_memory)  # queries/s of one copy: its hosts share the reading
    copies = math.ceil(rate / each)
    return parts, parts * copies
