"""scripts/release looks at all that a release takes; the container, the hooks and the hosted run call what is here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import activation

ROOT = Path(__file__).parents[2]


class Clone:
    """A repository with what scripts/release reads, ready for a release."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in (
            "activation.control",
            "META.json",
            "CHANGELOG.md",
            "python/activation/__init__.py",
            "scripts/release",
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        self.git("init", "--quiet")
        log = "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2030-01-02\n\n### Added\n\n- All of it.\n"
        (folder / "CHANGELOG.md").write_text(log)
        for name in ("activation.control", "META.json", "python/activation/__init__.py"):
            self.change(name, activation.__version__, "1.2.3")
        self.commit()

    def git(self, *arguments: str) -> str:
        person = {f"GIT_{who}_{what}": "a@acme.dev" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        environment = {**os.environ, **person, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        result = subprocess.run(
            ["git", *arguments], cwd=self.folder, env=environment, check=True, capture_output=True, text=True
        )
        return result.stdout.strip()

    def change(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "One")

    def release(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        person = {"GIT_COMMITTER_NAME": "Ada", "GIT_COMMITTER_EMAIL": "ada@acme.dev"}
        command = [sys.executable, "scripts/release", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env={**os.environ, **person}, check=False, capture_output=True, text=True
        )


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_a_release(clone: Clone) -> None:
    """Looked at, it leaves nothing; made, there is a tag that is annotated; it is not made twice."""
    looked = clone.release("--check")
    assert (looked.returncode, looked.stdout) == (0, "v1.2.3 can be released.\n") and clone.git("tag") == ""
    made = clone.release()
    assert made.returncode == 0 and "git push origin v1.2.3" in made.stdout, made.stderr
    assert clone.git("cat-file", "-t", "v1.2.3") == "tag"
    assert clone.git("rev-parse", "v1.2.3^{commit}") == clone.git("rev-parse", "HEAD")
    again = clone.release()
    assert again.returncode == 1 and "there is a tag v1.2.3 already" in again.stderr
    assert clone.release("1.2.4").returncode == 2


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("META.json", '"version": "1.2.3"', '"version": "1.2.2"', "META.json, version says 1.2.2"),
        ("META.json", "activation--1.2.3.sql", "activation--1.2.2.sql", "META.json, file says 1.2.2"),
        ("python/activation/__init__.py", "1.2.3", "1.2.2", "__init__.py says 1.2.2, activation.control says 1.2.3"),
        ("activation.control", "1.2.3", "1.3", "activation.control says 1.3, which is no version"),
        ("CHANGELOG.md", "[1.2.3] - 2030-01-02", "[1.2.3]", "has no line “## [1.2.3] - YYYY-MM-DD”"),
        ("CHANGELOG.md", "[Unreleased]\n", "[Unreleased]\n\n- More.\n", "still has something under Unreleased"),
    ],
)
def test_what_stands_in_the_way(clone: Clone, name: str, old: str, new: str, said: str) -> None:
    clone.change(name, old, new)
    assert "not committed" in clone.release().stderr
    clone.commit()
    refused = clone.release()
    assert refused.returncode == 1 and said in refused.stderr and "not committed" not in refused.stderr
    assert clone.git("tag") == ""


def test_a_way_from_the_last_release(clone: Clone) -> None:
    clone.git("tag", "v1.2.2")
    assert "extension/activation--1.2.2--1.2.3.sql is missing" in clone.release().stderr
    delta = clone.folder / "extension" / "activation--1.2.2--1.2.3.sql"
    delta.parent.mkdir()
    delta.write_text("SELECT 1;\n")
    clone.commit()
    assert clone.release().returncode == 0


def test_the_container_is_made_by_with_env() -> None:
    """What it installs stands in scripts/with-env, once; whether the image can be built is not seen here."""
    steps = [
        line.split(maxsplit=1) for line in (ROOT / "Containerfile").read_text().splitlines() if line and line[0] != "#"
    ]
    assert [word for word, _ in steps] == ["FROM", "WORKDIR", "COPY", "RUN", "CMD"]
    (run,) = [rest for word, rest in steps if word == "RUN"]
    program, *command = run.split()
    assert os.access(ROOT / program, os.X_OK) and program == "scripts/with-env" and command[0] == "pytest"
    target = json.loads(dict(steps)["CMD"])[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    image, release = dict(steps)["FROM"].split(":")
    assert image == "debian" and re.search(rf"^ +{release}\)", (ROOT / program).read_text(), re.MULTILINE)


def test_hosted_runs_and_hooks_run_what_is_here() -> None:
    """Whatever they call exists, and they say nothing of their own about how it is done."""
    called = re.findall(r"^ +(?:- run|entry): (.*)$", (ROOT / ".github/workflows/ci.yml").read_text(), re.MULTILINE)
    called += re.findall(r"^ +entry: (.*)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.MULTILINE)
    ours = [command for command in called if not command.startswith("apt-get")]
    assert ".ci/run" in ours and len(ours) == 5
    assert all(os.access(ROOT / command.split()[0], os.X_OK) for command in ours)
    lint = (ROOT / "scripts/lint").read_text()
    for command in ours[2:]:
        assert re.search(rf"^{re.escape(command.removeprefix('scripts/with-env '))} \|\|", lint, re.MULTILINE), command
