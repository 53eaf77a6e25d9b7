"""Text-video retrieval: ranks, recalls and their protocols, in numpy on the host.

A set has T texts and V videos, and every text belongs to one video. Similarities are looked at in
blocks, so that T x V of them never exist at once: 100 000 x 100 000 in single precision would be
40 GB.

Scores of embeddings are made in double and rounded to single precision. Equal pairs then tie
exactly whatever the size of the blocks, and results do not depend on it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

# How candidates with the score of the truth count, for the protocol of a result too. `repeated` is
# CLIP4Clip's and InternVideo1's function. `later` stands for ViCLIP and InternVideo2, which reverse
# `np.argsort`: numpy sorts unstably by default, so that their order of equal scores depends on its
# version, the processor and the length of the row. Reversing the stable sort is the fixed rule
# nearest to it; without ties the two are the same.
TIES = {
    "optimistic": "the truth before all candidates with its score",
    "mid": "the truth in the middle of the candidates with its score",
    "pessimistic": "the truth after all candidates with its score",
    "repeated": "a query counts once for every place that its truth could take",
    "later": "a stable ascending sort, reversed: candidates of higher number first. The reference "
    "reverses an unstable one, whose order of equal scores is not defined",
}
# What a video is compared with. `captions`: every text is a candidate, the best of its own counts
# (ViCLIP, InternVideo2). `grouped`: a candidate is all texts of a video, scored by the best one
# (CLIP4Clip).
VIDEO_TO_TEXT = ("captions", "grouped")
RECALLS = (1, 5, 10)

# (numbers of texts, slice of videos) -> scores (texts, videos); the same pair the same number.
Score = Callable[[np.ndarray, slice], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Where the truth of each query stands, with what ties leave open.

    Attributes:
      greater: (Q,) int64, candidates that score higher than the best truth.
      equal: (Q,) int64, other candidates with its very score.
      later: (Q,) int64, those of `equal` with a higher number.
    """

    greater: np.ndarray
    equal: np.ndarray
    later: np.ndarray

    def positions(self, ties: str = "mid") -> np.ndarray:
        """Ranks from 0 by a rule of TIES; (Q,), float64 with halves for `mid`.

        `repeated` gives more than Q. `later` equals `np.argsort(row, kind="stable")[::-1]`; the
        reference's plain `np.argsort` gives other ranks to tied queries, and no others.
        """
        if ties == "optimistic":
            return self.greater
        if ties == "mid":
            return self.greater + self.equal / 2
        if ties == "pessimistic":
            return self.greater + self.equal
        if ties == "later":
            return self.greater + self.later
        if ties == "repeated":
            first = np.repeat(self.greater, self.equal + 1)
            begin = np.repeat(np.cumsum(self.equal + 1) - self.equal - 1, self.equal + 1)
            return first + np.arange(len(first)) - begin
        raise ValueError(f"unknown tie rule {ties!r}; known: {', '.join(TIES)}")


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Ranks both ways.

    Attributes:
      text_to_video: one query per text, in the order of the texts.
      video_to_text: one query per video that has a text, in the order of the videos.
    """

    text_to_video: Ranks
    video_to_text: Ranks


def rank(
    score: Score,
    text_video: np.ndarray,
    videos: int,
    *,
    video_to_text: str = "captions",
    block: int = 4096,
) -> Retrieval:
    """Ranks of T texts and `videos` videos from their scores, `block` by `block` of them.

    Args:
      score: gives any block of the scores.
      text_video: (T,) number of the video that a text belongs to. Videos without a text are
        candidates, but no queries.
      video_to_text: one of VIDEO_TO_TEXT.

    Raises:
      ValueError: no texts, a video number outside 0 .. videos - 1, a score that is NaN.
    """
    if video_to_text not in VIDEO_TO_TEXT:
        raise ValueError(
            f"unknown rule video_to_text={video_to_text!r}; known: {', '.join(VIDEO_TO_TEXT)}"
        )
    text_video = _check_videos(text_video, videos)
    # Texts of a video next to each other, so that a block holds whole groups.
    order = np.argsort(text_video, kind="stable")
    best, chosen, own = _truth(score, text_video, videos, order, block)
    t2v = np.zeros((3, len(text_video)), np.int64)
    v2t = np.zeros((3, videos), np.int64)
    for rows, columns, scores in _blocks(score, text_video, videos, order, block):
        group = text_video[rows]
        number = np.arange(columns.start, columns.stop)
        false = group[:, None] != number
        t2v[:, rows] += _count(scores, own[rows, None], false, number > group[:, None], 1)
        if video_to_text == "captions":
            after = rows[:, None] > chosen[columns]
            v2t[:, columns] += _count(scores, best[columns], false, after, 0)
        else:
            first = np.flatnonzero(np.diff(group, prepend=-1))
            top, name = np.maximum.reduceat(scores, first, axis=0), group[first, None]
            v2t[:, columns] += _count(top, best[columns], name != number, name > number, 0)
    asked = np.bincount(text_video, minlength=videos) > 0
    return Retrieval(Ranks(*t2v), Ranks(*v2t[:, asked]))


def _count(
    scores: np.ndarray, truth: np.ndarray, false: np.ndarray, later: np.ndarray, axis: int
) -> np.ndarray:
    """(3, Q) counts of Ranks, over the wrong candidates along `axis`."""
    equal = (scores == truth) & false
    parts = ((scores > truth) & false, equal, equal & later)
    return np.stack([np.count_nonzero(part, axis=axis) for part in parts])


def _truth(
    score: Score, text_video: np.ndarray, videos: int, order: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(V,) best score of a video's texts, (V,) last text that has it, (T,) score of each text."""
    own = np.empty(len(text_video), np.float64)
    # Only blocks on the diagonal: a few texts with the few videos they belong to.
    step = max(1, min(block, 256))
    for begin in range(0, len(order), step):
        rows = order[begin : begin + step]
        group = text_video[rows]
        # Between the first and the last video there may be many without a text.
        for low in range(int(group[0]), int(group[-1]) + 1, step):
            some = (group >= low) & (group < low + step)
            if some.any():
                columns = slice(low, min(low + step, videos))
                scores = _checked(score(rows[some], columns), rows[some], columns)
                own[rows[some]] = scores[np.arange(some.sum()), group[some] - low]
    best = np.full(videos, -np.inf)
    np.maximum.at(best, text_video, own)
    chosen = np.full(videos, -1)
    tops = np.flatnonzero(own == best[text_video])
    np.maximum.at(chosen, text_video[tops], tops)
    return best, chosen, own


