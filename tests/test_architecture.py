"""The rules of the house, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import singlestrip_bids

FOLDER = Path(singlestrip_bids.__file__).parent
SOURCES = {
    ".".join(path.relative_to(FOLDER).with_suffix("").parts): path
    for path in sorted(FOLDER.rglob("*.py"))
}
MODULES = pytest.mark.parametrize("module", SOURCES)

# From the bottom to the top: a room imports from itself and from those below it.
LAYERS = [
    {"errors", "config"},
    {"machine"},
    {"image"},
    {"bids"},
    {"method"},
    {"report"},
    {"draft", "group", "participant", "suggest"},
    {"options", "cli", "__init__", "__main__", "interfaces", "demo"},
]
LONGEST = 50  # lines of a function, its docstring aside


def layer(module: str) -> int:
    room = module.split(".")[0]
    return next(number for number, rooms in enumerate(LAYERS) if room in rooms)


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
    package = module.split(".")[:-1]
    found = set()
    for node in nodes(parsed(module)):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package[: len(package) - node.level + 1] + (node.module or "").split(".")
        base = [part for part in base if part]
        if ".".join(base) in SOURCES:
            found.add(".".join(base))
            continue
        for alias in node.names:  # modules of a room, or a name of the room itself
            name = ".".join([*base, alias.name])
            found.add(name if name in SOURCES else ".".join([*base, "__init__"]))
            assert name in SOURCES or alias.name in ("__version__", "load_model"), name
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


@MODULES
def test_rooms_import_downwards(module):
    others = own_imports(module) - {"__init__"}  # its version
    assert max((layer(other) for other in others), default=0) <= layer(module)


def test_no_imports_go_round():
    waiting = {module: own_imports(module) - {"__init__"} for module in SOURCES}
    del waiting["__init__"]  # the face, which imports within its functions
    while free := {module for module, others in waiting.items() if not others & waiting.keys()}:
        for module in free:
            del waiting[module]
    assert not waiting


@MODULES
def test_package_is_imported_relatively(module):
    assert "singlestrip_bids" not in outside_imports(parsed(module))


def test_only_processes_knows_torch_distributed():
    known = {m for m in SOURCES if "torch.distributed" in outside_imports(parsed(m))}
    assert known == {"machine.processes"}


def test_only_scans_knows_pybids():
    assert {m for m in SOURCES if "bids" in outside_imports(parsed(m))} == {"bids.scans"}


@MODULES
def test_nothing_is_unpickled(module):
    forbidden = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
    assert not outside_imports(parsed(module)) & forbidden
    for node in nodes(parsed(module)):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in {"torch.save", "torch.hub"}
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert "weights_only=True" in ast.unparse(node)  # tensors and plain data alone
        if isinstance(node, ast.keyword):
            assert node.arg != "allow_pickle"
        if isinstance(node, ast.Name):
            assert node.id not in {"eval", "exec"}


@MODULES
def test_only_files_writes(module):
    if module == "machine.files":
        return
    writing = {"write_text", "write_bytes", "to_filename", "save_file", "mkdir", "touch"}
    for node in nodes(parsed(module)):
        if isinstance(node, ast.Attribute) and node.attr in writing:
            assert ast.unparse(node.value) == "files", f"line {node.lineno}"
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in {"nib.save", "nibabel.save", "np.save", "np.savez"}


@MODULES
def test_only_runtime_names_a_device(module):
    if module == "machine.runtime":
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
def test_functions_are_short(module):
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.FunctionDef) and node.name != "build_parser":
            told = node.body[0] if ast.get_docstring(node) else None
            aside = told.end_lineno - told.lineno + 1 if told else 0
            assert node.end_lineno - node.lineno + 1 - aside <= LONGEST, node.name


@MODULES
def test_modules_say_what_they_are(module):
    assert ast.get_docstring(parsed(module))


def test_no_two_types_bear_one_name():
    names = [
        node.name
        for module in SOURCES
        for node in parsed(module).body
        if isinstance(node, ast.ClassDef)
    ]
    assert sorted(names) == sorted(set(names))
