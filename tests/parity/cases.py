"""Golden cases: folders with `case.json`, `io.safetensors` and, for models, `weights.safetensors`.

`IVJ_GOLDEN_DIR` names the folder to search (default: tests/golden). A case belongs to the adapter
whose group and name prefix it carries, whatever its sizes, seeds and options.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

DEFAULT = Path(__file__).parents[1] / "golden"
GROUPS = (
    "downstream",
    "internvideo2_multimodal",
    "internvideo2_stage1",
    "video_language",
    "videomae",
)


@dataclasses.dataclass(frozen=True)
class Case:
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def group(self) -> str:
        return self.folder.parent.name

    @functools.cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads((self.folder / "case.json").read_text())

    @property
    def config(self) -> dict[str, Any]:
        return self.meta["config"]

    @functools.cached_property
    def io(self) -> dict[str, np.ndarray]:
        return load_file(self.folder / "io.safetensors")

    @functools.cached_property
    def weights(self) -> dict[str, np.ndarray]:
        return load_file(self.folder / "weights.safetensors")

    def outputs(self, prefix: str) -> dict[str, np.ndarray]:
        """Expected outputs whose name starts with `prefix`, that prefix cut off."""
        return {k[len(prefix) :]: v for k, v in self.io.items() if k.startswith(prefix)}

    def features(self, found: dict[str, Any], prefix: str = "feat.") -> None:
        """Compares the activations that the case holds, which may be some of ours only."""
        expected = self.outputs(prefix)
        assert set(expected) <= set(found), sorted(set(expected) - set(found))
        for name in expected:
            self.close(f"{prefix}{name}", found[name])

    def close(self, name: str, value: Any, *, gradient: bool = False) -> None:
        """Compares with the stored tensor at the tolerance of case.json."""
        expected = self.io[name]
        np.testing.assert_allclose(
            np.asarray(value).reshape(expected.shape),
            expected,
            atol=self.meta["atol_grad"] if gradient else self.meta["atol"],
            rtol=self.meta["rtol"],
            err_msg=f"{self.name}: {name}",
        )

    def equal(self, name: str, value: Any) -> None:
        np.testing.assert_array_equal(np.asarray(value), self.io[name], err_msg=name)


# Each program runs once on tiny arrays, so that compiling it is nearly all of the time.
quick = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)
Adapter = Callable[[Case], None]
ADAPTERS: dict[tuple[str, str], Adapter] = {}


def adapter(group: str, *prefixes: str) -> Callable[[Adapter], Adapter]:
    """Registers a check for the cases of `group` whose name starts with one of `prefixes`."""

    def register(check: Adapter) -> Adapter:
        for prefix in prefixes:
            ADAPTERS[group, prefix] = check
        return check

    return register


def discover() -> list[Case]:
    root = Path(os.environ.get("IVJ_GOLDEN_DIR", DEFAULT))
    return [Case(path.parent) for path in sorted(root.rglob("case.json"))]


def find_adapter(case: Case) -> Adapter | None:
    """The adapter with the longest matching prefix; a group we never heard of may match any."""
    found = [
        (prefix, check)
        for (group, prefix), check in ADAPTERS.items()
        if case.name.startswith(prefix) and (case.group == group or case.group not in GROUPS)
    ]
    return max(found, key=lambda item: len(item[0]))[1] if found else None
