"""Alignment with teachers: losses, targets in the step and with the batch, meshes, errors."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from safetensors.numpy import save_file

from data_pipelines.config import ClipConfig, DataConfig
from internvideo_jax.checkpoint.frozen import check_frozen, load_frozen
from internvideo_jax.checkpoint.reading import step_of
from internvideo_jax.compile_check.aot import (
    argument_bytes,
    batch_shapes,
    count_flops,
    frozen_bytes,
)
from internvideo_jax.config import CheckpointConfig, LogConfig, OptimConfig, TrainConfig
from internvideo_jax.objectives.alignment import VISIBLE, Alignment
from internvideo_jax.ops.alignment import alignment_loss
from internvideo_jax.parallel.mesh import AXES
from internvideo_jax.recipes.smoke import smoke
from internvideo_jax.run.build import check_cached, check_reads
from internvideo_jax.run.state import plan_frozen
from internvideo_jax.run.step import draw_key, init_state, make_train_step
from internvideo_jax.train import train
from internvideo_jax.types import Mean, flatten_paths
from tests.internvideo_jax.objectives.aligned import (
    CLIP,
    MAE,
    ROWS,
    Student,
    Teacher,
    batch_of,
    config_of,
    fresh,
    losses,
    run_of,
)

BOTH = Alignment(mask_ratio=0.75, clip_teacher=CLIP, mae_teacher=MAE)
CACHED = dataclasses.replace(BOTH, clip_teacher=None, mae_teacher=None)


def features(rng: np.random.Generator, *shape: int) -> jax.Array:
    x = rng.normal(size=shape)
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32)


def test_distances_are_means_over_layers_tokens_and_examples():
    rng = np.random.default_rng(0)
    student, target = features(rng, 3, 4, 5, 6), features(rng, 4, 3, 5, 6)
    a, b = np.asarray(student, np.float64).swapaxes(0, 1), np.asarray(target, np.float64)
    difference = np.abs(3 * a - 3 * b)
    huber = np.where(difference < 1, difference**2 / 2, difference - 0.5).mean()
    for distance, factor, expected in (
        ("cosine", 1, ((a - b) ** 2).sum(-1).mean()),
        ("mse", 1, ((a - b) ** 2).mean()),
        ("smooth_l1", 3, huber),
    ):
        found = alignment_loss(factor * student, factor * target, distance)
        assert found.weight == 4
        np.testing.assert_allclose(found.value(), expected, rtol=1e-5)
    assert (difference > 1).any() and (difference < 1).any()
    parts = [alignment_loss(student[:, rows], target[rows]) for rows in (slice(1), slice(1, 4))]
    whole = Mean(parts[0].total + parts[1].total, parts[0].weight + parts[1].weight)
    np.testing.assert_allclose(whole.value(), alignment_loss(student, target).value(), rtol=1e-6)
    np.testing.assert_allclose(
        alignment_loss(target[:, 0, 0], target[:, 0, 0]).value(), 0.0, atol=1e-6
    )
    with pytest.raises(ValueError, match=r"are \(4, 3, 5, 6\) and the teacher's \(4, 2, 5, 6\)"):
        alignment_loss(student, target[:, :2])


@pytest.fixture(scope="module")
def run():
    return run_of(config_of(BOTH))


@pytest.fixture(scope="module")
def step(run):
    frozen, _ = load_frozen(run.frozen, run.config.seed, lambda _: None)
    return make_train_step(run, frozen)


@pytest.fixture(scope="module")
def in_step(run, step) -> np.ndarray:
    return losses(run, step=step)


@pytest.fixture(scope="module")
def targets(run):
    return made_by(run)


def made_by(run):
    """Targets of a batch, computed outside the step, as the command does that caches them."""
    frozen, _ = load_frozen(run.frozen, run.config.seed, lambda _: None)
    networks = {name: (plan.model, frozen[name]) for name, plan in run.frozen.items()}
    key = draw_key(run.config.seed)
    return jax.jit(lambda batch: run.objective.targets(networks, batch, key))


def test_random_teachers_of_a_seed_of_their_own_are_the_same_for_runs_of_any_seed(run):
    plan = run.frozen["clip_teacher"]

    def drawn(source: str, seed: int) -> tuple[np.ndarray, str]:
        config = dataclasses.replace(plan.config, init_from=source)
        plans = {"clip_teacher": dataclasses.replace(plan, config=config)}
        params, digests = load_frozen(plans, seed, lambda _: None)
        flat = flatten_paths(params["clip_teacher"])
        return np.concatenate([np.ravel(flat[name]) for name in sorted(flat)]), digests.popitem()[1]

    own, digest = drawn("random:7", 0)
    assert digest == "random, seed 7"
    np.testing.assert_array_equal(drawn("random:7", 1)[0], own)
    np.testing.assert_array_equal(drawn("random", 7)[0], own)
    assert np.abs(drawn("random", 0)[0] - own).max() > 1e-3
    for wrong in ("random:", "random:x", "random:-1"):
        with pytest.raises(ValueError, match=r"clip_teacher.init_from = 'random:.*with a seed N"):
            drawn(wrong, 0)


def test_targets_with_the_batch_are_those_of_the_step(run, in_step, targets):
    cached = run_of(config_of(CACHED))
    assert not cached.frozen and cached.objective.reads == ("features",)
    step = make_train_step(cached)
    np.testing.assert_allclose(losses(cached, targets, step), in_step, rtol=1e-5)

    def other(batch):
        return targets({**batch, "position": batch["position"] + 1})

    assert np.abs(losses(cached, other, step) - in_step)[:, 0].max() > 1e-3
    shapes = cached.objective.cached_shapes(cached.config.model)
    made = {name: x.shape[1:] for name, x in targets(batch_of(0)).items()}
    assert {name: shape for name, (shape, _) in shapes.items()} == made


def test_the_loss_falls_and_is_the_weighted_sum_of_its_heads(run, in_step, targets):
    assert in_step[-1, 0] < in_step[0, 0]
    loss, _, middle, final, mae = in_step[0]
    np.testing.assert_allclose(loss, middle + final + mae, rtol=1e-6)
    params, batch = fresh(run).params, batch_of(0)
    batch = {**batch, **targets(batch)}
    weighted = dataclasses.replace(BOTH, middle=0.5, final=2.0, mae=0.0, mae_teacher=None)
    key = draw_key(0)

    @jax.jit
    def loss(batch):
        return weighted.loss(run.model, params, batch, key, jnp.int32(0))

    found, heads = loss(batch)
    assert set(heads) == {"middle", "final"}
    np.testing.assert_allclose(found.value(), 0.5 * middle + 2.0 * final, rtol=1e-5)
    assert len({round(value, 3) for value in (middle, final, mae)}) == 3

    del batch["features/mae"]  # a head without a weight is not looked at
    np.testing.assert_array_equal(loss(batch)[0].value(), found.value())
    without = run_of(config_of(weighted))
    assert count_flops(without).total < count_flops(run).total


def test_teachers_are_in_no_state_and_are_not_changed(run, step, in_step):
    assert "teacher" not in " ".join(flatten_paths(run.plan.shapes))
    student = sum(leaf.size for leaf in jax.tree.leaves(Student().model().shapes()))
    assert sum(leaf.size for leaf in jax.tree.leaves(run.plan.shapes.params)) == student
    fresh, _ = load_frozen(run.frozen, 0, lambda _: None)
    for old, new in zip(jax.tree.leaves(fresh), jax.tree.leaves(step.frozen), strict=True):
        np.testing.assert_array_equal(old, new)  # after some steps, and not donated


def test_memory_and_flops_count_the_teachers(run):
    alone = run_of(config_of(CACHED))
    sizes = [
        leaf.size * leaf.dtype.itemsize
        for plan in run.frozen.values()
        for leaf in jax.tree.leaves(plan.shapes)
    ]
    assert frozen_bytes(run) == sum(sizes) > 0 and frozen_bytes(alone) == 0
    extra = sum(
        np.prod(shape.shape) * shape.dtype.itemsize
        for name, shape in batch_shapes(alone.config, alone.mesh).items()
        if name.startswith("features/")
    )
    assert argument_bytes(run) - argument_bytes(alone) == sum(sizes) - extra
    assert run.flops == alone.flops == 3 * Student().forward_flops(2 * 4)
    assert run.frozen_flops == CLIP.forward_flops() + MAE.forward_flops()
    more = count_flops(run).total - count_flops(alone).total
    assert 0.9 < more / (ROWS * run.frozen_flops) < 1.3
    assert "toy_clip" in run.summary and "frozen networks" in run.summary
    assert "frozen networks" not in alone.summary


def test_kernels_of_teachers_are_kept_in_their_type():
    narrow = dataclasses.replace(CLIP, dtype="bfloat16")
    run = run_of(config_of(Alignment(mask_ratio=0.75, mae=0.0, clip_teacher=narrow)))
    frozen, _ = load_frozen(run.frozen, 0, lambda _: None)
    types = {path: str(leaf.dtype) for path, leaf in flatten_paths(frozen).items()}
    assert types["clip_teacher/stack/blocks/kernel"] == "bfloat16"
    assert types["clip_teacher/stack/embed/bias"] == "float32"


def test_masks_depend_on_the_position_only(targets):
    batch, others = batch_of(0), batch_of(1)
    whole = targets(batch)
    part = targets({name: np.concatenate([x[3:5], others[name][2:]]) for name, x in batch.items()})
    np.testing.assert_array_equal(whole[VISIBLE][3:5], part[VISIBLE][:2])
    frames = np.asarray(whole[VISIBLE]) // 16
    np.testing.assert_array_equal((frames == 0).sum(axis=1), 4)


def test_masks_without_attention_and_over_the_whole_clip():
    video = dataclasses.replace(CLIP, per_frame=False)
    whole = Alignment(mask_ratio=0.75, mae=0.0, per_frame=False, clip_teacher=video)
    visible = np.asarray(made_by(run_of(config_of(whole)))(batch_of(0))[VISIBLE])
    assert visible.shape == (ROWS, 8) and len(set((visible < 16).sum(axis=1))) > 1
    only_mae = Alignment(mask="tube", mask_ratio=0.75, middle=0.0, final=0.0, mae_teacher=MAE)
    assert only_mae.reads == ()
    visible = np.asarray(made_by(run_of(config_of(only_mae)))(batch_of(0))[VISIBLE])
    np.testing.assert_array_equal(visible[:, :4] + 16, visible[:, 4:])


def changed(**changes) -> Teacher:
    return dataclasses.replace(CLIP, **changes)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Alignment(clip_teacher=changed(patch=8), mae_teacher=MAE), r"grid \(2, 2, 2\) there"),
        (Alignment(clip_teacher=changed(frames=4)), "frames 4 there, frames 2 of config.model"),
        (Alignment(clip_teacher=changed(class_token=False)), "class_token False there"),
        (Alignment(clip_teacher=changed(channels=8)), "width 8 there, clip_width 32 of"),
        (Alignment(clip_teacher=changed(layers=(1,))), "number of layers 1 there, number of clip_"),
        (Alignment(clip_teacher=changed(final_width=4)), "final_width 4 there, final_width 8 of"),
        (Alignment(clip_teacher=changed(per_frame=False)), "set config.objective.per_frame to F"),
        (Alignment(mae_teacher=changed(frames=4)), "mae_teacher and the student do not fit: grid"),
        (Alignment(mae=0.0, mae_teacher=MAE), "mae = 0 computes nothing that is used"),
        (Alignment(mask="tube", middle=0.0, final=0.0, clip_teacher=CLIP), "nothing that is used"),
        (Alignment(middle=0.0, final=0.0, mae=0.0), "at least one positive"),
        (Alignment(middle=-1.0), "none of them negative"),
        (Alignment(mask_ratio=1.0), "leaves 0 of 32 tokens visible"),
        (Alignment(mask="tubes"), "expected one of attention, random, tube"),
        (Alignment(distance="l2"), "expected one of cosine, mse, smooth_l1"),
    ],
)
def test_what_does_not_fit_is_refused(objective, message):
    with pytest.raises(ValueError, match=message):
        objective.check(Student())


def test_heads_that_the_student_lacks_are_refused():
    objective = Alignment(clip_teacher=CLIP, mae_teacher=MAE)
    for changes, message in (
        ({"mae_layers": ()}, "mae = 1.0, but the student has no such head"),
        ({"final_width": 0}, "final = 1.0, but the student has no such head"),
    ):
        with pytest.raises(ValueError, match=message):
            objective.check(dataclasses.replace(Student(), **changes))
    with pytest.raises(ValueError, match="needs a student with decoders"):
        objective.check(CLIP)


def test_attention_masks_need_a_teacher_with_attention():
    silent = dataclasses.replace(CLIP, attends=False)
    run = run_of(config_of(Alignment(mae=0.0, clip_teacher=silent)))
    with pytest.raises(ValueError, match="toy_clip has no attention to draw by"):
        count_flops(run)


def test_features_that_are_not_there_say_how_to_make_them(targets):
    run = run_of(config_of(CACHED))
    with pytest.raises(
        ValueError, match="has no features/visible; compute it once with `ivj teach"
    ):
        make_train_step(run)(init_state(run), batch_of(0))
    with pytest.raises(ValueError, match="features names no companion .*`ivj teach"):
        check_cached(config_of(CACHED))
    check_cached(config_of(CACHED, features="teacher"))
    check_reads(config_of(CACHED, features="teacher"))
    with pytest.raises(ValueError, match="features = 'teacher', but .* no features"):
        check_reads(config_of(BOTH, features="teacher"))
    other = run_of(config_of(dataclasses.replace(CACHED, mask_ratio=0.5)))
    with pytest.raises(ValueError, match="has 8 tokens of an example, .* leaves 16"):
        losses(other, targets)


def test_a_rehearsal_takes_small_random_teachers_that_fit():
    large = Teacher(init_from="clip.pth", channels=8, layers=(0, 1), final_width=4)
    objective = dataclasses.replace(BOTH, clip_teacher=large)
    config = smoke(config_of(objective, model=Student(resolution=32, patch=8)))
    assert config.objective.clip_teacher.init_from == "random"
    assert config.model.clip_width == 8 and config.model.final_width == 4
    assert config.data.clip.frames == 4 and config.data.clip.resolution == 32
    config.objective.check(config.model)


def test_teachers_need_weights_and_stay_the_same():
    run = run_of(config_of(Alignment(mae=0.0, clip_teacher=changed(init_from=""))))
    with pytest.raises(ValueError, match=r"clip_teacher.init_from is empty: .* to rehearse"):
        load_frozen(run.frozen, 0, lambda _: None)
    assert "as in there: a" in check_frozen({"a": "1"}, {"a": "1"}, "there")
    assert "moved" in check_frozen({"a": "1"}, {}, "there")
    with pytest.raises(ValueError, match="a: found 2, the checkpoint has 1"):
        check_frozen({"a": "2"}, {"a": "1"}, "there")


@pytest.mark.parametrize(
    ("split", "pieces"), [("all", (1, 4, 2)), ("fsdp", (1, 2, 2)), ("none", (1, 1, 2))]
)
def test_teachers_are_split_as_the_mesh_says(split, pieces):
    mesh = AbstractMesh((2, 2, 2), AXES, axis_types=(AxisType.Auto,) * 3)
    plan = plan_frozen(config_of(BOTH, split=split), mesh)["clip_teacher"]  # pyright: ignore
    shape = plan.shapes["stack"]["blocks"]["kernel"].shape
    shard = plan.shardings["stack"]["blocks"]["kernel"].shard_shape(shape)
    np.testing.assert_array_equal(np.divide(shape, shard), pieces)


@pytest.mark.slow  # three train steps to compile
def test_every_mesh_gives_the_losses_of_one_device(command):
    done = command("tests.internvideo_jax.objectives.alignment_on_meshes", devices=8)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    """A run of four steps whose teacher has the weights of an earlier one, and its config."""
    folder = tmp_path_factory.mktemp("align")
    first = TrainConfig(
        model=Student(stride=1),
        objective=Alignment(mask_ratio=0.75, mae=0.0, clip_teacher=CLIP),
        data=DataConfig(
            train=str(shards), global_batch=4, clip=ClipConfig(frames=2, stride=2, resolution=16)
        ),
        optim=OptimConfig(lr=1e-2, lr_batch=0, warmup_steps=1),
        checkpoint=CheckpointConfig(every=1),
        log=LogConfig(every=1, report=False),
        steps=2,
    )
    assert train(first, folder / "first") == 0
    teacher = dataclasses.replace(CLIP, init_from=str(folder / "first"))
    objective = dataclasses.replace(first.objective, clip_teacher=teacher)
    second = dataclasses.replace(first, objective=objective, steps=3)
    assert train(second, folder / "second") == 0
    return folder, second


def record(folder) -> dict:
    return json.loads((folder / "run.json").read_text())


@pytest.mark.slow  # three runs
def test_a_run_goes_on_to_the_bit_with_the_same_teacher_only(trained):
    folder, config = trained
    ended = record(folder / "second")
    assert ended["frozen"]["clip_teacher"] not in (ended["params_digest"], "")
    newest = step_of(folder / "second")
    assert newest.meta["frozen"] == ended["frozen"]
    assert not any("teacher" in path for path in newest.meta["tree"])
    shutil.rmtree(newest.path)
    other = dataclasses.replace(config.objective, clip_teacher=CLIP)
    with pytest.raises(ValueError, match="found random, seed 0, the checkpoint has"):
        train(dataclasses.replace(config, objective=other), folder / "second")
    assert train(config, folder / "second") == 0
    assert record(folder / "second")["params_digest"] == ended["params_digest"]


def test_a_teacher_must_come_whole(tmp_path):
    fresh = flatten_paths(CLIP.model().init(jax.random.key(0)))
    tensors = {name: np.asarray(value) for name, value in fresh.items()}
    del tensors["stack/final/kernel"]
    path = tmp_path / "teacher.safetensors"
    save_file(tensors, path)
    run = run_of(config_of(Alignment(mae=0.0, clip_teacher=changed(init_from=str(path)))))
    with pytest.raises(ValueError, match="config.objective.clip_teacher.init_from: "):
        load_frozen(run.frozen, 0, lambda _: None)
