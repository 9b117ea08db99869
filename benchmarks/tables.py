"""Markdown tables of a folder of results, as `benchmarks/on_a_gpu.py` writes it, for docs/performance.md.

Usage: python benchmarks/tables.py benchmarks/results/<device>
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    print(f"## {summary['device']}\n")
    for part, state in summary["parts"].items():
        print(f"- {part}: {state}")
    for part in summary["parts"]:
        file = folder / f"{part}.jsonl"
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
        if lines:
            print(f"\n### {part}\n\n" + "\n".join(table(lines)))


def table(lines: list[dict[str, Any]]) -> Iterator[str]:
    """One row per line; figures with a peer have both and their ratio, others their value."""
    yield "| figure | shape | precision | ours | peer | ours is | share of the peak |"
    yield "|---|---|---|---:|---:|---:|---:|"
    for line in lines:
        unit = line.get("unit", "")
        ours, peer = line.get("ours", line.get("value")), line.get("peer")
        if ours is None:
            values = {key: value for key, value in line.items() if key != "figure"}
            ours, unit = json.dumps(values), ""
        precision = line.get("precision") or line.get("dtype") or ""
        times = f"{line['peer/ours']:.2f}×" if "peer/ours" in line else ""
        share = f"{line['mfu']:.0%}" if line.get("mfu") else ""
        cells = [line["figure"], line.get("shape", ""), precision, number(ours, unit), number(peer, unit), times, share]
        yield "| " + " | ".join(cells) + " |"


def number(value: Any, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:.4g} {unit}".strip() if isinstance(value, float) else f"{value} {unit}".strip()


if __name__ == "__main__":
    main()
