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
from conftest import ROOT

from minillm import spec
from minillm.families import FAMILIES
from minillm.hub import DEMO

PACKAGE = {
    **{f"minillm.{path.stem}": path for path in (ROOT / "minillm").glob("*.py") if path.stem != "__init__"},
    **{f"minillm.families.{path.stem}": path for path in (ROOT / "minillm/families").glob("*.py")},
    **{f"minillm.cpu.{path.stem}": path for path in (ROOT / "minillm/cpu").glob("*.py")},
    **{f"minillm.kernels.{path.stem}": path for path in (ROOT / "kernels").glob("*.py")},
    **{f"minillm.weights.{path.stem}": path for path in (ROOT / "weights").glob("*.py")},
}

# Layers from the bottom up: a module imports from layers below its own, or from its own.
LAYERS = [
    [
        "minillm.spec",
        "minillm.config",
        "minillm.visibility",
        "minillm.weights",
        "minillm.kernels",
        "minillm.cpu",
        "minillm.balance",
        "minillm.equations",
        "minillm.output",
        "minillm.picture",
        "minillm.page",
        "minillm.lens_script",
    ],
    ["minillm.reference", "minillm.routing", "minillm.rope", "minillm.families", "minillm.chat", "minillm.tokenizer"],
    ["minillm.observe", "minillm.cache", "minillm.sampling", "minillm.hub", "minillm.quantised", "minillm.pieces"],
    ["minillm.completion"],
    ["minillm.grouped"],
    ["minillm.triton_ops", "minillm.cpu_ops", "minillm.cpu_products"],
    ["minillm.ops"],
    ["minillm.linear"],
    ["minillm.norm", "minillm.attention", "minillm.ffn", "minillm.mla", "minillm.moe"],
    ["minillm.model"],
    ["minillm.graphs", "minillm.tape"],
    ["minillm.inference", "minillm.choosing", "minillm.measure", "minillm.bench_worker", "minillm.lens_pass"],
    ["minillm.batch", "minillm.speculative"],
    ["minillm.scoring"],
    ["minillm.decoding"],
    ["minillm.llm"],
    ["minillm.loading"],
    [
        "minillm.bench_cases",
        "minillm.roofline",
        "minillm.report",
        "minillm.bench_weights",
        "minillm.bench_report",
        "minillm.bench_hooks",
        "minillm.cli",
    ],
    [
        "minillm.bench_kernels",
        "minillm.bench_engines",
        "minillm.bench_plot",
        "minillm.bench_profile",
        "minillm.bench_throughput",
        "minillm.lens_sampling",
        "minillm.lens_text",
        "minillm.lens_plot",
        "minillm.lens_page",
    ],
    ["minillm.diff_names"],
    ["minillm.diff_trace"],
    ["minillm.diff_compare"],
    ["minillm.diff_alternatives"],
    ["minillm.diff_replay", "minillm.diff_causes", "minillm.diff_signs", "minillm.diff_report"],
    [
        "minillm.generate",
        "minillm.explain",
        "minillm.quantize",
        "minillm.perplexity",
        "minillm.bench",
        "minillm.diff",
        "minillm.lens",
        "minillm.harness",
        "minillm.harness_model",
    ],
    ["minillm.routes_measure", "minillm.routes_drift", "minillm.routes_plot", "minillm.routes_script"],
    ["minillm.routes_record", "minillm.routes_text", "minillm.routes_page"],
    ["minillm.routes"],
    ["minillm.plan_devices", "minillm.plan_layouts", "minillm.plan_card"],
    ["minillm.plan_storage"],
    ["minillm.plan_fit"],
    ["minillm.plan_budget", "minillm.plan_report"],
    ["minillm.plan_plot"],
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
            assert module in ("minillm.bench_engines", "minillm.diff")
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
        if module.startswith("minillm.families") or module == "minillm.bench_worker":  # full of the peer's functions
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
