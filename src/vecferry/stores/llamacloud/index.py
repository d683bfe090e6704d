"""Which index is meant, and its own settings in vecferry's words: space, chunker, customer-owned sink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import UUID

from vecferry.core.redaction import without_secrets
from vecferry.errors import ConfigurationError, NotFoundError, RejectedRecord
from vecferry.model import CollectionSchema, EmbeddingSpace, Loss
from vecferry.stores.llamacloud.client import Client, segment


@dataclass(frozen=True, slots=True)
class Found:
    """An index: ``version`` 1 is a pipeline, 2 the later kind. ``info`` is the service's own object."""

    version: int
    info: dict[str, Any]
    project: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.info["id"])


def find_project(client: Client, name: str) -> dict[str, Any]:
    """The project of that id or name.

    Raises:
        NotFoundError: naming the projects there are.
        ConfigurationError: naming the ids of all projects called so.
    """
    if is_uuid(name):
        found = _get(client, f"/api/v1/projects/{segment(name)}")
        if found is not None:
            return found
    projects = _projects(client)
    same = [project for project in projects if project.get("name") == name]
    return _only(same, name, "project", projects)


def find_index(client: Client, project: str | None, name: str, version: int | None = None) -> Found:
    """The index of that id or name.

    Args:
        project: id or name; ``None`` looks in every project the key can see.
        version: 1 or 2; ``None`` looks among pipelines first.

    Raises:
        NotFoundError: naming the indexes there are.
        ConfigurationError: if several are called so, naming their ids.
    """
    home = find_project(client, project) if project else None
    if is_uuid(name) and (found := _by_id(client, name, version)) is not None:
        return _at_home(found, home, name)
    scope = home["id"] if home else None
    there: list[Found] = []
    for number in (1, 2) if version is None else (version,):
        listed = _pipelines(client, scope) if number == 1 else _indexes(client, scope)
        candidates = [Found(number, info, home or {"id": info.get("project_id")}) for info in listed]
        same = [found for found in candidates if found.info.get("name") == name]
        there += candidates
        if same:
            chosen = _only([f.info for f in same], name, "index", [f.info for f in there])
            return _whole(client, Found(number, chosen, same[0].project))
    _only([], name, "index", [f.info for f in there], home)
    raise AssertionError("unreachable")


def find_nothing_or(client: Client, project: str | None, name: str, version: int | None) -> Found | None:
    """As `find_index`, ``None`` where there is no such index in a project that exists."""
    home = find_project(client, project) if project else None
    try:
        return find_index(client, home["id"] if home else None, name, version)
    except NotFoundError:
        return None


