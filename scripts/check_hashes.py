"""Compares the files that pip installed with hashes.txt; needs nothing but Python, and runs nothing of them.

    pip install --report REPORT ... && python -I -S scripts/check_hashes.py REPORT [--strict]

Of a file that was published, with a name and version that hashes.txt has, another hash means that somebody changed it
on the way. With --strict that ends with status 1, else with a warning: a file that was added to an old version, such as
a wheel for a new Python, is not in the list either. What has no hash there is named.
"""

import argparse
import hashlib
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LIST = Path(__file__).resolve().parents[1] / "hashes.txt"
ENTRY = re.compile(r"^(?:#\+ )?([\w.-]+)==([\w.+!-]+)((?:\s+--hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_list(path: Path) -> dict[tuple[str, str], set[str]]:
    """The hashes of each name and version."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    known: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name, version, hashes in ENTRY.findall(text):
        known[canonical(name), version] |= set(re.findall(r"[0-9a-f]{64}", hashes))
    return known


def hash_of(entry: dict[str, Any]) -> str | None:
    """The sha256 of an installed file; None of a folder."""
    found = entry["download_info"].get("archive_info")
    if found is None:
        return None
    if stated := found.get("hashes", {}).get("sha256"):
        return stated
    place = urlsplit(entry["download_info"]["url"])  # pip states no hash of a file on this machine
    if place.scheme != "file":
        return ""
    with open(unquote(place.path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compare(report: dict[str, Any], known: dict[tuple[str, str], set[str]]) -> tuple[int, list[str], list[str]]:
    """How many files are as published, and the names of those that are not and of those without a hash."""
    same, other, unknown = 0, list[str](), list[str]()
    for entry in report["install"]:
        name, version = entry["metadata"]["name"], entry["metadata"]["version"]
        digest, wanted = hash_of(entry), known.get((canonical(name), version))
        if digest is None:
            continue  # this project, from its folder
        if wanted is None:
            unknown.append(f"{name} {version}")
        elif digest in wanted:
            same += 1
        else:
            other.append(f"{name} {version} from {entry['download_info']['url']}")
    return same, other, unknown


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("report", type=Path)
    asked.add_argument("--strict", action="store_true", help="end with status 1 if a file has another hash")
    options = asked.parse_args()
    same, other, unknown = compare(json.loads(options.report.read_text(encoding="utf-8")), read_list(LIST))
    if options.strict:
        print(f"{same} files are as published" + (f"; without a hash: {', '.join(unknown)}" if unknown else ""))
    for each in other:
        print(f"not a file that was published when hashes.txt was made: {each}", file=sys.stderr)
    return 1 if other and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
