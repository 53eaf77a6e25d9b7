"""A step of the reference's student of InternVideo2 in torch, on its plain path.

A process of `student_step.py`, which describes the step in a JSON file and says when to take one.
The model file is the reference's, as it is; of what it imports, timm and packages that need CUDA
are stood in for, since with `use_flash_attn`, `use_fused_rmsnorm` and `use_fused_mlp` off it does
not call the latter. Losses and their order are those of its engine, the optimizer torch's AdamW in
the two groups of its factory. Variants: `eager`, and `sdpa` with `scaled_dot_product_attention` in
its attention.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import turns
from torch_peer import stand_in_for_timm


def build_step(spec: dict[str, Any]) -> Callable[[], float]:
    """A function that takes one step and returns the loss.

    Args:
      spec: `reference` folder, `variant`, `sizes` of the constructor, `optim`, `clip_norm`,
        `weights` of the three losses, and `folder` with weights.safetensors and batch.npz.

    Raises:
      ValueError: torch or einops is missing.
    """
    try:
        import einops  # noqa: F401  # pyright: ignore[reportMissingImports]
        import torch  # pyright: ignore[reportMissingImports]
        from safetensors.numpy import load_file

    except ImportError as error:
        raise ValueError(f"{error}; --reference needs: pip install torch einops") from error
    stand_in_for_timm(torch)
    from_reference = _model_file(spec["reference"])
    if spec["variant"] != "eager":
        from_reference.Attention._naive_attn = _fused_attention(torch)
    student = from_reference.PretrainInternVideo2(
        drop_path_rate=0.0,
        use_flash_attn=False,
        use_fused_rmsnorm=False,
        use_fused_mlp=False,
        **spec["sizes"],
    )
    folder = Path(spec["folder"])
    tensors = load_file(folder / "weights.safetensors")
    student.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    student.train()
    batch = np.load(folder / "batch.npz")
    mean = torch.tensor(spec["pixel_mean"]).view(1, 3, 1, 1, 1)
    std = torch.tensor(spec["pixel_std"]).view(1, 3, 1, 1, 1)
    pixels = torch.from_numpy(batch["video"]).permute(0, 4, 1, 2, 3)
    video = (pixels.float() / 255 - mean) / std  # as it leaves the reference's loader
    visible = torch.from_numpy(batch["visible"]).long()
    tokens = student.patch_embed.num_patches
    hidden = torch.ones(len(video), tokens, dtype=torch.bool).scatter(1, visible, False)
    mask = torch.cat([torch.zeros(len(video), 1, dtype=torch.bool), hidden], dim=1)
    middle, mae = (torch.from_numpy(batch[name]).transpose(0, 1) for name in ("clip_middle", "mae"))
    targets = (middle.contiguous(), torch.from_numpy(batch["clip_final"]), mae.contiguous())
    spared = student.no_weight_decay()
    groups: dict[bool, list[Any]] = {True: [], False: []}
    for name, value in student.named_parameters():
        groups[value.ndim > 1 and not name.endswith(".bias") and name not in spared].append(value)
    optimizer = torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": spec["optim"]["weight_decay"]},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=1e-4,
        betas=tuple(spec["optim"]["betas"]),
        eps=spec["optim"]["eps"],
    )

    def step() -> float:
        outputs = student(video, mask)
        loss = torch.zeros(())
        for weight, output, target in zip(spec["weights"], outputs, targets, strict=True):
            loss = loss + weight * (2 - 2 * (output * target).sum(dim=-1)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), spec["clip_norm"])
        optimizer.step()
        return float(loss.detach())

    return step


def _model_file(reference: str) -> Any:
    """The module of the reference's model file, whose package imports more than it needs."""
    models: Any = types.ModuleType("models")
    models.__path__ = [str(Path(reference) / "models")]
    sys.modules["models"] = models
    for name, names in {
        "flash_attn": (),
        "flash_attn.modules": (),
        "flash_attn.modules.mlp": ("FusedMLP",),
        "flash_attn.ops": (),
        "flash_attn.ops.rms_norm": ("DropoutAddRMSNorm",),
        "flash_attn.flash_attn_interface": ("flash_attn_varlen_qkvpacked_func",),
        "flash_attn.bert_padding": ("unpad_input", "pad_input"),
    }.items():
        sys.modules[name] = types.ModuleType(name)
        for attribute in names:
            setattr(sys.modules[name], attribute, None)
    return importlib.import_module("models.internvideo2_pretrain")


def _fused_attention(torch: Any) -> Callable[..., Any]:
    """The plain attention of the reference with torch's own fused kernel in its middle."""

    def forward(self: Any, x: Any) -> Any:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        heads = (
            part.view(batch, tokens, self.num_heads, -1).transpose(1, 2)
            for part in (self.q_norm(q), self.k_norm(k), v)
        )
        out = torch.nn.functional.scaled_dot_product_attention(*heads, scale=self.scale)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, width))

    return forward


def main() -> int:
    spec = json.loads(Path(sys.argv[1]).read_text())
    return turns.serve(lambda: (build_step(spec), {}))


if __name__ == "__main__":
    sys.exit(main())
