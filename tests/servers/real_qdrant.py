"""A real Qdrant at ``QDRANT_URL``, asked as the test server is asked (`servers.qdrant.QdrantServer`).

Every collection and alias gets a name of this run's own behind the name that the test says, and is gone
afterwards; what else lies on the server is neither seen nor touched.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
from qdrant_client import QdrantClient, models


class RealServer:
    """``client`` is the vendor's, by REST; `info`, `create`, `update`, `index` are plain requests."""

    def __init__(self) -> None:
        place = urlsplit(os.environ["QDRANT_URL"])
        host = place.hostname or "127.0.0.1"
        self.host = "127.0.0.1" if host == "localhost" else host
        self.rest_port = place.port or 6333
        self.port = self.rest_port + 1
        self.api_key = os.environ.get("QDRANT_API_KEY")
        self.prefix = f"vecferry-test-{uuid4().hex[:8]}-"
        headers = {"api-key": self.api_key} if self.api_key else {}
        self._http = httpx.Client(base_url=os.environ["QDRANT_URL"], headers=headers, timeout=60)
        self._vendor = QdrantClient(
            url=os.environ["QDRANT_URL"], api_key=self.api_key, timeout=60, check_compatibility=False
        )
        self.client = _Named(self._vendor, self.prefix)

    def __enter__(self) -> RealServer:
        return self

    def __exit__(self, *_: object) -> None:
        for collection in self.client.get_collections().collections:
            self.client.delete_collection(collection.name)
        left = self.client.get_collections().collections, self.client.get_aliases().aliases
        self._vendor.close()
        self._http.close()
        assert left == ([], [])

    def named(self, name: str) -> str:
        return self.prefix + name

    def url(self, collection: str, **options: Any) -> str:
        query = "&".join(f"{k}={v}" for k, v in {"grpc_port": self.port, **options}.items())
        return f"qdrant://{self.host}:{self.rest_port}/{self.named(collection)}?{query}"

    def info(self, name: str) -> Any:
        return self._ask("GET", name)

    def create(self, name: str, body: dict[str, Any]) -> Any:
        return self._ask("PUT", name, body)

    def update(self, name: str, body: dict[str, Any]) -> Any:
        return self._ask("PATCH", name, body)

    def index(self, name: str, path: str, schema: Any) -> None:
        self._ask("PUT", name, {"field_name": path, "field_schema": schema}, "/index?wait=true")

    def _ask(self, method: str, name: str, body: Any = None, rest: str = "") -> Any:
        answer = self._http.request(method, f"/collections/{self.named(name)}{rest}", json=body)
        assert answer.is_success, answer.text
        return answer.json()["result"]


class _Named:
    """The vendor's client, for whom every name stands behind ``prefix``."""

    def __init__(self, client: QdrantClient, prefix: str) -> None:
        self._client, self._prefix = client, prefix

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda name, *more, **options: getattr(self._client, method)(
            self._prefix + name, *more, **options
        )

    def get_collections(self) -> models.CollectionsResponse:
        found = self._client.get_collections().collections
        return models.CollectionsResponse(
            collections=[
                models.CollectionDescription(name=one.name.removeprefix(self._prefix))
                for one in found
                if one.name.startswith(self._prefix)
            ]
        )

    def get_aliases(self) -> models.CollectionsAliasesResponse:
        found = self._client.get_aliases().aliases
        return models.CollectionsAliasesResponse(
            aliases=[
                models.AliasDescription(
                    alias_name=one.alias_name.removeprefix(self._prefix),
                    collection_name=one.collection_name.removeprefix(self._prefix),
                )
                for one in found
                if one.alias_name.startswith(self._prefix)
            ]
        )

    def update_collection_aliases(self, operations: list[Any]) -> bool:
        for operation in operations:
            for action in operation.__dict__.values():
                for field in ("alias_name", "collection_name"):
                    if hasattr(action, field):
                        setattr(action, field, self._prefix + getattr(action, field))
        return self._client.update_collection_aliases(operations)
