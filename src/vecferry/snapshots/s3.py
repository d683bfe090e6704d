"""Objects in S3 and what speaks like it (MinIO, Ceph, R2), through boto3.

Every request has the project's own retry around it (`vecferry.core.retry`); boto's is off. The signature of
every request covers the SHA-256 of its body (Signature Version 4), which every S3 server checks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from vecferry.core.redaction import redact
from vecferry.core.retry import RetryPolicy
from vecferry.errors import (
    ConfigurationError,
    FatalStoreError,
    MissingDependencyError,
    NotFoundError,
    RetryableError,
    UnsupportedError,
    VecferryError,
)
from vecferry.ports import ShouldStop, StoreURL, never_stop
from vecferry.snapshots.objects import Advance, Conflict, NoBucketError, ObjectInfo

T = TypeVar("T")
WORKERS = 8
_PROBE = ".vecferry-probe"
_NOT_IMPLEMENTED = 501
_DELETE = 1000

_MARKERS = ("/", "_$folder$")
"""Ends of the names under which consoles and Hadoop keep empty objects that stand for folders."""
_UNTRUSTED = ("TLS CA certificate bundle", "CERTIFICATE_VERIFY_FAILED", "No such file or directory")

_CREDENTIALS = frozenset({
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "ExpiredTokenException", "InvalidToken",
    "TokenRefreshRequired", "AuthorizationHeaderMalformed", "InvalidClientTokenId", "RequestExpired",
})  # fmt: skip
_PASSING = frozenset({
    "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling",
    "ThrottlingException", "RequestLimitExceeded", "BadDigest", "InvalidDigest",
    "XAmzContentSHA256Mismatch", "500", "502", "503", "504", "429",
})  # fmt: skip
_CONFLICTS = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_ABSENT = frozenset({"NoSuchKey", "NoSuchVersion", "NoSuchUpload", "404"})


class S3Objects:
    """Objects in ``bucket`` below ``prefix``.

    Args:
        endpoint_url: of another server than AWS; default ``AWS_ENDPOINT_URL``.
        region, profile: default as in the AWS command line tools. Keys are never arguments: they come
            from the environment, a profile or a role.
        anonymous: send no signature, for a public bucket.
        requester_pays: the requests are billed to whoever makes them, as some buckets demand.
        retry: around every request.
        should_stop: asked while waiting for a retry.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        anonymous: bool = False,
        requester_pays: bool = False,
        retry: RetryPolicy | None = None,
        should_stop: ShouldStop = never_stop,
    ) -> None:
        self.bucket, self.prefix = bucket, prefix.strip("/")
        self.url = f"s3://{bucket}" + (f"/{self.prefix}" if self.prefix else "")
        self._options = {"endpoint_url": endpoint_url, "region_name": region}
        self._profile = profile
        self._access = (anonymous, requester_pays)
        self._retry = retry or RetryPolicy()
        self._should_stop = should_stop
        self._client: Any = None
        self._lock = threading.Lock()
        self._keeps_conditions = False

    # -- requests -----------------------------------------------------------------------------

    @property
    def client(self) -> Any:
        """boto3's client, made at the first use."""
        with self._lock:
            if self._client is None:
                self._client = _client(self._profile, self._options, *self._access)
            return self._client

    def key(self, name: str) -> str:
        """The full key of a name below the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def call(self, operation: str, **arguments: Any) -> Any:
        """One request to the bucket, its exceptions translated, retried while they are passing."""
        return self.attempt(lambda: getattr(self.client, operation)(Bucket=self.bucket, **arguments))

    def attempt(self, function: Callable[[], T]) -> T:
        """Run a request and the reading of its answer as one retried call."""

        def once() -> T:
            try:
                return function()
            except VecferryError:
                raise
            except Exception as error:
                raise _translated(error, self.bucket) from error

        return self._retry.call(once, should_stop=self._should_stop)

    # -- small objects ------------------------------------------------------------------------

    def read(self, key: str) -> tuple[bytes, str]:
        def get() -> tuple[bytes, str]:
            answer = self.client.get_object(Bucket=self.bucket, Key=self.key(key))
            return answer["Body"].read(), answer["ETag"]

        return self.attempt(get)

    def write(self, key: str, data: bytes, *, replaces: str | None) -> None:
        if not self._keeps_conditions:
            self._probe()
        # Without its quotes, as the AWS command line sends it: Ceph compares the bare sum on PUT.
        condition = {"IfNoneMatch": "*"} if replaces is None else {"IfMatch": replaces.strip('"')}
        self._put(key, data, **condition)

    def _put(self, key: str, data: bytes, **condition: str) -> None:
        self.call("put_object", Key=self.key(key), Body=data, **condition)

    def _probe(self) -> None:
        """Make sure that the server refuses to overwrite when asked to: some ignore the condition."""
        self._put(_PROBE, b"probe")
        try:
            self._put(_PROBE, b"probe", IfNoneMatch="*")
        except Conflict:
            self._keeps_conditions = True
            return
        raise UnsupportedError(
            f"{self.url}: this server ignores conditional writes, so two writers could lose a version; "
            "use a server that honours If-None-Match and If-Match on PUT (AWS, MinIO, R2, Ceph)"
        )

    def list(self, under: str = "") -> Iterator[ObjectInfo]:
        arguments: dict[str, Any] = {"Prefix": self.key(under) if under else self._whole}
        while True:
            answer = self.call("list_objects_v2", **arguments)
            for item in answer.get("Contents", ()):
                name = item["Key"][len(self.prefix) + 1 :] if self.prefix else item["Key"]
                if not item["Size"] and item["Key"].endswith(_MARKERS):
                    continue
                yield ObjectInfo(name, item["Size"], item["ETag"], item["LastModified"])
            if not answer.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = answer["NextContinuationToken"]

    @property
    def _whole(self) -> str:
        return f"{self.prefix}/" if self.prefix else ""

    def head(self, key: str) -> ObjectInfo:
        """Size and ETag of one object.

        Raises:
            NotFoundError: if it is not there.
        """
        answer = self.call("head_object", Key=self.key(key))
        return ObjectInfo(key, answer["ContentLength"], answer["ETag"], answer["LastModified"])

    def delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _DELETE):
            names = [{"Key": self.key(key)} for key in keys[start : start + _DELETE]]
            answer = self.call("delete_objects", Delete={"Objects": names, "Quiet": True})
            errors = [e for e in answer.get("Errors", ()) if e.get("Code") not in _ABSENT]
            if errors:
                raise FatalStoreError(
                    f"{self.url}: {len(errors)} objects could not be deleted ({errors[0].get('Code')}); "
                    "check the permission s3:DeleteObject, then prune again"
                )

    def abort_uploads(self, under: str, older_than: datetime) -> None:
        answer = self.call("list_multipart_uploads", Prefix=self.key(under) if under else self._whole)
        for upload in answer.get("Uploads", ()):
            if upload["Initiated"] < older_than:
                self.call("abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    # -- files --------------------------------------------------------------------------------

    def upload(
        self, files: Sequence[tuple[Path, str]], advance: Advance, *, resumes: bool = False
    ) -> dict[str, str]:
        from vecferry.snapshots.transfer import upload_files

        return upload_files(self, files, advance, resumes=resumes)

    def download(self, objects: Sequence[tuple[ObjectInfo, Path]], advance: Advance) -> None:
        from vecferry.snapshots.transfer import download_files

        download_files(self, objects, advance)


def s3_options(url: StoreURL, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an ``s3://`` URL and of the call, for `S3Objects`.

    Raises:
        ConfigurationError: for one that is not known, or a login in the URL.
    """
    refuse_login(url)
    unknown = set(url.options) - set(given)
    if unknown:
        raise ConfigurationError(f"s3: has no option {sorted(unknown)[0]!r}; there are {', '.join(given)}")
    found = {name: url.options.get(name) if value is None else value for name, value in given.items()}
    return {n: is_yes(v) if n in ("anonymous", "requester_pays") else v for n, v in found.items()}


