"""Time training steps and temporal attention at the paper's sizes on a GPU; with --small, on a CPU.

    python benchmarks/gpu.py [--steps 30] [--batch 16] [--small] [--parts attention block runs]
    [--json FILE]

- attention: the temporal attention of clips of four frames, forward and backward, in each variant.
- block: a Block at four frames, eager and compiled: time, kernels, and those that take longest.
- runs: whole stages with their loader, augmentation and checkpoint, on drawn JPEGs of 256 pixels:
  pre-training with four frames and with one, eager and compiled, and the fine-tuning of a CLIP in
  the micro-batches of `from_clip`.

The models have random weights. With --small, they are as small as in the tests: the program runs,
but its figures mean nothing. The utilization (MFU) is relative to a large matrix multiplication in
the compute dtype, measured on the same device. A step counts 6 FLOPs for each trained parameter and
token, and 2 for each parameter and token of the frozen prompter, without attention and without
recomputation (such as the second forward pass of a contrast over the batch). On a CPU, the program
counts operations instead of kernels.

It needs a part of the packages of the project: torch, numpy, pillow, pyarrow, tokenizers,
transformers, safetensors, regex, rich, filelock, fsspec, and pydantic, simplejpeg and webdataset.
Images of PyTorch often lack the last three. With pydantic-core, annotated-types and braceexpand,
their wheels are 3.3 MB: `pip install --no-deps`, then `PYTHONPATH=. python benchmarks/gpu.py`. The
figures are written after each row, and a variant that fails is a row with its error. With compilation,
the part `runs` takes the longest.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

# As a run sets it (`pipeline/execution/processes.py`), before torch reads it.
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import numpy as np
import pyarrow.parquet as pq
import torch
from tiny_world import (
    MODEL,
    SCENES,
    add_inputs,
    configuration,
    draw,
    run_stage,
    write_vocabulary,
)
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

from alpro.models.alpro import Alpro, ModelConfig
from alpro.models.attention import (
    attention_by_products,
    block_mask,
    packed_attention,
    sequences_per_tile,
    tile_mask,
)
from alpro.models.clip_prompter import ClipPrompter
from alpro.models.precision import as_residual
from alpro.models.timesformer import Block, VideoConfig
from alpro.shards.clip import Clip
from alpro.shards.schema import Row
from alpro.shards.writer import ShardWriter, index_shard
from alpro.stages.execution.interface import Resources
from alpro.stages.training.loop import Trainer
from alpro.stages.training.metrics import read_metrics

WARMUP = 10  # steps of the first window of the log, which is not counted
LOG_EVERY = 10
TEXT_TOKENS = 32
CLIP_TOKENS = 77  # maximum length of a text in `from_clip`
CLIP_WORDS = 49_408  # vocabulary size of a CLIP
PIXELS = 256  # height and width of a stored frame
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.bfloat16 if CUDA else torch.float32
PARTS = ("attention", "block", "runs")
# Sizes of openai/clip-vit-base-patch16.
CLIP = {
    "vision": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
    },
    "text": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8},
}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30, help="steps that are counted")
    parser.add_argument("--batch", type=int, default=16, help="samples of a step")
    parser.add_argument("--small", action="store_true", help="small models, for a CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()

    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if CUDA else "CPU",
        "torch": torch.__version__,
        "matmul_tflops": matmul_flops(options.small) / 1e12,
    }
    programs = {"attention": attention_variants, "block": block_variants, "runs": runs}
    for part in options.parts:
        figures[part] = []
        for row, measure in programs[part](options, figures):
            try:
                row |= measure()
            except Exception as error:  # the next variant may work
                traceback.print_exc()
                row["error"] = str(error)
            figures[part].append(row)
            print(
                " | ".join(f"{name} {shown(value)}" for name, value in row.items()),
                flush=True,
            )
            # Written after each row: a lent GPU may be taken back.
            if options.json:
                options.json.write_text(json.dumps(figures, indent=1))
            free_memory()
    return 0


def free_memory() -> None:
    """Delete the models and the compiled graphs of a row, which the peak of the next would count."""
    torch.compiler.reset()
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def measure_seconds(work: Callable[[], Any], repeats: int = 10) -> float:
    """Return the median time of several calls, after three warm-up calls."""
    times = []
    for number in range(3 + repeats):
        synchronize()
        started = time.perf_counter()
        work()
        synchronize()
        if number >= 3:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def count_kernels(work: Callable[[], Any]) -> Counter[str]:
    """Count the kernels of a call by name; on a CPU, its operations."""
    activities = [ProfilerActivity.CUDA] if CUDA else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiled:
        work()
        synchronize()
    kind = DeviceType.CUDA if CUDA else DeviceType.CPU
    return Counter(
        event.name for event in profiled.events() if event.device_type == kind
    )


def find_backend(q: Tensor, mask: Tensor | None = None) -> str:
    """Return the kernel that PyTorch's attention chooses."""
    return SDPBackend(torch._fused_sdp_choice(q, q, q, attn_mask=mask)).name


