"""Promises of the project as a whole: the direction of imports, start-up, what is in the packages."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import torchmoji_core

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "torchmoji_core": {"torchmoji_core"},
    "transforms": {"torchmoji_core", "transforms"},
    "pipelines": {"torchmoji_core", "transforms", "pipelines"},
}
OURS = set(ALLOWED)
ROOMS: dict[str, set[str]] = {
    "transforms/storage": set(),
    "transforms/input": {"transforms/storage"},
    "transforms/scoring": {"transforms/storage"},
    "transforms/output": {"transforms/storage"},
    "pipelines/cli": set(),
    "pipelines/data_set": set(),
    "pipelines/runs": {"pipelines/cli", "pipelines/data_set"},
    "pipelines/streams": {"pipelines/cli", "pipelines/data_set", "pipelines/runs"},
}
"""Folders, and which others of the same package they may import from. No folder imports a command."""


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        names = imported(file)
        assert names & OURS <= ALLOWED[package], file
        if package == "torchmoji_core":
            assert "apache_beam" not in names, file


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Our modules, as paths, and which others each imports: also inside functions, and for types alone."""
    paths = {path.relative_to(ROOT).as_posix() for package in OURS for path in (ROOT / package).rglob("*.py")}
    found: dict[str, set[str]] = {}
    for path in paths:
        found[path] = set()
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            found[path] |= paths & {f"{name.replace('.', '/')}.py" for name in names}
    return found


def test_no_imports_go_round_in_a_circle(imports: dict[str, set[str]]) -> None:
    TopologicalSorter(imports).prepare()  # raises a CycleError that names the modules


def test_folders_are_imported_in_one_direction(imports: dict[str, set[str]]) -> None:
    commands = {path for path in imports if path.rpartition("/")[0] == "pipelines"}
    for path, others in imports.items():
        folder = path.rpartition("/")[0]
        if folder in ROOMS:
            package = folder.partition("/")[0]
            met = {other.rpartition("/")[0] for other in others if other.startswith(package)} & ROOMS.keys()
            assert met <= ROOMS[folder] | {folder}, path
            assert not others & commands, path


def private_names(path: Path) -> Iterator[str]:
    """What a file uses of others that is private there: in attributes, imports, and names that it gives to setattr."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    imports = [alias for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules = {alias.asname or alias.name.partition(".")[0] for alias in imports} - OURS  # os._exit may be used
    for node in nodes:
        owner, names = "", []
        if isinstance(node, ast.Attribute):
            owner, names = ast.unparse(node.value), [node.attr]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("attr"):
            owner = ast.unparse(node.args[0])
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        if owner not in ("self", "cls") and owner.partition(".")[0] not in modules:
            yield from (name for name in names if re.search(r"(^|\.)_[a-zA-Z]", name))


def test_tests_use_public_names() -> None:
    """What a test shows is then what a user would notice, and code can be changed behind its names."""
    of_tuples = {"_replace", "_asdict", "_fields", "_make"}
    found = {str(path): {*private_names(path)} - of_tuples for path in (ROOT / "tests").rglob("*.py")}
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize("command", ["score", "convert", "pretrain", "vocabulary"])
def test_help_needs_neither_beam_nor_torch(command: str) -> None:
    program = (
        f"import sys, pipelines.{command} as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'apache_beam', 'torch'} & sys.modules.keys(), sys.modules.keys()\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert f"python -m pipelines.{command}" in finished.stdout


def test_the_hooks_of_all_tests_need_no_torch() -> None:
    """The environment of `make test-airflow` has none."""
    program = "import sys; sys.modules['torch'] = None; import tests.conftest"
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_what_torchmoji_core_exports_is_there_and_says_what_it_is() -> None:
    assert sorted(torchmoji_core.__all__) == sorted(set(torchmoji_core.__all__))
    for name in torchmoji_core.__all__:
        assert (getattr(torchmoji_core, name).__doc__ or "").strip(), name


def test_without_scikit_learn_all_else_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import of * takes what `__all__` has, and scikit-learn is an extra."""
    monkeypatch.setitem(sys.modules, "sklearn", None)
    exported = runpy.run_path(str(torchmoji_core.__file__))["__all__"]
    assert set(torchmoji_core.__all__) - set(exported) == {"EmojiFeatures", "TweetClassifier"}
    assert set(torchmoji_core.__all__) <= set(dir(torchmoji_core))


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist and the wheel, built from what git knows."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(source)]
    finished = subprocess.run(build, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    (sdist,), (wheel,) = target.glob("*.tar.gz"), target.glob("*.whl")
    return sdist, wheel


NEEDED = (
    "pipelines/score.py",
    "pipelines/sample/posts.jsonl",
    "transforms/annotate.py",
    "torchmoji_core/inference/engine.py",
    "torchmoji_core/training/pretraining.py",
    "torchmoji_core/py.typed",
    "torchmoji_core/bundles/emoji64-small/model.safetensors",
    "torchmoji_core/bundles/emoji64-small/vocabulary.json",
    "torchmoji_core/bundles/emoji64-small/config.json",
    "torchmoji_core/bundles/emoji64-small/MODEL_CARD.md",
)


def test_distributions_hold_all_packages_and_the_model(distributions: tuple[Path, Path]) -> None:
    sdist, wheel = distributions
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive_:
        in_wheel = set(archive_.namelist())
    for name in NEEDED:
        assert name in in_sdist and name in in_wheel, name
    assert "setup.py" in in_sdist
    assert {name.partition("/")[0] for name in in_wheel} <= OURS | {f"{wheel.name.rsplit('-', 3)[0]}.dist-info"}


def test_the_sdist_installs_and_runs_elsewhere(distributions: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "site"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([sys.executable, *install, str(distributions[0])], check=True, capture_output=True)
    program = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import torchmoji_core, transforms, pipelines\n"
        f"assert torchmoji_core.__file__.startswith({str(target)!r})\n"
        "print(torchmoji_core.load_bundle().score(['so happy today']).top(1))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr


def test_the_core_alone_has_the_bounds_of_the_component() -> None:
    """Two distributions hold torchmoji_core. Only the component writes Parquet, which needs a newer pyarrow."""
    whole, core = (
        tomllib.loads((ROOT / directory / "pyproject.toml").read_text())["project"]["dependencies"]
        for directory in ("", "torchmoji_core")
    )
    assert set(core) - set(whole) == {"pyarrow>=16"}
    assert not [bound for bound in core if bound.startswith("apache-beam")]


def test_the_model_is_small_enough_for_the_repository() -> None:
    for bundle in (ROOT / "torchmoji_core" / "bundles").iterdir():
        assert sum(file.stat().st_size for file in bundle.iterdir()) <= 12_000_000, bundle
