"""No credential that enters anywhere comes out anywhere: logs, state, reports, tracebacks, arguments."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vecferry as vf
from servers.openai_faults import Fault, FaultServer
from servers.postgres import Postgres, postgres
from vecferry.api import jobs
from vecferry.core.redaction import redact
from vecferry.reporting.logs import configure_logging
from vecferry.stores.memory import MemoryStore
from vecferry.testing import sample_records

__all__ = ["postgres"]

PLANTED = "PLANTED-5ecr3t"
ENVIRONMENT = (
    "OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN", "QDRANT_API_KEY",
    "LLAMA_CLOUD_API_KEY", "OLLAMA_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PGPASSWORD",
    "HF_TOKEN", "JINA_API_KEY", "MISTRAL_API_KEY", "COHERE_API_KEY", "VOYAGE_API_KEY", "GOOGLE_API_KEY",
)  # fmt: skip


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for i, name in enumerate(ENVIRONMENT):
        monkeypatch.setenv(name, f"{PLANTED}-env-{i}")
    monkeypatch.setenv("VECFERRY_HOME", str(tmp_path / "home"))


@pytest.fixture
def told() -> Iterator[io.StringIO]:
    """What an application with logging of its own at DEBUG would see from vecferry."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("vecferry")
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.DEBUG)
    yield stream
    logger.setLevel(before)
    logger.removeHandler(handler)


def assert_clean(folder: Path, *texts: Any) -> None:
    """No planted word in any file below ``folder``, nor in ``texts``."""
    looked = 0
    for path in folder.rglob("*"):
        if path.is_file():
            looked += 1
            assert PLANTED.encode() not in path.read_bytes(), path
    assert looked, "there was nothing to look at"
    for text in texts:
        assert PLANTED not in str(text), text
        assert PLANTED not in repr(text), text


def full_traceback(error: BaseException) -> str:
    """With everything that is chained to it."""
    return "".join(traceback.format_exception(error))


def origin() -> vf.Collection:
    collection = vf.Collection(MemoryStore())
    collection.write(sample_records(50))
    return collection


FAILING = (
    f"pgvector://ann:{PLANTED}-url@127.0.0.1:1/db?sslmode=disable&sslpassword={PLANTED}-option#kb",
    f"pgvector://ann:{PLANTED}%40%2F%23@127.0.0.1:1/db#kb",
    f"qdrant://127.0.0.1:1/kb?api_key={PLANTED}-option&prefer_grpc=false",
    f"qdrant://127.0.0.1:1/kb?api_key={PLANTED}-option&prefer_grpc=true&timeout=1",
    f"llamacloud://127.0.0.1:1/kb?key={PLANTED}-option",
    f"faiss:./x?token={PLANTED}-option",
    f"nosuch://ann:{PLANTED}-url@host/x?api_key={PLANTED}-option",
    f"pgvector://ann:{PLANTED}-url@127.0.0.1:port/db#kb",
    f"//ann:{PLANTED}-url@127.0.0.1/db",
)


