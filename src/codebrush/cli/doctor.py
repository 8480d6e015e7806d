"""`codebrush doctor`: versions, devices, speed, extras, the pack and room on disk, and what is wrong with them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from codebrush.cli.flags.common import JsonOption, PackOption
from codebrush.cli.output.printing import print_json


def doctor(
    pack: PackOption = "emoji",
    out: Annotated[Path, typer.Option(help="Folder where pictures would go.")] = Path("outputs"),
    room: Annotated[float, typer.Option(help="Gigabytes that should be free on each disk.", min=0)] = 1.0,
    json_output: JsonOption = False,
) -> None:
    """Say what is installed and what is wrong: versions, devices and their speed (five seconds), extras, pack, disk.

    The exit status is 1 if there is a problem; a missing extra is none.
    """
    from codebrush.doctor import examine

    report = examine(pack, out=out, room=room)
    if json_output:
        print_json(report)
    else:
        for title, lines in _sections(report).items():
            print(title)
            for line in lines:
                print(f"  {line}")
    if report["problems"]:
        raise typer.Exit(1)


def _sections(report: dict[str, Any]) -> dict[str, list[str]]:
    """The report as titles with lines."""
    sections = {}
    for part, lines in _LINES.items():
        found = report[part]
        failed = isinstance(found, dict) and "error" in found
        sections[part] = [found["error"]] if failed else lines(found)
    if report["advice"]:
        sections["advice"] = report["advice"]
    sections["problems"] = report["problems"] or ["none"]
    return sections


def _version_lines(versions: dict[str, str]) -> list[str]:
    own = [f"{name} {versions[name]}" for name in ("codebrush", "python", "system")]
    return [", ".join(own), ", ".join(f"{name} {number}" for name, number in list(versions.items())[3:])]


def _machine_lines(machine: dict[str, Any]) -> list[str]:
    from codebrush.hub.download import size_text

    load = "" if machine["load"] is None else f", load {machine['load']:.1f}"
    lines = [f"{machine['cores']} cores, {machine['threads']} threads{load}"]
    if "memory" in machine:
        lines.append(f"{size_text(machine['memory'])} of memory, {size_text(machine['memory_available'])} available")
    return lines


def _device_lines(devices: list[dict[str, Any]]) -> list[str]:
    lines = []
    for device in devices:
        lines.append(f"{device['name']}: {device['model']}; trains in {device['training']}")
        lines.append(
            f"  float32 {device['float32_gflops']:.3g} GFLOP/s, bfloat16 {device['bfloat16_gflops']:.3g} GFLOP/s, "
            f"copies {device['copy_gb_per_s']:.3g} GB/s"
        )
    return lines


def _extra_lines(extras: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in extras:
        if row["installed"]:
            lines.append(f"{row['extra']}: {', '.join(f'{name} {number}' for name, number in row['packages'].items())}")
        else:
            lacks = ", ".join(name for name, number in row["packages"].items() if number is None)
            lines.append(f"{row['extra']}: without {lacks}; would give {row['gives']}: {row['install']}")
    return lines


def _pack_lines(pack: dict[str, Any]) -> list[str]:
    version = f" {pack['version']}" if pack["version"] else ""
    drawn = f", one picture drawn in {pack['draw_seconds']:.1f} s" if "draw_seconds" in pack else ""
    return [
        f"{pack['name']}{version} opens: {', '.join(pack['members'])}",
        f"read in {pack['read_seconds']:.1f} s{drawn}; {pack['folder']}",
    ]


def _disk_lines(disk: list[dict[str, Any]]) -> list[str]:
    from codebrush.hub.download import size_text

    return [
        f"{row['use']}: {size_text(row['free'])} of {size_text(row['size'])} free in {row['folder']}" for row in disk
    ]


_LINES = {  # parts of the report -> their lines
    "versions": _version_lines,
    "machine": _machine_lines,
    "devices": _device_lines,
    "extras": _extra_lines,
    "pack": _pack_lines,
    "disk": _disk_lines,
}
