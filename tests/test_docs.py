"""The documentation does not rot: links lead somewhere, symbols are where pages say, pictures have their commands, and
commands take the flags that pages give them."""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import re
import runpy
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from minillm import cli
from tests.conftest import ROOT
from tests.test_structure import ROOMS

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
NAMES = (
    "gqa",
    "rope",
    "positions",
    "rmsnorm",
    "swiglu",
    "moe",
    "mla",
    "sparse-attention",
    "linear_attention",
    "state-spaces",
    "per_layer_embeddings",
    "hyper-connections",
    "kv-cache",
    "quantisation",
    "sampling",
)
CONCEPTS = [DOCS / f"{name}.md" for name in NAMES]
PICTURES = sorted((DOCS / "pictures").iterdir())
CHECKED = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
SECTIONS = ["Formula", "Picture", "Families", "Code", "Experiment", "Pitfalls"]
# The lists of the architecture page, and how many steps each may have.
STEPS = {
    "From the command line to text": range(2, 13),
    "From file to parameter": range(2, 9),
    "From examples to an adapter": range(2, 7),
    "I want to change …": [10],
}
MAX_LINES, MAX_PICTURE_BYTES = 120, 150_000

LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
CODE_LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+\.py)\)(?:\s+`([A-Za-z_][\w.]*)`)?")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """A page without its blocks of code."""
    return FENCED.sub("", path.read_text())


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dangling(path: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    found = []
    for target in LINK.findall(prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (path.parent / name).resolve() if name else path
        if not place.exists() or (anchor and anchor not in anchors(place)):
            found.append(target)
    return found


@functools.cache
def symbols(path: Path) -> set[str]:
    """Names that a file defines: functions, classes, constants, and `Class.name` of methods, fields and attributes."""
    found: set[str] = set()

    def visit(nodes: list[ast.stmt], owner: str) -> None:
        for node in nodes:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(f"{owner}{node.name}")
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{node.name}.")
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(f"{owner}{node.target.id}")
            elif isinstance(node, ast.Assign):
                found.update(f"{owner}{each.id}" for each in node.targets if isinstance(each, ast.Name))

    visit(ast.parse(path.read_text()).body, "")
    return found


def misplaced(path: Path) -> list[str]:
    """The symbols next to a page's links to code that are not in the file."""
    pairs = [(target, symbol) for target, symbol in CODE_LINK.findall(prose(path)) if symbol]
    vocabulary = {name for file in (ROOT / "minillm/spec").glob("*.py") for name in symbols(file)}
    unknown = [name for name in re.findall(r"`spec\.([A-Z][\w.]*)`", prose(path)) if name not in vocabulary]
    return unknown + [symbol for target, symbol in pairs if symbol not in symbols((path.parent / target).resolve())]


def sections(path: Path) -> tuple[str, dict[str, str]]:
    """What stands before a page's first section, and each section by its heading."""
    title, *parts = re.split(r"^## ", path.read_text(), flags=re.M)
    return title, {heading: text for heading, _, text in (part.partition("\n") for part in parts)}


def blocks(path: Path, language: str) -> list[str]:
    return [text for kind, text in FENCED.findall(path.read_text()) if kind == language]


def commands(path: Path) -> list[list[str]]:
    """What a page's sh blocks run of this project, split into words from the module or script on."""
    found = []
    for line in "".join(blocks(path, "sh")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] and words[0].endswith("python"):
            words = words[2:] if words[1] == "-m" else words[1:]
            if words[0].startswith(("minillm.", "examples/")):
                found.append(words)
    return found


