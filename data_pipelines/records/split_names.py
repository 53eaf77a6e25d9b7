"""What splits are called, and what a name says about the clips in it."""

TRAIN = frozenset(("train", "training"))
# Only recognised as folders and in file names; in this order evaluation prefers them.
TEST = ("test", "testing")
VALIDATION = ("val", "valid", "validation", "dev")
FOLDERS = TRAIN | {*TEST, "val", "valid", "validation"}


def is_held_out(name: str) -> bool:
    """Whether a split of that name is kept from training by custom, in any spelling."""
    return name.lower() in (*TEST, *VALIDATION)


def to_evaluate(names: list[str]) -> str:
    """The split to evaluate on: a test split, else one for validation, else one for training.

    Equal words in another case count; of several spellings the first of `names` is taken. Where
    none is known it is the first one, and "" of none.
    """
    for word in (*TEST, *VALIDATION, *sorted(TRAIN)):
        for name in names:
            if name.lower() == word:
                return name
    return next(iter(names), "")
