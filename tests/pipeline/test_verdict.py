"""Which of two models is better, in a sentence with the names that a person typed."""

import numpy as np
import pytest

from alpro.pipeline.reports.terminal import print_results
from alpro.pipeline.reports.verdict import compare_with_start, verdict
from alpro.stages.evaluation.metrics import Metric, Queries, Score
from alpro.stages.evaluation.results import Results
from alpro.stages.evaluation.statistics import PairedDifference
from tests.pipeline.conftest import write_artifact
from tests.pipeline.score_rows import score_row

ROW = score_row(value=9.1, items=11, videos=11)
R1 = Metric("R1", "R@1", "retrieval")


# A score with its test set, and both scores, their difference with its interval, and p.
CASES = [
    (score_row(), (86.0, 89.5, 3.5, -1.0, 8.0, 0.21)),
    (ROW, (9.1, 72.7, 63.6, 36.4, 90.9, 0.0496)),
    (ROW, (72.7, 9.1, -63.6, None, None, 0.0004)),
]
SENTENCES = """
No significant difference between clip and mine on 200 test clips \
(R@1 86.0 and 89.5, difference +3.5 [-1.0, +8.0], p = 0.21): keep clip.
mine is better than clip on 11 test clips \
(R@1 9.1 and 72.7, difference +63.6 [+36.4, +90.9], p = 0.0496): keep mine.
mine is worse than clip on 11 test clips \
(R@1 72.7 and 9.1, difference -63.6, p = 0.0004): keep clip.
"""


def test_the_sentence():
    sentences = [
        verdict("clip", "mine", row, PairedDifference(*values)) for row, values in CASES
    ]
    assert sentences == SENTENCES.strip().splitlines()


@pytest.mark.parametrize(
    ("step", "model"), [("pretrained", "pre-trained"), ("baseline", "clip-b16")]
)
def test_a_trained_model_is_compared_with_what_it_should_beat_over_the_same_queries(
    step, model, tmp_path, capsys
):
    asked = Queries.of([f"v{n}" for n in range(12)], ["a dog"] * 12)
    tuned = "retrieval" if step == "pretrained" else "prompter"
    made = []
    for evaluated, kind, right in ((step, model, 2), (tuned, "fine-tuned", 12)):
        scores = (np.arange(12) < right) * 100.0
        results = Results(kind)
        results.add(Score(R1, scores, 8.3, asked), "similarity", "by similarity", "t2v")
        artifact = write_artifact(
            tmp_path, "evaluate", evaluated, name=f"evaluate {evaluated}"
        )
        results.write(artifact[0], "test")
        made.append(artifact)

    print_results(made, tmp_path, tmp_path / "none.html")

    sentence = capsys.readouterr().out.splitlines()[-2]
    assert sentence.startswith(f"fine-tuned is better than {model} on 12 clips")
    assert compare_with_start(made[1:]) == ""
