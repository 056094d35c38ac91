"""The document of a run, in Markdown: the workspace has it as a page, MLflow as the description of
the run, Prefect as an artifact."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pyarrow.parquet as pq
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from alpro.artifact import Artifact
from alpro.pipeline.plan.check_data import list_rejects
from alpro.pipeline.plan.difference import count_text
from alpro.pipeline.reports.figures import draw_calibration, draw_scores
from alpro.pipeline.reports.results import (
    list_warnings,
    main_rows,
    main_table,
    rows,
    tables,
)
from alpro.pipeline.reports.templates import render
from alpro.pipeline.reports.verdict import compare_with_start, headline
from alpro.pipeline.store.runs import RunEntry
from alpro.stages import EVALUATIONS
from alpro.stages.execution.step import Step


class Document(NamedTuple):
    """The text of a run. Only the page shows its pictures.

    Attributes:
        values: What the template shows.
        figures: Pictures by their address in the text.
    """

    values: Mapping[str, Any]
    figures: Mapping[str, Figure]

    def markdown(
        self,
        links: Mapping[str, str],
        max_length: int | None = None,
        pictures: bool = False,
    ) -> str:
        """Return the text in Markdown.

        Args:
            links: Addresses by their words; one without an address is left out.
            max_length: Characters that a page takes: as many sections as there is room for.
            pictures: Show them.
        """
        text = render(
            "document.md.jinja",
            **self.values,
            figures=self.figures,
            links=links,
            pictures=pictures,
        )
        if max_length and len(text) > max_length:
            text = text[:max_length].rpartition("\n\n## ")[0]
        return text

    def page(self, links: Mapping[str, str]) -> str:
        """Return the text as an HTML page that needs no other file."""
        # HTML in the user's data is escaped, so that every <img> is a picture of the document.
        parser = MarkdownIt("commonmark", {"html": False}).enable("table")
        body = parser.render(self.markdown(links, pictures=True))
        body = re.sub('(?<=<img src=")[^"]+', self._embed_picture, body)
        return render("page.html.jinja", title=self.values["run"].title, body=body)

    def _embed_picture(self, address: re.Match[str]) -> str:
        """Return the PNG of a figure, or of a file, as an address that contains it."""
        name = unquote(address[0])
        if name in self.figures:
            picture = io.BytesIO()
            self.figures[name].savefig(picture, dpi=160)
            content = picture.getvalue()
        else:
            content = Path(name).read_bytes()
        return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def describe_run(
    run: RunEntry,
    steps: Sequence[Step],
    artifacts: Sequence[Artifact],
    changes: Sequence[str] | None,
) -> Document:
    """Return the document of a run.

    Args:
        run: Entry of a run that has ended.
        steps: Steps of its plan.
        artifacts: Artifacts of its steps in order; of a run that failed, those that there are.
        changes: What differs from the run before, if there is one.
    """
    results = rows(artifacts)
    parts = {}
    for folder, record in artifacts:
        is_evaluation = record.stage in EVALUATIONS
        rejects = folder / "rejects.parquet"
        parts[record.name] = {
            "record": record,
            "pictures": sorted(folder.resolve().glob("pictures/*.png")),
            "rejects": [*list_rejects(pq.read_table(rejects))]
            if rejects.is_file()
            else [],
            # The tables of results have what an evaluation counts.
            "counts": "" if is_evaluation else count_text(record),
        }

    values = {
        "run": run,
        "steps": steps,
        "parts": parts,
        "changes": changes,
        "warnings": list_warnings(artifacts),
        "headline": headline(results),
        "verdict": compare_with_start(artifacts),
        "main": main_table(results),
        "tables": tables(results),
        "evaluated": " ".join(row["what"] for row in results),
    }
    figures = draw_scores(main_rows(results)) | draw_calibration(artifacts)
    return Document(values, figures)
