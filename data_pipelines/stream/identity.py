"""What identifies a data stream, and how two of them differ."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any


def digest(identity: Mapping[str, Any]) -> str:
    """Digest of everything that decides which pixels come at which position."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(
    found: Mapping[str, Any], stored: Mapping[str, Any], whose: str = "the checkpoint has"
) -> list[str]:
    """One line per differing field, nested ones as `mixture.k400.weight`; empty when alike.

    Args:
      whose: what is said of the stored values.
    """
    here, there = _flat(found), _flat(stored)
    return [
        f"{key}: found {here.get(key, 'nothing')!r}, {whose} {there.get(key, 'nothing')!r}"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key)
    ]


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            # As JSON has it, so that a stored list equals a tuple.
            flat[f"{prefix}{key}"] = json.loads(json.dumps(value))
    return flat


def class_difference(data: Sequence[str], other: Sequence[str], whose: str) -> str:
    """How the class list of the data differs from another one; empty when alike.

    The number of classes where it differs, the first place where the lists part, and whether they
    hold the same names in another order.

    Args:
      whose: whose the other list is, such as "the checkpoint".
    """
    for i, (here, there) in enumerate(itertools.zip_longest(data, other)):
        if here != there:
            found, stored = ("absent" if name is None else repr(name) for name in (here, there))
            counts = f"{len(data)} classes in the data, {len(other)} in {whose}; "
            order = "; the names are the same, their order is not"
            return (
                f"{counts if len(data) != len(other) else ''}class {i} is {found} in the data, "
                f"{stored} in {whose}{order if sorted(data) == sorted(other) else ''}"
            )
    return ""
