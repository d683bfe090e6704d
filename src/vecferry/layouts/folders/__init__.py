"""Collections as folders of files: LangChain's and LlamaIndex's, hand-written ones, and vecferry's own.

Knows no index format: vectors are the business of the store that reads and writes the index file.
"""

from vecferry.layouts.folders.entries import Entry, LineFile, Numbering, Sidecar, encode_lines
from vecferry.layouts.folders.found import INDEX_NAME, MANIFEST, NAMES, Found, find
from vecferry.layouts.folders.jsonwalk import JsonWalk
from vecferry.layouts.folders.langchain import write_langchain
from vecferry.layouts.folders.llamaindex import DOCSTORE, VECTORS, others_in, read_simple
from vecferry.layouts.folders.llamaindex_write import write_llamaindex, write_simple_vectors
from vecferry.layouts.folders.own import JSONL, PARQUET, write_parquet
from vecferry.layouts.folders.scripts import write_raw

__all__ = [
    "DOCSTORE",
    "INDEX_NAME",
    "JSONL",
    "MANIFEST",
    "NAMES",
    "PARQUET",
    "VECTORS",
    "Entry",
    "Found",
    "JsonWalk",
    "LineFile",
    "Numbering",
    "Sidecar",
    "encode_lines",
    "find",
    "others_in",
    "read_simple",
    "write_langchain",
    "write_llamaindex",
    "write_parquet",
    "write_raw",
    "write_simple_vectors",
]
