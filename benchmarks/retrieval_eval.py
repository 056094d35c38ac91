"""Retrieval evaluation: texts encoded once or once per video, and matching the best k or every pair.

    python benchmarks/retrieval_eval.py [--workspace workspace] [--clips 1000] [--json FILE]

First, at full size (random weights, 8 videos, 32 texts of 8 to 30 word pieces, 14 on average), three methods: the
official one, which encodes every text again for every video; texts encoded once, with padding; and ours, which computes
no padding and shares the first fusion layer's projections among pairs. All use the modules of this project and give
equal ranks; the ranks in bfloat16 are compared with them. Then, if the workspace has a fine-tuned model of the sample,
on newly rendered test clips (200 per seed, of seeds not used in training): the same three methods, bfloat16 against
float32, and matching every pair against the k most similar ones, with the difference in queries within R@1, 5 and 10.
"""

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alpro.models.alpro import Alpro, ModelConfig
from alpro.models.folder import ModelFolder
from alpro.models.word_pieces import WordPieces
from alpro.stages import decode_videos, render_sample
from alpro.stages.encoding.encode import Texts, Videos, load_model
from alpro.stages.evaluation.metrics import retrieval_metrics
from alpro.stages.evaluation.retrieval import Gallery, encode_gallery, match_all, match_top_k
from alpro.stages.execution.interface import Resources

RUNS = 3
FIRST_SEED = 1000
CPU = torch.device("cpu")
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
        figures["sample"] = sample(trained[-1].parent, arguments.clips, arguments.k)
    else:
        print(f"\nno fine-tuned model in {arguments.workspace}: run `make run` first for the second half")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def changed(path: Path) -> float:
    return path.stat().st_mtime


@torch.inference_mode()
def full_size(videos: int = 8, texts: int = 32) -> dict[str, float]:
    """Pairs per second of the three methods at full size, with random weights."""
    torch.manual_seed(0)
    config = ModelConfig()
    model = Alpro(config).eval()
    lengths = torch.linspace(0, 1, texts).pow(3).mul(22).add(8).long()  # many short captions, few long ones
    ids = torch.randint(1000, config.text.vocab_size, (texts, int(lengths.max())))
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    frames = torch.randn(videos, config.video.frames, 3, 224, 224)
    tokens = model.encode_video(frames)
    rates = compare_methods("full size", model, ids * mask, mask, tokens)
    exact = margins_of(model, ids * mask, mask, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = margins_of(model, ids * mask, mask, model.encode_video(frames))
    places, rounded_places = (scores.argsort(axis=1).argsort(axis=1) for scores in (exact, rounded))
    correlation = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(places, rounded_places, strict=True)])
    first = np.mean(exact.argmax(axis=1) == rounded.argmax(axis=1))
    error, spread = np.abs(rounded - exact).max(), exact.std(axis=1).mean()
    print(
        f"  bfloat16: margins differ by at most {error:.4f} (standard deviation of a text's margins: {spread:.4f}); "
        f"the same video is first for {first:.0%} of the texts; rank correlation {correlation:.3f}"
    )
    return rates | {"bfloat16_first": float(first), "bfloat16_rank_correlation": float(correlation)}


def margins_of(model: Alpro, ids: Tensor, mask: Tensor, tokens: Tensor) -> np.ndarray:
    """The margins (N, M) of texts (N, L) and video tokens (M, V, D), as an evaluation computes them."""
    text = model.encode_text(ids, mask)
    encoded = Texts(text, mask, model.project_text(text).float())
    return match_all(model, encoded, Videos(tokens, model.project_video(tokens).float()))


