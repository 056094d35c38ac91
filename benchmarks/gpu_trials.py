"""The trials of benchmarks/gpu.py that measure single steps and evaluation. Those that train are in gpu_runs.py."""

import gc
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import gpu_runs
import numpy as np
import torch
import torch.nn.functional as F
from full_size import ANSWERS
from gpu_context import Context, Failed, Skipped
from gpu_runs import objective_of
from timed_step import MODELS, Settings, Variant, bench, disable_dropout, examples, turn
from torch import Tensor, nn
from train_step import PAPER_DEVICES, TOLERANCE, machine

from alpro.models.alpro import Alpro
from alpro.models.timesformer import VideoConfig
from alpro.stages.encoding.encode import Texts, Videos
from alpro.stages.evaluation.retrieval import match_all, match_top_k
from alpro.stages.execution.interface import Resources
from alpro.stages.training.batch import Batch
from alpro.stages.training.config import Phase, TrainingConfig
from alpro.stages.training.distributed import World
from alpro.stages.training.loop import TrainerState, _Trainer, configure_layers
from alpro.stages.training.optim import build_optimizer

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("prompter", "pretrain", "retrieval", "qa")
PACKAGES = ("numpy", "pyarrow", "safetensors", "tokenizers", "pydantic", "pillow", "simplejpeg", "webdataset", "triton")
MIN_CORRELATION = 0.98  # of ranks in bfloat16 with those in float32
AIMS = {
    "a": 4.0,
    "b": 1.5,
    "utilization": 0.4,
    "evaluation": 6.0,
}  # on an H200: times (a), times (b), share of the bfloat16 peak, times each pair by itself


def run(name: str, folder: Path, seconds: float, device: str) -> int:
    """Runs a trial within `seconds` and writes result.json into its folder; returns the exit status."""
    deadline = time.monotonic() + seconds
    cuda = device != "cpu" and torch.cuda.is_available()
    context = Context(torch.device("cuda", 0) if cuda else torch.device("cpu"), deadline, folder)
    status = "passed"
    try:
        TRIALS[name](context)
    except Skipped as reason:
        status = "skipped"
        context.summary.append(str(reason))
    except Exception as error:
        traceback.print_exc()
        status = "failed"
        lines = str(error).strip().splitlines() or [""]
        context.summary.append(lines[0] if isinstance(error, Failed) else f"{type(error).__name__}: {lines[0]}")
    context.write(status)
    return int(status == "failed")


def settings_of(context: Context, batch: int, steps: int = 1, warmup: int = 1, checkpoint: bool = False) -> Settings:
    return Settings(context.device.type, batch, context.size, steps, warmup, checkpoint, False, False)


def about(context: Context) -> None:
    """The machine and the versions of what runs on it."""
    figures = machine(settings_of(context, 1))
    measured = ", ".join(f"{dtype} {rate / 1e12:.3g}" for dtype, rate in figures["matmul"].items())
    memory = ""
    if context.cuda:
        properties = torch.cuda.get_device_properties(0)
        figures |= {"memory_gib": properties.total_memory / 2**30, "cuda": torch.version.cuda}
        memory = f", {figures['memory_gib']:.0f} GiB, CUDA {torch.version.cuda}"
    figures["versions"] = {"python": figures["python"], "torch": figures["torch"]}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            figures["versions"][package] = metadata.version(package)
    context.report(f"{figures['device']}{memory}, {figures['cores']} cores", **figures)
    context.report(", ".join(f"{name} {version}" for name, version in figures["versions"].items()))
    context.report(f"a large matrix multiplication, TFLOP/s: {measured}; TF32 off")


def marked_tests(context: Context) -> None:
    """The tests marked `gpu`; only their files are imported, because others need more packages."""
    context.need_gpu()
    for package in ("pytest", "hypothesis"):
        if importlib.util.find_spec(package) is None:
            raise Skipped(f"{package} is not installed")
    output, status = run_marked_tests()
    print(output)
    context.report((output.strip().splitlines() or ["no output"])[-1].strip("= "), status=status)
    if status or " passed" not in output:
        raise Failed(f"pytest ended with status {status}; gpu.log has its output")


def run_marked_tests() -> tuple[str, int]:
    """The output and the exit status of pytest."""
    files = [
        file for file in sorted((ROOT / "tests").rglob("test_*.py")) if "@pytest.mark.gpu" in file.read_text("utf-8")
    ]
    # -P: the checkout's folder `alpro` is not the package; the links to it come first in PYTHONPATH.
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *map(str, files)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)])}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    return done.stdout, done.returncode


