"""Curves of metrics files, in panels."""

from alpro.pipeline.reports.figures import metric_curves, panel_pictures

LINES = [
    {"step": 1, "time": 1.0, "train/loss": 2.0, "train/loss_vtc": 1.5, "train/lr": 1e-4},
    {"step": 2, "time": 2.0, "train/loss": 1.0, "train/loss_vtc": 0.5, "train/lr": 5e-5},
    {"step": 2, "time": 2.0, "validation/t2v/R1": 20.0, "validation/v2t/R1": 30.0, "validation/t2v/MdR": 4.0},
]


def test_curves_have_a_panel_for_each_kind_of_metric():
    figure = metric_curves(LINES, "pretrain")
    panels = {
        axes.get_title(): {line.get_label(): line.get_xydata().tolist() for line in axes.lines} for axes in figure.axes
    }
    assert panels == {
        "pretrain: losses": {"loss": [[1, 2.0], [2, 1.0]], "loss_vtc": [[1, 1.5], [2, 0.5]]},
        "pretrain: optimization": {"lr (of 0.0001)": [[1, 1.0], [2, 0.5]]},
        "pretrain: validation": {"t2v/R1": [[2, 20.0]]},
    }
    assert metric_curves([], "pretrain") is None
    assert metric_curves([{"step": 1, "time": 1.0}], "pretrain") is None


def test_pictures_of_panels_have_texts():
    pictures = panel_pictures(LINES)
    assert list(pictures) == ["losses", "optimization", "validation"]
    for picture in pictures.values():
        assert "<text " in picture  # texts, not outlines
