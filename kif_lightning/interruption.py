"""A request to stop, by signal: the run ends at its next complete step, saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

EXIT_STATUS = 75
"""EX_TEMPFAIL of sysexits.h: not done, but the same command again goes on."""


class Interrupted(BaseException):
    """The run was asked to stop, and what it did is saved."""


class Interruption:
    """Notes SIGTERM, SIGINT and SIGUSR1 instead of dying; a second SIGINT stops at once.

    SIGUSR1 is what SLURM sends before the time limit with ``--signal=USR1@SECONDS``. SIGUSR2 is
    noted where somebody else waits for it, as submitit does to requeue the job: that is done by
    :meth:`pass_on`, after the run has saved its state.

    Args:
        tell: called with a sentence at the first signal.
    """

    def __init__(self, tell: Callable[[str], None] = lambda _: None) -> None:
        self.tell = tell
        self.requested: str | None = None
        """The name of the first signal."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # only it may take signals
            names = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")
            for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
                before = signal.getsignal(number)
                if signal.Signals(number).name != "SIGUSR2" or callable(before):
                    self._before[number] = before
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def listen(self) -> None:
        """Take the signals, again after somebody else took them."""
        for number in self._before:
            signal.signal(number, self._note)

    def pass_on(self) -> None:
        """Call who waited for the signal before this did; Python's own handlers are left out."""
        number = getattr(signal, self.requested or "", None)
        before = self._before.get(number) if number is not None else None
        if callable(before) and before is not signal.default_int_handler:
            before(number, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested is not None:
            raise KeyboardInterrupt
        if self.requested is None:
            self.requested = signal.Signals(number).name
            # A closed terminal, or a write that the signal cut short, must not end the run here.
            with suppress(Exception):
                self.tell(
                    f"{self.requested}: stopping after this step, its state saved"
                    + (" (Ctrl-C again stops at once)." if number == signal.SIGINT else ".")
                )
