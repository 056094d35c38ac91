"""The document of a run, in Markdown: the workspace has it as a page, MLflow as the description of
the run, Prefect as an artifact."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote, unquote

from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from alpro.artifact import Record
from alpro.files import read_json
from alpro.names import Artifact
from alpro.pipeline.reports.figures import draw_calibration, draw_scores
from alpro.pipeline.reports.results import (
    CONTROL,
    Rows,
    Table,
    count_text,
    escape,
    main_rows,
    main_table,
    rows,
    tables,
)
from alpro.pipeline.reports.verdict import compare_with_start, headline
from alpro.pipeline.store.runs import Run
from alpro.stages import EVALUATIONS
from alpro.stages.evaluation.controls import CONTROLS
from alpro.stages.execution.step import Step

Artifacts = Sequence[Artifact]
# Captions of the pictures of stages, by file name.
CAPTIONS = {
    "samples": "Evenly spaced samples of the corpus with their texts.",
    "pseudo_labels": "The prompter's pseudo-labels on crops of training examples (Figure 3 of the "
    "paper).",
    "search": "Texts of the validation split, and the four videos that are first; the right one "
    "has a green border.",
    "retrieval": "Queries with the best and with the worst ranks by similarity, and the first "
    "videos; the right one has a green border.",
    "scores": "The main scores, their 95 % intervals, and the chance levels.",
    "calibration": "Accuracy of predictions over their probability. Below the dashed line, the "
    "model is too confident.",
}
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 1.5rem auto; padding: 0 1rem }}
h1, p, li {{ overflow-wrap: anywhere }}
h2 {{ font-size: 1.2rem; border-top: 1px solid #8886; margin-top: 1.6rem; padding-top: .8rem }}
table {{ display: block; overflow-x: auto; border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ text-align: left; vertical-align: top; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #8883 }}
/* A score and its interval stay on one line. */
th, td:nth-child(3) {{ white-space: nowrap }}
img {{ max-width: 100%; height: auto; background: #fff }}
img[alt=scores], img[alt=calibration] {{ width: 38rem }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}</body>
</html>
"""


@dataclass(frozen=True)
class Document:
    """A text in Markdown. Only the page shows its pictures."""

    title: str
    head: str  # shown first on every page
    sections: list[str]  # each begins with its heading
    # Pictures by their address in the text.
    figures: Mapping[str, Figure]

    def markdown(self, links: Mapping[str, str], max_length: int | None = None) -> str:
        """Return the sections without pictures, as many as there is room for.

        Args:
            links: Addresses by their words; one without an address is left out.
            max_length: Characters that a page takes.
        """
        texts = [section for section in self.sections if "\n![" not in section]
        text = "\n\n".join([join_links(links) + self.head, *texts])
        if max_length and len(text) > max_length:
            text = text[:max_length].rpartition("\n\n## ")[0]
        return text

    def page(self, links: Mapping[str, str]) -> str:
        """Return the text as an HTML page that needs no other file."""
        text = "\n\n".join([join_links(links) + self.head, *self.sections])
        return PAGE.format(title=html.escape(self.title), body=self._render(text))

    def _render(self, text: str) -> str:
        """Return Markdown as HTML, with the pictures inside."""
        # Escape HTML in the user's data.
        parser = MarkdownIt("commonmark", {"html": False}).enable("table")
        tokens = parser.parse(text)
        for token in tokens:
            for child in token.children or ():
                if child.type == "image":
                    data = base64.b64encode(self._read_picture(str(child.attrs["src"])))
                    child.attrs["src"] = f"data:image/png;base64,{data.decode()}"

        return parser.renderer.render(tokens, parser.options, {})

    def _read_picture(self, address: str) -> bytes:
        """Return the PNG of a figure, or of a file."""
        if address not in self.figures:
            return Path(unquote(address)).read_bytes()
        picture = io.BytesIO()
        self.figures[address].savefig(picture, dpi=160)
        return picture.getvalue()


def join_links(links: Mapping[str, str]) -> str:
    """Return links that other text follows; an empty text without an address."""
    return "".join(
        f"[{escape(name)}]({address}) · " for name, address in links.items() if address
    )


