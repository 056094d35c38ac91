"""Counting nouns in captions as in build_vocabulary, compared with spaCy's nlp.pipe.

    python benchmarks/nouns.py [--captions FILE] [--tagger NAME] [--json FILE]

The baseline is one process that runs the same components of the same pipeline once over the same captions and discards
the result. The second `nlp.pipe` also has the settings of count_words (matrix products by numpy, smaller batches). The
time of count_words includes the start of its processes. `--captions` is a text file with one caption per line, or JSON
Lines with a `caption` (also .gz); by default, sentences of a few hundred words are generated. Medians of three runs are
printed, in which the methods take turns. On a shared machine, the rates per second of processor time are more reliable.
"""

import argparse
import gzip
import itertools
import json
import os
import random
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

import spacy
from threadpoolctl import threadpool_limits

from alpro.stages.execution.interface import Resources
from alpro.stages.vocabulary.nouns import CAPTIONS_PER_BATCH, EMBEDDED, count_words, load_tagger

RUNS, GENERATED = 3, 65_536
BASELINE, SAME = "nlp.pipe", "nlp.pipe, same settings"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, help="a file of captions")
    parser.add_argument("--tagger", default="embedded", help="a spaCy pipeline, as build_vocabulary.tagger")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    captions = read(arguments.captions) if arguments.captions else generate()
    words = sum(len(text.split()) for text in captions) / len(captions)
    print(f"{captions.total()} captions, {len(captions)} distinct, of {words:.1f} words; {os.cpu_count()} cores")
    wall, work = measure(captions, arguments.tagger)
    rates, per_core = (
        {name: len(captions) / statistics.median(seconds) for name, seconds in results.items()}
        for results in (wall, work)
    )
    heads = f"{'captions/s':>12}{'words/s':>10}{'':7}captions per second of processor time"
    print(f"\n{'median of ' + str(RUNS) + ' runs':26}{heads}")
    for name, rate in rates.items():
        print(
            f"  {name:24}{rate:12.0f}{rate * words:10.0f} ({rate / rates[BASELINE]:4.2f})"
            f"{per_core[name]:13.0f} ({per_core[name] / per_core[BASELINE]:4.2f})"
        )
    single, double = "count_words, 1 worker", "count_words, 2 workers"
    print(f"\nin brackets: times '{BASELINE}'. One worker: {rates[single] / rates[SAME]:.2f} of '{SAME}'")
    print(f"({per_core[single] / per_core[SAME]:.2f} by processor time)")
    print(f"two workers: {rates[double] / rates[single]:.2f} times one")
    if arguments.json:
        figures = {"captions": len(captions), "words": words, "seconds": wall, "processor seconds": work}
        arguments.json.write_text(json.dumps(figures, indent=1))


def measure(captions: Counter[str], tagger: str) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall time and processor time of each method for all captions, in seconds, by run."""
    tuned = load_tagger(tagger, False)
    bare = spacy.load(EMBEDDED if tagger == "embedded" else tagger)
    for name in set(bare.component_names) - set(tuned.component_names):
        bare.remove_pipe(name)
    methods: dict[str, Callable[[], object]] = {
        BASELINE: lambda: deque(bare.pipe(captions), maxlen=0),
        SAME: lambda: deque(tuned.pipe(captions, batch_size=CAPTIONS_PER_BATCH), maxlen=0),
    }
    for workers in (1, 2):
        resources = Resources(workers=workers)
        name = f"count_words, {workers} worker{'s' * (workers > 1)}"
        methods[name] = lambda resources=resources: count_words(captions, tagger, False, resources)
    wall: dict[str, list[float]] = {name: [] for name in methods}
    work: dict[str, list[float]] = {name: [] for name in methods}
    for nlp in (bare, tuned):  # warm-up
        deque(nlp.pipe(itertools.islice(captions, 1000)), maxlen=0)
    for _ in range(RUNS):
        for name, method in methods.items():
            started, worked = time.perf_counter(), sum(os.times()[:4])
            with threadpool_limits(1):  # one core per process
                method()
            wall[name].append(time.perf_counter() - started)
            work[name].append(sum(os.times()[:4]) - worked)
    return wall, work


def read(file: Path) -> Counter[str]:
    """The captions of a file, with their counts."""
    with gzip.open(file, "rt") if file.suffix == ".gz" else open(file) as lines:
        texts = [line.strip() for line in lines if line.strip()]
    return Counter(json.loads(text)["caption"] if text.startswith("{") else text for text in texts)


def generate() -> Counter[str]:
    """Sentences of 6 to 14 words."""
    rng = random.Random(0)
    letters = ["".join(rng.choices("aeiourtnslkbdmpg", k=rng.randint(3, 8))) for _ in range(400)]
    things = ["man", "woman", "dog", "car", "guitar", "kitchen", "ball", "street", "stage", *letters]
    doing = ["is playing", "walks near", "talks about", "is holding", "and", "with", "in front of", "looks at"]
    texts = Counter[str]()
    while len(texts) < GENERATED:
        parts = [f"a {rng.choice(things)} {rng.choice(doing)}" for _ in range(rng.randint(1, 3))]
        texts[" ".join([*parts, "the", rng.choice(things)])] += 1
    return texts


if __name__ == "__main__":
    main()
