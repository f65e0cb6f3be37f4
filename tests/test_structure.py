"""The shape of the project: who may import whom, where family names may stand, how long a file may be."""

from __future__ import annotations

import ast
import dataclasses
import functools
import graphlib
import json
import re
import subprocess
import sys
from pathlib import Path

from minillm import cli, spec
from minillm.families import FAMILIES
from minillm.hub import DEMO
from tests.conftest import ROOT

FOLDERS = {"minillm": ROOT / "minillm", "minillm.kernels": ROOT / "kernels", "minillm.weights": ROOT / "weights"}
PACKAGE = {
    ".".join([name, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"): path
    for name, folder in FOLDERS.items()
    for path in folder.rglob("*.py")
}

# The rooms from the bottom up. A module imports from its own room and from rooms above it in this list: what stands in
# one line is side by side, and does not know of each other.
ROOMS = [
    ["guard"],
    ["spec", "config", "kernels", "weights"],
    ["families", "ops", "text"],
    ["model"],
    ["engine"],
    ["media"],
    ["prompts"],
    ["llm", "hub"],
    ["adapters", "parallel"],
    ["loading", "cli"],
    ["report"],
    [
        "generate",
        "serve",
        "tune",
        "quantize",
        "merge",
        "perplexity",
        "explain",
        "plan",
        "diff",
        "lens",
        "routes",
        "bench",
        "harness",
    ],
]
COMMANDS = ROOMS[-1]
FLOOR = {f"minillm.{room}": floor for floor, rooms in enumerate(ROOMS) for room in rooms}
FLOOR["minillm.__main__"] = len(ROOMS)
# Where another implementation runs, beside ours to be compared.
USES_TRANSFORMERS = ("minillm.report.reference",)


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, lazily or not."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & set(PACKAGE) or {node.module}
    return found


def room(module: str) -> str:
    """The folder, or the file of `minillm/` itself, that a module lies in."""
    return ".".join(module.split(".")[:2])


def may_import(module: str, name: str) -> bool:
    """Whether a module may import this one."""
    own, top, other = room(module), name.split(".")[0], room(name)
    if top in ("tests", "examples") or (top == "transformers" and module not in USES_TRANSFORMERS):
        return False
    if other in FLOOR and other != own and FLOOR[other] >= FLOOR[own]:
        return False
    if own in ("minillm.kernels", "minillm.weights") and top == "minillm":
        return other in (own, own if own == "minillm.kernels" else "minillm.guard")
    if own == "minillm.kernels":
        return top in {"torch", "triton", *sys.stdlib_module_names}
    return top != "torch" or own not in ("minillm.spec", "minillm.guard", "minillm.config")


def test_dependencies_flow_one_way() -> None:
    modules = sorted(set(PACKAGE) - {"minillm"})
    assert [module for module in modules if room(module) not in FLOOR] == [], "these lie in no room; name it in ROOMS"
    found = [(module, name) for module in modules for name in imports(PACKAGE[module]) if not may_import(module, name)]
    assert found == [], "which module imports what it may not"


def test_no_two_modules_import_each_other() -> None:
    """Inside the rooms too: the modules can be put in an order in which each imports only what stands before it."""
    graph = {module: {name for name in imports(path) if name in PACKAGE} - {module} for module, path in PACKAGE.items()}
    graph["minillm"] = set()  # whose names are all that anybody takes of it
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the modules


# What lies in no command is imported with all commands blocked, and then each command with the others blocked.
ALONE = """
import importlib, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[:2] in [["minillm", command] for command in commands if command != alone]:
            raise ImportError(name + " is blocked")
commands, alone = {commands!r}, None
sys.meta_path.insert(0, Blocked())
for alone, names in {modules!r}.items():
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            print(name, "needs another command:", error)
    for name in [name for name in sys.modules if name.split(".")[:2] == ["minillm", alone]]:
        del sys.modules[name]  # and of those that follow it is blocked
    vars(sys.modules["minillm"]).pop(alone, None)
"""


def test_every_command_can_be_deleted() -> None:
    """Everything else imports with its files gone: what no command has, and each command without all others. In one
    process: what torch takes to be imported would be most of it."""
    modules: dict[str, list[str]] = {"": []} | {command: [] for command in COMMANDS}
    for module in sorted(PACKAGE):
        command = room(module).removeprefix("minillm.")
        if command in COMMANDS:
            modules[command].append(module)
        elif not module.endswith("__main__"):
            modules[""].append(module)
    assert all(modules.values())
    script = ALONE.format(commands=COMMANDS, modules=modules)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_folders_stay_small() -> None:
    """A room is seen at one glance. `families/` holds a file for each family."""
    for folder in {path.parent for path in PACKAGE.values()}:
        limit = 12 if folder == ROOT / "minillm" else 20
        files = [path for path in folder.iterdir() if path.is_file()]
        assert len(files) <= limit or folder.name == "families", f"{folder}: {len(files)} files"


def test_every_command_is_listed() -> None:
    """In `python -m minillm`, each with its file or folder."""
    assert sorted(cli.COMMANDS) == sorted(COMMANDS)


def test_no_family_name_outside_its_folder() -> None:
    """Names of families as values of code; prose in docstrings may speak of them. Peers are named where they are: one
    of them has a family's name in its own, and so have marks that models write."""
    kinds = {re.split(r"\d", kind)[0].rstrip("_") for kind in FAMILIES} - {"step"}  # a word of any text
    stems = "|".join(sorted(kinds, key=len, reverse=True))
    pattern = re.compile(rf"\b({stems})(([0-9_]|(?-i:[A-Z][a-z]))[0-9a-z_]*)?\b", re.I)
    allowed = {"llama3", "Llama3Scaling", "dots", "gpt"}  # a scaling, products, who speaks in ShareGPT's files

    peer = re.compile(r"llama[.]cpp|llama-cpp-python|llama_cpp|(--)?llama[-_]python|<[|]plamo:.*")
    for module, path in PACKAGE.items():
        if module.startswith("minillm.families") or module in (
            "minillm.bench.worker",
            "minillm.bench.crowd",
        ):  # full of the peer's functions
            continue
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree(path))
            if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree(path)):
            texts = [getattr(node, name, None) for name in ("id", "name", "attr", "arg")]
            if isinstance(node, ast.Constant) and id(node) not in docstrings:
                texts.append(node.value)
            for text in texts:
                if isinstance(text, str) and (match := pattern.search(peer.sub("", text))):
                    assert match.group() in allowed, f"{module}: {text!r}"


