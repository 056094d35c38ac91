"""The full-size pre-training step: ours, and five separate eager encoder passes in float32 and bfloat16.

    python benchmarks/train_step.py [--batch N ...] [--dtype float32 bfloat16] [--json FILE]

ViT-B/16 TimeSformer on 4 frames of 224 x 224, BERT-base, 30 word pieces, 1,000 entities, frozen prompter. The baseline
is the step as in the paper and the authors' code: the clean text, the masked text, the positive pairs, the 2B negatives
and the masked pairs each have their own encoder pass, with a complete last layer; hard negatives are drawn one sample
at a time and read back; MLM scores every word; the prompter runs under no_grad; AdamW is not fused. It uses our
modules, with fused attention, and its texts have no padding. Ours is the code of training: PretrainObjective,
`configure_layers`, the fused AdamW.

All variants have the same weights, batch and random numbers for the negatives. First the four losses, the gradient norm
and the sampled negatives are compared without dropout: if they differ by more than TOLERANCE, the exit status is 1.
Then the steps are timed with dropout: the variants take turns, and the medians are printed. Each variant has its own
process, so that memory is measured separately. A step is forward, backward, clipping and AdamW, without loading. On a
shared CPU, use OMP_NUM_THREADS=1 with --processor-time.

Model FLOPs are those of our step for every variant, as PyTorch's counter counts them: matrix products and convolutions,
forward and backward; no norms, activations, embeddings or recomputation (stages/training/throughput.py). Those of
dropped patches (--patch-dropping) do not count. Utilization is relative to the accelerator's dense bfloat16 peak on its
data sheet, also for float32; without one, as on a CPU, it is relative to a matrix multiplication measured in the
variant's precision.
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
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from timed_step import MODELS, Settings, Variant, allow_tf32, losses, turn

from alpro.stages.training.throughput import peak

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
        sys.exit("no batch fits; use a smaller one, or --checkpoint-activations")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    sys.exit(not figures["agree"])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", nargs="+", choices=TOLERANCE, help="of ours; cpu: float32, cuda: bfloat16")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="of ours; by default only on cuda")
    parser.add_argument("--batch", nargs="+", type=int, help="the largest that fits is used; cpu: 2, cuda: 64")
    parser.add_argument(
        "--patch-dropping", nargs="+", type=float, default=[], help="also time ours with these fractions"
    )
    parser.add_argument("--steps", type=int, help="timed steps per turn; cpu: 1, cuda: 10")
    parser.add_argument("--warmup", type=int, help="steps before them; cpu: 1, cuda: 3")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each variant")
    parser.add_argument("--size", choices=MODELS, default="full")
    parser.add_argument("--checkpoint-activations", action="store_true", help="in all variants")
    parser.add_argument("--processor-time", action="store_true", help="instead of wall time, on a CPU")
    parser.add_argument("--tf32", action="store_true", help="TF32 in all variants, torch's default until 1.11")
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
    return [
        Variant("five passes, float32 (a)", "float32", five_passes=True),
        Variant("five passes, bfloat16 (b)", "bfloat16", five_passes=True),
        *(
            Variant(
                f"ours, {dtype}" + (f", {share:.0%} dropped" if share else ""), dtype, False, options.compile, share
            )
            for dtype in options.dtype
            for share in (0.0, *options.patch_dropping)
        ),
    ]


def compare(settings: Settings, chosen: list[Variant], repeats: int) -> dict[str, Any]:
    """Checks that the variants agree, times them in turns and prints the tables."""
    figures: dict[str, Any] = {"settings": asdict(settings), "machine": machine(settings)}
    comparable = [variant for variant in chosen if not variant.patch_dropping]
    results = [run_in_process(losses, variant, settings) for variant in comparable]
    figures["losses"] = {v.name: result for v, result in zip(comparable, results, strict=True)}
    figures["agree"] = agree(comparable, results)
    if not figures["agree"]:
        return figures
    turns: dict[Variant, list[dict[str, Any]]] = {v: [] for v in chosen}
    with ExitStack() as stack:  # on a GPU a variant keeps its process and its compiled code
        kept = {v: stack.enter_context(process()) for v in chosen if settings.cuda}
        for _ in range(repeats):
            for variant, mine in turns.items():
                mine.append(run_in_process(turn, variant, settings, kept.get(variant)))
                print(f"  {variant.name}: {mine[-1]['seconds']:.4g} s per step", flush=True)
    figures["variants"] = {v.name: rated(v, median(mine), settings, figures["machine"]) for v, mine in turns.items()}
    print_tables(settings, chosen, figures)
    return figures


def process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def run_in_process(
    function: Callable, variant: Variant, settings: Settings, kept: ProcessPoolExecutor | None = None
) -> Any:
    """The result of a function, in a kept process or else in a new one."""
    with nullcontext(kept) if kept else process() as own:
        return own.submit(function, variant, settings).result()


def median(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The turn with the median seconds, and the seconds of all turns."""
    seconds = [figures["seconds"] for figures in turns]
    return turns[seconds.index(statistics.median_low(seconds))] | {"all_seconds": seconds}