def refuse_login(url: StoreURL) -> None:
    """No keys in URLs."""
    if url.user or url.password:
        raise ConfigurationError(
            "s3:// takes no login; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )


def is_yes(value: bool | str | None) -> bool:
    """A switch, as it comes from a URL."""
    return value if isinstance(value, bool) else str(value or "").lower() in ("1", "true", "yes")


def _client(profile: str | None, options: dict[str, str | None], anonymous: bool, pays: bool) -> Any:
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session
    except ImportError:
        raise MissingDependencyError("s3://", "s3") from None
    unsigned = {"signature_version": UNSIGNED} if anonymous else {}
    config = Config(
        **unsigned,
        retries={"total_max_attempts": 1},
        max_pool_connections=2 * WORKERS,
        connect_timeout=10,
        read_timeout=60,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={
            "addressing_style": "path" if options["endpoint_url"] else "auto",
            "payload_signing_enabled": True,
        },
    )
    try:
        core = Session(profile=profile)
        core.register_component("data_loader", _loader())
        session = boto3.Session(botocore_session=core)
        region = options["region_name"] or session.region_name or "us-east-1"
        client = session.client(
            "s3", region_name=region, endpoint_url=options["endpoint_url"], config=config
        )
    except (BotoCoreError, ValueError) as error:
        raise ConfigurationError(f"s3: {error}") from None
    if pays:
        client.meta.events.register("before-parameter-build.s3", _say_who_pays)
    return client


def _say_who_pays(params: dict[str, Any], model: Any, **_: Any) -> None:
    if "RequestPayer" in model.input_shape.members:
        params.setdefault("RequestPayer", "requester")


@cache
def _loader() -> Any:
    """botocore's descriptions of services, read once a process: it takes longer than all the rest."""
    from botocore.loaders import create_loader

    return create_loader()


def _translated(error: Exception, bucket: str) -> VecferryError:
    """The one table from boto's exceptions to ours."""
    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        return _answered(error, bucket)
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return ConfigurationError(
            "s3: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or read "
            "a public bucket with ?anonymous=1"
        )
    sso = (boto.SSOError, boto.SSOTokenLoadError, boto.UnauthorizedSSOTokenError, boto.TokenRetrievalError)
    if isinstance(error, sso):
        return ConfigurationError("s3: the AWS SSO session is over or was never begun; run: aws sso login")
    words = _UNTRUSTED if isinstance(error, boto.SSLError) else _UNTRUSTED[:1]
    if any(word in str(error) for word in words):
        return ConfigurationError(
            "s3: the server's certificate is not trusted; set AWS_CA_BUNDLE to the file of its authority "
            f"({redact(str(error))})"
        )
    if isinstance(error, boto.CredentialRetrievalError):
        return ConfigurationError(
            "s3: the credentials could not be loaded; log in again or check the profile"
        )
    if isinstance(error, boto.ParamValidationError | boto.InvalidEndpointDiscoveryConfigurationError):
        return ConfigurationError(f"s3: {error}")
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError | boto.IncompleteReadError):
        return RetryableError(f"s3: the connection failed ({type(error).__name__})")
    if isinstance(error, OSError | boto.BotoCoreError) or type(error).__module__.startswith("urllib3"):
        return RetryableError(f"s3: the connection failed ({type(error).__name__})")
    return FatalStoreError(f"s3: {type(error).__name__}")


