"""`alpro eval`: scores of any model on any labels, beside those of a baseline."""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from alpro.errors import InputError
from alpro.log import log
from alpro.pipeline.cli.arguments import add_action, user_path
from alpro.pipeline.cli.model import add_model, add_shared, load, model_path, videos_at


def add_eval(commands: Any) -> None:
    more = (
        "Retrieval with all right videos of a text, answers to questions, and entities: what the model can and the "
        "data has labels for. Equal captions are one text; a column `relevant` names other right videos by their ids."
    )
    parser = add_action(commands, "eval", evaluate, "score any model on any videos with labels", more)
    add_model(parser)
    parser.add_argument("data", metavar="DATA", help="a decoded corpus, a manifest, or a folder of videos with texts")
    help = "the videos to evaluate, if the data names splits (default: test)"
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test", help=help)
    parser.add_argument(
        "--baseline", default="", metavar="MODEL", help="another model, such as the folder of a CLIP, to compare with"
    )
    parser.add_argument("--out", type=user_path, metavar="FOLDER", help="write results.json and scores.parquet there")
    add_shared(parser)


def evaluate(arguments: argparse.Namespace) -> None:
    from alpro.inference.evaluate import add_answers, add_entities, add_retrieval, encode, labeled
    from alpro.inference.find import find_prompter
    from alpro.pipeline.reports.results import tables
    from alpro.pipeline.reports.terminal import print_table
    from alpro.stages.evaluation.comparison import Comparison
    from alpro.stages.evaluation.results import Results
    from alpro.stages.evaluation.statistics import paired_difference

    folder = model_path(arguments, arguments.model)
    other = model_path(arguments, arguments.baseline) if arguments.baseline else None
    items, what = labeled(videos_at(arguments, arguments.data), arguments.split)
    log.info(f"{len(items):,} videos ({what})")
    with TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {out}: {error.strerror}") from error
        results, compared, threshold = Results(arguments.split, out), [], None
        prompter, prompts = find_prompter(folder, follow=True)
        model = load(arguments, folder, prompts if prompter == folder else "")
        decoded, videos = encode(model, items)
        if len(decoded) < len(items):
            results.add_share("decoded", "data", "videos of the data", "decoded", len(decoded), len(items))
        if model.folder.answers:
            add_answers(results, model, decoded, videos)
        else:
            scores, threshold = add_retrieval(results, model, decoded, videos, "by similarity", "similarity")
            if other:
                baseline = load(arguments, other)
                baseline.folder.model.set_frames(model.folder.model.config.video.frames)
                same, theirs = encode(baseline, decoded)
                if len(same) < len(decoded):
                    raise InputError("some videos could be decoded for the model, and not for the baseline")
                line = f"baseline: {other.name}, frames averaged"
                against, _ = add_retrieval(results, baseline, same, theirs, line, "baseline")
                rows = {row["name"]: row for row in results.rows}
                pairs = [(rows[f"similarity/{key}"], scores[key], against[key]) for key in scores]
                compared = [
                    (row, paired_difference(b.values, a.values, a.queries.ids, row["statistic"])) for row, a, b in pairs
                ]
            if prompts or (prompter / "prompts.safetensors").is_file():
                if prompter != folder:
                    model = load(arguments, prompter, prompts)
                    decoded, videos = encode(model, decoded)
                add_entities(results, model, decoded, videos)
        if not results.rows:
            raise InputError(f"{arguments.data}: no labels that this {model.folder.task} model could be scored on")
        results.outcome()
    if arguments.json:
        differences = {row["name"]: difference._asdict() for row, difference in compared}
        nothing_below = {"nothing_below": vars(threshold) if threshold else None}
        print(json.dumps({"results": results.rows, "differences": differences, **nothing_below}, indent=1))
        return
    baseline_rows = [row for row in results.rows if row["name"].startswith("baseline/")]
    runs = {"score": [row for row in results.rows if row not in baseline_rows]}
    if baseline_rows:  # beside the scores of the same names
        named = [row | {"name": row["name"].replace("baseline", "similarity", 1)} for row in baseline_rows]
        runs = {"baseline": named, "model": runs["score"]}
    for table in tables(runs, [Comparison(compared, {}, 0)] if baseline_rows else ()):
        print_table(table)
    if threshold:
        line = f"--nothing-below {threshold.similarity:.3f} rejects {threshold.missed:.0%} of these texts"
        print(f"{line}, and accepts {threshold.accepted:.0%} of them if their videos are left out")
