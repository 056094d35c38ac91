"""`alpro serve`: loads the models, and serves the page and the API until Ctrl-C."""

import argparse
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpro.errors import InputError
from alpro.pipeline.cli.arguments import add_action, natural, port, user_path
from alpro.pipeline.cli.index import add_nothing_below, open_index
from alpro.pipeline.cli.model import add_model_use, load, model_path
from alpro.pipeline.servers.checks import check_port

if TYPE_CHECKING:
    from alpro import Model
    from alpro.pipeline.serving.app import Models

MIN_TOKEN = 16  # characters: guesses are not counted


def add_serve(actions: Any) -> None:
    text = "serve a page and an API to search videos, ask questions and name entities"
    more = "What they offer follows from the models. Only this machine reaches them, unless --host says otherwise."
    parser = add_action(actions, "serve", serve, text, more)
    parser.add_argument("index", nargs="?", type=user_path, metavar="INDEX", help="an index to search")
    help = "the model of INDEX, if it has moved; it also answers questions and names entities if it can"
    parser.add_argument("--model", default="", metavar="MODEL", help=help)
    parser.add_argument("--ask", default="", metavar="MODEL", help="a model of finetune_qa, for questions")
    parser.add_argument("--entities", default="", metavar="MODEL", help="a prompter, or a model of pretrain")
    help = "rank this many of the best clips by matching (default: 0)"
    parser.add_argument("--rerank", type=natural, default=0, metavar="N", help=help)
    add_nothing_below(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default 127.0.0.1)"
    )
    parser.add_argument("--port", type=port, default=7860, help="port to listen on (default 7860)")
    help = "a token that every request needs; required with another --host (default: $ALPRO_TOKEN)"
    parser.add_argument("--token-file", type=user_path, metavar="FILE", help=help)
    add_model_use(parser)


def serve(arguments: argparse.Namespace) -> None:
    """Raises InputError if the server cannot start."""
    from alpro.pipeline.serving import guard
    from alpro.pipeline.serving.app import application

    token = token_of(arguments.host, arguments.token_file)
    check_port("--port", arguments.port, arguments.host)
    app = application(load_models(arguments), arguments.rerank, arguments.nothing_below)
    guard.serve(guard.guarded(app, arguments.host, token), arguments.host, arguments.port)


def token_of(host: str, file: Path | None) -> str:
    """The token that requests need; empty: none. Raises InputError if other machines could do without."""
    from alpro.pipeline.serving.guard import LOCAL

    token = os.environ.get("ALPRO_TOKEN", "")
    if file:
        try:
            token = file.read_text("utf-8").partition("\n")[0].strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--token-file {file}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from error
    if (file or token) and len(token) < MIN_TOKEN:
        raise InputError(f"{file or 'ALPRO_TOKEN'}: the token has {len(token)} characters; use {MIN_TOKEN} or more")
    if not token and host not in LOCAL:
        raise InputError(
            f"--host {host}: other machines need a token; write one with `openssl rand -hex 32 > token`, and add "
            "--token-file token"
        )
    return token


def load_models(arguments: argparse.Namespace) -> "Models":
    """The models for what INDEX, --ask and --entities can do. Raises InputError if that is nothing."""
    from alpro.inference.find import find_prompter, is_pretrained, model_digest
    from alpro.pipeline.serving.app import Models

    index = open_index(arguments.index) if arguments.index else None
    if arguments.model and not index:
        raise InputError("--model is that of an index; name the INDEX, or use --ask and --entities alone")
    ask, entities = (
        model_path(arguments, name).resolve() if name else None for name in (arguments.ask, arguments.entities)
    )
    search = index.model_folder(model_path(arguments, arguments.model) if arguments.model else "") if index else None
    if not (first := search or ask or entities):
        raise InputError("nothing to serve; name an INDEX to search, or models with --ask and --entities")
    named = entities or first
    prompter, prompts = find_prompter(named, follow=True)

    @cache
    def model(folder: Path) -> "Model":
        return load(arguments, folder, prompts if folder == prompter else "")

    folders = {"search": search} if search else {}
    if model(ask or first).folder.answers:
        folders["ask"] = ask or first
    elif ask:
        raise InputError(f"{arguments.ask}: this {model(ask).folder.task} model does not answer questions")
    folders |= {"entities": prompter} if prompts or (prompter / "prompts.safetensors").is_file() else {}
    folders |= {"pretrained": named} if is_pretrained(named) else {}
    if entities and not folders.keys() & {"entities", "pretrained"}:
        raise InputError(f"{arguments.entities}: no prompter with embedded entities, and no model of pretrain")
    digests = {what: model_digest(folder) for what, folder in folders.items()}
    return Models(index, **{what: model(folder) for what, folder in folders.items()}, digests=digests)
