"""One definition: keywords, both commands, the docs table and the identity derive from `Settings`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import vecferry as vf
from vecferry.cli import app
from vecferry.errors import ConfigurationError
from vecferry.pipeline.settings import CallSettings, options_of, read_settings, settings_table
from vecferry.testing import sample_records

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


def flags(command: str) -> set[str]:
    import typer

    found: Any = typer.main.get_command(app)
    parameters = found.get_command(None, command).params
    return {option for parameter in parameters for option in parameter.opts if option.startswith("--")}


def test_both_commands_take_every_setting() -> None:
    wanted = {option.flag for _, option in options_of(CallSettings) if option.flag}
    assert wanted <= flags("plan") and wanted <= flags("migrate")
    assert flags("migrate") - flags("plan") == {"--quiet"}


def test_a_plan_takes_what_a_migration_takes(tmp_path: Path) -> None:
    source = f"jsonl:{tmp_path / 'in.jsonl'}"
    vf.connect(source).write(sample_records(5))
    words = [
        "plan",
        source,
        f"jsonl:{tmp_path / 'out.jsonl'}",
        "--dedupe",
        "text",
        "--on-error",
        "quarantine",
    ]
    words += [
        "--max-rejected",
        "0.5",
        "--no-verify",
        "--workers",
        "2",
        "--budget",
        "usd_per_month=3",
        "--json",
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and json.loads(done.stdout)["count"] == 5, done.output


def test_every_setting_is_documented_and_the_docs_are_up_to_date() -> None:
    assert settings_table() in DOCS.read_text(encoding="utf-8"), "run: python -m vecferry.pipeline.settings"
    for name, field in CallSettings.model_fields.items():
        assert field.description and len(field.description) > 10, name


def test_the_identity_is_what_decides_what_is_written() -> None:
    def keep(record: vf.VectorRecord) -> vf.VectorRecord:
        return record

    before = read_settings({}).identity()
    same: dict[str, Any] = {"workers": 3, "batch_size": 7, "retry_seconds": 5, "sample": 3, "verify": False}
    assert read_settings(same).identity() == before
    changes: dict[str, Any] = {
        "mode": "upsert", "where": {"a": 1}, "transform": keep, "fields": ["x"], "metric": "l2",
        "space": "m", "reembed": "never", "embed_field": "x", "long_text": "split", "chunk_size": 9,
        "chunk_overlap": 1,
        "dedupe": "text", "layout": "langchain", "source_options": {"a": 1}, "target_options": {"a": 1},
    }  # fmt: skip
    assert set(changes) == set(before), "each of them, and nothing else"
    for name, value in changes.items():
        now = read_settings({name: value}).identity()
        assert {key for key in now if now[key] != before[key]} == {name}
        assert json.loads(json.dumps(now)) == now
    hidden = read_settings({"target_options": {"api_key": "abc"}}).identity()
    assert hidden == before, "a secret is no part of what is stored"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "append"}, "mode"),
        ({"batch_size": 0}, "batch_size"),
        ({"metric": "cosinus"}, "metric"),
        ({"retry_seconds": -1}, "retry_seconds"),
        ({"min_overlap": 1.5}, "min_overlap"),
        ({"bogus": 1}, r"no argument 'bogus'; there are mode, where"),
    ],
)
def test_a_wrong_setting_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        read_settings(options)