def attention_by_broadcast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As F.scaled_dot_product_attention (B, heads, L, D), by element-wise products and sums."""
    scores = (q[..., :, None, :] * k[..., None, :, :]).sum(-1) * q.shape[-1] ** -0.5
    return (scores.softmax(-1)[..., None] * v[..., None, :, :]).sum(-2)


# A part yields, for each row, its first columns, and the function that measures the others.
Rows = Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]


def attention_variants(options: argparse.Namespace, figures: dict[str, Any]) -> Rows:
    """Temporal attention: a sequence of four frames for each patch of each clip."""
    patches = 4 if options.small else 196
    shape = (options.batch * patches, 2 if options.small else 12, 4, 64)
    q, k, v = (
        torch.randn(shape, device=DEVICE, dtype=DTYPE, requires_grad=True)
        for _ in range(3)
    )
    together = sequences_per_tile(shape[0], shape[2])
    mask = block_mask(together, shape[2], DTYPE, q.device)
    variants: dict[str, Callable[..., Tensor]] = {
        "alone": scaled_dot_product_attention,
        "products": attention_by_products,
        "broadcast": attention_by_broadcast,
        "broadcast, compiled": torch.compile(attention_by_broadcast),
        "packed": lambda q, k, v: packed_attention(q, k, v, mask),
    }
    if not CUDA:  # Compilation takes a minute and needs a compiler.
        del variants["broadcast, compiled"]
    packed = q[: together * (len(q) // together)].reshape(
        -1, shape[1], together * 4, shape[3]
    )
    backends = {"alone": find_backend(q), "packed": find_backend(packed, mask)}
    expected = scaled_dot_product_attention(q, k, v)
    baseline = 0.0

    for name, attend in variants.items():

        def measure(
            attend: Callable[..., Tensor] = attend, name: str = name
        ) -> dict[str, Any]:
            nonlocal baseline

            def work() -> None:
                attend(q, k, v).sum().backward()

            milliseconds = 1000 * measure_seconds(work)
            baseline = baseline or milliseconds
            difference = (attend(q, k, v) - expected).abs().max().item()
            return {
                "milliseconds": milliseconds,
                "to alone": milliseconds / baseline,
                "kernels": count_kernels(work).total(),
                "largest difference": difference,
                "backend": backends.get(name, ""),
            }

        yield {"attention": name}, measure


def block_variants(options: argparse.Namespace, figures: dict[str, Any]) -> Rows:
    """One layer of the video encoder at four frames, forward and backward, compiled as in a run."""
    config = VideoConfig(**MODEL["video"]) if options.small else VideoConfig()
    patches = config.grid**2
    shape = options.batch, 1 + 4 * patches, config.width
    compilations: dict[str, dict[str, Any] | None] = {"eager": None}
    if CUDA:
        compilations["compiled"] = {}
        compilations["compiled, kernels combined"] = {
            "options": {"combo_kernels": True}
        }

    for name, compilation in compilations.items():

        def measure(
            compilation: dict[str, Any] | None = compilation,
        ) -> dict[str, Any]:
            block = Block(config).to(DEVICE)
            if compilation is not None:
                block.compile(dynamic=False, **compilation)
            x = torch.randn(shape, device=DEVICE, requires_grad=True)

            def work() -> None:
                with torch.autocast(DEVICE.type, DTYPE, enabled=CUDA):
                    mask = tile_mask(x, len(x) * patches, 4)
                    y = block(as_residual(x), 4, mask=mask)
                y.float().sum().backward()

            milliseconds = 1000 * measure_seconds(work)
            kernels = count_kernels(work)
            frequent = kernels.most_common(8)
            return {
                "milliseconds": milliseconds,
                "kernels": kernels.total(),
                "most frequent": [
                    f"{count} {kernel:.80}" for kernel, count in frequent
                ],
            }

        yield {"block": name}, measure


def write_corpus(folder: Path, kind: str, samples: int) -> Path:
    """Write drawn clips of 16 frames, or stills, as JPEGs of PIXELS. Return the folder."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "all.tar", 90) as writer:
        for number in range(samples):
            sky, ground = SCENES[number % len(SCENES)]
            frames = draw(sky, ground, 16 if kind == "video" else 1, rng)
            scale = PIXELS // frames.shape[1]
            frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
            row: dict[str, Any] = {"id": str(number), "path": "none", "kind": kind}
            # Longer than the texts of all models: what is cut has no padding.
            caption = " ".join([f"{sky} over {ground}"] * CLIP_TOKENS)
            row |= {"split": "train", "group": str(number), "captions": [caption]}
            writer.write(Row.model_validate(row), Clip(frames, 1.0, PIXELS, PIXELS))
    pq.write_table(index_shard(folder / "all.tar"), folder / "index.parquet")
    return folder


