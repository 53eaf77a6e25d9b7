"""Small weight files of every form, to be damaged, and the way there and back."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from internvideo_jax.weights import files, torch_files


def small_weights() -> dict[str, np.ndarray]:
    """A VideoMAE classifier of one layer under its torch names."""
    rng = np.random.default_rng(0)
    shapes = {
        "patch_embed.proj.weight": (4, 3, 2, 4, 4),
        "patch_embed.proj.bias": (4,),
        **{f"blocks.0.{name}.weight": (4,) for name in ("norm1", "norm2")},
        **{f"blocks.0.{name}.bias": (4,) for name in ("norm1", "norm2", "attn.proj", "mlp.fc2")},
        "blocks.0.attn.q_bias": (4,),
        "blocks.0.attn.v_bias": (4,),
        "blocks.0.attn.qkv.weight": (12, 4),
        "blocks.0.attn.proj.weight": (4, 4),
        "blocks.0.mlp.fc1.weight": (8, 4),
        "blocks.0.mlp.fc1.bias": (8,),
        "blocks.0.mlp.fc2.weight": (4, 8),
        "fc_norm.weight": (4,),
        "fc_norm.bias": (4,),
        "head.weight": (3, 4),
        "head.bias": (3,),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def with_parts(data: bytes, **parts: bytes) -> bytes:
    """A torch file with other content in some of its parts, and checksums that fit it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            part = name.partition("/")[2].replace(".", "_")
            new.writestr(zipfile.ZipInfo(name), parts.get(part, old.read(name)))
    return out.getvalue()


def torch_file() -> bytes:
    """The small weights as torch.save would write them."""
    with tempfile.TemporaryDirectory() as folder:
        torch_files.write(Path(folder, "x.pth"), small_weights())
        return Path(folder, "x.pth").read_bytes()


def comes_back(weights: files.Weights, original: Mapping[str, np.ndarray], folder: Path) -> None:
    """Our file of the weights exports to the tensors of the original, bit for bit."""
    files.save_ours(folder / "ours.safetensors", weights)
    files.save_torch(folder / "back.safetensors", files.load(folder / "ours.safetensors"))
    back = load_file(folder / "back.safetensors")
    assert original.keys() == back.keys()
    for name, value in original.items():
        assert (value.dtype, value.shape) == (back[name].dtype, back[name].shape), name
        assert value.tobytes() == back[name].tobytes(), name
