import faiss
import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Many threads on tiny indexes only wait for each other."""
    faiss.omp_set_num_threads(1)
