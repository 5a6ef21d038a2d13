"""The documentation: Python blocks run, command lines name what the program knows, and names and paths exist."""

import ast
import itertools
import keyword
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "goca"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = ("|", ">", ">>", "<", "&&", "||", ";", "&")
NAMING = {"docs/architecture.md": ["src"], "CONTRIBUTING.md": ["src", "tests"]}
"""Documents that name modules, classes and functions, or files to touch, and the folders that define these."""
FOREIGN = {
    *("__call__", "encode_prompt", "DiffusionPipeline", "__setattr__", "TorchFunctionMode"),
    *("scaled_dot_product_attention", "replace", "NAME", "slow", "python", "math", "goca", "make"),
}
"""Names in those documents that are not goca's, and placeholders."""
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
    known = {"python", "python weights", "python ray", "bash", "console", "json", "text", "toml", "bibtex", "math"}
    known.add("python notebook")  # tests/test_tour.py runs these
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


def paths_in(text: str) -> Iterator[str]:
    """Files, with their endings, and folders, with a slash behind; placeholders in capitals are left out."""
    for word in re.findall(r"(?<![\w./:-])[\w./-]+(?:\.(?:pyi?|md|json|toml)|/)(?![\w./*])", text):
        if not re.search("NAME|DIR", word):
            yield word


def inline_code(document: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", document.read_text()))


def names_in(document: Path) -> Iterator[str]:
    """Identifiers, dotted ones too, that are all that stands between backticks, but for arguments of a call."""
    for code in inline_code(document):
        match = re.fullmatch(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:\(.*\))?", code)
        if match and not keyword.iskeyword(code) and not code.endswith((".py", ".pyi", ".md", ".toml", ".yml")):
            yield match[1]


class Definitions(ast.NodeVisitor):
    """The names that some modules define, and those of each class, its bases' included."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.names: set[str] = set()
        self.members: dict[str, set[str]] = {}
        self._bases: dict[str, list[str]] = {}
        self._classes: list[str] = []
        for file in files:
            self.visit(ast.parse(file.read_text()))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._define(node.name)
        self.members[node.name] = set()
        self._bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
        self._classes.append(node.name)
        self.generic_visit(node)
        self._classes.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._define(node.name)
        self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> None:
        self.names.add(node.arg)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self._define(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Store):
            self._define(node.attr)

    def _define(self, name: str) -> None:
        self.names.add(name)
        if self._classes:
            self.members[self._classes[-1]].add(name)

    def has(self, dotted: str) -> bool:
        owner, *attributes = dotted.split(".")
        if owner in self.members and attributes:
            return any(attributes[0] in self.members[name] for name in self._family(owner))
        return {owner, *attributes} - FOREIGN <= self.names

    def _family(self, name: str) -> Iterator[str]:
        if name in self.members:
            yield name
            for base in self._bases[name]:
                yield from self._family(base)


@pytest.mark.parametrize(("document", "folders"), NAMING.items(), ids=NAMING)
def test_names_in_a_document_exist(document, folders):
    definitions = Definitions(file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    names = set(names_in(ROOT / document))
    assert names
    assert sorted(name for name in names if not definitions.has(name)) == []


@pytest.mark.parametrize("document", NAMING)
def test_paths_in_a_document_exist(document):
    """Below the root, beside the document or, however short, in the package."""
    package = {"/" + path.relative_to(ROOT).as_posix() for path in SOURCE.rglob("*")}
    paths = {path.rstrip("/") for code in inline_code(ROOT / document) for path in paths_in(code)}
    elsewhere = {path for path in paths if not any((home / path).exists() for home in (ROOT, (ROOT / document).parent))}
    assert paths
    assert sorted(path for path in elsewhere if not any(known.endswith("/" + path) for known in package)) == []


@pytest.mark.parametrize("document", ["README.md", "docs/architecture.md"])
def test_rooms_in_a_tree_exist(document):
    rooms = {path for block in blocks(ROOT / document) if block.info == "text" for path in paths_in(block.code)}
    assert "segmenter.py" in rooms
    assert sorted(room for room in rooms if not any((home / room).exists() for home in (SOURCE, ROOT))) == []
