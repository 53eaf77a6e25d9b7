"""Many heads on one backbone: each as if alone, nothing else moves, the test chooses nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.config import ClipConfig, DataConfig, ViewConfig
from internvideo_jax.checkpoint.initial import initialise
from internvideo_jax.config import MeshConfig, OptimConfig, TrainConfig, as_plain, to_typed
from internvideo_jax.evaluators.base import EvalContext
from internvideo_jax.evaluators.classification import Accuracy
from internvideo_jax.evaluators.probe_grid import OneHead, ProbeGrid, _by_video
from internvideo_jax.families.probe.model import ProbeConfig
from internvideo_jax.families.viclip.model import ViCLIPConfig
from internvideo_jax.families.videomae.model import PretrainConfig
from internvideo_jax.layers.tower import TowerConfig
from internvideo_jax.objectives.classification import Classification
from internvideo_jax.objectives.probe import Probe
from internvideo_jax.ops.probe_heads import HeadSpec, apply_head, init_head, read
from internvideo_jax.parallel.mesh import make_mesh
from internvideo_jax.run.build import build
from internvideo_jax.run.step import init_state, make_train_step
from internvideo_jax.types import flatten_paths, unflatten_paths
from internvideo_jax.weights.files import Weights, save_ours
from tests.internvideo_jax import small

TOWER = TowerConfig(width=16, depth=1, heads=2, hidden=32)
MAE = PretrainConfig(encoder=TOWER, decoder=TOWER, **small.clip())
CLIP = ViCLIPConfig(encoder=TOWER, text=TOWER, embedding=8, vocab=20, **small.clip(frames=2))
RATES, DECAYS = (1e-2, 3e-3), (0.0, 0.3)
CLASSES, ROWS = 3, 8


def probe(**changes: Any) -> ProbeConfig:
    settings = {"backbone": MAE, "learning_rates": RATES, "weight_decays": DECAYS, "heads": 2}
    return ProbeConfig(**{**settings, **changes})


def config_of(model: ProbeConfig, objective: Any = None, **optim: Any) -> TrainConfig:
    settings: dict[str, Any] = {"lr": 1.0, "lr_batch": 0, "min_lr": 0.0, "weight_decay": 0.0}
    return TrainConfig(
        model=model,
        objective=objective or Probe(),
        data=DataConfig(
            global_batch=ROWS,
            clip=ClipConfig(frames=model.frames, stride=1, resolution=model.resolution),
        ),
        optim=OptimConfig(**{**settings, "clip_norm": 0.5, **optim}),
        mesh=MeshConfig(1),
        steps=6,
    )


def batch_of(number: int, model: ProbeConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    shape = (ROWS, model.frames, model.resolution, model.resolution, 3)
    return {
        "video": rng.integers(0, 256, shape, dtype=np.uint8),
        "label": rng.integers(0, CLASSES, ROWS).astype(np.int32),
        "index": np.arange(number * ROWS, (number + 1) * ROWS, dtype=np.int32),
        "position": np.arange(number * ROWS, (number + 1) * ROWS, dtype=np.uint32),
    }


COMPILED: dict[str, Any] = {}


def prepared(config: TrainConfig):
    """The run of a config, its step and its first state on the host, compiled once."""
    key = repr(config)
    if key not in COMPILED:
        run = build(config, records=100, classes=CLASSES, devices=jax.devices()[:1])
        COMPILED[key] = run, make_train_step(run), jax.device_get(init_state(run))
    return COMPILED[key]


def trained(config: TrainConfig, batches: Any = batch_of, params: Any = None):
    """State before and after all steps, and the last metrics."""
    run, step, first = prepared(config)
    if params is not None:
        learning, frozen = run.parametrisation.split(params, jax.random.key(0))
        first = dataclasses.replace(first, params=learning, frozen=frozen)
    state = jax.tree.map(jax.device_put, first, run.plan.shardings)
    before, metrics = run.parametrisation.of(first), {}
    for number in range(config.steps):
        state, metrics = step(state, batches(number, run.config.model))
    return before, jax.device_get(state), jax.device_get(metrics)


@pytest.mark.parametrize(
    ("head", "objective", "options"),
    [
        ("linear", Probe(), {}),
        pytest.param(
            "attentive", Probe(mixup=0.8, cutmix=1.0), {"mlp": True}, marks=pytest.mark.slow
        ),
        pytest.param("concat", Probe(smoothing=0.1), {"per_frame": True}, marks=pytest.mark.slow),
    ],
)
def test_a_head_of_the_grid_is_the_head_trained_alone(head, objective, options):
    """Clipping is on, rates and decays differ."""
    _, many, _ = trained(config_of(probe(head=head, **options), objective))
    together = flatten_paths(many.params["heads"])
    model = probe(head=head, learning_rates=RATES[:1], weight_decays=DECAYS[1:], **options)
    _, one, _ = trained(config_of(model, objective))
    for path, leaf in flatten_paths(one.params["heads"]).items():
        np.testing.assert_allclose(together[path][1], leaf[0], rtol=2e-5, atol=2e-7, err_msg=path)
    kernel = together["head/kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 1e-5  # the decay matters
    assert np.abs(kernel[0] - kernel[2]).max() > 1e-3  # the rate matters


class Plain:
    """A probe of one head as a model with (B, classes) logits."""

    def __init__(self, config: Any, inner: Any):
        self.config, self.inner = config, inner
        self.init, self.shapes = inner.init, inner.shapes

    def apply(self, params, video, keys=None, method="__call__"):
        found = self.inner.apply(params, video, keys, method=method)
        return (found[0][0], found[1]) if method == "train" else found[0]


@pytest.mark.parametrize("head", ["linear", pytest.param("attentive", marks=pytest.mark.slow)])
def test_a_head_is_what_the_ordinary_objective_and_optimizer_make_of_it(head):
    """One head alone against `classification` and AdamW without any grid."""
    model = probe(head=head, learning_rates=RATES[:1], weight_decays=DECAYS[1:])
    before, grid, _ = trained(config_of(model))

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Single(ProbeConfig):
        """The same network with (B, classes) logits, which knows no grid."""

        head_grid: Any = None

        def model(self) -> Any:
            return Plain(self, super().model())

    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    single = config_of(
        Single(**fields),
        Classification(smoothing=0.0, mixup=0.0, cutmix=0.0),
        lr=1e-2,
        weight_decay=0.3,
        freeze=("^backbone/", *(("^scale/",) if head == "linear" else ())),
    )
    _, plain, _ = trained(single, params=before)
    for path, leaf in flatten_paths(plain.params["heads"]).items():
        np.testing.assert_allclose(
            flatten_paths(grid.params["heads"])[path], leaf, rtol=2e-5, atol=2e-7, err_msg=path
        )


def test_only_heads_move_and_only_heads_have_optimizer_state():
    before, after, metrics = trained(config_of(probe(head="linear")))
    for path, leaf in flatten_paths(before["backbone"]).items():
        np.testing.assert_array_equal(leaf, flatten_paths(after.frozen["backbone"])[path])
    assert not any("decoder" in path for path in flatten_paths(before["backbone"]))
    sizes = [leaf.size for leaf in jax.tree.leaves(after.opt_state)]
    heads = sum(leaf.size for leaf in jax.tree.leaves(after.params["heads"]))
    assert heads * 2 <= sum(sizes) <= heads * 2 + 10
    assert after.params["scale"]["count"] == 6
    assert metrics["train/loss"] == pytest.approx(4 * metrics["train/head_loss"], rel=1e-5)


def test_linear_logits_do_not_depend_on_the_scale_of_the_features():
    """Every channel of the backbone's last norm scaled by another factor: the same logits."""
    config = config_of(probe(head="linear"))
    run, _, first = prepared(config)
    params = jax.tree.map(np.copy, run.parametrisation.of(first))
    rng = np.random.default_rng(0)
    factor = (10.0 ** rng.uniform(-2, 2, 16)).astype(np.float32)
    moved = flatten_paths(params)
    moved["backbone/encoder/norm/scale"] = moved["backbone/encoder/norm/scale"] * factor
    found = [
        run.parametrisation.of(trained(config, params=each)[1])
        for each in (params, unflatten_paths(moved))
    ]
    video = batch_of(99, config.model)["video"]
    apply = jax.jit(run.model.apply)
    logits = [np.asarray(apply(each, video)) for each in found]
    assert np.abs(logits[0]).max() > 1e-2
    np.testing.assert_allclose(logits[1], logits[0], atol=2e-3 * np.abs(logits[0]).max())


