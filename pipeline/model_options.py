"""The options of `alpro model ...`. The commands are in `model_commands.py`, which is only imported to run one."""

import argparse

from alpro.pipeline.options import add_tracking_uri, add_workspace, port, user_path

MODEL = "a model folder, the fingerprint of an artifact or its first characters, or models:/NAME@ALIAS of the registry"


def add_model_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`alpro model ...`: the commands about trained models."""
    text = "search videos, ask questions, export and register a model"
    group = commands.add_parser("model", help=text, description=f"{text[0].upper()}{text[1:]}.")
    actions = group.add_subparsers(metavar="COMMAND", required=True)
    add_index(actions)
    add_search(actions)
    add_ask(actions)
    add_entities(actions)
    add_demo(actions)
    add_export(actions)
    add_register(actions)


def add_action(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str, more: str = ""
) -> argparse.ArgumentParser:
    """The parser of `alpro model NAME`."""
    parser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}".rstrip())
    parser.set_defaults(command=f"model {name}")
    return parser


def add_index(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
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
    parser.add_argument(
        "--approximate", action="store_true", help="also build an approximate index, for millions of clips (FAISS)"
    )
    add_shared(parser)


def add_search(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
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
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="rank with the approximate index, which may miss clips (default: compare with every clip)",
    )
    add_shared(parser)


def add_ask(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_action(
        actions,
        "ask",
        "answer a question about a video, from the model's list of answers",
        "The answers are those of the training questions that the model was fine-tuned with; it gives no others.",
    )
    parser.add_argument("model", metavar="MODEL", help=f"a model of finetune_qa: {MODEL}")
    parser.add_argument("video", metavar="VIDEO", help="a video or an image: a file or a URL")
    parser.add_argument("question", metavar="QUESTION")
    parser.add_argument("-k", type=positive, default=3, metavar="N", help="number of answers (default: 3)")
    add_shared(parser)


def add_entities(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_action(
        actions,
        "entities",
        "name the entities in a video, or in a region of it, with the prompter",
        "The names are those of the vocabulary; there are no others.",
    )
    parser.add_argument("model", metavar="MODEL", help=f"a prompter, or a model that was trained with one: {MODEL}")
    parser.add_argument("video", metavar="VIDEO", help="a video or an image: a file or a URL")
    parser.add_argument(
        "--box",
        type=box,
        default=(0.0, 0.0, 1.0, 1.0),
        metavar="X,Y,W,H",
        help="left, top, width and height of a region as fractions of the frame, 0 to 1 (default: 0,0,1,1)",
    )
    parser.add_argument("-k", type=positive, default=5, metavar="N", help="number of entities (default: 5)")
    add_shared(parser)


def add_demo(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
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


def add_export(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
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
    parser.add_argument("--license", default="", metavar="NAME", help="licence of the weights, for the model card")
    add_workspace(parser, "folder of the artifacts that MODEL may name")
    add_tracking_uri(parser)


def add_register(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = actions.add_parser(
        "register",
        help="add a model to MLflow's registry, for mlflow.pyfunc.load_model",
        description="Copies the model of an artifact to MLflow's registry as a new version of NAME.",
    )
    parser.set_defaults(command="model register")
    parser.add_argument(
        "fingerprint", help="of an artifact with a model, as `alpro artifacts ls` prints it, or the first characters"
    )
    parser.add_argument("--name", required=True, help="name of the registered model")
    parser.add_argument("--alias", default="", help="an alias for this version, such as champion")
    add_workspace(parser, "folder of the artifacts")
    add_tracking_uri(parser)


def add_shared(parser: argparse.ArgumentParser) -> None:
    """The options of every command that runs a model and prints its results."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
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


def natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, 0 or more")
    return int(text)


def positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, 1 or more")
    return int(text)


def box(text: str) -> tuple[float, float, float, float]:
    """X,Y,W,H as fractions of the frame."""
    try:
        left, top, width, height = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not four numbers X,Y,W,H") from None
    inside = 0 <= left < 1 and 0 <= top < 1 and 0 < width <= 1 and 0 < height <= 1
    if not inside or left + width > 1 + 1e-6 or top + height > 1 + 1e-6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a region of the frame: fractions from 0 to 1")
    return left, top, width, height