def describe_run(
    run: Run, steps: Sequence[Step], artifacts: Artifacts, changes: Sequence[str]
) -> Document:
    """Return the document of a run.

    Args:
        run: Run that has ended.
        steps: Steps of its plan.
        artifacts: Artifacts of its steps in order; of a run that failed, those that there are.
        changes: What differs from the run before.
    """
    results = rows(artifacts)
    figures = draw_scores(main_rows(results)) | draw_calibration(artifacts)
    main = main_table(results)
    parts = {"Results": main.markdown() if main else ""}
    parts["Warnings"] = show_list(
        f"{record.name}: {escape(text)}"
        for _, record in artifacts
        for text in record.warnings
    )
    for name in figures:
        heading = name.removesuffix(".png").capitalize()
        parts[heading] = show_picture(name)
    parts |= {table.title: table.markdown() for table in tables(results)}
    parts["What the controls show"] = show_list(
        f"**{control.label}**: {control.meaning}"
        for control in CONTROLS.values()
        if any(row["what"].startswith(CONTROL + control.label) for row in results)
    )
    rejects: list[str] = []
    for folder, record in artifacts:
        pictures = sorted(folder.resolve().glob("pictures/*.png"))
        parts[record.name] = "\n\n".join(
            show_picture(quote(str(path))) for path in pictures
        )
        file = folder / "statistics.json"
        reasons = read_json(file).get("reasons", {}) if file.is_file() else {}
        rejects += [
            f"{record.name}: {escape(reason)} {count}"
            for reason, count in reasons.items()
        ]
    parts["Rejected"] = show_list(rejects)
    parts["Stages"] = show_stages(run, steps, artifacts)
    start = run.at[:19].replace("T", " ")
    words = " ".join(run.words)
    parts["Run"] = (
        f"Started {start} UTC, took {format_duration(run.seconds)}. {format_code(words)}, commit "
        f"{run.commit}."
    )

    sections = [f"## {heading}\n\n{body}" for heading, body in parts.items() if body]
    head = summarize(run, artifacts, results, changes)
    return Document(run.title, head, sections, figures)


def summarize(
    run: Run, artifacts: Artifacts, results: Rows, changes: Sequence[str]
) -> str:
    """Return what a run reached, on how many clips, beside chance, and what it changed.

    Pages fold a description after a few lines, so it begins on the line of the links.
    """
    state = f"**{run.state.capitalize()}**"
    reason = f": {escape(run.reason)}" if run.reason else ""
    scores = escape(headline(results))
    codes = [format_code(change) for change in changes]
    paragraphs = [
        state + reason + (f" · {scores}" if scores else ""),
        f"Changed: {', '.join(codes)}."
        if codes
        else "No value differs from the previous run.",
        compare_with_start(artifacts),
    ]
    return "\n\n".join(filter(None, paragraphs))


def format_code(text: str) -> str:
    """Return a text as code in Markdown. A backtick would end it, and what follows be Markdown."""
    return escape(text) if "`" in text else f"`{text}`"


def show_list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def show_picture(address: str) -> str:
    """Return a picture with its caption, by its name `KIND.png` or `KIND-step-STEP.png`."""
    name = unquote(address.rpartition("/")[2].removesuffix(".png"))
    kind = name.partition("-step-")[0]
    caption = CAPTIONS.get(kind, "")
    return f"{escape(name)}: {caption}\n\n![{escape(kind)}]({address})"


def show_stages(run: Run, steps: Sequence[Step], artifacts: Artifacts) -> str:
    """Return the steps of a run: how long each took, and what it counted."""
    records = {record.name: record for _, record in artifacts}
    lines = []
    for step in steps:
        record = records.get(step.name, Record())
        state = run.states.get(step.name, "")
        time = format_duration(record.run["seconds"]) if state == "built" else state
        # The counts of an evaluation are in the tables of results.
        counts = "" if record.stage in EVALUATIONS else count_text(record)
        lines.append([step.name, step.fingerprint[:8], time, counts])

    heads = ["stage", "fingerprint", "time", "counts"]
    return Table("Stages", heads, lines).markdown()


def format_duration(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))
