"""Sources that are no file, written as the path of a row."""

from dataclasses import asdict, fields
from typing import Any, ClassVar, Self
from urllib.parse import parse_qsl, urlencode


class Address:
    """A frozen dataclass of texts and numbers that can be written as one string."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]
    SCHEME: ClassVar[str]

    def address(self) -> str:
        """The same as a string, for `Row.path`."""
        return self.SCHEME + urlencode(asdict(self), errors="surrogateescape")

    @classmethod
    def parse(cls, address: str) -> Self:
        """The inverse of `address`."""
        query = address.removeprefix(cls.SCHEME)
        values: dict[str, Any] = dict(
            parse_qsl(query, strict_parsing=True, errors="surrogateescape")
        )
        kinds: dict[str, Any] = {each.name: each.type for each in fields(cls)}
        return cls(**{name: kind(values[name]) for name, kind in kinds.items()})
