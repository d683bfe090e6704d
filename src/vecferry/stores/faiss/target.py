"""What is to be written, settled before the first byte: by the target's options, and by what is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vecferry.core.durable import check_swappable
from vecferry.errors import ConfigurationError, NotFoundError, SchemaMismatchError, UnsupportedError
from vecferry.layouts.folders import INDEX_NAME, Found, find, others_in
from vecferry.model import CollectionSchema, DType, Kind, Metric
from vecferry.ports import Capabilities, check_fits
from vecferry.stores.faiss.building import file_names, header_of, losses_of, make_index
from vecferry.stores.faiss.snapshot import Snapshot
from vecferry.stores.faiss.stage import Plan

_FLOATS = frozenset({DType.FLOAT32, DType.FLOAT16, DType.INT8, DType.UINT8})
_METRICS = frozenset({Metric.COSINE, Metric.L2, Metric.IP, Metric.L1})
_TEXT_IDS = frozenset({"str"})
_NATIVE_IDS = frozenset({"int", "str"})
_ID_TYPES = {
    "plain": frozenset({"int", "str", "uuid", "tuple"}),
    "raw-pkl": frozenset({"int", "str", "uuid"}),
    "raw-json": _NATIVE_IDS,
    "raw-jsonl": _NATIVE_IDS,
}
_FRAMEWORKS = ("langchain", "llamaindex", "llamaindex-map", "llamaindex-simple")
_ANY_METADATA = ("plain", "langchain", "raw-pkl")
_JSON = frozenset({"str", "int", "float", "bool", "null", "list", "object"})
_BIT_LAYOUTS = ("plain", "raw-pkl", "raw-json", "raw-jsonl")


@dataclass(frozen=True)
class TargetOptions:
    """The options of a store that concern writing; ``None`` where the caller left them open."""

    layout: str | None = None
    factory: str | None = None
    sidecar: str = "jsonl"
    index_name: str = INDEX_NAME

    def capabilities(self) -> Capabilities:
        """FAISS stores float32 and bits; smaller numbers are kept as float32, which holds them exactly, and
        read back as what they were."""
        layout, factory = self.layout or "plain", self.factory or "Flat"
        bits = layout in _BIT_LAYOUTS and factory == "Flat"
        return Capabilities(
            kinds=frozenset({Kind.DENSE}),
            metrics=_METRICS | ({Metric.HAMMING} if bits else frozenset()),
            dtypes=_FLOATS | ({DType.BIT} if bits else frozenset()),
            id_types=_ID_TYPES.get(layout, _TEXT_IDS),
            metadata_types=None if layout in _ANY_METADATA else _JSON,
            several_fields=False,
            missing_vectors=False,
            needs_text=layout in _FRAMEWORKS,
            losses=losses_of(factory),
        )

    def plan(self, schema: CollectionSchema, url: str, name: str, old: Snapshot | None) -> Plan:
        """The plan for a new collection, or for ``old`` with changes, which keeps its layout and index.

        Raises:
            SchemaMismatchError, SpaceMismatchError: if ``schema`` does not fit ``old`` or this store.
            UnsupportedError: if ``old`` is a lossy index, or lies among what writing it anew would lose.
            ConfigurationError: for an option that does not work for this collection.
        """
        schema = schema.model_copy(update={"name": name, "losses": ()})
        layout, factory, sidecar = self.layout or "plain", self.factory or "Flat", self.sidecar
        if old is not None:
            _check_keeps(old, url)
            have = old.schema(name)
            check_fits(have, schema, url)
            layout = self.layout or (have.layout if have.layout != "none" else "plain")
            factory = self.factory or _factory_of(old)
            sidecar = "parquet" if str(old.found.sidecar).endswith(".parquet") else sidecar
            schema = have.model_copy(update={"losses": (), "fields": (old.field,)})
        if layout == "none":
            raise ConfigurationError(f'{url}: layout "none" is for reading; leave it out')
        if Path(self.index_name).name != self.index_name:
            raise ConfigurationError(f"{url}: an index name is the name of a file, not {self.index_name!r}")
        if old is None and self.index_name != INDEX_NAME and layout != "langchain":
            raise ConfigurationError(
                f"{url}: #{self.index_name} names one of LangChain's indexes; add ?layout=langchain "
                "or leave the name out"
            )
        if layout == "llamaindex-simple":
            factory = "Flat"
        _check_field(schema, TargetOptions(layout, factory).capabilities(), url)
        field = schema.fields[0]
        if factory != "Flat":
            make_index(factory, field.dim or 1, Metric.L2)
        gap = len(header_of(field.metric, layout, field.dim or 0, 0))
        files = file_names(layout, self.index_name)
        if old is not None and old.found.sidecar and old.found.layout == layout != "plain":
            files = old.found.index.name, old.found.sidecar.name  # by which the app finds them
        return Plan(schema.model_dump(mode="json"), layout, factory, sidecar, gap, files=files)


def _check_keeps(old: Snapshot, url: str) -> None:
    """Whether writing a collection anew loses nothing of it, or of what else its folder holds."""
    if old.index.loss:
        raise UnsupportedError(
            f"{url}: {old.index.loss}; changing it would lose more. Migrate it to a new target, or from "
            "the original vectors"
        )
    more = others_in(old.found.folder) if old.found.layout.startswith("llamaindex") else None
    if more is not None:
        raise UnsupportedError(
            f"{url} also holds {more}, which would be lost; change it with LlamaIndex, or migrate to a new "
            "target"
        )


def _check_field(schema: CollectionSchema, can: Capabilities, url: str) -> None:
    if len(schema.fields) != 1 or schema.fields[0].kind is not Kind.DENSE:
        names = ", ".join(f"{field.name!r} ({field.kind})" for field in schema.fields) or "none"
        raise SchemaMismatchError(f"{url} holds one dense vector field, not {names}; choose one of them")
    field = schema.fields[0]
    bits = field.dtype is DType.BIT
    fits = field.metric in can.metrics and field.dtype in can.dtypes
    if not fits or bits != (field.metric is Metric.HAMMING) or (bits and (field.dim or 0) % 8):
        raise SchemaMismatchError(
            f"{url} cannot hold {field.dim} d {field.dtype} vectors under {field.metric}; it takes "
            "float32 under cosine, l2, ip or l1; bits (whole bytes, plain layout, index Flat) under hamming"
        )


def look_at(target: Path, index_name: str) -> Found | None:
    """The collection that lies where one is to be written; ``None`` if nothing does.

    Raises:
        ConfigurationError: if the path is a file or the working folder, or holds what a swap takes away.
    """
    check_swappable(target)
    if target.is_file() or target.suffix in (".faiss", ".index"):
        raise ConfigurationError(f"faiss:{target}: a collection is written as a folder; name the folder")
    if not target.is_dir() or not any(target.iterdir()):
        return None
    try:
        found = find(target, index_name=index_name)
        foreign = sorted(set(target.iterdir()) - found.files())
    except NotFoundError:
        found, foreign = None, sorted(target.iterdir())
    if found is None or foreign:
        names = ", ".join(path.name for path in foreign[:3])
        raise ConfigurationError(
            f"faiss:{target} also holds {names}, which no collection needs and a swap would take away; "
            "name another folder or move these files"
        )
    return found


def _factory_of(old: Snapshot) -> str:
    """The factory string that makes such an index again."""
    noted = old.found.manifest.get("index")
    if isinstance(noted, str):
        return noted
    settings = old.index.settings
    if "ivf_lists" in settings:
        return f"IVF{settings['ivf_lists']},Flat"
    return f"HNSW{settings['hnsw_m']}" if "hnsw_m" in settings else "Flat"
