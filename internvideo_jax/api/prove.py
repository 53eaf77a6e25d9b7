"""Weights that prove themselves: first outputs on a clip that comes with the package.

The clip is drawn by integer arithmetic, so it is the same everywhere. Outputs are stored by the
name of the weights, with the digest of their parameters, in proofs.json; a row of the zoo that has
none there is not proved, and says so.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from internvideo_jax.api.load import load
from internvideo_jax.api.model import VideoModel
from internvideo_jax.api.videos import open_videos
from internvideo_jax.checkpoint.initial import load_source
from internvideo_jax.checkpoint.metadata import digest_of
from internvideo_jax.evaluators.classification import forward
from internvideo_jax.inference.vectors import gather
from internvideo_jax.weights import zoo

FILE = Path(__file__).with_name("proofs.json")
COUNT = 8  # outputs that are stored
TOLERANCE = 1e-3  # of the largest output: other orders of sums give 1e-6 of it, other weights 1


@dataclasses.dataclass(frozen=True)
class Proof:
    """What is stored of weights.

    Attributes:
      digest: of their parameters.
      outputs: as `first_outputs` gives them; empty: nothing is stored.
      recipe, settings: how to load a file that does not tell.
    """

    digest: str = ""
    outputs: Sequence[float] = ()
    recipe: str = ""
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What became of a proof.

    Attributes:
      state: proved, differs or not proved.
      why: in words.
      digest: of the parameters as they are in the file.
      outputs: (COUNT,) float32, the first ones of the model on the clip.
    """

    name: str
    state: str
    why: str
    digest: str
    outputs: np.ndarray

    def text(self) -> str:
        """Name, verdict, parameters and outputs, in two lines."""
        numbers = ", ".join(f"{value:.7g}" for value in self.outputs)
        return (
            f"{self.name}: {self.state}: {self.why}\n  parameters {self.digest}, outputs on the "
            f"clip: [{numbers}]"
        )


def clip(frames: int, resolution: int) -> np.ndarray:
    """(frames, resolution, resolution, 3) uint8: a slope, a moving square, stripes that turn."""
    t, y, x = np.ogrid[:frames, :resolution, :resolution]
    slope = (x * 255) // resolution + 0 * (t + y)
    place = t * resolution // max(frames, 1)
    square = (abs(x - place) < resolution // 6) & (abs(y - place) < resolution // 6)
    stripes = ((x * (1 + t) + y * (frames - t)) // 4) % 2 * 180
    channels = (slope, np.where(square, 230, 20 + 0 * slope), stripes)
    return np.stack(channels, axis=-1).astype(np.uint8)


def first_outputs(model: VideoModel) -> np.ndarray:
    """(COUNT,) float32: of a classifier logits, of others the vector that `embed` gives."""
    video = clip(model.frames, model.resolution)
    if model.labels and not model.reads_text:
        views = model.views(text=False)[0]
        stream = open_videos(video, views, threads=1, strict=True)
        build = functools.partial(forward, model.context.model.apply)
        values = gather(model.context.outputs(stream, "logits", build, "prove")).values
    else:
        values = model.embed(video)
    return np.asarray(values[0, :COUNT], np.float32)


def prove(
    source: str, *, recipe: str = "", settings: Mapping[str, object] | None = None
) -> Comparison:
    """Compares the first outputs of weights, in float32, with those that are stored.

    Args:
      source, recipe, settings: as `load` takes them.

    Raises:
      ValueError: as `load`.
    """
    digest = digest_of(sorted(load_source(source).params.items()))
    proofs = stored()
    entry = zoo.named(source)
    name = entry.name if entry is not None else source
    known = name if name in proofs else _of_digest(proofs, digest)
    proof = proofs.get(known, Proof())
    chosen = {"model.dtype": "float32", **proof.settings, **(settings or {})}
    model = load(source, recipe=recipe or proof.recipe, settings=chosen, progress=False)
    outputs = first_outputs(model)
    if not proof.outputs:
        why = "no outputs are stored for it, as these weights were not at hand"
        return Comparison(name, "not proved", why, digest, outputs)
    if proof.digest != digest:
        why = f"its parameters are {digest}, those of {known} are {proof.digest}"
        return Comparison(name, "differs", why, digest, outputs)
    expected = np.array(proof.outputs, np.float32)
    apart = float(np.abs(outputs - expected).max() / np.abs(expected).max())
    if apart > TOLERANCE:
        why = f"the outputs of {known} are others, by {apart:.1e} of the largest"
        return Comparison(name, "differs", why, digest, outputs)
    why = f"outputs of {known}, to {apart:.0e} of the largest"
    return Comparison(name, "proved", why, digest, outputs)


def stored() -> dict[str, Proof]:
    """The proofs by name."""
    content: dict[str, dict] = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: Proof(**values) for name, values in content.items()}


def _of_digest(proofs: Mapping[str, Proof], digest: str) -> str:
    return next((name for name, proof in proofs.items() if proof.digest == digest), "")
