"""The structure of the package: who may import whom, and what `import lowcomm` costs.

The layers are those of docs/design; a module imports from its own package and from lower layers
only, wherever in the module the import stands.
"""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import lowcomm

ROOT = Path(lowcomm.__file__).parent
LAYERS = (
    {
        "errors",
        "types",
        "clock",
        "in_order",
        "lines",
        "names",
        "locks",
        "host_memory",
        "open_files",
    },
    {"arguments", "interrupts", "reasons", "spans"},
    {"methods"},
    {"algorithms", "codecs", "models"},
    {"islands", "exchanges", "data"},
    {"tasks"},
    {"config"},
    {"metrics", "storage"},
    {"ledger"},
    {"peers"},
    {"rounds"},
    {"recovery"},
    {"outer"},
    {"training"},
    {"launching"},
    {"sim"},
    {"plan", "bench", "report", "chaos"},
    {"cli"},
    {"__init__", "__main__", "recipes"},
)
LAYER = {unit: number for number, layer in enumerate(LAYERS) for unit in layer}
ON_A_LINE = ("ledger", "peers", "rounds", "recovery", "outer", "training")
IN_ONE_MODULE = ("hivemind", "deepspeed", "wandb", "tensorboard", "transformers", "peft", "lm_eval")
HEAVY = (
    *IN_ONE_MODULE,
    "torch",
    "numpy",
    "matplotlib",
    "rich",
    "asyncio",
    "pyarrow",
    "datatrove",
    "tokenizers",
)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MOST_LINES, MOST_PARAMETERS = 80, 10
CLOCKS = {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"}
MODULES = sorted(ROOT.rglob("*.py"))
OURS = [path for path in MODULES if path.name != "stock_hivemind.py"]
"""Without the script that runs stock hivemind, the thing that the bench compares with."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def unit_of(path: Path) -> str:
    """The package or top-level module that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import anywhere in a file; `from a import b` is a.b."""
    package = ["lowcomm", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (
                (node.lineno, argument.value)
                for argument in node.args[:1]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            )


def test_every_module_has_a_layer() -> None:
    assert {unit_of(path) for path in MODULES} <= LAYER.keys()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_come_from_lower_layers(path: Path) -> None:
    mine = unit_of(path)
    wrong = [
        f"{name_of(path)}:{line} (layer {LAYER[mine]}) imports {name} (layer {LAYER.get(unit, '?')})"
        for line, name in imports(path)
        if name.split(".")[0] == "lowcomm" and name != "lowcomm.__version__"
        for unit in [[*name.split("."), "__init__"][1]]
        if unit != mine and LAYER.get(unit, len(LAYERS)) >= LAYER[mine]
    ]
    assert not wrong


@pytest.mark.parametrize("package", ON_A_LINE)
def test_files_of_a_package_lie_on_a_line(package: str) -> None:
    """Each imports those before it only, so that they can be read in one order."""
    files = {path.stem: path for path in (ROOT / package).glob("*.py") if path.stem != "__init__"}
    sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    for stem, path in files.items():
        found = [name.split(".") for _, name in imports(path) if name.startswith(f"lowcomm.{package}.")]
        sorter.add(stem, *{parts[2] for parts in found} & files.keys())
    assert len(list(sorter.static_order())) == len(files)  # a circle raises


def modules_behind(path: Path, seen: set[Path]) -> set[Path]:
    """All files of ours that a file imports, and these in turn."""
    for _, name in imports(path):
        parts = name.split(".")[1:] if name.startswith("lowcomm.") else []
        for stem in ("/".join(parts), "/".join(parts[:-1])):
            if stem and (found := ROOT / f"{stem}.py").exists() and found not in seen:
                seen.add(found)
                modules_behind(found, seen)
    return seen


def test_the_way_of_a_pseudo_gradient_is_the_one_that_the_page_shows() -> None:
    page = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `(\S+\.py)` \|", page, re.MULTILINE)
    files = [ROOT / name for _, name in rows]
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    assert 10 < len(files) <= 25
    assert len(set(files)) == len(files)
    assert all(path.is_file() for path in files)
    for place, path in enumerate(files):
        assert not modules_behind(path, set()) & set(files[:place]), f"{name_of(path)} imports one above it"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_fit_on_two_screens(path: Path) -> None:
    functions = [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, FUNCTIONS)
    ]
    lines = {f"{f.name}:{f.lineno}": (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions}
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}


@pytest.mark.parametrize("path", [path for path in OURS if name_of(path) != "outer/loop.py"], ids=name_of)
def test_constructors_take_few_parameters(path: Path) -> None:
    """That of `OuterLoop` takes all that can be chosen."""
    found = [
        node.args.args[1:] + node.args.kwonlyargs
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, FUNCTIONS) and node.name == "__init__"
    ]
    assert max(map(len, found), default=0) <= MOST_PARAMETERS


@pytest.mark.parametrize("library", IN_ONE_MODULE)
def test_library_is_imported_in_one_module(library: str) -> None:
    users = [
        name_of(path) for path in OURS if any(name.split(".")[0] == library for _, name in imports(path))
    ]
    assert len(users) <= 1


def test_clocks_are_read_in_clock_only() -> None:
    readers = []
    for path in OURS:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "time"
        }
        names = {name.removeprefix("time.") for _, name in imports(path) if name.startswith("time.")}
        if CLOCKS & (calls | names):
            readers.append(name_of(path))
    assert readers == ["chaos/machine.py", "clock.py"], "the first one breaks the clock of an island"


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    imported_as = {"scikit-learn": "sklearn", "lm-eval": "lm_eval"}
    extras = [
        name
        for extra in ("cleaning", "data", "deepspeed", "digits", "eval", "hf", "hub", "peft", "zstd")
        for name in project["optional-dependencies"][extra]
    ]
    names = [re.split(r"[^\w-]", name)[0] for name in [*project["dependencies"], *extras]]
    declared = {imported_as.get(name, name) for name in names}
    used = {name.split(".")[0] for path in MODULES for _, name in imports(path)}
    assert used - sys.stdlib_module_names - {"lowcomm", "__future__"} <= declared


@pytest.mark.parametrize("module", ["lowcomm", "lowcomm.config.load"])
def test_import_is_light(module: str) -> None:
    code = f"import sys; before = set(sys.modules); import {module}; print(*(set(sys.modules) - before))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    assert module in found.stdout.split()
    assert set(found.stdout.split()).isdisjoint(HEAVY)


def test_measuring_instruments_are_not_imported_by_accident() -> None:
    code = """
import sys, lowcomm, lowcomm.training.trainer, lowcomm.cli.main
[getattr(lowcomm, name) for name in lowcomm.__all__]
print(*sys.modules)"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    instruments = ("lowcomm.bench", "lowcomm.chaos", "lowcomm.sim")
    assert "lowcomm.outer.loop" in found.stdout.split()
    assert not [module for module in found.stdout.split() if module.startswith(instruments)]


@pytest.mark.parametrize("name", lowcomm.__all__)
def test_public_name_exists(name: str) -> None:
    assert getattr(lowcomm, name) is not None


def test_unknown_public_name() -> None:
    with pytest.raises(AttributeError, match="'lowcomm' has no attribute 'nothing'"):
        lowcomm.nothing  # noqa: B018


def test_no_decision_depends_on_the_time_of_day() -> None:
    """So a clock that jumps changes nothing in them, and the simulator needs no calendar."""
    decide = [path for package in ON_A_LINE for path in (ROOT / package).glob("*.py")]
    readers = [
        name_of(path)
        for path in decide
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "wall_s"
    ]
    assert len(decide) > 50
    assert readers == []
