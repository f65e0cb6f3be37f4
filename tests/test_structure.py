"""The shape of the project: who may import whom, where family names may stand, how long a file may be."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minillm import spec
from minillm.families import FAMILIES
from minillm.hub import DEMO
from tests.conftest import ROOT

PACKAGE = {
    **{f"minillm.{path.stem}": path for path in (ROOT / "minillm").glob("*.py") if path.stem != "__init__"},
    **{f"minillm.families.{path.stem}": path for path in (ROOT / "minillm/families").glob("*.py")},
    **{f"minillm.ops.cpu.loops.{path.stem}": path for path in (ROOT / "minillm/cpu").glob("*.py")},
    **{f"minillm.kernels.{path.stem}": path for path in (ROOT / "kernels").glob("*.py")},
    **{f"minillm.weights.{path.stem}": path for path in (ROOT / "weights").glob("*.py")},
}

# Layers from the bottom up: a module imports from layers below its own, or from its own.
LAYERS = [
    [
        "minillm.spec",
        "minillm.config",
        "minillm.ops.visibility",
        "minillm.weights",
        "minillm.kernels",
        "minillm.ops.cpu.loops",
        "minillm.model.balance",
        "minillm.explain.equations",
        "minillm.report.output",
        "minillm.report.picture",
        "minillm.report.page",
        "minillm.lens.script",
    ],
    [
        "minillm.ops.reference",
        "minillm.ops.routing",
        "minillm.model.rope",
        "minillm.families",
        "minillm.text.chat",
        "minillm.text.tokenizer",
    ],
    [
        "minillm.report.observe",
        "minillm.model.cache",
        "minillm.engine.sampling",
        "minillm.hub",
        "minillm.model.held",
        "minillm.text.pieces",
    ],
    ["minillm.engine.completion"],
    ["minillm.ops.grouped"],
    ["minillm.ops.triton", "minillm.ops.cpu.ops", "minillm.ops.cpu.matrices"],
    ["minillm.ops"],
    ["minillm.model.linear"],
    ["minillm.model.norm", "minillm.model.attention", "minillm.model.ffn", "minillm.model.mla", "minillm.model.moe"],
    ["minillm.model.decoder"],
    ["minillm.engine.graphs", "minillm.engine.tape"],
    [
        "minillm.engine.inference",
        "minillm.engine.choosing",
        "minillm.report.measure",
        "minillm.bench.worker",
        "minillm.lens.forward",
    ],
    ["minillm.engine.batch", "minillm.engine.speculative"],
    ["minillm.engine.scoring"],
    ["minillm.engine.decoding"],
    ["minillm.llm"],
    ["minillm.loading"],
    [
        "minillm.bench.cases",
        "minillm.report.roofline",
        "minillm.report.cost",
        "minillm.bench.weights",
        "minillm.bench.report",
        "minillm.bench.hooks",
        "minillm.cli",
    ],
    [
        "minillm.bench.kernels",
        "minillm.bench.engines",
        "minillm.bench.plot",
        "minillm.bench.profile",
        "minillm.bench.throughput",
        "minillm.lens.sampling",
        "minillm.lens.text",
        "minillm.lens.plot",
        "minillm.lens.page",
    ],
    ["minillm.diff.names"],
    ["minillm.diff.trace"],
    ["minillm.diff.compare"],
    ["minillm.diff.alternatives"],
    ["minillm.diff.replay", "minillm.diff.causes", "minillm.diff.signs", "minillm.diff.report"],
    [
        "minillm.generate",
        "minillm.explain",
        "minillm.quantize",
        "minillm.perplexity",
        "minillm.bench",
        "minillm.diff",
        "minillm.lens",
        "minillm.harness",
        "minillm.harness.model",
    ],
    ["minillm.routes.measure", "minillm.routes.drift", "minillm.routes.plot", "minillm.routes.script"],
    ["minillm.routes.record", "minillm.routes.text", "minillm.routes.page"],
    ["minillm.routes"],
    ["minillm.plan.devices", "minillm.plan.layouts", "minillm.plan.card"],
    ["minillm.plan.storage"],
    ["minillm.plan.fit"],
    ["minillm.plan.budget", "minillm.plan.report"],
    ["minillm.plan.plot"],
    ["minillm.plan"],
]


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, lazily or not."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def level(module: str) -> int | None:
    for index, names in enumerate(LAYERS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return index
    return None


@pytest.mark.parametrize("module", PACKAGE)
def test_dependencies_flow_one_way(module: str) -> None:
    own = level(module)
    assert own is not None, f"{module} has no layer"
    for name in imports(PACKAGE[module]):
        below = level(name)
        assert below is None or below <= own, f"{module} imports {name}"
        if module.startswith("minillm.kernels"):
            known = {"torch", "triton", "minillm", *sys.stdlib_module_names}
            assert name.split(".")[0] in known, name
            assert not name.startswith("minillm") or name.startswith("minillm.kernels"), name
        if module.startswith("minillm.weights"):
            assert not name.startswith("minillm") or name.startswith("minillm.weights"), name
        if name.split(".")[0] in ("tests", "examples"):
            pytest.fail(f"{module} imports {name}")
        if name.split(".")[0] == "transformers":
            assert module in ("minillm.bench.engines", "minillm.diff")
    if module == "minillm.spec":
        assert "torch" not in imports(PACKAGE[module])


def test_no_family_name_outside_its_folder() -> None:
    """Names of families as values of code; prose in docstrings may speak of them. Peers are named where they are: one
    of them has a family's name in its own."""
    pattern = re.compile(
        r"\b(llama|mistral|mixtral|qwen|deepseek|gemma|phi|olmo|gpt_neox|gpt_oss|plamo)[0-9a-z_]*\b", re.I
    )
    allowed = {"llama3", "Llama3Scaling", "philox"}
    peer = re.compile(r"llama[.]cpp|llama-cpp-python|llama_cpp|(--)?llama[-_]python")
    for module, path in PACKAGE.items():
        if module.startswith("minillm.families") or module == "minillm.bench.worker":  # full of the peer's functions
            continue
        tree = ast.parse(path.read_text())
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            texts = [getattr(node, name, None) for name in ("id", "name", "attr", "arg")]
            if isinstance(node, ast.Constant) and id(node) not in docstrings:
                texts.append(node.value)
            for text in texts:
                if isinstance(text, str) and (match := pattern.search(peer.sub("", text))):
                    assert match.group() in allowed, f"{module}: {text!r}"


def test_files_and_functions_stay_short() -> None:
    files = [*PACKAGE.values(), *(ROOT / "examples").glob("*.py")]
    for path in files:
        text = path.read_text()
        assert text.count("\n") <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 50, f"{path}: {node.name}"


def test_every_module_and_family_says_what_it_is() -> None:
    for module, path in PACKAGE.items():
        assert ast.get_docstring(ast.parse(path.read_text())), module
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
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {script}"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "site/minillm/__init__.py"), "3"]


def test_a_spec_is_read_at_a_glance() -> None:
    kinds = [kind for kind in vars(spec).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    assert {kind.__name__ for kind in kinds if len(dataclasses.fields(kind)) > 12} == set()
