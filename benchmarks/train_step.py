"""The full-size pre-training step: ours against five separate encoder passes, eager, in float32 and in bfloat16.

    python benchmarks/train_step.py [--batch N ...] [--dtype float32 bfloat16] [--tricks [WORD ...]] [--json FILE]

ViT-B/16 TimeSformer on 4 frames of 224 x 224, BERT-base, 30 word pieces, 1,000 entities, prompter frozen. The baseline
is the step as one writes it from the paper, and as the authors' code does it: the clean text, the masked text, the
positive pairs, the 2B negatives and the masked pairs each go through an encoder by themselves, through all of its last
layer; hard negatives are drawn one sample at a time, each read back; MLM scores every word; the prompter runs under
no_grad; AdamW is not fused. It has our modules, so that it has fused attention too, and its texts need no padding.
Ours is training's own code: PretrainObjective, `prepare`, the fused AdamW.

All variants have the same weights, batch and chances of the negatives. First the four losses, the norm of the gradient
and the drawn negatives are compared, without dropout: where they differ by more than TOLERANCE the exit status is 1.
Then the steps are timed with dropout, the variants by turns, medians over the repeats; each variant has a process of
its own, so that nobody's memory counts for another. A step is forward, backward, clipping and AdamW, without loading.
On a CPU that others use too, OMP_NUM_THREADS=1 with --processor-time counts the seconds that a step worked.

Model FLOPs are Objective.flops for every variant, whatever it works in vain: 2 * in * out a token for a linear layer,
4 * queries * keys * width for attention, of the last fusion layer only what a loss reads; three times for what is
trained, once for the prompter; no norms, activations, embeddings, recomputation (models/flops.py). Utilisation is of
the accelerator's dense bfloat16 peak on its data sheet, for float32 too; where there is none, as on a CPU, of the
matrix multiplication measured here in the variant's precision.

--tricks takes one trick away from ours at a time, by the patches of benchmarks/five_passes.py. Not among them: one draw
of stochastic depth for all blocks, a finite step decided on the device, which are not taken away simply.
"""

import argparse
import functools
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from five_passes import TRICKS, FivePasses
from torch import Tensor, nn

from models.alpro import Alpro, ModelConfig, Prompter
from models.attention import Attention
from models.flops import peak
from models.folder import Preprocessing
from models.losses import mask_words, random_box
from models.text import TextConfig
from models.timesformer import TimeSformer, VideoConfig
from stages.artifacts import Resources
from stages.training import objective as objective_module
from stages.training.config import Phase, TrainingConfig
from stages.training.examples import Batch, collate
from stages.training.loop import memory_gib, prepare
from stages.training.objective import PretrainObjective
from stages.training.optim import build_optimizer, step_if

WORDS = 30  # of every text
ENTITIES = {"full": 1000, "small": 8}
MODELS = {
    # "scratch" has livelier random weights than "bert": temporal attention counts, losses differ.
    "full": ModelConfig(init="scratch"),
    "small": ModelConfig(
        init="scratch",
        embed_dim=16,
        video=VideoConfig(image_size=64, frames=2, width=32, depth=2, heads=2),
        text=TextConfig(vocab_size=128, width=32, depth=4, fusion_layer=2, heads=2, max_length=64),
    ),
}
TOLERANCE = {  # relative: of a loss, of the norm of the gradient
    "float32": (1e-4, 1e-3),
    "bfloat16": (2e-2, 1e-1),
}
PAPER_STEPS, PAPER_BATCH, PAPER_DEVICES = 100_000, 256, 16
CONFIG = TrainingConfig(phases=(Phase(corpora=("none",), steps=1),))


@dataclass(frozen=True)
class Settings:
    """What all variants of a run share."""

    device: str
    batch: int
    size: str
    steps: int
    warmup: int
    checkpoint_activations: bool
    tf32: bool
    processor_time: bool


@dataclass(frozen=True)
class Variant:
    """One way to do the step."""

    name: str
    dtype: str
    five_passes: bool = False
    compile: bool = False
    fused: bool = True
    without: str = ""  # the trick that is taken away


