"""`alpro ask` and `alpro entities`: they print what `alpro.Model` computes."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpro.errors import InputError
from alpro.inputs import WHOLE, Box, check_text, parse_box
from alpro.pipeline.cli.arguments import add_action, positive, user_path
from alpro.pipeline.cli.model import add_model, add_shared, load, model_path, videos_at

if TYPE_CHECKING:
    from collections.abc import Callable

    from alpro import Model

    Name = Callable[[Any, Any], list[tuple[str, float]]]  # words with probabilities, best first, of a video, its frames


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
    text = "a video or an image: a file or a URL; with --out a folder, a manifest or a decoded corpus"
    parser.add_argument("video", metavar="VIDEO", help=text)
    help = f"number of {results} (default: {number})"
    parser.add_argument("-k", type=positive, default=number, metavar="N", help=help)
    text = "write a row for each video to a .parquet or .csv"
    parser.add_argument("--out", type=user_path, metavar="TABLE", help=text)


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
    from alpro.inference.model import UNKNOWN

    model, question = load(arguments, model_path(arguments, arguments.model)), arguments.question
    if not model.knows(question):
        print(f"note: {UNKNOWN}", file=sys.stderr)

    def answer(video: Any, frames: Any = None) -> list[tuple[str, float]]:
        return model.ask(video, question, arguments.k, frames)

    show(arguments, {"question": question}, {"answers": (model, answer)})


def name_entities(arguments: argparse.Namespace) -> None:
    from alpro.inference.find import find_prompter, is_pretrained

    folder, box = model_path(arguments, arguments.model), arguments.box
    named = find_prompter(folder, follow=True)
    models = [load(arguments, *named)]
    if is_pretrained(folder) and named[0] != folder:
        models.append(load(arguments, folder))

    def named_by(model: "Model") -> "Name":
        text = "" if model.prompts else arguments.text

        def name(video: Any, frames: Any = None) -> list[tuple[str, float]]:
            return model.entities(video, box, arguments.k, text, frames)

        return name

    naming = [model for model in models if model.names_entities]
    ranks = {"entities" if model.prompts else "model_entities": (model, named_by(model)) for model in naming}
    if not ranks:
        raise InputError(
            f"{folder}: this {models[0].folder.task} model names no entities, and no prompter with embedded entities "
            "was found for it; name a train_prompter, cache_prompts or pretrain artifact"
        )
    show(arguments, {"box": list(box)}, ranks)


def show(arguments: argparse.Namespace, about: dict[str, Any], named_by: "dict[str, tuple[Model, Name]]") -> None:
    """Prints words with their probabilities, best first, of each model, or writes a table of those of the first model.
    Raises InputError if a single video cannot be decoded."""
    from alpro.shards.decoding import DecodeError

    if arguments.out:
        write_table(arguments, *next(iter(named_by.values())))
        return
    if Path(arguments.video).is_dir():
        raise InputError(f"{arguments.video}: a folder; --out TABLE writes a row for each of its videos")
    try:
        ranked = {key: name(arguments.video, None) for key, (_, name) in named_by.items()}
    except DecodeError as error:
        file, _, detail = error.detail.partition(": ")  # the decoder's message
        raise InputError(f"{file}: {error.reason}: {detail}".removesuffix(": ")) from error
    if arguments.json:
        rows = {key: [{"text": word, "probability": p} for word, p in words] for key, words in ranked.items()}
        print(json.dumps({"video": arguments.video, **about, **rows}))
        return
    width = max(len(word) for words in ranked.values() for word, _ in words)
    for key, words in ranked.items():
        if len(ranked) > 1:
            print("prompter:" if key == "entities" else "model:")
        for word, probability in words:
            print(f"{word:{width}}  {probability:.3f}")


def write_table(arguments: argparse.Namespace, model: "Model", name: "Name") -> None:
    """Writes a row for each video to a .parquet or .csv: id, path, start, end, the words with their probabilities, and
    an error instead of them."""
    import numpy as np
    import pyarrow as pa
    import torch
    from pyarrow import csv, parquet

    from alpro.files import atomic_write
    from alpro.inference.clips import decode_ahead
    from alpro.inference.index import source_of
    from alpro.inference.index_videos import scan_videos
    from alpro.progress import progress
    from alpro.shards.schema import Reject

    out = arguments.out
    writers = {".parquet": parquet.write_table, ".csv": csv.write_csv}
    if out.suffix not in writers or out.exists():
        raise InputError(f"--out {out}: " + ("exists already" if out.exists() else "must end with .parquet or .csv"))
    items = list(scan_videos(videos_at(arguments, arguments.video)))
    clips = decode_ahead((source_of(i) for i in items if not isinstance(i, Reject)), model.folder.model.config.video)
    word = "answer" if model.folder.answers else "entity"
    fields = [("id", pa.string()), ("path", pa.string()), ("start", pa.float64()), ("end", pa.float64())]
    for place in range(1, min(arguments.k, len(model.folder.answers or model.folder.entities)) + 1):
        fields += [(f"{word}_{place}", pa.string()), (f"probability_{place}", pa.float64())]
    names, rows = [name for name, _ in fields[4:]], []
    with progress("videos", len(items), "videos") as advance:
        for item in items:
            about = vars(item) if isinstance(item, Reject) else item
            row = {key: about.get(key) for key in ("id", "path", "start", "end")}
            source, frames = (None, f"{item.reason}: {item.detail}") if isinstance(item, Reject) else next(clips)
            if isinstance(frames, np.ndarray):
                ranked = name(source, torch.from_numpy(frames)[None].to(model.device))
                row |= zip(names, (value for pair in ranked for value in pair), strict=True)
            else:
                row["error"] = str(frames)
            rows.append(row)
            advance()
    try:
        with atomic_write(out) as temporary:
            writers[out.suffix](pa.Table.from_pylist(rows, pa.schema([*fields, ("error", pa.string())])), temporary)
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror or error}") from error
    print(json.dumps({"out": str(out), "rows": len(rows)}) if arguments.json else f"{out}: {len(rows):,} rows")
