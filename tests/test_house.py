"""The rules of the house: who may import whom, and what training may never load."""

from __future__ import annotations

import ast
import collections
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Package -> room -> rooms of it that it may import. Read from top to bottom: what comes later may
# import what came before.
MAY_IMPORT = {
    "data_pipelines": {
        "limits": set(),
        "commands": set(),
        "text": set(),
        "config": {"limits"},
        "recipe_files": {"limits"},
        "records": {"commands", "config"},
        "clips": {"config", "records"},
        "stream": {"clips", "commands", "config", "limits", "records", "text"},
        "ingest": {"clips", "commands", "config", "records", "stream", "text"},
        "subset": {"commands", "ingest", "text"},
        "tools": {
            "clips",
            "commands",
            "config",
            "ingest",
            "limits",
            "recipe_files",
            "records",
            "stream",
        },
        "audit": {"commands", "ingest", "records", "tools"},
    },
    "internvideo_jax": {
        "types": set(),
        "commands": set(),
        "protocols": {"types"},
        "tasks": {"protocols", "types"},
        "registry": set(),
        "config": {"protocols", "registry", "tasks"},
        "runtime": {"config"},
        "parallel": {"config", "types"},
        "ops": {"registry", "types"},
        "optim": {"config", "ops", "types"},
        "telemetry": {"parallel", "protocols", "registry", "types"},
        "objectives": {"config", "ops", "parallel", "protocols", "tasks", "types"},
        "layers": {"ops", "parallel", "protocols", "registry", "types"},
        "weights": {"registry"},
        "families": {
            "config",
            "layers",
            "ops",
            "parallel",
            "protocols",
            "registry",
            "types",
            "weights",
        },
        "checkpoint": {"config", "ops", "parallel", "protocols", "types", "weights"},
        "inference": {"checkpoint", "config", "ops", "parallel", "protocols", "types"},
        "evaluators": {
            "config",
            "inference",
            "ops",
            "optim",
            "parallel",
            "protocols",
            "registry",
            "tasks",
            "telemetry",
            "types",
        },
        "recipes": {
            "checkpoint",
            "config",
            "evaluators",
            "objectives",
            "protocols",
            "registry",
            "tasks",
            "weights",
        },
        "run": {
            "checkpoint",
            "config",
            "evaluators",
            "inference",
            "ops",
            "optim",
            "parallel",
            "protocols",
            "runtime",
            "tasks",
            "telemetry",
            "types",
        },
        "api": {
            "checkpoint",
            "config",
            "evaluators",
            "inference",
            "parallel",
            "protocols",
            "recipes",
            "run",
            "types",
            "weights",
        },
        "cli": {"config", "recipes", "registry"},
        "compile_check": {
            "checkpoint",
            "config",
            "inference",
            "ops",
            "parallel",
            "protocols",
            "registry",
            "run",
            "types",
        },
        "launch": {
            "checkpoint",
            "cli",
            "commands",
            "compile_check",
            "config",
            "parallel",
            "recipes",
            "telemetry",
        },
    },
}
# Commands: what starts them may import what it needs.
ENTRY_POINTS = {
    "data_pipelines": {"__main__", "synthetic"},
    "internvideo_jax": {
        "__main__",
        "train",
        "evaluate",
        "offline",
        "search",
        "reference",
        "adapt",
    },
}
# Third-party package -> the only rooms that may import it.
OWNERS = {
    "flax": {"layers", "families"},
    "optax": {"optim"},
    "orbax": {"checkpoint"},
    "tensorstore": {"checkpoint"},
    "ml_collections": {"cli", "configs", "recipes"},
    "clu": {"telemetry"},
    "av": {"ingest", "synthetic", "benchmarks"},
    "grain": {"stream", "ingest"},
    "matplotlib": {"telemetry"},
    "jinja2": {"telemetry", "search"},
    "mteb": {"api"},
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
    """The room of one of the packages that a file is in; outside of these, its top folder."""
    top, *parts = path.relative_to(ROOT).parts
    if top not in MAY_IMPORT:
        return top
    return "__main__" if path.stem == "__main__" else parts[0].removesuffix(".py")


SOURCES = [
    path
    for top in ("internvideo_jax", "data_pipelines", "configs", "scripts", "benchmarks")
    for path in sorted((ROOT / top).rglob("*.py"))
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path):
    package, here = path.relative_to(ROOT).parts[0], room(path)
    for name in imports(path):
        top, *rest = name.split(".")
        assert top not in NEVER, f"{path}: imports {name}"
        assert top != "torch" or path == TORCH_READER or here == "benchmarks", (
            f"{path}: imports torch"
        )
        if top in OWNERS:
            assert here in OWNERS[top], f"{path}: only {OWNERS[top]} may import {top}"
        if package == "data_pipelines":
            assert top not in ("jax", "flax", "internvideo_jax"), f"{path}: imports {name}"
        if top == package and here in MAY_IMPORT.get(package, {}):
            target = rest[0] if rest else ""
            allowed = MAY_IMPORT[package][here] | {here, "__version__", ""}
            assert target in allowed, f"{path}: {here} may not import {target}"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_every_room_has_a_rule(package):
    rooms = {room(path) for path in (ROOT / package).rglob("*.py") if "configs" not in path.parts}
    assert rooms - {"__init__"} == set(MAY_IMPORT[package]) | ENTRY_POINTS[package]


def arrows(package: str) -> dict[str, set[str]]:
    """Room -> rooms of the package that it imports, in functions too."""
    found: dict[str, set[str]] = {}
    for path in (path for path in SOURCES if path.relative_to(ROOT).parts[0] == package):
        names = (name.split(".") for name in imports(path))
        targets = {rest[0] for top, *rest in names if top == package and rest}
        found.setdefault(room(path), set()).update(targets - {room(path)})
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_rooms_import_each_other_in_a_circle(package):
    left = arrows(package)
    while free := [here for here, targets in left.items() if not targets & left.keys()]:
        left = {here: targets for here, targets in left.items() if here not in free}
    assert not left, f"in a circle, or behind one: {', '.join(left)}"


def test_no_files_import_each_other_in_a_circle():
    """In functions and for types too: what needs each other belongs together."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in SOURCES}
    left: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = set(imports(path))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {f"{node.module}.{name.name}" for name in node.names}
        left[module] = (names & modules.keys()) - {module}
    while free := [here for here, targets in left.items() if not targets & left.keys()]:
        left = {here: targets for here, targets in left.items() if here not in free}
    while free := [here for here in left if not any(here in each for each in left.values())]:
        left = {here: targets for here, targets in left.items() if here not in free}
    assert not left, f"in a circle, or between two: {', '.join(left)}"


def test_no_drawers():
    for path in SOURCES:
        assert path.stem not in ("utils", "common", "helpers", "misc"), path
        lines = len(path.read_text().splitlines())
        assert lines <= 450, f"{path} has {lines} lines: is there a second room in it?"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_is_longer_than_a_screen_or_two(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= 80, f"{path}: {node.name} has {lines} lines: what are its parts?"


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


def test_no_two_classes_have_one_name():
    """Of the packages; a recipe's own `Recipe`, and what is private to a file, may repeat."""
    found = collections.defaultdict(list)
    for path in SOURCES:
        top, *parts = path.relative_to(ROOT).parts
        for node in ast.walk(ast.parse(path.read_text())) if top in MAY_IMPORT else ():
            if isinstance(node, ast.ClassDef) and node.name[0] != "_" and "configs" not in parts:
                found[node.name].append(path.name)
    assert {name: files for name, files in found.items() if len(files) > 1} == {}
