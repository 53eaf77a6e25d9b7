"""Masks by attention, and whole steps: teachers, mask, student, losses, gradients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from internvideo_jax.families.internvideo2 import weights as internvideo2
from internvideo_jax.families.internvideo2.teacher import InternVideo2TeacherConfig, InternVLConfig
from internvideo_jax.families.teacher import Form, Teacher, TeacherOutputs
from internvideo_jax.families.videomae import weights as videomae
from internvideo_jax.layers.functional import FunctionalModel
from internvideo_jax.objectives.alignment import VISIBLE, Alignment
from internvideo_jax.ops import masking
from internvideo_jax.types import Params
from tests.parity.cases import Case, adapter
from tests.parity.internvideo2_adapters import (
    STUDENT,
    aligned,
    pooled_encoder,
    student_config,
    unit_pixels,
)
from tests.parity.model_adapters import export, import_weights, indices
from tests.parity.teacher_adapters import videomae_config

GROUP = "internvideo2_stage1"


def same_mask(case: Case, visible: jax.Array) -> None:
    assert not case.io["mask"][:, 0].any()  # the class token is always seen
    np.testing.assert_array_equal(visible, indices(case.io["mask"][:, 1:], 0))


@adapter(GROUP, "attention_mask")
def attention_mask(case: Case) -> None:
    config = case.config
    groups = config["B"], config["T"], config["N"]
    attention, noise = (jnp.asarray(case.io[x]).reshape(groups) for x in ("attn", "exp_noise"))
    visible = masking.visible_from_noise(attention, noise, config["mask_ratio"])
    same_mask(case, visible)
    present = [item for item in (("clip_middle", 1), ("mae", 0)) if f"norm_{item[0]}" in case.io]
    assert present
    for name, lead in present:
        teacher: Any = SimpleNamespace(form=Form(lead=lead, keeps_lead=lead > 0))
        reading = TeacherOutputs(jnp.asarray(case.io[f"norm_{name}"]))
        case.equal(f"targets_{name}_vis", Teacher._picked(teacher, reading, groups[0], visible))


def with_weights(case: Case, name: str) -> Case:
    """The case with the tensors of another of its files as its weights."""
    other = Case(case.folder)
    other.__dict__["weights"] = load_file(case.folder / f"{name}.safetensors")
    return other


def step_of(
    case: Case,
    objective: Alignment,
    student: FunctionalModel,
    frozen: dict[str, tuple[FunctionalModel, Params]],
    whole: dict[str, str],
) -> None:
    """A step with the noise of a case, through the objective.

    Args:
      whole: our name -> that of a target of all tokens in the case.
    """
    params = import_weights(case, STUDENT, student.shapes(), internvideo2)
    batch = {"video": unit_pixels(case.io["video"])}
    batch["position"] = jnp.arange(len(batch["video"]), dtype=jnp.uint32)
    key = jax.random.key(0)

    clip, clip_params = frozen["clip_teacher"]
    stride = batch["video"].shape[1] // clip.config.frames
    made = jax.jit(clip.apply)(clip_params, batch["video"][:, ::stride])
    case.close("attn", made["attention"])
    case.close(whole["middle"], made["middle"])
    case.close(whole["final"], made["final"])
    if "mae_teacher" in frozen:
        mae, mae_params = frozen["mae_teacher"]
        case.close(whole["mae"], jax.jit(mae.apply)(mae_params, batch["video"])["middle"])
    attention = made["attention"]
    noise = jnp.asarray(case.io["exp_noise"]).reshape(attention.shape)
    visible = masking.visible_from_noise(attention, noise, objective.mask_ratio)
    same_mask(case, visible)

    @jax.jit
    def run(params):
        part = batch | {VISIBLE: visible}
        part |= objective.targets(frozen, part, key)

        def loss(params):
            mean, heads = objective.loss(student, params, part, key, jnp.int32(0))
            return mean.value(), (heads, student.apply(params, part["video"], visible))

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, (heads, found)), gradients = run(params)
    case.close("loss", value)
    names = {"middle": "clip_middle", "final": "clip_final", "mae": "mae"}
    assert set(heads) == set(objective.wanted)
    for head, mean in heads.items():
        case.close(names[head], found[names[head]])
        case.close(f"loss_{names[head]}", mean.value())
    exported = export(gradients, case, STUDENT, internvideo2)
    if "grad_norm" in case.io:
        total = sum(np.sum(np.square(x, dtype=np.float64)) for x in exported.values())
        case.close("grad_norm", np.sqrt(total))
    assert case.outputs("grad.")
    for name in case.outputs("grad."):
        case.close(f"grad.{name}", exported[name])


@adapter(GROUP, "stage1_step")
def stage1_step(case: Case) -> None:
    config = case.config
    ours, clip, mae = (config[name] for name in ("student", "clip_teacher", "mae_teacher"))
    student = student_config(ours, stride=config["td_ratio"])
    clip_teacher = InternVLConfig(
        **{**pooled_encoder(clip), "frames": ours["num_frames"]}, layers=aligned(clip, "clip")
    )
    mae_teacher = videomae_config(mae, with_weights(case, "weights_mae_teacher").weights)
    weights = dict(zip(("middle", "final", "mae"), config["loss_weights"], strict=True))
    if not student.final_width:
        weights["final"] = 0.0
    objective = Alignment(
        mask_ratio=config["mask_ratio"],
        clip_teacher=clip_teacher,
        mae_teacher=mae_teacher,
        **weights,
    )
    objective.check(student)
    frozen = {}
    for name, teacher, kind, family in (
        ("clip_teacher", clip_teacher, "internvideo2", internvideo2),
        ("mae_teacher", mae_teacher, "videomae_classifier", videomae),
    ):
        model = teacher.model()
        its = with_weights(case, f"weights_{name}")
        frozen[name] = model, import_weights(its, kind, model.shapes(), family)
    targets = {"middle": "clip_middle", "final": "clip_final", "mae": "mae"}
    whole = {head: f"teacher_{name}" for head, name in targets.items()}
    step_of(case, objective, student.model(), frozen, whole)


@adapter(GROUP, "distill")
def distill(case: Case) -> None:
    config = case.config
    ours, theirs = config["student"], config["teacher"]
    decoder = ours.get("clip_student_decoder", "Linear_Decoder")
    kinds = {"MLP_Decoder": "mlp", "Linear_Decoder": "linear"}
    student = student_config(ours, clip_decoder=kinds[decoder])
    teacher = InternVideo2TeacherConfig(**pooled_encoder(theirs), layers=aligned(theirs, "clip"))
    weights = dict(zip(("middle", "final"), config.get("loss_weights", (1.0, 1.0)), strict=True))
    if not student.final_width:
        weights["final"] = 0.0
    objective = Alignment(
        mask_ratio=config["mask_ratio"], per_frame=False, mae=0.0, clip_teacher=teacher, **weights
    )
    objective.check(student)
    model = teacher.model()
    its = with_weights(case, "weights_teacher")
    frozen = {
        "clip_teacher": (model, import_weights(its, "internvideo2", model.shapes(), internvideo2))
    }
    whole = {"middle": "teacher_middle", "final": "teacher_final"}
    step_of(case, objective, student.model(), frozen, whole)
