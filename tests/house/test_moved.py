"""What moved is found under its old name for one release, and says where it is now."""

from __future__ import annotations

from importlib import import_module

import pytest

MOVED = {
    "vecferry.records:RecordBatch": "vecferry.model:RecordBatch",
    "vecferry.records:EmbeddingSpace": "vecferry.model:EmbeddingSpace",
    "vecferry.home:home": "vecferry.core.home:home",
    "vecferry.registry:connect": "vecferry.connecting:connect",
    "vecferry.registry:STORES": "vecferry.core.registry:STORES",
    "vecferry.migration:migrate": "vecferry.api.migration:migrate",
    "vecferry.planning:Settings": "vecferry.pipeline.settings:Settings",
    "vecferry.publishing:rollback": "vecferry.api.jobs:rollback",
    "vecferry.publishing:new_tag": "vecferry.pipeline.publish:new_tag",
    "vecferry.retry:RetryPolicy": "vecferry.core.retry:RetryPolicy",
    "vecferry.reporting.metrics:PrometheusMetrics": "vecferry.contrib.prometheus:PrometheusMetrics",
    "vecferry.stores.pgvector.alembic:VectorChange": "vecferry.contrib.alembic:VectorChange",
    "vecferry.serving:as_langchain_vector_store": "vecferry.contrib.bridges:as_langchain_vector_store",
    "vecferry.testing:Peek": "vecferry.testing:VendorView",
}


@pytest.mark.parametrize("old", MOVED)
def test_the_old_name_leads_to_the_new_one(old: str) -> None:
    module, _, name = old.partition(":")
    home, _, renamed = MOVED[old].partition(":")
    with pytest.warns(DeprecationWarning, match=f"{module}.{name} is now {home}.{renamed}"):
        found = getattr(import_module(module), name)
    assert found is getattr(import_module(home), renamed)


@pytest.mark.parametrize("module", sorted({old.partition(":")[0] for old in MOVED}))
def test_what_never_was_is_no_attribute(module: str) -> None:
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = import_module(module).nothing_of_this_name
    assert not hasattr(import_module(module), "__wrapped__")
