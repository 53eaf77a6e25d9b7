"""Cases of retrieval, zero-shot prompts, their schedules, and DIV sampling."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import optax

from data_pipelines.subset.sampling import diverse, inverse_frequency
from internvideo_jax.evaluators import retrieval_metrics as rm
from internvideo_jax.evaluators.published import templates
from internvideo_jax.ops.losses import soft_cross_entropy
from internvideo_jax.optim.bert_adam import scale_by_bert_adam
from internvideo_jax.optim.schedules import floored_cosine, unshifted_cosine
from tests.parity.cases import Case, adapter


def _ranks(scores: np.ndarray, text_video: np.ndarray, rule: str = "captions") -> rm.Retrieval:
    # A small block, so that the cases also cross the borders between blocks.
    return rm.rank(rm.of_matrix(scores), text_video, scores.shape[1], video_to_text=rule, block=4)


def _check_clip4clip(case: Case, ranks: rm.Ranks, expected: dict, *, padded: bool = False) -> None:
    """Against what compute_metrics, or with `padded` the function for several captions, returns."""
    if padded and ranks.equal.any():
        return  # depends on torch's unstable sort; the case calls these rows informative
    places = ranks.positions("repeated")
    found = rm.recalls(places, lower_median=padded)
    names = {"R1": "r1", "R5": "r5", "R10": "r10", "MR": "mdr", "MedianR": "mdr", "MeanR": "mnr"}
    for theirs, ours in names.items():
        factor = 100 if theirs in ("R1", "R5", "R10") else 1
        np.testing.assert_allclose(
            factor * found[ours], expected[theirs], case.meta["rtol"], case.meta["atol"], theirs
        )
    if "cols" in expected:
        assert places.tolist() == expected["cols"]
    if "Std_Rank" in expected:
        np.testing.assert_allclose(np.std(places), expected["Std_Rank"], case.meta["rtol"])


def _check_itm(found: dict[str, dict[str, float]], expected: dict[str, float]) -> None:
    """Against itm_eval: percent, rounded; `found` has the recalls of each prefix."""
    for prefix, recalls in found.items():
        three = [100 * recalls[f"r{k}"] for k in rm.RECALLS]
        for k, value in zip(("r1", "r5", "r10", "r_mean"), [*three, np.mean(three)], strict=True):
            assert round(float(value), 2) == expected[f"{prefix}_{k}"], (prefix, k)
    six = [100 * recalls[f"r{k}"] for recalls in found.values() for k in rm.RECALLS]
    assert round(float(np.mean(six)), 2) == expected["r_mean"]


@adapter("video_language", "retrieval_metrics")
def retrieval(case: Case) -> None:
    expected = json.loads((case.folder / "metrics.json").read_text())
    io = case.io
    for name in ("square", "ties"):
        scores = io[name]
        diagonal = np.arange(len(scores))
        plain = _ranks(scores, diagonal)
        _check_clip4clip(case, plain.text_to_video, expected[name]["t2v"])
        _check_clip4clip(case, plain.video_to_text, expected[name]["v2t"])
        to_video, to_text = rm.dual_softmax(scores, 0), rm.dual_softmax(scores, 1)
        _check_clip4clip(case, _ranks(to_video, diagonal).text_to_video, expected[name]["dsl_t2v"])
        _check_clip4clip(case, _ranks(to_text, diagonal).video_to_text, expected[name]["dsl_v2t"])
        if name == "square":
            case.close("square.dsl_t2v", to_video)
            case.close("square.dsl_v2t", to_text.T)
    _check_losses(case)

    counts = np.array(case.config["captions_per_video"])
    np.testing.assert_array_equal(io["multi.cut_off_points"], counts.cumsum())
    text_video = np.repeat(np.arange(len(counts)), counts)
    padded = io["multi.padded_t2v"]
    scores, group = rm.from_padded(padded, padded[:, :, 0] > -1e8)
    np.testing.assert_array_equal(scores, io["multi"])
    np.testing.assert_array_equal(group, text_video)
    for name in ("multi", "multi_ties"):
        # Here the reference takes one matrix for both ways.
        for prefix, scores in (("", io[name]), ("dsl_", rm.dual_softmax(io[name], 0))):
            ranks = _ranks(scores, text_video, "grouped")
            _check_clip4clip(case, ranks.text_to_video, expected[name][f"{prefix}t2v"], padded=True)
            _check_clip4clip(case, ranks.video_to_text, expected[name][f"{prefix}v2t"])

    scores = io["viclip.cosine_v2t"].T
    to_video, to_text = rm.dual_softmax(scores, 0), rm.dual_softmax(scores, 1)
    case.close("viclip.dsl_t2v", to_video)
    case.close("viclip.dsl_v2t", to_text.T)
    for key, video_scores, text_scores in (
        ("plain", scores, scores),
        ("dsl", to_video, to_text),
    ):
        ranks = rm.Retrieval(
            _ranks(video_scores, text_video).text_to_video,
            _ranks(text_scores, text_video).video_to_text,
        )
        found = {"txt": _later(ranks.video_to_text), "img": _later(ranks.text_to_video)}
        _check_itm(found, expected["viclip_multi"][key])
    # Recognition is retrieval of class prompts: several videos belong to one prompt.
    ranks = _ranks(io["act.scores"], io["act.labels"])
    found = {"txt": _later(ranks.text_to_video), "img": _later(ranks.video_to_text)}
    _check_itm(found, expected["viclip_action"])


def _later(ranks: rm.Ranks) -> dict[str, float]:
    return rm.recalls(ranks.positions("later"))


def _check_losses(case: Case) -> None:
    scores, target = case.io["square"], jnp.eye(len(case.io["square"]))

    def loss(logits: np.ndarray) -> np.ndarray:
        return np.asarray(soft_cross_entropy(jnp.asarray(logits, jnp.float32), target))

    case.close("loss.crossen_sym", (loss(scores).mean() + loss(scores.T).mean()) / 2)
    for key, temperature in (("temp10", 10), ("rowwise_temp1000", 1000)):
        adjusted = rm.dual_softmax(scores, 0, temperature) * len(scores)
        case.close(f"loss.dual_softmax_{key}", loss(adjusted))


@adapter("downstream", "retrieval_metrics")
def downstream_retrieval(case: Case) -> None:
    io, expected = case.io, case.meta["outputs"]
    diagonal = np.arange(len(io["in.sim"]))
    plain = _ranks(io["in.sim"], diagonal)
    _check_clip4clip(case, plain.text_to_video, expected["compute_metrics.t2v"])
    _check_clip4clip(case, plain.video_to_text, expected["compute_metrics.v2t"])
    tied = _ranks(io["in.sim_ties"], np.arange(len(io["in.sim_ties"])))
    _check_clip4clip(case, tied.text_to_video, expected["compute_metrics_ties"])

    padded = io["in.padded_sim"]
    scores, text_video = rm.from_padded(padded, padded[:, :, 0] > -1e29)
    grouped = _ranks(scores, text_video, "grouped")
    _check_clip4clip(case, grouped.text_to_video, expected["tensor_t2v"], padded=True)
    _check_clip4clip(case, grouped.video_to_text, expected["tensor_v2t"])
    best = [scores[text_video == video].max(axis=0) for video in range(len(padded))]
    case.close("out.v2t_sim", np.stack(best, axis=1))

    to_texts = np.array(case.meta["inputs"]["txt2video"])
    t2v = _ranks(io["in.scores_t2v"], to_texts).text_to_video
    v2t = _ranks(io["in.scores_v2t"].T, to_texts).video_to_text
    _check_itm({"v2t": _later(v2t), "t2v": _later(t2v)}, expected["itm_eval"])
    case.close("out.dsl_i2t", rm.dual_softmax(io["in.dsl_sim"], 0))
    case.close("out.dsl_t2i", rm.dual_softmax(io["in.dsl_sim"].T, 0))


@adapter("video_language", "zero_shot_templates")
def zero_shot(case: Case) -> None:
    config, io = case.config, case.io
    # Stored with all classes of the first template first.
    text = io["text_feats_template_major"].reshape(config["templates"], config["classes"], -1)
    text, video = text.transpose(1, 0, 2), io["video_feats"]
    scale = float(np.exp(io["logit_scale"])) if "logit_scale" in io else 1.0
    case.close("iv1.probs", templates.class_scores(video, text, "probability", scale))
    scores = templates.class_scores(video, text)
    case.close("viclip.scores", scores)
    case.close("viclip.scores_dsl", rm.dual_softmax(scores, 0))


@adapter("video_language", "schedules")
def schedules(case: Case) -> None:
    config = case.config
    total = config["total"]
    steps = np.arange(len(case.io["viclip_cosine"]))
    rate = floored_cosine(1.0, config["min_lr_multi"], total, config["warmup_steps"])
    case.close("viclip_cosine", rate(steps))
    rate = unshifted_cosine(1.0, total, config["bert_warmup"] * total)
    case.close("bertadam_warmup_cosine", rate(steps))

    toy = config["bert_toy"]
    rate = unshifted_cosine(toy["lr"], toy["t_total"], config["bert_warmup"] * toy["t_total"])
    transform = optax.chain(
        scale_by_bert_adam(toy["b1"], toy["b2"], toy["eps"], toy["max_grad_norm"]),
        optax.add_decayed_weights(toy["wd"]),
    )
    weights = {"w": jnp.asarray(case.io["bertadam.w0"])}
    state, path = transform.init(weights), []
    for step, gradient in enumerate(case.io["bertadam.grads"]):
        direction, state = transform.update({"w": jnp.asarray(gradient)}, state, weights)
        weights = {"w": weights["w"] - rate(step) * direction["w"]}
        path.append(np.asarray(weights["w"]))
    case.close("bertadam.traj", np.stack(path))


@adapter("video_language", "div_sampling")
def div_sampling(case: Case) -> None:
    rows = json.loads((case.folder / "input.json").read_text())
    expected = json.loads((case.folder / "expected.json").read_text())
    videos = [row["video"].rsplit("/", 1)[-1][:11] for row in rows]
    np.testing.assert_allclose(
        inverse_frequency(videos), expected["weights"], case.meta["rtol"], case.meta["atol"]
    )
    chosen = diverse(videos, case.config["n"], case.config["seed"])
    assert chosen.tolist() == expected["sampled_index"]
