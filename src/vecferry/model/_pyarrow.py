"""The one place of this room that imports pyarrow."""

from vecferry.errors import MissingDependencyError

try:
    import pyarrow as pa
except ImportError as error:
    raise MissingDependencyError("Arrow and Parquet", "parquet") from error

__all__ = ["pa"]
