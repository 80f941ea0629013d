"""Names, signatures and defaults in the documentation are those of the code."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from types import SimpleNamespace

import pytest

import lowcomm
from lowcomm import codecs, errors, exchanges
from lowcomm.algorithms.outer_optimizers import METHODS, OuterOptimizer
from lowcomm.exchanges.base import Exchange
from lowcomm.islands.base import Island
from lowcomm.metrics.summary import Summary
from lowcomm.outer.loop import OuterLoop
from lowcomm.recovery.joining import JoinReport
from lowcomm.training.given import Given
from lowcomm.types import RoundReport
from tests.docs.pages import PAGES, ROOT, blocks, page_id, prose

API = ROOT / "docs" / "api.md"
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
PUBLIC = {name: getattr(lowcomm, name) for name in lowcomm.__all__ if not name.startswith("_")}
MEANT = {
    # what a variable of the pages holds
    "outer": OuterLoop,
    "report": RoundReport,
    "exchange": Exchange,
    "island": Island,
    "summary": Summary,
    **PUBLIC,
}
OF_SECTION = {
    # where bare names of a section of api.md are looked for
    "OuterLoop": (OuterLoop, RoundReport, JoinReport),
    "Schedule": (lowcomm.Schedule, OuterLoop),
    "Outer optimizers": (
        OuterOptimizer,
        SimpleNamespace(**{name: METHODS.spec(name).make for name in METHODS.names}),
    ),
    "wrap_island": (),
    "codecs": (codecs,),
    "exchanges": (exchanges,),
}
SHORT = {"1 MiB": 1 << 20}
NOT_LISTED = {"self", "island", "exchange", "clock"}
"""Arguments of `OuterLoop` that api.md has in its first sentence, and the one that is for tests."""

each_page = pytest.mark.parametrize("page", PAGES, ids=page_id)


def fields_of(thing):
    return {field.name for field in dataclasses.fields(thing)} if dataclasses.is_dataclass(thing) else set()


def attributes(thing):
    """Names that an object of a class has; those set in `__init__` by annotation included."""
    return {*dir(thing), *fields_of(thing), *getattr(thing, "__annotations__", {})}


def found(name, section=""):
    """What a dotted name of the pages means; None if it is none of ours.

    Raises:
        AttributeError: it begins with one of ours, and goes on with what that hasn't.
    """
    first, *rest = name.split(".")
    if first == "lowcomm":
        return imported(name)
    thing = MEANT.get(first)
    if thing is None:
        owners = [owner for owner in OF_SECTION.get(section, ()) if first in attributes(owner)]
        return getattr(owners[0], first, None) if owners and not rest else None
    for part in rest:
        if part not in attributes(thing):
            raise AttributeError(f"{name}: there is no {part}")
        thing = getattr(thing, part, None)
    return thing


def imported(name):
    """A module, or what one has."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            thing = getattr(thing, part)
        return thing
    raise AttributeError(name)


def parameters(thing):
    """Of a call, without `self`; what `**` names one by one (`Unpack`) is among them."""
    known = {name: each for name, each in inspect.signature(thing).parameters.items() if name != "self"}
    if isinstance(thing, type) and issubclass(thing, lowcomm.Trainer):
        unpacked = inspect.Parameter("given", inspect.Parameter.KEYWORD_ONLY, default=None)
        known |= {name: unpacked.replace(name=name) for name in Given.__optional_keys__}
    return known


def as_call(code):
    """The call that a piece of code is; `*` and `...` stand for what it leaves out. None if it is none."""
    text = re.sub(r"(?<=[(,])\s*\*\s*,", " ", code.partition(" ->")[0]).strip()
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError:
        return None
    return node if isinstance(node, ast.Call) else None


def check_signature(node, thing, *, defaults):
    """What a call names has to be there; with `defaults` its values have to be those of the code."""
    known = parameters(thing)
    positional = [name for name, each in known.items() if each.kind is not each.KEYWORD_ONLY]
    given = [argument for argument in node.args if not is_elided(argument)]
    if defaults:
        names = [ast.unparse(argument) for argument in given]
        assert set(names) <= set(known), (names, list(known))
        leading = [name for name in names if name in positional]
        assert leading == positional[: len(leading)], (names, positional)
        needed = {name for name, each in known.items() if each.default is each.empty}
        said = {*names, *(keyword.arg for keyword in node.keywords)}
        assert needed <= said or any(map(is_elided, node.args)), (needed - said, "left out silently")
    for keyword in node.keywords:
        assert keyword.arg in known, (
            f"{ast.unparse(node.func)} has no {keyword.arg}; it has {', '.join(known)}"
        )
        if defaults and not is_elided(keyword.value):
            assert ast.literal_eval(keyword.value) == known[keyword.arg].default, keyword.arg


def is_elided(node):
    return isinstance(node, ast.Constant) and node.value is ...


