"""The full-size pre-training step: ours against five separate encoder passes, eager, in float32 and in bfloat16.

    python benchmarks/train_step.py [--batch N ...] [--dtype float32 bfloat16] [--tricks [WORD ...]] [--json FILE]

ViT-B/16 TimeSformer on 4 frames of 224 x 224, BERT-base, 30 word pieces, 1,000 entities, prompter frozen. The baseline
is the step as one writes it from the paper, and as the authors' code does it: the clean text, the masked text, the
positive pairs, the 2B negatives and the masked pairs each go through an encoder by themselves, through all of its last
layer; hard negatives are drawn one sample at a time, each read back; MLM scores every word; the prompter runs under
no_grad; AdamW is not fused. It has our modules, so that it has fused attention too, and its texts need no padding.
Ours is training's own code: PretrainObjective, `configure_layers`, the fused AdamW.

All variants have the same weights, batch and chances of the negatives. First the four losses, the norm of the gradient
and the drawn negatives are compared, without dropout: where they differ by more than TOLERANCE the exit status is 1.
Then the steps are timed with dropout, the variants by turns, medians over the repeats; each variant has a process of
its own, so that nobody's memory counts for another. A step is forward, backward, clipping and AdamW, without loading.
On a CPU that others use too, OMP_NUM_THREADS=1 with --processor-time counts the seconds that a step worked.

Model FLOPs are those of our step for every variant, whatever it works in vain, as PyTorch's counter counts them: matrix
products and convolutions, forward and backward; of the last fusion layer only what a loss reads; no norms, activations,
embeddings, recomputation (stages/training/flops.py). Utilisation is of the accelerator's dense bfloat16 peak on its
data sheet, for float32 too; where there is none, as on a CPU, of the matrix multiplication measured here in the
variant's precision.

--tricks takes one trick away from ours at a time, by the patches of benchmarks/five_passes.py. Not among them: one draw
of stochastic depth for all blocks, a finite step decided on the device, which are not taken away simply.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from five_passes import TRICKS
from timed_step import MODELS, Settings, Variant, allow_tf32, losses, turn

from alpro.stages.training.flops import peak

TOLERANCE = {  # relative: of a loss, of the norm of the gradient
    "float32": (1e-4, 1e-3),
    "bfloat16": (2e-2, 1e-1),
}
PAPER_STEPS, PAPER_BATCH, PAPER_DEVICES = 100_000, 256, 16


def main() -> None:
    options = arguments()
    for size in sorted(options.batch, reverse=True):
        shared = {field.name: getattr(options, field.name) for field in fields(Settings) if field.name != "batch"}
        settings = Settings(batch=size, **shared)
        try:
            figures = compare(settings, variants(options), options.repeats)
            break
        except torch.OutOfMemoryError:
            print(f"a batch of {size} does not fit", flush=True)
        except BrokenProcessPool:
            print(f"a batch of {size}: a process was killed (out of memory?)", flush=True)
    else:
        sys.exit("no batch fits; give a smaller one, or --checkpoint-activations")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
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
    options = parser.parse_args()
    cuda = options.device == "cuda"
    options.dtype = options.dtype or (["bfloat16"] if cuda else ["float32"])
    options.compile = cuda if options.compile is None else options.compile
    options.batch = options.batch or [64 if cuda else 2]
    options.steps = options.steps or (10 if cuda else 1)
    options.warmup = (3 if cuda else 1) if options.warmup is None else options.warmup
    return options


def variants(options: argparse.Namespace) -> list[Variant]:
    ours = [Variant(f"ours, {dtype}", dtype, compile=options.compile) for dtype in options.dtype]
    if options.tricks is None:
        return [
            Variant("five passes, float32 (a)", "float32", five_passes=True, fused=False),
            Variant("five passes, bfloat16 (b)", "bfloat16", five_passes=True, fused=False),
            *ours,
        ]
    whole = ours[-1]
    results = [replace(whole, name=f"without {trick}", without=trick) for trick in TRICKS]
    results.append(replace(whole, name="without fused AdamW", fused=False))
    if whole.compile:
        results.append(replace(whole, name="without compile", compile=False))
    if whole.dtype == "bfloat16":
        results.append(replace(whole, name="without bfloat16", dtype="float32"))
    return [whole, *(v for v in results if not options.tricks or any(word in v.name for word in options.tricks))]


def compare(settings: Settings, chosen: list[Variant], repeats: int) -> dict[str, Any]:
    """Checks that the variants agree, times them by turns and prints the tables."""
    figures: dict[str, Any] = {"settings": asdict(settings), "machine": machine(settings)}
    # A patched variant is checked uncompiled: compiling takes longer than everything else.
    results = [alone(losses, replace(v, compile=v.compile and not v.without), settings) for v in chosen]
    figures["losses"] = {v.name: one for v, one in zip(chosen, results, strict=True)}
    figures["agree"] = agree(chosen, results)
    if not figures["agree"]:
        return figures
    turns: dict[Variant, list[dict[str, Any]]] = {v: [] for v in chosen}
    with ExitStack() as stack:  # on a GPU a variant keeps its process, for what it has compiled
        kept = {v: stack.enter_context(process()) for v in chosen if settings.cuda}
        for _ in range(repeats):
            for variant, mine in turns.items():
                mine.append(alone(turn, variant, settings, kept.get(variant)))
                print(f"  {variant.name}: {mine[-1]['seconds']:.4g} s a step", flush=True)
    figures["variants"] = {v.name: rated(v, median(mine), settings, figures["machine"]) for v, mine in turns.items()}
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


def rated(variant: Variant, one: dict[str, Any], settings: Settings, about: dict[str, Any]) -> dict[str, Any]:
    """A variant's figures with its speed, its utilisation of the machine and the hours of the paper's steps."""
    speed, rate = settings.batch / one["seconds"], one["flops"] / one["seconds"]
    return one | {
        "samples_per_second": speed,
        "tflops": rate / 1e12,
        "utilisation": rate / (about["peak"] or about["matmul"][variant.dtype]),
        "hours": PAPER_STEPS * PAPER_BATCH / speed / 3600,
    }


def machine(settings: Settings) -> dict[str, Any]:
    """The machine and its settings; on it, what a large matrix multiplication reaches, in operations a second."""
    allow_tf32(settings)
    device = torch.cuda.get_device_name() if settings.cuda else processor()
    return {
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "tf32": {
            "matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
            "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        },
        "peak": peak(device) if settings.cuda else 0.0,
        "matmul": {dtype: matmul_rate(getattr(torch, dtype), settings) for dtype in TOLERANCE},
    }


def processor() -> str:
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def matmul_rate(dtype: torch.dtype, settings: Settings, times: int = 5) -> float:
    """Operations a second of one large matrix multiplication, the best of some."""
    side = {"full": 8192 if settings.cuda else 2048, "small": 256}[settings.size]
    a, b = (torch.randn(side, side, device=settings.device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(times + 1):
        started = settings.clock()
        a @ b
        seconds.append(settings.clock() - started)
    del a, b
    torch.cuda.empty_cache()
    return 2 * side**3 / min(seconds)


# What is printed


def agree(chosen: list[Variant], results: list[dict[str, Any]]) -> bool:
    """Prints what each variant gives without dropout, and whether all are near enough to the first."""
    names = [name for name in results[0] if name != "negatives"]
    print(f"\n{'without dropout':42}" + "".join(f"{name:>12}" for name in names) + "   negatives alike")
    fine = True
    for variant, one in zip(chosen, results, strict=True):
        low = "bfloat16" in (variant.dtype, chosen[0].dtype)
        limits = TOLERANCE["bfloat16" if low else "float32"]
        off = [not abs(one[name] / results[0][name] - 1) <= limits[name == "grad_norm"] for name in names]  # NaN too
        alike = sum(a == b for a, b in zip(one["negatives"], results[0]["negatives"], strict=True))
        fine &= not any(off) and (low or alike == len(one["negatives"]))
        output = "".join(f"{one[name]:11.5f}{'!' if bad else ' '}" for name, bad in zip(names, off, strict=True))
        print(f"{variant.name:42}{output}   {alike} of {len(one['negatives'])}", flush=True)
    print("they agree\n" if fine else f"they do not agree (relative: {TOLERANCE}): nothing is timed\n", flush=True)
    return fine


def print_tables(settings: Settings, chosen: list[Variant], figures: dict[str, Any]) -> None:
    print_circumstances(settings, chosen, figures["machine"])
    print_speeds(chosen, figures["variants"])
    print_parts([v.name for v in chosen if not v.without], figures["variants"])


def print_circumstances(settings: Settings, chosen: list[Variant], about: dict[str, Any]) -> None:
    measured = ", ".join(f"{dtype} {rate / 1e12:.3g}" for dtype, rate in about["matmul"].items())
    print(f"\n{about['device']}, {about['cores']} cores, {about['threads']} threads, torch {about['torch']}")
    print(f"TF32: {about['tf32']}; matrix multiplication measured, TFLOP/s: {measured}")
    compiled = "compiled" if any(v.compile for v in chosen) else "not compiled"
    again = ", activations checkpointed" if settings.checkpoint_activations else ""
    print(f"batch {settings.batch}, {settings.size} size, ours {compiled}{again}; {settings.steps} timed steps a turn")
    basis = f"data sheet, {about['peak'] / 1e12:.0f} TFLOP/s" if about["peak"] else "measured multiplication"
    timed = "processor time of all threads" if settings.processor_time else "wall time"
    print(f"utilisation is of: {basis}; seconds are {timed}; ratios are of samples/s\n")


def print_speeds(chosen: list[Variant], figures: dict[str, Any]) -> None:
    baselines = {"/ (a)": chosen[0], "/ (b)": chosen[1]} if chosen[0].five_passes else {"/ ours": chosen[0]}
    print(
        f"{'variant':42}{'samples/s':>10}" + "".join(f"{mark:>8}" for mark in baselines) + f"{'ms/step':>10}"
        f"{'peak GiB':>10}{'TFLOP/s':>9}{'util.':>7}{'hours, 1':>10}{'hours, 16':>10}"
    )
    for variant in chosen:
        one = figures[variant.name]
        ratios = "".join(f"{figures[v.name]['seconds'] / one['seconds']:8.2f}" for v in baselines.values())
        print(
            f"{variant.name:42}{one['samples_per_second']:10.4g}{ratios}{one['seconds'] * 1e3:10.1f}"
            f"{one['gigabytes']:10.2f}{one['tflops']:9.3g}{one['utilisation']:7.1%}"
            f"{one['hours']:10.0f}{one['hours'] / PAPER_DEVICES:10.0f}"
        )
    print(
        f"hours: {PAPER_STEPS:,} steps of {PAPER_BATCH} samples, the paper's, on this one device; "
        f"on {PAPER_DEVICES} of them if scaling were perfect, which it is not\n"
    )


def print_parts(names: list[str], figures: dict[str, Any]) -> None:
    print("ms a step, and share; the encoders forward\n" + " " * 20 + "".join(f"{name:>28}" for name in names))
    for part in figures[names[0]]["parts"]:
        row = [(figures[name]["parts"][part], sum(figures[name]["parts"].values())) for name in names]
        print(f"{part:20}" + "".join(f"{value * 1e3:20.1f} {value / whole:7.1%}" for value, whole in row))


if __name__ == "__main__":
    main()
