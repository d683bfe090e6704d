"""Finding sentence-transformers models on this machine, and fetching them from Hugging Face once.

The hub's own client retries for about a minute in silence and then says only that it cannot load the
model. Here one quick question comes first, and its answer is turned into one line.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from vecferry.core.home import home
from vecferry.core.redaction import clean
from vecferry.embedding.space import KNOWN_WEIGHTS, canonical
from vecferry.errors import (
    FatalStoreError,
    MissingDependencyError,
    NotFoundError,
    RetryableError,
    VecferryError,
)

ORIGIN = "vecferry-model.json"
"""The file that `fetch_model` leaves in a model's folder: ``{"name": …, "revision": …}``."""
TOKENS = ("HF_TOKEN", "HUGGINGFACE_API_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_QUESTION_SECONDS = 10.0
_PLAIN = (".json", ".txt", ".model", ".md", ".jinja", ".py")
_WEIGHTS = (".safetensors", ".bin")
_OTHER_FORMS = ("onnx", "openvino", "coreml", "tf", "flax")


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model that is on this machine.

    Attributes:
        path: the folder.
        name: its canonical name.
        revision: its commit as far as it is pinned, or ``weights:…`` for a folder of unknown origin,
            so that two models in folders of one name are still two.
    """

    path: str
    name: str
    revision: str | None


def hub_token() -> str | None:
    """The Hugging Face token of the environment, under any of its names."""
    return next((os.environ[name] for name in TOKENS if os.environ.get(name)), None)


def fetched_folder(name: str, revision: str | None = None) -> Path:
    """Where `fetch_model` keeps a model by default."""
    folder = canonical(name).replace("/", "--")
    return home() / "models" / (f"{folder}@{revision}" if revision else folder)


def find_model(name: str, revision: str | None = None, token: str | None = None) -> LocalModel:
    """The model on this machine; downloaded first if it is not there yet.

    Looks for a folder of that path, a fetched model, the Hugging Face cache, in this order.

    Raises:
        NotFoundError, FatalStoreError, RetryableError: with one line on what happened.
    """
    if local := _on_disk(name, revision):
        return local
    if name.startswith(("/", "./", "../", "~")):
        raise NotFoundError(f"there is no folder {name}; check the path")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise NotFoundError(f"{name} is not on this machine and HF_HUB_OFFLINE is set; {_fetch_hint(name)}")
    return fetch_model(name, revision=revision, token=token)


def fetch_model(
    name: str, folder: str | Path | None = None, *, revision: str | None = None, token: str | None = None
) -> LocalModel:
    """Download a model once, to be used offline from then on.

    Args:
        name: such as ``"all-MiniLM-L6-v2"`` or ``"intfloat/multilingual-e5-small"``.
        folder: else a folder below `vecferry.core.home.home`.
        revision: a branch, tag or commit.
        token: else the environment's.

    Raises:
        NotFoundError: no model of that name, or it is gated or private.
        RetryableError: a rate limit or no network.
    """
    hub = _hub()
    repo = canonical(name)
    target = Path(folder).expanduser() if folder else fetched_folder(name, revision)
    token = token or hub_token()
    try:
        info = hub.HfApi(token=token).model_info(repo, revision=revision, timeout=_QUESTION_SECONDS)
        wanted = needed_files([file.rfilename for file in info.siblings or ()])
        target.mkdir(parents=True, exist_ok=True)
        hub.snapshot_download(
            repo,
            revision=info.sha,
            local_dir=target,
            token=token,
            allow_patterns=wanted,
        )
    except Exception as error:  # the hub's errors have no common root; the table below knows them
        raise explain(error, name) from error
    (target / ORIGIN).write_bytes(orjson.dumps({"name": repo, "revision": info.sha}))
    return LocalModel(str(target), repo, revision)


def needed_files(names: Sequence[str]) -> list[str]:
    """Of a repository's files those that sentence-transformers reads, module folder by module folder.

    Each folder gets its own weights: a transformer may be kept as ``*.safetensors`` and the dense layer
    behind it as ``pytorch_model.bin`` only.
    """
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(str(PurePosixPath(name).parent), []).append(name)
    wanted: list[str] = []
    for folder, inside in folders.items():
        if PurePosixPath(folder).parts[:1] and PurePosixPath(folder).parts[0] in _OTHER_FORMS:
            continue
        form = next((end for end in _WEIGHTS if any(name.endswith(end) for name in inside)), "")
        wanted += [name for name in inside if name.endswith(_PLAIN) or (form and name.endswith(form))]
    return wanted


def list_models() -> list[tuple[LocalModel, int]]:
    """The models that `fetch_model` keeps by default, and their bytes."""
    found = []
    for origin in sorted((home() / "models").glob(f"*/{ORIGIN}")):
        noted = orjson.loads(origin.read_bytes())
        size = sum(path.stat().st_size for path in origin.parent.rglob("*") if path.is_file())
        found.append((LocalModel(str(origin.parent), noted["name"], noted.get("revision")), size))
    return found


def remove_model(name: str, revision: str | None = None) -> LocalModel:
    """Delete a fetched model.

    Raises:
        NotFoundError: if none is called so, naming those there are.
    """
    folder = fetched_folder(name, revision)
    origin = folder / ORIGIN
    if not origin.is_file():
        there = ", ".join(Path(model.path).name.replace("--", "/") for model, _ in list_models())
        raise NotFoundError(f"no model {name!r} was fetched; there is {there or 'none'}")
    noted = orjson.loads(origin.read_bytes())
    origin.unlink()  # from now on it counts as not there
    shutil.rmtree(folder, ignore_errors=True)
    return LocalModel(str(folder), noted["name"], noted.get("revision"))


def explain(error: BaseException, name: str) -> VecferryError:
    """One line on why a model cannot be had, from any error of the hub's client and its causes."""
    kinds: set[str] = set()
    status = None
    cause: BaseException | None = error
    while cause is not None:
        kinds.update(base.__name__ for base in type(cause).__mro__)
        response = getattr(cause, "response", None)
        status = status or getattr(response, "status_code", None)
        cause = cause.__cause__ or cause.__context__
    if "GatedRepoError" in kinds:
        return NotFoundError(
            f"{name} is gated; agree to it at https://huggingface.co/{canonical(name)} and set HF_TOKEN"
        )
    if "RevisionNotFoundError" in kinds:
        return NotFoundError(f"{name} has no such revision on Hugging Face")
    if status == 429:
        return RetryableError(
            f"Hugging Face answers 429 (rate limit) for {name}: wait, set HF_TOKEN, or {_fetch_hint(name)}"
        )
    if "RepositoryNotFoundError" in kinds or status in (401, 403, 404):
        return NotFoundError(
            f"Hugging Face knows no model {canonical(name)!r} (or hides it): check the name and HF_TOKEN"
        )
    if isinstance(status, int) and status >= 500:
        return RetryableError(
            f"Hugging Face answers {status} for {name}: try again later, or {_fetch_hint(name)}"
        )
    if kinds & {"OfflineModeIsEnabled", "TransportError", "ConnectionError", "TimeoutError"}:
        return RetryableError(f"Hugging Face cannot be reached for {name} (offline?): {_fetch_hint(name)}")
    return FatalStoreError(
        f"{name} cannot be had from Hugging Face: {type(error).__name__}: {clean(error)}"
    )


def _fetch_hint(name: str) -> str:
    return f"fetch it where there is network: vecferry models fetch {name}"


def _on_disk(name: str, revision: str | None) -> LocalModel | None:
    if Path(name).expanduser().is_dir():
        return _identify(Path(name).expanduser())
    folder = fetched_folder(name, revision)
    if (folder / ORIGIN).is_file():
        return LocalModel(str(folder), canonical(name), revision)
    try:
        cached = _hub().snapshot_download(canonical(name), revision=revision, local_files_only=True)
    except (OSError, ValueError):
        return None
    if not (Path(cached) / "config.json").is_file():  # a download that was never finished
        return None
    return LocalModel(cached, canonical(name), revision)


def _identify(folder: Path) -> LocalModel:
    """Which model lies in a folder: noted when fetched, by the hub's cache path, by its weights."""
    path = str(folder)
    origin = folder / ORIGIN
    if origin.is_file():
        return LocalModel(path, str(orjson.loads(origin.read_bytes())["name"]), None)
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return LocalModel(path, folder.parent.parent.name.removeprefix("models--").replace("--", "/"), None)
    weights = sorted([*folder.rglob("*.safetensors"), *folder.rglob("pytorch_model*.bin")])
    if not weights:
        raise NotFoundError(f"{folder} holds no model: there is no *.safetensors in it")
    with weights[0].open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    if digest in KNOWN_WEIGHTS:
        return LocalModel(path, KNOWN_WEIGHTS[digest], None)
    return LocalModel(path, folder.resolve().name, f"weights:{digest[:16]}")


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependencyError("sentence-transformers:", "sentence-transformers") from error
    return huggingface_hub
