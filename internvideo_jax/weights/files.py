"""Reading weight files of any wrapping, and writing safetensors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from internvideo_jax.registry import MODELS, suggest
from internvideo_jax.weights import (
    finite,
    folders,
    formats,
    hub_config,
    safetensors_files,
    torch_files,
    wrappers,
)
from internvideo_jax.weights.family import Names, Recognised, families, kinds, recognise
from internvideo_jax.weights.hub_config import Stated
from internvideo_jax.weights.rules import Coverage, Tensors, check_complete, to_ours, to_torch

FORMAT = "internvideo_jax"
STATED = "stated"  # in the header of our own files: JSON, what a folder of Hugging Face said


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters by our paths, with what is known about them."""

    kind: str  # name of the model in the registry
    params: Tensors  # path -> array
    geometry: Mapping[str, int]  # patch, and tubelet where the model has one
    coverage: Coverage | None = None  # for converted torch files
    layout: str = ""  # `huggingface`; empty: the original names, or ours
    place: str = wrappers.TOP  # where in the file they lay
    elsewhere: tuple[str, ...] = ()  # other weights in the file
    stated: Stated = Stated()  # what the folder of Hugging Face says beside them


def load(path: str | Path, key: str = "") -> Weights:
    """Reads a `.safetensors` (torch names or ours) or torch `.pth` / `.pyth` / `.pt` / `.bin` file.

    Values that are NaN or infinite are read like others; `not_finite` names them.

    Args:
      path: the file, an index of several, or a folder of Hugging Face that holds one of these.
      key: where in a torch file the weights lie, as `model_ema` or `a.b`; empty = find them.

    Raises:
      ValueError: not readable, damaged, not whole, or the weights of no model we know.
    """
    path = folders.weight_file(Path(path))
    place, elsewhere = wrappers.TOP, ()
    form = formats.check_format(path)
    if form == "torch":
        tensors, place, elsewhere = torch_files.read(path, key)
    elif key:
        raise ValueError(f"{path}: --key {key} is for torch files; this one is flat")
    elif form == "index":
        tensors = folders.read_index(path, _read_part)
    else:
        tensors, metadata = safetensors_files.read(path)
        if metadata.get("format") == FORMAT:
            return _ours(path, tensors, metadata)
    wrappers.refuse_foreign(path, {name: each.dtype.name for name, each in tensors.items()})
    tensors = strip_prefixes(tensors)
    found = recognise(tensors)
    if found is None:
        first = ", ".join(list(tensors)[:4])
        known = "; ".join(kind.title for kind in kinds().values() if kind.title)
        raise ValueError(
            f"{path}: not the weights of a known model; {len(tensors)} tensors, first {first}. "
            f"Known: {known}"
        )
    names = found.names
    stated = _stated(path.parent, found)
    try:
        _refuse_mixture(found)
        params, coverage = to_ours(found.tensors, names.rules, names.ignored)
        check_complete(params, names.rules, names.optional)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    hub_config.check_shapes(stated, params, str(path.parent / hub_config.CONFIG))
    geometry = found.geometry()
    kind = found.kind.name
    return Weights(kind, params, geometry, coverage, found.layout, place, tuple(elsewhere), stated)


def _stated(folder: Path, found: Recognised) -> Stated:
    """What lies beside weights with the names of transformers; ValueError where it asks for more.

    Of weights with other names it is of no concern.
    """
    layout = found.family.huggingface if found.layout else None
    config = hub_config.read(folder) if layout is not None else None
    if layout is None or config is None:
        return Stated()
    said = layout.stated(found.kind.name, config)
    seen, stride = hub_config.pixels(folder)
    return dataclasses.replace(said, settings={**said.settings, **seen}, stride=stride)


def _read_part(path: Path) -> Tensors:
    """The tensors of one of several files."""
    form = formats.check_format(path)
    if form == "index":
        raise ValueError(f"{path}: JSON, not weights")
    return torch_files.read(path, "")[0] if form == "torch" else safetensors_files.read(path)[0]


def _ours(path: Path, tensors: Tensors, metadata: Mapping[str, str]) -> Weights:
    """A file that `save_ours` wrote; ValueError where its header is not what that writes."""
    known, kind = {*MODELS, *kinds()}, metadata.get("kind", "")
    if kind not in known:
        raise ValueError(f"{path}: its header names the model {kind!r}: {suggest(kind, known)}")
    try:
        geometry = json.loads(metadata.get("geometry", ""))
    except (ValueError, RecursionError):
        geometry = None
    if not isinstance(geometry, dict) or not all(
        _is_setting(name, value) for name, value in geometry.items()
    ):
        raise ValueError(
            f"{path}: its header has the geometry {metadata.get('geometry', '')[:60]!r}; expected "
            'JSON such as {"tubelet": 2, "patch": 16}'
        )
    return Weights(kind, tensors, geometry, stated=_stated_of(path, metadata))


