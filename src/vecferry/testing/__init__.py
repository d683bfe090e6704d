"""Contract tests for adapters. Subclass `StoreContract` in your own test suite; needs pytest.

class TestMyStore(StoreContract):
    def open(self, folder, name):
        return MyStore(folder / name)

    def peek(self, store):
        return {row.key: Peek(row.text, row.vector) for row in vendor_client(store.path).rows()}
"""

from vecferry.testing.contract import Peek, StoreContract
from vecferry.testing.samples import sample_records, sample_schema

__all__ = ["Peek", "StoreContract", "sample_records", "sample_schema"]
