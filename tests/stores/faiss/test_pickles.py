"""Pickles that want more than to be read: each is refused with a typed error, and nothing of it runs."""

from __future__ import annotations

import builtins
import datetime as dt
import decimal
import os
import pickle
import pickletools
import struct
import subprocess
import uuid
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.faiss.support import SAMPLES
from vecferry.errors import CorruptDataError, UnsafePickleError
from vecferry.layouts.folders.pickles import read_pickle
from vecferry.stores.faiss import FaissStore

CANARY = "VECFERRY_CANARY"


class Reduced:
    """Pickles as a call of ``function`` with ``arguments``, and whatever may follow."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> Any:
        return self.parts


TOUCH = f"touch {CANARY}"
CALLS = {
    "os.system": Reduced(os.system, (TOUCH,)),
    "subprocess.Popen": Reduced(subprocess.Popen, (("touch", CANARY),)),
    "subprocess.call": Reduced(subprocess.call, (("touch", CANARY),)),
    "eval": Reduced(builtins.eval, (f"open({CANARY!r}, 'w')",)),
    "exec": Reduced(builtins.exec, (f"open({CANARY!r}, 'w')",)),
    "open": Reduced(builtins.open, (CANARY, "w")),
    "getattr": Reduced(getattr, ("", "join")),
    "__import__": Reduced(builtins.__import__, ("antigravity",)),
    "compile": Reduced(builtins.compile, ("1", "x", "eval")),
    "map": Reduced(map, (os.system, (TOUCH,))),
    "apply through a reduce": Reduced(Reduced, (os.system, (TOUCH,))),
    "nested in a list": [1, {"a": [Reduced(os.system, (TOUCH,))]}],
    "as a dict item": Reduced(dict, (), None, None, iter([("k", Reduced(os.system, (TOUCH,)))])),
    "pickle in a pickle": Reduced(pickle.loads, (pickle.dumps(Reduced(os.system, (TOUCH,))),)),
    "numpy load": Reduced(np.load, (CANARY,)),
    "numpy object array": np.array([{"a": Reduced(os.system, (TOUCH,))}], dtype=object),
    "numpy object array, harmless": np.array([object], dtype=object),
    "numpy structured": np.zeros(1, dtype=[("a", "f4")]),
    "a module's function": Reduced(os.path.join, ("a", "b")),
    "a class": decimal.Context,
    "type": Reduced(type, ("X", (), {})),
    "a terabyte": Reduced(bytearray, (10**12,)),
    "an exception": ValueError("x"),
    "a slice": Reduced(slice, (1,)),
}


def g(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def s(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


OPCODES = {
    "protocol 0 os.system": b"cos\nsystem\n(S'" + TOUCH.encode() + b"'\ntR.",
    "posix.system": b"cposix\nsystem\n(S'" + TOUCH.encode() + b"'\ntR.",
    "INST": b"(S'" + TOUCH.encode() + b"'\nios\nsystem\n.",
    "OBJ": b"(" + g("os", "system") + s(TOUCH) + b"o.",
    "NEWOBJ": b"\x80\x04" + g("os", "system") + s(TOUCH) + b"\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04" + g("datetime", "date") + b")}" + s("year") + b"K\x01s\x92.",
    "STACK_GLOBAL": b"\x80\x04" + s("os") + s("system") + b"\x93" + s(TOUCH) + b"\x85R.",
    "STACK_GLOBAL, dotted": b"\x80\x04" + s("datetime") + s("datetime.__class__") + b"\x93.",
    "STACK_GLOBAL, dotted to builtins": b"\x80\x04" + s("datetime") + s("sys.modules") + b"\x93.",
    "STACK_GLOBAL of numbers": b"\x80\x04K\x01K\x02\x93.",
    "STACK_GLOBAL of a memo": b"\x80\x04" + s("os") + b"\x94" + s("system") + b"\x94h\x00h\x01\x93.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT2": b"\x80\x02\x83\x01\x00.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "PERSID": b"Pos.system\n.",
    "BINPERSID": b"\x80\x02" + s("x") + b"Q.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "READONLY_BUFFER": b"\x80\x05\x97\x98.",
    "BUILD a list": b"\x80\x04]}" + s("__class__") + b"K\x01sb.",
    "BUILD a name": b"\x80\x04" + g("datetime", "datetime") + b"N}" + s("now") + b"K\x01s\x86b.",
    "BUILD our table": b"\x80\x04" + g("uuid", "UUID") + b"N}" + s("int") + b"K\x01s\x86b.",
    "REDUCE a value": b"\x80\x04K\x01)R.",
    "REDUCE without a tuple": b"\x80\x04" + g("datetime", "date") + b"]R.",
    "our own modules": b"\x80\x04" + g("vecferry.layouts.folders.inert", "lookup") + b".",
    "a codec": b"\x80\x02" + g("_codecs", "decode") + s("x") + s("rot13") + b"\x86R.",
    "a document's class attribute": b"\x80\x04" + g("langchain.schema", "Document.__init__") + b".",
    "numpy's ctypes": b"\x80\x04" + g("numpy.ctypeslib", "load_library") + b".",
    "functools.partial": b"\x80\x04" + g("functools", "partial") + b".",
    "operator.attrgetter": b"\x80\x04" + g("operator", "attrgetter") + s("system") + b"\x85R.",
    "copyreg._reconstructor": b"\x80\x02" + g("copyreg", "_reconstructor") + b".",
    "a second pickle behind the first": b"\x80\x04" + g("os", "system") + b"0K\x01.",
}

DAMAGED = {
    "empty": b"",
    "no end": b"\x80\x04K\x01",
    "no value": b"\x80\x04.",
    "a value too many": b"\x80\x04K\x01K\x02.",
    "an unknown opcode": b"\x80\x04\xff.",
    "a memo entry that is not there": b"\x80\x04h\x05.",
    "a memo number beyond all bounds": b"\x80\x04K\x01r\xff\xff\xff\xffj\xfe\xff\xff\xff\x86.",
    "a string of 2**60 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"abc.",
    "bytes of 4 GiB": b"\x80\x04B\xff\xff\xff\xffabc.",
    "an integer of 2 GiB": b"\x80\x02\x8b\xff\xff\xff\x7fabc.",
    "a decimal integer of a million digits": b"L" + b"9" * 10**6 + b"L\n.",
    "a mark that was never set": b"\x80\x04K\x01u.",
    "items in a number": b"\x80\x04K\x01(K\x02K\x03u.",
    "an odd dict": b"\x80\x04}(K\x01u.",
    "an unhashable key": b"\x80\x04}(]K\x01u.",
    "not a date": b"\x80\x04" + g("datetime", "date") + b"K\x01\x85R.",
    "not a decimal": b"\x80\x04" + g("decimal", "Decimal") + s("x") + b"\x85R.",
    "a key nested 100,000 deep": b"\x80\x04})" + b"\x85" * 100_000 + b"K\x01s.",
    "a frozen set nested 100,000 deep": b"\x80\x04" + b"(" * 2 + b")" + b"\x85" * 100_000 + b"\x91.",
    "a UUID without a number": b"\x80\x04" + g("uuid", "UUID") + b")\x81}b.",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "metadata.pkl"


def refused(path: Path, data: bytes, error: type[Exception]) -> None:
    """By itself, and as a sidecar of a real index, through the store."""
    path.write_bytes(data)
    with pytest.raises(error):
        read_pickle(path)
    refused_by_store(path, data, error)


def refused_by_store(path: Path, data: bytes, error: type[Exception]) -> None:
    path.write_bytes(data)
    (path.parent / "faiss.index").write_bytes((SAMPLES / "raw_faiss_pkl" / "faiss.index").read_bytes())
    with pytest.raises(error):
        list(FaissStore(path.parent).scan())
    langchain = path.parent / "lc"
    langchain.mkdir()
    (langchain / "index.faiss").write_bytes((path.parent / "faiss.index").read_bytes())
    (langchain / "index.pkl").write_bytes(data)
    with pytest.raises(error):
        list(FaissStore(langchain, layout="langchain").scan())
    assert not list(path.parent.rglob(CANARY))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_refused(name: str, protocol: int, place: Path) -> None:
    try:
        data = pickle.dumps(CALLS[name], protocol=protocol)
    except TypeError:
        pytest.skip("this Python cannot write it")
    refused(place, data, CorruptDataError)


@pytest.mark.parametrize("name", OPCODES)
def test_an_opcode_is_refused(name: str, place: Path) -> None:
    refused(place, OPCODES[name], UnsafePickleError)


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named(name: str, place: Path) -> None:
    refused(place, DAMAGED[name], CorruptDataError)


def test_the_canary_would_sing(place: Path) -> None:
    """The corpus is real: Python's own unpickler runs it."""
    pickle.loads(pickle.dumps(CALLS["os.system"]))
    assert Path(CANARY).exists()


