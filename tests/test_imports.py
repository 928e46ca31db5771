"""Imports go one way; the import graph is read from the sources, and a back edge fails."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "triune"
ORDER = [
    {"errors", "libraries", "types", "progress", "peak_memory", "record_checks"},
    {"parsing", "settled", "settings"},
    {
        "baseline_settings",
        "data_settings",
        "judge_settings",
        "launch_settings",
        "method_settings",
        "presets",
        "quantised_settings",
        "recipe_variants",
        "served_settings",
    },
    {"record", "recipe", "recipe_file", "metrics"},
    {"data"},
    {"models"},
    {"experts"},
    {"merges"},
    {"fusion"},
    {"baselines"},
    {"judges"},
    {"evaluation"},
    {"diagnose"},
    {"report"},
    {"pipeline"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def imported(path: Path) -> set[str]:
    """The rooms of triune that a file imports, anywhere in it."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [node.module or ""] if node.module != "triune" else [f"triune.{n.name}" for n in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("triune.")}
    return rooms


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def sources() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if room(p) not in {"__init__", "__main__"}]


def test_every_module_has_a_place_in_the_order() -> None:
    assert sorted({room(p) for p in sources()} - RANK.keys()) == []


def test_no_import_goes_back() -> None:
    back = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in sources()
        for other in imported(path)
        if other in RANK and RANK[other] > RANK[room(path)]
    ]
    assert back == []


def test_the_reader_sees_imports() -> None:
    assert {"fusion", "experts"} <= imported(PACKAGE / "fusion" / "building.py")


def test_modules_stay_short() -> None:
    long = {str(p.relative_to(PACKAGE)): n for p in sources() if (n := len(p.read_text().splitlines())) > 300}
    assert long == {}
