"""What `codebrush doctor` finds out about a machine and an installation, part by part: see `examine`."""

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from codebrush.models.precision import has_bf16
from codebrush.optional import GIVES, PACKAGES, installed_version
from codebrush.pack.members import MEMBERS, PAINTERS
from codebrush.pack.pack import home, open_pack
from codebrush.pipeline import Codebrush
from codebrush.version import __version__
from codebrush.warned import heard

SECONDS = 5.0  # that measuring takes, on all devices together
ROOM = 1.0  # GB: less is named as a problem; a pack that is trained takes less than half of it
PROMPT = "a red apple"
LIBRARIES = ("torch", "numpy", "Pillow", "pyarrow", "tokenizers", "safetensors", "huggingface_hub", "datasets")
PRODUCT_SIDE = {"cpu": 512, "cuda": 4096}  # of the square matrices that are multiplied
COPIED_BYTES = {"cpu": 128 * 2**20, "cuda": 2**30}  # far more than the caches hold
PAGES = Path("/proc/meminfo")


def examine(
    pack: str | Path = "emoji", *, out: str | Path = "outputs", room: float = ROOM, seconds: float = SECONDS
) -> dict[str, Any]:
    """All that is found out, with a list of `problems`, each a line with its remedy.

    `pack` is opened, each of its models read and one picture drawn; `out` is where pictures would go, which need not
    exist; with less than `room` GB free in a folder that is written to there is a problem; measuring speeds takes
    about `seconds`. A part that fails is {"error": LINE} and among the problems, and the others go on.
    """
    parts: dict[str, Callable[[], Any]] = {
        "versions": _versions,
        "machine": _machine,
        "devices": lambda: _devices(seconds),
        "extras": _extras,
        "pack": lambda: _pack(pack),
        "disk": lambda: _disk(Path(out), room),
    }
    found: dict[str, Any] = {}
    problems: list[str] = []
    for name, part in parts.items():
        try:
            found[name] = part()
        except Exception as error:  # a broken installation fails in ways that nobody can list
            line = " ".join(str(error).split()) or type(error).__name__
            found[name] = {"error": line}
            problems.append(f"{name}: {line}")
    problems += [f"disk: {row['error']}" for row in found["disk"] if "error" in row] if _whole(found["disk"]) else []
    return {**found, "problems": problems, "advice": _advice(found)}


def _whole(part: Any) -> bool:
    return not (isinstance(part, dict) and "error" in part)