def compare_methods(name: str, model: Alpro, ids: Tensor, mask: Tensor, tokens: Tensor) -> dict[str, float]:
    """Prints and returns the pairs per second of each method, on texts (N, L) and video tokens (M, V, D): medians of
    RUNS runs, which take turns. Seconds are processor time, so that other programs matter less."""

    def margins(text: Tensor, mask: Tensor, video: Tensor) -> Tensor:
        logits = model.match(text, mask, video.expand(len(text), -1, -1))
        return logits[:, 1] - logits[:, 0]

    def official() -> np.ndarray:
        return torch.stack([margins(model.encode_text(ids, mask), mask, video) for video in tokens], dim=1).numpy()

    def texts_once() -> np.ndarray:
        text = model.encode_text(ids, mask)
        return torch.stack([margins(text, mask, video) for video in tokens], dim=1).numpy()

    def ours() -> np.ndarray:
        return margins_of(model, ids, mask, tokens)

    methods = {"official": official, "texts once": texts_once, "ours": ours}
    times: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(RUNS):
        scores = {}
        for method, run in methods.items():
            started = time.process_time()
            scores[method] = run()
            times[method].append(time.process_time() - started)
    first, *others = scores.values()
    assert all(np.array_equal(first.argsort(axis=1), other.argsort(axis=1)) for other in others), "the ranks differ"
    pairs = len(ids) * len(tokens)
    rates = {method: pairs / statistics.median(results) for method, results in times.items()}
    print(f"{name}, {len(tokens)} videos x {len(ids)} texts, equal ranks, median of {RUNS} runs")
    for method, rate in rates.items():
        print(f"  {method:14} {rate:7.1f} pairs/s   {rate / rates['official']:5.2f} times the official")
    return rates


@torch.inference_mode()
def sample(artifact: Path, clips: int, k: int) -> dict[str, Any]:
    """Compares the methods, bfloat16 with float32, and every pair with the k most similar, on rendered clips."""
    folder = load_model(artifact, CPU)
    assert isinstance(folder.model, Alpro)
    with tempfile.TemporaryDirectory() as temporary:
        numbers = range(-(-clips // CLIPS_PER_SEED))
        galleries = [Gallery.of(rendered(Path(temporary) / str(n), FIRST_SEED + n), "test") for n in numbers]
        texts, videos = encoded(folder, galleries)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = encoded(folder, galleries)
    ids, mask = WordPieces(folder.tokenizer).batch(galleries[0].texts, folder.preprocessing.max_text_tokens)
    print()
    figures: dict[str, Any] = compare_methods("sample", folder.model, ids, mask, videos.tokens[: len(ids)])
    seconds, results = {}, {}
    for name in ("every pair", f"best {k}", "bfloat16"):
        started = time.process_time()
        if name == "bfloat16":
            with torch.autocast("cpu", torch.bfloat16):
                scores = match_all(folder.model, *rounded)
        else:
            scores = (match_all if name == "every pair" else partial(match_top_k, k=k))(folder.model, texts, videos)
        seconds[name] = time.process_time() - started
        results[name] = retrieval_metrics(scores, np.arange(len(texts.tokens)))
    ratio = seconds["every pair"] / seconds[f"best {k}"]
    print(f"\n{len(texts.tokens)} rendered test clips, {artifact.name}: matching {k} is {ratio:.1f} times as fast")
    for name, metrics in results.items():
        shown = "  ".join(f"{way} R@{n} {metrics[f'{way}/R{n}']:5.1f}" for way in ("t2v", "v2t") for n in (1, 5, 10))
        print(f"  {name:10} {seconds[name]:7.1f} s   {shown}")
    for other in (f"best {k}", "bfloat16"):
        changes = {
            f"{way}/R{n}": round(
                (results[other][f"{way}/R{n}"] - results["every pair"][f"{way}/R{n}"]) * len(texts.tokens) / 100
            )
            for way in ("t2v", "v2t")
            for n in (1, 5, 10)
        }
        shown = "  ".join(f"{name} {value:+d}" for name, value in changes.items())
        print(f"  difference of {other} in queries, of {len(texts.tokens)}: {shown}")
        figures[other] = changes
    return figures | {"ratio": ratio, "seconds": seconds}


def encoded(folder: ModelFolder, galleries: list[Gallery]) -> tuple[Texts, Videos]:
    """The texts and videos of several galleries as one."""
    encoder, length = folder.normalized(CPU), folder.preprocessing.max_text_tokens
    parts = [encode_gallery(encoder, gallery, folder.tokenizer, length, CPU) for gallery in galleries]
    longest = max(texts.tokens.shape[1] for texts, _ in parts)
    texts = Texts(
        torch.cat([zero_padded(t.tokens, longest) for t, _ in parts]),
        torch.cat([zero_padded(t.mask, longest) for t, _ in parts]),
        torch.cat([t.features for t, _ in parts]),
    )
    return texts, Videos(torch.cat([v.tokens for _, v in parts]), torch.cat([v.features for _, v in parts]))


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
