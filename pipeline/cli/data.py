"""`alpro data ...`: data before decoding."""

from typing import Any

from cyclopts import App

from alpro.errors import InputError
from alpro.pipeline.cli.options import Count, Json, print_json

group = App(name="data", help="Check data before a run.")


@group.command
def check(
    data: str,
    /,
    *,
    config: str = "own_videos",
    set: tuple[str, ...] = (),
    samples: Count = 5,
    json: Json = False,
) -> int:
    """Print what is there, what is missing, and the splits.

    Reads every row of a manifest, folder or set of shards, and decodes a few items. The exit status is 1 if a run
    would fail.

    Parameters
    ----------
    data
        Your videos, as for `alpro run --data`.
    config
        The configuration whose decoding settings are used.
    set
        Change a value, such as corpora.data.frames=16; repeatable.
    samples
        Number of items to decode.
    """
    from alpro.pipeline.config.pipeline_config import load_config
    from alpro.shards.storage import located
    from alpro.stages.corpora.check_data import check_data

    settings = load_config(config, data, list(set))
    corpus = settings.corpora["data"]
    if corpus.shards:
        raise InputError("corpora.data.shards are not decoded; `alpro run index_shards` checks them")
    paths = corpus.annotation_files, corpus.names_root
    stages = settings.trainings().items()
    lengths = {stage: training.max_text_tokens for stage, training in stages if "data" in training.corpora}
    report = check_data(located(corpus.data), corpus.decoding, *paths, samples, lengths)
    if json:
        print_json(report)
    else:
        print_check(report)
    return 1 if report["problems"] else 0


def print_check(report: dict[str, Any]) -> None:
    """Prints the report of `check_data`."""
    kinds = " and ".join(f"{count:,} {kind}s" for kind, count in report["kinds"].items())
    print(f"{report['data']}: {report['form']}; {report['items']:,} items ({kinds})")
    for split, texts in report["splits"].items():
        counts = ", ".join(f"{texts[name]:,} {name}" for name in ("captions", "questions"))
        print(f"  {split:10} {texts['items']:>9,} items, {counts}")
    print(f"  splits     {report['split_source']}")
    bad = report["bad_rows"]
    for count, what, examples in (
        (bad["count"], "invalid rows or failed downloads", bad["examples"]),
        (report["missing"], "missing files", report["missing_examples"]),
        (report["without_text"], "items without a text", []),
    ):
        if count:
            print(f"  {count:,} {what}{''.join(f'{chr(10)}    {example}' for example in examples)}")
    cut: dict[str, list[str]] = {}
    for stage, texts in report["long_texts"].items():
        if texts["cut"]:
            share = f"{texts['cut'] / texts['texts']:.1%}"
            what = f"at least {texts['cut']:,} of {texts['texts']:,} {texts['of']} ({share})"
            cut.setdefault(f"max_text_tokens = {texts['max_text_tokens']} cuts {what}", []).append(stage)
    for line, stages in cut.items():
        print(f"  {line} ({', '.join(stages)})")
    if report["group_hint"]:
        print(f"hint: {report['group_hint']}")
    decoded = report["decoded"]
    print(f"decoded {decoded['items']} items, {sum(decoded['rejected'].values())} rejected")
    for example in decoded["examples"]:
        print(f"    {example}")
    for problem in report["problems"]:
        print(f"problem: {problem}")