def printed(program: str, *arguments: str) -> str:
    """What a module's or an example's command prints, run in this process."""
    out, code = io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(sys, "argv", [program, *arguments])
        patch.setattr(sys, "path", [*sys.path, str(ROOT / "examples")])
        try:
            if program.startswith("minillm."):
                code = cli.command(program.removeprefix("minillm."))([*arguments])
            else:
                runpy.run_path(str(ROOT / program), run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
    assert code == 0
    return out.getvalue()


@functools.cache
def help_of(program: str, *command: str) -> str:
    """What --help prints; an example that reads no flags has none."""
    flagless = program.startswith("examples/") and "argparse" not in (ROOT / program).read_text()
    return "" if flagless else printed(program, *command, "--help")


def strange_flags(words: list[str]) -> list[str]:
    """The flags of a command that its --help does not list. `minillm.bench` has commands of its own."""
    command = words[1:2] if words[0] == "minillm.bench" and words[1:] and words[1][0] != "-" else []
    known = set(re.findall(r"--[a-z][\w-]*", help_of(words[0], *command)))
    return [word for word in words[1:] if word.startswith("--") and word.partition("=")[0] not in known]


@pytest.mark.parametrize("path", CHECKED, ids=relative)
def test_links_lead_somewhere(path: Path) -> None:
    assert dangling(path) == []


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_symbols_are_where_pages_say(path: Path) -> None:
    assert misplaced(path) == []


@pytest.mark.parametrize("path", CHECKED, ids=relative)
def test_commands_exist_and_take_their_flags(path: Path) -> None:
    for words in commands(path):
        assert strange_flags(words) == [], words


NUMBER = re.compile(r"[\d.,]*\d(?:e-?\d+)?")


@pytest.mark.parametrize("path", CONCEPTS, ids=relative)
def test_experiments_still_print_what_pages_say(path: Path) -> None:
    """The words exactly; of numbers, which another processor may round otherwise, 5 in 100, or 1e-6 where they are
    errors of rounding themselves."""
    experiment = path.read_text().partition("## Experiment")[2]
    words = shlex.split(re.findall(r"```sh\npython (.*?)```", experiment, re.S)[0].replace("\\\n", " "))
    said = re.findall(r"```text\n(.*?)```", experiment, re.S)[0]
    torch.manual_seed(0)
    out = printed(*words) if words[0] != "-m" else printed(*words[1:], "--kernels", "reference")
    assert NUMBER.sub("N", said) in NUMBER.sub("N", out)
    start = NUMBER.sub("N", out).index(NUMBER.sub("N", said))
    skipped = NUMBER.sub("N", out)[:start].count("N")
    values = [[float(each.replace(",", "")) for each in NUMBER.findall(text)] for text in (said, out)]
    assert values[0] == pytest.approx(values[1][skipped : skipped + len(values[0])], rel=0.05, abs=1e-6)


@pytest.mark.parametrize("picture", PICTURES, ids=relative)
def test_pictures_are_shown_and_made_by_a_command(picture: Path) -> None:
    assert picture.suffix == ".png"
    assert picture.stat().st_size <= MAX_PICTURE_BYTES
    showing = [path for path in PAGES if f"](pictures/{picture.name})" in prose(path)]
    assert showing
    for path in showing:
        assert any(relative(picture) in words for words in commands(path)), path


@pytest.mark.parametrize("path", CONCEPTS, ids=relative)
def test_a_concept_page_has_what_it_promises(path: Path) -> None:
    assert path.read_text().count("\n") <= MAX_LINES
    title, parts = sections(path)
    assert title.startswith("# ")
    assert list(parts) == SECTIONS
    assert "```\n" in parts["Formula"]
    assert "arXiv:" in parts["Formula"]
    assert re.search(r"!\[[^\]]+\]\(pictures/", parts["Picture"])  # with words for those who do not see it
    assert "`spec" in parts["Families"]
    assert len([symbol for _, symbol in CODE_LINK.findall(parts["Code"]) if symbol]) >= 2
    assert "```sh\n" in parts["Experiment"]
    assert "```text\n" in parts["Experiment"]
    assert parts["Pitfalls"].count("\n- ") >= 3


def test_the_architecture_page_is_short_steps_to_symbols() -> None:
    """Each step has a link to code with the symbol to read; `test_symbols_are_where_pages_say` looks it up."""
    _, parts = sections(DOCS / "architecture.md")
    assert list(parts) == [*STEPS]
    for heading, allowed in STEPS.items():
        steps = re.findall(r"^(\d+)\. (.*(?:\n +.*)*)", parts[heading], re.M)
        assert [int(number) for number, _ in steps] == [*range(1, len(steps) + 1)], heading
        assert len(steps) in allowed, heading
        assert [step for _, step in steps if not any(symbol for _, symbol in CODE_LINK.findall(step))] == []


def test_the_picture_shows_the_rooms() -> None:
    """Each in the row that `ROOMS` puts it in, from the bottom up."""
    svg = "{http://www.w3.org/2000/svg}"
    picture = ElementTree.parse(DOCS / "architecture.svg")
    shown: dict[float, list[str]] = {}
    for text in picture.findall(f".//{svg}g[@class='rooms']/{svg}text"):
        shown.setdefault(float(text.attrib["y"]), []).append(str(text.text))
    assert [shown[height] for height in sorted(shown, reverse=True)] == ROOMS


def test_the_index_lists_every_page() -> None:
    listed = set(LINK.findall(prose(DOCS / "README.md")))
    assert {path.name for path in PAGES} - {"README.md"} <= listed
