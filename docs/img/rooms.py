"""Draw docs/img/rooms.svg, the packages by layer: python docs/img/rooms.py [FILE.svg|FILE.png]."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[2]
INK, GREY = "#1b1f24", "#6b7280"
ENGINE, REST = "#fef3c7", "#dbeafe"
IN_THE_ENGINE = (
    "algorithms", "codecs", "islands", "exchanges", "ledger", "peers", "rounds", "recovery", "outer",
)  # fmt: skip
WIDTH, HEIGHT, GAP = 16.0, 0.72, 0.12


def layers() -> list[tuple[str, list[str]]]:
    """(layer, its packages and files), from the lowest, as the page's table has them."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows: dict[str, list[str]] = {}
    for layer, packages in re.findall(r"^\| (L\d+) \| (.+?) \|", page, re.MULTILINE):
        rows.setdefault(layer, []).extend(re.findall(r"`([a-z_]+)(?:/|\.py)?`", packages))
    return list(rows.items())


def lines(name: str) -> int:
    """Of Python, in a package or a file."""
    package = ROOT / "lowcomm" / name
    files = package.rglob("*.py") if package.is_dir() else [package.with_suffix(".py")]
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)


def draw(file: Path) -> None:
    """All layers, the lowest at the bottom; a room's width goes with the root of its lines."""
    rows = layers()
    figure, axes = plt.subplots(figsize=(11, 0.55 * len(rows) + 0.6))
    for floor, (layer, names) in enumerate(rows):
        axes.text(-0.3, floor + HEIGHT / 2, layer, ha="right", va="center", fontsize=9, color=GREY)
        sizes = [max(lines(name), 150) ** 0.5 for name in names]
        unit, left = (WIDTH - GAP * (len(names) - 1)) / sum(sizes), 0.0
        for name, size in zip(names, sizes, strict=True):
            colour = ENGINE if name in IN_THE_ENGINE else REST
            room = plt.Rectangle((left, floor), unit * size, HEIGHT, facecolor=colour, edgecolor=INK, lw=0.8)
            axes.add_patch(room)
            middle = left + unit * size / 2
            axes.text(middle, floor + HEIGHT / 2, name, ha="center", va="center", fontsize=7.5, color=INK)
            left += unit * size + GAP
    axes.set_xlim(-1.2, WIDTH + 0.1)
    axes.set_ylim(-0.2, len(rows))
    axes.axis("off")
    figure.tight_layout(pad=0.3)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else {})


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg"))
