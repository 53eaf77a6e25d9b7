"""The rules of the house: who may import whom, and what training may never load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Room -> rooms of internvideo_jax that it may import. Read from bottom to top.
MAY_IMPORT = {
    "types": set(),
    "registry": set(),
    "config": {"registry"},
    "interrupt": set(),
    "recipes": {"config", "evaluators", "objectives"},
    "watchdog": {"config"},
    "launch": {"checkpoint", "parallel"},
    "ops": {"types", "config", "registry"},
    "masking": {"types"},
    "parallel": {"types", "config"},
    "models": {"types", "config", "registry", "ops", "masking", "parallel"},
    "objectives": {"types", "config", "registry", "ops", "masking", "parallel"},
    "optim": {"types", "config"},
    "weights": {"types", "registry", "ops", "models"},
    "checkpoint": {"types", "config", "ops", "parallel", "weights"},
    "telemetry": {"types", "parallel"},
    "evaluators": {
        "types",
        "config",
        "registry",
        "ops",
        "masking",
        "parallel",
        "optim",
        "telemetry",
    },
    "guard": {"types", "checkpoint"},
    "state": {"types", "config", "optim", "parallel"},
    "target_cache": {"config"},
    "small": {"config"},
    "build": {
        "types",
        "config",
        "optim",
        "parallel",
        "small",
        "state",
        "target_cache",
        "telemetry",
    },
    "step": {"types", "build", "optim", "parallel", "state"},
    "loading": {"config", "registry", "checkpoint", "weights"},
    "cli": {"config", "registry", "loading"},
    "tools": {
        "types",
        "config",
        "registry",
        "ops",
        "parallel",
        "state",
        "build",
        "step",
        "cli",
    },
}
ENTRY_POINTS = {"train", "evaluate", "by_shard", "extract", "score", "teach", "demo", "predict"}
# Third-party package -> the only rooms that may import it.
OWNERS = {
    "flax": {"models"},
    "optax": {"optim"},
    "orbax": {"checkpoint"},
    "ml_collections": {"cli", "configs", "loading"},
    "clu": {"telemetry"},
    "av": {"data_pipelines", "benchmarks"},
    "grain": {"data_pipelines"},
    "matplotlib": {"telemetry"},
    "jinja2": {"telemetry", "demo"},
}
NEVER = {"tensorflow", "tensorflow_datasets"}
# torch: only where .pth files are read, and as a peer of benchmarks; only when asked for.
TORCH_READER = ROOT / "internvideo_jax/weights/torch_files.py"


def imports(path: Path) -> Iterator[str]:
    """Dotted name of every import in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if base in ("internvideo_jax", "data_pipelines"):
                for name in node.names:
                    yield f"{base}.{name.name}"
            else:
                yield base


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    if path.stem == "__main__" and parts[0] == "internvideo_jax":
        return "train"  # an entry point like the others
    if parts[0] != "internvideo_jax":
        return parts[0]
    return parts[1].removesuffix(".py")


SOURCES = [
    path
    for top in ("internvideo_jax", "data_pipelines", "configs", "scripts", "benchmarks")
    for path in sorted((ROOT / top).rglob("*.py"))
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path):
    here = room(path)
    for name in imports(path):
        top, *rest = name.split(".")
        assert top not in NEVER, f"{path}: imports {name}"
        assert top != "torch" or path == TORCH_READER or here == "benchmarks", (
            f"{path}: imports torch"
        )
        if top in OWNERS:
            assert here in OWNERS[top], f"{path}: only {OWNERS[top]} may import {top}"
        if here == "data_pipelines":
            assert top not in ("jax", "flax", "internvideo_jax"), f"{path}: imports {name}"
        if top == "internvideo_jax" and here in MAY_IMPORT:
            target = rest[0] if rest else ""
            allowed = MAY_IMPORT[here] | {here, "__version__", ""}
            assert target in allowed, f"{path}: {here} may not import {target}"


def test_every_room_has_a_rule():
    rooms = {room(path) for path in (ROOT / "internvideo_jax").rglob("*.py")} - {"__init__"}
    assert rooms == set(MAY_IMPORT) | ENTRY_POINTS


def test_no_drawers():
    for path in SOURCES:
        assert path.stem not in ("utils", "common", "helpers", "misc"), path
        lines = len(path.read_text().splitlines())
        assert lines <= 450, f"{path} has {lines} lines: is there a second room in it?"


def test_training_loads_neither_tensorflow_nor_torch():
    code = (
        "import sys, internvideo_jax.train, internvideo_jax.evaluate, data_pipelines.ingest;"
        "print([m for m in ('tensorflow', 'torch', 'av') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_nothing_names_a_private_place():
    """No absolute path of a developer's machine in anything that is committed."""
    for path in SOURCES + sorted((ROOT / "docs").rglob("*.md")) + [ROOT / "README.md"]:
        if path.exists():
            text = path.read_text()
            assert "/root/" not in text and "/home/" not in text, path
