"""Which index is meant: by project and name, by name alone, or by id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from vecferry.errors import ConfigurationError, NotFoundError, RejectedRecord
from vecferry.model import CollectionSchema
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
