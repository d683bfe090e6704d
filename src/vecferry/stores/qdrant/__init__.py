"""``qdrant://HOST/COLLECTION`` and ``qdrant:PATH#COLLECTION``: servers and local folders."""

from vecferry.stores.qdrant.store import QdrantStore

__all__ = ["QdrantStore"]
