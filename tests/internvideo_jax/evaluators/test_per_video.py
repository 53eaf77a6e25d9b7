"""Rows for single videos."""

from __future__ import annotations

import csv
import io
import json
from types import SimpleNamespace

import numpy as np

from internvideo_jax.evaluators.per_video import Scored, best, jsonl, sheet

NAMES = ["a", "b, c", 'd "e"', "f", "g", "h"]


def scored() -> Scored:
    ids = {0: "x/é.mp4", 3: ""}
    dataset = SimpleNamespace(load=lambda number: SimpleNamespace(media_id=ids[number]))
    scores = np.array([[0.1, 0.2, 0.05, 0.25, 0.25, 0.15], [0.5, 0.1, 0.1, 0.1, 0.1, 0.1]])
    return Scored(dataset, np.array([0, 3]), np.array([4, 0]), scores, NAMES)


def test_rows_have_the_label_its_rank_and_the_best_classes():
    first, second = scored().rows()
    assert (first["id"], first["label"], first["rank"]) == ("x/é.mp4", "g", 2)
    # Of equal scores the class that comes first, as accuracy counts.
    assert [each["label"] for each in first["top"]] == ["f", "g", "b, c", "h", "a"]
    assert (second["id"], second["rank"]) == ("record 3", 1) and "scores" not in second
    (all_scores, _) = scored().rows(every=True)
    assert all_scores["scores"] == [0.1, 0.2, 0.05, 0.25, 0.25, 0.15]


def test_jsonl_and_csv_say_the_same():
    rows = [*scored().rows(every=True), {"id": "y", "skipped": "damaged\nfile"}]
    assert [json.loads(line) for line in jsonl(rows).splitlines()] == rows
    found = list(csv.DictReader(io.StringIO(sheet(rows))))
    assert [row["id"] for row in found] == ["x/é.mp4", "record 3", "y"]
    assert found[0]["top_label_3"] == "b, c" and float(found[0]["top_score_3"]) == 0.2
    assert found[2]["skipped"] == "damaged\nfile" and found[2]["top_label_1"] == ""
    assert "scores" not in found[0]


def test_fewer_classes_than_are_asked_for():
    assert best(np.array([0.2, 0.8]), ["a", "b"], 5) == [
        {"label": "b", "score": 0.8},
        {"label": "a", "score": 0.2},
    ]
