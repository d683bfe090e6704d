"""Contract tests for adapters. Subclass `StoreContract` in your own test suite; needs pytest.

The property tests (filters, sequences of writes) want Hypothesis too, and are skipped without it.

class TestMyStore(StoreContract):
    def open(self, folder, name):
        return MyStore(folder / name)

    def vendor_view(self, store):
        return {row.key: VendorView(row.text, row.vector) for row in vendor_client(store.path).rows()}
"""

import warnings
from typing import Any

from vecferry.testing.contract import StoreContract, VendorView
from vecferry.testing.samples import sample_records, sample_schema

__all__ = ["StoreContract", "VendorView", "sample_records", "sample_schema"]


def __getattr__(name: str) -> Any:
    if name == "Peek":  # its name until 0.2
        warnings.warn("vecferry.testing.Peek is now VendorView", DeprecationWarning, stacklevel=2)
        return VendorView
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
