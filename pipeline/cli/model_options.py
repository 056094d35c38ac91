"""The options of `alpro model ...`. The commands are in `model_commands.py`, which is only imported to run one."""

import argparse
import os
from typing import Any

from alpro.inputs import WHOLE, Box, parse_box
from alpro.pipeline.cli.arguments import (
    add_action,
    add_group,
    add_json,
    add_tracking_uri,
    add_workspace,
    natural,
    port,
    positive,
    user_path,
)

MODEL = (
    "a model folder, a stage (its newest artifact is taken), the fingerprint of an artifact or its first characters, "
    "STAGE@FINGERPRINT, or models:/NAME@ALIAS of the registry"
)
TASKS = ("pretrain", "retrieval", "qa", "prompter")  # of official checkpoints


def add_model_commands(commands: Any) -> None:
    """`alpro model ...`: the commands about trained models."""
    actions = add_group(commands, "model", "search videos, ask questions, import, export and register models")
    add_index(actions)
    add_search(actions)
    add_ask(actions)
    add_entities(actions)
    add_demo(actions)
    add_import(actions)
    add_export(actions)
    add_register(actions)


def add_index(actions: Any) -> None:
    parser = add_action(
        actions,
        "index",
        "embed videos into an index for `alpro model search`",
        "Videos that the index has are skipped, so the command also adds new ones and continues after an interruption.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "videos", metavar="VIDEOS", help="a folder of videos and images, a manifest, or a decoded corpus"
    )
    parser.add_argument("index", type=user_path, metavar="INDEX", help="the folder of the index")
    add_shared(parser)


def add_search(actions: Any) -> None:
    parser = add_action(
        actions,
        "search",
        "search an index for the videos that fit a text best",
        "All clips are ranked by similarity (VTC), then the best of them are decoded and ranked by matching (VTM).",
    )
    parser.add_argument("index", type=user_path, metavar="INDEX", help="a folder that `alpro model index` filled")
    parser.add_argument("text", metavar="TEXT", help="what the videos should show")
    parser.add_argument("-k", type=positive, default=10, metavar="N", help="number of results (default: 10)")
    parser.add_argument(
        "--rerank",
        type=natural,
        default=20,
        metavar="N",
        help="number of clips that are ranked by matching (default: 20; 0: none)",
    )
    parser.add_argument("--model", default="", metavar="MODEL", help="the index's model, if it has moved")
    add_shared(parser)


def add_ask(actions: Any) -> None:
    parser = add_action(
        actions,
        "ask",
        "answer a question about a video, from the model's list of answers",
        "The answers are those of the training questions that the model was fine-tuned with; it gives no others.",
    )
    add_model_and_video(parser, "a model of finetune_qa", "answers", 3)
    parser.add_argument("question", metavar="QUESTION", help="the question, in quotes")
    add_shared(parser)


def add_entities(actions: Any) -> None:
    parser = add_action(
        actions,
        "entities",
        "name the entities in a video, or in a region of it, with the prompter",
        "The names are those of the vocabulary; there are no others.",
    )
    add_model_and_video(parser, "a prompter, or a model that was trained with one", "entities", 5)
    parser.add_argument(
        "--box",
        type=box,
        default=WHOLE,
        metavar="X,Y,W,H",
        help="left, top, width and height of a region as fractions of the frame, 0 to 1 (default: 0,0,1,1)",
    )
    add_shared(parser)


def add_model_and_video(parser: argparse.ArgumentParser, what: str, results: str, number: int) -> None:
    """The arguments of the commands about one video. what: the models that the command takes."""
    parser.add_argument("model", metavar="MODEL", help=f"{what}: {MODEL}")
    parser.add_argument("video", metavar="VIDEO", help="a video or an image: a file or a URL")
    parser.add_argument(
        "-k", type=positive, default=number, metavar="N", help=f"number of {results} (default: {number})"
    )


def add_demo(actions: Any) -> None:
    parser = add_action(
        actions,
        "demo",
        "open a page to search videos, ask questions and name entities",
        "What the page offers follows from the models. Only this machine reaches it, unless --host says otherwise.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "--index", type=user_path, metavar="INDEX", help="an index of MODEL (`alpro model index`), to search"
    )
    parser.add_argument("--ask", default="", metavar="MODEL", help="a model of finetune_qa, if MODEL is another")
    parser.add_argument("--entities", default="", metavar="MODEL", help="a prompter, if MODEL was trained without one")
    parser.add_argument(
        "--rerank", type=natural, default=20, metavar="N", help="number of clips ranked by matching (default: 20)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default 127.0.0.1)"
    )
    parser.add_argument("--port", type=port, default=7860, help="port to listen on (default 7860)")
    parser.add_argument(
        "--max-upload", type=positive, default=200, metavar="MIB", help="largest upload in MiB (default: 200)"
    )
    add_model_use(parser)


def add_import(actions: Any) -> None:
    parser = add_action(
        actions,
        "import",
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
        help="maximum word pieces of a text, as in its training (default: 30 for pretrain and prompter, 40 for "
        "retrieval and qa; the official DiDeMo model has 50)",
    )


def add_export(actions: Any) -> None:
    parser = add_action(
        actions,
        "export",
        "write a folder that Hugging Face transformers loads without this package",
        "Its code is beside the weights: AutoModel and AutoProcessor load it with trust_remote_code=True.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "folder", type=user_path, metavar="FOLDER", help="the folder to write, which must not exist yet"
    )
    parser.add_argument("--license", default="", metavar="NAME", help="license of the weights, for the model card")
    add_workspace(parser, "folder of the artifacts that MODEL may name")
    add_tracking_uri(parser)


def add_register(actions: Any) -> None:
    parser = add_action(
        actions,
        "register",
        "add a model to MLflow's registry, for mlflow.pyfunc.load_model",
        description="Copies the model of an artifact to MLflow's registry as a new version of NAME.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL.rpartition(", or models:")[0])
    parser.add_argument("--name", required=True, help="name of the registered model")
    parser.add_argument("--alias", default="", help="an alias for this version, such as champion")
    add_workspace(parser, "folder of the artifacts")
    add_tracking_uri(parser)


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
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="precision of the encoders"
    )
    add_workspace(parser, "folder of the artifacts that MODEL may name")
    add_tracking_uri(parser)


def box(text: str) -> Box:
    """The region of X,Y,W,H."""
    try:
        return parse_box(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
