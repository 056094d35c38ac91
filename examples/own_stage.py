"""Add a stage: count the long words in the names of entities.

    python examples/own_stage.py VOCABULARY OUT

VOCABULARY is an artifact of build_vocabulary. The program runs the stage alone. As the module
stages/count_words.py it is part of a pipeline (CONTRIBUTING.md, Common changes), with the lines in
stages/dag.py that say where its inputs come from:

    if pretrain:
        inputs = {"vocabulary": "build_vocabulary"}
        dag.add("count_words", pipeline.count_words, inputs)
"""

import sys
from pathlib import Path

from alpro.files import write_json
from alpro.inference.loading import read_entities
from alpro.stages.execution.interface import (
    Outcome,
    Resources,
    StageConfig,
    StageInputs,
)

VERSION = 1  # raised when the same inputs give another result


class Config(StageConfig, frozen=True):
    """What the stage computes: the keys of its table in a configuration."""

    min_letters: int = 1


class Inputs(StageInputs):
    """What the stage reads: a folder for each input."""

    vocabulary: Path


def run(config: Config, inputs: Inputs, out: Path, resources: Resources) -> Outcome:
    """Write words.json into `out`, which becomes an artifact when this function returns."""
    words = [word for name in read_entities(inputs.vocabulary) for word in name.split()]
    counted = [word for word in words if len(word) >= config.min_letters]
    write_json(out / "words.json", counted)
    return Outcome({"words": len(counted)})


if __name__ == "__main__":
    vocabulary, folder = map(Path, sys.argv[1:])
    folder.mkdir()
    print(
        run(
            Config(min_letters=5), Inputs(vocabulary=vocabulary), folder, Resources()
        ).counts
    )