def _answered(error: Any, bucket: str) -> VecferryError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    answer = error.response.get("ResponseMetadata", {})
    status = int(answer.get("HTTPStatusCode") or 0)
    if code == "NoSuchBucket":
        return NoBucketError(f"there is no bucket {bucket!r}; check its name, the region and endpoint_url")
    if code in _CONFLICTS:
        return Conflict("the object was changed meanwhile")
    if code in _ABSENT:
        return NotFoundError(f"s3://{bucket}: no such object")
    if code in _CREDENTIALS:
        return ConfigurationError(f"s3: the credentials are refused ({code}); check them and the clock")
    if code in ("AccessDenied", "AllAccessDisabled", "AccountProblem", "403"):
        return FatalStoreError(
            f"s3://{bucket}: access denied; check the credentials and the bucket's policy (a bucket whose "
            "reader pays needs ?requester_pays=1, a public one ?anonymous=1)"
        )
    if code in ("PermanentRedirect", "301", "IllegalLocationConstraintException"):
        region = answer.get("HTTPHeaders", {}).get("x-amz-bucket-region", "another region")
        return ConfigurationError(f"the bucket {bucket!r} lies in {region}; set AWS_REGION or ?region=")
    if code in _PASSING or (status >= 500 and status != _NOT_IMPLEMENTED) or status == 429:
        wait = answer.get("HTTPHeaders", {}).get("retry-after")
        seconds = float(wait) if wait and wait.isdigit() else None
        return RetryableError(f"s3: the server answered {code or status}", retry_after=seconds)
    return FatalStoreError(f"s3://{bucket}: the server answered {code or status}")
