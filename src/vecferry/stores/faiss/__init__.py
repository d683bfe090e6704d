"""The FAISS store: see `vecferry.stores.faiss.store.FaissStore` and ``docs/stores/faiss.md``."""

from vecferry.stores.faiss.store import FaissStore

__all__ = ["FaissStore"]
