"""Answers POSTed as JSON (`telemetry.record`) to an http(s) address."""

from __future__ import annotations

import asyncio
import http.client
import logging
import queue
import random
import threading
import time
from http import HTTPStatus
from urllib.parse import urlsplit

from tierline.core.errors import ConfigError
from tierline.core.protocols import Outcome
from tierline.core.telemetry.record import outcome_line

_log = logging.getLogger("tierline.sink")
_RETRIED = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}  # besides every 5xx: others cannot get better


class Webhook:
    """A thread posts from a queue of `depth` answers over one kept connection; `put` never waits.

    A post that fails is repeated up to `retries` times after pauses drawn from [0, min(30, `backoff_s` * 2^n)) s.
    Answers that find the queue full, are refused, or are still unsent `grace_s` after `close` are dropped: counted in
    `num_dropped`, said at the first one and in total at the end.
    """

    def __init__(
        self,
        *,
        location: str,
        depth: int = 1000,
        retries: int = 5,
        timeout_s: float = 5.0,
        backoff_s: float = 0.2,
        grace_s: float = 5.0,
        rng: random.Random | None = None,
    ) -> None:
        url = urlsplit(location)
        try:
            port = url.port
        except ValueError as error:
            raise ConfigError(f"{location!r}: {error}") from error
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ConfigError(f"{location!r} is no address; write webhook:http://HOST:PORT/PATH")
        if depth < 1 or retries < 0 or timeout_s <= 0 or backoff_s < 0 or grace_s < 0:
            raise ConfigError("depth and timeout_s must be positive; retries, backoff_s and grace_s not negative")
        connect = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        self._connection = connect(url.hostname, port, timeout=timeout_s)
        self._path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        self._name = f"webhook:{url.scheme}://{url.hostname}{url.path}"  # a query may hold a token
        self._retries = retries
        self._backoff_s = backoff_s
        self._grace_s = grace_s
        self._rng = rng or random.Random()
        self._waiting: queue.Queue[bytes | None] = queue.Queue(depth)
        self._lock = threading.Lock()
        self._hurry = threading.Event()
        self.num_sent = 0
        self.num_dropped = 0
        self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)

    async def put(self, outcome: Outcome) -> None:
        if self._thread.ident is None:
            self._thread.start()
        try:
            self._waiting.put_nowait(outcome_line(outcome))
        except queue.Full:
            self._drop(f"{self._waiting.maxsize} answers are waiting; the receiver is too slow or away")

    async def close(self) -> None:
        """Send what waits, for at most `grace_s`; then drop the rest."""
        if not self._thread.is_alive():
            return
        await asyncio.to_thread(self._finish)
        if self.num_dropped:
            _log.warning("sink %s: %d sent, %d dropped in all", self._name, self.num_sent, self.num_dropped)

    def _finish(self) -> None:
        deadline_s = time.monotonic() + self._grace_s
        try:
            self._waiting.put(None, timeout=self._grace_s)
            self._thread.join(max(0.0, deadline_s - time.monotonic()))
        except queue.Full:
            pass
        self._hurry.set()
        while self._thread.is_alive():
            # From here the thread only empties the queue, so there is room for the end mark soon.
            try:
                self._waiting.put(None, timeout=0.05)
            except queue.Full:
                continue
            self._thread.join(0.05)

    def _work(self) -> None:
        while (body := self._waiting.get()) is not None:
            problem = "closing" if self._hurry.is_set() else self._deliver(body)
            if problem:
                self._drop(problem)
            else:
                self.num_sent += 1
        self._connection.close()

    def _deliver(self, body: bytes) -> str:
        """Post one answer, with retries; returns what went wrong at last, empty for success."""
        problem = ""
        for attempt in range(self._retries + 1):
            if attempt:
                bound_s = min(30.0, self._backoff_s * 2.0 ** (attempt - 1))
                if self._hurry.wait(self._rng.uniform(0.0, bound_s)):
                    break
            try:
                self._connection.request("POST", self._path, body, {"Content-Type": "application/json"})
                reply = self._connection.getresponse()
                reply.read()
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                problem = f"{type(error).__name__}: {error}"
                continue
            if 200 <= reply.status < 300:
                return ""
            problem = f"status {reply.status} {reply.reason}"
            if reply.status < 500 and reply.status not in _RETRIED:
                break
        return problem

    def _drop(self, reason: str) -> None:
        with self._lock:
            self.num_dropped += 1
            first = self.num_dropped == 1
        if first:
            _log.warning("sink %s: an answer was dropped: %s; later ones are only counted", self._name, reason)