def _blocks(
    score: Score, text_video: np.ndarray, videos: int, order: np.ndarray, block: int
) -> Iterator[tuple[np.ndarray, slice, np.ndarray]]:
    """(numbers of texts, slice of videos, scores): whole groups of texts, at least one."""
    if block < 1:
        raise ValueError(f"block must be at least 1, found {block}")
    group = text_video[order]
    begin = 0
    while begin < len(order):
        end = begin + block
        if end < len(order):
            end = int(np.searchsorted(group, group[end]))  # begin of the group that would be cut
            if end <= begin:  # a video with more than `block` texts
                end = int(np.searchsorted(group, group[begin], side="right"))
        rows = order[begin:end]
        for low in range(0, videos, block):
            columns = slice(low, min(low + block, videos))
            yield rows, columns, _checked(score(rows, columns), rows, columns)
        begin += len(rows)


def _checked(scores: np.ndarray, rows: np.ndarray, columns: slice) -> np.ndarray:
    if np.isnan(scores).any():
        row, column = (int(axis[0]) for axis in np.nonzero(np.isnan(scores)))
        raise ValueError(
            f"the similarity of text {rows[row]} and video {columns.start + column} is NaN: an "
            "embedding or the temperature is broken"
        )
    return scores


def _check_videos(text_video: np.ndarray, videos: int) -> np.ndarray:
    text_video = np.asarray(text_video, np.int64)
    if text_video.ndim != 1 or not len(text_video):
        raise ValueError(f"retrieval needs at least one text, found shape {text_video.shape}")
    low, high = int(text_video.min()), int(text_video.max())
    if low < 0 or high >= videos:
        raise ValueError(
            f"texts belong to the videos {low} to {high}, expected numbers from 0 to {videos - 1}"
        )
    return text_video


