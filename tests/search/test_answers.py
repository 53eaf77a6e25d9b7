"""Questions to an index: ranks, labels, and texts that nobody meant."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from internvideo_jax.families.videomae.model import PretrainConfig
from internvideo_jax.layers.tower import tower
from internvideo_jax.search.answers import Answers, BadQuestion, clock
from internvideo_jax.search.encoder import check_model
from internvideo_jax.search.index import VideoIndex
from tests.search.colours import ColourModel, colour_encoder, index_of


def names(answers: Answers, found) -> list[str]:
    index = answers.index
    return [index.videos[index.clips[hit.clip].video].name for hit in found.hits]


def test_a_query_ranks_the_clips(answers):
    found = answers.search("the green one", 2)
    assert names(answers, found)[0] == "b.mp4" and len(found.hits) == 2
    assert [hit.rank for hit in found.hits] == [1, 2] and not found.note
    cosines = answers.index.embeddings @ answers.encoder.text(["the green one"])[0]
    cosines /= np.linalg.norm(answers.encoder.text(["the green one"])[0])
    np.testing.assert_allclose(found.hits[0].similarity, cosines.max(), rtol=1e-5)


def test_labels_are_a_softmax_of_cosines_over_the_temperature(answers):
    rows = answers.label(range(4), ["red", "green", "blue"])
    np.testing.assert_allclose(rows.sum(axis=1), 1)
    assert [int(row.argmax()) for row in rows[[0, 1, 3]]] == [0, 1, 2]
    text = answers.encoder.text(["red", "green", "blue"])
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    logits = answers.index.embeddings @ text.T / 0.1
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(rows, expected, rtol=1e-4)


def test_templates_are_averaged(answers):
    plain, many = (answers.label([0], ["red", "blue"], name) for name in ("plain", "kinetics28"))
    assert many[0].argmax() == 0 and not np.allclose(plain, many)


ODD = {
    "html": "<script>alert(1)</script> red",
    "surrogates": "red \ud800 \udfff",
    "emoji": "red \U0001f7e5 \u202e\u0000\ufeff",
    "zalgo": "r̵e̷d " * 20,
    "specials": "<|endoftext|> red <|startoftext|>",
}


@pytest.mark.parametrize("case", ODD)
def test_odd_texts_are_answered(answers, case):
    assert len(answers.search(ODD[case]).hits) == 4


def test_a_long_text_is_cut_and_says_so(answers):
    found = answers.search("red " * 2500)
    assert len(found.query) == 1000
    assert found.note == (
        "cut to the first 1000 of 9999 characters; the model reads its first 14 tokens"
    )
    assert not answers.search("red " * 14).note  # as many as fit
    assert "first 14 tokens" in answers.search("red " * 15).note


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\u2003"])
def test_an_empty_query_is_refused(answers, text):
    with pytest.raises(BadQuestion, match="the query is empty"):
        answers.search(text)


def test_a_text_of_nothing_that_is_read_is_refused(videos):
    encoder = colour_encoder()
    model = ColourModel()
    clean = type(encoder)(model, model.params(), clean=True)
    with pytest.raises(BadQuestion, match="no word that the model reads"):
        Answers(index_of(videos, clean)[0], clean).search("?!...")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "no labels"),
        (["red", " "], "a label is empty"),
        (["red", "red "], "'red' is there twice"),
        (["x" * 201], "has 201 characters, expected at most 200"),
    ],
)
def test_lists_of_labels_are_checked(answers, labels, message):
    with pytest.raises(BadQuestion, match=message):
        answers.label([0], labels)


def test_other_wrong_questions(answers):
    with pytest.raises(BadQuestion, match="there is no clip 4; clips are 0 to 3"):
        answers.label([4], ["red"])
    with pytest.raises(BadQuestion, match="unknown templates 'none'"):
        answers.label([0], ["red"], "none")
    for count in (0, 101):
        with pytest.raises(BadQuestion, match=f"count is {count}, expected 1 to 100"):
            answers.search("red", count)


def test_an_empty_index_answers_nothing():
    index = VideoIndex((), (), np.zeros((0, 0), np.float32), ())
    answers = Answers(index, colour_encoder())
    assert answers.search("red").hits == ()
    assert answers.label((), ["red"]).shape == (0, 1)


def test_one_shape_serves_all_questions_at_once(videos):
    encoder = colour_encoder()
    answers = Answers(index_of(videos, encoder)[0], encoder)
    encoder.warm_up()
    assert encoder.compiled == 2
    expected = {text: answers.search(text).hits for text in ("red", "green", "blue fish", "a b c")}
    wrong = []

    def ask(text: str) -> None:
        for _ in range(10):
            rows = answers.label([0, 1], [text, "other"])
            if answers.search(text).hits != expected[text] or rows.shape != (2, 2):
                wrong.append(text)

    threads = [threading.Thread(target=ask, args=(text,)) for text in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and encoder.compiled == 2


def test_a_model_without_texts_is_refused():
    small = tower(16, 1, 2)
    with pytest.raises(ValueError, match="'videomae_pretrain', which reads no text"):
        check_model(PretrainConfig(encoder=small, decoder=small, frames=4, resolution=32, patch=16))


def test_a_tokenizer_with_more_ids_than_the_model_is_refused():
    model = ColourModel()
    params = model.params()
    small = ColourModel(type(model.config)(vocab=100))
    with pytest.raises(ValueError, match="has 49408 ids, the model reads 100"):
        type(colour_encoder())(small, params)


def test_times_are_shown_as_by_a_player():
    assert [clock(seconds) for seconds in (0, 7.46, 59.96, 3600.0)] == [
        "0:00.0",
        "0:07.5",
        "1:00.0",
        "1:00:00.0",
    ]
