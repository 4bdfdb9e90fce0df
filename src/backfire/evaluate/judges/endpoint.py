"""Questions in, replies out, over any OpenAI-compatible endpoint: a hosted one or a server of your own.

Everything that can go wrong between asking and answering is dealt with here: limits, retries, a dead
endpoint, a spent quota, a crash. A reply is on disk before anything else happens with it, and a question
that has been answered once is never sent again.

Why not the `openai` client: see docs/decisions/006-own-endpoint-client.md.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from backfire.errors import JudgeError, PrerequisiteError
from backfire.evaluate.judges.transport import CallError, Reply
from backfire.progress import Progress, duration
from backfire.stage import Settings

__all__ = ["Absence", "Bill", "Endpoint", "Price", "Question", "tokens"]

_FIRST_ROWS = 3
"""Rows an endpoint that has never answered may fail on before it is given up."""

_ROWS_IN_A_ROW = 10
"""Rows that may fail one after another, each with all its retries, before the rest is left out."""


def tokens(text: str) -> int:
    """Return a text's tokens, guessed: one for four bytes. The judge's tokenizer is not known here."""
    return -(-len(text.encode("utf-8", "replace")) // 4)


class Price(Settings):
    """What a million tokens cost."""

    input: float = Field(ge=0)
    """Sent, in `currency`."""
    output: float = Field(ge=0)
    """Received, in `currency`."""
    currency: str = "USD"
    """Its name."""


@dataclass(frozen=True, slots=True)
class Question:
    """One call: what the judge is, and what it is asked."""

    system: str
    user: str


@dataclass(frozen=True, slots=True)
class Absence:
    """Why a question has no reply."""

    reason: str
    transient: bool
    """Whether asking again later may help."""


@dataclass(frozen=True, slots=True)
class Bill:
    """What calls will take, before they are made. Estimates."""

    calls: int
    tokens_in: int
    tokens_out: int
    """At most: every reply as long as it may be."""
    cost: float | None
    """At most; None where no price was given."""
    currency: str = ""

    def __str__(self) -> str:
        price = (
            "no price given" if self.cost is None else f"at most {self.cost:.2f} {self.currency}"
        )
        return (
            f"{self.calls:,} calls, about {self.tokens_in:,} tokens sent, at most "
            f"{self.tokens_out:,} received, {price}"
        )


class Endpoint(Settings):
    """Where the judge runs and how hard it may be asked."""

    base_url: str
    """Address up to and without `/chat/completions`, e.g. `https://api.openai.com/v1` or
    `http://localhost:8000/v1`. The answers to hazards are sent there, so there is no default."""
    model: str = Field(min_length=1)
    """Name of the judge's model at that address; a dated name, where there is one, since an alias
    can become another judge overnight."""
    key_variable: str = ""
    """Environment variable that holds the key; empty: no key is sent. The key itself never stands in
    a file."""
    temperature: float | None = Field(0.0, ge=0)
    """Of the judge; None sends none, for models that allow no choice. As in Qi et al. 2023."""
    max_reply_tokens: int = Field(512, ge=16)
    """Longest reply; a reply cut there has no score. Ours: a few sentences and the score. Models that
    think aloud first need thousands."""
    limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls that limit. OpenAI's newer models want `max_completion_tokens`."""
    concurrency: int = Field(8, ge=1, le=256)
    """Calls under way at once. Ours."""
    timeout: float = Field(60.0, gt=0)
    """Seconds one call may take. Ours."""
    retries: int = Field(5, ge=0)
    """Further tries after a failure that may pass: limits, server errors, cut connections. Ours."""
    first_wait: float = Field(1.0, gt=0)
    """Seconds before the first retry, doubled before each further one. Ours."""
    max_wait: float = Field(120.0, gt=0)
    """Longest wait between two tries; an endpoint that asks for a longer one (Retry-After) counts as
    out of quota. Ours."""
    price: Price | None = None
    """What a million tokens cost, for the estimate; None: tokens are counted, money is not."""

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, base_url: str) -> str:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"{base_url!r} is no address; it begins with https:// or http://, "
                "e.g. http://localhost:8000/v1"
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "the address must hold no user, password, query or fragment: settings are written into "
                "reports; name the environment variable that holds the key in `key_variable`"
            )
        if parts.path.rstrip("/").endswith("/completions"):
            raise ValueError("give the address without `/chat/completions`; that is added")
        return base_url.rstrip("/")

    @field_validator("key_variable")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if name and not (name.isascii() and name.isidentifier()):
            # Somebody may have pasted the key itself: do not repeat it.
            raise ValueError(
                "this is not the name of an environment variable; put the key into one, and its name here"
            )
        return name

    @model_validator(mode="after")
    def _keeps_the_key_private(self) -> Endpoint:
        if self.key_variable and self.base_url.startswith("http://") and not _inside(self.host):
            raise ValueError(
                f"the key would travel to {self.host} unencrypted; use https://, or a tunnel to localhost"
            )
        return self

    @property
    def host(self) -> str:
        """Return the host that gets the answers."""
        return urlsplit(self.base_url).hostname or ""

    def bill(self, tokens_in: Sequence[int]) -> Bill:
        """Return what calls of so many sent tokens each will take."""
        sent, received = sum(tokens_in), len(tokens_in) * self.max_reply_tokens
        if self.price is None:
            return Bill(len(tokens_in), sent, received, None)
        cost = (sent * self.price.input + received * self.price.output) / 1e6
        return Bill(len(tokens_in), sent, received, cost, self.price.currency)

    def key(self) -> str:
        """Return the key from its environment variable; empty when none is wanted.

        Raises:
            PrerequisiteError: when the variable is not set, or holds what cannot be a key.
        """
        if not self.key_variable:
            return ""
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise PrerequisiteError(
                f"asking {self.model} at {self.host}: the environment variable {self.key_variable} is not "
                "set; set it to your key, or leave `key_variable` empty for a server that needs none"
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise PrerequisiteError(
                f"asking {self.model} at {self.host}: the environment variable {self.key_variable} holds "
                "spaces or unprintable characters, so it is no key; set it again"
            )
        return key

    def ask(
        self, questions: Sequence[Question], who: str, progress: Progress
    ) -> list[Reply | Absence]:
        """Return one reply, or the reason for its absence, per question, in order.

        Equal questions are asked once, answered ones not again. What the rest will take is said before
        the first call. After Ctrl-C the calls under way are waited for, since they are paid for.

        Args:
            questions: What to ask; each call holds one and nothing of the others.
            who: The judge's name, for the user.
            progress: Where to report.

        Raises:
            JudgeError: when the endpoint cannot be used at all (its key or address is refused, it has
                never answered), or is not the model any more that gave the earlier replies.
            PrerequisiteError: when the key is missing or the cache cannot be written.
        """
        from backfire.evaluate.judges.journal import Journal

        if not questions:
            return []
        bodies = [self._body(question) for question in questions]
        keys = [hashlib.sha256(body).hexdigest()[:32] for body in bodies]
        with Journal(self.base_url, self.model).open(progress) as journal:
            sizes = {
                key: tokens(question.system) + tokens(question.user)
                for key, question in zip(keys, questions, strict=True)
            }
            todo = {
                key: body
                for key, body in zip(keys, bodies, strict=True)
                if journal.get(key) is None
            }
            kept = len(sizes) - len(todo)
            if todo:
                bill = self.bill([sizes[key] for key in todo])
                before = f"; {kept:,} answered before are not asked again" if kept else ""
                progress.say(f"{who} asks {self.model} at {self.host}: {bill}{before}")
            work = _Work(self, self.key() if todo else "", journal, who)
            with progress.task(f"{who} at {self.host}", len(sizes), "calls") as bar:
                bar.skip(kept)
                try:
                    work.through(todo, bar)
                except KeyboardInterrupt:
                    progress.say(f"{who}: stopped; every reply that came is kept in {journal.path}")
                    raise
            if work.out:
                progress.warn(f"{who}: {work.out}; what was left is not asked now")
            return [journal.get(key) or work.absent[key] for key in keys]

    def _body(self, question: Question) -> bytes:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": question.system},
                {"role": "user", "content": question.user},
            ],
            self.limit_name: self.max_reply_tokens,
        }
        if self.temperature is not None:
            body["temperature"] = self.temperature
        return json.dumps(body).encode()


class _Work:
    """One `ask`: the calls still to be made, and what stops them."""

    def __init__(self, endpoint: Endpoint, key: str, journal: Any, who: str) -> None:
        from backfire.evaluate.judges.transport import Transport

        self.endpoint, self.journal, self.who = endpoint, journal, who
        self.absent: dict[str, Absence] = {}
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

    def through(self, todo: dict[str, bytes], bar: Any) -> None:
        """Ask everything, one at a time until the endpoint has answered once, then side by side."""
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
            if self._fatal:
                return
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
            if error.kind == "row":
                self._works = True  # it has read the question, after all
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


def _inside(host: str) -> bool:
    """Return whether a host lies on this machine or in a private network."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal"))
