"""Draws docs/layers.svg: the packages of shared/, their modules and what each imports, read from the code.

`python docs/layers.py` writes the picture; tests/test_imports.py fails while it differs from the code. The rows are the
layers contract of import-linter in pyproject.toml.
"""

import textwrap
import tomllib
from pathlib import Path
from xml.sax.saxutils import escape

import grimp

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "layers.svg"
WIDTH, MARGIN, GAP, LINE, CHARACTER = 1000, 16, 14, 17, 6.4  # pixels
STYLE = """
.package{fill:#eff6ff;stroke:#2563eb;stroke-width:1.5}
.name{font-weight:600;font-size:15px;fill:#0f172a}
.modules{font-size:12px;fill:#334155}
.imports{font-size:12px;fill:#2563eb}
"""


def layers() -> list[list[str]]:
    """The rows, from the top: the packages and modules directly in shared/."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    contract = next(contract for contract in contracts if contract["type"] == "layers")
    return [row.split(" | ") for row in contract["layers"]]


def package_of(module: str) -> str:
    return module.removeprefix("shared.").split(".")[0]


def modules(graph: grimp.ImportGraph, package: str) -> list[str]:
    return sorted(module.rpartition(".")[2] for module in graph.find_children(f"shared.{package}"))


def imports(graph: grimp.ImportGraph, package: str) -> list[str]:
    """The other packages that modules of this one import directly."""
    inside = {f"shared.{package}"} | graph.find_descendants(f"shared.{package}")
    imported = {package_of(other) for module in inside for other in graph.find_modules_directly_imported_by(module)}
    return sorted(imported - {package, "shared"})


def draw() -> str:
    graph = grimp.build_graph("shared", cache_dir=None)
    parts: list[str] = []
    top = MARGIN
    for row in layers():
        width = (WIDTH - 2 * MARGIN - GAP * (len(row) - 1)) // len(row)
        boxes = [_texts(graph, package, width) for package in row]
        height = 12 + LINE * max(len(texts) for texts in boxes)
        for column, texts in enumerate(boxes):
            left = MARGIN + column * (width + GAP)
            parts.append(f'<rect class="package" x="{left}" y="{top}" width="{width}" height="{height}" rx="6"/>')
            for number, (style, text) in enumerate(texts, start=1):
                x, y = left + width // 2, top + LINE * number + 1
                parts.append(f'<text class="{style}" x="{x}" y="{y}">{escape(text)}</text>')
        top += height + GAP
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" text-anchor="middle"'
            ' font-family="Segoe UI, Helvetica, Arial, sans-serif" role="img" aria-labelledby="title">',
            '<title id="title">The layers of shared/: each package imports only packages of lower rows</title>',
            f'<style>{STYLE}</style><rect width="{WIDTH}" height="{top}" fill="#fff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _texts(graph: grimp.ImportGraph, package: str, width: int) -> list[tuple[str, str]]:
    """The lines of a box, each with its style."""
    names, imported = modules(graph, package), imports(graph, package)
    texts = [("name", package if names else f"{package}.py")]
    texts += [("modules", line) for line in textwrap.wrap(", ".join(names), int(width / CHARACTER))]
    if imported:
        texts += [("imports", line) for line in textwrap.wrap("→ " + ", ".join(imported), int(width / CHARACTER))]
    return texts


if __name__ == "__main__":
    PICTURE.write_text(draw())