def of_matrix(scores: np.ndarray) -> Score:
    """Blocks of a matrix (T, V) that exists."""
    return lambda rows, columns: scores[rows, columns]


def of_embeddings(text: np.ndarray, video: np.ndarray, scale: float = 1.0) -> Score:
    """Blocks of `scale` x cosine; text (T, E) and video (V, E), not necessarily of length 1.

    Raises:
      ValueError: widths that differ, a value that is not finite, a vector of length 0.
    """
    if text.ndim != 2 or video.ndim != 2 or text.shape[1] != video.shape[1]:
        raise ValueError(
            f"embeddings of texts {text.shape} and videos {video.shape} must be two matrices with "
            "rows of one width"
        )
    lengths = [_lengths(text, "text"), _lengths(video, "video")]

    def score(rows: np.ndarray, columns: slice) -> np.ndarray:
        left = text[rows].astype(np.float64) / lengths[0][rows, None]
        right = video[columns].astype(np.float64) / lengths[1][columns, None]
        return (scale * (left @ right.T)).astype(np.float32)

    return score


def _lengths(rows: np.ndarray, what: str) -> np.ndarray:
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(bad):
        raise ValueError(
            f"the embedding of {what} {bad[0]} has length {lengths[bad[0]]}, and {len(bad)} in all "
            "are zero or not finite; they have no cosine"
        )
    return lengths


def dual_softmax(scores: np.ndarray, axis: int, temperature: float = 1.0) -> np.ndarray:
    """scores * softmax(scores / temperature) over `axis`, that of the queries; a whole matrix.

    It looks at all queries of the test set at once, so its numbers stand beside the plain ones,
    never in their place.
    """
    return (scores * np.exp(scores / temperature - _logsumexp(scores / temperature, axis))).astype(
        scores.dtype
    )


def _logsumexp(scores: np.ndarray, axis: int) -> np.ndarray:
    scores = scores.astype(np.float64)
    top = scores.max(axis=axis, keepdims=True)
    return top + np.log(np.exp(scores - top).sum(axis=axis, keepdims=True))


def of_dual_softmax(
    score: Score, texts: int, videos: int, *, queries: str, block: int = 4096
) -> Score:
    """Blocks of the dual softmax at temperature 1, after one pass over all scores.

    Args:
      queries: `texts` for text to video, `videos` for video to text.
    """
    if queries not in ("texts", "videos"):
        raise ValueError(f"queries must be texts or videos, found {queries!r}")
    over_texts = queries == "texts"
    total = np.full(videos if over_texts else texts, -np.inf)
    everything = np.arange(texts)
    for begin in range(0, texts, block):
        rows = everything[begin : begin + block]
        for low in range(0, videos, block):
            columns = slice(low, min(low + block, videos))
            part = _logsumexp(_checked(score(rows, columns), rows, columns), 0 if over_texts else 1)
            position = columns if over_texts else slice(begin, begin + len(rows))
            total[position] = np.logaddexp(total[position], part.ravel())

    def adjusted(rows: np.ndarray, columns: slice) -> np.ndarray:
        scores = score(rows, columns)
        sums = total[None, columns] if over_texts else total[rows, None]
        return (scores * np.exp(scores.astype(np.float64) - sums)).astype(np.float32)

    return adjusted


