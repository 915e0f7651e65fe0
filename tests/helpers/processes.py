"""One function in several processes that know each other, on the CPU."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from io import BytesIO
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch import distributed

START_SECONDS = 120.0
"""The first ones wait until everything is imported, which takes long where others work too."""

PRELOADED = ["tests.helpers.fits", "tests.helpers.streams"]
"""What the processes import: once for all of them, in the server that they are forked from."""


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def in_processes(
    function: Callable[..., Any],
    *arguments: Any,
    number: int = 2,
    seconds: float = 60.0,
    join: bool = True,
) -> list[Any]:
    """What the function of a module returns in each of so many processes, by rank.

    Lightning, and whoever asks the environment, finds them started as by a cluster.

    Args:
        function: called with the arguments; all of it can be pickled.
        arguments: the same for all processes.
        number: of processes.
        seconds: that all of them may take, once they have started: a deadlock ends too.
        join: whether they know each other before the function is called; Lightning joins them.

    Raises:
        AssertionError: one of them failed (its traceback is told) or the time is over.
    """
    context, port = _context(), free_port()
    processes, ends = [], []
    for rank in range(number):
        here, there = context.Pipe(duplex=False)
        call = (there, rank, number, port, join, function, arguments)
        processes.append(context.Process(target=_call, args=call, daemon=True))
        processes[-1].start()
        there.close()
        ends.append(here)
    try:
        for end in ends:
            if end.poll(START_SECONDS):
                end.recv_bytes()
        return _results(ends, time.monotonic() + seconds)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _context() -> BaseContext:
    """A fork server that has imported everything, or where there is none (Windows) fresh ones."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _results(ends: list[Connection], deadline: float) -> list[Any]:
    found: dict[int, Any] = {}
    while len(found) < len(ends):
        for rank, end in enumerate(ends):
            if rank in found or not end.poll(0.05):
                continue
            try:
                good, found[rank] = torch.load(BytesIO(end.recv_bytes()))
            except EOFError:
                good, found[rank] = False, "It ended without a word."
            assert good, f"Process {rank} failed:\n{found[rank]}"
        late = [rank for rank in range(len(ends)) if rank not in found]
        assert not late or time.monotonic() < deadline, f"Processes {late} do not come to an end."
    return [found[rank] for rank in range(len(ends))]


def _call(
    end: Connection,
    rank: int,
    number: int,
    port: int,
    join: bool,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        WORLD_SIZE=str(number),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        NODE_RANK="0",
        OMP_NUM_THREADS="1",
    )
    torch.set_num_threads(1)
    end.send_bytes(b"started")
    try:
        if join:
            distributed.init_process_group("gloo", rank=rank, world_size=number)
        found = True, function(*arguments)
    except BaseException:
        found = False, traceback.format_exc()
    # By value: a tensor's shared memory would end with the process.
    written = BytesIO()
    torch.save(found, written)
    end.send_bytes(written.getvalue())