def _versions() -> dict[str, str]:
    known = {"codebrush": __version__, "python": platform.python_version(), "system": platform.platform()}
    return {**known, **{name: _version(name) for name in LIBRARIES}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _machine() -> dict[str, Any]:
    """Cores that this process may use, torch's threads, the load of the last minute, and memory in bytes."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"cores": cores, "threads": torch.get_num_threads(), "load": load, **_memory()}


def _memory() -> dict[str, int]:
    """Bytes of memory in all and without swapping available; nothing where the system does not say."""
    if not PAGES.is_file():
        return {}
    lines = (line.split() for line in PAGES.read_text(encoding="ascii").splitlines())
    kilobytes = {words[0]: int(words[1]) for words in lines}
    names = {"memory": "MemTotal:", "memory_available": "MemAvailable:"}
    return {name: kilobytes[key] * 1024 for name, key in names.items() if key in kilobytes}


def _devices(seconds: float) -> list[dict[str, Any]]:
    """Each device with its precisions and speeds; the first is the one that is used where none is asked for."""
    found = [torch.device("cuda", index) for index in range(torch.cuda.device_count())] + [torch.device("cpu")]
    return [_device(device, seconds / len(found)) for device in found]


def _device(device: torch.device, seconds: float) -> dict[str, Any]:
    bfloat16 = has_bf16(device)
    about: dict[str, Any] = {"name": str(device), "model": _model(device), "training": "bf16" if bfloat16 else "fp32"}
    if device.type == "cuda":
        about["memory_available"], about["memory"] = torch.cuda.mem_get_info(device)
    third = seconds / 3
    about["float32_gflops"] = _product_speed(device, torch.float32, third)
    about["bfloat16_gflops"] = _product_speed(device, torch.bfloat16, third)
    about["copy_gb_per_s"] = _copy_speed(device, third)
    return about


def _model(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    named = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
        named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), named)
    return f"{named} ({torch.backends.cpu.get_cpu_capability()})"


@torch.no_grad()
def _product_speed(device: torch.device, kind: torch.dtype, seconds: float) -> float:
    """Billions of operations a second of a product of two square matrices: the fastest of those that fit in."""
    side = PRODUCT_SIDE[device.type]
    matrix = torch.ones(side, side, device=device, dtype=kind) / side
    return 2 * side**3 / _fastest(lambda: matrix @ matrix, device, seconds) / 1e9


@torch.no_grad()
def _copy_speed(device: torch.device, seconds: float) -> float:
    """Billions of bytes a second that are read and written while a tensor is copied."""
    source = torch.zeros(COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _fastest(lambda: target.copy_(source), device, seconds) / 1e9


def _fastest(work: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest run of `work`, of at least one after one that warms up."""
    end, best = time.perf_counter() + seconds, float("inf")
    runs = 0
    while runs < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken = time.perf_counter() - start
        best = taken if runs == 1 else min(best, taken)
        runs += 1
    return best


def _extras() -> list[dict[str, Any]]:
    """Each extra with what it gives, its packages with their versions (None: missing), and how to install it."""
    rows = []
    for extra, gives in GIVES.items():
        packages = {name: installed_version(package) for package, (name, of) in PACKAGES.items() if of == extra}
        there = all(packages.values())
        row = {"extra": extra, "installed": there, "gives": gives, "packages": packages}
        rows.append(row if there else {**row, "install": f'pip install "codebrush[{extra}]"'})
    return rows


def _pack(source: str | Path) -> dict[str, Any]:
    """The pack, with the seconds that it took to read all models and to draw one picture.

    Raises:
        PackError: if there is none, or anything of it is damaged.
    """
    start = time.perf_counter()
    pack = open_pack(source)
    pack.check_tokenizers()
    members = [name for name in MEMBERS if pack.has(name)]
    for name in members:
        getattr(pack, name)
    about: dict[str, Any] = {"name": pack.name, "version": pack.info.get("version"), "folder": str(pack.folder)}
    about |= {"image_size": pack.image_size, "members": members, "read_seconds": time.perf_counter() - start}
    if any(map(pack.has, PAINTERS.values())):
        start = time.perf_counter()
        with heard(lambda text, number: None):  # of what it shows nothing is promised
            (result,) = Codebrush(pack).generate(PROMPT, n=1, rerank=1)
        about |= {"draw_seconds": time.perf_counter() - start, "drawn": list(result.image.size)}
    return about


def _disk(out: Path, room: float) -> list[dict[str, Any]]:
    """Each folder that is written to, with the bytes free there; {"error": LINE} in it with less than `room` GB."""
    rows = []
    for use, folder in (("pictures", out), ("packs", home()), ("temporary files", Path(tempfile.gettempdir()))):
        place = folder.absolute()
        existing = next(each for each in (place, *place.parents) if each.is_dir())
        usage = shutil.disk_usage(existing)
        row = {"use": use, "folder": str(place), "free": usage.free, "size": usage.total}
        if usage.free < room * 1e9:
            free, needed = f"{usage.free / 1e9:.1f} GB", f"less than {room:g} GB"
            row["error"] = f"{free} are free for {use} in {place}, {needed}: free some space, or use another disk"
        elif not os.access(existing, os.W_OK | os.X_OK):
            row["error"] = f"{existing}, for {use}, is read-only: change its permissions, or use another folder"
        rows.append(row)
    return rows


def _advice(found: dict[str, Any]) -> list[str]:
    """What is no fault, but makes things slower than they might be."""
    lines = []
    machine = found["machine"]
    if _whole(machine) and (machine["load"] or 0) > machine["cores"]:
        lines.append(
            f"other programs keep the cores busy (load {machine['load']:.1f} on {machine['cores']}): "
            "speeds are lower than those of a quiet machine"
        )
    if _whole(machine) and machine["threads"] < machine["cores"]:
        lines.append(
            f"torch uses {machine['threads']} of {machine['cores']} cores: OMP_NUM_THREADS={machine['cores']} uses all"
        )
    return lines
