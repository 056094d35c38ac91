"""Whether prompting entities (PEM) pays where the teacher knows more than the captions say.

    OMP_NUM_THREADS=1 python experiments/knowing/study.py --draws 6 --out FOLDER

Stills show four things. The teacher learned from captions that name all four, the student learns
from captions that name one. A draw has a corpus, a start and teachers of its own, in FOLDER. Each
row, a JSON file in --results, is one run of pre-training with its scores and its time; rows that
exist are not computed again, and a run that was stopped continues in the same FOLDER. The arms and
the order of the rows are in schedule.py, the plan and the tests in experiments/README.md.
"""

import argparse
import hashlib
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# for experiments, if this file is the program
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from alpro.errors import InputError
from alpro.files import read_json, write_json
from alpro.inference.encoding import load_prompter
from alpro.inference.prompts import read_entities, read_prompts
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
from experiments.knowing.boxes import box_scores
from experiments.knowing.schedule import (
    ARMS,
    DRAWS,
    SEEDS,
    TEACHER_TRAINING,
    TEACHERS,
    Row,
    Sizes,
    schedule,
)
from experiments.silent.arms import pretrain_arm
from experiments.silent.labels import TrueLabels, arm_labels, kept_by_mixture, things_of
from experiments.silent.render import ABSENT, CORPORA, NOUNS, write_shards
from experiments.silent.scores import Crops, label_scores, labels_of_boxes, scores_of
from experiments.silent.study import (
    PRETRAINING,
    PROMPTER_SEED,
    START_SEED,
    TRAINING,
    once,
    stage,
)

RESULTS = Path(__file__).parent / "results"
BLOCKS = ("primary", "other")


@dataclass(frozen=True)
class Draw:
    """The folder of a draw: its corpora, starts, teachers and runs, made when first asked for."""

    folder: Path
    draw: int
    sizes: Sizes
    resources: Resources

    def corpora(self) -> dict[str, Path]:
        """The corpora, the tokenizer and the vocabulary, by name."""

        def render(folder: Path) -> Outcome:
            test_stills = self.sizes.test_stills
            write_shards(
                folder, self.sizes.stills, test_stills, test_stills // 5, 1, seed=self.draw
            )
            return Outcome()

        shards = once(self.folder / "shards", render)
        paths = {
            name: self.stage(name, index_shards, {"kinds": "image"}, {"shards": shards / name})
            for name in CORPORA
        }
        read = {"first": paths["first"], "second": paths["second"]}
        words = {"entities_file": str(shards / "kinds.txt"), "entities": len(NOUNS + ABSENT)}
        paths["tokenizer"] = self.stage("tokenizer", train_tokenizer, {"word_pieces": 400}, read)
        paths["vocabulary"] = self.stage("vocabulary", build_vocabulary, words, read)
        return paths

    def start(self, steps: int) -> Path:
        """Encoders that learned from captions that name all four things."""
        name = "start" if steps == self.sizes.start_steps else f"start-{steps}"
        return self.encoders(name, corpus="second", steps=steps, seed=START_SEED, changes={})

    def teacher(self, name: str) -> tuple[Path, Path]:
        """A teacher and its prompts."""
        prompter = self.encoders(
            name,
            corpus=TEACHERS[name],
            steps=self.sizes.teacher_steps,
            seed=PROMPTER_SEED,
            changes=TEACHER_TRAINING,
        )
        inputs = {"prompter": prompter, "vocabulary": self.corpora()["vocabulary"]}
        return prompter, self.stage(f"prompts-of-{name}", cache_prompts, {}, inputs)

    def encoders(
        self, name: str, corpus: str, steps: int, seed: int, changes: dict[str, Any]
    ) -> Path:
        """Two encoders that learn to contrast the stills of a corpus with their captions."""
        paths = self.corpora()
        values = TRAINING | changes
        values["phases"] = [{"corpora": [corpus], "steps": steps}]
        values["seed"] = seed + self.draw
        values["batch_size"] = self.sizes.batch_size
        inputs = {"tokenizer": paths["tokenizer"], corpus: paths[corpus]}
        return self.stage(name, train_prompter, values, inputs)

    def stage(
        self, name: str, module: Any, values: dict[str, Any], inputs: dict[str, Path]
    ) -> Path:
        return stage(self.folder / name, module, values, inputs, self.resources)

    def pretrained(self, row: Row) -> Path:
        """The folder of the model of a row, with the time that it took in time.json."""
        arm = ARMS[row.arm]
        start = self.start(row.start_steps)
        paths = self.corpora()
        inputs = {key: paths[key] for key in ("first", "tokenizer", "vocabulary")}
        without_pem = arm.changes.get("weights", {}).get("pem") == 0
        if not without_pem:
            inputs["prompter"], inputs["prompts"] = self.teacher(arm.prompter)

        values = PRETRAINING | arm.changes
        values["phases"] = [{"corpora": ["first"], "steps": row.steps}]
        values["batch_size"] = self.sizes.batch_size
        values["seed"] = row.seed
        values["start"] = str(start / "model")
        config = pretrain.Config.model_validate(values)

        def train(folder: Path) -> Outcome:
            whole = not any(folder.iterdir())  # a run that continues does not know its whole time
            wall = time.monotonic()
            cpu = cpu_seconds()
            outcome = pretrain_arm(arm, config, pretrain.Inputs.of(inputs), folder, self.resources)
            write_json(
                folder / "time.json",
                {
                    "seconds": time.monotonic() - wall,
                    "cpu_seconds": cpu_seconds() - cpu,
                    "whole": whole,
                },
            )
            return outcome

        return once(self.folder / "runs" / row.name, train)


