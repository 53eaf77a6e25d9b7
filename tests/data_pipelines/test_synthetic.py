"""The built-in world: deterministic, labelled truly, and silent in any single frame."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest

from data_pipelines.synthetic import (
    ACTIONS,
    COLOURS,
    LEVELS,
    World,
    encode_mp4,
    main,
    write_world,
)


def test_a_clip_is_a_pure_function_of_seed_and_index():
    a, b = World(seed=3).clip(17), World(seed=3).clip(17)
    assert (a.video == b.video).all() and a.boxes == b.boxes and a.caption == b.caption
    assert (World(seed=4).clip(17).video != a.video).any()


def test_actions_take_turns_and_captions_tell_everything():
    clips = [World(size=32, frames=2).clip(i) for i in range(20)]
    assert [clip.action for clip in clips] == [*range(10), *range(10)]
    for clip in clips:
        count, colour, shape, verb = clip.caption.split(" ")[:4]
        assert {"two": 2, "three": 3, "four": 4}[count] == clip.count
        assert colour == clip.colour and shape.startswith(clip.shape)
        assert ACTIONS[clip.action].startswith(verb)


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_boxes_hold_the_shapes(level):
    """Outside the boxes nothing has the shapes' brightness against the background."""
    world = World(size=64, frames=6, level=level)
    for index in (0, 4, 6):
        clip = world.clip(index)
        assert len(clip.boxes) == 6
        for frame, boxes in zip(clip.video, clip.boxes, strict=True):
            assert all(0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64 for x0, y0, x1, y1 in boxes)
            if level == 1:
                inside = np.zeros((64, 64), bool)
                for x0, y0, x1, y1 in boxes:
                    # Soft edges reach half a pixel further, around the torus too.
                    rows, columns = np.arange(y0 - 2, y1 + 2), np.arange(x0 - 2, x1 + 2)
                    inside[np.ix_(rows % 64, columns % 64)] = True
                # The brightest channel of every colour exceeds the dimmed background by far.
                assert frame[~inside].max() <= 0.4 * 255 + 6


def test_shapes_move_as_the_label_says():
    """The centre of the brightest colour follows the action (circular mean on the torus)."""
    world = World(size=64, frames=12)

    def centre(frame: np.ndarray, axis: int) -> float:
        weight = np.clip(frame.max(axis=2).astype(float) - 110, 0, None).sum(axis=axis)
        angle = np.angle((weight * np.exp(2j * np.pi * np.arange(64) / 64)).sum())
        return float(angle * 64 / (2 * np.pi))

    def travel(clip, axis: int) -> float:
        positions = [centre(frame, axis) for frame in clip.video]
        steps = (np.diff(positions) + 32) % 64 - 32
        return float(steps.sum())

    expected = {"moves left": (0, -1), "moves right": (0, 1), "moves up": (1, -1),
                "moves down": (1, 1)}  # fmt: skip
    for name, (axis, sign) in expected.items():
        for turn in range(5):
            clip = world.clip(ACTIONS.index(name) + 10 * turn)
            assert travel(clip, axis) * sign > 8, (name, turn)
            assert abs(travel(clip, 1 - axis)) < 8, (name, turn)


def features(clips: np.ndarray) -> np.ndarray:
    """Phase correlation of neighbouring frames: (R, T, H, W) -> (R, 81), a motion histogram."""
    level = clips.mean(axis=(2, 3), keepdims=True, dtype=np.float32)
    spectrum = np.fft.rfft2(clips.astype(np.float32) - level)
    cross = spectrum[:, 1:] * np.conj(spectrum[:, :-1])
    surface = np.fft.irfft2(cross / (np.abs(cross) + 1e-3)).mean(axis=1)
    return np.fft.fftshift(surface, axes=(1, 2))[:, 28:37, 28:37].reshape(len(clips), -1)


def probe(train: np.ndarray, train_label, test: np.ndarray, test_label) -> float:
    """Accuracy of ridge regression on one-hot labels."""
    mean, std = train.mean(axis=0), train.std(axis=0) + 1e-6
    a, b = ((x - mean) / std for x in (train, test))
    target = np.eye(len(ACTIONS))[train_label] - 1 / len(ACTIONS)
    weight = np.linalg.solve(a.T @ a + 10.0 * np.eye(a.shape[1]), a.T @ target)
    return float(((b @ weight).argmax(axis=1) == test_label).mean())


def test_no_single_frame_reveals_the_action_but_the_clip_does():
    world = World(size=64, frames=8)
    clips = [world.clip(i) for i in range(900)]
    video = np.stack([clip.video.max(axis=3) for clip in clips])
    label = np.array([clip.action for clip in clips])
    cut = 600
    moving = features(video)
    assert probe(moving[:cut], label[:cut], moving[cut:], label[cut:]) > 0.4
    # The same probe on one frame shown twice (more often, all neighbours are this pair again), and
    # on its pixels: chance is 0.1 and the standard error of 300 test clips 0.017.
    for t in (0, 3, 7):
        still = features(np.repeat(video[:, t : t + 1], 2, axis=1))
        assert probe(still[:cut], label[:cut], still[cut:], label[cut:]) < 0.16
        pixels = video[:, t, ::4, ::4].reshape(len(video), -1).astype(float)
        assert probe(pixels[:cut], label[:cut], pixels[cut:], label[cut:]) < 0.16


def test_written_files_are_real_videos_with_annotations(tmp_path):
    world = World(size=32, frames=9, seed=5)
    assert write_world(world, tmp_path, {"train": 3, "test": 2}) == 5
    rows = [json.loads(line) for line in (tmp_path / "annotations.jsonl").open()]
    assert [row["split"] for row in rows] == ["train"] * 3 + ["test"] * 2
    for index, row in enumerate(rows):
        clip = world.clip(index)
        assert row["label"] == ACTIONS[clip.action] and row["caption"] == clip.caption
        found = [
            (round(box["time"] * 12), *(round(32 * box[edge]) for edge in ("x1", "y1", "x2", "y2")))
            for box in row["boxes"]
        ]
        assert found == [(t, *box) for t, boxes in enumerate(clip.boxes) for box in boxes]
        with av.open(str(tmp_path / row["path"])) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            decoded = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
        assert decoded.shape == clip.video.shape
        assert np.abs(decoded.astype(int) - clip.video).mean() < 8
    assert (tmp_path / "labels.csv").read_text().startswith("path,id,split,label,caption")
    assert len(COLOURS) == 5


def test_equal_seeds_write_equal_files(tmp_path):
    for name in ("a", "b"):
        write_world(World(size=32, frames=4), tmp_path / name, {"train": 2})
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_an_encoded_file_does_not_depend_on_what_memory_held(tmp_path):
    video = World(size=32, frames=4).clip(0).video
    rng, path, files = np.random.default_rng(0), tmp_path / "clip.mp4", set()
    for _ in range(150):
        junk = [rng.integers(0, 255, int(size), np.uint8) for size in rng.integers(100, 2e5, 20)]
        del junk
        encode_mp4(path, video, fps=12)
        with av.open(str(path)) as container:  # threads of the decoder leave their traces too
            assert len(list(container.decode(video=0))) == 4
        files.add(path.read_bytes())
    assert len(files) == 1


def test_command_line(tmp_path, capsys):
    main([f"--out={tmp_path}", "--train=2", "--test=1", "--size=32", "--frames=4", "--level=3"])
    assert "3 clips of 10 actions" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([f"--out={tmp_path}", "--size=33"])
