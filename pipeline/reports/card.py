"""The card of an exported model, README.md: its training and scores, from its artifact."""

import json
from pathlib import Path

from alpro.artifact import Record, artifacts, read_record, read_results
from alpro.models.folder import ModelBundle
from alpro.pipeline.reports.results import Rows, count_text, tables
from alpro.stages import EVALUATIONS

NOT_EVALUATED = "Not recorded: no evaluation of this model is known."
NO_LICENSE = "No license of the weights was stated at export."
CLOSED_LIST = "Answers come from a closed list of {answers:,}: it gives no other, and always one of them.\n"
SIMILARITY = "print(model(**inputs).similarity)  # (texts, videos)"
ANSWER = "probabilities = model.answer(**inputs)[0]\nprint(model.config.answers[probabilities.argmax()])"
# The description of the model of each task.
TASKS = {
    "prompter": "a prompter: a video and a text encoder, trained with contrast (VTC)",
    "pretrain": "a pre-trained video-language model",
    "retrieval": "a video-language model, fine-tuned for text-video retrieval",
    "qa": "a video-language model, fine-tuned to answer questions",
}
CARD = """---
library_name: transformers
license: {license_tag}
pipeline_tag: {tag}
tags: [alpro, video-text, sentence-transformers]
---

# {name}

ALPRO ([Align and Prompt](https://arxiv.org/abs/2112.09583)), {what}. It has {parameters:,} parameters and takes \
{video.frames} frames of {video.image_size} x {video.image_size} pixels and texts of at most {tokens} tokens. \
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

## Evaluation

{evaluation}

## Limits

{limits}A video is {video.frames} frames, whatever its length, without sound. The model knows the language, the words
and the biases of its training captions. Nothing is known about other videos than the test set, or about fairness.

## License

{license} The code in this folder is BSD 3-Clause (LICENSE). The licenses of the training data, and of weights that the
training started from, may restrict the use of the weights.
"""


def write_card(artifact: Path, model: ModelBundle, name: str, license: str = "") -> str:
    """Return the text of README.md.

    Args:
        artifact: Folder of an artifact of a store, or any model folder, of which less is known.
    """
    record = read_record(artifact)
    answers = len(model.answers)
    tag = "visual-question-answering" if model.task == "qa" else "feature-extraction"

    split = ""
    scores: Rows = []
    training = "Not recorded: the model was exported from a folder without an artifact."
    if record:
        # The folder of an artifact is STORE/STAGE/FINGERPRINT.
        split, scores = find_newest_scores(artifact.parents[1], record)
        settings = json.dumps(record.config, indent=1)
        training = (
            f"The artifact {record.name} {record.fingerprint}, built {record.run['at'][:10]}, commit "
            f"{record.run.get('commit') or 'unknown'}: {count_text(record)}.\n\n```json\n{settings}\n```"
        )

    score_tables = "\n\n".join(table.markdown() for table in tables(scores))
    return CARD.format(
        # The hub calls a license that it does not list "other".
        license_tag=license or "other",
        tag=tag,
        name=name,
        what=TASKS[model.task],
        parameters=sum(p.numel() for p in model.model.parameters()),
        video=model.model.config.video,
        tokens=model.preprocessing.max_text_tokens,
        text='"what color is the ball?"' if answers else '"a dog runs"',
        call=ANSWER if answers else SIMILARITY,
        training=training,
        evaluation=f"On the {split} split.\n\n{score_tables}"
        if scores
        else NOT_EVALUATED,
        limits=CLOSED_LIST.format(answers=answers) if answers else "",
        license=f"The weights: {license}." if license else NO_LICENSE,
    )


def find_newest_scores(store: Path, record: Record) -> tuple[str, Rows]:
    """Return the split and the scores of the newest evaluation of a model; empty without one."""
    for folder, evaluation in reversed(artifacts(store)):
        model = evaluation.inputs.get("model")
        is_of_model = model and model.fingerprint == record.fingerprint
        if evaluation.stage in EVALUATIONS and is_of_model:
            scores = [row for row in read_results(folder) if row["model"]]
            return evaluation.config["split"], scores
    return "", []
