"""The limits that keep the code readable: functions under 60 lines, files under 400."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRODUCT = ("alpro", "models", "shards", "stages", "pipeline")
MAX_FILE, MAX_FUNCTION = 399, 59


def sources(*folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def functions(file: Path) -> dict[str, int]:
    """The number of lines of each function and method of a file, by its name and first line."""
    nodes = [
        n for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return {f"{file.relative_to(ROOT)}:{n.lineno} {n.name}": (n.end_lineno or n.lineno) - n.lineno + 1 for n in nodes}


def test_files_are_short():
    lines = {file.relative_to(ROOT): file.read_text("utf-8").count("\n") for file in sources(*PRODUCT, "benchmarks")}
    assert len(lines) > 100
    assert {str(file): count for file, count in lines.items() if count > MAX_FILE} == {}


def test_functions_are_short():
    lines = {name: count for file in sources(*PRODUCT) for name, count in functions(file).items()}
    assert len(lines) > 500
    assert {name: count for name, count in lines.items() if count > MAX_FUNCTION} == {}
