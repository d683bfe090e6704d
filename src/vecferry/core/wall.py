"""The wall around everything that reads foreign data: whatever goes wrong behind it has a name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vecferry.core.durable import as_store_error
from vecferry.errors import CorruptDataError, VecferryError


@contextmanager
def reading_foreign(path: Path | str, *, where: str = "") -> Iterator[None]:
    """Turn every exception but ours into one that names the file, the place, and what to do.

    Args:
        where: the place in it, such as ``"row group 3"``.

    Raises:
        CorruptDataError: for whatever a reader stumbled over.
        FatalStoreError, NotFoundError: where the system refused.
    """
    place = f"{path}, {where}" if where else str(path)
    try:
        yield
    except VecferryError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise as_store_error(error, Path(path)) from error
        raise CorruptDataError(f"{place} cannot be read: {error}; restore it from a backup") from error
    except MemoryError as error:
        raise CorruptDataError(
            f"{place} asks for more memory than there is; if it is whole, read it on a larger machine"
        ) from error
    except RecursionError as error:
        raise CorruptDataError(f"{place} is nested without bound; restore it from a backup") from error
    except Exception as error:
        raise CorruptDataError(
            f"{place} cannot be read ({type(error).__name__}: {str(error)[:200]}); restore it from a backup"
        ) from error
