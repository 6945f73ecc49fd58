"""Threads that go on one at a time, from one operation on the storage to the next, in every order that there is."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from transforms.storage import files as storage

GUARD = 120
"""Seconds after which a test has hung."""
OPERATIONS = ("match", "exists", "create_if_absent", "delete")

_current = threading.local()


class Suspendable(threading.Thread):
    """Does something, and waits before every operation that matters until it may go on."""

    def __init__(self, task: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._task, self._go, self._waits = task, threading.Semaphore(0), threading.Semaphore(0)
        self.result: object = None
        self.error: BaseException | None = None
        self.has_ended = False
        self.start()

    def run(self) -> None:
        _current.thread = self
        self._go.acquire()
        try:
            self.result = self._task()
        except BaseException as error:
            self.error = error
        self.has_ended = True
        self._waits.release()

    def suspend(self) -> None:
        """Wait; called by the thread itself."""
        self._waits.release()
        self._go.acquire()

    def step(self) -> None:
        """Let it go on to its next operation, or to its end."""
        self._go.release()
        assert self._waits.acquire(timeout=GUARD)


def gate(monkeypatch: pytest.MonkeyPatch, paths: str) -> None:
    """Have `Suspendable` threads wait before operations on paths in which a pattern is found."""

    def gated(operation: Callable[..., Any]) -> Callable[..., Any]:
        def wait_and_do(subject: Any, *arguments: Any) -> Any:
            thread = getattr(_current, "thread", None)
            if isinstance(thread, Suspendable):
                subject = subject if isinstance(subject, str) else list(subject)
                if any(re.search(paths, path) for path in ([subject] if isinstance(subject, str) else subject)):
                    thread.suspend()
            return operation(subject, *arguments)

        return wait_and_do

    for name in OPERATIONS:
        monkeypatch.setattr(storage, name, gated(getattr(storage, name)))


def interleave(tasks: Sequence[Callable[[], object]], choices: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Do all tasks, in turns.

    Args:
        tasks: what each thread does.
        choices: which one goes on, step by step; the first that can where they end.

    Returns:
        For each step, which one went on, and which ones could have.

    Raises:
        BaseException: what a task has raised.
    """
    threads = [Suspendable(task) for task in tasks]
    trace = []
    while possible := [number for number, thread in enumerate(threads) if not thread.has_ended]:
        wanted = choices[len(trace)] if len(trace) < len(choices) else possible[0]
        chosen = wanted if wanted in possible else possible[0]
        threads[chosen].step()
        trace.append((chosen, possible))
    for thread in threads:
        if thread.error is not None:
            raise thread.error
    return trace


Prepare = Callable[[], tuple[Sequence[Callable[[], object]], Callable[[], None]]]
"""Makes anew the tasks, and what is to be checked when they have ended."""


def explore(prepare: Prepare) -> int:
    """Do what is prepared in every order that there is; gives their number."""
    waiting: list[list[int]] = [[]]
    orders = 0
    while waiting:
        choices = waiting.pop()
        trace = _check(prepare, choices)
        taken = [chosen for chosen, _ in trace]
        orders += 1
        for step in range(len(choices), len(trace)):
            waiting += [[*taken[:step], other] for other in trace[step][1] if other != taken[step]]
    return orders


def suspend_everywhere(prepare: Prepare) -> int:
    """Do what two tasks are, each suspended before every operation until the other has ended; gives their number."""
    orders = 0
    for suspended in (0, 1):
        for steps in itertools.count():
            trace = _check(prepare, [suspended] * steps + [1 - suspended] * 10_000)
            orders += 1
            if [chosen for chosen, _ in trace[:steps]] != [suspended] * steps:
                break  # it has fewer
    return orders


def _check(prepare: Prepare, choices: Sequence[int]) -> list[tuple[int, list[int]]]:
    tasks, check = prepare()
    trace = interleave(tasks, choices)
    try:
        check()
    except AssertionError as error:
        raise AssertionError(f"in the order {[chosen for chosen, _ in trace]}: {error}") from error
    return trace
