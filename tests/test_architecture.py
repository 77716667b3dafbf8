"""Imports go one way."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Modules and folders of refine/, from the bottom up: each imports itself and those before it, and nothing else of ours.
# The package itself offers names of the product lazily: importing a light component never loads a heavy one.
ORDER = (
    "version",
    "errors",
    "contracts",
    "objectives",
    "runtime",
    "diffusion",
    "files",
    "pickles",
    "zoo_entries",
    "zoo",
    "networks",
    "export",
    "pair",
    "metrics",
    "presets",
    "options",
    "config",
    "report",
    "training",
    "runs",
    "commands",
    "digits",
    "__main__",
)
LEVEL = {component: level for level, component in enumerate(ORDER)}

CLICK = {"commands", "digits", "__main__"}  # who knows that there is a command line
# Who may know that a generator is made of a mapping and a synthesis network: its adapter, formats, and path lengths.
STYLE_BASED = {"networks", "export", "digits", "metrics"}

STYLE_ATTRIBUTE = re.compile(r"\.(mapping|synthesis)\(")

# What the packages beside refine/ may import of each other.
NEIGHBORS = {
    "stylegan_ops": {"stylegan_ops"},
    "dnnlib": {"dnnlib"},
    "torch_utils": {"torch_utils", "dnnlib", "stylegan_ops"},
}
OURS = {"refine", *NEIGHBORS}

# The one place that runs embedded source, which imports these two by name; and the built-in pickles: the sources that
# travel inside them, which plain `pickle.load` runs beside any repository's torch_utils, and what writes the pickles.
MAY_NAME_TORCH_UTILS = ("refine.pickles.trusted", "refine.digits.sources.", "refine.digits.make.__main__")


def module_name(path: Path, root: Path) -> str:
    """`root/refine/pickles/__init__.py` -> `refine.pickles`."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, root: Path, *, at_once: bool = False) -> Iterator[str]:
    """Every module that a file imports, anywhere in it; for `from a import b` both `a` and `a.b`.

    With `at_once`, only what is imported when the file itself is.
    """
    package = module_name(path, root).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in nodes_at_once(tree) if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def nodes_at_once(node: ast.AST) -> Iterator[ast.AST]:
    """`ast.walk` without the bodies of functions and of `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from nodes_at_once(child)


def component(module: str) -> str:
    """`refine.pickles.reader` -> `pickles`; the package itself -> the empty string."""
    parts = module.split(".")[1:]
    return parts[0] if parts else ""


def violations(root: Path) -> list[str]:
    """Every import below `root` that goes against the direction, as a sentence."""
    found = []
    at_once: dict[str, set[str]] = {}  # module of refine -> everything that importing it imports
    for path in sorted((root / "refine").rglob("*.py")):
        module = module_name(path, root)
        own = component(module)
        if own and own not in LEVEL:
            found.append(f"refine.{own} has no place: give it one in tests/test_architecture.py")
            continue
        names = set(imports(path, root, at_once=not own))
        tops = {name.split(".")[0] for name in names}
        at_once[module] = set(imports(path, root, at_once=True))
        if "click" in tops and own not in CLICK:
            found.append(f"{module} imports click")
        if own and own not in STYLE_BASED and STYLE_ATTRIBUTE.search(path.read_text(encoding="utf-8")):
            found.append(f"{module} reaches into a generator: use contracts.Generator")
        if not module.startswith(MAY_NAME_TORCH_UTILS):
            found += [f"{module} imports {top}" for top in sorted(tops & {"torch_utils", "dnnlib"})]
        others = {component(name) for name in names if name.split(".")[0] == "refine"} & LEVEL.keys() - {own}
        found += [
            f"{module} imports refine.{other}" for other in sorted(others) if not own or LEVEL[other] > LEVEL[own]
        ]
    found += [
        f"refine.report reaches torch through refine.{via}" for via in sorted(ways_to_torch("refine.report", at_once))
    ]
    for package, allowed in NEIGHBORS.items():
        for path in sorted((root / package).rglob("*.py")):
            tops = {name.split(".")[0] for name in imports(path, root)}
            found += [f"{module_name(path, root)} imports {top}" for top in sorted((tops & OURS) - allowed)]
    entry = root / "refine.py"
    if entry.exists():
        names = set(imports(entry, root)) - {"refine.commands.run", "refine.commands.run.main"}
        found += [f"refine.py imports {name}" for name in sorted(names)]
    return found


def ways_to_torch(start: str, at_once: dict[str, set[str]]) -> set[str]:
    """Components with a module that imports torch and that importing a folder's modules imports, directly or not."""
    seen: set[str] = set()
    waiting = [module for module in at_once if module.startswith(start)]
    while waiting:
        name = waiting.pop()
        if name in at_once and name not in seen:
            seen.add(name)
            waiting += at_once[name]
            waiting.append(name.rpartition(".")[0])  # the package of a module is imported before it
    return {component(name) for name in seen if {n.split(".")[0] for n in at_once[name]} & {"torch", "stylegan_ops"}}


def test_imports_go_one_way() -> None:
    assert (ROOT / "refine").is_dir()
    assert violations(ROOT) == []


LAZY = """
if TYPE_CHECKING:
    from refine import networks
def __getattr__(name):
    from refine import networks
"""


