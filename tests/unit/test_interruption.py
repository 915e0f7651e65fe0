"""Signals are noted while an interruption listens, and only then."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kif_lightning.interruption import EXIT_STATUS, Interrupted, Interruption

NOTED = ("SIGTERM", "SIGINT", "SIGUSR1")


def send(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[dict[str, list[int]]]:
    """Whoever waited for the signals before: lists of what came, and an end that puts all back."""
    came: dict[str, list[int]] = {name: [] for name in (*NOTED, "SIGUSR2")}
    before = {name: signal.getsignal(getattr(signal, name)) for name in came}

    def note(number: int, _: Any) -> None:
        came[signal.Signals(number).name].append(number)

    for name in NOTED:
        signal.signal(getattr(signal, name), note)
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    yield came
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


@pytest.mark.parametrize("name", NOTED)
def test_a_signal_is_noted_and_told(name: str, own_handlers: dict[str, list[int]]) -> None:
    told: list[str] = []
    with Interruption(told.append) as interruption:
        assert interruption.requested is None
        send(name)
        assert interruption.requested == name
    (sentence,) = told
    assert sentence.startswith(f"{name}: stopping after this step")
    assert ("Ctrl-C again stops at once" in sentence) == (name == "SIGINT")
    assert own_handlers[name] == []


def test_the_first_signal_counts_and_is_told_once() -> None:
    told: list[str] = []
    with Interruption(told.append) as interruption:
        for name in ("SIGTERM", "SIGUSR1", "SIGTERM"):
            send(name)
        assert interruption.requested == "SIGTERM"
    assert len(told) == 1


@pytest.mark.parametrize("first", NOTED)
def test_ctrl_c_after_a_signal_stops_at_once(first: str) -> None:
    with Interruption() as interruption:
        send(first)
        with pytest.raises(KeyboardInterrupt):
            send("SIGINT")
        assert interruption.requested == first


def test_former_handlers_are_back_after_it(own_handlers: dict[str, list[int]]) -> None:
    with pytest.raises(RuntimeError), Interruption():
        raise RuntimeError
    for name in NOTED:
        send(name)
        assert own_handlers[name] == [getattr(signal, name)]


def test_it_listens_again_after_somebody_else_took_a_signal() -> None:
    with Interruption() as interruption:
        taken: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: taken.append(number))
        interruption.listen()
        send("SIGTERM")
        assert (interruption.requested, taken) == ("SIGTERM", [])


def test_sigusr2_is_noted_only_where_somebody_waits_for_it() -> None:
    with Interruption():
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    came: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, _: came.append(number))
    with Interruption() as interruption:
        send("SIGUSR2")
        assert (interruption.requested, came) == ("SIGUSR2", [])
        interruption.pass_on()
    assert came == [signal.SIGUSR2]


def test_a_signal_is_passed_on_to_who_waited_for_it(own_handlers: dict[str, list[int]]) -> None:
    with Interruption() as interruption:
        interruption.pass_on()
        send("SIGUSR1")
        interruption.pass_on()
    assert {name: came for name, came in own_handlers.items() if came} == {
        "SIGUSR1": [signal.SIGUSR1]
    }


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN, signal.SIG_DFL])
def test_pythons_own_handlers_get_nothing(handler: Any) -> None:
    signal.signal(signal.SIGINT, handler)
    with Interruption() as interruption:
        send("SIGINT")
        interruption.pass_on()
        assert interruption.requested == "SIGINT"
    assert signal.getsignal(signal.SIGINT) is handler


def test_in_another_thread_no_signal_is_taken() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[Any] = []

    def work() -> None:
        with Interruption() as interruption:
            interruption.pass_on()
            found.extend([signal.getsignal(signal.SIGTERM), interruption.requested])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before, None]


def test_no_handler_for_errors_takes_an_interruption_for_one() -> None:
    assert EXIT_STATUS == 75
    assert not issubclass(Interrupted, Exception)
