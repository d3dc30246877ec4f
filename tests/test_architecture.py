"""The arrows of ARCHITECTURE.md, held by the syntax tree and by a fresh interpreter."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "detbench"

# Room -> rooms it may import at the top of a file.
MAY_IMPORT = {
    "errors": set(),
    "parts": {"errors"},
    "overrides": {"errors", "parts"},
    "recipe_text": {"parts"},
    "recipes": {"errors", "parts", "overrides", "recipe_text"},
    "results": {"errors", "parts"},
    "store": {"errors", "results"},
    "runs": {"errors", "parts", "recipe_text", "recipes", "results", "store"},
    "workers": {"errors", "results", "runs", "store"},
    "stopping": {"errors", "parts", "recipes", "results", "runs", "stats", "store", "workers"},
    "ablation": {"errors", "parts", "overrides", "recipe_text", "recipes", "store"},
    "stats": {"metrics"},
    "metrics": set(),
    "benching": {"errors", "parts", "recipe_text", "recipes"},
    "listing": {"errors", "parts", "recipe_text", "recipes", "results", "runs", "store"},
    "live": {"runs", "workers"},
    "report": {
        "errors",
        "parts",
        "recipe_text",
        "recipes",
        "results",
        "store",
        "stats",
        "metrics",
        "data",
        "runs",
    },
    "core": {"errors", "parts"},
    "data": {"errors", "parts", "core", "metrics"},
    "engine": {"errors", "parts", "core", "data", "metrics", "results", "store", "runs", "workers"},
    "cli": {"errors"},
}

TORCH_FREE = [
    "cli", "benching", "listing", "live", "ablation", "recipes", "runs", "results", "store", "stats", "report",
    "metrics.coco", "metrics.crowd", "parts.experiment", "data.coco", "data.odgt", "data.convert", "data.check",
    "data.drawn", "data.fingerprint", "data.images", "data.truth", "report.diff", "recipe_text",
    "stopping",
]  # fmt: skip


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports_at_the_top(path: Path) -> set[str]:
    """Rooms of detbench that a file imports when it is imported; TYPE_CHECKING blocks don't count."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "detbench" else [f"detbench.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("detbench.")}
    return found - {"__version__"}


FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if _room(p) not in {"__init__", "__main__"}]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_room_imports_only_the_rooms_its_arrows_lead_to(path: Path):
    room = _room(path)
    assert room in MAY_IMPORT, f"{room} has no place in ARCHITECTURE.md"
    assert _imports_at_the_top(path) - {room} <= MAY_IMPORT[room]


def test_every_room_of_the_table_exists():
    rooms = {_room(path) for path in FILES}
    assert rooms == set(MAY_IMPORT)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_the_paper_side_imports_no_torch(module: str):
    code = f"import sys, detbench.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
