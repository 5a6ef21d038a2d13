"""The documentation site: what is laid out for generators, what is found wrong in what they built, its API pages."""

import importlib.util
import re
from pathlib import Path

import pytest

import goca

ROOT = Path(__file__).parent.parent


@pytest.fixture
def website(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("website", ROOT / "docs/website.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path / "repository")
    return module


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_pages_and_what_they_link_to_are_laid_out_where_they_lie(website, tmp_path):
    write(
        website.ROOT,
        {
            "README.md": "[guide](docs/guide.md#top) ![](docs/cat.png) [web](https://example.org/x.md)",
            "docs/guide.md": '[source](../src/a.py) [gone](gone.md) `[no](../training/code.md)` <img src="dog.png">\n\n'
            '```python weights\n"[no](../training/code.md)"\n```\n',
            "docs/cat.png": "cat",
            "docs/dog.png": "dog",
            "docs/api/deep.md": "[more](../../training/README.md)",
            "src/a.py": "a = 1",
            "src/b.py": "b = 2",
            "training/README.md": "# Training",
            "training/code.md": "nobody links to it",
        },
    )
    website.lay_out(tmp_path / "pages")
    laid_out = {path.relative_to(tmp_path / "pages").as_posix() for path in (tmp_path / "pages").rglob("*.*")}
    assert laid_out == {
        *("README.md", "docs/guide.md", "docs/cat.png", "docs/dog.png", "docs/api/deep.md", "src/a.py"),
        "training/README.md",
    }
    assert '\n```python\n"[no](../training/code.md)"\n```\n' in (tmp_path / "pages/docs/guide.md").read_text()


def test_what_was_laid_out_before_is_gone(website, tmp_path):
    write(website.ROOT, {"README.md": "# Front"})
    write(tmp_path / "pages", {"old.md": "# Old"})
    website.lay_out(tmp_path / "pages")
    assert [path.name for path in (tmp_path / "pages").iterdir()] == ["README.md"]


def test_a_site_that_loads_from_elsewhere_or_lacks_files_is_refused(website, tmp_path):
    site = write(
        tmp_path / "site",
        {
            "a.html": '<a href="https://example.org">out</a> <a href="b.html#part">in</a> <a href="#here">here</a>',
            "b.html": '<script src="https://example.org/x.js"></script> <a href="gone.html">gone</a>',
            "c.html": '<img src=big%20cat.png> <img alt="x" src="data:image/png;base64,A">',
            "big cat.png": "cat",
            "404.html": '<a href="/nowhere.html">home</a>',
        },
    )
    assert sorted(fault.removeprefix(f"{site}/") for fault in website.faults(site)) == [
        "b.html: gone.html is not there",
        "b.html: loads https://example.org/x.js",
    ]
    with pytest.raises(SystemExit, match=r"gone\.html is not there"):
        website.main("check", str(site))


def test_every_public_name_is_on_a_page_of_the_api():
    text = "\n".join(path.read_text() for path in (ROOT / "docs/api").glob("*.md"))
    assert set(goca.__all__) <= set(re.findall(r"^::: goca\.(\w+)$", text, re.MULTILINE))