def cpu_seconds() -> float:
    """The processor time of this process: on a shared machine, others slow only the clock."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def compute(row: Row, draw: Draw, device: torch.device) -> dict[str, Any]:
    """Trains and scores a row; returns the content of its file."""
    arm = ARMS[row.arm]
    trained = draw.pretrained(row)
    paths = draw.corpora()
    entities = read_entities(paths["vocabulary"])
    has_pem = row.arm != "none"
    teacher = draw.teacher(arm.prompter) if has_pem else None

    scores = scores_of(trained, entities, paths["test"], device)
    scores |= box_scores(trained, teacher, entities, paths["test"], device)
    start = draw.start(row.start_steps) / "model"
    return {
        "draw": row.draw,
        "arm": row.arm,
        "seed": row.seed,
        "steps": row.steps,
        "start_steps": row.start_steps,
        "scores": scores,
        "labels": arm_label_scores(row, draw, device) if has_pem else {},
        "time": read_json(trained / "time.json"),
        # Rows of a draw are compared only if they began with the same weights.
        "start": digest(start / "model.safetensors"),
        "commit": commit(),
    }


def arm_label_scores(row: Row, draw: Draw, device: torch.device) -> dict[str, float]:
    """How good the labels of an arm are on a crop of each test still; see `label_scores`."""
    arm = ARMS[row.arm]
    paths = draw.corpora()
    entities = read_entities(paths["vocabulary"])
    prompter, prompts = draw.teacher(arm.prompter)
    folder = load_prompter(prompter, device)
    grid = folder.model.config.video.grid
    crops = Crops.of(paths["test"], entities, grid)

    truth = TrueLabels(entities, things_of(paths["test"], "test"), grid)
    true = truth.of(crops.ids, crops.boxes)
    kept = kept_by_mixture(crops.ids, crops.boxes, arm.share)
    features = read_prompts(prompts)["image"].to(device)
    numbers = list(range(len(crops.ids)))
    of_prompter = labels_of_boxes(folder, features, crops.reader, numbers, crops.boxes)
    labels = arm_labels(arm.labels, true, of_prompter, kept)
    return label_scores(labels, crops.shown, entities)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def commit() -> str:
    """The commit of the program, empty outside of a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def run(rows: Iterable[Row], out: Path, results: Path, sizes: Sizes) -> list[Path]:
    """Computes the rows that are missing; returns the files of all. Raises InputError."""
    resources = Resources()
    device = pick_device(resources.device)
    results.mkdir(parents=True, exist_ok=True)
    files = []
    for row in rows:
        file = results / f"{row.name}.json"
        files.append(file)
        if file.exists():
            continue
        folder = out / f"draw-{row.draw}"
        folder.mkdir(parents=True, exist_ok=True)
        draw = Draw(folder, row.draw, sizes, resources)
        write_json(file, compute(row, draw, device))
        print(f"{file.name} is there", flush=True)
    return files


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of models and corpora")
    parser.add_argument("--draws", type=int, nargs="+", choices=DRAWS, default=list(DRAWS))
    parser.add_argument("--blocks", nargs="+", choices=BLOCKS, default=list(BLOCKS))
    parser.add_argument("--seeds", type=int, nargs="+", choices=SEEDS, default=list(SEEDS))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    options = parser.parse_args(arguments)
    sizes = Sizes()
    rows = schedule(options.draws, options.blocks, sizes, options.seeds)
    try:
        run(rows, options.out, options.results, sizes)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
