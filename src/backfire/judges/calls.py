"""The calls of one judge at one endpoint: how many at once, when to try again, when to give up.

A failure belongs to one row, or to all of them. Rows are asked one at a time until the endpoint has
answered once, so a refused key or a wrong address costs one call; then side by side.
"""

from __future__ import annotations

import hashlib
import ipaddress
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backfire.errors import JudgeError
from backfire.judges.transport import CallError, Reply, Transport
from backfire.progress import Progress, Task, duration

if TYPE_CHECKING:
    from backfire.judges.endpoint import Endpoint
    from backfire.judges.journal import Journal

__all__ = ["Absence", "Calls"]

_FIRST_ROWS = 3
"""Rows an endpoint that has never answered may fail on before it is given up."""

_ROWS_IN_A_ROW = 10
"""Rows that may fail one after another, each with all its retries, before the rest is left out."""


@dataclass(frozen=True, slots=True)
class Absence:
    """Why a question has no reply."""

    reason: str
    transient: bool
    """Whether asking again later may help."""


class Calls:
    """The calls still to be made, and what stops them."""

    def __init__(
        self, endpoint: Endpoint, key: str, journal: Journal, who: str, progress: Progress
    ) -> None:
        """Send nothing yet.

        Args:
            endpoint: Where, and how hard.
            key: The key; empty for none.
            journal: Gets every reply; it is open.
            who: The judge's name.
            progress: Told when the user has to wait.
        """
        self.endpoint, self.journal, self.who, self._progress = endpoint, journal, who, progress
        self.absent: dict[str, Absence] = {}
        """Why a row has no reply, by its key."""
        self.out = ""
        """Why nothing more is sent in this call; empty while all is well."""
        self._fatal: JudgeError | None = None
        self._works = len(journal) > 0
        """Whether the endpoint has ever given a reply."""
        self._model = journal.model
        self._failed_in_a_row = 0
        self._resume_at = 0.0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._send = Transport(
            endpoint.base_url, key, endpoint.timeout, direct=_loopback(endpoint.host)
        )

    def through(self, todo: Mapping[str, bytes], bar: Task) -> None:
        """Ask everything; each key is then in the journal or in `absent`.

        Args:
            todo: Request bodies by the journal's keys.
            bar: Advanced by one a call.

        Raises:
            JudgeError: when the endpoint cannot be used, or is another model than before.
        """
        from concurrent.futures import ThreadPoolExecutor, as_completed

        rows = iter(todo.items())
        tried = 0
        for key, body in rows:
            self._row(key, body)
            bar.advance()
            tried += 1
            if self._works or self.out or self._fatal or tried == _FIRST_ROWS:
                break
        if tried and not (self._works or self.out or self._fatal):
            last = next(reversed(self.absent.values()))
            self._fatal = self._useless(last.reason)
        if self._fatal:
            raise self._fatal
        pool = ThreadPoolExecutor(self.endpoint.concurrency, thread_name_prefix=self.who)
        try:
            for done in as_completed([pool.submit(self._row, key, body) for key, body in rows]):
                done.result()
                bar.advance()
        except KeyboardInterrupt:
            self._progress.say(
                f"{self.who}: stopping; waiting for the calls under way, every reply is kept"
            )
            raise
        finally:
            self._stop.set()  # ends every wait; calls under way are paid for, so their replies are kept
            pool.shutdown(wait=True, cancel_futures=True)
        if self._fatal:
            raise self._fatal

    def _row(self, key: str, body: bytes) -> None:
        """Answer one question for good: a reply in the journal, or an absence with its reason."""
        if self._stop.is_set():
            return
        if self.out:
            self.absent[key] = Absence(self.out, transient=True)
            return
        try:
            reply = self._tried(body)
        except CallError as error:
            self._note(key, error)
            return
        with self._lock:
            if self._model and reply.model and reply.model != self._model:
                self._end(self._another(reply.model))
                return
            self._works, self._failed_in_a_row = True, 0
            self._model = self._model or reply.model
        self.journal.add(key, reply)

    def _tried(self, body: bytes) -> Reply:
        """Send a request until it is answered or the retries are used up.

        Raises:
            CallError: the last one, or the first that another try cannot help.
        """
        number = 0
        while True:
            self._rest(self._resume_at - time.monotonic())
            try:
                return self._send(body)
            except CallError as error:
                if error.kind != "again":
                    raise
                wait = self._wait(number, error, body)
                if wait > self.endpoint.max_wait:
                    raise CallError(
                        "spent",
                        f"the endpoint asks to wait {duration(wait)}, longer than `max_wait` "
                        f"({error.reason})",
                    ) from None
                if self._stop.is_set() or self.out or number == self.endpoint.retries:
                    raise
                if error.busy:  # the limit is everybody's: let the other calls rest, too
                    self._resume_at = max(self._resume_at, time.monotonic() + wait)
                self._rest(wait)
                number += 1

    def _wait(self, number: int, error: CallError, body: bytes) -> float:
        """Return seconds until the next try: as told, else doubled each time and spread by half."""
        if error.wait is not None:
            return error.wait
        spread = hashlib.sha256(body + bytes([number % 256])).digest()[0] / 255
        longest = self.endpoint.first_wait * 2.0 ** min(number, 30)
        return min(longest, self.endpoint.max_wait) * (0.5 + spread / 2)

    def _rest(self, seconds: float) -> None:
        if seconds > 0:
            self._stop.wait(seconds)

    def _note(self, key: str, error: CallError) -> None:
        """Keep why a row has no reply, and see whether the others can have one."""
        with self._lock:
            if error.kind == "setup":
                self._end(self._useless(error.reason))
                return
            self.absent[key] = Absence(error.reason, transient=error.kind in ("again", "spent"))
            if error.kind == "row":  # it has read the question, after all
                self._works, self._failed_in_a_row = True, 0
            elif error.kind == "spent":
                self.out = error.reason
            else:
                self._failed_in_a_row += 1
                if self._failed_in_a_row >= _ROWS_IN_A_ROW:
                    self.out = (
                        f"{self._failed_in_a_row} calls in a row failed, last: {error.reason}"
                    )

    def _end(self, error: JudgeError) -> None:
        self._fatal = self._fatal or error
        self._stop.set()

    def _useless(self, reason: str) -> JudgeError:
        variable = self.endpoint.key_variable
        key = f"the key in {variable}" if variable else "`key_variable` (no key was sent)"
        return JudgeError(
            f"judging with {self.who}: {self.endpoint.model} at {self.endpoint.base_url} cannot be used: "
            f"{reason}. Check `base_url`, `model` and {key}, and that the server runs; everything done so "
            "far is kept, so run the same command again"
        )

    def _another(self, model: str) -> JudgeError:
        return JudgeError(
            f"judging with {self.who}: {self.endpoint.model!r} is {model} now, and was {self._model} in "
            "earlier verdicts; two judges are never mixed. Name one of the two in `model`; or, to ask "
            f"everything again, delete {self.journal.path}"
        )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
