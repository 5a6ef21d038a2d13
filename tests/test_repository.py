"""Files that other programs read, and that repeat what stands elsewhere: they agree."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_workflow_runs_what_ci_runs_and_nothing_else():
    (job,) = read(".github/workflows/check.yml")["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
    versions = [step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    assert [f">={version}" for version in versions] == [PROJECT["requires-python"]]


def test_a_commit_is_checked_as_make_lint_does():
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    hooks = {re.sub(" --force-exclude$", " .", hook["entry"]) for hook in repository["hooks"]}
    lint = re.search(r"^lint: setup\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert hooks == {line.strip().replace("$(BIN)", ".venv/bin") for line in lint.splitlines()}


def test_the_citation_is_of_this_version():
    citation = read("CITATION.cff")
    facts = [citation[key] for key in ("title", "version", "license")]
    assert facts == [PROJECT[key] for key in ("name", "version", "license")]
    assert citation["abstract"] == f"{PROJECT['description']}."
    (paper,) = citation["references"]
    assert paper["url"] == PROJECT["urls"]["Paper"]


def test_the_oldest_python_that_is_named_is_the_oldest_that_is_let_in():
    versions = [name.removeprefix("Programming Language :: Python :: ") for name in PROJECT["classifiers"]]
    named = [version for version in versions if re.fullmatch(r"3\.\d+", version)]
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert named == sorted(named, key=lambda version: int(version.partition(".")[2]))


def test_the_changelog_begins_with_this_version_and_the_day_it_is_cited_by():
    releases = re.findall(r"^## \[(\d.*)\] - (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert releases[0] == (PROJECT["version"], read("CITATION.cff")["date-released"].isoformat())


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_an_issue_form_can_be_shown(path):
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form)
    ids = [part["id"] for part in form["body"]]
    assert len(ids) == len(set(ids))
    assert all(part["attributes"]["label"] for part in form["body"])
