"""Texts in requests: as many at once as the provider likes, and each fault told apart.

| fault | whose | what is done |
|---|---|---|
| 400, 422, `null`, a function that raises | a text's, if a plain text is answered | halved to the text |
| 413, "input is too large" | the length's | halved; a single text is cut, or refused |
| 500, 424 | a text's, if a plain text is answered meanwhile | halved, the second time |
| 500, 424 | else the server's | waited out |
| no answer in time | the load's | requests and concurrency halved for the rest of the job |
| 429, 502, 503, a broken connection | the server's | waited out |
| 401, 403, 404, TLS, proxy, a web page | the configuration's | stops at once |
"""

from __future__ import annotations

import re
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from vecferry.core.concurrency import ShouldStop
from vecferry.core.http import STATUS, Answer, Kinds, causes, transport_error
from vecferry.core.limiter import Limiter
from vecferry.core.redaction import clean
from vecferry.core.retry import Backoff, RetryDetails, RetryPolicy
from vecferry.embedding.base import Matrix, Part, PromptedEmbedder, TextsRejected, sendable
from vecferry.embedding.space import PROBE
from vecferry.errors import (
    FatalStoreError,
    JobStopped,
    RejectedRecord,
    RequestTooLargeError,
    RetryableError,
    TimedOutError,
    VecferryError,
)
from vecferry.model import EmbeddingSpace
from vecferry.ports import Embedder

SLICE = 256
HEALTH = "A plain text, to see whether the server answers at all."
_CALM = 5.0  # seconds for which a plain text that was answered speaks for the server
_TOO_MANY_TOKENS = re.compile(r"tokens per request|too many inputs|array too long|payload too large", re.I)
_TOO_LONG = re.compile(
    r"too (large|long)|context (length|size|window)|maximum (context|input|sequence)|less than \d+ tokens"
    r"|(input|token|sequence) length|exceed\w* (the )?(max|context|limit)|physical batch size",
    re.I,
)
_LIMITS = (
    re.compile(r"less than (?P<limit>\d+) tokens\D+(?P<given>\d+)", re.I),
    re.compile(r"(?:maximum|max)\D{0,40}?(?P<limit>\d+) tokens\D+(?P<given>\d+) tokens", re.I),
)
_PARAMETERS = {"model", "dimensions", "encoding_format", "user"}


class ServerFault(RetryableError):
    """The server failed at these texts: its own fault, or theirs."""


KINDS: Kinds = {
    400: (RejectedRecord, "refuses a text"),
    401: (FatalStoreError, "refuses {key}"),
    403: (FatalStoreError, "refuses {key}"),
    404: (FatalStoreError, "does not know this model or address"),
    405: (FatalStoreError, "does not know this model or address"),
    410: (FatalStoreError, "does not know this model or address"),
    422: (RejectedRecord, "refuses a text"),
    424: (ServerFault, "fails"),
    500: (ServerFault, "fails"),
}
"""What statuses mean for embeddings, laid over `vecferry.core.http.STATUS`."""


def answer_error(answer: Answer) -> VecferryError:
    """Our error for a provider's answer that is not 200."""
    message = answer.message
    if answer.status == 400 and _TOO_MANY_TOKENS.search(message):
        return answer.error({400: (RequestTooLargeError, "finds the request too large")})
    if answer.status == 400 and (answer.parameter in _PARAMETERS or answer.code == "model_not_found"):
        return answer.error({400: (FatalStoreError, "refuses the request as such")})
    usual = dict.fromkeys((answer.status,), (RejectedRecord, "refuses a text"))
    unusual = 400 <= answer.status < 500 and answer.status not in STATUS and answer.status not in KINDS
    return answer.error(usual if unusual else KINDS)


def foreign_error(error: Exception, who: str) -> VecferryError:
    """Our error for what a foreign function or client raised, by its status code and causes."""
    for cause in causes(error):
        if isinstance(cause, VecferryError):
            return cause
        if answer := _answer_of(cause, who):
            return answer_error(answer)
        kind = type(cause)
        if kind.__module__.startswith(("httpx", "httpcore")):
            return transport_error(cause, who)
        if isinstance(cause, TimeoutError) or "Timeout" in kind.__name__:
            return TimedOutError(f"{who} did not answer in time: {clean(cause)}")
        if isinstance(cause, ConnectionError) or "ConnectionError" in kind.__name__:
            return RetryableError(f"{who} cannot be reached: {clean(cause)}")
    return RejectedRecord(f"{who} failed: {type(error).__name__}: {clean(error)}")


