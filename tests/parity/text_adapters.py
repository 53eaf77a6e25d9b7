"""Cases of the text side and of the frame rules that go with it."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest

from data_pipelines.clips import sampling
from data_pipelines.text import make_tokenizer
from data_pipelines.text.caption import clean_caption
from data_pipelines.text.clip import ClipTokenizer
from tests.parity.cases import Case, adapter

# A merges file tests the other library, and is needed where the packaged vocabulary has no wheel.
MERGES = os.environ.get("IVJ_CLIP_MERGES", "")


@adapter("video_language", "clip_tokenizer")
def clip_tokenizer(case: Case) -> None:
    name = f"clip:{MERGES}" if MERGES else "clip"
    try:
        short, long = (make_tokenizer(name, context) for context in (32, 77))
        cleaned = make_tokenizer(name, 32, clean=True)
    except ImportError as error:
        pytest.skip(f"{error}; IVJ_CLIP_MERGES can name that file for this test")
    assert isinstance(short, ClipTokenizer)
    config = case.config
    assert short.vocab_size == config["vocab_size"]
    assert (short.start_id, short.end_id) == (config["sot"], config["eot"])
    rows = json.loads((case.folder / "tokens.json").read_text())
    assert rows
    for row in rows:
        text = row["text"]
        assert short.encode(text) == row["encode"], text
        assert short.decode(row["encode"]) == row["decode"], text
        assert clean_caption(text) == row["pre_text"], text
    for tokenizer, key in (
        (short, "ids32"),
        (long, "ids77"),
        (long, "ids77_retrieval"),
        (cleaned, "ids32_pre_text"),
    ):
        ids = tokenizer([row["text"] for row in rows])
        np.testing.assert_array_equal(ids, [row[key] for row in rows], err_msg=key)


@adapter("video_language", "frame_sampling")
def frame_sampling(case: Case) -> None:
    rows = json.loads((case.folder / "frames.json").read_text())
    assert rows
    for row in rows:
        n, length = row["vlen"], row["num_frames"]
        for key in row.keys() - {"vlen", "num_frames"}:
            if row[key] is None:
                with pytest.raises(ValueError, match="needs as many in the video"):
                    _frames(key, n, length)
            else:
                assert list(_frames(key, n, length)) == row[key], f"{key} of {n}, {length} frames"


def _frames(key: str, n: int, length: int) -> np.ndarray:
    if key == "viclip_middle":
        return sampling.uniform_center(n, length)
    if key == "mm_uniform":
        return sampling.uniform_center(n, length)[: min(n, length)]
    if key == "demo_linspace":
        return sampling.linspace(n, length)
    if key == "demo_stride":
        return sampling.strided(n, length)
    if found := re.fullmatch(r"viclip_fix_start(\d+)", key):
        return sampling.uniform_offset(n, length, int(found[1]))
    if found := re.fullmatch(r"viclip_fps([\d.]+)_at([\d.]+)", key):
        return sampling.at_rate(n, float(found[2]), float(found[1]), length)
    if found := re.fullmatch(r"clip4clip_([\d.]+)fps_of([\d.]+)", key):
        return sampling.thinned(n, length, round(float(found[2]) / float(found[1])))
    raise AssertionError(f"no rule for {key}")
