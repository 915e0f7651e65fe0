"""One writer for a run folder: a lock of the system, and a file that says who holds it."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kif_lightning.errors import UserError
from kif_lightning.storage import read_json, write_json

LOCK_NAME = ".lock"
OWNER_NAME = ".owner.json"


class RunLock:
    """Holds a run folder while the context lasts; entering it gives a sentence to tell, or None.

    The system frees the lock of a process that dies, however it dies, but some shared file systems
    keep it from other machines. The owner file, which is touched again and again, speaks to those.

    Args:
        folder: the run folder, made if there is none.
        touch_seconds: how often the owner gives a sign of life.
        silence_seconds: how long another machine's owner must be silent to count as dead.
    """

    def __init__(
        self, *, folder: Path, touch_seconds: float = 30.0, silence_seconds: float = 300.0
    ) -> None:
        self.folder = folder
        self.touch_seconds = touch_seconds
        self.silence_seconds = silence_seconds
        self._owner_file = folder / OWNER_NAME
        self._lock = FileLock(folder / LOCK_NAME)
        self._released = threading.Event()

    def __enter__(self) -> str | None:
        self._acquire()
        try:
            told = self._succeed()
            write_json(
                self._owner_file,
                {
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "started": datetime.now(UTC).isoformat(timespec="seconds"),
                },
            )
        except BaseException:
            self._lock.release()
            raise
        self._released.clear()
        threading.Thread(target=self._give_signs, name="run-lock", daemon=True).start()
        return told

    def __exit__(self, *_: object) -> None:
        self._released.set()
        try:
            self._owner_file.unlink(missing_ok=True)
        finally:
            self._lock.release()

    def _acquire(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(self._in_use()) from None
        except OSError as error:
            raise UserError(
                f"The run folder {self.folder} cannot be locked ({error}): choose one that can be "
                "written with run_dir=FOLDER."
            ) from error

    def _in_use(self) -> str:
        try:
            who = self._told_of(read_json(self._owner_file), self._silence())
        except (UserError, OSError):
            who = "a process that has not yet written who it is"
        return (
            f"The run folder {self.folder} is in use by {who}: wait until it ends, or choose "
            "another with run_dir=FOLDER."
        )

    def _succeed(self) -> str | None:
        """Decide about an owner file that was left behind; the system's lock is ours."""
        if not self._owner_file.exists():
            return None
        try:
            owner = read_json(self._owner_file)
            elsewhere = owner["host"] != socket.gethostname()
            silence = self._silence()
            who = self._told_of(owner, silence)
        except (UserError, OSError, TypeError, KeyError) as error:
            raise UserError(
                f"{self._owner_file}, which names the run folder's owner, is damaged: make sure "
                "that no other process runs there, and delete it."
            ) from error
        if elsewhere and silence < self.silence_seconds:
            raise UserError(
                f"The run folder {self.folder} seems to be in use by {who}: wait until it ends, "
                f"or until it has been silent for {_age(self.silence_seconds)}, or choose another "
                "with run_dir=FOLDER."
            )
        return f"The run's last owner died ({who}): going on."

    def _silence(self) -> float:
        """Seconds since the owner's last sign of life."""
        return max(0.0, time.time() - self._owner_file.stat().st_mtime)

    def _told_of(self, owner: dict[str, Any], silence: float) -> str:
        return (
            f"process {owner['pid']} on {owner['host']}, since {owner['started']}, last sign of "
            f"life {_age(silence)} ago"
        )

    def _give_signs(self) -> None:
        while not self._released.wait(self.touch_seconds):
            # A full or absent disk must not end the run here: its own writes will tell.
            with suppress(OSError):
                os.utime(self._owner_file)


def _age(seconds: float) -> str:
    """In the largest unit that gives at least two, in whole numbers: 119 s, 2 minutes, 36 hours."""
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {name}s"
    return f"{int(seconds)} second{'' if int(seconds) == 1 else 's'}"