def write_clip(folder: Path, small: bool) -> Path:
    """Write a CLIP with random weights whose tokens are letters. Return the folder."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = [
        letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")
    ]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters]
    if not small:
        tokens += [f"unused{number}</w>" for number in range(CLIP_WORDS - len(tokens))]
    words = {word: n for n, word in enumerate(tokens)}
    layers = {"num_hidden_layers": 2 if small else 12}
    text = layers | (SMALL if small else CLIP["text"])
    text |= {"vocab_size": len(words), "max_position_embeddings": CLIP_TOKENS}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = layers | (SMALL if small else CLIP["vision"])
    vision |= {"image_size": 32 if small else 224, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(
        folder
    )
    CLIPTokenizer(vocab=words, merges=[]).save_pretrained(folder)
    constants = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(constants))
    return folder


def runs(options: argparse.Namespace, figures: dict[str, Any]) -> Rows:
    """Stages as a run has them."""
    model = MODEL if options.small else {"init": "scratch"}
    frames = ModelConfig.model_validate(model).video.frames
    tokens = MODEL["text"]["max_length"] if options.small else TEXT_TOKENS
    shared = {
        "batch_size": options.batch,
        "max_text_tokens": tokens,
        "log_every": LOG_EVERY,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        vocabulary = write_vocabulary(folder / "vocabulary")
        inputs = {"vocabulary": vocabulary, "tokenizer": vocabulary}
        for name, kind in (("clips", "video"), ("stills", "image")):
            inputs[name] = write_corpus(
                folder / name, kind, 32 if options.small else 512
            )

        # A teacher of one step, whose prompts pre-training reads.
        config = make_config(
            "train_prompter", "clips", 1, {"model": model, "batch_size": 2}
        )
        teacher = folder / "teacher" / "out"
        eager = Resources(compile=False)
        run_stage("train_prompter", config, inputs, teacher, eager)
        add_inputs("train_prompter", inputs, teacher, eager)

        steps = WARMUP + options.steps
        own = shared | {"model": model, "negative_pool_size": 0, "start": "scratch"}
        clip = write_clip(folder / "clip", options.small)
        clip_frames = 2 if options.small else 8
        towers = {
            "clip": str(clip),
            "contrast": "batch",
            "max_text_tokens": CLIP_TOKENS,
        }
        towers |= {"model": {"video": {"frames": clip_frames}}}
        towers = (
            shared | towers | {"batch_size": 8 * options.batch, "accumulation_steps": 8}
        )
        sizes = ModelConfig.model_validate(model)
        of_video = count_flops(sizes, frames)
        of_image = count_flops(sizes, 1)
        of_clip = flops_of_a_clip_sample(clip, clip_frames)
        cases: list[tuple[str, str, str, float, dict[str, Any]]] = [
            (f"ALPRO, T={frames}", "pretrain", "clips", of_video, own),
            (
                "ALPRO, T=1",
                "pretrain",
                "stills",
                of_image,
                own | {"repeat_images": False},
            ),
            ("CLIP", "train_prompter", "clips", of_clip, towers),
        ]
        for name, stage, corpus, flops, changes in cases:
            for compiled in (False, True) if CUDA else (False,):
                config = make_config(stage, corpus, steps, changes)
                out = folder / f"{name} {compiled}" / "out"
                resources = Resources(compile=compiled)
                seconds = flops / 1e12 / figures["matmul_tflops"]
                measure = partial(timed, stage, config, inputs, out, resources, seconds)
                yield {"run": name, "compiled": compiled}, measure


def make_config(
    stage: str, corpus: str, steps: int, changes: dict[str, Any]
) -> dict[str, Any]:
    """Return the configuration of a stage on a corpus: the small world's, with changes for
    pre-training or a CLIP."""
    config = configuration(stage, steps)
    if "clip" in changes:
        config.pop("model")
    return config | {"phases": [{"corpora": [corpus], "steps": steps}]} | changes


def timed(
    stage: str,
    config: dict[str, Any],
    inputs: dict[str, Path],
    out: Path,
    resources: Resources,
    sample_seconds: float,
) -> dict[str, Any]:
    """Return speed, memory and data wait of a run after its first window, and the kernels of its last
    step.

    Args:
        sample_seconds: Time of a sample at the rate of the large matrix multiplication.
    """
    update = Trainer.update
    kernels = 0

    def counted(trainer: Trainer, batch: Any) -> None:
        nonlocal kernels
        if trainer.state.step < len(trainer.data) - 1:
            update(trainer, batch)
        else:
            kernels = count_kernels(lambda: update(trainer, batch)).total()

    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    with mock.patch.object(Trainer, "update", counted):
        run_stage(stage, config, inputs, out, resources)
    lines = [
        line for line in read_metrics(out / "metrics.jsonl") if "train/loss" in line
    ]
    # Skip the compilation (first) and the profiler (last).
    windows = lines[1:-1] or lines

    def median(name: str) -> float:
        return statistics.median(line[f"train/{name}"] for line in windows)

    speed = median("samples_per_second")
    return {
        "batch": config["batch_size"],
        "samples_per_second": speed,
        "milliseconds": 1000 * config["batch_size"] / speed,
        "utilization": speed * sample_seconds,
        "data_wait": median("data_wait"),
        "memory_gib": max(line.get("train/memory_gib", 0.0) for line in lines),
        "kernels": kernels,
        "loss": lines[-1]["train/loss"],
    }


def count_flops(config: ModelConfig, frames: int) -> float:
    """Count the FLOPs of a sample: its video (trained, and in the prompter), its text twice (clean
    and masked), and its four pairs."""
    with torch.device("meta"):
        model = Alpro(config, entities=8)
    parts = (model.video_encoder, model.text_encoder, model.multimodal_encoder)
    video, text, fusion = (
        sum(weight.numel() for weight in part.parameters() if weight.dim() > 1)
        for part in parts
    )
    patches = config.video.grid**2
    of_video = 8 * video * frames * patches
    of_text = 6 * text * 2 * TEXT_TOKENS
    of_pairs = 6 * fusion * 4 * (patches + 1 + TEXT_TOKENS)
    return float(of_video + of_text + of_pairs)


def matrix_weights(module: nn.Module) -> int:
    """Return the number of weights in matrices."""
    return sum(weight.numel() for weight in module.parameters() if weight.ndim > 1)


def flops_of_a_clip_sample(folder: Path, frames: int) -> float:
    """Count the FLOPs of a sample in both towers of a CLIP, all of which is trained."""
    from transformers import CLIPConfig, CLIPModel

    config: Any = CLIPConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = ClipPrompter(CLIPModel(config))
        model.add_temporal(frames)
    vision = model.clip.vision_model
    video = matrix_weights(vision.embeddings.patch_embedding)
    video += matrix_weights(vision.encoder) + matrix_weights(model.temporal)
    text = matrix_weights(model.clip.text_model.encoder)
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    return 6.0 * (video * frames * (patches + 1) + text * CLIP_TOKENS)


def matmul_flops(small: bool) -> float:
    """FLOPs per second of the best of several large matrix multiplications."""
    side = 512 if small else 8192 if CUDA else 2048
    a = torch.randn(side, side, device=DEVICE, dtype=DTYPE)
    b = torch.randn(side, side, device=DEVICE, dtype=DTYPE)
    return 2 * side**3 / measure_seconds(lambda: a @ b)


if __name__ == "__main__":
    sys.exit(main())
