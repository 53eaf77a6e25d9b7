"""The published checkpoints of ViCLIP. Only data.

File names are those that the model zoo of ViCLIP's code links to; the two base models lie behind
links without a name (`ViCLIP-L-14-hf` and `ViCLIP-B-16-hf` hold the same weights as safetensors).
Accuracies are the authors' zero-shot top-1 on Kinetics-400, -600 and -700 in per cent. None was
measured here.
"""

from __future__ import annotations

from internvideo_jax.weights.entry import HUB, OSS, WHOLE, Entry

PRETRAIN = "configs/viclip/pretrain.py:"
# Linked twice; the others lie on the authors' own server only.
URLS = {"ViClip-InternVid-10M-FLT": f"{HUB}/ViCLIP/resolve/main/ViClip-InternVid-10M-FLT.pth"}
SHORT = {"ViClip-InternVid-10M-FLT": "viclip-l14", "ViCLIP-B_InternVid-10M-FLT": "viclip-b16"}
_UNNAMED = "the zoo links to the file without naming it"


def _entry(file: str, size: str, data: str, top1: str = "", note: str = "") -> Entry:
    letter = {"base": "B", "large": "L"}[size]
    name = file.removesuffix(".pth") or f"ViCLIP-{letter}_{data}"
    return Entry(
        name=f"viclip/{name}",
        file=file,
        url=URLS.get(name, f"{OSS}/internvideo/viclip/{file}" if file else ""),
        licence="Apache-2.0",
        short=SHORT.get(name, ""),
        kind="viclip",
        size=size,
        data=data,
        frames=8,
        stride=WHOLE,
        config=f"{PRETRAIN}size={size},stage=2",
        finetune=f"{PRETRAIN}size={size}",
        reported=top1,
        note=note,
    )


VICLIP = (
    _entry("ViClip-InternVid-10M-FLT.pth", "large", "InternVid-10M-FLT", "64.80 / 62.20 / 54.30"),
    _entry("ViCLIP-L_InternVid-DIV-10M.pth", "large", "InternVid-10M-DIV", "63.00 / 60.68 / 52.50"),
    _entry("ViCLIP-L_WebVid-10M.pth", "large", "WebVid-10M", "59.88 / 58.66 / 50.23"),
    _entry("ViCLIP-L_InternVid-10M.pth", "large", "InternVid-10M"),
    _entry("ViCLIP-L_InternVid-50M.pth", "large", "InternVid-50M"),
    _entry("ViCLIP-L_InternVid-200M.pth", "large", "InternVid-200M", "59.80 / 57.80 / 49.30"),
    _entry("", "base", "InternVid-10M-FLT", "58.52 / 55.37 / 47.09", _UNNAMED),
    _entry("", "base", "InternVid-200M", "56.58 / 53.57 / 45.82", _UNNAMED),
)
