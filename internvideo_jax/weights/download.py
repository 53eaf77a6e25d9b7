"""One file from a web server: continued where it broke off, checked, then in its place at once."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import os
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from email.message import Message
from pathlib import Path
from typing import IO

from tqdm import tqdm

from data_pipelines.commands.exit_codes import PassingFault

BLOCK = 1 << 20
TRIES = 4  # in a row without a byte more
PAUSE = 1.0  # seconds before the second one, doubled with each
TIMEOUT = 60.0  # seconds without a byte
AGAIN = (408, 429, 500, 502, 503, 504)
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)


class Absent(ValueError):
    """The server says that there is no such file."""


def fetch(url: str, target: Path, *, sha256: str = "", size: int = 0) -> None:
    """Brings a file to `target`; what an earlier call left of it (`.part`) is continued.

    Args:
      sha256: of its content, in hex; empty: what the server says of it, if anything.
      size: in bytes; 0: not known.

    Raises:
      Absent: 404 or 410.
      ValueError: refused, or another content than expected.
      PassingFault: the server cannot be reached, or breaks off again and again.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with alone(target):
        if target.is_file():  # another process was faster
            return
        part = target.with_name(f"{target.name}.part")
        said = _body(url, part, size)
        if size and part.stat().st_size != size:
            part.unlink()
            raise ValueError(
                f"{url}: its size is not {size:,} bytes, as expected; it was discarded"
            )
        _check_content(url, part, sha256 or said)
        os.replace(part, target)
        _note(part).unlink(missing_ok=True)


def digest(path: Path) -> str:
    """sha256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_content(origin: str | Path, part: Path, expected: str) -> None:
    """ValueError for another digest than expected (empty: any); the part is gone then."""
    if expected and (found := digest(part)) != expected:
        part.unlink()
        raise ValueError(
            f"{origin}: the sha256 of what came is {found[:16]}..., expected {expected[:16]}...: "
            "damaged on the way, or another file in its place; it was discarded"
        )


@contextlib.contextmanager
def alone(target: Path) -> Iterator[None]:
    """Processes that want the same file wait for the first."""
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _note(part: Path) -> Path:
    """Where it stands which version of the file a part is of."""
    return part.with_name(f"{part.name}.version")


def _body(url: str, part: Path, size: int) -> str:
    """The whole content into `part`; the sha256 that the server states, or empty."""
    failed, bar = 0, None
    try:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                with _opened(url, part, before) as (response, headers):
                    begin, total = _range(response, before)
                    whole = size or total
                    if bar is None:
                        print(f"{url} ({_bytes(whole)}) -> {part.parent}", file=sys.stderr)
                        bar = tqdm(
                            total=whole or None, unit="B", unit_scale=True, disable=None,
                            desc=part.stem,
                        )  # fmt: skip
                    bar.update(begin - bar.n)
                    _write(response, part, begin, total, bar)
                    return _stated(headers)
            except urllib.error.HTTPError as error:
                if error.code == 416 and before:  # nothing follows what is there
                    whole = error.headers.get("Content-Range", "").rpartition("/")[2]
                    if whole == str(before):
                        return _stated(dict(error.headers))
                    part.unlink()
                    continue
                if error.code not in AGAIN:
                    raise _refused(url, error) from error
                why: Exception = error
            except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
                if isinstance(error, OSError) and error.errno in DISK:
                    raise
                why = error
            now = part.stat().st_size if part.exists() else 0
            failed = 1 if now > before else failed + 1
            reason = getattr(why, "reason", None) or why
            if failed == TRIES:
                left = f"; the {now:,} bytes that came are kept" if now else ""
                raise PassingFault(
                    f"{url}: cannot be fetched ({reason}){left}. Start the command again, or see "
                    "docs/weights.md on mirrors and folders"
                ) from why
            pause = PAUSE * 2 ** (failed - 1)
            print(f"{url}: {reason}; try {failed + 1} in {pause:.0f} s", file=sys.stderr)
            time.sleep(pause)
    finally:
        if bar is not None:
            bar.close()


class _Short(OSError):
    """The connection ended before the file did."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Keeps the headers of the first answer: a hub states there what the file is."""

    def __init__(self) -> None:
        self.first: Message | None = None

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        self.first = self.first or headers
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise urllib.error.URLError(f"leads from https to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextlib.contextmanager
def _opened(
    url: str, part: Path, have: int
) -> Iterator[tuple[http.client.HTTPResponse, Mapping[str, str]]]:
    """The answer of the server, and the headers that describe the file."""
    request = urllib.request.Request(url, headers={"User-Agent": "internvideo-jax"})
    version = _note(part).read_text() if have and _note(part).exists() else ""
    if have and version:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version)
    token = os.environ.get("HF_TOKEN", "")
    if token and urllib.parse.urlsplit(url).hostname == "huggingface.co":
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    redirects = _Redirects()
    with urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT) as response:
        # A strong validator only: a weak one may stand for other bytes.
        validator = response.headers.get("ETag", "")
        if not validator or validator.startswith("W/"):
            validator = response.headers.get("Last-Modified", "")
        _note(part).write_text(validator)
        yield response, {**dict(response.headers), **dict(redirects.first or {})}


def _range(response: http.client.HTTPResponse, have: int) -> tuple[int, int]:
    """Where the content begins, and how long the whole file is (0: not said)."""
    length = int(response.headers.get("Content-Length") or 0)
    if response.status != 206:
        return 0, length
    begin, _, rest = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")
    if begin != str(have):
        raise _Short(f"asked for what follows byte {have}, the answer begins at {begin or '?'}")
    total = rest.rpartition("/")[2]
    return have, int(total) if total.isdigit() else have + length


def _write(
    response: http.client.HTTPResponse, part: Path, begin: int, total: int, bar: tqdm
) -> None:
    with part.open("r+b" if begin else "wb") as file:
        file.seek(begin)
        file.truncate()
        done = begin
        while block := response.read(BLOCK):
            file.write(block)
            done += len(block)
            bar.update(len(block))
    if total and done < total:
        raise _Short(f"the connection ended at {done:,} of {total:,} bytes")


def _stated(headers: Mapping[str, str]) -> str:
    """The sha256 that Hugging Face states of large files."""
    low = {name.lower(): value for name, value in headers.items()}
    found = low.get("x-linked-etag", "").strip('"')
    return found if len(found) == 64 and set(found) <= set("0123456789abcdef") else ""


def _refused(url: str, error: urllib.error.HTTPError) -> ValueError:
    if error.code in (404, 410):
        return Absent(f"{url}: the server has no such file ({error.code}); was it moved?")
    if error.code in (401, 403):
        return ValueError(
            f"{url}: refused ({error.code}): gated or private. Accept its terms on its page in a "
            "browser and set HF_TOKEN, or download it there"
        )
    return ValueError(f"{url}: refused: {error.code} {error.reason}")


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count else "size not said"


def copy(source: Path, target: Path, *, sha256: str = "") -> None:
    """The same from a folder, such as one on a shared disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with alone(target):
        part = target.with_name(f"{target.name}.part")
        shutil.copyfile(source, part)
        _check_content(source, part, sha256)
        os.replace(part, target)
