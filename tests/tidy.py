"""The house rules that no linter knows, each a function from one parsed file to its findings."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_LINE_CHARACTERS = 100

Finding = tuple[int, str]
"""A line number and what is wrong there."""

UNSAFE_MODULES = frozenset({"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle"})
MOCK_MODULES = frozenset({"mock", "unittest.mock", "pytest_mock"})
UNSAFE_CALLS = frozenset(
    {"eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "os.system"}
    | {"os.popen", "torch.load", "torch.serialization.load", "joblib.load", "yaml.load"}
    | {"yaml.unsafe_load", "pandas.read_pickle"}
)
SEAMS = {  # the only place where each outside thing may be imported
    "gguf": ("gennode/engine/gguf/owner.py",),
    "hivemind": (),
    "huggingface_hub": ("gennode/engine/any/", "gennode/node/hub.py"),
    "jinja2": ("gennode/engine/text/render.py",),
    "llama_cpp": ("gennode/engine/gguf/native.py",),
    "matplotlib": ("gennode/node/crowd/chart.py",),
    "libp2p": ("gennode/mesh/pylibp2p",),
    "pycrdt": ("gennode/consensus/ledger.py",),
    "torch": ("gennode/engine/",),
    "transformers": ("gennode/engine/any/",),
    "trio": ("gennode/mesh/pylibp2p",),
    "web3": ("gennode/node/anchor.py",),
}
WITHOUT_TORCH = tuple(
    f"gennode/engine/{name}"
    for name in (
        "batch/", "cache/pages.py", "cache/prefix.py", "contract.py", "sample.py", "seam.py",
        "toy.py",
    )
)  # fmt: skip
SHOWS_FORBIDDEN_ACTS = "tests/audited.py"  # to prove that the audit hook sees them
PURE = ("gennode/wire/", "gennode/sharding/", "gennode/verify/", "gennode/consensus/")
UNITLESS = frozenset({"delay", "duration", "interval", "latency", "timeout", "ttl"})

# One comment tells both ruff and this file that the whole task ends here, and why it may.
TASK_ROOT = re.compile(r"# noqa: BLE001 - task root: \S")


@dataclass(frozen=True)
class Source:
    """One Python file: its path from the repository's root, and its text."""

    path: PurePosixPath
    text: str

    @cached_property
    def lines(self) -> list[str]:
        """The text's lines, without their ends."""
        return self.text.splitlines()

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Every node of the syntax tree."""
        return list(ast.walk(ast.parse(self.text)))

    @property
    def is_test(self) -> bool:
        """Whether it lies in tests/."""
        return self.path.parts[0] == "tests"

    @property
    def is_product(self) -> bool:
        """Whether it lies in gennode/, so that users run it."""
        return self.path.parts[0] == "gennode"

    def lies_in(self, *places: str) -> bool:
        """Whether the file is, or is in, one of `places`."""
        return str(self.path).startswith(places)


Rule = Callable[[Source], Iterator[Finding]]


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a chain of names; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def imports(source: Source) -> Iterator[tuple[int, str]]:
    """Every module or member that the file names in an import, as `package.module.member`."""
    for node in source.nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func).endswith("import_module"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield node.lineno, str(argument.value)


def calls(source: Source) -> Iterator[tuple[ast.Call, str]]:
    """Every call with the dotted name that is called, import aliases undone."""
    names: dict[str, str] = {}
    for node in source.nodes:
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {
                alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
    for node in source.nodes:
        if isinstance(node, ast.Call):
            first, dot, rest = dotted(node.func).partition(".")
            yield node, names.get(first, first) + dot + rest


def _within(name: str, modules: frozenset[str]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


def fits_on_a_page(source: Source) -> Iterator[Finding]:
    """Files, functions and lines are short enough to be read at once."""
    if len(source.lines) > MAX_FILE_LINES:
        yield MAX_FILE_LINES, f"{len(source.lines)} lines, {MAX_FILE_LINES} fit"
    for number, line in enumerate(source.lines, 1):
        if len(line) > MAX_LINE_CHARACTERS:
            yield number, f"{len(line)} characters, {MAX_LINE_CHARACTERS} fit"
    for node in source.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield node.lineno, f"{node.name} has {length} lines, {MAX_FUNCTION_LINES} fit"


def says_what_it_is(source: Source) -> Iterator[Finding]:
    """Every module has a docstring."""
    if ast.get_docstring(ast.parse(source.text)) is None:
        yield 1, "no docstring"


def is_finished(source: Source) -> Iterator[Finding]:
    """No work is left to others."""
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type == tokenize.COMMENT and re.search(r"\b(TODO|FIXME|XXX|HACK)\b", token.string):
            yield token.start[0], "unfinished"
    for node in source.nodes:
        if isinstance(node, ast.Name) and node.id == "NotImplementedError":
            yield node.lineno, "NotImplementedError"


def runs_no_foreign_code(source: Source) -> Iterator[Finding]:
    """Nothing that turns data into code: deserialisers, evaluation, shells."""
    if source.lies_in(SHOWS_FORBIDDEN_ACTS):
        return
    for line, name in imports(source):
        if _within(name, UNSAFE_MODULES):
            yield line, f"import of {name}"
    for call, name in calls(source):
        if name in UNSAFE_CALLS:
            yield call.lineno, f"call of {name}"
        for word in call.keywords:
            harmless = isinstance(word.value, ast.Constant) and not word.value.value
            if word.arg in {"shell", "trust_remote_code", "allow_pickle"} and not harmless:
                yield call.lineno, f"{word.arg} is not False"


def decodes_into_types(source: Source) -> Iterator[Finding]:
    """msgspec always knows the type it decodes to: untyped, 10 MB of input take 700 MB."""
    for call, name in calls(source):
        if not source.is_product or not name.startswith("msgspec."):
            continue
        typed = any(word.arg == "type" for word in call.keywords)
        if name.endswith(".Decoder") and not (typed or call.args):
            yield call.lineno, "a Decoder without a type"
        if name.endswith(("msgpack.decode", "json.decode")) and not typed:
            yield call.lineno, "decode without a type"


def keeps_to_the_seams(source: Source) -> Iterator[Finding]:
    """Each outside thing is imported in one place; nothing private crosses modules."""
    for line, name in imports(source) if source.is_product else ():
        package = name.partition(".")[0]
        if package in SEAMS and not source.lies_in(*SEAMS[package]):
            yield line, f"import of {package} away from its seam"
        if package == "torch" and source.lies_in(*WITHOUT_TORCH):
            yield line, "torch in a part of the engine that has to work without"
        if package == "gennode" and re.search(r"\._[A-Za-z]", name):
            yield line, f"{name} is private to its module"
    for line, name in imports(source):
        if package_of(name) == "hivemind" and not source.is_product:
            yield line, "hivemind gives its daemon and no code"


def package_of(name: str) -> str:
    """The outermost package of a dotted name."""
    return name.partition(".")[0]


def takes_chance_as_argument(source: Source) -> Iterator[Finding]:
    """Pure code may name the type of a seeded generator, and draws from nothing else."""
    if not source.lies_in(*PURE):
        return
    for line, name in imports(source):
        if package_of(name) in {"random", "secrets"} and name != "random.Random":
            yield line, f"import of {name}"
    for call, name in calls(source):
        if name == "random.Random" and not call.args:
            yield call.lineno, "a generator without a seed"
        seeded = name in {"numpy.random.default_rng", "numpy.random.Generator"} and call.args
        if name.startswith("numpy.random.") and not seeded:
            yield call.lineno, "numpy's global or unseeded chance"


def binds_to_loopback(source: Source) -> Iterator[Finding]:
    """No default listens on every interface: that is for the person at the keyboard to choose."""
    everywhere = re.compile(r"^(0\.0\.0\.0|::|\[::\])(:\d+)?$|^/ip4/0\.0\.0\.0(/|$)|^/ip6/::(/|$)")
    for node in source.nodes if source.is_product else ():
        defaults: list[ast.AST | None] = []
        if isinstance(node, ast.arguments):
            defaults += [*node.defaults, *node.kw_defaults]
        elif isinstance(node, ast.Module | ast.ClassDef):
            fields = (item for item in node.body if isinstance(item, ast.Assign | ast.AnnAssign))
            defaults += [field.value for field in fields]
        elif isinstance(node, ast.keyword) and node.arg in {"address", "default", "host", "listen"}:
            defaults.append(node.value)
        for part in (part for default in defaults if default for part in ast.walk(default)):
            if isinstance(part, ast.Constant) and everywhere.search(str(part.value)):
                yield part.lineno, f"{part.value!r} as a default"


def catches_what_it_knows(source: Source) -> Iterator[Finding]:
    """`except Exception` only to tidy up and raise again, or at a task's root: see TASK_ROOT."""
    for node in source.nodes:
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = [] if node.type is None else [dotted(part) for part in ast.walk(node.type)]
        broad = node.type is None or {"Exception", "BaseException"} & set(caught)
        raises_again = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
        if broad and not raises_again and not TASK_ROOT.search(source.lines[node.lineno - 1]):
            yield node.lineno, "a broad except that is no task's root"


