"""From a URL to an opened `Collection`: the friendly face of a store."""

from vecferry.connecting.collection import Collection
from vecferry.connecting.connect import borrowed, connect, denied

__all__ = ["Collection", "borrowed", "connect", "denied"]
