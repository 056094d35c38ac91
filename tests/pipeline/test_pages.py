"""The documentation of a finished pipeline: its commands and code run, and its metrics have the documented names."""

import re
import shutil
from pathlib import Path

from alpro.artifact import read_record
from alpro.stages.evaluation.metrics import RETRIEVAL
from alpro.stages.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]


def test_the_python_example(first, sample, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "python.md").read_text()
    example = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[0]
    for name, video in zip("ab", sorted((sample / "videos").glob("test-*.mp4")), strict=False):
        shutil.copy(video, tmp_path / f"{name}.mp4")
    assert re.findall(r"Model\.load\(\"(\w+)\"\)", example) == ["finetune_retrieval", "finetune_qa", "train_prompter"]
    for folder in map(Path, first.values()):
        place = tmp_path / "workspace" / "artifacts" / folder.parent.name / folder.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/python.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 4


PLACES = {
    "split": "test|validation",
    "direction": "t2v|v2t",
    "rank": "|".join(metric.key for metric in RETRIEVAL),
    "subset": r"\w+",
    "name": r"\w+",
}
NOT_IN_EVERY_RUN = {
    "<split>/decoded/<corpus>/<column>",
    "<split>/entity_crops/acc_kept",
    "<split>/entity_crops/acc_sure",
}


def test_every_metric_has_its_name_on_the_page(first):
    page = (ROOT / "docs" / "metrics.md").read_text()
    cells = [row.split(" | ")[0] for row in page.splitlines() if row.startswith("| `")]
    documented = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert len(documented) == len(set(documented)) > 30
    logged = set()
    for folder in map(Path, first.values()):
        logged |= read_record(folder)["metrics"].keys()
        logged |= {name for line in read_metrics(folder / "metrics.jsonl") for name in line}
    logged -= {"step", "time"}

    def pattern(name: str) -> re.Pattern[str]:
        parts = re.split(r"<(\w+)>", name)
        named = [f"({PLACES.get(p, r'[^/]+')})" if i % 2 else re.escape(p) for i, p in enumerate(parts)]
        return re.compile("".join(named))

    patterns = {name: pattern(name) for name in documented}
    assert [name for name in logged if not any(p.fullmatch(name) for p in patterns.values())] == []
    unused = {name for name, p in patterns.items() if not any(p.fullmatch(one) for one in logged)}
    assert unused - NOT_IN_EVERY_RUN == set()
