"""The contrastive loss against real processes of the reference, each with its part of the batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.ops.contrastive import FORMS, contrastive_loss
from tests.parity.cases import Case, adapter


@adapter("video_language", "contrastive_distributed")
def contrastive_distributed(case: Case) -> None:
    """Rows of all ranks in one batch: ranks keep the gradient of their own samples.

    The second reference (`iv1`) sums gathered gradients over ranks before they are averaged, so its
    local ones are the number of ranks times the true gradient; it takes no ids, and its scale is
    the logarithm of 1 / temperature.
    """
    ranks = case.config["world_size"]
    video, text = (
        jnp.asarray(case.io[name].reshape(-1, case.io[name].shape[-1]))
        for name in ("vision", "text")
    )
    ids = jnp.asarray(case.io["idx"].reshape(-1), jnp.int32)
    assert len(np.unique(ids)) < len(ids), "without repeated ids half of this is not tested"
    every = np.ones(ranks, np.float32)
    for form in FORMS:

        def loss(video, text, temperature, ids=None, form=form):
            mean, _ = contrastive_loss(video, text, temperature, ids=ids, form=form)
            return mean.value()

        temperature = jnp.float32(case.config["temp"])
        value, (dv, dt, slope) = jax.value_and_grad(loss, argnums=(0, 1, 2))(
            video, text, temperature, ids
        )
        case.close("viclip.loss", value * every)
        case.close("viclip.grad_v", dv)
        case.close("viclip.grad_t", dt)
        case.close("viclip.grad_temp", slope * every)

        value, (dv, dt, slope) = jax.value_and_grad(
            lambda v, t, scale: loss(v, t, jnp.exp(-scale)), argnums=(0, 1, 2)
        )(video, text, jnp.float32(case.config["logit_scale"]))
        case.close("iv1.loss", value * every)
        case.close("iv1.grad_v", ranks * dv)
        case.close("iv1.grad_t", ranks * dt)
        case.close("iv1.grad_logit_scale", slope * every)
