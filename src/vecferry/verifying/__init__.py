"""Proving that a target holds what it should: digests, vectors within a tolerance, searches."""

from vecferry.model.canonical import canonical_rows
from vecferry.model.equality import EXACT, LOSSY, Tolerance, tolerance_of
from vecferry.verifying.comparing import compare, differing, field_rules
from vecferry.verifying.digest import Digest
from vecferry.verifying.receipt import End, Receipt
from vecferry.verifying.result import Difference, FieldProof, SearchProof, Verification
from vecferry.verifying.verifier import Verifier

__all__ = [
    "EXACT",
    "LOSSY",
    "Difference",
    "Digest",
    "End",
    "FieldProof",
    "Receipt",
    "SearchProof",
    "Tolerance",
    "Verification",
    "Verifier",
    "canonical_rows",
    "compare",
    "differing",
    "field_rules",
    "tolerance_of",
]
