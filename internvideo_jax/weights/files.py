"""Reading weight files of any wrapping, and writing safetensors."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from internvideo_jax.weights import (
    clip,
    huggingface,
    internvideo2,
    internvl,
    umt,
    uniformerv2,
    viclip,
    videomae,
    vit,
    wrappers,
)
from internvideo_jax.weights.rules import Coverage, Tensors, check_complete, to_ours, to_torch

FORMAT = "internvideo_jax"
FAMILIES = (videomae, umt, uniformerv2, viclip, internvideo2, internvl, clip, vit)
# Families whose files also come under other names. The kinds, and so our paths, are the same.
LAYOUTS = {"huggingface": (huggingface,)}


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters by our paths, with what is known about them."""

    kind: str  # name of the model in the registry
    params: Tensors  # path -> array
    geometry: Mapping[str, int]  # patch, and tubelet where the model has one
    coverage: Coverage | None = None  # for converted torch files
    layout: str = ""  # of LAYOUTS; empty: the original names, or ours
    place: str = wrappers.TOP  # where in the file they lay
    elsewhere: tuple[str, ...] = ()  # other weights in the file


def load(path: str | Path, key: str = "") -> Weights:
    """Reads a `.safetensors` (torch names or ours) or torch `.pth` / `.pyth` / `.pt` / `.bin` file.

    Args:
      key: where in a torch file the weights lie, as `model_ema` or `a.b`; empty = find them.

    Raises:
      ValueError: not readable, not whole, or the weights of no model we know.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such weight file")
    place, elsewhere = wrappers.TOP, ()
    if wrappers.check_format(path) == "safetensors":
        tensors, metadata = _read_safetensors(path)
        if metadata.get("format") == FORMAT:
            return Weights(metadata["kind"], tensors, json.loads(metadata["geometry"]))
        if key:
            raise ValueError(f"{path}: --key {key} is for torch files; this one is flat")
    else:
        tensors, place, elsewhere = _read_torch(path, key)
    wrappers.refuse_foreign(path, {name: each.dtype.name for name, each in tensors.items()})
    tensors = strip_prefixes(tensors)
    tensors = {short: tensors[name] for name, short in wrappers.strip_holders(tensors).items()}
    candidates = {"": FAMILIES, **LAYOUTS}
    found = [
        (layout, family, kind)
        for layout, families in candidates.items()
        for family in families
        if (kind := family.recognise(tensors))
    ]
    if not found:
        names = ", ".join(list(tensors)[:4])
        raise ValueError(
            f"{path}: not the weights of a known model; {len(tensors)} tensors, first {names}. "
            "Known: VideoMAE, VideoMAE V2 and InternVideo1 pre-training and fine-tuning files, "
            "VideoMAE of Hugging Face transformers, InternVideo2's video encoder, student and "
            "classifier, UniFormerV2, and CLIP as its initial weights"
        )
    layout, family, kind = found[0]
    rules, ignored = family.RULES[kind], family.IGNORED[kind]
    try:
        _refuse_mixture(tensors, kind, family)
        params, coverage = to_ours(tensors, rules, ignored)
        if hasattr(family, "OPTIONAL"):
            check_complete(params, rules, family.OPTIONAL[kind])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    geometry = family.geometry(tensors)
    return Weights(kind, params, geometry, coverage, layout, place, tuple(elsewhere))


def _refuse_mixture(tensors: Mapping[str, np.ndarray], kind: str, family: Any) -> None:
    """Raises ValueError when what one kind leaves over are parameters of another kind."""
    patterns = [*(rule.pattern for rule in family.RULES[kind]), *family.IGNORED[kind]]
    left = [name for name in tensors if not any(re.fullmatch(each, name) for each in patterns)]
    for other_family in (*FAMILIES, *(each for group in LAYOUTS.values() for each in group)):
        for other, rules in other_family.RULES.items():
            if (other_family, other) == (family, kind):
                continue
            theirs = [name for name in left if any(rule.match(name) is not None for rule in rules)]
            if len(theirs) > 1 and 2 * len(theirs) >= len(left):
                raise ValueError(
                    f"a mixture: {len(tensors) - len(left)} tensors of {kind} and {len(theirs)} "
                    f"that belong to {other}, first {theirs[0]}; save one model to a file"
                )


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
    return {short: tensors[name] for name, short in wrappers.strip_prefixes(tensors).items()}


def _read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    try:
        with safe_open(str(path), framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error


def _read_torch(path: Path, key: str) -> tuple[Tensors, str, list[str]]:
    """Tensors of a torch file, where in it they lay, and where else others are."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"{path}: reading torch files needs torch (pip install 'internvideo-jax[torch]'), or "
            "convert the file to safetensors elsewhere"
        ) from error
    content = _torch_load(torch, path)

    def is_tensor(value: Any) -> bool:
        return isinstance(value, torch.Tensor)

    found, place = wrappers.find_tensors(content, is_tensor, path, key)
    quantised = [name for name, value in found.items() if value.is_quantized]
    if quantised:
        raise ValueError(
            f"{path}: quantised weights ({len(quantised)} tensors, first {quantised[0]}); take the "
            "file with floating-point weights"
        )
    tensors = {name: _to_numpy(torch, value) for name, value in found.items()}
    return tensors, place, wrappers.other_places(content, is_tensor, place)


def _to_numpy(torch: Any, value: Any) -> np.ndarray:
    value = value.detach().cpu()
    if value.dtype == torch.bfloat16:  # unknown to numpy, and so to torch's conversion
        return value.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()


def _torch_load(torch: Any, path: Path) -> Any:
    # Published files carry the argparse options of their training script. Nothing else than
    # tensors and this class is unpickled.
    import argparse
    import pickle

    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        unsafe = re.search(r"Unsupported (?:global|class|operand): (?:GLOBAL )?(\S+)", str(error))
        if unsafe:
            raise ValueError(
                f"{path}: holds an object of {unsafe.group(1)}, and unpickling that could run any "
                "code. Where you trust the file, load it with torch and save its state dict alone"
            ) from error
        if "TorchScript" in str(error):  # as OpenAI publishes CLIP
            raise ValueError(
                f"{path}: a TorchScript archive, which is a program. Where you trust it, load it "
                "with torch.jit.load and save its state_dict() alone"
            ) from error
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a readable torch file ({first})") from error
