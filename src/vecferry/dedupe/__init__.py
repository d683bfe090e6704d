"""De-duplication: rules, the stage that applies them, the report that accounts for them.

>>> from vecferry.dedupe import Dedupe, dedupe
>>> rule = Dedupe(by="text", keep="newest", timestamp="metadata:created_at")
>>> dedupe("qdrant://localhost:6333/kb", rule, dry_run=True)  # doctest: +SKIP
"""

from vecferry.dedupe.inplace import InPlace, dedupe
from vecferry.dedupe.report import DedupeReport, Example, RuleReport
from vecferry.dedupe.rules import Dedupe
from vecferry.dedupe.stage import DedupeStage, dedupe_stages

__all__ = [
    "Dedupe",
    "DedupeReport",
    "DedupeStage",
    "Example",
    "InPlace",
    "RuleReport",
    "dedupe",
    "dedupe_stages",
]
