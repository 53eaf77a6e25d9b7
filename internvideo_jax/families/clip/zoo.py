"""The image transformers of OpenAI's CLIP (Radford et al. 2021) and its text half. Only data.

File names are those that its code downloads. No recipe here makes CLIP: UniFormerV2, ViCLIP and
the teachers of Unmasked Teacher start from it.
"""

from __future__ import annotations

from internvideo_jax.weights.entry import Entry

_NOTE = "no recipe makes it; the one named starts from it"


def _entry(file: str, size: str, start: str, pixels: int = 224) -> Entry:
    return Entry(
        name=f"clip/{file.removesuffix('.pt')}",
        file=file,
        kind="clip",
        size=size,
        data="CLIP400M",
        frames=1,
        pixels=pixels,
        config="",
        made=False,
        finetune=start,
        note=_NOTE,
    )


_UNIFORMERV2 = "configs/uniformerv2/finetune.py:data=kinetics,start=clip,size="
CLIP = (
    _entry("ViT-B-32.pt", "base32", "configs/viclip/pretrain.py:size=base32"),
    _entry("ViT-B-16.pt", "base", f"{_UNIFORMERV2}base"),
    _entry("ViT-L-14.pt", "large", f"{_UNIFORMERV2}large"),
    _entry("ViT-L-14-336px.pt", "large336", f"{_UNIFORMERV2}large336", 336),
)
