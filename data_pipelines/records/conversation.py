"""What is said about a clip in turns, and how a record holds it.

Both keys are in the context and parallel: element `i` of each belongs to turn `i`.

=====================  =====  ==================================================
`turn/role`            bytes  who says it, such as `user` or `assistant`
`turn/text`            bytes  what is said
=====================  =====  ==================================================
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_pipelines.records.messages import SchemaError, put_texts, texts


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation about a clip.

    Attributes:
      role: who says it; not empty.
      text: what is said.
    """

    role: str
    text: str


def check(turns: Sequence[Turn]) -> str:
    """What keeps turns from being stored, or an empty text."""
    without = [number for number, turn in enumerate(turns) if not turn.role]
    return f"turn {without[0]} has no role" if without else ""


def put(context: Any, turns: Sequence[Turn]) -> None:
    """Store into the context features of a SequenceExample."""
    if turns:
        put_texts(context, "turn/role", *(turn.role for turn in turns))
        put_texts(context, "turn/text", *(turn.text for turn in turns))


def get(context: Any) -> tuple[Turn, ...]:
    """The turns of a record; SchemaError when the keys contradict each other."""
    roles, said = texts(context, "turn/role"), texts(context, "turn/text")
    if len(roles) != len(said):
        raise SchemaError(f"turn/text has {len(said)} values, {len(roles)} expected")
    turns = tuple(map(Turn, roles, said))
    if problem := check(turns):
        raise SchemaError(problem)
    return turns
