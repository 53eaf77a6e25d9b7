"""The smallest clip of a model in tests: the settings that all models with pixels have."""

from __future__ import annotations

from typing import Any


def clip(**changes: Any) -> dict[str, Any]:
    return {"frames": 4, "resolution": 16, "patch": 8, "dtype": "float32", **changes}
