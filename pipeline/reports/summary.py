"""A run in a few lines of Markdown, for the pages of MLflow and Prefect: results, changes,
links."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alpro.artifact import Record
from alpro.pipeline.plan.changes import built_before, commit_text
from alpro.pipeline.reports.results import Table, main_table, rows


def summary(
    run: Mapping[str, Any],
    artifacts: Sequence[tuple[Path, Record]],
    links: Mapping[str, str],
) -> str:
    """What a run reached, what it changed, and where to read on.

    Args:
        run: the summary of the run, as it is beside its report.
        artifacts: of its steps, in order.
        links: addresses by the words that stand for them; one without an address is left out.
    """
    arguments = run["arguments"]
    state = f"**{run['state']}**" + (f": {run['reason']}" if run["reason"] else "")

    # Links and changes first, because MLflow folds a description after a few lines.
    named = [f"[{words}]({address})" for words, address in links.items() if address]
    parts = [" · ".join([state, *named])]
    changed = run.get("changed") or arguments["changes"]
    changes = ", ".join(f"`{change}`" for change in changed)
    parts.append(f"Changed values: {changes}" if changes else "No value was changed.")
    if run.get("changed_code"):
        parts.append(f"Changed code: {run['changed_code']}")

    table = main_table(rows(artifacts))
    if table:
        parts += [table.note] if table.note else []
        parts.append(markdown_table(table))
    else:
        parts.append("No stage of this run evaluates a model.")

    source = f"Configuration `{arguments['config']}`"
    source += f", data `{arguments['data']}`" if arguments["data"] else ""
    older = built_before(run["commit"], [record for _, record in artifacts])
    parts.append(f"{source}, commit {commit_text(run['commit'])}{older}.")
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    """A table in Markdown, whose scores and chances are aligned to the right."""
    texts = 2  # columns that name a score
    alignment = ["---"] * texts + ["---:"] * (len(table.heads) - texts)
    lines = [table.heads, alignment, *table.lines]
    return "\n".join(f"| {' | '.join(escaped(cell) for cell in line)} |" for line in lines)


def escaped(cell: str) -> str:
    """A text as a cell, which a bar or a line break would end.

    >>> escaped("a|b")
    'a\\\\|b'
    """
    return cell.replace("|", "\\|").replace("\n", " ")
