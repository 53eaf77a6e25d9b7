"""Ranks in blocks against ranks by sorting whole rows; ties, padding, dual softmax."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from internvideo_jax.evaluators import retrieval_metrics as rm


def embeddings(seed=0, texts=60, videos=25, width=8):
    rng = np.random.default_rng(seed)
    video = rng.normal(size=(videos, width)).astype(np.float32)
    # Not sorted by video; some videos have no text.
    text_video = rng.integers(0, videos - 3, texts)
    text = (video[text_video] + 2 * rng.normal(size=(texts, width))).astype(np.float32)
    return text, video, text_video


def by_sorting(scores, truths):
    """Rank from 0 of the best truth, row by row."""
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.array(
        [min(list(o).index(t) for t in ts) for o, ts in zip(order, truths, strict=True)]
    )


def cosines(text, video):
    a = text / np.linalg.norm(text, axis=1, keepdims=True).astype(np.float64)
    b = video / np.linalg.norm(video, axis=1, keepdims=True).astype(np.float64)
    return a @ b.T


@pytest.mark.parametrize("block", [1, 7, 16, 4096])
@pytest.mark.parametrize("rule", rm.VIDEO_TO_TEXT)
def test_blocks_agree_with_sorting(block, rule):
    text, video, text_video = embeddings()
    scores = cosines(text, video)
    found = rm.rank(
        rm.of_embeddings(text, video), text_video, len(video), video_to_text=rule, block=block
    )
    np.testing.assert_array_equal(
        found.text_to_video.positions(), by_sorting(scores, [[v] for v in text_video])
    )
    asked = np.unique(text_video)
    if rule == "captions":
        expected = by_sorting(scores.T[asked], [np.flatnonzero(text_video == v) for v in asked])
    else:
        grouped = np.stack([scores[text_video == v].max(axis=0) for v in asked], axis=1)
        expected = by_sorting(grouped[asked], [[i] for i in range(len(asked))])
    np.testing.assert_array_equal(found.video_to_text.positions(), expected)
    assert not found.text_to_video.equal.any()


def places_by_argsort(scores, kind):
    """ViCLIP's rank of the diagonal: the place in the reversed order of `np.argsort`."""
    return np.array(
        [
            int(np.flatnonzero(np.argsort(row, kind=kind)[::-1] == i)[0])
            for i, row in enumerate(scores)
        ]
    )


@pytest.mark.parametrize("videos", [2, 17, 40, 150])
def test_later_is_the_reversed_stable_sort_and_any_sort_without_ties(videos):
    rng = np.random.default_rng(videos)
    plain = rng.normal(size=(videos, videos)).astype(np.float32)
    for scores in (plain, np.round(plain * 2) / 2, np.zeros_like(plain), np.sign(plain)):
        found = rm.rank(rm.of_matrix(scores), np.arange(videos), videos, block=16)
        for ranks, rows in ((found.text_to_video, scores), (found.video_to_text, scores.T)):
            positions = ranks.positions("later")
            np.testing.assert_array_equal(positions, places_by_argsort(rows, "stable"))
            # The reference's own call may differ where scores are equal, and nowhere else.
            other = positions != places_by_argsort(rows, None)
            assert not other[ranks.equal == 0].any()


