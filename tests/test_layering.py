"""Imports run one way: pipeline -> inference -> stages -> {models, shards}; a GPU worker needs few packages."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {  # each room and the rooms that it knows
    "models": set(),
    "shards": set(),
    "stages": {"models", "shards"},
    "inference": {"models", "shards", "stages"},
    "pipeline": {"models", "shards", "stages", "inference"},
}
ONLY_IN = {  # packages that one room or file may import
    "prefect": ("pipeline/flows/", "pipeline/servers/"),
    "mlflow": "pipeline/tracking/",
    "spacy": "stages/vocabulary/nouns.py",
    "matplotlib": "pipeline/reports/figures.py",
    "jinja2": "pipeline/reports/pages.py",
    # What is exported runs without the decoder of this package.
    "av": ("shards/decoding.py", "stages/render_sample.py", "inference/hub/processing_alpro.py"),
    "ffmpeg": "shards/decoding.py",
    "imageio_ffmpeg": "shards/decoding.py",
    "fsspec": "shards/storage.py",
    "gradio": "pipeline/serving/",
}


PIPELINE = (
    "config",
    "store",
    "plan",
    "execution",
    "reports",
    "tracking",
    "servers",
    "flows",
    "studies",
    "serving",
    "cli",
)


def sources() -> list[Path]:
    return [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]


def modules(file: Path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module != "alpro.pipeline", f"{file}: name the package of pipeline/"
            names.add(node.module)
    return names


def imported(file: Path) -> set[str]:
    """The packages that a file imports: `torch` for torch.nn, `stages` for alpro.stages.training."""
    return {name.removeprefix("alpro.").split(".")[0] for name in modules(file)}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
    files = [file for file in sources() if file.relative_to(ROOT).parts[0] == room]
    assert len(files) > 4
    for file in files:
        assert (imported(file) & ROOMS.keys()) - {room} <= ROOMS[room], file


@pytest.mark.parametrize("package", ONLY_IN)
def test_only_one_place_imports(package):
    users = [str(file.relative_to(ROOT)) for file in sources() if package in imported(file)]
    assert users, f"nobody imports {package}: take it out of this table"
    assert [user for user in users if not user.startswith(ONLY_IN[package])] == []


def test_rooms_of_the_pipeline_import_one_way():
    """Each package of pipeline/ imports only those before it in PIPELINE."""
    for file in sorted((ROOT / "pipeline").glob("*/**/*.py")):
        room = file.relative_to(ROOT).parts[1]
        others = {name.split(".")[2] for name in modules(file) if name.startswith("alpro.pipeline.")}
        assert others <= set(PIPELINE[: PIPELINE.index(room) + 1]), file


def test_shards_and_models_do_not_know_each_others_libraries():
    for file in sources():
        room = file.relative_to(ROOT).parts[0]
        if room == "shards":
            assert not imported(file) & {"torch", "transformers", "tokenizers"}, file
        if room == "models":
            assert not imported(file) & {"pyarrow", "PIL", "webdataset"}, file


LIGHT = (
    "alpro.models.alpro",
    "alpro.models.folder",
    "alpro.shards.reader",
    "alpro.stages.training.loop",
    "alpro.stages.pretrain",
    "alpro.pipeline.execution.run_stage",
)
STAGES = ("train_prompter", "cache_prompts", "pretrain", "zero_shot", "finetune_retrieval", "finetune_qa", "evaluate")
HEAVY = ("prefect", "mlflow", "spacy", "matplotlib", "av", "ffmpeg", "jinja2", "pandas")


def test_models_training_and_reading_run_without_the_libraries_of_the_pipeline():
    program = f"""
import sys
for name in {HEAVY!r}:
    sys.modules[name] = None
from importlib import import_module
for name in {(*LIGHT, *(f"alpro.stages.{stage}" for stage in STAGES))!r}:
    import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
