"""InternVideo2's classifier, and what it is trained, loaded and tested with."""

from __future__ import annotations

import re

import numpy as np

from data_pipelines import sampling
from internvideo_jax.evaluators.metrics import merge_views, top_k
from internvideo_jax.models.layers.pos_adapt import adapt_tables
from internvideo_jax.optim.schedules import cosine
from tests.parity.cases import Case, adapter

GROUP = "internvideo2_stage1"


@adapter(GROUP, "lr_schedule")
def lr_schedule(case: Case) -> None:
    assert case.config
    for key, query in case.config.items():
        steps = query["steps_per_epoch"]
        total, warmup = query["epochs"] * steps, query["warmup_epochs"] * steps
        if warmup and query["warmup_steps"] > 0:
            warmup = query["warmup_steps"]
        rate = cosine(query["base"], query["final"], total, warmup, query["start_warmup_value"])
        case.close(key, rate(np.arange(total)))


class Legacy:
    """The one method of `numpy.random.Generator` that the rule calls, from the old generator."""

    def __init__(self, seed: int):
        self._state = np.random.RandomState(seed)

    def integers(self, high, size):
        return self._state.randint(high, size=size)


@adapter(GROUP, "frame_indices")
def frame_indices(case: Case) -> None:
    """Fine-tuning's test views and pre-training's draws.

    Released pre-training takes the frame before each drawn one, -1 before the first: the loader's
    mistake, which we do not repeat; here it is put back by subtraction.
    """
    assert case.meta["tables"] and case.meta["pretrain"]
    for key, expected in case.meta["tables"].items():
        found = re.fullmatch(r"(?:val|test)_len(\d+)_frames(\d+)(?:_segs(\d+))?", key)
        assert found, key
        n, frames, segments = (int(value or 1) for value in found.groups())
        views = sampling.VIEWS["stepped"](n, frames, 1, segments)
        np.testing.assert_array_equal(views, expected, err_msg=key)
    for key, expected in case.meta["pretrain"].items():
        found = re.fullmatch(r"pretrain(\d+)_len(\d+)_numpyseed(\d+)", key)
        assert found, key
        frames, n, seed = map(int, found.groups())
        drawn = sampling.TRAIN["parts"](n, frames, 1, Legacy(seed))  # pyright: ignore[reportArgumentType]
        np.testing.assert_array_equal(drawn, expected["offsets"], err_msg=key)
        np.testing.assert_array_equal(drawn - 1, expected["frame_ids"], err_msg=key)


@adapter(GROUP, "multiview_merge")
def multiview_merge(case: Case) -> None:
    logits, labels = case.io["logits"], case.io["labels"]
    videos, chunks, crops, classes = logits.shape
    rows = np.arange(videos * chunks * crops)
    rows = np.concatenate([rows, rows[: chunks * crops + 1]])  # repeats do not count twice
    record, view = rows // (chunks * crops), rows % (chunks * crops)
    _, scores = merge_views(record, view, logits.reshape(-1, classes)[rows], "probability")
    case.close("mean_prob", scores)
    case.close("top1", 100 * top_k(scores, labels, 1))
    case.close("top5", 100 * top_k(scores, labels, 5))


@adapter(GROUP, "pos_interp_")
def pos_interp(case: Case) -> None:
    """Tables of a file for another clip. The reference takes 8 frames for every file."""
    config = case.config
    time = config["num_frames"] // config["tubelet_size"]
    side = round((config["num_patches"] / time) ** 0.5)
    stored = {name: value[0] for name, value in case.outputs("in.").items()}
    form = "joint" if "pos_embed" in stored else "separable"
    paths = {
        "pos_embed": "pos_embed/table",
        "pos_embed_spatial": "pos_embed/spatial",
        "pos_embed_temporal": "pos_embed/temporal",
        "pos_embed_cls": "pos_embed/cls",
    }
    source = {paths[name]: value for name, value in stored.items()}
    adapted = adapt_tables(
        source,
        "pos_embed",
        form=form,
        grid=(time, side, side),
        frames=config.get("orig_t_size", 8),
    )
    expected = case.outputs("out.")
    assert {paths[name] for name in expected} == set(adapted)
    for name in expected:
        case.close(f"out.{name}", adapted[paths[name]])
