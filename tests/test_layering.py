"""Imports run one way: pipeline -> stages -> inference -> models, shards -> alpro; a GPU worker
needs few packages."""

import ast
import functools
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.conftest import ROOT

# What the files of a room do not import: rooms, and libraries that other rooms need.
FOREIGN = {
    "models": {
        "shards",
        "stages",
        "inference",
        "pipeline",
        "pyarrow",
        "PIL",
        "webdataset",
    },
    "shards": {
        "models",
        "stages",
        "inference",
        "pipeline",
        "torch",
        "transformers",
        "tokenizers",
    },
    "inference": {"stages", "pipeline"},
    "stages": {"pipeline"},
    "pipeline": {"torch"},
}
ONLY_IN = {  # packages that one room or file may import
    "prefect": "pipeline/flows/",
    "mlflow": "pipeline/tracking/",
    "spacy": "stages/vocabulary/nouns.py",
    "lancedb": "inference/index.py",
    "markdown_it": "pipeline/reports/document.py",
    "matplotlib": "pipeline/reports/",
    "av": ("shards/video_file.py", "stages/render_sample.py"),
    "ffmpeg": "shards/ffmpeg_copy.py",
    "imageio_ffmpeg": "shards/ffmpeg_copy.py",
    "fsspec": "shards/storage.py",
    "distributed": "alpro/pool.py",
}
# The folders of a room, each of which imports only those before it. The modules beside them, such
# as the stages, may import all of them.
FOLDERS_IN_ORDER = {
    "stages": ["execution", "corpora", "vocabulary", "evaluation", "training"],
    "pipeline": [
        "config",
        "store",
        "plan",
        "execution",
        "reports",
        "tracking",
        "flows",
        "serving",
        "cli",
    ],
}
# Names two classes of rooms above it, when they are used.
PUBLIC_FACE = Path("alpro/__init__.py")


@functools.cache
def modules():
    """The modules that each file imports, anywhere in it."""
    files = sorted((ROOT / "alpro").glob("*.py"))  # the ground floor
    for room in FOREIGN:
        files += sorted((ROOT / room).rglob("*.py"))

    found = {}
    for file in files:
        names = set()
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: relative import"
                assert node.module != "alpro.pipeline", (
                    f"{file}: name the package of pipeline/"
                )
                names.add(node.module)
        found[file.relative_to(ROOT)] = names
    return found


def packages(names):
    """`torch` for torch.nn, `stages` for alpro.stages.training."""
    return {name.removeprefix("alpro.").split(".")[0] for name in names}


def test_imports_run_one_way():
    for file, names in modules().items():
        room = file.parts[0]
        if file != PUBLIC_FACE:
            assert not packages(names) & FOREIGN.get(room, set(FOREIGN)), file
        # Installed, a room is `alpro.models`; `models` would be the folder of the user.
        assert not {name.split(".")[0] for name in names} & FOREIGN.keys(), file


def test_imports_between_the_folders_of_a_room_run_one_way():
    for file, names in modules().items():
        room = file.parts[0]
        if room not in FOLDERS_IN_ORDER or len(file.parts) == 2:
            continue
        order = FOLDERS_IN_ORDER[room]
        inside = {
            name.split(".")[2] for name in names if name.startswith(f"alpro.{room}.")
        }
        assert inside <= {*order[: order.index(file.parts[1]) + 1]}, file


def test_only_one_place_imports():
    for package, places in ONLY_IN.items():
        users = [
            str(file) for file, names in modules().items() if package in packages(names)
        ]
        assert users, f"nobody imports {package}: take it out of this table"
        assert [user for user in users if not user.startswith(places)] == [], package


LIGHT = [
    "models.alpro",
    "models.folder",
    "shards.reader",
    "stages.training.loop",
    "pipeline.execution.run_stage",
]
LIGHT += [
    f"stages.{stage}"
    for stage in ("train_prompter", "cache_prompts", "pretrain", "evaluate")
]
LIGHT += ["stages.finetune_retrieval", "stages.finetune_qa"]
HEAVY = (
    "prefect",
    "mlflow",
    "spacy",
    "matplotlib",
    "av",
    "ffmpeg",
    "markdown_it",
    "pandas",
    "lancedb",
)


def test_models_training_and_reading_run_without_the_libraries_of_the_pipeline():
    program = f"""
import sys
for name in {HEAVY!r}:
    sys.modules[name] = None
from importlib import import_module
for name in {LIGHT!r}:
    import_module("alpro." + name)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_wheel_contains_the_package_and_its_data_alone(tmp_path):
    """Of a copy of the project, since setuptools writes into the source folder."""
    source = tmp_path / "source"
    folders = ("alpro", *FOREIGN)
    for name in (*folders, "tests", "docs", "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        # The links in alpro/ stay links: they are what setuptools follows.
        shutil.copytree(
            ROOT / name, source / name, ignore=ignored, symlinks=name == "alpro"
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        *options,
        "--wheel-dir",
        tmp_path,
        source,
    ]
    subprocess.run(build, check=True)

    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    described = {name for name in names if ".dist-info/" in name}
    files = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(ROOT).as_posix()
                files.add(name if folder == "alpro" else f"alpro/{name}")
    assert names - described == files
    # Beside exported code.
    assert any(name.endswith("/licenses/LICENSE") for name in described)
