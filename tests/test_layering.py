"""Imports run one way: pipeline -> inference -> stages -> {models, shards}; a GPU worker needs few packages."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What the files of a room do not import: rooms, and libraries that other rooms need.
FOREIGN = {
    "models": {"shards", "stages", "inference", "pipeline", "pyarrow", "PIL", "webdataset"},
    "shards": {"models", "stages", "inference", "pipeline", "torch", "transformers", "tokenizers"},
    "stages": {"inference", "pipeline"},
    "inference": {"pipeline"},
    "pipeline": set(),
}
ONLY_IN = {  # packages that one room or file may import
    "prefect": "pipeline/flows/",
    "mlflow": "pipeline/tracking/",
    "spacy": "stages/vocabulary/nouns.py",
    "jinja2": "pipeline/reports/page.py",
    # What is exported runs without the decoder of this package.
    "av": ("shards/decoding.py", "stages/render_sample.py", "inference/hub/processing_alpro.py"),
    "ffmpeg": "shards/decoding.py",
    "imageio_ffmpeg": "shards/decoding.py",
    "fsspec": "shards/storage.py",
}
# Of pipeline/, each imports only those before it.
PIPELINE = ["config", "store", "plan", "execution", "reports", "tracking", "flows", "serving", "cli"]


@functools.cache
def modules() -> dict[Path, set[str]]:
    """The modules that each file imports, anywhere in it."""
    found = {}
    for file in (file for room in FOREIGN for file in sorted((ROOT / room).rglob("*.py"))):
        nodes = list(ast.walk(ast.parse(file.read_text("utf-8"))))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        froms = {(node.level, node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        assert {level for level, _ in froms} <= {0}, f"{file}: relative import"
        assert (0, "alpro.pipeline") not in froms, f"{file}: name the package of pipeline/"
        found[file.relative_to(ROOT)] = names | {module for _, module in froms}
    return found


def packages(names: set[str]) -> set[str]:
    """`torch` for torch.nn, `stages` for alpro.stages.training."""
    return {name.removeprefix("alpro.").split(".")[0] for name in names}


def test_imports_run_one_way():
    for file, names in modules().items():
        assert not packages(names) & FOREIGN[file.parts[0]], file
        if file.parts[0] == "pipeline" and len(file.parts) > 2:
            others = {name.split(".")[2] for name in names if name.startswith("alpro.pipeline.")}
            assert others <= set(PIPELINE[: PIPELINE.index(file.parts[1]) + 1]), file


def test_only_one_place_imports():
    for package, places in ONLY_IN.items():
        users = [str(file) for file, names in modules().items() if package in packages(names)]
        assert users, f"nobody imports {package}: take it out of this table"
        assert [user for user in users if not user.startswith(places)] == [], package


LIGHT = ["models.alpro", "models.folder", "shards.reader", "stages.training.loop", "pipeline.execution.run_stage"]
LIGHT += [f"stages.{stage}" for stage in ("train_prompter", "cache_prompts", "pretrain", "zero_shot", "evaluate")]
LIGHT += ["stages.finetune_retrieval", "stages.finetune_qa"]
HEAVY = ("prefect", "mlflow", "spacy", "matplotlib", "av", "ffmpeg", "jinja2", "pandas")


def test_models_training_and_reading_run_without_the_libraries_of_the_pipeline():
    program = f"""
import sys
for name in {HEAVY!r}:
    sys.modules[name] = None
from importlib import import_module
for name in {LIGHT!r}:
    import_module("alpro." + name)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
