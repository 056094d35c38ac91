"""Whether prompting entities (PEM) teaches what no caption names, on stills of four things.

    python experiments/silent/study.py --seeds 0 1 --out FOLDER

All runs share a start, trained on captions of other stills that name all four things, and a
prompter, trained on the captions that the student sees. Then every arm (arms.py) is pre-trained
with every seed. Each run's scores are those of scores.py. The printed table has their means, and
the differences to the first arm paired by seed, with Student's 95 % intervals over the seeds; they
say nothing about other starts and prompters, of which there is one.

A study that was stopped continues when it is started again with the same options. Each row, a small
JSON file in --results, is computed once. --draw: another corpus, start and prompter, so that the
intervals over draws are of these too.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

# for experiments.silent, if this file is the program
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scipy.stats import t as student

from alpro.errors import InputError
from alpro.files import read_json, write_json
from alpro.inference.prompts import read_entities
from alpro.models.ranks import pick_device
from alpro.stages import (
    build_vocabulary,
    cache_prompts,
    index_shards,
    pretrain,
    train_prompter,
    train_tokenizer,
)
from alpro.stages.execution.interface import Outcome, Resources
from experiments.silent.arms import ARMS, PROMPTERS, pretrain_arm
from experiments.silent.render import ABSENT, CORPORA, NOUNS, write_shards
from experiments.silent.scores import scores_of, teacher_scores

MODEL = {
    "embed_dim": 64,
    "temperature": 0.05,
    "init": "scratch",
    "video": {
        "stem": "conv",
        "image_size": 96,
        "patch_size": 16,
        "frames": 1,
        "width": 96,
        "depth": 3,
        "heads": 2,
        "drop_path": 0.0,
    },
    "text": {
        "width": 96,
        "depth": 4,
        "fusion_layer": 2,
        "heads": 2,
        "max_length": 48,
        "dropout": 0.0,
    },
}
# No crop and no augmentation: the places of things are those in whole frames.
TRAINING = {
    "model": MODEL,
    "normalization": "half",
    "batch_size": 32,
    "lr": 5e-4,
    "min_lr_ratio": 0.05,
    "max_text_tokens": 40,
    "random_crop": 1.0,
    "repeat_images": False,
    # In float32, also on a processor with bfloat16: the draws of several machines are compared.
    "mixed_precision": False,
}
PRETRAINING = TRAINING | {"mlm_probability": 0.4, "negative_pool_size": 8}
START_SEED = 100
PROMPTER_SEED = 0
# By arm, seed and name: the score, and its chance level.
Scores = dict[str, dict[int, dict[str, tuple[float, float]]]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of all results")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of pre-training"
    )
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=list(ARMS), help="arms, the first is the base"
    )
    parser.add_argument(
        "--draw", type=int, default=0, help="seed of the corpus, the start and the prompters"
    )
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results", help="folder of the rows"
    )
    parser.add_argument(
        "--named", type=int, default=1, choices=range(1, 5), help="things that a caption names"
    )
    parser.add_argument(
        "--stills", type=int, default=12000, help="training stills, half of them for the start"
    )
    parser.add_argument(
        "--test", type=int, default=1000, help="test stills; a fifth more are in a new style"
    )
    parser.add_argument(
        "--steps",
        type=int,
        nargs=3,
        default=[2000, 4000, 800],
        metavar=("START", "PROMPTER", "PRETRAIN"),
    )
    parser.add_argument("--batch-size", type=int, default=32, help="pairs per step")
    options = parser.parse_args(arguments)
    try:
        print(table(study(options)))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def study(options: argparse.Namespace) -> Scores:
    """Runs what is not finished; returns the scores.

    Raises InputError if the folder has results of other sizes.
    """
    out = options.out
    resources = Resources()
    sizes = {
        key: getattr(options, key)
        for key in ("draw", "named", "stills", "test", "steps", "batch_size")
    }
    check_sizes(out, sizes)
    options.results.mkdir(parents=True, exist_ok=True)

    scores: Scores = {arm: {} for arm in options.arms}
    device = pick_device(resources.device)
    for seed in options.seeds:
        for name in options.arms:
            file = f"draw-{options.draw}-named-{options.named}-{slug(name)}-{seed}.json"
            row = options.results / file
            if not row.exists() or read_json(row)["sizes"] != sizes:
                inputs = shared_inputs(out, sizes, resources)  # made once
                trained = train_arm(
                    name, seed, out=out, inputs=inputs, sizes=sizes, resources=resources
                )
                entities = read_entities(inputs["vocabulary"])
                prompter = ARMS[name].prompter
                teacher = teacher_scores(
                    inputs[prompter],
                    inputs[f"prompts of {prompter}"],
                    entities=entities,
                    corpus=inputs["test"],
                    device=device,
                )
                of_row = scores_of(trained, entities, inputs["test"], device)
                write_json(row, {"sizes": sizes, "scores": of_row, "teacher": teacher})
            scores[name][seed] = read_json(row)["scores"]
    return scores


def check_sizes(out: Path, sizes: dict[str, Any]) -> None:
    """Makes the folder and notes its sizes. Raises InputError if it has results of others."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "sizes.json"
    if file.exists() and read_json(file) != sizes:
        raise InputError(
            f"{out}: has results of other sizes, {read_json(file)}; choose another --out"
        )
    write_json(file, sizes)


