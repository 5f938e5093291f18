"""Work that forked processes do beside this one."""

import gc
import os
import time
import warnings
from collections.abc import Callable
from typing import Self

POLL_S = 0.003


class Forks:
    """Runs functions for what they leave on disk, each in a process forked from this one as it is at that moment."""

    def __init__(self, most: int) -> None:
        """At most so many at once."""
        self._most = most
        self._running: dict[int, Callable[[], None]] = {}

    def start(self, work: Callable[[], None]) -> None:
        """Begins it, after waiting for a place."""
        while len(self._running) >= self._most:
            self._wait()
        with warnings.catch_warnings():
            # From 3.12 on of other threads, whose locks a child might wait for; this work takes none of theirs.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child:
            self._running[child] = work
            return
        gc.disable()  # it ends soon, and looking for garbage would copy every page of its parent's
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)  # without the parent's clean-up

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        """Waits for all; what has failed in its process is done again here, and fails here."""
        while self._running:
            self._wait(again=failed is None)

    def _wait(self, again: bool = True) -> None:
        """Until any of them has ended: the oldest may be the slowest."""
        while True:
            for child in list(self._running):
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    work = self._running.pop(child)
                    if status and again:
                        work()
                    return
            time.sleep(POLL_S)
