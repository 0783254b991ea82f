#!/usr/bin/env python
"""Check the tests of modules: change one expression of a module at a time, and run its tests.

A change that no test notices is a survivor: a test is missing, or the change is equivalent. The
changes are drawn by the seed from all that `mutants_of` knows. The tests are those of `tests/unit`,
`tests/property` and `tests/parity` that import the module, or those given. The checkout itself is
not changed: each mutant runs in a process of its own, from a copy of the package. Needs Linux or
macOS, and the development environment.

Usage: .venv/bin/python scripts/mutate.py deformable_detr/losses/matcher.py --mutants 20
The exit code is 1 if a mutant survives.
"""

import argparse
import ast
import contextlib
import importlib
import io
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "deformable_detr"
TEST_FOLDERS = ("tests/unit", "tests/property", "tests/parity")
LIBRARIES = ("pytest", "torch", "torchvision", "scipy.optimize", "pycocotools.cocoeval", "pydantic")
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor"}
NAMES |= {"sum": "mean", "mean": "sum", "zeros": "ones", "ones": "zeros"}


@dataclass(frozen=True)
class Mutant:
    """Change of one expression or statement.

    Attributes:
        file: path of the module, relative to the checkout.
        line: line of the change.
        before: the code that is replaced, on one line.
        after: its replacement.
    """

    file: str
    line: int
    before: str
    after: str


@dataclass(frozen=True)
class Outcome:
    """Result of the tests of a mutant.

    Attributes:
        mutant: the mutant.
        result: "killed", "survived" or "timeout"; the latter counts as killed.
        by: the first test that failed, or "".
        seconds: time of the tests.
    """

    mutant: Mutant
    result: str
    by: str
    seconds: float


def mutants_of(file: Path) -> list[tuple[Mutant, str]]:
    """Return all mutants of a module, each with the source of the whole module."""
    source = file.read_text(encoding="utf-8")
    tree = ast.parse(source)
    name = file.resolve().relative_to(ROOT).as_posix()
    found: dict[tuple[int, str, str], tuple[Mutant, str]] = {}
    for node, parent, field, index in _places(tree):
        for new in _replacements(node):
            before, after = ast.unparse(node), ast.unparse(new)
            if before == after:  # such as equal arguments that change places
                continue
            _put(parent, field, index, new)
            mutant = Mutant(name, _line_of(node), _line(before), _line(after))
            found.setdefault(
                (_line_of(node), before, after),
                (mutant, ast.unparse(ast.fix_missing_locations(tree))),
            )
            _put(parent, field, index, node)
    return list(found.values())


def _places(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.AST, str, int | None]]:
    """Yield expressions and statements with their places; not annotations, not messages."""
    for parent in list(ast.walk(tree)):
        for field, value in ast.iter_fields(parent):
            if field in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for index, node in enumerate(value) if isinstance(value, list) else ((None, value),):
                if isinstance(node, ast.expr | ast.stmt | ast.comprehension):
                    yield node, parent, field, index


