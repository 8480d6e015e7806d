"""A training step on many devices, as a sum of what it computes, sends and waits for; used by `scaling_model.py`."""

import math
from dataclasses import dataclass, replace

from scaling_devices import (
    DEVICES,
    MEMORY_SHARE,
    Device,
    all_gather,
    all_reduce,
    checkpoint_bytes,
    hosts_of,
    training_bytes,
)
from scaling_networks import Network

LAST_BUCKET = 25e6  # bytes of gradients that PyTorch's DDP cannot send while backward still runs
OPTIMIZER_BYTES = 40  # a parameter, read and written: AdamW's four arrays, and the average
HOURS_BETWEEN_FAULTS = 50_000  # of one GPU: 419 faults of 16,384 in 54 days (Dubey et al. 2024, section 3.3.4)
DECODED_A_CORE = 450  # pictures/s of one core: JPEG of 341 x 256 to 224 pixels by Pillow, 2.0 to 2.2 ms (docs/log.md)
CORES_A_DEVICE = 12  # of a GPU host that decode
SAMPLE_BYTES = 25e3  # a JPEG of 256 pixels and its caption: LAION-400M's 10 TB


@dataclass(frozen=True)
class Run:
    """A training: `batch` is rows a device and step, `utilisation` what the products reach of the bfloat16 peak."""

    network: Network
    samples: float
    device: str
    devices: int
    batch: int
    utilisation: float
    recompute: bool = False
    sharded: bool = False
    gathered: int = 4  # bytes of each weight that FSDP gathers; Codebrush's travel in float32
    straggling: float = 0.0  # how much longer a step takes with each doubling of the hosts
    decodes: bool = True  # pictures from JPEG, not codes computed before
    per_host: int = 0  # devices, where they are not the usual number
    outside: float = 0.0  # bytes/s of a device to other hosts, where it is not the usual
    cores: int = CORES_A_DEVICE  # that decode for a device

    @property
    def kind(self) -> Device:
        kind = DEVICES[self.device]
        return replace(kind, per_host=self.per_host or kind.per_host, network=self.outside or kind.network)

    @property
    def hosts(self) -> int:
        return hosts_of(self.kind, self.devices)

    @property
    def step_flops(self) -> float:
        """FLOPs of one device's step, those that are computed again included."""
        net, rows = self.network, self.batch
        logits = 12.0 * rows * rows * self.devices * net.features  # its rows and columns against all, three passes
        return rows * (net.forward * (4 if self.recompute else 3) + net.extra) + logits


@dataclass(frozen=True)
class Step:
    """Seconds of a step: products, the optimizer, communication that nothing hides, waiting for the slowest host, and
    for data beyond all those."""

    products: float
    optimizer: float
    exposed: float
    straggling: float
    data: float
    sent: float  # bytes that each device sends

    @property
    def seconds(self) -> float:
        return self.products + self.optimizer + self.exposed + self.straggling + self.data

    @property
    def bottleneck(self) -> str:
        if self.data:  # all the rest waits for it
            return "data"
        parts = {"communication": self.exposed + self.straggling, "compute": self.products}
        return max(parts, key=lambda name: parts[name])


def communication(run: Run, products: float) -> tuple[float, float]:
    """Seconds of it that nothing hides, and bytes that each device sends.

    DDP sends gradients in float32 while backward runs, but for the last bucket; FSDP gathers weights twice and
    scatters gradients in float32, under all products but the first layer's gather. Embeddings are gathered, and their
    gradients scattered back, in float32 while nothing else can run.
    """
    device, devices, size = run.kind, run.devices, run.network.parameters
    share = (devices - 1) / devices
    if run.sharded:
        gathering = all_gather(run.gathered * size, device, devices)
        seconds, sent = 2 * gathering + all_gather(4 * size, device, devices), (2 * run.gathered + 4) * size
        first = all_gather(run.gathered * size / run.network.layers, device, devices)
        exposed = max(seconds - products, first)
    else:
        seconds, sent = all_reduce(4 * size, device, devices), 8 * size
        backward = products * (3 / 4 if run.recompute else 2 / 3)
        exposed = max(seconds - backward, all_reduce(min(LAST_BUCKET, 4 * size), device, devices))
    features = 4.0 * 2 * run.batch * devices * run.network.features  # of pictures and of texts
    gathered = 2 * all_gather(features, device, devices) if features else 0.0
    return exposed + gathered, share * (sent + 2 * features)


def step(run: Run) -> Step:
    products = run.step_flops / (run.kind.bf16 * run.utilisation)
    held = run.network.parameters / (run.devices if run.sharded else 1)
    optimizer = OPTIMIZER_BYTES * held / run.kind.bandwidth
    exposed, sent = communication(run, products)
    straggling = (products + optimizer) * ((1 + run.straggling) ** math.log2(run.hosts) - 1)
    busy = products + optimizer + exposed + straggling
    loaded = run.batch / (DECODED_A_CORE * run.cores) if run.decodes else 0.0
    return Step(products, optimizer, exposed, straggling, max(0.0, loaded - busy), sent)


def throughput(run: Run) -> float:
    """Samples a second of all devices."""
    return run.batch * run.devices / step(run).seconds


def hours(run: Run) -> float:
    return run.samples / throughput(run) / 3600


def utilisation(run: Run, seconds: float) -> float:
    """What the products reached of the peak in a run whose steps took `seconds`: that with which the model says so."""
    low, high = 1e-3, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if step(replace(run, utilisation=middle)).seconds < seconds else (middle, high)
    return (low + high) / 2


def memory(run: Run) -> float:
    """Bytes a device needs."""
    net = run.network
    kept = net.inputs + net.activations / net.layers / max(1, run.batch) if run.recompute else net.activations
    logits = 4.0 * 2 * run.batch * run.devices * (2 if net.features else 0)
    return training_bytes(net.parameters, run.devices if run.sharded else 1) + run.batch * (kept + logits)


def fits(run: Run) -> bool:
    return memory(run) <= run.kind.memory * MEMORY_SHARE


def money(run: Run) -> float:
    return hours(run) * run.devices * run.kind.price


def checkpoints(run: Run, written: float = 2e9) -> tuple[float, float]:
    """Seconds between checkpoints that lose least (Young 1974), and the share of time that writing and faults cost;
    each host writes `written` bytes/s, one copy of the state in all."""
    writing = checkpoint_bytes(run.network.parameters) / (written * run.hosts)
    between_faults = HOURS_BETWEEN_FAULTS * 3600 / run.devices
    every = math.sqrt(2 * writing * between_faults)
    return every, writing / every + every / 2 / between_faults


def cores_needed(run: Run) -> float:
    """Cores that decode what the devices of the run take."""
    return throughput(run) / DECODED_A_CORE if run.decodes else 0.0
