"""A model as an encoder of mteb (MOEB): its tasks of videos and texts, with its own evaluator.

    import mteb
    from internvideo_jax.api.mteb import encoder

    mteb.evaluate(encoder("runs/viclip", name="me/viclip"), mteb.get_tasks(["MSVDT2VRetrieval"]))

mteb itself is the extra `mteb`; it is imported when an encoder is made.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Protocol

import numpy as np

from data_pipelines.config import ViewConfig
from data_pipelines.stream import multiview
from data_pipelines.stream.item_views import FPS, ItemViews
from internvideo_jax.api.load import load
from internvideo_jax.api.model import VideoModel
from internvideo_jax.inference.pixels import PixelDigest
from internvideo_jax.protocols import TextInput
from internvideo_jax.types import flatten_paths
from internvideo_jax.weights import zoo

PIXELS = "pixels"  # in loader_kwargs of the metadata: task -> digest of what the model was shown
COLUMNS = ("video", "text")


class OpenedVideo(Protocol):
    """What mteb gives for a video: `torchcodec.decoders.VideoDecoder`."""

    @property
    def metadata(self) -> Any:
        """`num_frames` and `average_fps`."""
        ...

    def get_frames_at(self, indices: Sequence[int]) -> Any:
        """`data`: (N, 3, H, W) uint8."""
        ...


class DecoderViews(ItemViews):
    """Views of videos that mteb opened; only the frames that are looked at are decoded."""

    def __init__(self, videos: Sequence[OpenedVideo], config: ViewConfig):
        self.videos = videos
        # Decoders are not safe in several threads.
        super().__init__(
            [f"video {number}" for number in range(len(videos))], config, threads=1, strict=True
        )

    def views(self, number: int) -> np.ndarray | None:
        video = self.videos[number]
        count, fps = video.metadata.num_frames, video.metadata.average_fps or FPS
        if not count:
            self.problems[number] = "it does not say how many frames it has"
            return None
        times = np.around(np.arange(count) * 1e6 / fps).astype(np.int64)
        wanted = multiview.choose(self.config, times, fps)
        needed, places = np.unique(wanted.ravel(), return_inverse=True)
        found = np.asarray(video.get_frames_at(needed.tolist()).data)
        frames = [np.ascontiguousarray(frame.transpose(1, 2, 0)) for frame in found]
        out = np.empty(self.shape, np.uint8)
        multiview.cut(self.config, wanted, [frames[place] for place in places], out)
        return out


class MTEBEncoder:
    """See `encoder`; the methods are those of `mteb.EncoderProtocol`.

    Attributes:
      mteb_model_meta: its `ModelMeta`. `loader_kwargs["pixels"]` says for every task which pixels
        the model was shown, and so does `model_meta.json` beside the results.
    """

    def __init__(self, model: VideoModel, meta: Any, expected: Mapping[str, Any] | None = None):
        self.model, self.mteb_model_meta = model, meta
        self._expected = dict(expected or {})
        self._seen: dict[str, dict[str, PixelDigest]] = {}  # task -> parts of it by their digest

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """(N, D) float32, as `VideoModel.embed` and `.text` give them.

        Args:
          inputs: batches with `video` or `text`.

        Raises:
          ValueError: neither, or both at once; a video that cannot be used.
        """
        found, seen = [], PixelDigest()
        for batch in inputs:
            found.append(self._encoded(batch))
            if "video" in batch:
                seen.merge(self.model.seen)
        if not found:
            raise ValueError(f"{task_metadata.name}: nothing to encode in split {hf_split!r}")
        if seen.clips:
            asked = str(getattr(prompt_type, "value", prompt_type) or "")
            key = "/".join(filter(None, (task_metadata.name, hf_split, hf_subset, asked)))
            self._note(key, seen)
        return np.concatenate(found)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of all pairs."""
        from mteb.similarity_functions import cos_sim  # pyright: ignore[reportMissingImports]

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of pairs."""
        from mteb.similarity_functions import pairwise_cos_sim  # pyright: ignore[reportMissingImports]

        return pairwise_cos_sim(embeddings1, embeddings2)

    def _encoded(self, batch: Mapping[str, Any]) -> np.ndarray:
        there = [name for name in COLUMNS if name in batch]
        if len(there) != 1:
            what = " and ".join(there) or ", ".join(batch) or "nothing"
            raise ValueError(f"an input of {what}; expected either video or text")
        if there == ["text"]:
            return self.model.text(list(batch["text"]))
        stream = DecoderViews(batch["video"], self.model.embed_config())
        return self.model.embed_views(stream)

    def _note(self, key: str, part: PixelDigest) -> None:
        """Tells the metadata; a warning where an earlier run saw other pixels.

        Large sets come in parts. One that comes again, as in a second evaluation, counts once.
        """
        parts = self._seen.setdefault(key, {})
        parts[part.hex] = part
        whole = PixelDigest()
        for each in parts.values():
            whole.merge(each)
        pixels = self.mteb_model_meta.loader_kwargs.setdefault(PIXELS, {})
        pixels[key] = whole.content()
        before = self._expected.get(key, {})
        if before.get("clips", 0) == whole.clips and before["digest"] != whole.hex:
            what = f"{whole.hex} and {before['digest']}"
            warnings.warn(f"{key}: other pixels than before, {what}", stacklevel=2)


def encoder(
    source: str | os.PathLike[str] | VideoModel,
    *,
    name: str = "",
    licence: str = "",
    pixels: Mapping[str, Any] | None = None,
    **options: Any,
) -> MTEBEncoder:
    """A model as mteb evaluates it.

    Args:
      source: as `internvideo_jax.load` takes it, or what that gave.
      name: as mteb files results, OWNER/MODEL; default: internvideo_jax and the last part of the
        place or name of the weights.
      licence: of the weights, as mteb knows it (`apache-2.0`); default: as the zoo has it.
      pixels: digests of an earlier run (`loader_kwargs["pixels"]` of its metadata); where a task
        now sees others, a warning says so.
      options: as `internvideo_jax.load` takes them.

    Raises:
      ImportError: mteb is missing (extra `mteb`).
      ValueError: weights that cannot be loaded; a name without an owner.
    """
    try:
        from mteb.models.model_meta import ModelMeta, ScoringFunction  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"mteb cannot be imported ({error}): pip install 'internvideo-jax[mteb]'"
        ) from error
    model = source if isinstance(source, VideoModel) else load(source, **options)
    name = name or f"internvideo_jax/{PurePath(model.checkpoint).name}"
    if name.count("/") != 1 or not all(name.split("/")):
        raise ValueError(f"name={name!r}: expected OWNER/MODEL")
    entry = zoo.named(model.checkpoint)
    sizes = flatten_paths(model.params)
    text = model.config.model.inputs.text
    licence = licence or (entry.licence.lower() if entry is not None else "")
    meta = ModelMeta(
        loader=load_encoder,
        loader_kwargs={"source": model.checkpoint},
        name=name,
        revision=model.digest,
        release_date=None,
        languages=["eng-Latn"] if text else None,
        n_parameters=sum(int(np.prod(leaf.shape)) for leaf in sizes.values()),
        n_embedding_parameters=_embedding_parameters(sizes, text),
        memory_usage_mb=round(sum(leaf.nbytes for leaf in sizes.values()) / 2**20, 1),
        max_tokens=text.context if text else None,
        embed_dim=_width(model),
        license=licence or None,
        open_weights=True if licence else None,
        public_training_code=None,
        public_training_data=None,
        framework=["JAX"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=False,
        training_datasets=None,
        modalities=["video", "text"] if text else ["video"],
    )
    return MTEBEncoder(model, meta, pixels)


def load_encoder(
    model_name: str, revision: str | None = None, device: str | None = None, **options: Any
) -> MTEBEncoder:
    """How mteb loads an encoder again from its metadata.

    Raises:
      ValueError: other weights than those of `revision`.
    """
    found = encoder(options.pop("source"), name=model_name, **options)
    if revision and found.model.digest != revision:
        raise ValueError(
            f"{found.model.checkpoint} has the parameters {found.model.digest}, the metadata are "
            f"of {revision}"
        )
    return found


def _width(model: VideoModel) -> int:
    """Channels of the vectors that `embed` gives."""
    if model.reads_text:
        return flatten_paths(model.params)["text/proj/kernel"].shape[-1]
    features = model.config.model.traits.features
    if features is None:
        raise ValueError(f"{model.config.model.name} gives no features, only what it is made for")
    return features.width


def _embedding_parameters(sizes: Mapping[str, Any], text: TextInput | None) -> int | None:
    table = sizes.get("text/token_embed") if text else None
    return None if table is None else int(np.prod(table.shape))