def _put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what may stand in place of a node."""
    match node:
        case ast.Compare(ops=[operator]):
            for kind in COMPARISONS[type(operator)]:
                yield ast.Compare(node.left, [kind()], node.comparators)
        case ast.BinOp(op=operator) if type(operator) in OPERATORS:
            yield ast.BinOp(node.left, OPERATORS[type(operator)](), node.right)
        case ast.BoolOp():
            yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
            for left_out in range(len(node.values)):
                rest = [one for place, one in enumerate(node.values) if place != left_out]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield node.operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(value * 2 or 1.0)
        case ast.IfExp():
            yield node.body
            yield node.orelse
        case ast.Call():
            yield from _calls(node)
        case ast.If():
            if not isinstance(node.body[0], ast.Raise):  # which any test would notice
                yield ast.If(ast.Constant(True), node.body, node.orelse)
            yield ast.If(ast.Constant(False), node.body, node.orelse)
        case ast.AugAssign() | ast.Expr(value=ast.Call() | ast.Yield()):
            if "__init__" not in ast.unparse(node):
                yield ast.Pass()
        case ast.Assign(targets=[ast.Subscript()]):
            yield ast.Pass()
        case ast.comprehension(ifs=[_, *_]):
            yield ast.comprehension(node.target, node.iter, [], node.is_async)


def _calls(node: ast.Call) -> Iterator[ast.AST]:
    for left_out in range(len(node.keywords)):
        rest = [one for place, one in enumerate(node.keywords) if place != left_out]
        yield ast.Call(node.func, node.args, rest)
    if len(node.args) > 1 and not any(isinstance(one, ast.Starred) for one in node.args):
        yield ast.Call(node.func, [node.args[1], node.args[0], *node.args[2:]], node.keywords)
    if isinstance(node.func, ast.Attribute):
        if not isinstance(node.func.value, ast.Call | ast.Name) or len(node.args) == 0:
            yield node.func.value  # without the method
        if node.func.attr in NAMES:
            other = ast.Attribute(node.func.value, NAMES[node.func.attr], ast.Load())
            yield ast.Call(other, node.args, node.keywords)
    elif isinstance(node.func, ast.Name) and node.func.id in NAMES:
        yield ast.Call(ast.Name(NAMES[node.func.id], ast.Load()), node.args, node.keywords)


def _line_of(node: ast.AST) -> int:
    """Return the line of a node; a comprehension has that of its target."""
    return int(getattr(node, "lineno", 0) or node.target.lineno)


def _line(code: str) -> str:
    text = " ".join(code.split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def tests_of(files: Sequence[Path]) -> list[str]:
    """Return the test files that import one of the modules, or have the name of one."""
    modules = {".".join(file.resolve().relative_to(ROOT).with_suffix("").parts) for file in files}
    prefixes = tuple(f"test_{file.stem}" for file in files)
    paths = [path for folder in TEST_FOLDERS for path in sorted((ROOT / folder).rglob("test_*.py"))]
    return [
        path.relative_to(ROOT).as_posix()
        for path in paths
        if path.stem.startswith(prefixes) or modules & _imported(path)
    ]


def _imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{one.name}" for one in node.names)}
    return names


class Runner:
    """Runs tests against a copy of the package, each time in a new process.

    The parent has imported the libraries, but not the package, so that a process starts at once.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shutil.copytree(
            ROOT / PACKAGE, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__")
        )
        (folder / "configs").symlink_to(ROOT / "configs")
        _import_libraries()

    def run(self, tests: Sequence[str], *, limit_s: float) -> tuple[int | None, str, float]:
        """Run tests until the first fails: exit code, None after `limit_s`; the test; seconds."""
        report = self._folder / "report.json"
        report.unlink(missing_ok=True)
        start = time.monotonic()
        context = multiprocessing.get_context("fork")
        process = context.Process(target=_run_tests, args=(self._folder, list(tests), report))
        process.start()
        process.join(limit_s)
        seconds = time.monotonic() - start
        if process.exitcode is None:
            process.kill()
            process.join()
            return None, "", seconds
        failed = json.loads(report.read_text()) if report.is_file() else "the process has died"
        return process.exitcode, failed, seconds

    @contextlib.contextmanager
    def changed(self, file: str, source: str) -> Iterator[None]:
        """Replace a module of the copy inside the block."""
        path = self._folder / file
        original = path.read_text(encoding="utf-8")
        path.write_text(source, encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(original, encoding="utf-8")


def _import_libraries() -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)  # no thread may be lost in a fork


def _run_tests(folder: Path, tests: list[str], report: Path) -> None:
    """Run pytest in a new process on the copy in `folder`; write the first failure to `report`."""
    import pytest

    failures: list[str] = []

    class Failures:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                failures.append(report.nodeid)

        def pytest_collectreport(self, report: pytest.CollectReport) -> None:
            if report.failed:
                failures.append(report.nodeid)

    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = str(folder)  # of processes that a test starts
    sys.dont_write_bytecode = True  # mutants of one size and second would share a file
    os.chdir(ROOT)
    options = ["-x", "-q", "-p", "no:cacheprovider"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = pytest.main([*options, *tests], plugins=[Failures()])
    report.write_text(json.dumps(failures[0] if failures else ""))
    os._exit(int(code))


def check(
    files: Sequence[Path], tests: Sequence[str], *, count: int, seed: int, minutes: float
) -> Iterator[Outcome]:
    """Yield the outcome of up to `count` mutants of the modules, within about `minutes`.

    Raises:
        RuntimeError: the tests do not pass without a mutant.
    """
    everything = [one for file in files for one in mutants_of(file)]
    sample = random.Random(seed).sample(everything, min(count, len(everything)))
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(Path(folder))
        code, failed, seconds = runner.run(tests, limit_s=60 * minutes)
        if code != 0:
            raise RuntimeError(f"tests must pass without a mutant, got exit code {code}: {failed}")
        print(f"{len(sample)} of {len(everything)} mutants; the tests take {seconds:.0f} s")
        for mutant, source in sample:
            if time.monotonic() > end:
                return
            with runner.changed(mutant.file, source):
                code, failed, spent = runner.run(tests, limit_s=30 + 3 * seconds)
            result = {0: "survived", None: "timeout"}.get(code, "killed")
            yield Outcome(mutant, result, failed, round(spent, 1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print each outcome; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="modules to change")
    parser.add_argument("--tests", nargs="+", help="test files; default: those that import them")
    parser.add_argument("--mutants", type=int, default=20, help="number of changes to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10.0, help="start no change after these")
    parser.add_argument("--out", type=Path, help="JSON file for the outcomes")
    options = parser.parse_args(arguments)
    tests = options.tests or tests_of(options.files)
    print("tests:", *tests)
    outcomes = []
    for outcome in check(
        options.files, tests, count=options.mutants, seed=options.seed, minutes=options.minutes
    ):
        outcomes.append(outcome)
        one = outcome.mutant
        print(
            f"{outcome.result:8} {one.file}:{one.line}: {one.before}  ->  {one.after}", flush=True
        )
        if options.out is not None:
            content = [asdict(outcome) for outcome in outcomes]
            options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    survivors = sum(outcome.result == "survived" for outcome in outcomes)
    print(f"{len(outcomes)} mutants, {survivors} survived")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
