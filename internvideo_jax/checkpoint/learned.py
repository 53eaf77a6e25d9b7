"""How many seconds a clip spanned for the weights that a run starts from, as far as it is known."""

from __future__ import annotations

import dataclasses

from internvideo_jax.checkpoint.reading import step_of
from internvideo_jax.weights import folders, zoo
from internvideo_jax.weights.named import resolve

SECONDS = "seconds"  # of run.json and checkpoints: set -> spans of its training clips


@dataclasses.dataclass(frozen=True)
class Learned:
    """What weights saw of a video.

    Attributes:
      name: of the weights.
      seconds: of a clip; 0: not known.
      why: where that is from, or why it is not known.
    """

    name: str
    seconds: float
    why: str


def learned(source: str) -> Learned:
    """Of a run, one of its steps, a weight file, or the name of one.

    A run tells of its largest set. Of a file its name tells whose it is; shapes alone do not.

    Raises:
      ValueError: there is nothing there.
    """
    place = resolve(source)
    if not folders.is_weights(place):
        found = step_of(place).meta.get(SECONDS, {}).values()
        spans = max(found, key=lambda each: each["videos"], default={"median": 0.0})
        why = "its data" if spans["median"] else "it does not say"
        return Learned(source, spans["median"], why)
    entry = zoo.named(source)
    entries = (entry,) if entry else zoo.match(str(place))
    if not entries:
        return Learned(source, 0.0, "no published file has this name")
    seconds = {round(each.seconds, 3) for each in entries}
    if len(seconds) > 1 or seconds == {0.0}:
        return Learned(source, 0.0, f"not stated of {entries[0].name}")
    trained = f"{entries[0].frames} frames of {entries[0].data}"
    return Learned(entries[0].name, entries[0].seconds, trained)
