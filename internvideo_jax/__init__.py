"""TPU-first training system for video foundation models. Start with README.md, then train.py.

    import internvideo_jax as ivj
    model = ivj.load("runs/finetune")
    model.embed("clip.mp4"), model.classify(["a.mp4", "b.mp4"])

What Python programs use is imported when it is first asked for: importing the package loads no
library (docs/python.md).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from internvideo_jax.api.load import load
    from internvideo_jax.api.model import Classified, Reconstructed, VideoModel

__version__ = "0.1.0"
__all__ = ["Classified", "Reconstructed", "VideoModel", "__version__", "load"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "load" if name == "load" else "model"
    return vars(importlib.import_module(f"{__name__}.api.{module}"))[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
