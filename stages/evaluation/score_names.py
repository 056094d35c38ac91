"""The names of scores that people see first: one table of each kind, which the report, MLflow and
studies share.

A score's name in results.json is NAME/DIRECTION/METRIC, such as zero_shot_vtc/t2v/R1: what was
evaluated (`stages/evaluation/scores.py` composes it; `_vtc` is retrieval by similarity, without it
by matching), the direction of a retrieval, and the key of the metric
(`stages/evaluation/metrics.py`).
"""

# The scores that a person looks at first, by the short names under which MLflow has them, with
# their names in results.
HEADLINES = {
    "R1": "retrieval_vtc/t2v/R1",  # by similarity, as `alpro search` ranks
    "QA": "qa/acc",
    "R1_zero_shot": "zero_shot_vtc/t2v/R1",
    "R10": "retrieval_vtc/t2v/R10",
    "entities": "entities/acc",
}
# The evaluation input whose model each headline score belongs to.
MODEL_OF_HEADLINE = {
    "R1": "retrieval",
    "R10": "retrieval",
    "R1_zero_shot": "pretrained",
    "QA": "qa",
    "entities": "prompter",
}
# What a training reaches on the validation split, by the names of its metrics.
VALIDATION_SCORES = {
    "validation/t2v/R1": "validation R@1",
    "validation/qa/acc": "validation accuracy",
    "validation/vtc/t2v/R1": "validation R@1",
}
# Beside them: how much of the fine-tuning is in the weights that were kept (WiSE-FT), from 0 to 1.
INTERPOLATION_SHARE = "interpolation_share"
# The scores that decide which of two models is better, if both have one: the first of these. Search
# ranks by similarity.
DECISIVE = (
    "similarity/t2v/R1",
    "retrieval_vtc/t2v/R1",
    "zero_shot_vtc/t2v/R1",
    "qa/acc",
    "entities/acc",
)
# The score of a model before and after its fine-tuning.
BEFORE_TUNING = "zero_shot_vtc/t2v/R1"
AFTER_TUNING = "retrieval_vtc/t2v/R1"
# The scores that a run prints at its end: on one screen, beside what a single frame or the text
# alone reaches.
PRINTED = (
    "zero_shot_vtc/t2v/R1",
    "zero_shot/t2v/R1",
    "retrieval_vtc/t2v/R1",
    "retrieval/t2v/R1",
    "retrieval_vtc/t2v/R10",
    "retrieval_single_frame_vtc/t2v/R1",
    "qa/acc",
    "qa_text_only/acc",
    "entities/acc",
    # PEM's labels: without the places of things, any entity of the clip is right and only ece
    # tells.
    "entity_crops/acc",
    "entity_crops/ece",
)
# Their metrics on that screen, where the full ones would be too wide.
SHORT_METRICS = {"entity_crops/acc": "labels right", "entity_crops/ece": "ECE ↓"}
# The scores that a study compares if it names none.
STUDIED = (
    "zero_shot_vtc/t2v/R1",
    "zero_shot/t2v/R1",
    "retrieval_vtc/t2v/R1",
    "retrieval/t2v/R1",
    "qa/acc",
    "entities/acc",
)
# The curves of a training on the validation split, in the order in which they are drawn, with their
# titles.
VALIDATION_CURVES = {
    "validation/vtc/t2v/R1": "validation R@1 by similarity",
    "validation/t2v/R1": "validation R@1 by matching",
    "validation/qa/acc": "validation accuracy",
    "validation/pem/acc": "validation accuracy of PEM",
}
# How the names of the scores of each stage's model start.
PREFIXES_OF_STAGE = {
    "finetune_retrieval": ("retrieval",),
    "finetune_qa": ("qa",),
    "pretrain": ("zero_shot",),
    "train_prompter": ("entities", "entity_crops"),
}