def test_of_several_true_texts_the_best_place_counts():
    """Video to text, several captions each: the reference takes the least place of all of them."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        scores = rng.integers(0, 4, (12, 5)).astype(np.float32)
        text_video = rng.integers(0, 5, 12)
        found = rm.rank(rm.of_matrix(scores), text_video, 5).video_to_text.positions("later")
        best = []
        for video in np.unique(text_video):
            order = np.argsort(scores[:, video], kind="stable")[::-1]
            best.append(
                min(np.flatnonzero(order == t)[0] for t in np.flatnonzero(text_video == video))
            )
        assert found.tolist() == best


def test_results_are_equal_to_the_bit_for_every_block_also_with_ties():
    text, video, text_video = embeddings(1, texts=90)
    # The same captions for other videos, and the same videos again.
    text[60:], text_video[60:] = text[:30], (text_video[:30] + 1) % 22
    video[20:24] = video[:4]
    size = [
        rm.retrieve(text, video, text_video, scale=20.0, block=block, ties="pessimistic")
        for block in (1, 5, 13, 50, 4096)
    ]
    assert all(each == size[0] for each in size)
    assert size[0]["v2t_tied"] > 0.2
    assert size[0]["t2v_tied"] > 0


def test_every_tie_rule_by_hand():
    # Query 0 has its truth among two of equal score, one before and one after it; one is better.
    scores = np.array([[5.0, 3, 3, 3, 1]], np.float32)
    ranks = rm.rank(rm.of_matrix(scores), np.array([2]), 5).text_to_video
    assert (ranks.greater[0], ranks.equal[0], ranks.later[0]) == (1, 2, 1)
    expected = {
        "optimistic": [1],
        "mid": [2.0],
        "pessimistic": [3],
        "later": [2],
        "repeated": [1, 2, 3],
    }
    assert set(expected) == set(rm.TIES)
    for rule, positions in expected.items():
        assert ranks.positions(rule).tolist() == positions
    with pytest.raises(ValueError, match="unknown tie rule 'best'"):
        ranks.positions("best")


def test_of_several_texts_with_the_best_score_the_last_stands_for_the_video():
    # As an ascending stable sort, reversed: candidate 2 is before 1 and 0.
    scores = np.array([[1.0, 0], [1.0, 0], [1.0, 0]], np.float32)
    for text_video, position in (([0, 1, 0], 0), ([0, 0, 1], 1), ([0, 1, 1], 2)):
        ranks = rm.rank(rm.of_matrix(scores), np.array(text_video), 2, block=1).video_to_text
        assert ranks.positions("later")[0] == position


def test_a_collapsed_model_is_not_perfect_by_the_default_rule():
    constant = np.ones((100, 4), np.float32)
    found = rm.retrieve(constant, constant, np.arange(100))
    assert found["t2v_r1"] == found["v2t_r10"] == 0
    assert found["t2v_tied"] == 1
    assert rm.retrieve(constant, constant, np.arange(100), ties="optimistic")["t2v_r1"] == 1


def test_dual_softmax_in_blocks_is_that_of_the_matrix():
    text, video, text_video = embeddings(2)
    score = rm.of_embeddings(text, video, 20.0)
    matrix = score(np.arange(len(text)), slice(0, len(video)))
    rows, columns = np.arange(10, 30), slice(3, 20)
    for queries, axis in (("texts", 0), ("videos", 1)):
        adjusted = rm.of_dual_softmax(score, len(text), len(video), queries=queries, block=7)
        np.testing.assert_allclose(
            adjusted(rows, columns), rm.dual_softmax(matrix, axis)[rows, columns], 1e-6, 1e-9
        )
    found = rm.retrieve(text, video, text_video, scale=20.0, block=7)
    dense = rm.rank(rm.of_matrix(rm.dual_softmax(matrix, 0)), text_video, len(video))
    assert found["dsl_t2v_mnr"] == rm.recalls(dense.text_to_video.positions())["mnr"]
    assert found["dsl_t2v_mnr"] != found["t2v_mnr"]


def test_padding_changes_nothing_and_broken_videos_take_their_texts_along():
    text, video, text_video = embeddings(3)
    plain = rm.retrieve(text, video, text_video)
    padded = rm.retrieve(
        np.concatenate([text, np.zeros((5, 8), np.float32)]),
        np.concatenate([video, np.full((2, 8), np.nan, np.float32)]),
        np.concatenate([text_video, np.full(5, -1)]),
        video_valid=np.arange(27) < 25,
    )
    assert padded == plain
    kept = text_video != 4
    valid = np.arange(25) != 4
    left = rm.retrieve(text, video, text_video, video_valid=valid)
    fewer = rm.retrieve(text[kept], video[valid], text_video[kept] - (text_video[kept] > 4))
    assert left.pop("texts_left_out") == (~kept).sum() > 0
    assert fewer.pop("texts_left_out") == 0
    assert left == fewer


def test_summary_by_hand():
    scores = np.array([[3, 2, 1], [3, 2, 1], [1, 2, 3]], np.float32)
    found = rm.summary(rm.rank(rm.of_matrix(scores), np.arange(3), 3, block=2))
    # Texts: ranks 0, 1, 0. Videos: the first ties with another text, halves; the second ties with
    # both, one place; the third 0.
    assert found["t2v_r1"] == pytest.approx(2 / 3)
    assert (found["t2v_mdr"], found["t2v_mnr"]) == (1.0, pytest.approx(4 / 3))
    assert found["v2t_mnr"] == pytest.approx(1 + (0.5 + 1 + 0) / 3)
    assert found["v2t_tied"] == pytest.approx(2 / 3)
    assert found["r_mean"] == pytest.approx((2 / 3 + 1 + 1 + 2 / 3 + 1 + 1) / 6)
    lower = rm.recalls(np.array([0, 2, 4, 9]), lower_median=True)
    assert (lower["mdr"], rm.recalls(np.array([0, 2, 4, 9]))["mdr"]) == (3, 4)


def test_memory_is_that_of_a_block():
    rng = np.random.default_rng(0)
    text = rng.normal(size=(1500, 8)).astype(np.float32)
    tracemalloc.start()
    try:
        rm.retrieve(text, text, np.arange(1500), block=128)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # All similarities would be 9 MB in single precision.
    assert peak < 2e6


def test_bad_input_is_named():
    text, video, text_video = embeddings()
    with pytest.raises(ValueError, match="texts belong to the videos 0 to 60, expected .* 0 to 24"):
        rm.rank(rm.of_embeddings(text, video), np.array([0, 60]), 25)
    with pytest.raises(ValueError, match="at least one text"):
        rm.retrieve(text[:0], video, text_video[:0])
    with pytest.raises(ValueError, match="two matrices"):
        rm.of_embeddings(text[:, :4], video)
    with pytest.raises(ValueError, match="numbers of the 25 videos"):
        rm.retrieve(text, video, text_video + 20)
    broken = text.copy()
    broken[7, 2] = np.nan
    with pytest.raises(ValueError, match="embedding of text 7 has length nan"):
        rm.retrieve(broken, video, text_video)
    scores = cosines(text, video)
    scores[33, 5] = np.nan
    with pytest.raises(ValueError, match="similarity of text 33 and video 5 is NaN"):
        rm.rank(rm.of_matrix(scores), text_video, 25, block=9)
    with pytest.raises(ValueError, match="unknown rule video_to_text='best'"):
        rm.rank(rm.of_matrix(scores), text_video, 25, video_to_text="best")
