"""Which failures of remote storage pass: those that are worth another try."""

import errno

from data_pipelines.commands.exit_codes import NETWORK


class ShortReadError(Exception):
    """Fewer bytes than the file has came back."""


# Errors of the HTTP libraries below fsspec that do not derive from OSError. They are known by name
# because none of those libraries is a dependency.
_TRANSIENT_NAMES = frozenset(
    {
        "ClientConnectionError",
        "ClientPayloadError",
        "ConnectionClosedError",
        "EndpointConnectionError",
        "HTTPClientError",
        "IncompleteRead",
        "IncompleteReadError",
        "ReadTimeoutError",
        "ResponseStreamingError",
    }
)
_TRANSIENT_ERRNO = NETWORK | {errno.EIO, errno.EBUSY, errno.EAGAIN, errno.EPIPE}


def _status(error: BaseException) -> int:
    """The HTTP status an error of some library carries, 0 without one."""
    response = getattr(error, "response", None)
    found = [getattr(error, name, None) for name in ("status", "status_code", "code")]
    found.append(getattr(response, "status_code", None))
    if isinstance(response, dict):
        found.append(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    return next((value for value in found if isinstance(value, int)), 0)


def passes(error: BaseException | None) -> bool:
    """Whether trying again may help."""
    for _ in range(8):  # a chain of causes, normally one or two long
        if error is None:
            return False
        status = _status(error)
        if status:
            return status >= 500 or status in (408, 429)
        if isinstance(error, (TimeoutError, ConnectionError, ShortReadError)):
            return True
        if isinstance(error, (FileNotFoundError, PermissionError, NotImplementedError)):
            return False
        if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO:
            return True
        if any(kind.__name__ in _TRANSIENT_NAMES for kind in type(error).__mro__):
            return True
        error = error.__cause__ or error.__context__
    return False