def from_padded(padded: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CLIP4Clip's layout of several captions per video, without its padding.

    Args:
      padded: (V, C, V) scores: caption c of video v with every video.
      valid: (V, C) bool, whether there is such a caption.

    Returns:
      (T, V) scores and (T,) the video of each text.
    """
    return padded[valid], np.nonzero(valid)[0]


def recalls(positions: np.ndarray, *, lower_median: bool = False) -> dict[str, float]:
    """r1, r5, r10 (shares), mdr and mnr (from 1): median and mean rank.

    Args:
      places: ranks from 0.
      lower_median: of two middle ranks the lower, as torch takes it; otherwise their mean.
    """
    found = {f"r{k}": float((positions < k).mean()) for k in RECALLS}
    method = "lower" if lower_median else "linear"
    return {
        **found,
        "mdr": float(np.quantile(positions, 0.5, method=method)) + 1,
        "mnr": float(positions.mean()) + 1,
    }


def summary(found: Retrieval, ties: str = "mid") -> dict[str, float]:
    """The numbers of both ways: `t2v_r1` ..., `v2t_mnr`, `r_mean` (of the six recalls).

    `t2v_tied` and `v2t_tied` are the shares of queries whose rank depends on the tie rule: 0 for
    a sound model, 1 for one that gives the same embedding to everything.
    """
    ways = {"t2v": found.text_to_video, "v2t": found.video_to_text}
    result = {}
    for way, ranks in ways.items():
        for key, value in recalls(ranks.positions(ties)).items():
            result[f"{way}_{key}"] = value
        result[f"{way}_tied"] = float((ranks.equal > 0).mean())
    six = [result[f"{way}_r{k}"] for way in ways for k in RECALLS]
    return {**result, "r_mean": float(np.mean(six))}


def retrieve(
    text: np.ndarray,
    video: np.ndarray,
    text_video: np.ndarray,
    *,
    scale: float = 1.0,
    video_valid: np.ndarray | None = None,
    ties: str = "mid",
    video_to_text: str = "captions",
    with_dual_softmax: bool = True,
    block: int = 4096,
) -> dict[str, float]:
    """All numbers of a test set from its embeddings, streamed.

    Args:
      text: (T, E); rows with `text_video` -1 are padding.
      video: (V, E).
      text_video: (T,) the video of each text, or -1.
      scale: what cosines are multiplied by; matters to the dual softmax only (the references: 1
        in ViCLIP and InternVideo2, exp(logit_scale) in InternVideo1).
      video_valid: (V,) bool, False for padding; texts of such videos are left out and counted.
      block: texts and videos looked at a time; memory is about 40 bytes x block x block.

    Returns:
      `summary` of the plain scores, the same with `dsl_` before each name for the dual softmax,
      `texts`, `videos`, and `texts_left_out` because their video is not valid.
    """
    text_video = np.asarray(text_video, np.int64)
    if text_video.shape != text.shape[:1]:
        raise ValueError(f"{len(text)} texts, but text_video of shape {text_video.shape}")
    kept = np.ones(len(video), bool) if video_valid is None else np.asarray(video_valid, bool)
    if kept.shape != video.shape[:1]:
        raise ValueError(f"{len(video)} videos, but video_valid of shape {kept.shape}")
    if len(text_video) and (text_video.min() < -1 or text_video.max() >= len(video)):
        raise ValueError(
            f"text_video goes from {text_video.min()} to {text_video.max()}, expected numbers of "
            f"the {len(video)} videos, or -1 for padding"
        )
    there = text_video >= 0
    usable = there & kept[text_video]
    text, text_video = text[usable], (np.cumsum(kept) - 1)[text_video[usable]]
    video = video[kept]
    score = of_embeddings(text, video, scale)
    size = {"videos": len(video), "video_to_text": video_to_text, "block": block}
    result = summary(rank(score, text_video, **size), ties)
    if with_dual_softmax:
        ways = {
            queries: of_dual_softmax(score, len(text), len(video), queries=queries, block=block)
            for queries in ("texts", "videos")
        }
        adjusted = Retrieval(
            rank(ways["texts"], text_video, **size).text_to_video,
            rank(ways["videos"], text_video, **size).video_to_text,
        )
        result |= {f"dsl_{key}": value for key, value in summary(adjusted, ties).items()}
    counts = {
        "texts": len(text),
        "videos": len(video),
        "texts_left_out": int((there & ~usable).sum()),
    }
    return {**result, **{key: float(value) for key, value in counts.items()}}
