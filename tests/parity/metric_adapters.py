"""Metrics against the reference's own."""

from __future__ import annotations

import numpy as np

from internvideo_jax.evaluators import metrics
from tests.parity.cases import Case, adapter


@adapter("downstream", "classification_metrics")
def classification(case: Case) -> None:
    scores, label = case.io["in.scores"], case.io["in.labels"]
    expected, checked = case.meta["outputs"], set()

    def check(name: str, value: float, wanted: float) -> None:
        checked.add(name.partition(".")[0])
        np.testing.assert_allclose(
            value, float(wanted), atol=case.meta["atol"], rtol=case.meta["rtol"], err_msg=name
        )

    # The fixtures resolve ties as a stable ascending sort that is read from its end.
    top1, top5 = (metrics.top_k(scores, label, k, ties="last") for k in (1, 5))
    check("top1", top1, expected["top1"])
    check("top5", top5, expected["top5"])
    check("avg_top1_top5", (top1 + top5) / 2, expected["avg_top1_top5"])
    check(
        "mean_class_accuracy",
        metrics.mean_class_accuracy(scores, label),
        expected["mean_class_accuracy"],
    )
    views = case.io["in.view_scores"]
    record, view = (index.ravel() for index in np.indices(views.shape[:2]))
    for name, how in (("views_mean_logits", "logit"), ("views_mean_softmax", "probability")):
        _, merged = metrics.merge_views(record, view, views.reshape(-1, views.shape[-1]), how)
        for k in (1, 5):
            found = metrics.top_k(merged, label, k, ties="last")
            check(f"{name}.{k}", found, expected[name][f"top{k}"])
    relevant = case.io["in.multilabel"]
    by_class = [metrics.average_precision(*pair) for pair in zip(scores.T, relevant.T, strict=True)]
    for value, wanted in zip(by_class, expected["per_class_ap_binary_curve"], strict=True):
        check("per_class_ap_binary_curve", value, wanted)
    check(
        "mAP_multilabel",
        metrics.mean_average_precision(scores, relevant),
        expected["mAP_multilabel"],
    )
    check(
        "mmit_mAP",
        metrics.mean_average_precision(scores, relevant, by="row"),
        expected["mmit_mAP"],
    )
    assert checked == set(expected)
