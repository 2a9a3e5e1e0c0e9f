"""The rules of the house, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import singlestrip_bids

FOLDER = Path(singlestrip_bids.__file__).parent
SOURCES = {path.stem: path for path in sorted(FOLDER.glob("*.py"))}
SOURCES |= {f"interfaces.{p.stem}": p for p in sorted((FOLDER / "interfaces").glob("*.py"))}
MODULES = pytest.mark.parametrize("module", SOURCES)

# From the bottom to the top: a module imports only from modules before it.
ORDER = [
    "__init__",
    "errors",
    "annex",
    "config",
    "templates",
    "bibliography",
    "derivatives",
    "processes",
    "progress",
    "runtime",
    "masks",
    "metrics",
    "voxels",
    "axes",
    "resampling",
    "volume",
    "border",
    "labels",
    "synthesis",
    "registration",
    "networks",
    "losses",
    "optimisers",
    "checkpoints",
    "training",
    "inference",
    "frame",
    "continuation",
    "quality",
    "calibration",
    "selection",
    "ratings",
    "model",
    "records",
    "pairing",
    "filters",
    "inputs",
    "labelled",
    "finished",
    "handoff",
    "stage",
    "threshold",
    "ranking",
    "trials",
    "guard",
    "pipeline",
    "figures",
    "plots",
    "reports",
    "group_report",
    "methods",
    "participant",
    "suggestion",
    "group",
    "options",
    "cli",
    "__main__",
    "descriptor",
    "interfaces.__init__",
    "interfaces.nipype",
]


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk over all that runs."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not for_types_only(child):
            yield from nodes(child)


def parsed(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


def own_imports(module: str) -> set[str]:
    """Modules of this package that a module imports, at its top or within functions."""
    found = set()
    for node in nodes(parsed(module)):
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {name if name in SOURCES else "__init__" for name in names}
    return found


def outside_imports(tree: ast.AST) -> set[str]:
    """Names of the other packages that are imported, whole: torch.nn is torch and torch.nn."""
    found = set()
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
    return found | {name.split(".")[0] for name in found}


def test_every_module_has_its_place():
    assert sorted(ORDER) == sorted(SOURCES)


@MODULES
def test_imports_point_downwards(module):
    below = set(ORDER[: ORDER.index(module)])
    assert own_imports(module) <= below


@MODULES
def test_package_is_imported_relatively(module):
    assert "singlestrip_bids" not in outside_imports(parsed(module))


def test_only_processes_knows_torch_distributed():
    known = {m for m in SOURCES if "torch.distributed" in outside_imports(parsed(m))}
    assert known == {"processes"}


def test_only_inputs_knows_pybids():
    assert {m for m in SOURCES if "bids" in outside_imports(parsed(m))} == {"inputs"}


@MODULES
def test_nothing_is_unpickled(module):
    forbidden = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
    assert not outside_imports(parsed(module)) & forbidden
    for node in nodes(parsed(module)):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in {"torch.load", "torch.save", "torch.hub"}
        if isinstance(node, ast.keyword):
            assert node.arg != "allow_pickle"
        if isinstance(node, ast.Name):
            assert node.id not in {"eval", "exec"}


@MODULES
def test_only_derivatives_writes(module):
    if module == "derivatives":
        return
    writing = {"write_text", "write_bytes", "to_filename", "save_file", "mkdir", "touch"}
    for node in nodes(parsed(module)):
        if isinstance(node, ast.Attribute) and node.attr in writing:
            assert ast.unparse(node.value) == "derivatives", f"line {node.lineno}"
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in {"nib.save", "nibabel.save", "np.save", "np.savez"}


@MODULES
def test_only_runtime_names_a_device(module):
    if module == "runtime":
        return
    for node in nodes(parsed(module)):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in {"torch.cuda", "torch.device('cuda')"}
            assert node.attr != "cuda"


@pytest.mark.parametrize("module", ["__init__", "cli", "config", "errors", "options"])
def test_nothing_heavy_before_the_arguments_are_read(module):
    heavy = {"torch", "numpy", "nibabel", "scipy", "sklearn", "bids", "nilearn", "safetensors"}
    top = [node for node in parsed(module).body if isinstance(node, ast.Import | ast.ImportFrom)]
    tree = ast.Module(top, [])
    assert not outside_imports(tree) & heavy
    inner = {n.module for n in top if isinstance(n, ast.ImportFrom) and n.level and n.module}
    assert inner <= {"config", "errors", "options"}


@MODULES
def test_modules_are_short(module):
    assert len(SOURCES[module].read_text(encoding="utf-8").splitlines()) < 400


@MODULES
def test_modules_say_what_they_are(module):
    assert ast.get_docstring(parsed(module))
