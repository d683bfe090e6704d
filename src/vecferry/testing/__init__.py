"""Contract tests for adapters. Subclass `StoreContract` in your own test suite; needs pytest.

The property tests (filters, sequences of writes) want Hypothesis too, and are skipped without it.

class TestMyStore(StoreContract):
    def open(self, folder, name):
        return MyStore(folder / name)

    def vendor_view(self, store):
        return {row.key: VendorView(row.text, row.vector) for row in vendor_client(store.path).rows()}
"""

from vecferry.core.moved import moved
from vecferry.testing.contract import StoreContract, VendorView
from vecferry.testing.samples import sample_records, sample_schema

__all__ = ["StoreContract", "VendorView", "sample_records", "sample_schema"]

__getattr__ = moved(__name__, {"Peek": "vecferry.testing:VendorView"})  # its name until 0.2
