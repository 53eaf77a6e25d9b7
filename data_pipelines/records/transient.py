"""Which failures of remote storage pass, so that they are worth another try; how others read."""

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
# Whose errors are of no use to a person without a word on what was tried.
_LIBRARIES = ("aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "requests", "s3fs")
_ADVICE = "check the credentials, the endpoint and the name of the bucket"
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
    chain: list[BaseException] = []  # of causes, normally one or two long
    while error is not None and len(chain) < 8:
        chain.append(error)
        error = error.__cause__ or error.__context__
    # What the server said counts more than what a library made of it.
    if status := next(filter(None, map(_status, chain)), 0):
        return status >= 500 or status in (408, 429)
    for error in chain:
        if isinstance(error, (TimeoutError, ConnectionError, ShortReadError)):
            return True
        if isinstance(error, (FileNotFoundError, PermissionError, NotImplementedError)):
            return False
        if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO:
            return True
        if any(kind.__name__ in _TRANSIENT_NAMES for kind in type(error).__mro__):
            return True
    return False


def refusal(what: str, error: Exception) -> Exception:
    """The error that a person can read, where the library's own does not say what was tried."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, PermissionError):
        return PermissionError(f"{what}: not allowed ({text}); {_ADVICE}")
    if isinstance(error, FileNotFoundError | ImportError):
        return error
    bare = isinstance(error, OSError) and error.errno is None
    reasons = (error, error.__cause__, error.__context__)
    if bare or any(type(reason).__module__.partition(".")[0] in _LIBRARIES for reason in reasons):
        return OSError(f"{what}: {text}; {_ADVICE}")
    return error
