"""The documentation's own code: Python blocks run, `goca` command lines name what the program knows."""

import ast
import itertools
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("|", ">", ">>", "<", "&&", "||", ";", "&")
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<code>.*?)^ *```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    document: Path
    line: int
    info: str
    code: str

    def __str__(self):
        return f"{self.document.name}:{self.line}"


def blocks(document: Path) -> Iterator[Block]:
    text = document.read_text()
    for fence in FENCE.finditer(text):
        line = text.count("\n", 0, fence.start("code")) + 1
        yield Block(document, line, fence["info"].strip(), textwrap.dedent(fence["code"]))


def command_lines(block: Block) -> Iterator[str]:
    """The `goca ...` commands of a shell block, prompt stripped, continued lines joined."""
    for line in block.code.replace("\\\n", " ").splitlines():
        if found := re.match(r"\s*(?:\$ )?(goca\b.*)", line):
            yield found[1]


ALL = [block for document in DOCUMENTS for block in blocks(document)]
NEEDS_WEIGHTS = [block for block in ALL if block.info == "python weights"]
COMMANDS = [
    pytest.param(line, id=f"{block}: {line[:40]}")
    for block in ALL
    if block.info in ("bash", "console")
    for line in command_lines(block)
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_blocks_run_in_order(document, tmp_path, monkeypatch):
    """One namespace and one folder for each document, as for a reader who types it all in."""
    monkeypatch.chdir(tmp_path)
    if (ROOT / "examples").exists():
        shutil.copytree(ROOT / "examples", tmp_path / "examples")
    namespace = {"__name__": "documentation"}
    for block in blocks(document):
        if block.info == "python":
            # Blank lines in front make a traceback name the document's own line.
            code = compile("\n" * (block.line - 1) + block.code, str(document), "exec")
            exec(code, namespace)


@pytest.mark.parametrize("block", NEEDS_WEIGHTS, ids=str)
def test_blocks_that_need_weights_are_python(block):
    ast.parse(block.code, filename=str(block))


def test_every_block_says_what_it_is():
    """A misspelt language would hide a block from the tests above."""
    known = {"python", "python weights", "bash", "console", "json", "text", "toml", "bibtex", "mermaid"}
    assert {str(block): block.info for block in ALL if block.info not in known} == {}


@pytest.mark.parametrize("line", COMMANDS)
def test_command_lines_name_real_commands_and_options(line):
    from goca.cli.main import app

    command = typer.main.get_command(app)
    words = list(itertools.takewhile(lambda word: word not in SHELL, shlex.split(line, comments=True)))[1:]
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    if getattr(command, "commands", None):
        assert words in ([], ["--help"], ["--version"]), f"goca has no command {words[0]}"
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    options = [word.split("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)]
    assert set(options) <= known | {"--help"}, f"{command.name} knows {sorted(known)}"
