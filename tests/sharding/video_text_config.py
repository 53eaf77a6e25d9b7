"""A recipe in small: a video-text model, its loss, and all evaluators of video with text."""

from __future__ import annotations

from data_pipelines.config import ClipConfig, DataConfig, ReaderConfig, ViewConfig
from internvideo_jax.config import LogConfig, OptimConfig, TrainConfig
from internvideo_jax.evaluators.multiple_choice import MultipleChoice
from internvideo_jax.evaluators.retrieval import TextVideoRetrieval
from internvideo_jax.evaluators.zero_shot import ZeroShot
from internvideo_jax.families.viclip.model import ViCLIPConfig
from internvideo_jax.layers.tower import tower
from internvideo_jax.objectives.contrastive import Contrastive
from internvideo_jax.recipes.options import config_dict
from tests.internvideo_jax import small

READER = ReaderConfig(threads=2)


def typed() -> TrainConfig:
    model = ViCLIPConfig.of_size(
        "tiny",
        encoder=tower(16, 1, 2),
        text=tower(16, 1, 2),
        embedding=8,
        context=16,
        temperature=0.07,
        **small.clip(resolution=32, patch=16),
    )
    clip = ClipConfig(frames=4, resolution=32, sampling="uniform")
    views = ViewConfig(clip=clip, crop_rule="squash", batch=8, reader=READER)
    return TrainConfig(
        model=model,
        objective=Contrastive(),
        data=DataConfig(
            global_batch=8,
            clip=clip,
            crop="squash",
            text="first",
            tokenizer="clip",
            text_length=16,
            text_clean=True,
            reader=READER,
        ),
        optim=OptimConfig(lr=1e-2, lr_batch=0, warmup_steps=1),
        log=LogConfig(every=1, report=False),
        evals={
            "zero_shot": ZeroShot(every=2, views=views, templates="actionclip16"),
            "retrieval": TextVideoRetrieval(every=2, views=views, block=6),
            "choice": MultipleChoice(views=views, options="classes"),
        },
        steps=4,
    )


def get_config(arg: str = ""):
    del arg
    return config_dict(typed())
