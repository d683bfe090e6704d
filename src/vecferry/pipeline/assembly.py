"""From settings to stages: check ▸ transform ▸ check ▸ dedupe ▸ embed ▸ dedupe by vector ▸ fit.

The rooms of embedding and de-duplication are imported only by the jobs that use them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecferry.errors import ConfigurationError, SpaceMismatchError
from vecferry.model import CollectionSchema, EmbeddingSpace, RecordBatch, VectorField
from vecferry.pipeline.job import JobFile
from vecferry.pipeline.settings import Settings
from vecferry.pipeline.stages import ConformToSchema, RejectNonFinite, Transform
from vecferry.ports import ShouldStop, Stage, WriteMode

if TYPE_CHECKING:
    from vecferry.dedupe import DedupeStage
    from vecferry.embedding import Choice, EmbedReport, EmbedStage

log = logging.getLogger("vecferry.job")

SURVEYED = 2048
"""Records from which the cost of embedding is extrapolated."""
_TIMED = 32
_CHECKED = 64


@dataclass
class StageSet:
    """The stages of one run.

    Attributes:
        embed: the embedding stage, if texts are embedded.
        dedupe: the stages that drop duplicates.
    """

    stages: list[Stage]
    embed: EmbedStage | None = None
    dedupe: list[DedupeStage] = field(default_factory=list)

    def close(self) -> None:
        """Release models, connections and caches."""
        if self.embed is not None:
            self.embed.close()

    def listen(self, should_stop: ShouldStop) -> None:
        """Let waits for a provider end when the job is to stop, and keep its events in the log."""
        if self.embed is not None:
            self.embed.listen(should_stop, lambda event: log.warning("embedding: %s", event))

    def reports(self, file: JobFile) -> dict[str, Any]:
        """What the stages have to report: ``summaries`` for people, ``details`` as JSON.

        Duplicates are also listed in a file of the job.
        """
        summaries: dict[str, str] = {}
        details: dict[str, Any] = {}
        for stage in self.dedupe:
            audit = file.folder / f"{stage.name}-removed.jsonl"
            stage.write_audit(file.connection, audit)
            report = stage.report(file.connection)
            summaries[stage.name] = str(report)
            details[stage.name] = {**report.to_dict(), "audit": str(audit)}
        if self.embed is not None:
            summaries["embedding"], details["embedding"] = _embedded(self.embed.report())
        return {"summaries": summaries, "details": details}


def _embedded(report: EmbedReport) -> tuple[str, dict[str, Any]]:
    cost = "" if report.usd is None else f", ${report.usd:,.4f}"
    summary = (
        f"{report.embedded:,} texts in {report.space}, {report.hit_rate:.0%} from the cache, "
        f"{report.tokens:,} tokens{cost}"
    )
    shown = {"space": str(report.space), "switches": [str(switch) for switch in report.switches]}
    return summary, {**asdict(report), **shown}


def choose_embedder(settings: Settings, *, fingerprint: str | None, start: int = 0) -> Choice | None:
    """The embedder of the whole job: the first alternative that answers, or the one it began with.

    Args:
        fingerprint: of the space that an unfinished job began with.
        start: the first alternative to try.

    Raises:
        EmbedderExhausted: if none answers.
    """
    if settings.embed is None:
        return None
    from vecferry.embedding import Choice, choose_alternative, resolve

    if isinstance(settings.embed, list | tuple):
        return choose_alternative(settings.embed, fingerprint=fingerprint, start=start)
    return Choice(resolve(settings.embed), 0, ())


def source_space(settings: Settings, schema: CollectionSchema) -> EmbeddingSpace | None:
    """What ``space=`` declares, checked against the dimension of the source's vectors."""
    if settings.space is None:
        return None
    from vecferry.embedding import declared_space

    dims = {f.dim for f in schema.fields if f.dim}
    return declared_space(settings.space, dims.pop() if len(dims) == 1 else None)


def embed_stage(
    settings: Settings, choice: Choice, schema: CollectionSchema, folder: Path | None = None
) -> EmbedStage:
    """The stage that fills the field ``settings.embed_field``."""
    from vecferry.embedding import Budget, EmbedStage

    budget = settings.budget
    if isinstance(budget, Mapping):
        try:
            budget = Budget(**budget)
        except TypeError as error:
            raise ConfigurationError(f"budget: {error}; e.g. {{'usd_per_month': 100}}") from None
    stage = EmbedStage(
        choice.embedder,
        field=settings.embed_field or "",
        reembed=settings.reembed,
        on_no_text=settings.on_no_text,
        long_text=settings.long_text,
        chunk_size=settings.chunk_size,
        chunk_overlap=settings.chunk_overlap or 0,
        cache=settings.cache,
        job_cache_path=None if folder is None else folder / "embeddings.sqlite",
        budget=budget,
        job="" if folder is None else folder.name,
    )
    filled = stage.target_field(schema)
    stage.source_space = next((f.space for f in schema.fields if f.name == filled.name), None)
    return stage


