"""The model card of an exported model, written from what is known of it: its artifact, its inputs, its evaluations."""

from pathlib import Path
from typing import Any

from alpro.artifact import read_record, read_results
from alpro.errors import InputError
from alpro.models.folder import ModelFolder
from alpro.pipeline.store.artifacts import Store
from alpro.pipeline.store.lineage import Artifact, lineage
from alpro.stages import CORPUS_STAGES, EVALUATIONS

OWN_SCORES = {  # how the names of a stage's scores start, in results.json of evaluate and zero_shot
    "finetune_retrieval": ("retrieval",),
    "finetune_qa": ("qa",),
    "pretrain": ("zero_shot",),
    "train_prompter": ("entities", "entity_crops"),
}
HEADS = {"prompter": "feature-extraction", "qa": "visual-question-answering"}

USE = """```python
from transformers import AutoModel, AutoProcessor

folder = "."  # this folder, or its name on the hub
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(videos=["a.mp4"], text=[TEXT])  # or frames (F, H, W, 3) uint8
USE
```

`pip install torch transformers numpy pydantic av` installs what this needs. `SentenceTransformer` also loads the
folder. Read the code in it before you trust it."""

CALLS = {
    "prompter": "print(model(**inputs).similarity)  # (texts, videos)",
    "qa": "probabilities = model.answer(**inputs)[0]\nprint(model.config.answers[probabilities.argmax()])",
    "": "print(model(**inputs).similarity)  # (texts, videos)\nprint(model.match(**inputs))  # probabilities",
}


def model_card(artifact: Path, model: ModelFolder, name: str, license: str = "") -> str:
    """The text of README.md. artifact: of the store, or any model folder, of which less is known."""
    record = read_record(artifact)
    sources, evaluated = list[Artifact](), NOT_EVALUATED
    if record:
        store = Store(artifact.parents[1])
        evaluated = evaluation(store, record)
        try:
            sources = lineage(store, record)
        except InputError:  # an input was removed
            sources = [(artifact, record)]
    parts = [header(model, license), f"# {name}", description(model), usage(model), "## Training", training(sources)]
    parts += ["## Data", data(sources), "## Evaluation", evaluated]
    parts += ["## Limits", limits(model), "## License", license_text(license)]
    return "\n\n".join(parts) + "\n"


def header(model: ModelFolder, license: str) -> str:
    """The metadata that the hub reads."""
    lines = ["---", "library_name: transformers", f"license: {license or 'other'}"]
    lines += [f"pipeline_tag: {HEADS.get(model.task, 'feature-extraction')}", "tags: [alpro, video-text]", "---"]
    return "\n".join(lines)


def description(model: ModelFolder) -> str:
    tasks = {
        "prompter": "a prompter: a video and a text encoder, trained with contrast (VTC)",
        "pretrain": "a pre-trained video-language model",
        "retrieval": "a video-language model, fine-tuned for text-video retrieval",
        "qa": f"a video-language model, fine-tuned to answer questions with {len(model.answers):,} answers",
    }
    video, parameters = model.model.config.video, sum(p.numel() for p in model.model.parameters())
    return (
        f"ALPRO ([Align and Prompt](https://arxiv.org/abs/2112.09583)), {tasks[model.task]}. It has {parameters:,} "
        f"parameters and takes {video.frames} frames of {video.image_size} x {video.image_size} pixels and texts of at "
        f"most {model.preprocessing.max_text_tokens} word pieces. It was exported by alpro-pipeline."
    )


def usage(model: ModelFolder) -> str:
    text = '"what color is the ball?"' if model.answers else '"a dog runs"'
    call = CALLS.get(model.task, CALLS[""])
    return USE.replace("TEXT", text).replace("\nUSE\n", f"\n{call}\n")


