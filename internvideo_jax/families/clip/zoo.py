"""The image transformers of OpenAI's CLIP (Radford et al. 2021) and its text half. Only data.

File names are those that its code downloads. No recipe here makes CLIP: UniFormerV2, ViCLIP and
the teachers of Unmasked Teacher start from it.
"""

from __future__ import annotations

from internvideo_jax.weights.entry import Entry

_NOTE = "no recipe makes it; the one named starts from it"


SHORT = {
    "ViT-B-32.pt": "clip-b32",
    "ViT-B-16.pt": "clip-b16",
    "ViT-L-14.pt": "clip-l14",
    "ViT-L-14-336px.pt": "clip-l14-336",
}


def _entry(file: str, sha256: str, size: str, start: str, pixels: int = 224) -> Entry:
    """The code that downloads the files compares the digest, which is part of their addresses."""
    return Entry(
        name=f"clip/{file.removesuffix('.pt')}",
        file=file,
        url=f"https://openaipublic.azureedge.net/clip/models/{sha256}/{file}",
        sha256=sha256,
        licence="MIT",
        short=SHORT[file],
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
    _entry(
        "ViT-B-32.pt",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        "base32",
        "configs/viclip/pretrain.py:size=base32",
    ),
    _entry(
        "ViT-B-16.pt",
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
        "base",
        f"{_UNIFORMERV2}base",
    ),
    _entry(
        "ViT-L-14.pt",
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        "large",
        f"{_UNIFORMERV2}large",
    ),
    _entry(
        "ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        "large336",
        f"{_UNIFORMERV2}large336",
        336,
    ),
)