# Steps


def batch_of(context: Context, size: int) -> Batch:
    """A batch of random examples for every task."""
    batch = examples(settings_of(context, size), MODELS[context.size])
    batch.answers = torch.arange(size) * 7 % ANSWERS
    return batch.to(context.device)


def no_synchronization(context: Context) -> None:
    """An eager step of each objective after the first, in which PyTorch raises an error at a synchronization."""
    context.need_gpu()

    class Schedule:
        """Stands for a data set of 10 steps."""

        def __len__(self) -> int:
            return 10

        def schedule_of(self, step: int) -> tuple[int, int]:
            return step, len(self)

    batch = batch_of(context, 8)
    config = TrainingConfig(phases=(Phase(corpora=("none",), steps=10),), batch_size=8, accumulation_steps=2)
    world, found = World(0, 1, context.device), []
    for task in TASKS:
        objective = objective_of(task, MODELS[context.size], context.device).train()
        optimizer = build_optimizer(objective, config)
        run = _Trainer(objective, objective, optimizer, Schedule(), config, world, None, None, TrainerState(), Path())  # type: ignore[arg-type]
        run.step(batch)  # libraries are initialized
        torch.cuda.set_sync_debug_mode("error")
        try:
            run.step(batch)
        except RuntimeError as error:
            traceback.print_exc()
            found.append(f"{task}: {str(error).splitlines()[0]}")
        finally:
            torch.cuda.set_sync_debug_mode("default")
    context.report(f"steps without one: {len(TASKS) - len(found)} of {len(TASKS)} objectives", synchronizations=found)
    if found:
        raise Failed("; ".join(found))


def objectives(context: Context) -> None:
    """A bfloat16 step of each objective, eager and compiled, against float32: the losses and the gradient norm."""
    batch, expected = batch_of(context, 8), {}
    limits = TOLERANCE["bfloat16"]
    shown = f"within {limits[0]:.0%} (losses) and {limits[1]:.0%} (gradient norm) of float32"
    for compiled in (False, True):
        way = "compiled" if compiled else "eager"
        if compiled and not (context.cuda and (shutil.which("gcc") or shutil.which("cc"))):
            context.report(f"compiled: skipped, requires {'a C compiler' if context.cuda else 'a GPU'}")
            break
        wrong, worst, skipped = [], {}, []
        for task in TASKS:
            if compiled and context.left < 25:
                skipped.append(task)
                continue
            if task not in expected:
                expected[task] = losses_of(task, context, batch, mixed=False)
            actual = losses_of(task, context, batch, mixed=True, compiled=compiled)
            differences = {name: abs(actual[name] / value - 1) for name, value in expected[task].items()}
            wrong += [
                f"{task} {name} {actual[name]:.5g} instead of {expected[task][name]:.5g}"
                for name, difference in differences.items()
                if not difference <= limits[name == "grad_norm"]  # NaN too
            ]
            worst[task] = max(differences.values())
        largest = ", ".join(f"{task} {value:.2%}" for task, value in worst.items())
        if worst:
            context.report(f"{way} bfloat16, largest difference: {largest}; required: {shown}", **{way: worst})
        if skipped:
            context.report(f"{way}: {', '.join(skipped)} skipped, no time left")
        if wrong:
            raise Failed(f"{way} bfloat16: {'; '.join(wrong)}")


def losses_of(task: str, context: Context, batch: Batch, mixed: bool, compiled: bool = False) -> dict[str, float]:
    """The losses and the gradient norm of a step without dropout."""
    objective = objective_of(task, MODELS[context.size], context.device).train()
    disable_dropout(objective)
    if compiled:
        torch._dynamo.reset()
        configure_layers(objective, Resources(compile=True))
    with context.autocast(mixed):
        loss, metrics = objective(batch)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(objective.parameters(), float("inf"))
    losses = {name: float(value) for name, value in metrics.items() if name.startswith("loss_")}
    return losses | {"grad_norm": float(norm)}