def _stated_of(path: Path, metadata: Mapping[str, str]) -> Stated:
    """What `save_ours` wrote of the model beside its weights."""
    if STATED not in metadata:
        return Stated()
    try:
        content = json.loads(metadata[STATED])
        settings = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content["settings"].items()
        }
        classes = tuple(content["classes"])
        return Stated(settings, classes, stride=int(content["stride"]))
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise ValueError(f"{path}: damaged header, {STATED} cannot be read ({error})") from error


def _is_setting(name: str, value: object) -> bool:
    """Whether a value of the geometry can be one: sizes are whole numbers, others are plain."""
    if name not in ("tubelet", "patch", "frames", "size"):
        return isinstance(value, str | int | float)
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1 << 16


def not_finite(weights: Weights) -> str:
    """A line on the weights that are NaN or infinite, by their names in the file; empty if none."""
    if weights.coverage is None:
        return finite.describe(weights.params, len(weights.params))
    bad = {path: value for path, value in weights.params.items() if finite.broken(value)}
    if not bad:
        return ""
    names = next(
        names
        for layout, kind, names in _layouts()
        if (layout, kind) == (weights.layout, weights.kind)
    )
    torch = to_torch(bad, names.rules, weights.geometry)
    return finite.describe(torch, len(weights.coverage.consumed))


def _layouts() -> list[tuple[str, str, Names]]:
    """All names that files may have: layout, kind, names."""
    return [
        (layout, kind.name, names)
        for family in families()
        for layout, kind, names in family.layouts()
    ]


def _refuse_mixture(found: Recognised) -> None:
    """Raises ValueError when what one kind leaves over are parameters of another kind."""
    left = [name for name in found.tensors if not found.names.knows(name)]
    for _, other, names in _layouts() if left else ():
        theirs = [name for name in left if names.converts(name)]
        if names is not found.names and len(theirs) > 1 and 2 * len(theirs) >= len(left):
            raise ValueError(
                f"a mixture: {len(found.tensors) - len(left)} tensors of {found.kind.name} and "
                f"{len(theirs)} that belong to {other}, first {theirs[0]}; save one model to a file"
            )


def check_out(path: str | Path, ours: bool = False) -> None:
    """ValueError, before any work, for a file name that is not what would be written to it.

    Args:
      ours: written by `save_ours`, else by `save_torch`.
    """
    path = Path(path)
    known = (".safetensors",) if ours else (".safetensors", *formats.TORCH_SUFFIXES)
    if path.suffix not in known:
        raise ValueError(f"--out {path}: expected a file name that ends in {' or '.join(known)}")
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else "would be in a folder that does not exist"
        raise ValueError(f"--out {path}: {what}; expected the name of a file to write")


def save_ours(path: str | Path, weights: Weights) -> None:
    """Writes our paths to safetensors with checksums; the dtype of every tensor is kept."""
    contiguous = {name: np.asarray(value, order="C") for name, value in weights.params.items()}
    metadata = {
        "format": FORMAT,
        "kind": weights.kind,
        "geometry": json.dumps(dict(weights.geometry)),
    }
    if (said := weights.stated).settings:
        content = {"settings": said.settings, "classes": said.classes, "stride": said.stride}
        metadata[STATED] = json.dumps(content)
    checksums = json.dumps(safetensors_files.checksums(contiguous, metadata))
    known = {safetensors_files.CHECKSUMS: checksums}
    safetensors_files.write(path, contiguous, metadata | known)


def save_torch(path: str | Path, weights: Weights) -> int:
    """Writes the original torch names; returns the number of tensors.

    The ending decides: a torch file for `.pth`, `.pyth`, `.pt` and `.bin`, else safetensors.
    """
    known = kinds()
    if weights.kind not in known:
        raise ValueError(f"{weights.kind} has no torch names: {suggest(weights.kind, known)}")
    tensors = to_torch(weights.params, known[weights.kind].names.rules, weights.geometry)
    if Path(path).suffix in formats.TORCH_SUFFIXES:
        with safetensors_files.replaced(path) as temporary:
            torch_files.write(temporary, tensors)
    else:
        safetensors_files.write(path, tensors, {"format": "pt"})
    return len(tensors)


def strip_prefixes(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Removes wrapper prefixes that all names share."""
    return {short: tensors[name] for name, short in wrappers.strip_prefixes(tensors).items()}
