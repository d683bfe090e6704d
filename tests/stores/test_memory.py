"""The contract against ``memory:``, and what is its own."""

from pathlib import Path

import vecferry as vf
from known import some
from vecferry.model import Kind, Metric, SparseVector
from vecferry.stores.memory import _CABINETS, MemoryStore
from vecferry.testing import StoreContract, VendorView


class TestMemory(StoreContract):
    def open(self, folder: Path, name: str) -> MemoryStore:
        return MemoryStore(f"{folder}/{name}")

    def vendor_view(self, store: MemoryStore) -> dict[str, VendorView]:
        cabinet = _CABINETS[store.name]
        records = cabinet.shelves[some(cabinet.live)].records
        return {key: VendorView(r.text, r.vector) for key, r in records.items()}


def test_a_nameless_store_is_private() -> None:
    one, two = vf.connect("memory:"), vf.connect("memory:")
    one.write([{"id": 1, "vector": [1.0]}])
    assert (one.count(), two.count()) == (1, 0)


def test_sparse_and_multi_vectors_are_searched() -> None:
    c = vf.connect("memory:")
    c.write(
        [
            {
                "id": i,
                "vectors": {"col": [[1.0, i], [0.0, 1.0]]},
                "sparse_vectors": {"s": {3: 1.0, i + 4: 2.0}},
            }
            for i in range(3)
        ]
    )
    kinds = {f.name: f.kind for f in c.describe().fields}
    assert kinds == {"col": Kind.MULTI, "s": Kind.SPARSE}
    assert c.describe().field("s").metric is Metric.IP
    assert c.search(SparseVector([6], [1.0]), 1, field="s")[0].id == 2
    assert c.search([[0.0, 1.0]], 1, field="col")[0].id in (0, 1, 2)