def validates_not_asserts(source: Source) -> Iterator[Finding]:
    """`python -O` drops asserts: what users run does not rely on them."""
    for node in source.nodes if source.is_product else ():
        if isinstance(node, ast.Assert):
            yield node.lineno, "assert"


def tests_honestly(source: Source) -> Iterator[Finding]:
    """Tests wait for events and not for time, and test real parts and no mocks."""
    if not source.is_test:
        return
    for line, name in imports(source):
        if _within(name, MOCK_MODULES):
            yield line, f"import of {name}"
    for call, name in calls(source):
        instant = call.args and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0
        if name == "time.sleep" or (name == "asyncio.sleep" and not instant):
            yield call.lineno, "sleep"


def tasks_have_parents(source: Source) -> Iterator[Finding]:
    """Tasks are started in a TaskGroup, which a name ending in `group` or `tasks` holds."""
    for node in source.nodes if source.is_product else ():
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else dotted(node.func)
        holder = dotted(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        if name == "ensure_future":
            yield node.lineno, "ensure_future"
        if name == "create_task" and not re.search(r"(group|tasks)$", holder):
            yield node.lineno, f"{holder or name} is no TaskGroup"


def names_units(source: Source) -> Iterator[Finding]:
    """Parameters and fields that hold a time say in which unit."""
    for node in source.nodes if source.is_product else ():
        if isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        else:
            continue
        if name.rpartition("_")[2] in UNITLESS:
            yield node.lineno, f"{name} has no unit"


RULES: tuple[Rule, ...] = (
    fits_on_a_page,
    says_what_it_is,
    is_finished,
    runs_no_foreign_code,
    decodes_into_types,
    keeps_to_the_seams,
    takes_chance_as_argument,
    binds_to_loopback,
    catches_what_it_knows,
    validates_not_asserts,
    tests_honestly,
    tasks_have_parents,
    names_units,
)
