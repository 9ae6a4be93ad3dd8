# ruff: noqa: E501
"""docs/prompts: what they have an agent run works on the example app's schema, sends nothing, and leaves the mode alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import Database

ROOT = Path(__file__).parents[2]
PROMPTS = ROOT / "docs" / "prompts"
#: Users of the last hundred days; who creates a project in their first two days stays twice as often. Before there were loops.
HISTORY = """
    SELECT setseed(0.5);
    INSERT INTO users (email, name, activation_link, password_hash, created_at)
    SELECT 'u' || g || '@acme.dev', CASE WHEN g <> 43 THEN 'User ' || g END, 'https://acme.dev/new', '', now() - interval '15 days' - random() * interval '100 days'
      FROM generate_series(1, 1500) g;
    INSERT INTO projects (owner_id, name, created_at)
    SELECT id, 'blog', created_at + interval '1 hour' + random() * interval '2 days' FROM users WHERE random() < 0.4;
    INSERT INTO api_keys (user_id, name, key_hash, created_at)
    SELECT u.id, 'script', sha256(u.email::bytea), u.created_at + interval '8 days' + random() * interval '5 days'
      FROM users u LEFT JOIN projects p ON p.owner_id = u.id WHERE random() < CASE WHEN p.id IS NULL THEN 0.2 ELSE 0.5 END;
    ANALYZE;
"""


def blocks(language: str) -> list[str]:
    """The code of the prompt, a text for each block."""
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", (PROMPTS / "AGENTS.md").read_text(), re.M | re.S)
    return found


def alembic(url: str, folder: Path, target: str) -> None:
    command = [
        sys.executable,
        "-m",
        "alembic.config",
        "-c",
        str(folder / "fastapi_app" / "alembic.ini"),
        "upgrade",
        target,
    ]
    subprocess.run(command, env={**os.environ, "DATABASE_URL": url}, check=True)


def url(db: Database) -> str:
    return f"postgresql://postgres@/{db.name}?host={db.cluster.socket.replace('/', '%2F')}&port={db.cluster.port}"


@pytest.fixture
def app(db: Database) -> Database:
    """The example app's database as an agent finds it, with people and what they have done."""
    alembic(url(db), ROOT / "examples", "0002")
    db.sql(HISTORY)
    alembic(url(db), ROOT / "examples", "head")
    return db


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The example app as an agent leaves it: with the prompt's migration and test."""
    migration, test = blocks("python")
    shutil.copytree(
        ROOT / "examples" / "fastapi_app", tmp_path / "fastapi_app", ignore=shutil.ignore_patterns("test_*")
    )
    (tmp_path / "fastapi_app" / "migrations" / "versions" / "0004_nudge.py").write_text(migration)
    (tmp_path / "fastapi_app" / "tests" / "test_nudge.py").write_text(test)
    return tmp_path


def test_both_say_the_same() -> None:
    _, front, body = (PROMPTS / "activation.mdc").read_text().split("---\n", 2)
    assert body.strip() == (PROMPTS / "AGENTS.md").read_text().strip()
    rule = yaml.safe_load(front)
    assert set(rule) == {"description", "globs", "alwaysApply"}
    assert rule["description"] and rule["alwaysApply"] is False, "a rule that the agent asks for when it fits"


def test_it_is_forbidden_and_not_done() -> None:
    never = (PROMPTS / "AGENTS.md").read_text().split("\n## ")[1]
    assert never.startswith("Never")
    for function in ("set_mode", "start", "stop", "resume", "resolve", "enroll"):
        assert re.search(rf"`(activation\.)?{function}`", never), function
        assert not any(f"activation.{function}(" in block for block in blocks("sql") + blocks("python")), function


def run(db: Database, block: str) -> list[list[tuple[Any, ...]]]:
    """The rows of each of a block's statements."""
    with db.connect() as connection:
        cursor = connection.execute(block.encode())
        rows = []
        while True:
            rows.append(cursor.fetchall())
            if not cursor.nextset():
                return rows


def test_sql(app: Database) -> None:
    found = blocks("sql")
    assert len(found) == 8
    look, tables, suggested, reached, rehearsed, defined, differs, seen = [run(app, block) for block in found]
    assert look[0] and look[1][0][:2] == ("mode", "capture") and all(state != "ok" for _, state, _, _ in look[2])
    assert ("projects", "owner_id", True, "created_at") in tables[0]
    assert {row[:3] for row in tables[0]} >= {("api_keys", "user_id", True), ("user_actions", "user_id", True)}
    assert suggested[0][0][1].startswith("create a project within") and suggested[0][0][8] is True
    assert "define_loop('projects_in" in suggested[1][0][1]
    users, people, (half, nearly_all) = reached[0][0]
    assert users == 1500 and 500 < people < 700 and half < nearly_all
    assert {(row[0], row[3]) for row in rehearsed[0]} >= {("mail", "sent"), ("mail", "held_out"), ("enrolled", None)}
    assert defined == [[(1,)], [(1,)]]
    assert any("timeout" in part and (before, after) == ("3 days", "5 days") for _, part, before, after in differs[0])
    for name, previewed in (("User 42", seen[0]), ("there", seen[1])):
        ((_, branch, recipient, subject, body_text, _, problem),) = previewed
        assert (branch, problem) == ("otherwise", None)
        assert recipient.endswith("@acme.dev") and "project" in subject
        assert f"Hi {name}," in body_text and "https://acme.dev/new" in body_text
    assert seen[2]
    assert app.sql("SELECT * FROM activation.message_log") == []
    assert app.value("SELECT state FROM activation.status WHERE component = 'mode'") == "capture"


def test_the_migration_is_the_sql(db: Database, project: Path) -> None:
    alembic(url(db), project, "head")
    template = "SELECT subject, html, body_text FROM activation.template WHERE name = 'first_project_nudge'"
    before = db.sql(template)
    (written,) = [block for block in blocks("sql") if "activation.define_loop(" in block]
    assert run(db, written) == [[(2,)], [(1,)]], "the template again, and no new version of the loop"
    assert db.sql(template) == before * 2


def test_the_test_passes(project: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", str(project)]
    path = os.pathsep.join([str(project), os.environ["PYTHONPATH"]])
    environment = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "2 passed" in result.stdout, result.stdout + result.stderr