def main() -> None:
    given = arguments()
    for size in sorted(given.batch, reverse=True):
        shared = {field.name: getattr(given, field.name) for field in fields(Settings) if field.name != "batch"}
        settings = Settings(batch=size, **shared)
        try:
            figures = compare(settings, variants(given), given.repeats)
            break
        except torch.OutOfMemoryError:
            print(f"a batch of {size} does not fit", flush=True)
        except BrokenProcessPool:
            print(f"a batch of {size}: a process was killed (out of memory?)", flush=True)
    else:
        sys.exit("no batch fits; give a smaller one, or --checkpoint-activations")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))
    sys.exit(not figures["agree"])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", nargs="+", choices=TOLERANCE, help="of ours; cpu: float32, cuda: bfloat16")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="of ours; on cuda alone by default")
    parser.add_argument("--batch", nargs="+", type=int, help="the largest that fits; cpu: 2, cuda: 64")
    parser.add_argument("--steps", type=int, help="timed steps a turn; cpu: 1, cuda: 10")
    parser.add_argument("--warmup", type=int, help="steps before them; cpu: 1, cuda: 3")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each variant")
    parser.add_argument("--size", choices=MODELS, default="full")
    parser.add_argument("--checkpoint-activations", action="store_true", help="in all variants")
    parser.add_argument("--processor-time", action="store_true", help="count that instead of wall time, on a CPU")
    parser.add_argument("--tf32", action="store_true", help="TF32 in all variants, torch's default until 1.11")
    parser.add_argument("--tricks", nargs="*", help="ours without one trick at a time; those with one of these words")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    cuda = given.device == "cuda"
    given.dtype = given.dtype or (["bfloat16"] if cuda else ["float32"])
    given.compile = cuda if given.compile is None else given.compile
    given.batch = given.batch or [64 if cuda else 2]
    given.steps = given.steps or (10 if cuda else 1)
    given.warmup = (3 if cuda else 1) if given.warmup is None else given.warmup
    return given


def variants(given: argparse.Namespace) -> list[Variant]:
    ours = [Variant(f"ours, {dtype}", dtype, compile=given.compile) for dtype in given.dtype]
    if given.tricks is None:
        return [
            Variant("five passes, float32 (a)", "float32", five_passes=True, fused=False),
            Variant("five passes, bfloat16 (b)", "bfloat16", five_passes=True, fused=False),
            *ours,
        ]
    whole = ours[-1]
    found = [replace(whole, name=f"without {trick}", without=trick) for trick in TRICKS]
    found.append(replace(whole, name="without fused AdamW", fused=False))
    if whole.compile:
        found.append(replace(whole, name="without compile", compile=False))
    if whole.dtype == "bfloat16":
        found.append(replace(whole, name="without bfloat16", dtype="float32"))
    return [whole, *(v for v in found if not given.tricks or any(word in v.name for word in given.tricks))]


def compare(settings: Settings, chosen: list[Variant], repeats: int) -> dict[str, Any]:
    """Checks that the variants agree, times them by turns and prints the tables."""
    figures: dict[str, Any] = {"settings": asdict(settings), "machine": machine(settings)}
    # A patched variant is checked uncompiled: compiling takes longer than everything else.
    found = [alone(losses, replace(v, compile=v.compile and not v.without), settings) for v in chosen]
    figures["losses"] = {v.name: one for v, one in zip(chosen, found, strict=True)}
    figures["agree"] = agree(chosen, found)
    if not figures["agree"]:
        return figures
    turns: dict[Variant, list[dict[str, Any]]] = {v: [] for v in chosen}
    with ExitStack() as stack:  # on a GPU a variant keeps its process, for what it has compiled
        kept = {v: stack.enter_context(process()) for v in chosen if settings.device == "cuda"}
        for _ in range(repeats):
            for variant, mine in turns.items():
                mine.append(alone(turn, variant, settings, kept.get(variant)))
                print(f"  {variant.name}: {mine[-1]['seconds']:.4g} s a step", flush=True)
    figures["variants"] = {v.name: median(mine) for v, mine in turns.items()}
    print_tables(settings, chosen, figures)
    return figures


def process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def alone(work: Callable, variant: Variant, settings: Settings, kept: ProcessPoolExecutor | None = None) -> Any:
    """The work's result, from a process that is kept or else from a new one."""
    with nullcontext(kept) if kept else process() as own:
        return own.submit(work, variant, settings).result()