def shared_inputs(out: Path, sizes: dict[str, Any], resources: Resources) -> dict[str, Path]:
    """The corpora, and what all arms start from.

    By name: tokenizer, vocabulary, start, and the prompters with their prompts.
    """
    test = sizes["test"]
    start_steps, prompter_steps, _ = sizes["steps"]

    def render(folder: Path) -> Outcome:
        write_shards(folder, sizes["stills"], test, test // 5, sizes["named"], seed=sizes["draw"])
        return Outcome()

    shards = once(out / "shards", render)
    paths = {
        corpus: stage(
            out / corpus, index_shards, {"kinds": "image"}, {"shards": shards / corpus}, resources
        )
        for corpus in CORPORA
    }
    corpora = {"first": paths["first"], "second": paths["second"]}
    words = {"entities_file": str(shards / "kinds.txt"), "entities": len(NOUNS + ABSENT)}
    paths["tokenizer"] = stage(
        out / "tokenizer", train_tokenizer, {"word_pieces": 400}, corpora, resources
    )
    paths["vocabulary"] = stage(out / "vocabulary", build_vocabulary, words, corpora, resources)

    # Name, corpus, steps, seed, further keys of `[train_prompter]`.
    trained: list[tuple[str, str, int, int, dict[str, Any]]] = [
        ("start", "second", start_steps, START_SEED, {}),
        *(
            (name, "first", prompter_steps, PROMPTER_SEED, changes)
            for name, changes in PROMPTERS.items()
        ),
    ]
    for name, corpus, steps, seed, changes in trained:
        config = TRAINING | changes
        config["phases"] = [{"corpora": [corpus], "steps": steps}]
        config["seed"] = seed + sizes["draw"]
        config["batch_size"] = sizes["batch_size"]
        given = {"tokenizer": paths["tokenizer"], corpus: paths[corpus]}
        paths[name] = stage(out / name, train_prompter, config, given, resources)

    for name in PROMPTERS:
        given = {"prompter": paths[name], "vocabulary": paths["vocabulary"]}
        paths[f"prompts of {name}"] = stage(
            out / f"prompts-of-{name}", cache_prompts, {}, given, resources
        )
    return paths


def train_arm(
    name: str,
    seed: int,
    out: Path,
    inputs: dict[str, Path],
    sizes: dict[str, Any],
    resources: Resources,
) -> Path:
    """The folder of the model of an arm, pre-trained with a seed, after that of its start."""
    arm = ARMS[name]
    start = inputs.get(arm.start)
    if arm.start in ARMS:
        start = train_arm(arm.start, seed, out=out, inputs=inputs, sizes=sizes, resources=resources)

    values = PRETRAINING | arm.changes
    values["phases"] = [{"corpora": ["first"], "steps": sizes["steps"][2]}]
    values["batch_size"] = sizes["batch_size"]
    values["seed"] = seed
    values["start"] = f"{start}/model"
    config = pretrain.Config.model_validate(values)

    given = {key: inputs[key] for key in ("first", "tokenizer", "vocabulary")}
    given["prompter"] = inputs[arm.prompter]
    given["prompts"] = inputs[f"prompts of {arm.prompter}"]
    folder = out / "runs" / f"{slug(name)}-{seed}"
    of_arm = pretrain.Inputs.of(given)
    return once(folder, lambda folder: pretrain_arm(arm, config, of_arm, folder, resources))


def slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def stage(
    folder: Path, module: Any, values: dict[str, Any], inputs: dict[str, Path], resources: Resources
) -> Path:
    """The folder of a stage's result."""
    config = module.Config.model_validate(values)
    return once(
        folder, lambda folder: module.run(config, module.Inputs.of(inputs), folder, resources)
    )


def once(folder: Path, work: Callable[[Path], Outcome]) -> Path:
    """The folder with the result of `work`. outcome.json, the last file, marks it as complete."""
    if not (folder / "outcome.json").exists():
        print(f"{folder.name} ...", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "outcome.json", asdict(work(folder)))
    return folder


def table(scores: Scores) -> str:
    """Lines with the mean of each score of each arm, and its difference to the first arm."""
    base = next(iter(scores))
    names: dict[str, None] = {}
    for runs in scores.values():
        for run in runs.values():
            names |= dict.fromkeys(run)

    lines = [f"{'score':12} {'arm':14} {'mean':>14} {'to ' + base:>16}  each seed, chance"]
    for name in names:
        of_base = {seed: run[name][0] for seed, run in scores[base].items() if name in run}
        for arm, runs in scores.items():
            values = {seed: run[name][0] for seed, run in runs.items() if name in run}
            if not values:
                continue
            gains = [value - of_base[seed] for seed, value in values.items() if seed in of_base]
            mean = plus_minus([*values.values()])
            gain = plus_minus(gains, "+") if gains and arm != base else ""
            each = " ".join(f"{value:.1f}" for value in values.values())
            chance = statistics.mean(run[name][1] for run in runs.values() if name in run)
            lines.append(f"{name:12} {arm:14} {mean:>14} {gain:>16}  {each}, {chance:.1f}")
    return "\n".join(lines)


def plus_minus(values: list[float], sign: str = "") -> str:
    """The mean with half of Student's 95 % interval, which needs two values.

    >>> plus_minus([1.0, 2.0, 3.0]), plus_minus([2.0], "+")  # 4.303 / sqrt(3)
    ('2.0 ± 2.5', '+2.0')
    """
    mean = f"{statistics.mean(values):{sign}.1f}"
    if len(values) < 2:
        return mean
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean} ± {half:.1f}"


if __name__ == "__main__":
    sys.exit(main())
