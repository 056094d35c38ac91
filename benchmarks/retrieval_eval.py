"""Retrieval evaluation: texts encoded once or once per video, and matching the best k or every pair.

    python benchmarks/retrieval_eval.py [--workspace workspace] [--clips 1000] [--json FILE]

First, at full size (random weights, 8 videos, 32 texts), the official method, which encodes every text again for every
video, is compared with ours, which encodes each text once. Both use the modules of this project and give equal ranks.
Then, if the workspace has a fine-tuned model of the sample, matching every pair is compared with matching the k most
similar ones on newly rendered test clips (200 per seed, of seeds not used in training): the time, and the difference in
queries within R@1, 5 and 10.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alpro.models.alpro import Alpro, ModelConfig
from alpro.models.frames import NormalizedModel
from alpro.stages import decode_videos, render_sample
from alpro.stages.evaluation.encode import Texts, Videos, load_model
from alpro.stages.evaluation.metrics import retrieval_metrics
from alpro.stages.evaluation.retrieval import Gallery, encode_gallery, match_all, match_top_k
from alpro.stages.execution.interface import Resources

RUNS = 3
FIRST_SEED = 1000
CLIPS_PER_SEED = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    parser.add_argument("--clips", type=int, default=1000, help="clips to rank, a multiple of 200")
    parser.add_argument("--k", type=int, default=32, help="pairs per query that are matched")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"full size": full_size()}
    trained = sorted(arguments.workspace.glob("artifacts/finetune_retrieval/*/artifact.json"), key=changed)
    if trained:
        figures["sample"] = top_k(trained[-1].parent, arguments.clips, arguments.k)
    else:
        print(f"\nno fine-tuned model in {arguments.workspace}: run `make run` first for the second half")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def changed(path: Path) -> float:
    return path.stat().st_mtime


@torch.inference_mode()
def full_size(videos: int = 8, texts: int = 32, length: int = 30) -> dict[str, float]:
    """Pairs per second of both methods: the medians of RUNS runs, which take turns."""
    torch.manual_seed(0)
    config = ModelConfig()
    model = Alpro(config).eval()
    ids = torch.randint(1000, config.text.vocab_size, (texts, length))
    mask = torch.ones_like(ids)
    tokens = model.encode_video(torch.randn(videos, config.video.frames, 3, 224, 224))

    def ours() -> np.ndarray:
        encoded = model.encode_text(ids, mask)
        return match_all(
            model, Texts(encoded, mask, model.project_text(encoded)), Videos(tokens, model.project_video(tokens)), 32
        )

    def official() -> np.ndarray:
        columns = []
        for video in tokens:
            text = model.encode_text(ids, mask)
            logits = model.match(text, mask, video.expand(texts, -1, -1))
            columns.append(logits[:, 1] - logits[:, 0])
        return torch.stack(columns, dim=1).numpy()

    times: dict[str, list[float]] = {"official": [], "texts once": []}
    for _ in range(RUNS):
        scores = {}
        for name, method in (("official", official), ("texts once", ours)):
            started = time.perf_counter()
            scores[name] = method()
            times[name].append(time.perf_counter() - started)
    first, second = scores.values()
    assert np.array_equal(first.argsort(axis=1), second.argsort(axis=1)), "the ranks differ"
    rates = {name: videos * texts / statistics.median(results) for name, results in times.items()}
    threads = torch.get_num_threads()
    print(f"full size, {videos} videos x {texts} texts, equal ranks, median of {RUNS} runs, {threads} threads")
    for name, rate in rates.items():
        print(f"  {name:14} {rate:7.1f} pairs/s   {rate / rates['official']:5.2f} times the official")
    return rates


@torch.inference_mode()
def top_k(artifact: Path, clips: int, k: int) -> dict[str, float]:
    """Compares matching every pair and the k most similar, on rendered clips, with the sample's fine-tuned model."""
    device = torch.device("cpu")
    folder = load_model(artifact, device)
    assert isinstance(folder.model, Alpro)
    parts = []
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(-(-clips // CLIPS_PER_SEED)):
            corpus = rendered(Path(temporary) / str(number), FIRST_SEED + number)
            gallery = Gallery.of(corpus, "test")
            length = folder.preprocessing.max_text_tokens
            parts.append(
                encode_gallery(NormalizedModel.from_folder(folder, device), gallery, folder.tokenizer, length, device)
            )
    longest = max(texts.tokens.shape[1] for texts, _ in parts)
    texts = Texts(
        torch.cat([zero_padded(t.tokens, longest) for t, _ in parts]),
        torch.cat([zero_padded(t.mask, longest) for t, _ in parts]),
        torch.cat([t.features for t, _ in parts]),
    )
    videos = Videos(torch.cat([v.tokens for _, v in parts]), torch.cat([v.features for _, v in parts]))
    targets = np.arange(len(texts.tokens))
    seconds, results = {}, {}
    methods = {"every pair": lambda: match_all(folder.model, texts, videos)}
    methods[f"best {k}"] = lambda: match_top_k(folder.model, texts, videos, k)
    for name, method in methods.items():
        started = time.perf_counter()
        scores = method()
        seconds[name] = time.perf_counter() - started
        results[name] = retrieval_metrics(scores, targets)
    slow, quick = seconds.values()
    print(f"\n{len(targets)} rendered test clips, {artifact.name}: matching {k} is {slow / quick:.1f} times as fast")
    for name, metrics in results.items():
        shown = "  ".join(f"{way} R@{n} {metrics[f'{way}/R{n}']:5.1f}" for way in ("t2v", "v2t") for n in (1, 5, 10))
        print(f"  {name:10} {seconds[name]:7.1f} s   {shown}")
    changes = {
        f"{way}/R{n}": round(
            (results[f"best {k}"][f"{way}/R{n}"] - results["every pair"][f"{way}/R{n}"]) * len(targets) / 100
        )
        for way in ("t2v", "v2t")
        for n in (1, 5, 10)
    }
    print(
        f"  difference in queries, of {len(targets)}: "
        + "  ".join(f"{name} {value:+d}" for name, value in changes.items())
    )
    return {"ratio": slow / quick, **{f"seconds, {name}": s for name, s in seconds.items()}, **changes}


def zero_padded(tokens: torch.Tensor, length: int) -> torch.Tensor:
    """Pads (N, L, ...) with zeros to the length."""
    more = tokens.new_zeros(len(tokens), length - tokens.shape[1], *tokens.shape[2:])
    return torch.cat([tokens, more], dim=1)


def rendered(folder: Path, seed: int) -> Path:
    """A decoded corpus of CLIPS_PER_SEED test clips."""
    sample, out = folder / "sample", folder / "shards"
    for path in (sample, out):
        path.mkdir(parents=True)
    resources = Resources()
    few = render_sample.Config(seed=seed, lessons=0, clips=30, stills=0, validation=4, test=CLIPS_PER_SEED)
    render_sample.run(few, {}, sample, resources)
    decode_videos.run(
        decode_videos.Config(manifest="clips.jsonl", frames=8, size=64), {"sample": sample}, out, resources
    )
    return out


if __name__ == "__main__":
    main()
