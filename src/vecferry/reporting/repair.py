"""`RepairReport`: what a repair did, or would do."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from vecferry.model import decode_id
from vecferry.verifying import Verification

_SHOWN = 20


class RepairReport(BaseModel):
    """The outcome of `vecferry.repair`.

    Attributes:
        copied: ids (as `encode_id` writes them) of records that were missing or different and were written.
        deleted: ids of surplus records that were deleted; ``left`` those that were left alone.
        dry_run: whether nothing was done, and the lists say what would be.
        verification: the proof afterwards; with ``dry_run`` the one before.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    copied: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    dry_run: bool = False
    verification: Verification

    @property
    def ok(self) -> bool:
        """Whether the two collections are equal now."""
        return self.verification.ok

    def __str__(self) -> str:
        would = "would be " if self.dry_run else ""
        lines = [f"{'ok' if self.ok else 'NOT OK'}: {self.verification.summary}"]
        lines += _listed(f"{would}copied", self.copied)
        lines += _listed(f"{would}deleted", self.deleted)
        lines += _listed("left alone", self.left)
        if self.left:
            lines.append(f"  delete what nobody expects with: --delete-extra {len(self.left)}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"ok": self.ok, **self.model_dump(mode="json")}


def _listed(what: str, ids: tuple[str, ...]) -> list[str]:
    if not ids:
        return []
    shown = ", ".join(repr(decode_id(i)) for i in ids[:_SHOWN])
    return [f"  {len(ids):,} {what}: {shown}" + (" …" if len(ids) > _SHOWN else "")]
