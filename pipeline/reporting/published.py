"""The scores that the paper (arXiv 2112.09583) publishes for ALPRO on its data sets, shown beside those of a run."""

from typing import Any

from alpro.pipeline.reporting.result_tables import Listed, Table, shown
from alpro.stages import EVALUATIONS

# By evaluation and name of the corpus: the paper's name of the data set, its table, and the scores.
PUBLISHED = {
    ("retrieval", "msrvtt"): ("MSRVTT, Table 2", {"R@1": 33.9, "R@5": 60.7, "R@10": 73.2, "MdR": 3}),
    ("zero_shot", "msrvtt"): ("MSRVTT, Table 2", {"R@1": 24.1, "R@5": 44.7, "R@10": 55.4, "MdR": 8}),
    ("retrieval", "didemo"): ("DiDeMo, Table 3", {"R@1": 35.9, "R@5": 67.5, "R@10": 78.8, "MdR": 3}),
    ("zero_shot", "didemo"): ("DiDeMo, Table 3", {"R@1": 23.8, "R@5": 47.3, "R@10": 57.9, "MdR": 6}),
    ("qa", "msrvtt"): ("MSRVTT-QA, Table 4", {"all questions": 42.1}),
    ("qa", "msvd"): ("MSVD-QA, Table 4", {"all questions": 45.9}),
}
DIRECTION = "t2v"  # of the published retrieval
NOTE = (
    "The lines in italics are not of this run: the paper publishes them for ALPRO, pre-trained on 5.5 million pairs of "
    "WebVid-2.5M and CC3M."
)


def published_lines(table: Table, rows: list[dict[str, Any]], artifacts: list[Listed]) -> list[list[str]]:
    """The published scores as lines of a table of results: of the evaluations of the test split that the table has
    rows of, if the corpus has the name of one of the paper's data sets."""
    lines = []
    for evaluation, corpus in evaluated(artifacts):
        own = [r for r in rows if r["name"].split("/")[0] == evaluation and r["direction"] in ("", DIRECTION)]
        if (evaluation, corpus) not in PUBLISHED or not own:
            continue
        source, scores = PUBLISHED[evaluation, corpus]
        what, cells = f"published: {own[0]['what']} ({source})", [""] * (len(table.heads) - 2)
        for row in own:
            # A column for each metric, or a line for each and a column for each evaluation.
            heads = [head.removesuffix(" ↓") for head in table.heads[2:]]
            for name in (row["metric"], row["what"]):
                if name in heads and row["metric"] in scores:
                    cells[heads.index(name)] = shown(scores[row["metric"]], row["unit"])
        if any(cells):
            lines.append([what, own[0]["direction"], *cells])
    return lines


def evaluated(artifacts: list[Listed]) -> list[tuple[str, str]]:
    """The evaluations of a run on the test split, each with the name of its corpus."""
    pairs = []
    for _, _, record, _ in artifacts:
        config = record.get("config", {})
        if record["stage"] in EVALUATIONS and config.get("split") == "test":
            retrieval = "zero_shot" if record["stage"] == "zero_shot" else "retrieval"
            pairs += [(retrieval, config.get("retrieval", "")), ("qa", config.get("qa", ""))]
    return list(dict.fromkeys(pairs))
