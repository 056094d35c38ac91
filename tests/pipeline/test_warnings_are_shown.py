"""What makes a result worth less than it looks is in the record of its stage, in the report, and printed at the end."""

from alpro.files import write_json
from alpro.pipeline.reports.report import write_report
from alpro.pipeline.reports.summary import RunSummary
from alpro.pipeline.reports.terminal import console, print_results
from alpro.pipeline.store.artifacts import RECORD_VERSION


def test_the_warnings_of_stages_are_in_the_report_and_printed(tmp_path):
    folder = tmp_path / "pretrain"
    folder.mkdir()
    record = {"version": RECORD_VERSION, "stage": "pretrain", "name": "pretrain", "fingerprint": 64 * "a"}
    record |= {"counts": {}, "metrics": {}, "run": {"seconds": 1.0}}
    record["warnings"] = ["data: 3 of 9 captions are cut", "loss_vtc ended at chance"]
    write_json(folder / "artifact.json", record)
    page = write_report(tmp_path / "page.html", RunSummary("own", "own"), [("pretrain", folder, record, False)])
    with console.capture() as printed:
        print_results({"pretrain": folder, "evaluate": folder.parent}, folder, page)
    for warning in record["warnings"]:
        assert f">pretrain: {warning}</p>" in page.read_text()
        assert f"warning: pretrain: {warning}\n" in printed.get()