@pytest.mark.parametrize("url", FAILING)
def test_a_target_that_fails(
    url: str, told: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecferry.core.retry._sleep_unless", lambda seconds, should_stop: True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "marker").touch()
    with pytest.raises((vf.VecferryError, TypeError)) as caught:
        vf.migrate(origin(), url)
    assert_clean(tmp_path, told.getvalue(), full_traceback(caught.value), caught.value)


@pytest.mark.parametrize("url", FAILING[:3])
def test_the_command_line(url: str, tmp_path: Path) -> None:
    source = f"jsonl:{tmp_path / 'a.jsonl'}"
    vf.migrate(origin(), source, state_dir=tmp_path / "job").check()
    command = [sys.executable, "-m", "vecferry", "search", url, "--like", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, timeout=120)
    assert done.returncode
    assert_clean(tmp_path, done.stdout, done.stderr)


def test_a_job_with_a_password_in_its_url(
    postgres: Postgres, told: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server trusts everybody, so a password does no harm; it must not be kept either."""
    source = f"jsonl:{tmp_path / 'a.jsonl'}"
    vf.migrate(origin(), source, state_dir=tmp_path / "fill").check()
    url = postgres.url("kb").replace("postgres@", f"postgres:{PLANTED}-url@")
    calls = iter(range(1000))
    with pytest.raises(vf.errors.JobStopped):
        vf.migrate(source, url, batch_size=10, should_stop=lambda: next(calls) > 1)
    [job] = [found for found in jobs.list_jobs() if found["stage"] == "stream"]
    assert_clean(tmp_path, told.getvalue(), job, jobs.describe_job(job), jobs.show_job(job["id"]))
    with pytest.raises(vf.errors.JobError, match=r"not stored.*--target URL"):
        jobs.resume_job(job["id"])
    report = jobs.resume_job(job["id"], target=url).check()
    plan = vf.plan(source, url, mode="replace")
    with vf.connect(url) as collection:
        shown = (collection, collection.url, collection.store, collection.describe())
        assert_clean(tmp_path, *shown)
    everything = (report, report.to_dict(), json.dumps(report.to_dict(), default=str), plan, plan.to_dict())
    assert_clean(tmp_path, told.getvalue(), *everything, report._repr_html_(), plan._repr_html_())


def test_another_target_is_no_resume(postgres: Postgres, tmp_path: Path) -> None:
    source = f"jsonl:{tmp_path / 'a.jsonl'}"
    vf.migrate(origin(), source, state_dir=tmp_path / "fill").check()
    url, other = (postgres.url("kb").replace("postgres@", "postgres:secret@") for _ in range(2))
    calls = iter(range(1000))
    with pytest.raises(vf.errors.JobStopped):
        vf.migrate(source, url, batch_size=10, should_stop=lambda: next(calls) > 1)
    [job] = [found for found in jobs.list_jobs() if found["stage"] == "stream"]
    with pytest.raises(vf.errors.JobChangedError, match="target"):
        jobs.resume_job(job["id"], target=other)


@pytest.mark.parametrize("status", [400, 401, 500])
def test_an_embedding_server_that_repeats_the_key(
    status: int, told: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some servers put the key they were given into their error."""
    from vecferry.core.retry import RetryPolicy
    from vecferry.embedding.providers.openai import OpenAIEmbedder

    key = f"{PLANTED}-argument"
    with FaultServer(key=key) as server:
        space = vf.EmbeddingSpace(model="toy", dim=8, normalized=False)
        model = OpenAIEmbedder(
            "toy", base_url=server.url, api_key=key, space=space, retry=RetryPolicy(attempts=2, base=0.001)
        )
        server.fail(Fault(status, message=f"incorrect API key provided: {key}"), times=20)
        target = f"jsonl:{tmp_path / 'out.jsonl'}"
        options: dict[str, Any] = {"embed": model, "reembed": "always", "state_dir": tmp_path / "job"}
        with pytest.raises(vf.VecferryError) as caught:
            vf.migrate(origin(), target, **options)
        (tmp_path / "job").mkdir(exist_ok=True)
        (tmp_path / "job" / "marker").touch()
        assert_clean(tmp_path, told.getvalue(), model, full_traceback(caught.value))


def test_a_vendor_error_in_the_log(tmp_path: Path) -> None:
    """The last line of defence: the job log takes secrets out of what others say, tracebacks included."""

    class Chatty(MemoryStore):
        def write(self, batch: Any) -> Any:
            try:
                raise OSError(f"cannot reach https://ann:{PLANTED}-url@host?api_key={PLANTED}-option")
            except OSError as error:
                raise vf.errors.FatalStoreError("no; see the server") from error

    vf.ports.StoreURL.parse(f"pgvector://ann:{PLANTED}-bare@host/db")
    with pytest.raises(vf.errors.FatalStoreError):
        vf.migrate(origin(), Chatty(), state_dir=tmp_path / "job")
    log = (tmp_path / "job" / "job.log").read_text()
    assert "cannot reach" in log and "***" in log
    assert_clean(tmp_path, redact(f"it said {PLANTED}-bare, {PLANTED}-env-0"))


def test_processes_get_no_secret_as_an_argument(tmp_path: Path) -> None:
    """Workers and servers that are started inherit the environment, and show nothing in ``ps``."""
    import psutil

    embedded = f"pgvector:{tmp_path / 'server'}?password={PLANTED}-option#kb"
    try:
        with vf.connect(embedded) as collection:
            collection.store.exists()
            arguments = _arguments(psutil)
    except vf.VecferryError as error:
        assert PLANTED not in full_traceback(error)
        arguments = _arguments(psutil)
    assert PLANTED not in arguments


def _arguments(psutil: Any) -> str:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return "\n".join(found)


def test_logs_of_an_application(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("vecferry")
    before = list(logger.handlers)
    try:
        configure_logging(as_json=True)
        logger.error("cannot reach https://ann:%s-url@host; Bearer %s", PLANTED, PLANTED)
    finally:
        for handler in set(logger.handlers) - set(before):
            logger.removeHandler(handler)
    said = capsys.readouterr().err
    assert json.loads(said)["message"].startswith("cannot reach https://ann:***@host")
    assert PLANTED not in said
