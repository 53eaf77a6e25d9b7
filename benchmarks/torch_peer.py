"""The same step in torch: the reference's own model file, trained or evaluated as its engine does.

A process of `train_step.py`, `evaluation.py` and `gpu.py`, which describe the step in a JSON file
and say when to take one. Variants: `eager` as published, `sdpa` with
`scaled_dot_product_attention` in its attention, `compile` the latter under torch.compile.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import turns

VARIANTS = ("eager", "sdpa", "compile")


def build_step(spec: dict[str, Any]) -> Callable[[], float]:
    """A function that takes one step and returns the loss.

    Args:
      spec: `kind` (pretrain | classifier | views, which evaluates), `variant`, `torch_model` path,
        sizes, and `folder` with batch.npz, for pre-training hidden.npy, for equal starts
        weights.safetensors.

    Raises:
      ValueError: no torch.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("--torch_model needs torch: pip install torch") from error
    stand_in_for_timm(torch)
    path = Path(spec["torch_model"])
    sys.path.insert(0, str(path.parent))
    finetune = importlib.import_module("modeling_finetune")  # holds the blocks of both models
    if spec["variant"] != "eager":
        finetune.Attention.forward = _fused_attention(torch)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    masked = spec["kind"] == "pretrain"
    if masked:
        peer = importlib.import_module(path.stem).PretrainVisionTransformer(**spec["sizes"])
    else:
        norm = functools.partial(torch.nn.LayerNorm, eps=1e-6)  # as its factory functions have it
        peer = finetune.VisionTransformer(norm_layer=norm, **spec["sizes"])
    peer = peer.to(device)
    folder = Path(spec["folder"])
    if (folder / "weights.safetensors").exists():
        from safetensors.numpy import load_file

        tensors = load_file(folder / "weights.safetensors")
        peer.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    mean = torch.tensor(spec["pixel_mean"], device=device).view(1, 3, 1, 1, 1)
    std = torch.tensor(spec["pixel_std"], device=device).view(1, 3, 1, 1, 1)
    # As in the reference's engine, the clip arrives normalised and the target undoes it.
    batch = np.load(folder / "batch.npz")
    if spec["kind"] == "views":
        pixels = torch.from_numpy(batch["video"]).permute(0, 4, 1, 2, 3)
        return _view_step(torch, peer, (pixels.to(device).float() / 255 - mean) / std, spec)
    pixels = torch.from_numpy(batch["video"]).permute(0, 4, 1, 2, 3)
    video = (pixels.to(device).float() / 255 - mean) / std
    label = torch.from_numpy(batch["label"]).long().to(device)
    mask = torch.from_numpy(np.load(folder / "hidden.npy")).to(device) if masked else None
    half = spec["dtype"] == "bfloat16"
    tubelet, patch = spec["sizes"]["tubelet_size"], spec["sizes"]["patch_size"]
    network = torch.compile(peer) if spec["variant"] == "compile" else peer

    def reconstruction() -> Any:
        with torch.no_grad():
            raw = video * std + mean
            b, c, t, h, w = raw.shape
            cubes = raw.reshape(
                b, c, t // tubelet, tubelet, h // patch, patch, w // patch, patch
            ).permute(0, 2, 4, 6, 3, 5, 7, 1)
            cubes = cubes.reshape(b, -1, tubelet * patch * patch, c)
            spread = cubes.var(dim=-2, unbiased=True, keepdim=True).sqrt() + 1e-6
            cubes = ((cubes - cubes.mean(dim=-2, keepdim=True)) / spread).flatten(2)
            target = cubes[mask].reshape(b, -1, cubes.shape[-1])
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            predicted = network(video, mask)
            return torch.nn.functional.mse_loss(predicted.float(), target)

    def classification() -> Any:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            return torch.nn.functional.cross_entropy(network(video).float(), label)

    def step() -> float:
        loss = reconstruction() if masked else classification()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def _view_step(torch: Any, peer: Any, video: Any, spec: dict[str, Any]) -> Callable[[], float]:
    """Logits of a batch of views as the reference's final test has them; leaves the first ones."""
    peer.eval()
    half = spec["dtype"] == "bfloat16"

    def logits() -> Any:
        with torch.no_grad(), torch.autocast(video.device.type, torch.bfloat16, enabled=half):
            return peer(video).float().cpu().numpy()

    np.save(Path(spec["folder"]) / f"logits-{spec['variant']}.npy", logits())
    return lambda: float(logits().sum())


def _fused_attention(torch: Any) -> Callable[..., Any]:
    """A forward pass for the reference's Attention that uses torch's own fused attention."""

    def forward(self: Any, x: Any) -> Any:
        batch, tokens, _ = x.shape
        bias = None
        if self.q_bias is not None:
            bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        joined = torch.nn.functional.linear(x, self.qkv.weight, bias)
        q, k, v = joined.view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, -1))

    return forward


def stand_in_for_timm(torch: Any) -> None:
    """Stands in for the helpers of timm that the model files take.

    Enough where no path is dropped, and true for every version of timm.
    """
    layers: Any = types.ModuleType("timm.models.layers")
    layers.drop_path = lambda x, probability=0.0, training=False: x
    layers.DropPath = None  # only made where paths are dropped
    layers.to_2tuple = lambda x: x if isinstance(x, tuple) else (x, x)
    layers.trunc_normal_ = torch.nn.init.trunc_normal_
    registry: Any = types.ModuleType("timm.models.registry")
    registry.register_model = lambda function: function
    for name in ("timm", "timm.models"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[layers.__name__] = layers
    sys.modules[registry.__name__] = registry


def main() -> int:
    spec = json.loads(Path(sys.argv[1]).read_text())
    return turns.serve(lambda: (build_step(spec), {}))


if __name__ == "__main__":
    sys.exit(main())