def median(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The turn of median seconds, with the seconds of all."""
    seconds = [one["seconds"] for one in turns]
    return turns[seconds.index(statistics.median_low(seconds))] | {"all_seconds": seconds}


# In the process of a variant


@dataclass
class Bench:
    """A variant's model and batch on its device, and the model FLOPs of a step."""

    module: PretrainObjective | FivePasses
    batch: Batch
    flops: float


@functools.cache
def bench(variant: Variant, settings: Settings) -> Bench:
    allow_tf32(settings)
    shape, entities = MODELS[settings.size], ENTITIES[settings.size]
    torch.manual_seed(0)
    with torch.device(settings.device):
        model, prompter = Alpro(shape, entities=entities), Prompter(shape)
        prompts = F.normalize(torch.randn(entities, shape.embed_dim), dim=1)
        norm = [list(Preprocessing().mean), list(Preprocessing().std)]
        weights = {"vtc": 1.0, "vtm": 1.0, "mlm": 1.0, "pem": 1.0}
        # A threshold of 0: which pseudo-labels are kept would hang on rounding, and the work is the same.
        ours = PretrainObjective(model, *norm, prompter, {"video": prompts, "image": prompts}, weights, 0.0)
    batch = examples(settings, shape).to(torch.device(settings.device))
    made = Bench(ours, batch, ours.flops(batch))
    if variant.five_passes:
        made.module = FivePasses(model, prompter, prompts, ours.mean, ours.std)
        for name in ("text", "mask", "masked", "labels"):
            setattr(batch, name, getattr(batch, name)[:, :WORDS])
    prepare(made.module, Resources(compile=variant.compile, checkpoint_activations=settings.checkpoint_activations))
    made.module.train()
    return made


def allow_tf32(settings: Settings) -> None:
    if settings.tf32:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


def examples(settings: Settings, shape: ModelConfig) -> Batch:
    """Random examples in training's form: texts of exactly WORDS word pieces, padded as training pads."""
    rng, video, special = np.random.default_rng(0), shape.video, np.zeros(WORDS, bool)
    special[[0, -1]] = True
    items = []
    for number in range(settings.batch):
        ids = rng.integers(5, shape.text.vocab_size, WORDS)
        masked, labels = mask_words(ids, special, 4, shape.text.vocab_size, 0.15, rng)
        frames = rng.integers(0, 256, (video.frames, 3, video.image_size, video.image_size), np.uint8)
        item = {"id": str(number), "video": number, "frames": frames, "ids": ids, "masked": masked, "labels": labels}
        items.append(item | {"box": random_box(video.grid, rng), "chance": rng.random(2)})
    return collate(0, "video", items, WORDS)


def taken_away(variant: Variant) -> AbstractContextManager:
    return TRICKS[variant.without]() if variant.without else nullcontext()


def autocast(variant: Variant, settings: Settings) -> AbstractContextManager:
    return torch.autocast(settings.device, torch.bfloat16) if variant.dtype == "bfloat16" else nullcontext()


def losses(variant: Variant, settings: Settings) -> dict[str, Any]:
    """The four losses, the norm of the gradient and the drawn negatives, without dropout and stochastic depth."""
    made, drawn = bench(variant, settings), list[list[int]]()
    for part in made.module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(part, Attention):
            part.dropout = 0.0
        elif isinstance(part, TimeSformer):
            part.keep_rates.fill_(1.0)
    with taken_away(variant):
        way = objective_module.hard_negatives

        def recorded(*given: Tensor) -> tuple[Tensor, Tensor]:
            columns, valid = way(*given)
            drawn.append(columns.tolist())
            return columns, valid

        with autocast(variant, settings), patch.object(objective_module, "hard_negatives", recorded):
            loss, metrics = made.module(made.batch)
        loss.backward()
    found: dict[str, Any] = {name: float(value) for name, value in metrics.items() if name.startswith("loss_")}
    found["grad_norm"] = float(nn.utils.clip_grad_norm_(made.module.parameters(), float("inf")))
    return found | {"negatives": [column for rows in drawn or made.module.drawn for column in rows]}


def turn(variant: Variant, settings: Settings) -> dict[str, Any]:
    """Seconds a step, peak memory and the parts' seconds, after the warm-up."""
    made, cuda = bench(variant, settings), settings.device == "cuda"
    torch.manual_seed(1)
    optimizer = build_optimizer(made.module, CONFIG)
    if not variant.fused:
        groups = [{name: group[name] for name in ("params", "weight_decay")} for group in optimizer.param_groups]
        optimizer = torch.optim.AdamW(groups, lr=CONFIG.lr, betas=CONFIG.betas)
    with taken_away(variant), watched(made.module, settings) as parts:
        for _ in range(settings.warmup):
            step(variant, settings, made, optimizer, parts)
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        parts.spans.clear()
        started = clock(settings)()
        for _ in range(settings.steps):
            step(variant, settings, made, optimizer, parts)
        if cuda:
            torch.cuda.synchronize()
        seconds = (clock(settings)() - started) / settings.steps
        shares = {name: value / settings.steps for name, value in parts.read().items()}
    gigabytes = torch.cuda.max_memory_allocated() / 2**30 if cuda else memory_gib()
    del optimizer
    made.module.zero_grad(set_to_none=True)
    if cuda:  # room for the next variant
        torch.cuda.empty_cache()
    return {"seconds": seconds, "gigabytes": gigabytes, "flops": made.flops, "parts": shares}


def clock(settings: Settings) -> Callable[[], float]:
    return time.process_time if settings.processor_time else time.perf_counter


def step(variant: Variant, settings: Settings, made: Bench, optimizer: torch.optim.AdamW, parts: "Parts") -> None:
    """One optimiser step, ours as in stages/training/loop.py."""
    optimizer.zero_grad(set_to_none=True)
    with parts.timed("forward"), autocast(variant, settings):
        loss, metrics = made.module(made.batch)
    with parts.timed("backward"):
        loss.backward()
    with parts.timed("clipping and AdamW"):
        norm = nn.utils.clip_grad_norm_(made.module.parameters(), CONFIG.clip_norm)
        if variant.fused:
            values = torch.stack([loss.detach(), *(value.float() for value in metrics.values()), norm.detach()])
            step_if(optimizer, torch.isfinite(values).all())
        else:
            optimizer.step()
        made.module.model.hold_temperature()


class Parts:
    """Seconds that parts of a step take: by events on a GPU, by the clock on a CPU."""

    def __init__(self, settings: Settings):
        self.cuda, self.clock = settings.device == "cuda", clock(settings)
        self.opened: dict[str, Any] = {}
        self.spans: list[tuple[str, Any, Any]] = []

    def now(self) -> Any:
        if not self.cuda:
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        opened = self.now()
        yield
        self.spans.append((name, opened, self.now()))

    def before(self, name: str, *_: Any) -> None:
        self.opened[name] = self.now()

    def after(self, name: str, *_: Any) -> None:
        self.spans.append((name, self.opened[name], self.now()))

    def read(self) -> dict[str, float]:
        """Seconds of each part, in all."""
        found: dict[str, float] = {}
        for name, opened, closed in self.spans:
            seconds = opened.elapsed_time(closed) / 1000 if self.cuda else closed - opened
            found[name] = found.get(name, 0.0) + seconds
        forward = found.pop("forward")
        found["heads, losses"] = forward - sum(found[name] for name in MODULES)
        return {name: found[name] for name in (*MODULES, "heads, losses", "backward", "clipping and AdamW")}


MODULES = {
    "video encoder": "model.video_encoder",
    "text encoder": "model.text_encoder",
    "prompter": "prompter.video_encoder",
    "fusion": "model.multimodal_encoder",
}


@contextmanager
def watched(module: nn.Module, settings: Settings) -> Iterator[Parts]:
    """Times the encoders in their forward pass."""
    parts, handles = Parts(settings), []
    for name, path in MODULES.items():
        part = module.get_submodule(path)
        handles.append(part.register_forward_pre_hook(functools.partial(parts.before, name)))
        handles.append(part.register_forward_hook(functools.partial(parts.after, name)))
    try:
        yield parts
    finally:
        for handle in handles:
            handle.remove()


# What is printed


def machine(settings: Settings) -> dict[str, Any]:
    """The machine and its settings; on it, what a large matrix multiplication reaches."""
    allow_tf32(settings)
    return {
        "device": device_name(settings),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "tf32": {
            "matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
            "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        },
        "peak": peak(device_name(settings)) if settings.device == "cuda" else 0.0,
        "matmul": {dtype: matmul_rate(getattr(torch, dtype), settings) for dtype in TOLERANCE},
    }


def device_name(settings: Settings) -> str:
    if settings.device == "cuda":
        return torch.cuda.get_device_name()
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def matmul_rate(dtype: torch.dtype, settings: Settings, times: int = 5) -> float:
    """Operations a second of one large matrix multiplication, the best of some."""
    side = {"full": 8192 if settings.device == "cuda" else 2048, "small": 256}[settings.size]
    a, b = (torch.randn(side, side, device=settings.device).to(dtype) for _ in range(2))
    seconds, now = [], clock(settings)
    for _ in range(times + 1):
        started = now()
        a @ b
        if settings.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(now() - started)
    del a, b
    if settings.device == "cuda":
        torch.cuda.empty_cache()
    return 2 * side**3 / min(seconds)


def agree(chosen: list[Variant], found: list[dict[str, Any]]) -> bool:
    """Prints what each variant gives without dropout, and whether all are near enough to the first."""
    names = [name for name in found[0] if name != "negatives"]
    print(f"\n{'without dropout':42}" + "".join(f"{name:>12}" for name in names) + "   negatives alike")
    fine = True
    for variant, one in zip(chosen, found, strict=True):
        low = "bfloat16" in (variant.dtype, chosen[0].dtype)
        limits = TOLERANCE["bfloat16" if low else "float32"]
        off = [not abs(one[name] / found[0][name] - 1) <= limits[name == "grad_norm"] for name in names]  # NaN too
        alike = sum(a == b for a, b in zip(one["negatives"], found[0]["negatives"], strict=True))
        fine &= not any(off) and (low or alike == len(one["negatives"]))
        said = "".join(f"{one[name]:11.5f}{'!' if bad else ' '}" for name, bad in zip(names, off, strict=True))
        print(f"{variant.name:42}{said}   {alike} of {len(one['negatives'])}", flush=True)
    print("they agree\n" if fine else f"they do not agree (relative: {TOLERANCE}): nothing is timed\n", flush=True)
    return fine


def print_tables(settings: Settings, chosen: list[Variant], figures: dict[str, Any]) -> None:
    about, all_figures = figures["machine"], figures["variants"]
    measured = ", ".join(f"{dtype} {rate / 1e12:.3g}" for dtype, rate in about["matmul"].items())
    print(f"\n{about['device']}, {about['cores']} cores, {about['threads']} threads, torch {about['torch']}")
    print(f"TF32: {about['tf32']}; matrix multiplication measured, TFLOP/s: {measured}")
    compiled = "compiled" if any(v.compile for v in chosen) else "not compiled"
    again = ", activations checkpointed" if settings.checkpoint_activations else ""
    print(f"batch {settings.batch}, {settings.size} size, ours {compiled}{again}; {settings.steps} timed steps a turn")
    basis = f"data sheet, {about['peak'] / 1e12:.0f} TFLOP/s" if about["peak"] else "measured multiplication"
    timed = "processor time of all threads" if settings.processor_time else "wall time"
    print(f"utilisation is of: {basis}; seconds are {timed}; ratios are of samples/s\n")
    first = [v.name for v in chosen[: 2 if chosen[0].five_passes else 1]]
    marks = ["/ (a)", "/ (b)"] if len(first) == 2 else ["/ ours"]
    print(
        f"{'variant':42}{'samples/s':>10}" + "".join(f"{mark:>8}" for mark in marks) + f"{'ms/step':>10}"
        f"{'peak GiB':>10}{'TFLOP/s':>9}{'util.':>7}{'hours, 1':>10}{'hours, 16':>10}"
    )
    for variant in chosen:
        one = all_figures[variant.name]
        one["samples_per_second"] = speed = settings.batch / one["seconds"]
        one["tflops"] = one["flops"] / one["seconds"] / 1e12
        one["utilisation"] = one["tflops"] * 1e12 / (about["peak"] or about["matmul"][variant.dtype])
        one["hours"] = PAPER_STEPS * PAPER_BATCH / speed / 3600
        ratios = "".join(f"{all_figures[name]['seconds'] / one['seconds']:8.2f}" for name in first)
        print(
            f"{variant.name:42}{speed:10.4g}{ratios}{one['seconds'] * 1e3:10.1f}{one['gigabytes']:10.2f}"
            f"{one['tflops']:9.3g}{one['utilisation']:7.1%}{one['hours']:10.0f}{one['hours'] / PAPER_DEVICES:10.0f}"
        )
    print(
        f"hours: {PAPER_STEPS:,} steps of {PAPER_BATCH} samples, the paper's, on this one device; "
        f"on {PAPER_DEVICES} of them if scaling were perfect, which it is not\n"
    )
    print_parts([v.name for v in chosen if not v.without], all_figures)


def print_parts(names: list[str], figures: dict[str, Any]) -> None:
    print("ms a step, and share; the encoders forward\n" + " " * 20 + "".join(f"{name:>28}" for name in names))
    for part in figures[names[0]]["parts"]:
        row = [(figures[name]["parts"][part], sum(figures[name]["parts"].values())) for name in names]
        print(f"{part:20}" + "".join(f"{value * 1e3:20.1f} {value / whole:7.1%}" for value, whole in row))


if __name__ == "__main__":
    main()
