"""`alpro demo`: loads the models, and serves the page until Ctrl-C."""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpro.errors import InputError
from alpro.pipeline.cli.arguments import add_action, port, positive, user_path
from alpro.pipeline.cli.index import add_rerank, open_index
from alpro.pipeline.cli.model import add_model, add_model_use, load, model_path
from alpro.pipeline.servers.checks import check_port

if TYPE_CHECKING:
    from alpro.pipeline.demo.answers import Models
    from alpro.stages.inference.index import Index


def add_demo(actions: Any) -> None:
    text = "open a page to search videos, ask questions and name entities"
    more = "What the page offers follows from the models. Only this machine reaches it, unless --host says otherwise."
    parser = add_action(actions, "demo", serve, text, more)
    add_model(parser)
    parser.add_argument("--index", type=user_path, metavar="INDEX", help="an index of MODEL, to search")
    parser.add_argument("--ask", default="", metavar="MODEL", help="a model of finetune_qa, if MODEL is another")
    parser.add_argument(
        "--entities", default="", metavar="MODEL", help="a prompter, or a model of pretrain, if MODEL is another"
    )
    add_rerank(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default 127.0.0.1)"
    )
    parser.add_argument("--port", type=port, default=7860, help="port to listen on (default 7860)")
    parser.add_argument(
        "--max-upload", type=positive, default=200, metavar="MIB", help="largest upload in MiB (default: 200)"
    )
    add_model_use(parser)


def serve(arguments: argparse.Namespace) -> None:
    """Raises InputError if the page cannot start."""
    from alpro.pipeline.demo import server
    from alpro.pipeline.demo.answers import Demo
    from alpro.pipeline.demo.media import Media
    from alpro.pipeline.servers.origin import LOCAL

    check_port("--port", arguments.port, arguments.host)
    index = open_index(arguments.index) if arguments.index else None
    with tempfile.TemporaryDirectory(prefix="alpro-demo-") as temporary:
        uploads, converted = Path(temporary, "uploads"), Path(temporary, "converted")
        uploads.mkdir()
        converted.mkdir()
        server.prepare_gradio(uploads)
        models = load_models(arguments, index)
        media = Media(index, converted, models.any().folder.model.config.video)
        demo = Demo(models, media, rerank=arguments.rerank)
        app = server.application(demo, arguments.host, uploads, arguments.max_upload)
        if arguments.host not in LOCAL:
            print("warning: everyone who reaches this address can use the page, without a password", file=sys.stderr)
        server.run(app, arguments.host, arguments.port)


def load_models(arguments: argparse.Namespace, index: "Index | None") -> "Models":
    """The models for what MODEL, --ask and --entities can do. Raises InputError if that is nothing."""
    from alpro.pipeline.demo.answers import Models
    from alpro.stages.inference.find import find_prompter, is_pretrained, model_digest
    from alpro.stages.inference.index import check_digest

    folder = model_path(arguments, arguments.model).resolve()
    if index:  # before the model is loaded
        check_digest(index.folder, index.about, folder, model_digest(folder))
    named = model_path(arguments, arguments.entities).resolve() if arguments.entities else folder
    prompter, prompts = find_prompter(named, follow=True)
    has_prompts = bool(prompts) or (prompter / "prompts.safetensors").is_file()
    own = load(arguments, folder, prompts if prompter == folder else "")
    ask = load(arguments, model_path(arguments, arguments.ask)) if arguments.ask else own
    entities = (own if prompter == folder else load(arguments, prompter, prompts)) if has_prompts else None
    pretrained = (own if named == folder else load(arguments, named)) if is_pretrained(named) else None
    if arguments.ask and not ask.folder.answers:
        raise InputError(
            f"{arguments.ask}: this {ask.folder.task} model does not answer questions; --ask takes a model of "
            "finetune_qa"
        )
    models = Models(index, own if index else None, ask if ask.folder.answers else None, entities, pretrained)
    if arguments.entities and not models.naming:
        raise InputError(
            f"{arguments.entities}: no prompter with embedded entities; --entities takes a train_prompter, "
            "cache_prompts or pretrain artifact"
        )
    if not (models.search or models.ask or models.naming):
        raise InputError(
            f"{folder}: this {own.folder.task} model has nothing to show alone; add --index INDEX to search, or --ask "
            "MODEL for questions"
        )
    return models
