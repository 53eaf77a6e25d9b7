"""Cases without a model: frame indices, transforms, masks, mixing, schedules, view merging."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.clips import sampling, transforms
from internvideo_jax.evaluators.metrics import merge_views, top_k
from internvideo_jax.ops import masking
from internvideo_jax.ops.losses import soft_cross_entropy
from internvideo_jax.ops.mixup import cutmix_box, mix_box, mix_linear, mix_targets
from internvideo_jax.ops.pixels import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, normalize
from internvideo_jax.optim.schedules import cosine, slowfast_cosine
from tests.parity.cases import Case, adapter


@adapter("videomae", "frames_kinetics")
def frames_kinetics(case: Case) -> None:
    for query in case.meta["queries"]:
        key, n = query["key"], query["num_frames"]
        if key.startswith("dense_val"):
            frames = sampling.dense_center(n, query["clip_len"], query["rate"])
        elif key.startswith("sparse_val"):
            frames = sampling.sparse_center(n, query["T"])
        else:
            segments, crops = query["test_num_segment"], query["test_num_crop"]
            if key.startswith("dense"):
                views = sampling.dense_views(n, query["clip_len"], query["rate"], segments)
            else:
                views = sampling.segments_views(n, query["num_segment(=T)"], segments)
            frames = np.repeat(views, crops, axis=0)
            boxes = transforms.crop_boxes(
                query["frame_h"], query["frame_w"], query["short_side"], crops
            )
            rows = [
                (segment, crop, boxes[crop][0], boxes[crop][1])
                for segment in range(segments)
                for crop in range(crops)
            ]
            case.equal(f"{key}.view_yx", rows)
        case.equal(f"{key}.frames", frames)


@adapter("videomae", "frames_pretrain")
def frames_pretrain(case: Case) -> None:
    for query in case.meta["queries"]:
        n, length, stride = query["duration"], query["clip_len"], query["step"]
        count = query["random range (exclusive)"]
        if count is not None:
            assert sampling.window_starts(n, length, stride) == count
        start = query["random offset drawn"] or 0
        case.equal(f"{query['key']}.frames", sampling.window(n, length, stride, start))


@adapter("videomae", "frames_rawframe")
def frames_rawframe(case: Case) -> None:
    first = case.config["start_idx"]
    for query in case.meta["queries"]:
        key, n, length = query["key"], query["num_frames"], query["T"]
        if query["mode"] == "validation":
            case.equal(f"{key}.file_numbers", sampling.segments_center(n, length) + first)
        else:
            views = sampling.segments_views(n, length, query["test_num_segment"])
            case.equal(f"{key}.view_file_numbers", views + first)
            case.equal(f"{key}.file_numbers", np.sort(views.ravel()) + first)


@adapter("videomae", "transforms")
def image_transforms(case: Case) -> None:
    config, video = case.config, case.io["video"]
    frames, stride, size = config["T"], config["rate"], config["short"]
    for query in case.meta["queries"]:
        geometry = query["image_h"], query["image_w"]
        pairs = transforms.multiscale_sides(*geometry, query["input_size"])
        case.equal(f"{query['key']}.pairs_wh", pairs)
        offsets = transforms.multiscale_offsets(*geometry, pairs[-1])
        case.equal(f"{query['key']}.offsets_wh_for_last_pair", offsets)

    def device(clip, mean=IMAGENET_MEAN, std=IMAGENET_STD):
        return np.asarray(normalize(jnp.asarray(clip), mean, std)).transpose(3, 0, 1, 2)

    def view(indices, box):
        resized = [transforms.resize_short_side(video[i], size) for i in indices]
        return transforms.crop_resize(resized, box, size)

    shape = transforms.short_side_shape(*video.shape[1:3], size)
    center = sampling.dense_center(len(video), frames, stride)
    case.close("validation", device(view(center, transforms.center_box(*shape, size))))

    segments, crops = config["segments"], config["crops"]
    views = sampling.dense_views(len(video), frames, stride, segments)
    boxes = transforms.crop_boxes(*shape, size, crops)
    stacked = [device(view(indices, box)) for indices in views for box in boxes]
    case.close("test_views", np.stack(stacked))
    case.equal("test_chunk_split", [(s, c) for s in range(segments) for c in range(crops)])

    grey = ((0.45,) * 3, (0.225,) * 3)
    boxes = transforms.crop_boxes(*shape, size, 3, rule="slowfast")
    count = case.io["uniformerv2_crops"].shape[2]
    stacked = [device(view(range(count), box), *grey) for box in boxes]
    case.close("uniformerv2_crops", np.stack(stacked))

    # The stored clip is the top left corner of the first frames, stacked and normalised.
    _, count, height, width = case.io["pretrain_clip"].shape
    case.close("pretrain_clip", device(video[:count, :height, :width]))


@adapter("videomae", "masks")
def masks(case: Case) -> None:
    keys = jax.random.split(jax.random.key(case.config["seed"]), 16)
    for query in case.meta["queries"]:
        key, window, ratio = query["key"], tuple(query["window"]), query["ratio"]
        t, h, w = window
        if key.startswith("cell"):
            maps = masking.running_cell_maps(window, ratio)
            case.equal(f"{key}.all_maps", maps)
            assert [int(row.sum()) for row in maps] == query["masked_per_map"]
            decoded = np.asarray(masking.sample_running_cell(keys, window, ratio))
            drawn = {tuple(row) for row in decoded}
            assert drawn <= {tuple(np.flatnonzero(row.ravel() == 0)) for row in maps}
        elif key.startswith("progressive"):
            for kind in ("progressive", "centering"):
                counts = masking.visible_per_frame(kind, window, ratio)
                assert list(counts) == query[f"keep_{kind}"]
        else:
            kind = "tube" if key.startswith("tube") else "random"
            visible, hidden = masking.sample(kind, keys, window, ratio)
            assert hidden.shape[1] == query["total_masked"]
            assert visible.shape[1] + hidden.shape[1] == t * h * w
            if kind == "tube":
                ours = np.zeros((len(keys), t * h * w), int)
                np.put_along_axis(ours, np.asarray(hidden), 1, axis=1)
                ours = ours.reshape(-1, t, h * w)
                stored = case.io[f"{key}.sample"]
                assert (ours == ours[:, :1]).all() and (stored == stored[:1]).all()
                assert (ours.sum(axis=2) == stored.sum(axis=1)).all()
                assert stored.sum(axis=1)[0] == query["masked_per_frame"]


@adapter("videomae", "mixup")
def mixup(case: Case) -> None:
    config = case.config
    for query in case.meta["queries"]:
        key, lam = query["key"], jnp.float32(query["lam_drawn"])
        video = jnp.asarray(case.io[f"{key}.x"].transpose(0, 2, 3, 4, 1))
        if query["cutmix"]:
            *box, corrected = query["bbox_yl_yh_xl_xh_and_corrected_lam"]
            _check_box(video.shape[2:4], lam, box, corrected)
            mixed, lam = mix_box(video, jnp.asarray(box)), jnp.float32(corrected)
        else:
            mixed = mix_linear(video, lam)
        case.close(f"{key}.mixed", np.asarray(mixed).transpose(0, 4, 1, 2, 3))
        label = jnp.asarray(case.io[f"{key}.y"])
        target = mix_targets(label, config["classes"], lam, query["smoothing"])
        case.close(f"{key}.soft_target", target)
        logits = jnp.asarray(case.io[f"{key}.logits"])
        case.close(f"{key}.loss", soft_cross_entropy(logits, target).mean())


def _check_box(shape, lam, box, corrected) -> None:
    """Some centre must give the stored box: the reference drew it with its own generator."""
    for y in range(shape[0]):
        for x in range(shape[1]):
            ours, area = cutmix_box(*shape, lam, jnp.int32(y), jnp.int32(x))
            if ours.tolist() == box:
                np.testing.assert_allclose(area, corrected, atol=1e-6)
                return
    raise AssertionError(f"no centre gives the box {box}")


@adapter("videomae", "schedules")
def schedules(case: Case) -> None:
    for query in case.meta["queries"]:
        if "base_value" in query:
            per_epoch = query["niter_per_ep"]
            warmup = query.get("warmup_steps", 0) or query.get("warmup_epochs", 0) * per_epoch
            total = query["epochs"] * per_epoch
            rate = cosine(
                query["base_value"],
                query["final_value"],
                total,
                warmup,
                query.get("start_warmup_value", 0.0),
            )
            case.close(query["key"], rate(np.arange(total)))
        else:
            rate = slowfast_cosine(
                query["BASE_LR"],
                query["COSINE_END_LR"],
                query["WARMUP_START_LR"],
                query["WARMUP_EPOCHS"],
                query["MAX_EPOCH"],
            )
            case.close(query["key"], rate(np.array(query["epochs"])))


@adapter("videomae", "merge_views")
def view_merging(case: Case) -> None:
    logits, labels = case.io["logits"], case.io["labels"]
    videos, segments, crops, classes = logits.shape
    rows = np.arange(videos * segments * crops)
    # As in the reference, padding repeats some rows; they must not count twice.
    rows = np.concatenate([rows, rows[: case.config["duplicates"]]])
    flat = logits.reshape(-1, classes)[rows]
    record, view = rows // (segments * crops), rows % (segments * crops)
    for how, name in (("probability", "prob"), ("logit", "score")):
        _, scores = merge_views(record, view, flat, how)
        accuracy = [100 * top_k(scores, labels, k) for k in (1, 5)]
        case.close(f"{name}_top1_top5", accuracy)
        if how == "probability":
            case.close("video_prob", scores)
    case.close("u2_video_sum", merge_views(record, view, flat, "probability_sum")[1])


@adapter("video_language", "preprocess")
def preprocess(case: Case) -> None:
    count, size = case.config["fnum"], case.config["size"]
    rgb = case.io["rgb"]

    # Zero-shot demo: every n//count-th frame, the whole frame squashed.
    frames = list(rgb[:: len(rgb) // count][:count])
    squashed = transforms.crop_resize(frames, (0, 0, *rgb.shape[1:3]), size, method="bilinear")
    tube = normalize(jnp.asarray(squashed), IMAGENET_MEAN, IMAGENET_STD)
    case.close("viclip_tube", np.asarray(tube).transpose(0, 3, 1, 2)[None])

    # InternVideo1 multimodal: PIL's antialiased filter, then the centre.
    short = case.config["mm_scale"]
    resized = [transforms.resize_short_side(f, short, "pil_bilinear") for f in rgb[:count]]
    box = transforms.center_box(*resized[0].shape[:2], size)
    cropped = transforms.crop_resize(resized, box, size)
    case.equal("mm_uint8_after_crop", cropped)
    case.close(
        "mm_clip",
        np.asarray(normalize(jnp.asarray(cropped), CLIP_MEAN, CLIP_STD)).transpose(3, 0, 1, 2),
    )
