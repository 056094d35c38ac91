"""`alpro ask` and `alpro entities`: they print what `alpro.Model` computes."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from alpro.credentials import without_credentials
from alpro.errors import InputError
from alpro.inputs import WHOLE, Box, check_text, parse_box
from alpro.pipeline.cli.arguments import add_action, positive
from alpro.pipeline.cli.model import add_model, add_shared, load, model_path


def add_use_commands(commands: Any) -> None:
    add_ask(commands)
    add_entities(commands)


def add_ask(actions: Any) -> None:
    more = "The answers are those of the training questions that the model was fine-tuned with; it gives no others."
    parser = add_action(actions, "ask", ask, "answer a question about a video, from the model's list of answers", more)
    add_model_and_video(parser, "a model of finetune_qa", "answers", 3)
    parser.add_argument("question", metavar="QUESTION", help="the question, in quotes")
    add_shared(parser)


def add_entities(actions: Any) -> None:
    text = "name the entities in a video, or in a region of it"
    more = "The names are those of the vocabulary. A model of pretrain answers beside its prompter, by its PEM head."
    parser = add_action(actions, "entities", name_entities, text, more)
    add_model_and_video(parser, "a prompter, or a model that was trained with one", "entities", 5)
    parser.add_argument(
        "--box",
        type=box,
        default=WHOLE,
        metavar="X,Y,W,H",
        help="left, top, width and height of a region as fractions of the frame, 0 to 1 (default: 0,0,1,1)",
    )
    parser.add_argument(
        "--text", default="", help="caption of the video, which a model of pretrain reads (default: none)"
    )
    add_shared(parser)


def add_model_and_video(parser: argparse.ArgumentParser, what: str, results: str, number: int) -> None:
    """The arguments of the commands about one video. what: the models that the command takes."""
    add_model(parser, f"{what}: ")
    parser.add_argument("video", metavar="VIDEO", help="a video or an image: a file or a URL")
    help = f"number of {results} (default: {number})"
    parser.add_argument("-k", type=positive, default=number, metavar="N", help=help)


def box(text: str) -> Box:
    """The region of X,Y,W,H."""
    try:
        return parse_box(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def require_text(text: str, what: str = "text") -> None:
    """Refuses an empty text before a model is loaded."""
    try:
        check_text(text, what)
    except ValueError as error:
        raise InputError(str(error)) from error


def ask(arguments: argparse.Namespace) -> None:
    require_text(arguments.question, "question")
    from alpro.stages.inference.model import UNKNOWN

    model, question = load(arguments, model_path(arguments, arguments.model)), arguments.question
    if not model.knows(question):
        print(f"note: {UNKNOWN}", file=sys.stderr)
    answer = partial(model.ask, arguments.video, question, arguments.k)
    print_ranked(arguments, {"question": question}, {"answers": answer})


def name_entities(arguments: argparse.Namespace) -> None:
    from alpro.stages.inference.find import find_prompter, is_pretrained

    folder, box = model_path(arguments, arguments.model), arguments.box
    named = find_prompter(folder, follow=True)
    models = [load(arguments, *named)]
    if is_pretrained(folder) and named[0] != folder:
        models.append(load(arguments, folder))
    ranks = {
        "entities" if model.prompts else "model_entities": partial(
            model.entities, arguments.video, box, arguments.k, "" if model.prompts else arguments.text
        )
        for model in models
        if model.names_entities
    }
    if not ranks:
        raise InputError(
            f"{folder}: this {models[0].folder.task} model names no entities, and no prompter with embedded entities "
            "was found for it; name a train_prompter, cache_prompts or pretrain artifact"
        )
    print_ranked(arguments, {"box": list(box)}, ranks)


def print_ranked(
    arguments: argparse.Namespace, about: dict[str, Any], ranks: Mapping[str, Callable[[], list[tuple[str, float]]]]
) -> None:
    """Prints words with their probabilities, best first, of each model. Raises InputError if the video cannot be
    decoded."""
    from alpro.shards.decoding.decode import DecodeError

    try:
        ranked = {key: rank() for key, rank in ranks.items()}
    except DecodeError as error:
        file, _, detail = error.detail.partition(": ")  # the decoder's message
        raise InputError(f"{file}: {error.reason}: {detail}".removesuffix(": ")) from error
    if arguments.json:
        rows = {key: [{"text": word, "probability": p} for word, p in words] for key, words in ranked.items()}
        print(json.dumps({"video": without_credentials(arguments.video), **about, **rows}))
        return
    width = max(len(word) for words in ranked.values() for word, _ in words)
    for key, words in ranked.items():
        if len(ranked) > 1:
            print("prompter:" if key == "entities" else "model:")
        for word, probability in words:
            print(f"{word:{width}}  {probability:.3f}")
