"""Every exception of vecferry, grouped by what to do next.

    VecferryError
    ├── PlanError                   fix the call; nothing was written
    │   ├── UnknownSchemeError          no store or embedder answers to that name
    │   ├── MissingDependencyError      install the extra that the message names
    │   ├── NotFoundError               the path, collection or table is not there
    │   ├── TargetExistsError           choose mode="upsert" or mode="replace"
    │   ├── SchemaMismatchError         dimension, metric, dtype or fields do not fit
    │   │   └── SpaceMismatchError          two embedding spaces would be mixed
    │   ├── LossRefusedError            the plan would lose something you refused to lose
    │   ├── UnsupportedError            this store cannot do that; the message says which can
    │   └── ConfigurationError          a setting or a credential is missing or malformed
    ├── CorruptDataError            the source is damaged; the message says where
    │   └── UnsafePickleError           a pickle asked for something outside the allow-list
    ├── RetryableError              wait (``retry_after`` seconds, if the server said so), then again
    │   ├── RateLimitedError            the server asks for fewer requests
    │   ├── RequestTooLargeError        the same, in smaller requests
    │   └── TimedOutError               no answer in time: wait, then in smaller requests
    ├── RejectedRecord              these records cannot be written; the others can
    ├── FatalStoreError             the store said no for good (permission, quota, disk full)
    │   ├── EmbedderExhausted           no embedding provider of this space answers any more
    │   └── LocalStateError             a state file of this machine cannot be read or written
    │       └── CorruptStateError           it is damaged; the message says what to do with it
    ├── JobError                    the state of a resumable job is in the way
    │   ├── JobLockedError              another process runs this job now
    │   └── JobChangedError             the settings differ from those the job began with
    ├── JobStopped                  stopped cleanly; run the same call again to go on
    │   └── BudgetExceeded              stopped before the call that would have cost too much
    └── VerificationError           source and target differ; see ``report``

Messages never carry a secret and always end in the next move.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vecferry.core.redaction import conceal


class VecferryError(Exception):
    """The root: ``except VecferryError`` catches everything raised on purpose.

    Known secrets are taken out of the message, since servers may repeat what they were sent.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*(conceal(arg) if isinstance(arg, str) else arg for arg in args))


class PlanError(VecferryError):
    """The call cannot work as written. Nothing was written."""


class UnknownSchemeError(PlanError):
    """No registered store or embedder has this name."""


class MissingDependencyError(PlanError):
    """An optional dependency is not installed.

    Args:
        what: what the caller asked for, such as ``"qdrant://"``.
        extra: the pip extra of vecferry that brings the dependency.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional dependency: pip install 'vecferry[{extra}]'")
        self.extra = extra


class NotFoundError(PlanError):
    """The path, collection, table or index is not there."""


class TargetExistsError(PlanError):
    """``mode="create"`` met a target that already holds a collection."""


class SchemaMismatchError(PlanError):
    """Fields, dimension, metric or dtype of the two sides do not fit."""


class SpaceMismatchError(SchemaMismatchError):
    """The vectors come from another embedding space than the collection holds."""


class LossRefusedError(PlanError):
    """The plan holds a loss that ``lossy="refuse"`` forbids."""


class UnsupportedError(PlanError):
    """The store lacks the ability that was asked for."""


class ConfigurationError(PlanError):
    """A setting, an option or a credential is missing or malformed."""


class CorruptDataError(VecferryError):
    """The source is damaged: truncated, inconsistent, or not what its name says."""


class UnsafePickleError(CorruptDataError):
    """A pickle names a global outside the allow-list. Nothing of it was run."""


class RetryableError(VecferryError):
    """A passing fault.

    Attributes:
        retry_after: the server's own wish in seconds, if it had one.
        given_up: whether it was waited out in vain; the message says for how long then.
    """

    given_up = False

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimitedError(RetryableError):
    """The server asks for fewer requests (429)."""


class RequestTooLargeError(RetryableError):
    """The request was too big as one: the same in smaller pieces may pass."""


class TimedOutError(RetryableError):
    """No answer came in time. The request may have been carried out all the same."""


class RejectedRecord(VecferryError):
    """The store refuses these records for what they contain; others are not affected.

    Args:
        message: the reason, without secrets.
        ids: the ids at fault where they are known; empty when only the batch as a whole is known.
    """

    def __init__(self, message: str, *, ids: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.ids = tuple(ids)


class FatalStoreError(VecferryError):
    """The store said no for good; trying again as is will not help."""


class EmbedderExhausted(FatalStoreError):
    """No provider of the job's embedding space answers any more.

    The same call goes on where it stopped once a provider is back; another space needs a fresh target.
    """


class LocalStateError(FatalStoreError):
    """A cache, a ledger, a journal or a checkpoint cannot be read or written. No server is to blame."""


class JobError(VecferryError):
    """The stored state of a job stands in the way of this run."""


class JobLockedError(JobError):
    """Another process is running this very job."""


class JobChangedError(JobError):
    """The job began with other settings, so going on would be wrong."""


class CorruptStateError(LocalStateError, JobError, ConfigurationError):
    """A state file is damaged, of a newer vecferry, or another kind of file.

    It stands in the way of a run as a job's state does, and is mended as a setting is: by naming another
    file, or by moving this one away.
    """


class JobStopped(VecferryError):
    """The job stopped cleanly at a checkpoint. The same call goes on from there."""


class BudgetExceeded(JobStopped):
    """The next embedding call would exceed the budget; it was not made."""


class VerificationError(VecferryError):
    """The target differs from what it should hold. ``report`` tells where."""

    def __init__(self, message: str, *, report: Any = None) -> None:
        super().__init__(message)
        self.report = report