def training(sources: list[Artifact]) -> str:
    if not sources:
        return "Not recorded: the model was exported from a folder without an artifact."
    rows = ["| stage | fingerprint | steps | batch size | learning rate |", "| --- | --- | --- | --- | --- |"]
    for _, record in sources:
        config = record["config"]
        if "lr" in config:
            steps = record["counts"].get("steps", "")
            row = (record["name"], record["fingerprint"][:16], steps, config["batch_size"], f"{config['lr']:g}")
            rows.append(f"| {' | '.join(map(str, row))} |")
    versions = sources[-1][1]["versions"]
    run = sources[-1][1]["run"]
    built = f"Built {run['at'][:10]}, commit {run.get('commit') or 'unknown'}, with "
    return "\n".join([*rows, "", built + ", ".join(f"{key} {value}" for key, value in versions.items()) + "."])


def data(sources: list[Artifact]) -> str:
    corpora = [record for _, record in sources if record["stage"] in CORPUS_STAGES]
    if not corpora:
        return "Not recorded."
    rows = [
        "| corpus | items | training | validation | test | captions | questions | rejected |",
        "| --- " * 8 + "|",
    ]
    names = ("samples", "train", "validation", "test", "captions", "questions", "rejected")
    for record in corpora:
        counts = [f"{record['counts'].get(name, 0):,}" for name in names]
        rows.append(f"| {' | '.join([record['name'].removeprefix(record['stage']).strip() or 'data', *counts])} |")
    rendered = any(record["stage"] == "render_sample" for _, record in sources)
    text = "All of it is rendered by alpro-pipeline: moving shapes with captions by rules." if rendered else ""
    return "\n".join([*rows, "", text]).strip()


NOT_EVALUATED = "Not recorded: no evaluation of this model is known."


def evaluation(store: Store, record: dict[str, Any]) -> str:
    """The scores of the newest evaluation of the model, with the 95 % intervals over videos."""
    rows, split = list[str](), ""
    for folder, other in store.all():
        used = {source["fingerprint"] for source in other["inputs"].values()}
        if other["stage"] in EVALUATIONS and record["fingerprint"] in used:
            own = [row for row in read_results(folder) if is_score_of(row, record["stage"])]
            rows, split = (list(map(score_row, own)), other["config"]["split"]) if own else (rows, split)
    if not rows:
        return NOT_EVALUATED
    head = "| evaluated | metric | value | 95 % interval | chance | items |\n| --- | --- | --- | --- | --- | --- |"
    intervals = "Intervals are over the items' videos (bootstrap). A score on which all queries agree has no interval."
    return "\n".join([f"On the {split} split. {intervals}", "", head, *rows])


def is_score_of(row: dict[str, Any], stage: str) -> bool:
    """Whether a row of results.json is a score of a stage's model; an evaluation reads several models."""
    name = row["name"].partition("/")[0]
    return name.startswith(OWN_SCORES.get(stage, ("-",)))


def score_row(row: dict[str, Any]) -> str:
    unit = " %" if row["unit"] == "%" else ""
    interval = "" if row["low"] is None else f"{row['low']:.1f} to {row['high']:.1f}"
    chance = "" if row["chance"] is None else f"{row['chance']:.1f}"
    metric = f"{row['direction']} {row['metric']}".strip()
    return f"| {row['what']} | {metric} | {row['value']:.1f}{unit} | {interval} | {chance} | {row['items']:,} |"


def limits(model: ModelFolder) -> str:
    video = model.model.config.video
    lines = [
        f"- A video is {video.frames} frames, whatever its length: what happens between them is not seen, and sound is "
        "not heard.",
        "- Texts are those of the training captions: their language, their words, and their biases.",
        "- Scores are of the test set above. Nothing is known about other videos, or about fairness.",
        "- Probabilities are not calibrated.",
    ]
    if model.answers:
        count = len(model.answers)
        lines.insert(0, f"- Answers come from a closed list of {count:,}: it gives no other, and always one of them.")
    return "\n".join(lines)


def license_text(license: str) -> str:
    own = f"The weights: {license}." if license else "No license of the weights was stated at export."
    return (
        f"{own} The code in this folder is BSD 3-Clause. The licenses of the training data, and of weights that the "
        "training started from, may restrict the use of the weights."
    )
