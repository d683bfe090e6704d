import json

import pytest
from typer.testing import CliRunner

import vecferry as vf
from vecferry.dedupe import Dedupe, dedupe
from vecferry.errors import ConfigurationError, PlanError, UnsupportedError

ROWS = [
    {"id": 1, "text": "same", "vector": [1.0, 0.0], "metadata": {"at": "2024-01-01"}},
    {"id": 2, "text": "other", "vector": [0.0, 1.0], "metadata": {"at": "2024-01-01"}},
    {"id": 3, "text": "same", "vector": [1.0, 0.0], "metadata": {"at": "2024-03-01"}},
    {"id": 4, "text": "SAME ", "vector": [1.0, 0.0], "metadata": {"at": "2024-02-01"}},
]
NEWEST = Dedupe(by="text", normalize=True, keep="newest", timestamp="metadata:at")


@pytest.fixture
def url(tmp_path):
    vf.connect(f"parquet:{tmp_path / 'kb.parquet'}").write(ROWS)
    return f"parquet:{tmp_path / 'kb.parquet'}"


def ids(url):
    return sorted(r.id for r in vf.connect(url).records())


def test_a_dry_run_changes_nothing(url, tmp_path):
    done = dedupe(url, NEWEST, dry_run=True, audit=tmp_path / "audit.jsonl")
    assert ids(url) == [1, 2, 3, 4]
    assert (done.report.removed, done.deleted, done.backup) == (2, 0, None)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["removed"], line["kept"], line["keep"]) for line in lines] == [
        ("i:4", "i:3", "newest"),
        ("i:1", "i:3", "newest"),
    ]


def test_what_goes_is_backed_up_and_can_come_back(url, tmp_path):
    backup = f"parquet:{tmp_path / 'gone.parquet'}"
    before = {r.id: r for r in vf.connect(url).records()}
    done = dedupe(url, NEWEST, backup=backup)
    assert (ids(url), ids(backup), done.deleted) == ([2, 3], [1, 4], 2)
    vf.migrate(backup, url, mode="upsert").check()
    assert {r.id: r for r in vf.connect(url).records()} == before
    with pytest.raises(PlanError, match="there already"):
        dedupe(url, NEWEST, backup=backup)
    assert ids(url) == [1, 2, 3, 4]


def test_nothing_to_do_is_nothing_done(url, tmp_path):
    backup = f"parquet:{tmp_path / 'gone.parquet'}"
    done = dedupe(url, "id", backup=backup)
    assert done.deleted == 0
    assert "undo" not in str(done)
    assert not (tmp_path / "gone.parquet").exists()


def test_ids_that_stand_twice_are_refused(tmp_path):
    path = tmp_path / "kb.jsonl"
    path.write_text('{"id": 1, "text": "a", "vector": [1.0]}\n{"id": 1, "text": "b", "vector": [2.0]}\n')
    with pytest.raises(UnsupportedError, match="holds an id twice"):
        dedupe(f"jsonl:{path}", "id", backup=f"jsonl:{tmp_path / 'gone.jsonl'}")
    assert len(path.read_text().splitlines()) == 2


def test_the_password_of_the_backup_is_not_shown(url):
    done = dedupe(url, NEWEST, backup="memory://user:SECRET@host/gone-with-a-password")
    assert done.deleted == 2
    assert "SECRET" not in f"{done} {done.to_dict()}"


def test_an_audit_that_cannot_be_written_is_told_first(url, tmp_path):
    with pytest.raises(ConfigurationError, match="is a folder"):
        dedupe(url, NEWEST, dry_run=True, audit=tmp_path)


def test_a_backup_is_asked_for(url):
    with pytest.raises(ConfigurationError, match="backup"):
        dedupe(url, "text")
    with pytest.raises(ConfigurationError, match="need a target"):
        dedupe(url, Dedupe(by="text", merge="union"), dry_run=True)


def test_the_report_shows_both_sides(url):
    text = str(dedupe(url, NEWEST, dry_run=True))
    assert "2 in 1 clusters" in text
    assert "− SAME" in text
    assert "+ same" in text


def test_the_command(url, tmp_path):
    from typer import Typer

    from vecferry.cli.dedupe import dedupe as command

    app = Typer()
    app.command()(command)
    shown = CliRunner().invoke(app, [url, "--normalize", "--dry-run", "--json"])
    assert json.loads(shown.stdout)["removed"] == 2
    done = CliRunner().invoke(
        app,
        [
            url,
            "--by",
            "similar",
            "--by",
            "text",
            "--keep",
            "last",
            "--backup",
            f"jsonl:{tmp_path / 'b.jsonl'}",
        ],
    )
    assert done.exit_code == 0, done.output
    assert ids(url) == [2, 4]
    assert CliRunner().invoke(app, [url, "--by", "taste", "--dry-run"]).exit_code == 2
