"""float32 against bfloat16 on this processor: speed of inference at full size, and scores on five galleries.

    python benchmarks/bfloat16.py [--workspace workspace] [--repeats 3]

Full size, random weights: encoding of videos (ViT-B/16 TimeSformer, 4 frames of 224 x 224) and matching of pairs (30
word pieces), processor seconds of all threads, medians of `repeats` turns. Training is measured by
`benchmarks/train_step.py --dtype float32 bfloat16`. Then, if the workspace has a fine-tuned model of the sample, R@1 by
matching and by similarity on five newly rendered galleries of 200 clips. The sample's model is narrow and stays in
float32 in a pipeline (models/precision.py); here it is run in bfloat16 all the same.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from alpro.models.alpro import Alpro, ModelConfig
from alpro.models.folder import ModelFolder
from alpro.models.precision import autocast, cpu_has_bfloat16
from alpro.stages import decode_videos, render_sample
from alpro.stages.encoding.encode import load_model, similarities
from alpro.stages.evaluation.metrics import retrieval_metrics
from alpro.stages.evaluation.retrieval import Gallery, encode_gallery, match_all
from alpro.stages.execution.interface import Resources

CPU, DTYPES = torch.device("cpu"), (torch.float32, torch.bfloat16)
FIRST_SEED, GALLERIES, CLIPS = 1000, 5, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    parser.add_argument("--repeats", type=int, default=3, help="turns of each precision")
    parser.add_argument("--videos", type=int, default=4, help="videos of a batch at full size")
    arguments = parser.parse_args()
    print(f"bfloat16 instructions: {cpu_has_bfloat16()}; {torch.get_num_threads()} threads")
    full_size(arguments.videos, arguments.repeats)
    trained = sorted(arguments.workspace.glob("artifacts/finetune_retrieval/*/artifact.json"))
    if trained:
        galleries(load_model(trained[-1].parent, CPU))
    else:
        print(f"no fine-tuned model in {arguments.workspace}: run `make run` first for the galleries")


@torch.inference_mode()
def full_size(videos: int, repeats: int) -> None:
    torch.manual_seed(0)
    model = Alpro(ModelConfig(init="scratch")).eval()
    video = model.config.video
    frames = torch.randn(videos, video.frames, 3, video.image_size, video.image_size)
    ids, mask = torch.randint(1000, 30000, (videos, 30)), torch.ones(videos, 30, dtype=torch.long)
    tokens, text = model.encode_video(frames), model.encode_text(ids, mask)
    jobs: dict[str, Callable[[], torch.Tensor]] = {
        "encoding videos": lambda: model.encode_video(frames),
        "matching pairs": lambda: model.match(text, mask, tokens),
    }
    for name, job in jobs.items():
        seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in DTYPES}
        for turn in range(repeats + 1):  # the first is a warm-up
            for dtype in DTYPES:
                started = time.process_time()
                with autocast(dtype, CPU):
                    job()
                seconds[dtype] += [time.process_time() - started] * bool(turn)
        exact, rounded = (statistics.median(seconds[dtype]) for dtype in DTYPES)
        print(f"{name}, {videos}: float32 {exact:.2f} s, bfloat16 {rounded:.2f} s, {exact / rounded:.2f} times")


@torch.inference_mode()
def galleries(folder: ModelFolder) -> None:
    """R@1 of five galleries in both precisions, and their mean difference."""
    differences: dict[str, list[float]] = {"matching": [], "similarity": []}
    for seed in range(FIRST_SEED, FIRST_SEED + GALLERIES):
        with tempfile.TemporaryDirectory() as temporary:
            gallery = Gallery.of(rendered(Path(temporary), seed), "test")
            scores = [recall(folder, gallery, dtype) for dtype in DTYPES]
        for name, changes in differences.items():
            exact, rounded = (score[name] for score in scores)
            changes.append(rounded - exact)
            print(f"gallery {seed}, R@1 by {name}: float32 {exact:.1f}, bfloat16 {rounded:.1f}")
    for name, changes in differences.items():
        print(f"mean difference by {name}: {np.mean(changes):+.2f} points, at most {np.abs(changes).max():.1f}")


def recall(folder: ModelFolder, gallery: Gallery, dtype: torch.dtype) -> dict[str, float]:
    """R@1 (text to video) by matching and by similarity."""
    assert isinstance(folder.model, Alpro)
    with autocast(dtype, CPU):
        length = folder.preprocessing.max_text_tokens
        texts, videos = encode_gallery(folder.normalized(CPU), gallery, folder.tokenizer, length, CPU)
        matched = match_all(folder.model, texts, videos)
    similar = similarities(texts.features, videos.features).numpy()
    places = np.arange(len(gallery.texts))
    return {
        name: retrieval_metrics(scores, places)["t2v/R1"]
        for name, scores in (("matching", matched), ("similarity", similar))
    }


def rendered(folder: Path, seed: int) -> Path:
    """A decoded corpus of CLIPS rendered test clips."""
    sample, out = folder / "sample", folder / "shards"
    for path in (sample, out):
        path.mkdir()
    few = render_sample.Config(seed=seed, lessons=0, clips=30, stills=0, validation=4, test=CLIPS)
    render_sample.run(few, {}, sample, Resources())
    config = decode_videos.Config(manifest="clips.jsonl", frames=8, size=64)
    decode_videos.run(config, {"sample": sample}, out, Resources())
    return out


if __name__ == "__main__":
    main()