def test_files_and_functions_stay_short() -> None:
    files = [*PACKAGE.values(), *(ROOT / "examples").glob("*.py")]
    for path in files:
        assert path.read_text().count("\n") <= 300, path
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 50, f"{path}: {node.name}"


def test_every_module_and_family_says_what_it_is() -> None:
    for module, path in PACKAGE.items():
        assert ast.get_docstring(tree(path)), module
    for name, family in FAMILIES.items():
        assert name == "llama" or (family.__doc__ or "").startswith("Llama, except"), name


def test_the_demo_fits_the_package() -> None:
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 2_000_000
    assert json.loads((DEMO / "config.json").read_text())["model_type"] == "llama"


def test_a_wheel_holds_everything(tmp_path: Path) -> None:
    """Built, unpacked elsewhere and run from there: the mapped folders and the demo are inside."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    copy = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(copy)], check=True)
    subprocess.run([*command, str(copy)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("minillm-*.whl")
    script = "import minillm; print(minillm.__file__, len(minillm.load().generate('Once', max_new_tokens=3).token_ids))"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(tmp_path / "site")], check=True)
    for folder, within in (("minillm", ""), ("weights", "minillm/"), ("kernels", "minillm/")):
        for path in (copy / folder).rglob("*.py"):
            assert (tmp_path / "site" / within / path.relative_to(copy)).exists(), path.relative_to(copy)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {script}"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "site/minillm/__init__.py"), "3"]


def test_a_spec_is_read_at_a_glance() -> None:
    kinds = [kind for kind in vars(spec).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    assert {kind.__name__ for kind in kinds if len(dataclasses.fields(kind)) > 12} == set()