@pytest.mark.parametrize("mixup", [0.0, pytest.param(0.8, marks=pytest.mark.slow)])
def test_held_out_records_teach_nothing(mixup):
    model = probe(head="attentive" if mixup else "concat", hold_out=4)
    objective = Probe(mixup=mixup)

    def other_labels(number, model):
        batch = batch_of(number, model)
        label = (batch["label"] + (batch["index"] % 4 == 0)) % CLASSES
        return {**batch, "label": label.astype(np.int32)}

    def other_clips(number, model):
        batch = batch_of(number, model)
        held = (batch["index"] % 4 == 0)[:, None, None, None, None]
        return {**batch, "video": np.where(held, 255 - batch["video"], batch["video"])}

    # The statistics of the features, which know no labels, see all clips.
    streams = (batch_of, other_labels, other_clips) if mixup else (batch_of, other_labels)
    kernels = [
        trained(config_of(model, objective), batches)[1].params["heads"]["head"]["kernel"]
        for batches in streams
    ]
    assert np.abs(kernels[0]).max() > 1e-3
    for kernel in kernels[1:]:
        np.testing.assert_array_equal(kernel, kernels[0])


def test_a_lost_head_does_not_stop_the_others():
    config = config_of(probe(head="linear"))
    run, _, first = prepared(config)
    params = jax.tree.map(np.copy, run.parametrisation.of(first))
    _, sound, _ = trained(config, params=params)
    bias = params["heads"]["head"]["bias"].copy()
    bias[1] = np.inf
    params["heads"]["head"]["bias"] = bias
    _, state, metrics = trained(config, params=params)
    assert metrics["train/heads_lost"] == 1 and state.nonfinite == 0
    kernels = [each.params["heads"]["head"]["kernel"] for each in (sound, state)]
    np.testing.assert_allclose(kernels[1][[0, 2, 3]], kernels[0][[0, 2, 3]], rtol=1e-6)
    assert np.abs(kernels[1][1]).max() == 0