def sweep(context: Context) -> None:
    """Samples/s and peak memory of our eager step by batch size, with and without checkpointed activations."""
    rows: dict[str, dict[str, Any]] = {}
    ours = Variant("ours", "bfloat16" if context.cuda else "float32")
    for checkpoint in (False, True):
        name, parts = "checkpointed" if checkpoint else "stored", []
        for batch in (32, 64, 128, 256) if context.cuda else (2, 4):
            if context.left < 20:
                parts.append(f"{batch}: skipped, no time left")
                break
            figures = measured(ours, settings_of(context, batch, steps=2, checkpoint=checkpoint))
            gc.collect()
            torch.cuda.empty_cache()
            if figures is None:
                parts.append(f"{batch}: does not fit")
                break
            rate = batch / figures["seconds"]
            rows[f"{name}, {batch}"] = {"samples_per_second": rate, "gigabytes": figures["gigabytes"]}
            parts.append(f"{batch}: {rate:.4g} samples/s, {figures['gigabytes']:.3g} GiB")
        context.report(f"activations {name}, by batch size: {'; '.join(parts)}", sweep=rows)
    if not context.cuda:
        context.report("memory on a CPU is the peak of the process over all sizes before")


def measured(variant: Variant, settings: Settings) -> dict[str, Any] | None:
    """The figures of a variant; None if it does not fit into memory."""
    try:
        return turn(variant, settings)
    except torch.OutOfMemoryError:
        return None
    finally:
        bench.cache_clear()


def step(context: Context) -> None:
    """benchmarks/train_step.py: the five passes in float32 (a) and bfloat16 (b), and ours."""
    file = context.folder / "train_step.json"
    small = ["--batch", "8", "--size", "small", "--warmup", "0", "--repeats", "1"]
    full = ["--batch", "64", "32", "16", "8", "--steps", "5", "--warmup", "2", "--repeats", "2"]
    command = [sys.executable, str(ROOT / "benchmarks" / "train_step.py"), "--json", str(file)]
    command += ["--device", context.device.type, *(full if context.cuda else small)]
    done = subprocess.run(command)
    if done.returncode:
        raise Failed(f"train_step.py ended with status {done.returncode}; gpu.log has its output")
    figures = json.loads(file.read_text())
    (_, a), (_, b), *ours = figures["variants"].items()
    whole = "of the bfloat16 peak" if figures["machine"]["peak"] else "of the measured multiplication"
    context.report(f"batch {figures['settings']['batch']}", **figures)
    for name, row in figures["variants"].items():
        line = f"{name}: {row['samples_per_second']:.4g} samples/s, {row['utilization']:.1%} {whole}, "
        line += f"{row['gigabytes']:.3g} GiB"
        if (name, row) in ours:
            line += f"; {row['samples_per_second'] / a['samples_per_second']:.2f} times (a), "
            line += f"{row['samples_per_second'] / b['samples_per_second']:.2f} times (b); the paper's 100,000 steps: "
            line += f"{row['hours']:.0f} h, on {PAPER_DEVICES} devices {row['hours'] / PAPER_DEVICES:.0f} h"
        context.report(line)
    if context.cuda:
        context.report(f"aims: {AIMS['a']:g} times (a), {AIMS['b']:g} times (b), {AIMS['utilization']:.0%} of the peak")


# Evaluation