@dataclass(frozen=True, slots=True)
class Reply:
    """What one request brought.

    Attributes:
        vectors: float32 ``(n, dim)``; refused rows are not looked at.
        tokens: what the provider counted.
        refused: position → reason.
    """

    vectors: Matrix
    tokens: int | None = None
    refused: Mapping[int, str] = field(default_factory=dict)


class RequestEmbedder(PromptedEmbedder):
    """An embedder that answers requests; a subclass sends one.

    Args:
        concurrency: the most requests under way; half of it at the start. With 1 nothing runs in threads.
        batch_size: texts a request; less after a time-out.
        retry: waits between attempts.
    """

    takes_empty_texts = True

    def __init__(
        self, *, concurrency: int, batch_size: int, retry: RetryPolicy | None, start: int | None = None
    ) -> None:
        super().__init__()
        self.retry = retry or RetryPolicy()
        self.concurrency = max(1, concurrency)
        self.batch_size = max(1, batch_size)
        self.limiter = Limiter(self.concurrency, start=start)
        self._pool = RequestPool(self.concurrency)
        self._calm_until = 0.0

    @abstractmethod
    def request(self, texts: list[str], prompt: str) -> Reply:
        """Send one request; ``texts`` without the prompt.

        Raises:
            RejectedRecord, RequestTooLargeError, ServerFault, TimedOutError: as in the table above.
            RetryableError, FatalStoreError, ConfigurationError: whatever the texts are.
        """

    def packs(self, rows: list[int], texts: Sequence[str]) -> list[list[int]]:
        """Rows in groups, one a request."""
        return [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]

    def prompted_parts(self, texts: Sequence[str], prompt: str) -> Iterator[Part]:
        refused, rows = sendable(texts)
        yield from refused
        if not self.takes_empty_texts and not prompt:
            yield from (Part([row], None, "an empty text") for row in rows if not texts[row])
            rows = [row for row in rows if texts[row]]
        jobs = [partial(self._parts_of, pack, texts, prompt) for pack in self.packs(rows, texts)]
        if self.concurrency == 1:
            for job in jobs:
                yield from job(lambda: False)
        else:
            yield from self._pool.run(jobs)

    def measure(self) -> Matrix:
        """The vector of the probe text ``(1, dim)``, whatever its length: for a space not known yet."""
        reply = self._patiently(lambda stop: self._once([PROBE], self.prompt, stop), lambda: False)
        if reply.refused:
            raise FatalStoreError(f"{self!r} refuses a plain text: {reply.refused[0]}")
        if reply.vectors.ndim != 2 or len(reply.vectors) != 1:
            raise FatalStoreError(
                f"{self!r} returned shape {reply.vectors.shape} for one text; (1, dim) is due"
            )
        self.probe = reply.vectors
        return reply.vectors

    def close(self) -> None:
        self._pool.close()

    # -- one request --------------------------------------------------------------------------

    def _parts_of(
        self, rows: list[int], texts: Sequence[str], prompt: str, failed: ShouldStop, depth: int = 0
    ) -> list[Part]:
        """The parts of some rows; what is at fault is found by halving."""
        if len(rows) > self.batch_size:
            return self._in_halves(rows, texts, prompt, failed, depth)
        stop = self._stop(failed)
        backoff, suspected = self._backoff(stop), 0
        while True:
            try:
                reply = self._once([texts[row] for row in rows], prompt, stop)
                return _parts(rows, reply)
            except (RejectedRecord, RequestTooLargeError) as error:
                if depth == 0 or len(rows) == 1:
                    self._blame_the_request(error, prompt, stop)
                fault: Exception = error
            except TimedOutError as error:
                backoff.wait(error)
                if len(rows) > 1:
                    self.batch_size = max(1, min(self.batch_size, len(rows) // 2))
                    return self._in_halves(rows, texts, prompt, failed, depth)
                continue
            except ServerFault as error:
                suspected += self._answers(prompt, stop)
                enough = 1 if _TOO_LONG.search(str(error)) else 2 if len(rows) > 1 else 3
                if suspected < enough:
                    backoff.wait(error)
                    continue
                fault = error
            except RetryableError as error:
                backoff.wait(error)
                continue
            if len(rows) > 1:
                return self._in_halves(rows, texts, prompt, failed, depth + 1)
            return [self._single(rows[0], texts[rows[0]], prompt, fault, stop)]

    def _in_halves(
        self, rows: list[int], texts: Sequence[str], prompt: str, failed: ShouldStop, depth: int
    ) -> list[Part]:
        middle = len(rows) // 2
        first = self._parts_of(rows[:middle], texts, prompt, failed, depth)
        return first + self._parts_of(rows[middle:], texts, prompt, failed, depth)

    def _single(self, row: int, text: str, prompt: str, fault: Exception, stop: ShouldStop) -> Part:
        """A text that is refused alone: cut until it is taken, if that is wanted and its length is why."""
        reason = str(fault)
        while self.listener.shorten and len(text) > 1 and _is_too_long(fault):
            text = text[: _shorter(len(text), str(fault))]
            shorter = text

            def again(stop: ShouldStop, shorter: str = shorter) -> Reply:
                return self._once([shorter], prompt, stop)

            try:
                return _parts([row], self._patiently(again, stop, final=(ServerFault,)))[0]
            except (RejectedRecord, RequestTooLargeError, ServerFault) as error:
                fault = error
        return Part([row], None, reason)

    def _once(self, texts: list[str], prompt: str, stop: ShouldStop) -> Reply:
        with self.limiter.slot(stop, self.retry.max_seconds):
            return self.request(texts, prompt)

    def _patiently(
        self,
        call: Callable[[ShouldStop], Reply],
        failed: ShouldStop,
        final: tuple[type[Exception], ...] = (),
    ) -> Reply:
        stop = self._stop(failed)
        backoff = self._backoff(stop)
        while True:
            try:
                return call(stop)
            except RequestTooLargeError:
                raise
            except RetryableError as error:
                if isinstance(error, final):
                    raise
                backoff.wait(error)

    def _answers(self, prompt: str, stop: ShouldStop) -> bool:
        """Whether a plain text is answered now."""
        try:
            self._once([HEALTH], prompt, stop)
        except JobStopped:
            raise
        except VecferryError:
            return False
        self._calm_until = time.monotonic() + _CALM
        return True

    def _blame_the_request(self, error: Exception, prompt: str, stop: ShouldStop) -> None:
        """When texts are refused, see whether a plain one is refused as well.

        Raises:
            FatalStoreError: if it is: no text is at fault then.
        """
        if time.monotonic() < self._calm_until:
            return
        try:
            self._once([HEALTH], prompt, stop)
        except (RejectedRecord, RequestTooLargeError):
            raise FatalStoreError(f"every text is refused, also a plain one: {error}") from error
        except RetryableError:
            return
        self._calm_until = time.monotonic() + _CALM

    def _stop(self, failed: ShouldStop) -> ShouldStop:
        return lambda: failed() or self.listener.should_stop()

    def _backoff(self, stop: ShouldStop) -> Backoff:
        def tell(details: RetryDetails) -> None:
            self.listener.on_event(
                f"{details.error}; attempt {details.attempt + 1} in {details.wait:.1f} s"
            )

        return self.retry.backoff(should_stop=stop, on_retry=tell)


class ObjectEmbedder(RequestEmbedder):
    """A foreign object with ``embed`` and ``space``: its failures are told apart by status and cause."""

    def __init__(self, inner: Embedder) -> None:
        retry = getattr(inner, "retry", None)
        super().__init__(
            concurrency=1, batch_size=SLICE, retry=retry if isinstance(retry, RetryPolicy) else None
        )
        self.inner = inner
        self.provider = type(inner).__name__
        self.listener = getattr(inner, "listener", self.listener)

    @property
    def space(self) -> EmbeddingSpace:
        return self.inner.space

    def request(self, texts: list[str], prompt: str) -> Reply:
        try:
            return Reply(self.inner.embed(texts))
        except TextsRejected as error:
            return Reply(error.vectors, refused=error.reasons)
        except RejectedRecord as error:
            places = [place for place in error.ids if isinstance(place, int) and 0 <= place < len(texts)]
            if not places or len(places) == len(texts):
                raise
            rest = [place for place in range(len(texts)) if place not in set(places)]
            other = self.request([texts[place] for place in rest], prompt)
            vectors = np.zeros((len(texts), other.vectors.shape[1]), np.float32)
            vectors[rest] = other.vectors
            refused = {rest[place]: reason for place, reason in other.refused.items()}
            return Reply(vectors, refused=refused | dict.fromkeys(places, clean(error)))
        except VecferryError:
            raise
        except Exception as error:  # a foreign object may raise anything
            raise foreign_error(error, self.provider) from error


class RequestPool:
    """Threads that send requests; made at first use."""

    def __init__(self, workers: int) -> None:
        self._workers = max(1, workers)
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def run(self, jobs: Sequence[Callable[[ShouldStop], list[Part]]]) -> Iterator[Part]:
        """The parts of all jobs, as they come.

        After a failure no further job starts, those under way end, and what they brought is
        yielded before the failure is raised: it has been paid for.
        """
        failed = threading.Event()
        threads = self._open()
        futures: list[Future[list[Part]]] = [threads.submit(_guarded, job, failed) for job in jobs]
        failure: BaseException | None = None
        try:
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                if error := future.exception():
                    # Jobs that were only interrupted by the failure do not hide it.
                    failure = error if failure is None or isinstance(failure, JobStopped) else failure
                    _cancel(futures)
                    continue
                yield from future.result()
        finally:
            failed.set()
            _cancel(futures)
        if failure is not None:
            raise failure

    def close(self) -> None:
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)

    def _open(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="vecferry-embed")
            return self._threads


def _guarded(job: Callable[[ShouldStop], list[Part]], failed: threading.Event) -> list[Part]:
    """The job, unless another one has failed; its own failure is known before the next job starts."""
    if failed.is_set():
        return []
    try:
        return job(failed.is_set)
    except BaseException:
        failed.set()
        raise


def _cancel(futures: Sequence[Future[list[Part]]]) -> None:
    for future in futures:
        future.cancel()


def _parts(rows: list[int], reply: Reply) -> list[Part]:
    if not reply.refused:
        return [Part(rows, reply.vectors, tokens=reply.tokens)]
    good = [place for place in range(len(rows)) if place not in reply.refused]
    parts = [Part([rows[place]], None, reason) for place, reason in reply.refused.items()]
    if good:
        parts.append(Part([rows[place] for place in good], reply.vectors[good], tokens=reply.tokens))
    return parts


def is_about_length(reason: str) -> bool:
    """Whether a refusal says that a text is too long."""
    return bool(_TOO_LONG.search(reason))


def _is_too_long(fault: Exception) -> bool:
    return isinstance(fault, RequestTooLargeError) or is_about_length(str(fault))


def _shorter(length: int, message: str) -> int:
    """How many characters may be taken, by the numbers that the server names; else half of them."""
    for pattern in _LIMITS:
        if (found := pattern.search(message)) and 0 < int(found["limit"]) < int(found["given"]):
            return max(1, int(length * 0.97 * int(found["limit"]) / int(found["given"])))
    return max(1, length // 2)


def _answer_of(cause: BaseException, who: str) -> Answer | None:
    """The HTTP answer that an exception of a foreign client carries."""
    response = getattr(cause, "response", None)
    candidates = (getattr(response, "status_code", None), getattr(cause, "status_code", None),
                  getattr(cause, "status", None))  # fmt: skip
    status = next((code for code in candidates if isinstance(code, int) and 100 <= code < 600), None)
    if status is None:
        return None
    headers = getattr(response, "headers", None) or getattr(cause, "headers", None) or {}
    try:
        content = response.content if response is not None else str(cause).encode()
    except Exception:  # noqa: BLE001 - a body that was never read
        content = str(cause).encode()
    found = {str(name).lower(): str(value) for name, value in dict(headers).items()}
    return Answer(status, found, content if isinstance(content, bytes) else str(cause).encode(), who)
