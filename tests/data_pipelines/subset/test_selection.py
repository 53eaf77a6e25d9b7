"""Selections over columns on disk against the plain ones, across the borders of chunks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from data_pipelines.subset import near_duplicates, sampling, selection


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(selection, "CHUNK", 7)
    monkeypatch.setattr(selection, "PARTITION", 10)


@pytest.mark.parametrize("wanted", [0, 1, 13, 40, 99, 100, 500])
def test_the_largest_stay_and_of_equal_ones_the_first(wanted):
    rng = np.random.default_rng(wanted)
    values = np.round(rng.normal(size=150), 1)  # many ties
    values[3], values[4] = 0.0, -0.0  # equal numbers of different bits
    state = (rng.random(150) < 0.3).astype(np.uint8)
    inside = np.flatnonzero(state == 0)
    values[state != 0] = np.nan
    best = inside[np.argsort(-values[inside], kind="stable")][:wanted]
    threshold = selection.keep_largest(values, state, wanted, 9)
    np.testing.assert_array_equal(np.flatnonzero(state == 0), np.sort(best))
    assert set(state[np.setdiff1d(inside, best)].tolist()) <= {9}
    if 0 < wanted < len(inside):
        assert threshold == values[best].min()
    elif wanted >= len(inside):
        assert threshold is None


def test_extreme_numbers_are_in_order():
    values = np.array([-1e308, -1.0, -5e-324, 0.0, 5e-324, 1.0, 1e308])
    for wanted in range(1, len(values)):
        state = np.zeros(len(values), np.uint8)
        assert selection.keep_largest(values, state, wanted, 1) == values[-wanted]
        assert np.flatnonzero(state == 0).tolist() == list(range(len(values)))[-wanted:]


def test_occurrences_and_repeats():
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**64, 20, np.uint64)[rng.integers(0, 20, 120)]
    state = (rng.random(120) < 0.4).astype(np.uint8)
    counts = Counter(keys[state == 0].tolist())
    out = np.zeros(120, np.uint32)
    assert selection.occurrences(keys, state, out) == len(counts)
    for key, inside, found in zip(keys.tolist(), state == 0, out.tolist(), strict=True):
        assert found == (counts[key] if inside else 0)
    seen: set[int] = set()
    repeats = [
        row
        for row in np.flatnonzero(state == 0).tolist()
        if keys[row] in seen or seen.add(int(keys[row]))
    ]
    assert selection.mark_repeats(keys, state, 5) == len(repeats)
    assert np.flatnonzero(state == 5).tolist() == repeats


def test_both_draws_give_every_video_the_same_chance():
    videos = np.repeat(np.arange(6), [1, 2, 4, 8, 16, 32])
    clips = np.bincount(videos)[videos]
    first = np.zeros((2, 6))
    for seed in range(2000):
        first[0, videos[sampling.diverse(videos, 1, seed)[0]]] += 1
        generator = np.random.Generator(np.random.Philox(seed))
        first[1, videos[np.argmax(sampling.keys(clips, generator))]] += 1
    # Five standard deviations of a share of 1/6 among 2000.
    np.testing.assert_allclose(first / 2000, 1 / 6, atol=5 * np.sqrt(5 / 36 / 2000))


def test_later_draws_agree_with_the_reference_too():
    videos = np.repeat(np.arange(4), [1, 1, 3, 9])
    clips = np.bincount(videos)[videos]
    found = np.zeros((2, 4))
    for seed in range(3000):
        found[0] += np.bincount(videos[sampling.diverse(videos, 5, seed)], minlength=4)
        keys = sampling.keys(clips, np.random.Generator(np.random.Philox(seed)))
        found[1] += np.bincount(videos[np.argsort(-keys)[:5]], minlength=4)
    np.testing.assert_allclose(found[0] / 3000, found[1] / 3000, atol=0.08)


def test_more_than_there_are_cannot_be_drawn():
    with pytest.raises(ValueError, match="cannot draw 3 of 2 clips"):
        sampling.diverse(["a", "b"], 3)


CAPTION = "a man in a red coat walks his dog along the river on a cold day in late autumn"


def _find(captions, tmp_path):
    flags = np.zeros(len(captions), np.uint8)
    report = near_duplicates.find(enumerate(captions), flags, str(tmp_path), 1)
    return np.flatnonzero(flags).tolist(), report


def test_near_duplicates_are_found_by_their_definition(tmp_path):
    captions = [
        CAPTION,
        "someone plays the guitar",
        CAPTION.upper() + "!",  # the same after cleaning
        CAPTION + " morning",  # 17 of 18 pairs
        "a woman cooks",
        "a dog along the river",  # few pairs in common
        "jump",
        "Jump.",
        "",
    ]
    flagged, report = _find(captions, tmp_path)
    assert flagged == [2, 3, 7]
    assert report["near_duplicates"] == 3
    assert report["captions"] == len(captions)
    top = report["largest_groups"][0]
    assert top["caption"] == CAPTION
    assert top["near_duplicates"] == 2
    assert {(e["row"], e["of"]) for e in report["examples"]} == {(2, 0), (3, 0), (7, 6)}
    assert not list(tmp_path.iterdir())


def test_most_pairs_above_the_threshold_are_found_and_none_below(tmp_path):
    rng = np.random.default_rng(1)
    captions, above = [], set()
    for pair in range(300):
        words = [f"w{pair}x{i}" for i in range(20)]
        changed = list(words)
        changed[-1 - pair % 4 :] = rng.permutation([f"y{pair}x{i}" for i in range(1 + pair % 4)])
        for text in (words, changed):
            captions.append(" ".join(text))
        both = [near_duplicates.pairs(text) for text in captions[-2:]]
        if near_duplicates.jaccard(*both) >= near_duplicates.THRESHOLD:
            above.add(len(captions) - 1)
    flagged, _ = _find(captions, tmp_path)
    assert set(flagged) <= above
    assert 0 < len(above) < 300
    assert len(flagged) > 0.95 * len(above)