def create_index(
    client: Client, project: str | None, name: str, schema: CollectionSchema
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A new index and its project, with the settings that came along if the records are LlamaCloud's.

    Raises:
        PlanError: if the project or a proper name is missing.
    """
    if is_uuid(name):
        raise NotFoundError(f"there is no index with the id {name}; give a new one a name")
    if project is None:
        raise ConfigurationError(f"name the project of the new index: llamacloud://PROJECT/{name}")
    home = find_project(client, project)
    known = schema.settings.get("llamacloud") or {}
    body = {
        "name": name,
        "pipeline_type": "MANAGED",
        "embedding_config": _creatable(known.get("embedding")),
        "transform_config": known.get("transform_config") or {"mode": "auto"},
    }
    return client.put("/api/v1/pipelines", body, project_id=home["id"]), home


_MANAGED = {
    "type": "MANAGED_OPENAI_EMBEDDING",
    "component": {"model_name": "openai-text-embedding-3-small"},
}


def _creatable(embedding: Any) -> dict[str, Any]:
    """An embedding configuration comes without secrets, so only one that needs none can be used again."""
    managed = isinstance(embedding, dict) and embedding.get("type") == _MANAGED["type"]
    return embedding if managed else _MANAGED


def is_uuid(text: str) -> bool:
    """Whether ``text`` is a UUID in its usual form."""
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


def _by_id(client: Client, id_: str, version: int | None) -> Found | None:
    for number, path in ((1, "/api/v1/pipelines"), (2, "/api/v1/indexes")):
        if version in (None, number):
            info = _get(client, f"{path}/{segment(id_)}")
            if info is not None:
                return Found(number, info, {"id": info.get("project_id")})
    return None


def _at_home(found: Found, home: dict[str, Any] | None, name: str) -> Found:
    if home and found.info.get("project_id") not in (None, home["id"]):
        raise NotFoundError(
            f"the index {name} is not in project {home.get('name')!r} but in "
            f"{found.info.get('project_id')}; open it as llamacloud:{name}"
        )
    return Found(found.version, found.info, home or found.project)


def _whole(client: Client, found: Found) -> Found:
    """Listings may be summaries; settings need the whole object."""
    if found.version == 2 or "embedding_config" in found.info:
        return found
    return Found(1, client.get(f"/api/v1/pipelines/{segment(found.id)}"), found.project)


def _projects(client: Client) -> list[dict[str, Any]]:
    try:
        listed: list[dict[str, Any]] = client.get("/api/v1/projects")
        return listed
    except NotFoundError:
        return list(client.items("GET", "/api/v2/projects"))


def _pipelines(client: Client, project_id: str | None) -> list[dict[str, Any]]:
    try:
        listed: list[dict[str, Any]] = client.get(
            "/api/v1/pipelines", project_id=project_id, pipeline_type="MANAGED"
        )
        return listed
    except NotFoundError:
        wanted = {"project_id": project_id, "pipeline_type": "MANAGED"}
        return list(client.items("GET", "/api/v2/pipelines", **wanted))


def _indexes(client: Client, project_id: str | None) -> list[dict[str, Any]]:
    try:
        return list(client.items("GET", "/api/v1/indexes", project_id=project_id))
    except NotFoundError:
        return []


def _get(client: Client, path: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = client.get(path)
        return found
    except (NotFoundError, RejectedRecord):
        return None


def _only(
    same: Sequence[dict[str, Any]],
    name: str,
    what: str,
    there: Sequence[dict[str, Any]],
    home: dict[str, Any] | None = None,
) -> dict[str, Any]:
    if len(same) == 1:
        return same[0]
    if same:
        ids = ", ".join(str(item["id"]) for item in same)
        raise ConfigurationError(f"{len(same)} of {what} are called {name!r}: {ids}; name it by its id")
    names = sorted(repr(item.get("name")) for item in there)
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    where = f" in project {home.get('name')!r}" if home else ""
    raise NotFoundError(
        f"there is no {what} {name!r}{where}; "
        + (f"there is {shown}" if names else f"the key sees no {what} at all")
    )


# -- settings ---------------------------------------------------------------------------------------

_MODEL_KEYS = ("model_name", "model", "azure_deployment", "deployment_name", "model_id")

# Dimensions as the makers of the models document them; the API states them only sometimes.
_DIMS: tuple[tuple[str, int], ...] = (
    ("text-embedding-ada-002", 1536),
    ("text-embedding-3-small", 1536),
    ("text-embedding-3-large", 3072),
    ("embed-english-light", 384),
    ("embed-multilingual-light", 384),
    ("embed-english-v3", 1024),
    ("embed-multilingual-v3", 1024),
    ("embed-english-v2", 4096),
    ("embed-multilingual-v2", 768),
    ("embed-v4", 1536),
    ("gemini-embedding-001", 3072),
    ("text-embedding-004", 768),
    ("text-embedding-005", 768),
    ("embedding-001", 768),
    ("textembedding-gecko", 768),
    ("text-multilingual-embedding-002", 768),
    ("amazon.titan-embed-text-v1", 1536),
    ("amazon.titan-embed-text-v2", 1024),
    ("all-MiniLM-L6-v2", 384),
    ("all-mpnet-base-v2", 768),
    ("bge-small", 384),
    ("bge-base", 768),
    ("bge-large", 1024),
    ("bge-m3", 1024),
)
# Cohere's v2 models and Google's shortened ones are not of unit length.
_NOT_NORMALIZED = ("embed-english-v2", "embed-multilingual-v2")


def space_of(pipeline: Mapping[str, Any]) -> EmbeddingSpace | None:
    """The space of the index's vectors; ``None`` if the model or its dimension cannot be told."""
    config = embedding_of(pipeline)
    component = config.get("component") or {}
    model = next((component[key] for key in _MODEL_KEYS if component.get(key)), None)
    if not isinstance(model, str):
        return None
    if config.get("type") == "MANAGED_OPENAI_EMBEDDING":
        model = model.removeprefix("openai-")
    sink = (pipeline.get("data_sink") or {}).get("component") or {}
    dim = component.get("dimensions") or sink.get("embed_dim") or _dim_of(model)
    if not isinstance(dim, int) or dim <= 0:
        return None
    normalized = not any(name in model for name in _NOT_NORMALIZED)
    return EmbeddingSpace(model=model, dim=dim, normalized=normalized)


def embedding_of(pipeline: Mapping[str, Any]) -> Mapping[str, Any]:
    """The ``embedding_config`` in force: the index's own, or the shared one it refers to."""
    own: Mapping[str, Any] = pipeline.get("embedding_config") or {}
    shared = (pipeline.get("embedding_model_config") or {}).get("embedding_config") or {}
    return own or shared


def chunker_of(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """How the index cuts documents: ``splitter``, ``chunk_size``, ``chunk_overlap``, ``unit``, and more.

    ``splitter`` is ``sentence``, ``token``, ``character``, ``semantic`` or ``none``. The automatic mode is
    LlamaIndex's sentence splitter with the given size and overlap, in tokens.
    """
    config = pipeline.get("transform_config") or {}
    if config.get("mode", "auto") != "advanced":
        return _chunker("sentence", config)
    chunking = config.get("chunking_config") or {}
    segmentation = config.get("segmentation_config") or {}
    chunker = _chunker(chunking.get("mode") or "sentence", chunking)
    if segmentation.get("mode") not in (None, "none"):
        chunker["segmentation"] = {k: v for k, v in segmentation.items() if v is not None}
    return chunker


def _chunker(splitter: str, config: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("separator", "paragraph_separator", "buffer_size", "breakpoint_percentile_threshold")
    extra = {key: config[key] for key in kept if config.get(key) is not None}
    if splitter in ("none", "semantic"):
        return {"splitter": splitter, **extra}
    size, overlap = config.get("chunk_size"), config.get("chunk_overlap")
    return {
        "splitter": splitter,
        "chunk_size": 1024 if size is None else size,
        "chunk_overlap": 200 if overlap is None else overlap,
        "unit": "character" if splitter == "character" else "token",
        **extra,
    }


def sink_of(pipeline: Mapping[str, Any]) -> dict[str, Any] | None:
    """The customer-owned vector store of an index: type, name and, where vecferry reads it, its URL.

    ``None`` means the vendor's own store, whose vectors cannot be reached. The service never returns
    the sink's secrets; they come from the environment, as for any other store.
    """
    sink = pipeline.get("data_sink")
    if not sink:
        return None
    kind, component = str(sink.get("sink_type", "")).upper(), sink.get("component") or {}
    url = {"QDRANT": _qdrant_url, "POSTGRES": _postgres_url}.get(kind, lambda _: None)(component)
    return {"type": kind.lower(), "name": sink.get("name"), "url": url}


def settings_of(info: Mapping[str, Any], version: int) -> dict[str, Any]:
    """What a schema keeps of an index, to be looked at and to make an equal one."""
    settings: dict[str, Any] = {"index": info.get("name"), "index_id": info.get("id"), "version": version}
    if version == 2:
        return settings
    space = space_of(info)
    return settings | {
        "embedding": without_secrets(embedding_of(info)),
        "space": space.model_dump() if space else None,
        "chunker": chunker_of(info),
        "transform_config": without_secrets(info.get("transform_config") or {}),
        "data_sink": sink_of(info),
    }


def loss_of(info: Mapping[str, Any]) -> Loss:
    """Why there are no vectors, and where they are."""
    sink = sink_of(info)
    detail = "LlamaCloud keeps its vectors to itself; embed anew with embed=…"
    if sink:
        there = f"read them with vecferry at {sink['url']}" if sink["url"] else "read them there"
        detail = f"the vectors of this index lie in your own {sink['type']} store {sink['name']!r}; {there}"
    return Loss(kind="vector", detail=detail, where="source")


def _qdrant_url(component: Mapping[str, Any]) -> str | None:
    parts = urlsplit(str(component.get("url") or ""))
    if not parts.hostname or not component.get("collection_name"):
        return None
    port = parts.port or 6333  # as Qdrant's own client reads an address without one
    tls = "?https=true" if parts.scheme == "https" else "?https=false"
    return f"qdrant://{parts.hostname}:{port}/{quote(str(component['collection_name']))}{tls}"


def _postgres_url(component: Mapping[str, Any]) -> str | None:
    host, table = component.get("host"), component.get("table_name")
    if not host or not table:
        return None
    login = f"{quote(str(component['user']), safe='')}@" if component.get("user") else ""
    database = quote(str(component.get("database") or "postgres"), safe="")
    schema = component.get("schema_name") or "public"
    # The service stores through LlamaIndex's PGVectorStore, which puts data_ before the name.
    table = table.lower() if table.startswith("data_") else f"data_{table.lower()}"
    return f"pgvector://{login}{host}:{component.get('port') or 5432}/{database}#{schema}.{table}"


def _dim_of(model: str) -> int | None:
    return next((dim for name, dim in _DIMS if name in model), None)
