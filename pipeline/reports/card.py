"""The card of an exported model, README.md: what is known of it from its artifact, its inputs and
its evaluations."""

import json
from pathlib import Path
from typing import Any

from alpro.artifact import Record, read_record, read_results
from alpro.models.folder import ModelBundle
from alpro.pipeline.reports.results import Table, data_table, label_of, tables
from alpro.pipeline.store.snapshot import Snapshot
from alpro.stages import EVALUATIONS
from alpro.stages.evaluation.score_names import PREFIXES_OF_STAGE

MATCH = "print(model.match(**inputs))  # probabilities"
# By the task of a model: what it is, what its text is in the example, and the call.
TASKS = {
    "prompter": (
        "a prompter: a video and a text encoder, trained with contrast (VTC)",
        '"a dog runs"',
        "",
    ),
    "pretrain": ("a pre-trained video-language model", '"a dog runs"', MATCH),
    "retrieval": (
        "a video-language model, fine-tuned for text-video retrieval",
        '"a dog runs"',
        MATCH,
    ),
    "qa": (
        "a video-language model, fine-tuned to answer questions with {answers:,} answers",
        '"what color is the ball?"',
        "probabilities = "
        "model.answer(**inputs)[0]\nprint(model.config.answers[probabilities.argmax()])",
    ),
}
CARD = """---
library_name: transformers
license: {license_tag}
pipeline_tag: {tag}
tags: [alpro, video-text, sentence-transformers]
{model_index}---

# {name}

ALPRO ([Align and Prompt](https://arxiv.org/abs/2112.09583)), {what}. It has {parameters:,} parameters and takes \
{video.frames} frames of {video.image_size} x {video.image_size} pixels and texts of at most {tokens} word pieces. \
It was exported by alpro-pipeline.

```python
from transformers import AutoModel, AutoProcessor

folder = "."  # this folder, or its name on the hub
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(videos=["a.mp4"], text=[{text}])  # or frames (F, H, W, 3) uint8
{call}
```

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(folder, trust_remote_code=True)
print(model.similarity(model.encode(["a dog runs"]), model.encode(["a.mp4"])))
```

`pip install torch transformers numpy pydantic av` installs what the first needs; the second needs
`sentence-transformers` 5.4 or newer. Read the code in the folder before you trust it.

## Training

{training}

## Data

{data}

## Evaluation

{evaluation}

## Limits

{limits}A video is {video.frames} frames, whatever its length, without sound. The model knows the language, the words
and the biases of its training captions. Nothing is known about other videos than the test set, or about fairness.

## License

{license} The code in this folder is BSD 3-Clause (LICENSE). The licenses of the training data, and of weights that the
training started from, may restrict the use of the weights.
"""


def model_card(artifact: Path, model: ModelBundle, name: str, license: str = "") -> str:
    """The text of README.md. artifact: of the store, or any model folder, of which less is
    known."""
    record = read_record(artifact)
    answers = len(model.answers)
    what, text, call = TASKS[model.task]
    tag = "visual-question-answering" if model.task == "qa" else "feature-extraction"

    sources: list[tuple[Path, Record]] = []
    evaluated = ""
    index = ""
    if record:
        # A store has its artifacts at STAGE/FINGERPRINT.
        store = Snapshot(artifact.parents[1])
        split, scores = newest_scores(store, record)
        evaluated = evaluation(split, scores)
        index = model_index(name, tag, split, scores)
        sources = store.lineage(record)

    similarity = (
        "" if model.task == "qa" else "print(model(**inputs).similarity)  # (texts, videos)"
    )
    rendered = "All of it is rendered by alpro-pipeline: moving shapes with captions by rules."
    limit = f"Answers come from a closed list of {answers:,}: it gives no other, and always one of them.\n"
    data = [markdown(table) if (table := data_table(sources)) else "Not recorded."]
    data += [rendered] if any(source.stage == "render_sample" for _, source in sources) else []

    return CARD.format(
        # The hub's tag for a license that its list lacks.
        license_tag=license or "other",
        tag=tag,
        name=name,
        model_index=index,
        what=what.format(answers=answers),
        parameters=sum(p.numel() for p in model.model.parameters()),
        video=model.model.config.video,
        tokens=model.preprocessing.max_text_tokens,
        text=text,
        call="\n".join(filter(None, [similarity, call])),
        training=training(sources),
        data="\n\n".join(data),
        evaluation=evaluated or "Not recorded: no evaluation of this model is known.",
        limits=limit if answers else "",
        license=f"The weights: {license}."
        if license
        else "No license of the weights was stated at export.",
    )


def training(sources: list[tuple[Path, Record]]) -> str:
    if not sources:
        return "Not recorded: the model was exported from a folder without an artifact."

    lines = []
    for _, record in sources:
        # The lineage also has corpora and vocabularies, which no learning rate trains.
        if "lr" in (config := record.config):
            steps = record.counts.get("steps", "")
            lr = f"{config['lr']:g}"
            lines.append(
                [
                    record.name,
                    record.fingerprint[:16],
                    str(steps),
                    str(config["batch_size"]),
                    lr,
                ]
            )

    # `lineage` lists inputs before their users: the exported model is the last one.
    _, last = sources[-1]
    versions = ", ".join(f"{package} {version}" for package, version in last.versions.items())
    built = f"Built {last.run['at'][:10]}, commit {last.run.get('commit') or 'unknown'}, with {versions}."
    return markdown(
        Table("", ["stage", "fingerprint", "steps", "batch size", "learning rate"], lines, built)
    )


def newest_scores(store: Snapshot, record: Record) -> tuple[str, list[dict[str, Any]]]:
    """The split and the scores of the newest evaluation of the model; empty if there is none."""
    split = ""
    scores: list[dict[str, Any]] = []
    prefixes = PREFIXES_OF_STAGE.get(record.stage, ("-",))

    # From the oldest to the newest, so that the newest one with scores of this model stays.
    for folder, other in store.artifacts:
        used = {source.fingerprint for source in other.inputs.values()}
        if other.stage not in EVALUATIONS or record.fingerprint not in used:
            continue

        # One evaluation scores the models of several stages.
        rows = read_results(folder)
        own = [row for row in rows if row["name"].partition("/")[0].startswith(prefixes)]
        if own:
            split = other.config["split"]
            scores = own
    return split, scores


def evaluation(split: str, scores: list[dict[str, Any]]) -> str:
    """Scores as tables; empty if there are none."""
    if not scores:
        return ""
    shown = "\n\n".join(markdown(table) for table in tables({"score": scores}))
    return f"On the {split} split.\n\n{shown}"


def model_index(name: str, task: str, split: str, scores: list[dict[str, Any]]) -> str:
    """The scores as the hub reads them, a line of the card's header; JSON is YAML, too."""
    if not scores:
        return ""
    metrics = []
    for row in scores:
        name_of_score = " ".join(filter(None, (label_of(row), row["direction"], row["metric"])))
        value = round(row["value"], 3)
        metrics.append({"type": row["metric"], "name": name_of_score, "value": value})

    # The hub requires the data set's type and name, and does not have these videos.
    result = {
        "task": {"type": task},
        "dataset": {"type": "own", "name": "captioned videos", "split": split},
        "metrics": metrics,
    }
    return f"model-index: {json.dumps([{'name': name, 'results': [result]}])}\n"


def markdown(table: Table) -> str:
    lines = [
        f"| {' | '.join(line)} |"
        for line in (table.heads, ["---"] * len(table.heads), *table.lines)
    ]
    return "\n".join([*lines, "", table.note]).strip()
