"""Names of families, models, objectives, teachers, evaluators, parts, trackers; where they live.

One line adds one. The value is `module:attribute`, imported only when asked for, so that listing
the names costs nothing and a broken room does not break the others.
"""

from __future__ import annotations

import importlib
from typing import Any

from data_pipelines.limits import suggest as suggest
from data_pipelines.stream.parts.table import PARTS

# Published lineages: their weights and what is said of them (weights/family.py).
FAMILIES = {
    "videomae": "internvideo_jax.families.videomae.family:FAMILY",
    "uniformerv2": "internvideo_jax.families.uniformerv2.family:FAMILY",
    "internvideo2": "internvideo_jax.families.internvideo2.family:FAMILY",
    "umt": "internvideo_jax.families.umt.family:FAMILY",
    "viclip": "internvideo_jax.families.viclip.family:FAMILY",
    "clip": "internvideo_jax.families.clip.family:FAMILY",
    "vit": "internvideo_jax.families.vit.family:FAMILY",
}

MODELS = {
    "videomae_pretrain": "internvideo_jax.families.videomae.model:PretrainConfig",
    "videomae_classifier": "internvideo_jax.families.videomae.model:VideoMAEClassifierConfig",
    "uniformerv2": "internvideo_jax.families.uniformerv2.model:UniFormerV2Config",
    "viclip": "internvideo_jax.families.viclip.model:ViCLIPConfig",
    "internvideo2": "internvideo_jax.families.internvideo2.model:EncoderConfig",
    "internvideo2_classifier": (
        "internvideo_jax.families.internvideo2.classifier:InternVideo2ClassifierConfig"
    ),
    "internvideo2_student": "internvideo_jax.families.internvideo2.student:StudentConfig",
    "umt_student": "internvideo_jax.families.umt.model:UMTStudentConfig",
    "probe": "internvideo_jax.families.probe.model:ProbeConfig",
}

OBJECTIVES = {
    "masked_pixels": "internvideo_jax.objectives.masked_pixels:MaskedPixels",
    "classification": "internvideo_jax.objectives.classification:Classification",
    "alignment": "internvideo_jax.objectives.alignment:Alignment",
    "contrastive": "internvideo_jax.objectives.contrastive:Contrastive",
    "probe": "internvideo_jax.objectives.probe:Probe",
    "several": "internvideo_jax.objectives.several:Several",
}

TEACHERS = {
    "videomae_v2": "internvideo_jax.families.videomae.teacher:VideoMAETeacherConfig",
    "clip": "internvideo_jax.families.clip.teacher:CLIPTeacherConfig",
    "viclip": "internvideo_jax.families.clip.teacher:ViCLIPTeacherConfig",
    "internvl": "internvideo_jax.families.internvideo2.teacher:InternVLConfig",
    "internvideo2": "internvideo_jax.families.internvideo2.teacher:InternVideo2TeacherConfig",
}

EVALUATORS = {
    "reconstruction": "internvideo_jax.evaluators.reconstruction:Reconstruction",
    "classification": "internvideo_jax.evaluators.classification:Accuracy",
    "collapse": "internvideo_jax.evaluators.collapse:Collapse",
    "knn": "internvideo_jax.evaluators.knn:NearestNeighbours",
    "linear_probe": "internvideo_jax.evaluators.probes:LinearProbe",
    "attentive_probe": "internvideo_jax.evaluators.probes:AttentiveProbe",
    "concat_probe": "internvideo_jax.evaluators.probes:ConcatProbe",
    "probe_grid": "internvideo_jax.evaluators.probe_grid:ProbeGrid",
    "zero_shot": "internvideo_jax.evaluators.zero_shot:ZeroShot",
    "retrieval": "internvideo_jax.evaluators.retrieval:TextVideoRetrieval",
    "multiple_choice": "internvideo_jax.evaluators.multiple_choice:MultipleChoice",
}

# Where rows of a run are sent; one of your own needs no line here (telemetry/trackers/base.py).
TRACKERS = {
    "tensorboard": "internvideo_jax.telemetry.trackers.tensorboard_files:TensorBoard",
    "wandb": "internvideo_jax.telemetry.trackers.weights_and_biases:WeightsAndBiases",
    "mlflow": "internvideo_jax.telemetry.trackers.mlflow_store:MLflow",
}

KINDS = {
    "family": FAMILIES,
    "model": MODELS,
    "objective": OBJECTIVES,
    "evaluator": EVALUATORS,
    "teacher": TEACHERS,
    "part": PARTS,
    "tracker": TRACKERS,
}


def resolve(kind: str, name: str) -> Any:
    """The object registered as `name`; ValueError with the near matches when there is none."""
    table = KINDS[kind]
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}: {suggest(name, table)}")
    module, attribute = table[name].split(":")
    return getattr(importlib.import_module(module), attribute)
