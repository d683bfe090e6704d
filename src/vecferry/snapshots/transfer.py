"""Files to and from S3: in parts, side by side, resumable, checksummed both ways.

A file up to `PART` bytes is one request. A larger one is a multipart upload, of which the parts that
the server has already (by MD5) are not sent again. Downloads are ranges of one ETag, written in place; a
sidecar file remembers which are there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from hashlib import md5, sha256
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from vecferry.errors import CorruptDataError, FatalStoreError, NotFoundError, RetryableError
from vecferry.snapshots.objects import Advance, Conflict, ObjectInfo
from vecferry.snapshots.parts import Body, Digest, crc32_of
from vecferry.snapshots.s3 import WORKERS, S3Objects

PART = 8 << 20
_MOST_PARTS = 10_000
_BLOCK = 1 << 20


def part_size(size: int) -> int:
    """Bytes of one part, so that there are at most 10,000 (S3's limit)."""
    return max(PART, -(-size // _MOST_PARTS))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal."""
    digest = sha256()
    buffer = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(buffer):
            digest.update(buffer[:n])
    return digest.hexdigest()


def run_all(tasks: Iterable[Callable[[], Any]]) -> None:
    """Run side by side; the first failure stops what has not begun, and is raised."""
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="vecferry-s3") as pool:
        futures: list[Future[Any]] = [pool.submit(task) for task in tasks]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # also where Ctrl-C ends the waiting
            for future in futures:
                future.cancel()
        for future in done:
            future.result()


# -- up ---------------------------------------------------------------------------------------


def upload_files(
    s3: S3Objects, files: Sequence[tuple[Path, str]], advance: Advance, *, resumes: bool
) -> dict[str, str]:
    """See `Objects.upload`."""
    uploads = [_Upload(s3, path, key, advance) for path, key in files]
    try:
        run_all([partial(upload.begin, resumes=resumes) for upload in uploads])
        run_all([task for upload in uploads for task in upload.tasks()])
    finally:
        for upload in uploads:
            upload.close()
    return {key: upload.sha256 for (_, key), upload in zip(files, uploads, strict=True)}


class _Upload:
    """One file on its way up."""

    def __init__(self, s3: S3Objects, path: Path, key: str, advance: Advance) -> None:
        self._s3, self._path, self._key, self._advance = s3, path, key, advance
        self._file: BinaryIO | None = None
        self._stamp = _stamp(path.stat())
        self._size = self._stamp[0]
        self._step = part_size(self._size)
        self._id: str | None = None
        self._parts: dict[int, dict[str, Any]] = {}
        self._sums = False
        self._known: dict[int, tuple[str, int]] = {}
        self._doubtful = self._tried = False
        self._lock = threading.Lock()
        self._digest = Digest()

    @property
    def sha256(self) -> str:
        """The SHA-256 of what was sent, hexadecimal, when all `tasks` are done."""
        return self._digest.hexdigest()

    def tasks(self) -> list[Callable[[], Any]]:
        """What is to be done, each independent of the others, best begun in this order.

        The last one to end also puts the parts together, while those of the next file are on their way.
        """
        work: list[Callable[[], None]] = [self._whole]
        if self._size > self._step:
            one = self._known_part if self._id is None else self._part
            work = [partial(one, number) for number in range(-(-self._size // self._step))]
        self._left = len(work)
        return [partial(self._do, task) for task in work]

    def _do(self, task: Callable[[], None]) -> None:
        task()
        with self._lock:
            self._left -= 1
            last = not self._left
        if last:
            self._complete()
            self.close()

    def _opened(self) -> int:
        """Open only while it is sent, as a folder may hold more files than a process may open."""
        with self._lock:
            if self._file is None:
                self._file = self._path.open("rb", buffering=0)
            return self._file.fileno()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _complete(self) -> None:
        """Put the parts together, and check that the file stayed as it was."""
        if _stamp(os.fstat(self._opened())) != self._stamp or _stamp_of(self._path) != self._stamp:
            raise CorruptDataError(f"{self._path.name} changed while it was uploaded; save again")
        if self._id is None:
            return
        parts = [{"PartNumber": n, **self._parts[n]} for n in sorted(self._parts)]
        try:
            self._s3.call(
                "complete_multipart_upload",
                Key=self._s3.key(self._key),
                UploadId=self._id,
                MultipartUpload={"Parts": parts},
            )
        except NotFoundError:
            # An earlier attempt may have been carried out although its answer was lost.
            if self._s3.head(self._key).size != self._size:
                raise
        # An upload whose beginning was never told to us would be paid for until somebody looks.
        for upload in self._begun() if self._doubtful else ():
            self._s3.call("abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])

    def _begun(self) -> list[dict[str, Any]]:
        key = self._s3.key(self._key)
        answer = self._s3.call("list_multipart_uploads", Prefix=key)
        return [upload for upload in answer.get("Uploads", ()) if upload["Key"] == key]

    def _whole(self) -> None:
        data = self._read(0)
        self._send("put_object", data)
        self._advance(len(data))

    def _read(self, number: int) -> bytes:
        """Part ``number``, counted from 0; its share of the checksum is taken on the way."""
        start = number * self._step
        data = os.pread(self._opened(), min(self._step, self._size - start), start)
        self._digest.add(number, data)
        return data

    def _send(self, operation: str, data: bytes, **arguments: Any) -> dict[str, Any]:
        def send() -> dict[str, Any]:
            request = getattr(self._s3.client, operation)
            place = {"Bucket": self._s3.bucket, "Key": self._s3.key(self._key)}
            answer: dict[str, Any] = request(**place, Body=Body(data), **arguments)
            return answer

        return self._s3.attempt(send)

    def _known_part(self, number: int) -> None:
        """The server has it; only the checksum is wanted."""
        self._advance(len(self._read(number)))

    def _is_there(self) -> bool:
        """Whether an interrupted save had put this very file together already.

        The ETag of a multipart upload is the MD5 of its parts' MD5 sums, unless it is encrypted.
        """
        try:
            info = self._s3.head(self._key)
        except NotFoundError:
            return False
        if info.size != self._size:
            return False
        sums = b""
        for start in range(0, self._size, self._step):
            part = os.pread(self._opened(), min(self._step, self._size - start), start)
            sums += _md5(part).digest()
        self.close()
        expected = f"{_md5(sums).hexdigest()}-{len(sums) // 16}"
        return info.etag.strip('"') == expected

    def begin(self, *, resumes: bool) -> None:
        """Begin a multipart upload, or go on with one, where the file has several parts to send."""
        if self._size <= self._step or (resumes and self._is_there()):
            return
        self._doubtful = resumes
        begun = self._begun() if resumes else []
        if begun:
            self._goes_on(max(begun, key=lambda u: u["Initiated"]))
            self._known = self._sent()
            return
        try:
            self._goes_on(self._s3.attempt(partial(self._create, ChecksumAlgorithm="CRC32")))
        except FatalStoreError:  # some servers refuse what they do not know
            self._goes_on(self._s3.attempt(self._create))

    def _goes_on(self, upload: dict[str, Any]) -> None:
        """CRC-32 sums are sent to the servers that say they keep them; others get signatures alone."""
        self._id, self._sums = upload["UploadId"], upload.get("ChecksumAlgorithm") == "CRC32"

    def _create(self, **arguments: str) -> dict[str, Any]:
        """One attempt; a second one may mean that the first was carried out and its answer lost."""
        self._doubtful, self._tried = self._doubtful or self._tried, True
        key = self._s3.key(self._key)
        answer: dict[str, Any] = self._s3.client.create_multipart_upload(
            Bucket=self._s3.bucket, Key=key, **arguments
        )
        return answer

    def _sent(self) -> dict[int, tuple[str, int]]:
        """The parts that the server has."""
        known: dict[int, tuple[str, int]] = {}
        arguments: dict[str, Any] = {"Key": self._s3.key(self._key), "UploadId": self._id}
        while True:
            answer = self._s3.call("list_parts", **arguments)
            known |= {p["PartNumber"]: (p["ETag"], p["Size"]) for p in answer.get("Parts", ())}
            if not answer.get("IsTruncated"):
                return known
            arguments["PartNumberMarker"] = answer["NextPartNumberMarker"]

    def _part(self, number: int) -> None:
        data, known = self._read(number), self._known.get(number + 1)
        etag = known[0] if known and known == (f'"{_md5(data).hexdigest()}"', len(data)) else None
        sums = {"ChecksumCRC32": crc32_of(data)} if self._sums else {}
        if etag is None:
            answer = self._send("upload_part", data, UploadId=self._id, PartNumber=number + 1, **sums)
            etag = answer["ETag"]
        with self._lock:
            self._parts[number + 1] = {"ETag": etag, **sums}
        self._advance(len(data))


def _md5(data: bytes = b"") -> Any:
    return md5(data, usedforsecurity=False)


def _check_etag(answer: dict[str, Any], hexed: str, key: str) -> None:
    """Where the ETag is an MD5 sum (always but under KMS and customer keys), it must be ours."""
    encrypted = answer.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in answer
    etag = answer["ETag"].strip('"')
    if not encrypted and len(etag) == len(hexed) and etag != hexed:
        raise RetryableError(f"{key} arrived damaged")


def _stamp(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        return _stamp(path.stat())
    except OSError:
        return None


# -- down -------------------------------------------------------------------------------------


def download_files(s3: S3Objects, objects: Sequence[tuple[ObjectInfo, Path]], advance: Advance) -> None:
    """See `Objects.download`."""
    downloads = [_Download(s3, info, path, advance) for info, path in objects]
    try:
        run_all([task for download in downloads for task in download.tasks()])
        for download in downloads:
            download.complete()
    finally:
        for download in downloads:
            download.close()


class _Download:
    """One object on its way down: ``NAME`` grows in place beside ``NAME.parts``, a list of ranges."""

    def __init__(self, s3: S3Objects, info: ObjectInfo, path: Path, advance: Advance) -> None:
        self._s3, self._info, self._path, self._advance = s3, info, path, advance
        self._step = part_size(info.size)
        self._sidecar = path.with_name(path.name + ".parts")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._done = self._begun()
            path.touch(0o600)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise CorruptDataError(
                f"{s3.url} has a file and a folder of one name at {info.key}, which no disk can hold; "
                "name one of them"
            ) from None
        self._file: int | None = None
        self._lock = threading.Lock()

    def _begun(self) -> set[int]:
        try:
            state = orjson.loads(self._sidecar.read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return set()
        same = state.get("etag") == self._info.etag and state.get("size") == self._info.size
        return set(state["done"]) if same and self._path.exists() else set()

    def tasks(self) -> list[Callable[[], Any]]:
        """The ranges that are missing."""
        os.truncate(self._path, self._info.size)
        starts = range(0, self._info.size, self._step)
        due = [start for start in starts if start not in self._done]
        self._left = len(due)
        return [partial(self._range, start) for start in due]

    def complete(self) -> None:
        self._sidecar.unlink(missing_ok=True)

    def _opened(self) -> int:
        """As in an upload: a folder may hold more files than a process may open."""
        with self._lock:
            if self._file is None:
                self._file = os.open(self._path, os.O_RDWR)
            return self._file

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _range(self, start: int) -> None:
        stop = min(start + self._step, self._info.size)
        try:
            self._s3.attempt(lambda: self._fetch(start, stop))
        except (Conflict, NotFoundError):
            raise CorruptDataError(
                f"{self._s3.url}/{self._info.key} changed or vanished during the download; run again"
            ) from None
        with self._lock:
            self._done.add(start)
            self._left -= 1
            if not self._left:
                self.close()
            if self._info.size > self._step:
                state = {"etag": self._info.etag, "size": self._info.size, "done": sorted(self._done)}
                self._sidecar.write_bytes(orjson.dumps(state))
        self._advance(stop - start)

    def _fetch(self, start: int, stop: int) -> None:
        arguments = {"Range": f"bytes={start}-{stop - 1}"} if self._info.size > self._step else {}
        answer = self._s3.client.get_object(
            Bucket=self._s3.bucket, Key=self._s3.key(self._info.key), IfMatch=self._info.etag, **arguments
        )
        whole = not arguments
        digest, at = _md5(), start
        while block := answer["Body"].read(self._step):
            self._put(block, at)
            at += len(block)
            if whole:
                digest.update(block)
        if at != stop:
            raise RetryableError(f"{self._info.key}: {at - start:,} of {stop - start:,} bytes arrived")
        if whole:
            _check_etag(answer, digest.hexdigest(), self._info.key)

    def _put(self, block: bytes, at: int) -> None:
        try:
            os.pwrite(self._opened(), block, at)
        except OSError as error:
            raise FatalStoreError(
                f"cannot write to {self._path.parent}: {error.strerror}; free some space and run again"
            ) from error


__all__ = ["PART", "download_files", "part_size", "run_all", "sha256_of", "upload_files"]
