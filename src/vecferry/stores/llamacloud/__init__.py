"""``llamacloud:``: indexes of the LlamaCloud service, over its REST interface."""

from vecferry.stores.llamacloud.store import LlamaCloudStore

__all__ = ["LlamaCloudStore"]
