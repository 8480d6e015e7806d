"""Devices and hosts of the plan in `scaling_model.py`: what they can do, how long collectives take, what fits, prices.

Peaks are the makers' data sheets, dense, without sparsity. Prices are assumptions, changed with `--price`.
"""

import math
from dataclasses import dataclass

PRICES_OF = "May 2026"  # about the median of posted on-demand prices a GPU-hour (aimultiple.com/gpu-index and others)
RING_EFFICIENCY = 0.8  # of the links' rate that a ring reaches; an assumption
RING_LATENCY = 5e-6  # seconds a hop between hosts; an assumption
MEMORY_SHARE = 0.9  # of a device's memory that tensors may take; the rest is for fragments and kernels
GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Device:
    """One processor: peak FLOP/s by number format, bytes and bytes/s of its memory, bytes/s of its links one way."""

    bf16: float  # on a V100, which has none, that of float16
    tf32: float  # on a V100 and a CPU that of float32
    memory: float
    bandwidth: float
    inside: float  # to another device of its host
    network: float  # to other hosts, this device's share of its host's
    per_host: int
    price: float  # dollars an hour


def _gpu(bf16: float, tf32: float, memory: float, bandwidth: float, links: tuple[float, float], price: float) -> Device:
    inside, network = links
    return Device(bf16 * TERA, tf32 * TERA, memory * GIGA, bandwidth * GIGA, inside * GIGA, network * GIGA, 8, price)


DEVICES: dict[str, Device] = {
    # DGX-1 and DGX A100 and H100: 4 x 100, 8 x 200 and 8 x 400 Gbit/s for eight GPUs
    "v100-32": _gpu(125, 15.7, 32, 900, (150, 6.25), 0.60),
    "a100-40": _gpu(312, 156, 40, 1555, (300, 25), 1.30),
    "a100-80": _gpu(312, 156, 80, 2039, (300, 25), 1.60),
    "h100-80": _gpu(989, 494, 80, 3350, (450, 50), 3.00),
    # measured here: a core with AVX-512 and bf16 alone, half of the 34 GB/s of two; 10 Gbit/s for 64 cores
    "cpu-core": Device(0.205 * TERA, 0.095 * TERA, 8 * GIGA, 17 * GIGA, 17 * GIGA, 0.02 * GIGA, 64, 0.05),
}


@dataclass(frozen=True)
class Host:
    """A host without GPUs, for data, search and the object store."""

    cores: int = 64
    memory: float = 512 * GIGA
    bandwidth: float = 200 * GIGA  # eight channels
    network: float = 3.1 * GIGA  # 25 Gbit/s
    price: float = 3.20  # dollars an hour
    usable: float = 0.8  # of its memory
    storage_price: float = 23.0  # dollars a TB and month of object storage


def hosts_of(device: Device, devices: int) -> int:
    return math.ceil(devices / device.per_host)


def link(device: Device, devices: int) -> float:
    """Bytes/s that each device of a ring sends: within a host its own link; across hosts every ring crosses each host
    once, so that the host's whole network counts, up to that link."""
    if devices <= device.per_host:
        return device.inside * RING_EFFICIENCY
    return min(device.inside, device.network * device.per_host) * RING_EFFICIENCY


def all_gather(size: float, device: Device, devices: int) -> float:
    """Seconds until all devices have the `size` bytes of which each had its share; so long takes a reduce-scatter."""
    if devices == 1:
        return 0.0
    hops = devices - 1
    return hops / devices * size / link(device, devices) + hops * RING_LATENCY


def all_reduce(size: float, device: Device, devices: int) -> float:
    """Seconds until all devices have the sum of their `size` bytes: a reduce-scatter and an all-gather."""
    return 2 * all_gather(size, device, devices)


def training_bytes(parameters: float, sharded_over: int = 1) -> float:
    """Bytes a device holds beside activations: float32 weights, gradients, two moments and average, 20 a parameter.
    Whole (DDP) there are also the weights in bfloat16; in parts (FSDP) a copy in float32 where the network is looked at
    or saved."""
    return 20 * parameters / sharded_over + (2 if sharded_over == 1 else 4) * parameters


def checkpoint_bytes(parameters: float) -> float:
    """Float32 weights, two moments and the average."""
    return 16 * parameters


def waiting(load: float, servers: int) -> float:
    """M/M/c: the chance that a request waits (Erlang C), at `load` = arrivals / what one server does."""
    if load >= servers:
        return 1.0
    blocked = 1.0  # Erlang B, by its recursion
    for count in range(1, servers + 1):
        blocked = load * blocked / (count + load * blocked)
    return blocked / (1 - load / servers * (1 - blocked))


def servers_for(load: float, limit: float, chance: float = 0.05) -> int:
    """The fewest servers that are busy at most `limit` of the time, and where at most `chance` of requests wait."""
    servers = max(1, math.ceil(load / limit))
    while waiting(load, servers) > chance:
        servers += 1
    return servers
