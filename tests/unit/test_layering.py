"""Layering: a module imports from its own folder and the rows below it, never from above."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "deformable_detr"
# From top to bottom. Parts of the same row do not import each other.
ROWS = (
    {"__main__"},
    {"cli", "compat"},
    {"__init__"},
    {"workflows"},
    {"benchmark"},
    {"detector"},
    {"builders"},
    {"conversion", "dataset_formats", "inspection", "reporting"},
    {"engine"},
    {"data", "evaluation", "losses", "visualize"},
    {"models"},
    {"layers"},
    {"ops"},
    {"environment", "ground_truth", "preset", "quickstart"},
    {
        *("boxes", "coco_json", "config", "distributed", "finite", "labels"),
        *("photos", "structures", "version"),
    },
    {"yaml12"},
    {"arguments", "files", "packed", "pixels"},
    {"messages"},
)
ONLY_FOR_CONFIG = {"__init__", "benchmark", "builders", "cli", "detector", "workflows"}
UPGRADE = "deformable_detr.config.upgrade"  # works on plain JSON, so that any module may use it


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def row_of(part: str) -> int:
    return next(index for index, row in enumerate(ROWS) if part in row)


def imports(path: Path) -> list[tuple[str, int]]:
    """List the imported modules of a file, relative imports as ".", with line numbers."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                found.append((".", node.lineno))
            elif node.module == "deformable_detr":
                found += [(f"deformable_detr.{alias.name}", node.lineno) for alias in node.names]
            elif node.module:
                found.append((node.module, node.lineno))
        elif isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
    return found


def offenders() -> list[str]:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        part = part_of(path)
        for module, line in imports(path):
            where = f"{path.relative_to(PACKAGE)}:{line}"
            if module == ".":
                wrong.append(f"{where}: relative import")
            if not module.startswith("deformable_detr."):
                continue
            other = module.split(".")[1]
            if other == part:
                continue
            is_above = row_of(other) < row_of(part)
            is_beside = row_of(other) == row_of(part) < len(ROWS) - 1
            if is_above or is_beside:
                wrong.append(f"{where}: {part} imports {other}")
            if other == "config" and part not in ONLY_FOR_CONFIG and module != UPGRADE:
                wrong.append(f"{where}: {part} imports config")
    return wrong


def test_all_imports_are_from_lower_rows():
    assert offenders() == []


def test_leaves_import_no_other_part():
    for leaf in ROWS[-1]:
        file, folder = PACKAGE / f"{leaf}.py", PACKAGE / leaf
        files = [file] if file.is_file() else sorted(folder.glob("*.py"))
        assert files, leaf
        modules = [module for path in files for module, _ in imports(path)]
        own = f"deformable_detr.{leaf}"
        others = [m for m in modules if m.startswith("deformable_detr") and not m.startswith(own)]
        assert others == [], leaf


def test_torch_distributed_is_imported_in_one_file():
    users = [
        path.name
        for path in PACKAGE.rglob("*.py")
        if any(module.startswith("torch.distributed") for module, _ in imports(path))
    ]
    assert users == ["distributed.py"]


def test_command_modules_are_imported_by_main_only():
    shared = {"help", "options", "outputs", "launcher", "terminal"}
    for path in (PACKAGE / "cli").glob("*.py"):
        others = {
            module.removeprefix("deformable_detr.cli").removeprefix(".").split(".")[0]
            for module, _ in imports(path)
            if module.startswith("deformable_detr.cli")
        }
        assert path.stem == "main" or others <= shared, path.name
