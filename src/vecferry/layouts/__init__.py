"""How a record lies in a payload or a row: plain, langchain, llamaindex, both.

Knows nothing of any store: a payload is a dict of JSON values.
"""

from vecferry.layouts.base import Columns, Layout, differing_copies, find_layout, recognise_layout
from vecferry.layouts.envelope import PAYLOAD_KEY, open_envelope, seal

__all__ = [
    "PAYLOAD_KEY",
    "Columns",
    "Layout",
    "differing_copies",
    "find_layout",
    "open_envelope",
    "recognise_layout",
    "seal",
]
