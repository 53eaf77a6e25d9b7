"""What a run leaves about itself: versions, revision, digests."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from internvideo_jax import __version__
from internvideo_jax.parallel.multihost import to_host
from internvideo_jax.types import (
    Params,
    Tree,
    flatten_paths,
)
from internvideo_jax.weights.named import origin

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    found = {"internvideo_jax": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        found[package] = importlib.metadata.version(package)
    return found


def git_revision() -> str:
    """Commit of the source tree, `-dirty` with local changes, empty outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
        return result.stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def weights_provenance(checkpoint: str, params: Params) -> dict[str, Any]:
    """Which weights made a result, and with what; collective over processes."""
    return {
        "checkpoint": origin(checkpoint),
        "params_digest": params_digest(params),
        "versions": versions(),
        "git": git_revision(),
    }


def describe_tree(tree: Tree) -> dict[str, str]:
    """path -> `float32(4, 96)` for every leaf."""
    return {
        path: f"{np.dtype(leaf.dtype).name}{tuple(leaf.shape)}"
        for path, leaf in flatten_paths(tree).items()
    }


def first_difference(found: dict[str, str], expected: dict[str, str]) -> str:
    """Human-readable list of the first differing paths; empty when the trees agree."""
    lines = []
    for path in sorted(found.keys() | expected.keys()):
        here, there = found.get(path, "absent"), expected.get(path, "absent")
        if here != there:
            lines.append(f"  {path}: found {here}, expected {there}")
    more = f"\n  and {len(lines) - 5} more" if len(lines) > 5 else ""
    return "\n".join(lines[:5]) + more


def params_digest(params: Params) -> str:
    """sha256 over names, shapes and bytes of all parameters; collective over processes."""
    return digest_of((path, to_host(leaf)) for path, leaf in sorted(flatten_paths(params).items()))


def digest_of(arrays: Iterable[tuple[str, Any]]) -> str:
    """As `params_digest`, of arrays that this process has whole, in the order of their paths."""
    digest = hashlib.sha256()
    for path, array in arrays:
        value = np.ascontiguousarray(array)
        digest.update(f"{path} {value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()[:16]


def devices() -> dict[str, Any]:
    """Kind and number of the devices, and of the hosts."""
    first = jax.devices()[0]
    return {"kind": first.device_kind, "count": jax.device_count(), "hosts": jax.process_count()}