def test_a_value_that_unfolds_without_bound_is_refused(place: Path) -> None:
    bomb: Any = "x" * 1000
    for _ in range(30):
        bomb = [bomb] * 10
    refused_by_store(place, pickle.dumps([{"id": i, "a": bomb} for i in range(200)]), CorruptDataError)


def test_a_value_that_contains_itself_is_refused(place: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    refused_by_store(place, pickle.dumps([{"id": i, "a": loop} for i in range(200)]), CorruptDataError)


@given(st.binary(max_size=200))
def test_noise_is_data_or_an_error(data: bytes) -> None:
    path = Path(os.environ["PYTEST_NOISE"])
    path.write_bytes(b"\x80\x04" + data)
    try:
        read_pickle(path)
    except CorruptDataError:
        return


@pytest.fixture(autouse=True, scope="module")
def _noise(tmp_path_factory: pytest.TempPathFactory) -> Any:
    os.environ["PYTEST_NOISE"] = str(tmp_path_factory.mktemp("noise") / "x.pkl")
    yield
    del os.environ["PYTEST_NOISE"]


@given(st.data())
def test_a_damaged_sample_is_data_or_an_error(data: Any) -> None:
    original = (SAMPLES / "langchain_faiss" / "index.pkl").read_bytes()[:3000]
    broken = bytearray(original)
    for _ in range(data.draw(st.integers(1, 5))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    path = Path(os.environ["PYTEST_NOISE"])
    path.write_bytes(bytes(broken))
    try:
        read_pickle(path)
    except CorruptDataError:
        return


PLAIN: dict[str, Any] = {
    "int": 3,
    "negative": -(2**70),
    "float": 0.1,
    "text": "päivää 안녕 😀\ud800",
    "long": "x" * 70_000,
    "bytes": b"\x00\xff",
    "none": None,
    "yes": True,
    "no": False,
    "list": [1, [2, []], ()],
    "tuple": (1, "a", (2,), (1, 2, 3, 4)),
    "dict": {"a": {1: 2}, (1, 2): 3},
    "set": {1, 2, 3},
    "datetime": dt.datetime(2026, 1, 2, 3, 4, 5, 6),
    "aware": dt.datetime(2026, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=9))),
    "utc": dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
    "zone": dt.datetime(2026, 1, 2, tzinfo=ZoneInfo("Asia/Seoul")),
    "date": dt.date(2026, 1, 2),
    "time": dt.time(1, 2),
    "delta": dt.timedelta(days=2),
    "decimal": decimal.Decimal("1.50"),
    "uuid": uuid.UUID(int=7),
    "shared uuid": [uuid.UUID(int=9)] * 2,
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", PLAIN)
def test_plain_values_come_back_as_they_were(name: str, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(PLAIN[name], protocol=protocol))
    if protocol < 2 and "uuid" in name:  # as a bare object, which is refused
        with pytest.raises(UnsafePickleError):
            read_pickle(path)
        return
    found = read_pickle(path)
    assert found == PLAIN[name] and type(found) is type(PLAIN[name])


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_numpy_numbers_become_numbers(protocol: int, tmp_path: Path) -> None:
    value = {
        "f4": np.float32(0.5),
        "i8": np.int64(-3),
        "b": np.bool_(True),
        "u": np.str_("é"),
        "array": np.arange(6, dtype=">i2").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": np.zeros(0),
    }
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    assert read_pickle(path) == {
        "f4": 0.5,
        "i8": -3,
        "b": True,
        "u": "é",
        "array": [[0, 1, 2], [3, 4, 5]],
        "fortran": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
        "empty": [],
    }


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(values, st.integers(0, 5), st.booleans())
def test_what_python_pickles_is_read_alike(value: Any, protocol: int, optimized: bool) -> None:
    data = pickle.dumps(value, protocol=protocol)
    path = Path(os.environ["PYTEST_NOISE"])
    path.write_bytes(pickletools.optimize(data) if optimized else data)
    assert read_pickle(path) == value


def test_streamed_items_are_handed_over_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps([{"n": i, "same": "word"} for i in range(2500)]))
    seen: list[int] = []
    assert read_pickle(path, keep=lambda item: seen.append(item["n"])) == [None] * 2500
    assert seen == list(range(2500))
