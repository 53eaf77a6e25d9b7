"""Published test protocols by name: which views of a video are looked at, and how they are merged.

One entry per family of rows in the papers and model zoos; a result file names the entry and the
fields in which a run departed from it. Frames and size of a clip are the model's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from data_pipelines.config import ClipConfig, ViewConfig
from internvideo_jax.registry import suggest


@dataclasses.dataclass(frozen=True)
class ViewProtocol:
    """What a published accuracy was measured on."""

    sampling: str  # data_pipelines/clips/sampling.py, VIEWS
    clips: int
    crops: int
    source: str  # where it was read
    stride: int = 4  # stored frames between two of a clip; only `dense` and `windows` look at it
    crop_rule: str = "even"  # data_pipelines/clips/transforms.py, crop_boxes
    merge: str = "probability"  # metrics.py, MERGES
    mean_ap: bool = False  # the source reports mAP next to top-1

    def values(self) -> dict[str, Any]:
        """The settings without the source."""
        found = dataclasses.asdict(self)
        del found["source"]
        return found

    def views(self, views: ViewConfig) -> ViewConfig:
        """`views` under this protocol; frames, size, batch and reader stay."""
        clip = dataclasses.replace(views.clip, stride=self.stride, sampling=self.sampling)
        return dataclasses.replace(
            views,
            clip=clip,
            clips=self.clips,
            crops=self.crops,
            crop_rule=self.crop_rule,
        )


def _uniformerv2(clips: int, crops: int, source: str, **changes: Any) -> ViewProtocol:
    return ViewProtocol(
        "stepped",
        clips,
        crops,
        f"UniFormerV2, {source}",
        stride=1,
        crop_rule="slowfast",
        merge="probability_sum",
        **changes,
    )


def _internvideo2(
    sampling: str, clips: int, crops: int, source: str, **changes: Any
) -> ViewProtocol:
    return ViewProtocol(
        sampling, clips, crops, f"InternVideo2, {source}", **{"stride": 1, **changes}
    )


PROTOCOLS = {
    "videomae/kinetics": ViewProtocol(
        "dense", 5, 3, "VideoMAE, InternVideo1 (B, L), VideoMAE V2: Kinetics and UCF101 scripts"
    ),
    "videomae/something": ViewProtocol(
        "segments", 2, 3, "VideoMAE, InternVideo1, VideoMAE V2: Something-Something scripts"
    ),
    "videomae/hmdb51": ViewProtocol(
        "dense", 5, 3, "VideoMAE V2: script for HMDB51 from Kinetics-710", stride=2
    ),
    "videomae/distilled": ViewProtocol(
        "dense", 7, 3, "VideoMAE V2: model zoo, students tuned further (16 x 7 x 3)"
    ),
    "internvideo1/kinetics_h": ViewProtocol(
        "dense", 7, 3, "InternVideo1: Kinetics scripts of ViT-H"
    ),
    "internvideo1/sparse_b": ViewProtocol("sparse", 2, 3, "InternVideo1: script b_k400_sparse"),
    "internvideo1/sparse_h": ViewProtocol("sparse", 5, 3, "InternVideo1: script h_k400_sparse"),
    "internvideo1/activitynet": ViewProtocol(
        "dense", 5, 3, "InternVideo1: script b_anet, over whole videos", mean_ap=True
    ),
    "uniformerv2/kinetics": _uniformerv2(
        4, 3, "Kinetics scripts; frozen models of 32 frames in the zoo (32 x 3 x 4)"
    ),
    "uniformerv2/kinetics_long": _uniformerv2(
        2, 3, "model zoo: Kinetics with 32 and 64 frames, not frozen"
    ),
    "uniformerv2/frozen": _uniformerv2(3, 1, "Kinetics scripts with a frozen backbone"),
    "uniformerv2/moments": _uniformerv2(4, 3, "Moments in Time scripts"),
    "uniformerv2/something": _uniformerv2(1, 3, "Something-Something scripts"),
    "uniformerv2/activitynet": _uniformerv2(
        10, 3, "ActivityNet and HACS scripts, over whole videos", mean_ap=True
    ),
    "umt/kinetics": ViewProtocol(
        "stepped", 4, 3, "Unmasked Teacher, Kinetics and Moments in Time scripts", stride=1
    ),
    "umt/something": ViewProtocol(
        "segments", 2, 3, "Unmasked Teacher, Something-Something scripts", stride=1
    ),
    "umt/something_4": ViewProtocol(
        "segments", 4, 3, "Unmasked Teacher, model zoo: Something-Something (8 x 3 x 4)", stride=1
    ),
    "internvideo2/kinetics": _internvideo2(
        "stepped", 4, 3, "scripts of Kinetics and Moments in Time; all rows of the zoo (8 x 3 x 4)"
    ),
    "internvideo2/something_2": _internvideo2(
        "segments", 2, 3, "Something-Something scripts of 1B and L/14"
    ),
    "internvideo2/something_4": _internvideo2(
        "segments", 4, 3, "Something-Something scripts of S/14, B/14, 6B (V1); the zoo (8 x 3 x 4)"
    ),
    "internvideo2/something_5": _internvideo2(
        "segments", 5, 3, "Something-Something V2 script of 6B"
    ),
    "internvideo2/something_1": _internvideo2(
        "interleaved", 1, 3, "probes on Something-Something V2"
    ),
    "internvideo2/probe": _internvideo2("stepped", 1, 3, "probes on Kinetics, Moments in Time"),
    "internvideo2/ucf101": _internvideo2(
        "windows", 2, 1, "linear probes on UCF101", stride=4, crop_rule="truncated"
    ),
    "internvideo2/hmdb51": _internvideo2(
        "but_last", 2, 1, "linear probes on HMDB51", crop_rule="truncated"
    ),
    "internvideo2/activitynet": _internvideo2(
        "stepped", 4, 3, "probes on ActivityNet and HACS, over whole videos", mean_ap=True
    ),
}


def find(name: str) -> ViewProtocol:
    """The protocol of that name; ValueError with the near matches when there is none."""
    if name not in PROTOCOLS:
        raise ValueError(f"unknown test protocol {name!r}: {suggest(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def values_of(views: ViewConfig, merge: str, mean_ap: bool) -> dict[str, Any]:
    """The fields of a ViewProtocol as a run has them."""
    clip: ClipConfig = views.clip
    return {
        "sampling": clip.sampling,
        "clips": views.clips,
        "crops": views.crops,
        "stride": clip.stride,
        "crop_rule": views.crop_rule,
        "merge": merge,
        "mean_ap": mean_ap,
    }


def departures(name: str, used: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Fields in which a run departs from the protocol: {field: {"preset": ..., "used": ...}}."""
    return {
        field: {"preset": value, "used": used[field]}
        for field, value in find(name).values().items()
        if used[field] != value
    }
