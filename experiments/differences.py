"""The paired differences of the finished studies, with their power, from the committed rows.

python experiments/differences.py
"""

import sys
from pathlib import Path

# Lets the program import experiments.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alpro.files import read_json
from experiments.paired import Difference

HERE = Path(__file__).parent
SILENT_DRAWS = range(6)
SILENT_ARMS = ("permuted", "prompter", "crops", "crops-all-kept", "true")
LOSSES_DRAWS = range(5)
# Table 1 of the paper, `MLM + VTM + PEM + VTC` minus `MLM + VTM + VTC`: MSRVTT-QA, MSVD-QA, their
# mean, MSRVTT R@1; the last one is zero-shot R@1 (Table 6).
PAPER_EFFECTS = (0.2, 0.4, 0.3, 1.1, 1.5)


def silent_scores(arm: str, score: str) -> list[float]:
    """Return a score (%) of an arm of the silent study in each draw."""
    folder = HERE / "silent" / "results"
    rows = (
        read_json(folder / f"draw-{draw}-named-1-{arm}-0.json") for draw in SILENT_DRAWS
    )
    return [row["scores"][score][0] for row in rows]


def silent_difference(arm: str, base: str, score: str = "naming") -> Difference:
    """Compare two arms of the silent study."""
    pairs = zip(silent_scores(arm, score), silent_scores(base, score), strict=True)
    return Difference(tuple(score - base_score for score, base_score in pairs))


def losses_difference(row: str, base: str, score: str) -> Difference:
    """Compare two rows of the study of the losses (Table 1 of the paper)."""
    draws = [
        read_json(HERE / "losses" / "results" / f"draw-{draw}.json")
        for draw in LOSSES_DRAWS
    ]
    return Difference(
        tuple(scores[row][score] - scores[base][score] for scores in draws)
    )


def main() -> None:
    for score in ("naming", "naming_vtc"):
        for base in ("none", "permuted"):
            for arm in SILENT_ARMS:
                if arm != base:
                    gain = silent_difference(arm, base, score)
                    observed = gain.power(gain.mean)
                    print(
                        f"{score:10} {arm:14} - {base:8} {gain}, power {observed:.2f}"
                    )

    print(f"\nPEM with VTC, and the power for effects of {PAPER_EFFECTS} points:")
    scores = ("qa/acc", "retrieval_vtc/t2v/R1", "retrieval/t2v/R1", "zero_shot/t2v/R1")
    for score in scores:
        gain = losses_difference("all", "MLM + VTM + VTC", score)
        powers = " ".join(f"{gain.power(effect):.2f}" for effect in PAPER_EFFECTS)
        print(f"{score:21} {gain}, power {powers}")


if __name__ == "__main__":
    main()
