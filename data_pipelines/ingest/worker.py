"""A worker process: `python -m data_pipelines.ingest.worker DESCRIPTOR MODULE:FUNCTION`.

Started by `ingest.pool`. It takes tasks from the connection until that is
closed, and ends when nobody listens any more, so that a killed ingest leaves no orphans behind.
"""

import sys
from multiprocessing.connection import Connection

from data_pipelines.ingest.pool import Throttled, resolve


class _Reporter(Throttled):
    """Progress over the connection; the item goes out at once, since it may be the last word."""

    def __init__(self, connection: Connection):
        super().__init__(lambda items, frames: connection.send(("progress", items, frames)))
        self._connection = connection

    def item(self, number: int) -> None:
        self._connection.send(("item", number))
        super().item(number)


def main(descriptor: int, job_name: str) -> int:
    """Serve tasks until the other end closes; returns the exit code."""
    job = resolve(job_name)
    with Connection(descriptor) as connection:
        while True:
            try:
                task = connection.recv()
            except (EOFError, ConnectionError):
                return 0
            try:
                answer = ("done", job(task, _Reporter(connection)))
            except ConnectionError:
                return 1
            except (OSError, ValueError, RuntimeError) as error:
                answer = ("failed", str(error))
            try:
                connection.send(answer)
            except ConnectionError:
                return 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