def check_declared(stage: EmbedStage, batch: RecordBatch | None, settings: Settings) -> list[str]:
    """Embed a few of the source's texts again, where ``space=`` declares the space that is embedded into.

    Raises:
        SpaceMismatchError: if the stored vectors are not of that space.
    """
    if batch is None or settings.space is None or stage.source_space != stage.space:
        return []
    from vecferry.embedding import check_source

    check = check_source(stage.embedder, batch.slice(0, _CHECKED), stage.field)
    if check is None:
        return []
    if not check.agrees:
        raise SpaceMismatchError(
            f"space= says {stage.space}, but the stored vectors differ: {check.detail}"
        )
    return [f"space= holds: {check.detail}"]


def embedded_field(stage: EmbedStage | None, schema: CollectionSchema) -> VectorField | None:
    """The field the stage fills, as the target gets it."""
    return None if stage is None or stage.reembed == "never" else stage.target_field(schema)


class EmbedSurvey:
    """What embedding will take, extrapolated from the first records."""

    def __init__(self, stage: EmbedStage) -> None:
        from vecferry.embedding import Survey

        self.stage, self._survey = stage, Survey()
        self._texts: list[str] = []
        self.first: RecordBatch | None = None

    def add(self, batch: RecordBatch) -> None:
        """Look at a batch of the source."""
        self.first = self.first or batch
        self._survey += self.stage.survey(batch)
        if len(self._texts) < _TIMED:
            self._texts += [text for text in batch.text_list if text]

    def estimate(self, settings: Settings, total: int | None) -> dict[str, Any]:
        """Tokens, costs and time, in words."""
        if not self._survey.records:
            return {}
        result = self.stage.estimate(self._survey, total, self._texts[:_TIMED])
        counts = result.survey
        shown: dict[str, Any] = {
            "texts to embed": f"{counts.to_embed:,}",
            "tokens": f"{'' if result.exact else 'about '}{counts.tokens:,}",
            "cost": "unknown"
            if result.usd is None
            else f"${result.usd:,.4f} (prices of {result.prices_as_of})",
        }
        if result.seconds is not None:
            shown["time"] = f"about {result.seconds:,.0f} s of embedding"
        if counts.too_long:
            shown["longer than the model reads"] = f"{counts.too_long:,}: {settings.long_text}"
        if counts.no_text:
            shown["without text"] = f"{counts.no_text:,}: {settings.on_no_text}"
        return shown


def assemble(
    settings: Settings,
    names: Mapping[str, str],
    target: CollectionSchema,
    *,
    keep_text: bool,
    uuid_ids: bool,
    embed: EmbedStage | None,
    folder: Path,
) -> StageSet:
    """All stages in order."""
    stages: list[Stage] = [RejectNonFinite()]
    if settings.transform is not None:
        stages += [Transform(settings.transform), RejectNonFinite()]
    early, late = _dedupe(settings, embeds=embed is not None)
    for stage in (*early, *late):
        stage.bind_job(folder)
    stages += early
    if embed is not None:
        stages.append(embed)
    stages += late
    stages.append(ConformToSchema(target, names, keep_text=keep_text, uuid_ids=uuid_ids))
    return StageSet(stages, embed, [*early, *late])


def _dedupe(settings: Settings, *, embeds: bool) -> tuple[list[DedupeStage], list[DedupeStage]]:
    """The stages before and behind the embedding."""
    if settings.dedupe is None:
        return [], []
    from vecferry.dedupe import dedupe_stages

    stages = dedupe_stages(settings.dedupe, embeds=embeds)
    if settings.write_mode is WriteMode.REPLACE and any(stage.against_target for stage in stages):
        raise ConfigurationError(
            "against_target=True drops what the target holds, which mode='replace' then removes; "
            "use mode='upsert', or leave against_target out"
        )
    if not embeds:
        return stages, []
    return [s for s in stages if not s.needs_vectors], [s for s in stages if s.needs_vectors]


def dedupes_ids(settings: Settings) -> bool:
    """Whether a rule removes records whose id stands twice."""
    if settings.dedupe is None:
        return False
    from vecferry.dedupe import dedupe_stages

    return any(rule.by == "id" for stage in dedupe_stages(settings.dedupe) for rule in stage.rules)


def id_rule_of_backup(settings: Settings) -> Any:
    """The rule by which a backup, too, keeps one record of each id; ``None`` if it must keep all.

    Behind another rule, or a transform that may change ids, it would not be the same record.
    """
    if settings.dedupe is None or settings.transform is not None:
        return None
    from vecferry.dedupe import dedupe_stages

    rule = dedupe_stages(settings.dedupe)[0].rules[0]
    return rule if rule.by == "id" else None