@pytest.mark.parametrize(
    ("file", "source", "sentence"),
    [
        ("refine/zoo.py", "import refine.runs.run", "refine.zoo imports refine.runs"),
        ("refine/zoo.py", "from refine import runs", "refine.zoo imports refine.runs"),
        ("refine/zoo.py", "from . import runs", "refine.zoo imports refine.runs"),
        ("refine/zoo.py", "def f():\n    from .runs import run", "refine.zoo imports refine.runs"),
        ("refine/pickles/reader.py", "from .. import networks", "refine.pickles.reader imports refine.networks"),
        ("refine/pickles/__init__.py", "from ..networks import x", "refine.pickles imports refine.networks"),
        ("refine/__init__.py", "from refine import errors", "refine imports refine.errors"),
        ("refine/__init__.py", "try:\n    import refine.errors\nfinally: pass", "refine imports refine.errors"),
        ("refine/errors.py", "import refine.zoo", "refine.errors imports refine.zoo"),
        ("refine/networks/edm.py", "import torch_utils.misc", "refine.networks.edm imports torch_utils"),
        ("refine/runs/run.py", "from dnnlib import EasyDict", "refine.runs.run imports dnnlib"),
        ("refine/report/page.py", "import torch.nn", "refine.report reaches torch through refine.report"),
        (
            "refine/report/page.py",
            "from refine.networks import edm",
            "refine.report reaches torch through refine.networks",
        ),
        ("refine/runs/run.py", "import click", "refine.runs.run imports click"),
        (
            "refine/runs/run.py",
            "ws = G.mapping(z, c)",
            "refine.runs.run reaches into a generator: use contracts.Generator",
        ),
        ("refine/unheard_of.py", "", "refine.unheard_of has no place: give it one in tests/test_architecture.py"),
        ("stylegan_ops/bias_act.py", "from refine import errors", "stylegan_ops.bias_act imports refine"),
        ("stylegan_ops/bias_act.py", "import torch_utils", "stylegan_ops.bias_act imports torch_utils"),
        ("torch_utils/misc.py", "import refine.errors", "torch_utils.misc imports refine"),
        ("dnnlib/util.py", "import torch_utils", "dnnlib.util imports torch_utils"),
        ("refine.py", "import torch", "refine.py imports torch"),
    ],
)
def test_checker_notices(tmp_path: Path, file: str, source: str, sentence: str) -> None:
    good = {
        "refine.py": "from refine.commands.run import main",
        "refine/__init__.py": LAZY,
        "refine/errors.py": "import json",
        "refine/commands/run.py": "import click\nfrom refine import runs",
        "refine/runs/run.py": "from refine.pickles import reader\nfrom refine import networks",
        "refine/zoo.py": "from . import errors",
        "refine/pickles/__init__.py": "from .reader import load",
        "refine/pickles/reader.py": "from .. import errors",
        "refine/pickles/trusted.py": "def run():\n    import torch_utils.persistence",
        "refine/networks/__init__.py": "",
        "refine/networks/edm.py": "import torch\nimport stylegan_ops",
        "refine/report/page.py": "import refine.errors",
        "stylegan_ops/__init__.py": "import torch",
        "torch_utils/misc.py": "import dnnlib\nimport stylegan_ops",
        "dnnlib/util.py": "import json",
    }
    for name, text in good.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert violations(tmp_path) == []
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(good.get(file, "") + "\n" + source)
    assert sentence in violations(tmp_path)


def test_every_imported_package_is_a_declared_dependency() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    tables = re.findall(r"^[\w-]+ = \[(.*?)\]$", pyproject, flags=re.MULTILINE | re.DOTALL)
    packages = {re.split(r"[<>=\[]", entry)[0] for table in tables for entry in re.findall(r'"([^"]+)"', table)}
    renamed = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
    declared = {renamed.get(package, package.replace("-", "_")) for package in packages}
    for package in sorted(OURS):
        for path in (ROOT / package).rglob("*.py"):
            tops = {name.split(".")[0] for name in imports(path, ROOT)} - OURS - set(sys.stdlib_module_names)
            assert tops - {"", "__future__"} <= declared, path


def test_text_files_have_an_encoding():
    """On Windows the default is a code page, in which a folder called 猫 has no name."""
    without = []
    for top in ("refine", "stylegan_ops", "torch_utils", "dnnlib", "benchmarks"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and "sources" not in path.parts and is_text_without_encoding(node):
                    without.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not without


def is_text_without_encoding(call: ast.Call) -> bool:
    """True if a call reads or writes text in whatever encoding the system prefers."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    if name in ("read_text", "write_text"):
        return len(call.args) < {"read_text": 1, "write_text": 2}[name]
    if name not in ("open", "fdopen") or (
        isinstance(function, ast.Attribute) and ast.unparse(function.value) == "Image"
    ):
        return False
    values = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    modes = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    return bool(call.args or modes) and not any("b" in mode and len(mode) <= 3 for mode in modes)


def test_what_counts_as_an_encoding():
    for text, wrong in (
        ("open(path)", True), ("open(path, 'w')", True), ("path.open('a')", True), ("path.read_text()", True),
        ("path.write_text(t)", True), ("open(path, 'xb')", False), ("path.open('rb')", False),
        ("open(path, encoding='utf-8')", False), ("path.write_text(t, 'latin-1')", False), ("Image.open(f)", False),
    ):  # fmt: skip
        (call,) = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
        assert is_text_without_encoding(call) == wrong, text
