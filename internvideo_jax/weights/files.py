"""Reading weight files of any wrapping, and writing safetensors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from internvideo_jax.weights import clip, uniformerv2, viclip, videomae
from internvideo_jax.weights.rules import Coverage, Tensors, to_ours, to_torch

FORMAT = "internvideo_jax"
FAMILIES = (videomae, uniformerv2, viclip, clip)

# Keys under which training scripts wrap the state dict, in the order that the originals try.
WRAPPERS = ("model", "module", "state_dict", "model_state_dict", "model_state")
# Left by torch.compile and data-parallel wrappers, and by UniFormerV2's training.
PREFIXES = ("_orig_mod.", "module.", "backbone.")


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters by our paths, with what is known about them."""

    kind: str  # name of the model in the registry
    params: Tensors  # path -> array
    geometry: Mapping[str, int]  # patch, and tubelet where the model has one
    coverage: Coverage | None = None  # for converted torch files


def load(path: str | Path) -> Weights:
    """Reads a `.safetensors` (torch names or ours) or torch `.pth` / `.pt` / `.bin` file.

    Raises:
      ValueError: not readable, or the weights of no model we know.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such weight file")
    if path.suffix == ".safetensors":
        tensors, metadata = _read_safetensors(path)
        if metadata.get("format") == FORMAT:
            return Weights(metadata["kind"], tensors, json.loads(metadata["geometry"]))
    else:
        tensors = _read_torch(path)
    tensors = strip_prefixes(tensors)
    found = ((family, family.recognise(tensors)) for family in FAMILIES)
    family, kind = next((pair for pair in found if pair[1]), (None, None))
    if family is None or kind is None:
        names = ", ".join(list(tensors)[:4])
        raise ValueError(
            f"{path}: not the weights of a known model; {len(tensors)} tensors, first {names}. "
            "Known: VideoMAE, VideoMAE V2 and InternVideo1 pre-training and fine-tuning files, "
            "UniFormerV2, and CLIP as its initial weights"
        )
    params, coverage = to_ours(tensors, family.RULES[kind], family.IGNORED[kind])
    return Weights(kind, params, family.geometry(tensors), coverage)


def save_ours(path: str | Path, weights: Weights) -> None:
    """Writes our paths to safetensors; the dtype of every tensor is kept."""
    metadata = {
        "format": FORMAT,
        "kind": weights.kind,
        "geometry": json.dumps(dict(weights.geometry)),
    }
    contiguous = {name: np.asarray(value, order="C") for name, value in weights.params.items()}
    save_file(contiguous, str(path), metadata)


def save_torch(path: str | Path, weights: Weights) -> int:
    """Writes the original torch names to safetensors; returns the number of tensors."""
    rules = {kind: table for family in FAMILIES for kind, table in family.RULES.items()}
    tensors = to_torch(weights.params, rules[weights.kind], weights.geometry)
    save_file(tensors, str(path), {"format": "pt"})
    return len(tensors)


def strip_prefixes(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Removes wrapper prefixes that all names share."""
    found = dict(tensors)
    for prefix in PREFIXES:
        if found and all(name.startswith(prefix) for name in found):
            found = {name[len(prefix) :]: value for name, value in found.items()}
    return found


def _read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    try:
        with safe_open(str(path), framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error


def _read_torch(path: Path) -> Tensors:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"{path}: reading torch files needs torch (pip install 'internvideo-jax[torch]'), or "
            "convert the file to safetensors elsewhere"
        ) from error
    content = _torch_load(torch, path)
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {
        name: value.detach().cpu().numpy()
        for name, value in content.items()
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise ValueError(f"{path}: no tensors found, at the top or under {', '.join(WRAPPERS)}")
    return tensors


def _torch_load(torch: Any, path: Path) -> Any:
    # Published files carry the argparse options of their training script. Nothing else than
    # tensors and this class is unpickled.
    import argparse
    import pickle

    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a readable torch file ({first})") from error
