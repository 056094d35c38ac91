"""`alpro model ...`, and what every command that runs a model shares."""

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpro.artifact_names import find_artifact
from alpro.errors import InputError
from alpro.pipeline.cli.arguments import add_action, add_group, add_json, add_tracking_uri, add_workspace, user_path

if TYPE_CHECKING:
    from alpro import Model
    from alpro.shards.storage import Location

MODEL = (
    "a model folder, a stage (its newest artifact is taken), the fingerprint of an artifact or its first characters, "
    "STAGE@FINGERPRINT, or models:/NAME@ALIAS of the registry"
)
TASKS = ("pretrain", "retrieval", "qa", "prompter")  # of official checkpoints


def add_model_commands(commands: Any) -> None:
    """`alpro model ...`: the commands about model folders."""
    actions = add_group(commands, "model", "import, export and register models")
    add_import(actions)
    add_export(actions)
    add_register(actions)


def add_import(actions: Any) -> None:
    parser = add_action(
        actions,
        "import",
        import_model,
        "convert a checkpoint of the official ALPRO to a model folder",
        description="Reads only the tensors of a checkpoint of the official code and writes a model folder, which "
        "--pretrained and `pretrained` in a configuration take. The prompter of a pre-training checkpoint is written "
        "to OUT/prompter.",
    )
    parser.add_argument("file", type=user_path, metavar="FILE", help="the checkpoint")
    parser.add_argument("out", type=user_path, metavar="OUT", help="the folder to write, which must not exist yet")
    parser.add_argument("--task", required=True, choices=TASKS, help="what the checkpoint was trained for")
    parser.add_argument(
        "--tokenizer",
        type=os.path.expanduser,
        default="bert-base-uncased",
        metavar="NAME_OR_FOLDER",
        help="its BERT's tokenizer: a hub name, a folder, a tokenizer.json or a vocab.txt (default: bert-base-uncased)",
    )
    parser.add_argument(
        "--words",
        type=user_path,
        metavar="FILE",
        help="names of the entities (pretrain, prompter) or answers (qa) in the order of the head: a JSON list, JSON "
        "object of word to number (ans2label.json), or lines; without it they are numbered",
    )
    parser.add_argument(
        "--max-text-tokens",
        type=int,
        metavar="N",
        help="maximum word pieces of a text, as in its training (default: 30; for retrieval and qa 40)",
    )


def add_export(actions: Any) -> None:
    text = "write a folder that transformers and sentence-transformers load without this package"
    more = (
        "Its code is beside the weights: AutoModel, AutoProcessor and SentenceTransformer take trust_remote_code=True."
    )
    parser = add_action(actions, "export", export_model, text, more)
    add_model(parser)
    parser.add_argument(
        "folder", type=user_path, metavar="FOLDER", help="the folder to write, which must not exist yet"
    )
    parser.add_argument("--license", default="", metavar="NAME", help="license of the weights, for the model card")
    add_named_models(parser)


def add_register(actions: Any) -> None:
    text = "add a model to MLflow's registry, for mlflow.pyfunc.load_model"
    description = "Copies the model of an artifact to MLflow's registry as a new version of NAME."
    parser = add_action(actions, "register", register_model, text, description=description)
    parser.add_argument("model", metavar="MODEL", help=MODEL.rpartition(", or models:")[0])
    parser.add_argument("--name", required=True, help="name of the registered model")
    parser.add_argument("--alias", default="", help="an alias for this version, such as champion")
    add_workspace(parser, "folder of the artifacts")
    add_tracking_uri(parser)


def add_model(parser: argparse.ArgumentParser, what: str = "") -> None:
    parser.add_argument("model", metavar="MODEL", help=f"{what}{MODEL}")


def add_shared(parser: argparse.ArgumentParser) -> None:
    """The options of every command that runs a model and prints its results."""
    add_json(parser)
    add_model_use(parser)