def test_attention_without_keys_and_values_is_attention():
    """Against the plain form, where every token has a key and a value."""
    spec, rng = HeadSpec("attentive", heads=2), np.random.default_rng(0)
    params = jax.device_get(jax.jit(lambda key: init_head(spec, key, 16, 3))(jax.random.key(0)))
    params["head"]["kernel"] = rng.normal(size=(16, 3)).astype(np.float32)
    params["query"] = 5 * rng.normal(size=16).astype(np.float32)
    tokens = rng.normal(size=(4, 7, 16)).astype(np.float32)
    found = jax.jit(lambda params, tokens: apply_head(spec, params, tokens))(params, tokens)
    k, v = ((tokens @ kernel).reshape(4, 7, 2, 8) for kernel in params["kv"]["kernel"])
    scores = np.einsum("hd,bnhd->bhn", params["query"].reshape(2, 8), k) / 8**0.5
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    pooled = np.einsum("bhn,bnhd->bhd", weights, v).reshape(4, 16) @ params["proj"]["kernel"]
    assert weights.max() > 0.5
    np.testing.assert_allclose(found, pooled @ params["head"]["kernel"], atol=2e-5)


def test_what_heads_read():
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)  # B, T, L, D
    first = rng.normal(size=(2, 5)).astype(np.float32)
    whole = np.concatenate([first[:, None], patches.reshape(2, 12, 5)], axis=1)
    grid, pooled = (3, 2, 2), np.ones((2, 4), np.float32)
    found = read(HeadSpec("concat", per_frame=True), jnp.asarray(whole), grid, jnp.asarray(pooled))
    expected = np.concatenate([first, patches.mean(axis=2).reshape(2, 15), pooled], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(read(HeadSpec(pooling="class"), jnp.asarray(whole), grid), first)
    # A class token before the patches of every frame, as UniFormerV2 has them.
    framed = np.concatenate([np.repeat(first[:, None, None], 3, axis=1), patches], axis=2)
    found = read(HeadSpec("concat"), jnp.asarray(framed.reshape(2, 15, 5)), grid)
    expected = np.concatenate([first, patches.mean(axis=(1, 2))], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="no class token"):
        read(HeadSpec(pooling="class"), jnp.asarray(patches.reshape(2, 12, 5)), grid)
    with pytest.raises(ValueError, match=r"14 tokens for a grid of \(3, 2, 2\)"):
        read(HeadSpec("concat"), jnp.zeros((2, 14, 5)), grid)


def drawn(shapes: Any) -> dict[str, np.ndarray]:
    """Parameters by path, other ones in every leaf."""
    rng = np.random.default_rng(0)
    leaves = flatten_paths(shapes).items()
    return {path: rng.normal(size=leaf.shape).astype(leaf.dtype) for path, leaf in leaves}


def test_weights_of_the_backbone_and_of_a_probe(tmp_path):
    """A ViCLIP file fills the whole backbone; text encoder and projection are not taken."""
    source = drawn(CLIP.model().shapes())
    save_ours(tmp_path / "clip.safetensors", Weights("viclip", source, {"patch": 8}))
    config = probe(backbone=CLIP, classes=CLASSES, head="attentive")
    model = config.model()
    params, report = initialise(str(tmp_path / "clip.safetensors"), model.shapes(), config)
    report.require(("^backbone/",))
    flat = flatten_paths(params)
    assert "backbone/encoder/norm_post/scale" in flat and "backbone/encoder/proj/kernel" not in flat
    for path, leaf in flat.items():
        if path.startswith("backbone/"):
            np.testing.assert_array_equal(leaf, source[path.removeprefix("backbone/")])
    assert all(path.startswith("heads/") for path in report.fresh) and report.fresh
    assert any(path.startswith("backbone/text/") for path in report.skipped)

    whole = drawn(model.shapes())
    save_ours(tmp_path / "probe.safetensors", Weights("probe", whole, {"patch": 8}))
    _, report = initialise(str(tmp_path / "probe.safetensors"), model.shapes(), config)
    report.require_all()


def test_the_config_survives_the_command_line_and_says_what_it_does_not_take():
    config = config_of(probe())
    assert to_typed(TrainConfig, as_plain(config)).model == config.model
    for change, message in (
        ({"weight_decay": 0.05}, "weight_decay = 0.05"),
        ({"layer_decay": 0.5}, "layer_decay"),
    ):
        with pytest.raises(ValueError, match=message):
            build(config_of(probe(), **change), records=100, classes=CLASSES)
    for change, message in (
        ({"head": "liner"}, "did you mean 'linear'"),
        ({"hold_out": 1}, "hold_out = 1"),
        ({"learning_rates": ()}, "one of each"),
    ):
        with pytest.raises(ValueError, match=message):
            probe(**change)
    with pytest.raises(ValueError, match="config.model = probe"):
        Probe().check(MAE)


def test_views_of_a_video_come_together():
    """Views in several batches, a video of three views between those of another, padding."""
    rows = [
        ({"index": [0, 0, 1], "view": [0, 1, 0], "label": [2, 2, 1], "valid": [1, 1, 1]}, 0),
        ({"index": [0, 1, 1], "view": [2, 1, 2], "label": [2, 1, 1], "valid": [1, 1, 1]}, 10),
        ({"index": [2, 3, 4], "view": [0, 0, 0], "label": [0, -1, 0], "valid": [1, 1, 0]}, 20),
    ]

    def batches():
        for fields, start in rows:
            batch = {name: np.array(value) for name, value in fields.items()}
            batch["valid"] = batch["valid"].astype(bool)
            yield batch, start + np.arange(3.0).reshape(3, 1, 1)

    found = [
        (*each[:1], int(each[1][0]), each[2].tolist(), each[3].ravel().tolist())
        for each in _by_video(batches(), 3, 0)
    ]
    assert found == [
        (2, 0, [0, 1, 2], [0, 1, 10]),
        (1, 1, [0, 1, 2], [2, 11, 12]),
        (0, 2, [0], [20]),
    ]
    assert [each[1][0] for each in _by_video(batches(), 3, 2)] == [0, 2]


@pytest.fixture(scope="module")
def context(shards):
    """A probe with random heads on the small world, which has no validation split."""
    config = probe(classes=10, head="attentive", hold_out=5, weight_decays=(0.1,))
    model = config.model()
    rng = np.random.default_rng(0)
    params = {
        path: np.asarray(leaf) + rng.normal(0, 0.3, leaf.shape).astype(np.float32)
        for path, leaf in flatten_paths(jax.jit(model.init)(jax.random.key(0))).items()
    }
    data = DataConfig(train=str(shards))
    mesh = make_mesh(MeshConfig(1), jax.devices()[:1])
    return EvalContext(model, mesh, data, params=unflatten_paths(params), progress=False)


def views() -> ViewConfig:
    clip = ClipConfig(frames=4, stride=2, resolution=16, sampling="dense")
    return ViewConfig(clip=clip, clips=2, batch=8)


@pytest.mark.slow
def test_the_best_head_on_held_out_clips_is_scored_on_the_test(context):
    evaluator = ProbeGrid(views=views())
    evaluator.check(context)
    result = evaluator.run(context)
    # By another road: every head as a classifier on both splits, held-out records by hand.
    tables = {}
    for split in ("train", "test"):
        tables[split] = [
            Accuracy(views=views(), split=split).run(
                dataclasses.replace(context, model=OneHead(context.model, head), _compiled={})
            )
            for head in range(2)
        ]
    grid = [row["selection_top1"] for row in result.tables["grid"]]
    assert result.protocol["selection"]["videos"] == 12 and len(set(grid)) > 1
    best = int(np.argmax(grid))
    assert result.protocol["head"]["number"] == best
    assert result.metrics["selection_top1"] == grid[best]
    assert result.tables["scores_sha256"] == tables["test"][best].tables["scores_sha256"]
    assert result.metrics["top1"] == tables["test"][best].metrics["top1"]
    assert result.pictures["grid"].shape[2] == 3
    everything = ProbeGrid(views=views(), selection_split="train", train_split="none").run(context)
    for row, alone in zip(everything.tables["grid"], tables["train"], strict=True):
        assert row["selection_top1"] == pytest.approx(alone.metrics["top1"])


def test_nothing_is_chosen_on_the_test(context):
    with pytest.raises(ValueError, match="has seen it"):
        ProbeGrid(views=views(), selection_split="test").check(context)
    free = dataclasses.replace(context.model.config, hold_out=0)
    without = dataclasses.replace(context, model=free.model())
    with pytest.raises(ValueError, match=r"nothing may choose.*hold_out"):
        ProbeGrid(views=views()).check(without)
    with pytest.raises(ValueError, match="probe_grid scores the heads"):
        ProbeGrid(views=views()).check(dataclasses.replace(context, model=MAE.model()))