def rated(variant: Variant, figures: dict[str, Any], settings: Settings, about: dict[str, Any]) -> dict[str, Any]:
    """The figures of a variant with its speed, its utilization and the hours of the paper's steps."""
    speed, rate = settings.batch / figures["seconds"], figures["flops"] / figures["seconds"]
    return figures | {
        "samples_per_second": speed,
        "tflops": rate / 1e12,
        "utilization": rate / (about["peak"] or about["matmul"][variant.dtype]),
        "hours": PAPER_STEPS * PAPER_BATCH / speed / 3600,
    }


def machine(settings: Settings) -> dict[str, Any]:
    """The machine, its settings, and the rate of a large matrix multiplication in operations per second."""
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
    """Operations per second of a large matrix multiplication: the best of several."""
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


# Output


def agree(chosen: list[Variant], results: list[dict[str, Any]]) -> bool:
    """Prints the results of each variant without dropout, and whether all agree with the first."""
    names = [name for name in results[0] if name != "negatives"]
    print(f"\n{'without dropout':42}" + "".join(f"{name:>12}" for name in names) + "   equal negatives")
    fine = True
    for variant, result in zip(chosen, results, strict=True):
        low = "bfloat16" in (variant.dtype, chosen[0].dtype)
        limits = TOLERANCE["bfloat16" if low else "float32"]
        off = [not abs(result[name] / results[0][name] - 1) <= limits[name == "grad_norm"] for name in names]  # NaN too
        alike = sum(a == b for a, b in zip(result["negatives"], results[0]["negatives"], strict=True))
        fine &= not any(off) and (low or alike == len(result["negatives"]))
        output = "".join(f"{result[name]:11.5f}{'!' if bad else ' '}" for name, bad in zip(names, off, strict=True))
        print(f"{variant.name:42}{output}   {alike} of {len(result['negatives'])}", flush=True)
    print("they agree\n" if fine else f"they do not agree (relative: {TOLERANCE}): nothing is timed\n", flush=True)
    return fine


def print_tables(settings: Settings, chosen: list[Variant], figures: dict[str, Any]) -> None:
    print_machine(settings, chosen, figures["machine"])
    print_speeds(chosen, figures["variants"])
    print_parts([v.name for v in chosen], figures["variants"])


def print_machine(settings: Settings, chosen: list[Variant], about: dict[str, Any]) -> None:
    measured = ", ".join(f"{dtype} {rate / 1e12:.3g}" for dtype, rate in about["matmul"].items())
    print(f"\n{about['device']}, {about['cores']} cores, {about['threads']} threads, torch {about['torch']}")
    print(f"TF32: {about['tf32']}; matrix multiplication measured, TFLOP/s: {measured}")
    compiled = "compiled" if any(v.compile for v in chosen) else "not compiled"
    again = ", activations checkpointed" if settings.checkpoint_activations else ""
    print(
        f"batch {settings.batch}, {settings.size} size, ours {compiled}{again}; {settings.steps} timed steps per turn"
    )
    basis = f"data sheet, {about['peak'] / 1e12:.0f} TFLOP/s" if about["peak"] else "measured multiplication"
    timed = "processor time of all threads" if settings.processor_time else "wall time"
    print(f"utilization is relative to: {basis}; seconds are {timed}; ratios are of samples/s\n")


def print_speeds(chosen: list[Variant], figures: dict[str, Any]) -> None:
    baselines = {"/ (a)": chosen[0], "/ (b)": chosen[1]}
    print(
        f"{'variant':42}{'samples/s':>10}" + "".join(f"{mark:>8}" for mark in baselines) + f"{'ms/step':>10}"
        f"{'peak GiB':>10}{'TFLOP/s':>9}{'util.':>7}{'hours, 1':>10}{'hours, 16':>10}"
    )
    for variant in chosen:
        row = figures[variant.name]
        ratios = "".join(f"{figures[v.name]['seconds'] / row['seconds']:8.2f}" for v in baselines.values())
        print(
            f"{variant.name:42}{row['samples_per_second']:10.4g}{ratios}{row['seconds'] * 1e3:10.1f}"
            f"{row['gigabytes']:10.2f}{row['tflops']:9.3g}{row['utilization']:7.1%}"
            f"{row['hours']:10.0f}{row['hours'] / PAPER_DEVICES:10.0f}"
        )
    print(
        f"hours: the paper's {PAPER_STEPS:,} steps of {PAPER_BATCH} samples on this device; "
        f"on {PAPER_DEVICES} devices with perfect scaling\n"
    )


def print_parts(names: list[str], figures: dict[str, Any]) -> None:
    print("ms per step and share; encoders: forward pass\n" + " " * 20 + "".join(f"{name:>28}" for name in names))
    for part in figures[names[0]]["parts"]:
        row = [(figures[name]["parts"][part], sum(figures[name]["parts"].values())) for name in names]
        print(f"{part:20}" + "".join(f"{value * 1e3:20.1f} {value / whole:7.1%}" for value, whole in row))


if __name__ == "__main__":
    main()