def add_model_use(parser: argparse.ArgumentParser) -> None:
    """The options of every command that runs a model."""
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the GPU if there is one"
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="precision of the encoders; auto: bfloat16 if this machine computes it faster",
    )
    add_named_models(parser)


def add_named_models(parser: argparse.ArgumentParser) -> None:
    add_workspace(parser, "folder of the artifacts that MODEL may name")
    add_tracking_uri(parser)


def model_path(arguments: argparse.Namespace, name: str) -> Path:
    """The folder of the model that a person names. Raises InputError if there is none."""
    from alpro.inference.find import find_model

    if not name.startswith("models:/"):
        return find_model(name, arguments.workspace)
    from alpro.pipeline.tracking.registry import registered_folder

    database = arguments.workspace.resolve() / "mlflow.db"
    if not arguments.tracking_uri and not database.is_file():  # MLflow would create it
        raise InputError(f"{name}: no MLflow store {database}; name the server with --tracking-uri")
    return registered_folder(arguments.tracking_uri or f"sqlite:///{database}", name)


def videos_at(arguments: argparse.Namespace, name: str) -> "Location":
    """Where videos are that a person names: a file or folder, a URL, or a decoded corpus of the workspace."""
    from alpro.shards.storage import absolute

    videos = absolute(name)
    if isinstance(videos, Path) and not videos.exists() and re.fullmatch(r"[\w-]+(@\w+)?", name):
        videos, _ = find_artifact(name, arguments.workspace)
    return videos


def load(arguments: argparse.Namespace, folder: Path, prompts: Path | str = "") -> "Model":
    from alpro import Model

    return Model.from_pretrained(folder, prompts, device=arguments.device, dtype=arguments.dtype)


def import_model(arguments: argparse.Namespace) -> None:
    from alpro.models.import_checkpoint import import_checkpoint

    imported = import_checkpoint(
        arguments.file,
        arguments.out,
        arguments.task,
        arguments.tokenizer,
        arguments.words,
        max_text_tokens=arguments.max_text_tokens,
    )
    video, text = imported.config.video, imported.config.text
    print(f"{arguments.out}: {imported.read} tensors read")
    print(
        f"  video {video.image_size} x {video.image_size}, patch {video.patch_size}, {video.frames} frames, "
        f"{video.depth} blocks; text {text.fusion_layer} + {text.depth - text.fusion_layer} layers; width {video.width}"
    )
    for what, keys in (("not used by the model", imported.unused), ("unknown", imported.unknown)):
        if keys:
            print(f"  {what}: {len(keys)} tensors")
            print("".join(f"    {key}\n" for key in sorted(keys)), end="")
    for remark in imported.remarks:
        print(f"  {remark}")


def export_model(arguments: argparse.Namespace) -> None:
    from alpro import Model
    from alpro.inference.export import export
    from alpro.inference.find import find_prompter
    from alpro.pipeline.reports.card import model_card

    folder = model_path(arguments, arguments.model).resolve()
    if arguments.folder.exists():  # before the model is loaded
        raise InputError(f"{arguments.folder}: exists already; choose another folder")
    inside, prompts = find_prompter(folder)
    model = Model.from_pretrained(inside, prompts, device="cpu")
    export(model, arguments.folder, model_card(inside, model.folder, arguments.folder.name, arguments.license))
    print(f"{arguments.folder}: a {model.folder.task} model for transformers; README.md is its model card")


def register_model(arguments: argparse.Namespace) -> None:
    from alpro.pipeline.tracking.registry import register

    workspace = arguments.workspace.resolve()
    uri = arguments.tracking_uri or f"sqlite:///{workspace / 'mlflow.db'}"
    artifact = find_artifact(arguments.model, workspace)
    version = register(uri, workspace, *artifact, arguments.name, arguments.alias)
    loaded = f"models:/{arguments.name}{'@' + arguments.alias if arguments.alias else '/' + version}"
    print(f"{arguments.name}, version {version}; load it with mlflow.pyfunc.load_model({loaded!r})")