@torch.inference_mode()
def evaluation(context: Context) -> None:
    """All pairs and the top k in bfloat16, against each pair alone in float32, with random weights."""
    count, few_texts, few_videos, k = (1000, 200, 64, 128) if context.cuda else (24, 24, 12, 4)
    shape = MODELS[context.size]
    if context.cuda:
        shape = shape.model_copy(update={"video": shape.video.model_copy(update={"frames": 8})})
    torch.manual_seed(0)
    with torch.device(context.device):
        model = Alpro(shape).eval()
    ids, mask = captions(count, shape.text.vocab_size, context.device)
    every = slice(None, None, count // few_texts)  # texts of the part, short and long ones
    encode(model, ids[every], mask[every], 8, context, mixed=True)  # libraries are initialized
    texts, videos, encoding = encode(model, ids, mask, count, context, mixed=True)

    def timed(method: Callable[..., Any], *arguments: Any) -> tuple[np.ndarray, float]:
        started = context.clock()
        scores = method(model, *arguments)
        return scores, context.clock() - started

    part = Texts(texts.tokens[every], texts.mask[every], texts.features[every])
    some = Videos(videos.tokens[:few_videos], videos.features[:few_videos])
    with context.autocast(mixed=True):
        match_all(model, part, Videos(some.tokens[:2], some.features[:2]))
        few, seconds = timed(match_all, part, some)
        scaled = seconds * count**2 / few.size
        complete = 1.3 * scaled < context.left - 20  # the top k and float32 are still to come
        whole = timed(match_all, texts, videos)[1] if complete else scaled
        _, top = timed(match_top_k, texts, videos, k)
    pairs = f"{count:,} x {count:,} pairs"
    how = "measured" if complete else f"scaled from {few.size:,} pairs: no time left"
    line = f"bfloat16, {pairs}: {encoding + whole:.3g} s ({encoding:.3g} s of it encoding; {how}), "
    context.report(f"{line}top {k}: {encoding + top:.3g} s", seconds={"all": whole, "top": top, "encoding": encoding})
    exact_texts, exact_videos, slow_encoding = encode(model, ids[every], mask[every], few_videos, context, mixed=False)
    expected, seconds = timed(pairwise, exact_texts, exact_videos)
    slow = (seconds / few.size * count + slow_encoding / few_videos) * count
    ratio = slow / (encoding + whole)
    line = f"float32, each pair alone, scaled from {len(part.tokens)} x {few_videos} pairs: {slow:.3g} s; "
    context.report(f"{line}bfloat16 is {ratio:.1f} times as fast (aim on a GPU: {AIMS['evaluation']:g})", ratio=ratio)
    agreement = ranks_agree(few, expected)
    line = f"ranks of {few_videos} videos for {len(part.tokens)} texts against float32: mean correlation "
    line += f"{agreement['correlation']:.4f}, equal first video {agreement['first']:.1%}"
    context.report(line, agreement=agreement)
    if not agreement["correlation"] >= MIN_CORRELATION:
        raise Failed(f"the ranks differ: a correlation of at least {MIN_CORRELATION} is required")


def captions(count: int, vocabulary: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random texts (N, L) of 8 to 30 word pieces, 14 on average, and their mask: many short ones, few long ones."""
    lengths = torch.linspace(0, 1, count).pow(3).mul(22).add(8).long()
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    return (torch.randint(5, vocabulary, mask.shape) * mask).to(device), mask.to(device)


def encode(
    model: Alpro, ids: Tensor, mask: Tensor, videos: int, context: Context, mixed: bool
) -> tuple[Texts, Videos, float]:
    """Encoded texts and random videos, the same for every number of them, and the seconds that it took."""
    config = model.config.video
    tokens = torch.empty(videos, 1 + config.grid**2, config.width, device=context.device)
    started = context.clock()
    with context.autocast(mixed):
        text = torch.cat(
            [model.encode_text(*part).float() for part in zip(ids.split(256), mask.split(256), strict=True)]
        )
        for start in range(0, videos, 32):
            tokens[start : start + 32] = model.encode_video(pictures(config, start, context.device)[: videos - start])
    results = Texts(text, mask, model.project_text(text)), Videos(tokens, model.project_video(tokens))
    return *results, context.clock() - started


def pictures(config: VideoConfig, seed: int, device: torch.device) -> Tensor:
    """32 clips (32, T, 3, S, S), each a still picture of 4 x 4 colors with noise."""
    generator, side = torch.Generator(device).manual_seed(seed), config.image_size
    colors = F.interpolate(torch.randn(32, 3, 4, 4, device=device, generator=generator), (side, side), mode="bilinear")
    return colors[:, None] + 0.3 * torch.randn(32, config.frames, 3, side, side, device=device, generator=generator)


def pairwise(model: Alpro, texts: Texts, videos: Videos) -> np.ndarray:
    """The margin of every pair (texts, videos), each computed alone, with the padding of its text."""
    margins = []
    for video in videos.tokens:
        logits = model.match(texts.tokens, texts.mask, video.expand(len(texts.tokens), -1, -1))
        margins.append(logits[:, 1] - logits[:, 0])
    return torch.stack(margins, dim=1).cpu().numpy()


def ranks_agree(actual: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """How scores (texts, videos) agree: the mean rank correlation, and the share of texts with the same best video."""
    ranks = [scores.argsort(axis=1).argsort(axis=1) for scores in (actual, expected)]
    correlation = np.mean([np.corrcoef(one, other)[0, 1] for one, other in zip(*ranks, strict=True)])
    first = (actual.argmax(axis=1) == expected.argmax(axis=1)).mean()
    return {"correlation": float(correlation), "first": float(first)}


TRIALS: dict[str, Callable[[Context], None]] = {
    "machine": about,
    "sync": no_synchronization,
    "tests": marked_tests,
    "resume": gpu_runs.resume,
    "ranks": gpu_runs.ranks,
    "loader": gpu_runs.loader,
    "sweep": sweep,
    "evaluation": evaluation,
    "objectives": objectives,
    "step": step,
}