def sections():
    """(title, text) of api.md."""
    parts = re.split(r"^## (.*)$", prose(API), flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def cells(text):
    """The rows of a section's tables."""
    rows = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")] for row in rows if not set(row) <= set("-| ")]


def spans(text):
    """What stands between backticks, on one line or two."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def signatures():
    """(section, code) of what api.md writes as a signature: in its sentences, and in a table's first cell."""
    every = []
    for title, text in sections():
        if title in OF_SECTION:
            sentences = re.sub(r"^\|.*\|$", "", text, flags=re.MULTILINE)
            firsts = " ".join(row[0] for row in cells(text))
            every += [(title, code) for code in (*spans(sentences), *spans(firsts))]
    return [(title, code) for title, code in every if as_call(code) and called(code, title) is not None]


def called(code, title):
    return found(ast.unparse(as_call(code).func), title)


def test_there_are_signatures():
    assert len(signatures()) > 25


@pytest.mark.parametrize(("title", "code"), signatures(), ids=[code[:40] for _, code in signatures()])
def test_signatures_and_defaults_are_those_of_the_code(title, code):
    check_signature(as_call(code), called(code, title), defaults=True)


def test_bare_names_of_the_map_exist():
    for title, text in sections():
        for name in spans(text) if title in OF_SECTION else ():
            if re.fullmatch(r"[a-z]+(_[a-z]+)+", name):  # a name of ours, not a word
                known = {part for owner in OF_SECTION[title] for part in attributes(owner)}
                calls = [*PUBLIC.values(), *(getattr(exchanges, name) for name in exchanges.__all__)]
                known |= {part for call in calls if callable(call) for part in safe_parameters(call)}
                assert name in known | PUBLIC.keys() | {"fully_shard"}, f"{title}: {name}"


def safe_parameters(thing):
    try:
        return parameters(thing)
    except (TypeError, ValueError):
        return {}


def test_the_table_of_the_loop_has_all_arguments_and_their_defaults():
    [text] = [text for title, text in sections() if title == "OuterLoop"]
    known, told = parameters(OuterLoop), {}
    for row in cells(text):
        names = spans(row[0])
        if len(row) > 2 and names and not names[0].endswith(")") and "->" not in row[0]:
            values = [SHORT.get(value.strip("` "), value.strip("` ")) for value in row[1].split(", ")]
            told.update(zip(names, values, strict=True))
    assert set(told) == set(known) - NOT_LISTED
    for name, value in told.items():
        default = known[name].default
        if default is inspect.Parameter.empty:
            assert value == "", name
        elif default is not None:
            assert (ast.literal_eval(value) if isinstance(value, str) else value) == default, name


@pytest.mark.parametrize("kind", [RoundReport, JoinReport], ids=lambda kind: kind.__name__)
def test_the_fields_of_reports_exist(kind):
    [text] = [text for title, text in sections() if title == "OuterLoop"]
    [told] = [part for part in text.split("\n\n") if part.startswith(f"`{kind.__name__}`")]
    names = {name for name in spans(told) if re.fullmatch(r"[a-z_]+", name)} - {
        "founded",
        "aligned",
        "replayed",
    }
    assert names - {"snapshot"} <= fields_of(kind)
    if kind is RoundReport:
        assert names == fields_of(kind)


def test_every_error_is_in_the_tree_and_the_tree_has_no_other():
    defined = {name for name, kind in vars(errors).items() if inspect.isclass(kind)}
    drawn = re.findall(r"^[|` -]*(\w+Error)\b", errors.__doc__ or "", re.MULTILINE)
    assert sorted(drawn) == sorted(defined)


NAMES = re.compile(r"(?<![\w./])(?:lowcomm(?:\.[A-Za-z_]+)+|(?:outer|codecs|exchanges|errors)\.[A-Za-z_]\w+)")


@each_page
def test_dotted_names_exist(page):
    for name in (name for code in spans(prose(page)) for name in NAMES.findall(code)):
        if not name.endswith((".py", ".json", ".toml")):  # a file
            found(name)


@each_page
def test_calls_in_sentences_have_these_arguments(page):
    for code in spans(prose(page)):
        node = as_call(code)
        thing = found(ast.unparse(node.func)) if node else None
        if node is not None and thing is not None:
            check_signature(node, thing, defaults=False)


def programs():
    pages = [
        (page_id(page), content)
        for page in PAGES
        for language, content in blocks(page)
        if language == "python"
    ]
    return [*pages, *((path.name, path.read_text()) for path in EXAMPLES)]


@pytest.mark.parametrize("program", [code for _, code in programs()], ids=[name for name, _ in programs()])
def test_programs_call_what_there_is(program):
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found(ast.unparse(node)) if node.value.id in MEANT else None
        if isinstance(node, ast.Call):
            thing = found(ast.unparse(node.func)) if re.match(r"[\w.]+$", ast.unparse(node.func)) else None
            starred = any(isinstance(argument, ast.Starred) for argument in node.args)
            if callable(thing) and not starred and not any(is_elided(argument) for argument in node.args):
                bound = [None] if is_method(thing) else []
                keywords = {keyword.arg: None for keyword in node.keywords}
                inspect.signature(thing).bind(*bound, *node.args, **keywords)


def is_method(thing):
    return inspect.isfunction(thing) and "." in thing.__qualname__
