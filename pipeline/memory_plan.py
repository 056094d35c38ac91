"""The memory that training stages will need, planned before they have data: printed by `--dry-run`."""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alpro.files import digest, read_json, write_json
from alpro.pipeline.artifacts.store import Step
from alpro.progress import progress
from alpro.stages import TRAININGS
from alpro.stages.execution.interface import Resources

if TYPE_CHECKING:  # torch is imported only if a training stage is to run
    from alpro.stages.training.memory import StepMemory

GIB = 2**30
USABLE = 0.9  # of the memory of the device: the rest is for libraries and fragmentation
TASKS = {"train_prompter": "prompter", "pretrain": "pretrain", "finetune_retrieval": "retrieval", "finetune_qa": "qa"}
CODE = {"alpro.models": "*.py", "alpro.stages.training": "*.py", "alpro.pipeline": "memory_plan.py"}


@dataclass(frozen=True)
class Case:
    """What the memory of a stage's step depends on, in JSON's types."""

    task: str
    config: dict[str, Any]
    shape: dict[str, Any]
    labels: dict[str, int]  # outputs of the heads
    teacher: dict[str, Any] | None  # the trained prompter of pre-training
    teacher_bytes: int  # of another prompter: a CLIP or SigLIP
    device: str
    ranks: int

    @property
    def batch(self) -> int:
        """Examples of a micro-batch in one process."""
        return max(1, self.config["batch_size"] // self.config["accumulation_steps"] // self.ranks)


class Plan(NamedTuple):
    """The memory of a stage's steps, in one process: without and with checkpointed activations.

    batch: examples of a micro-batch in the process. largest: the same, of the largest that the device has memory for.
    """

    stage: str
    batch: int
    memory: "tuple[StepMemory, StepMemory]"
    largest: tuple[int, int]

    def values(self) -> dict[str, Any]:
        """The plan in JSON's types, in bytes."""
        values: dict[str, Any] = {"batch": self.batch}
        for name, step, largest in zip(("plain", "checkpointed"), self.memory, self.largest, strict=True):
            sizes = {key: getattr(step, key) for key in ("weights", "gradients", "optimizer", "activations", "peak")}
            values[name] = sizes | {"largest_batch": largest}
        return values


def memory_plans(steps: Iterable[Step], resources: Resources, remembered: Path) -> list[Plan]:
    """The plan of each training stage among the steps. remembered: a file with the results of earlier plans."""
    plans, trainings = [], [step for step in steps if step.stage in TRAININGS]
    with progress("planning the memory, once for each configuration", len(trainings), "stages") as advance:
        for step in trainings:
            if case := case_of(step, resources):
                plans.append(plan_of(step.name, case, device_bytes(case.device, resources), remembered))
            advance()
    return plans


def case_of(step: Step, resources: Resources) -> Case | None:
    """What the memory of a training step depends on. None if the stage takes no steps, or its model is not known."""
    from alpro.stages.training.distributed import pick_device

    config: Any = step.config
    inputs: dict[str, Any] = {name: source.config for name, source in step.inputs.items()}
    task, teacher, labels, teacher_bytes = TASKS[step.stage], None, dict[str, int](), 0
    if task in ("prompter", "pretrain"):
        vocabulary = inputs["vocabulary"]
        labels = {"entities": vocabulary.entities, "verbs": vocabulary.verbs} if task == "pretrain" else {}
        shape = with_words(config.model.model_dump(), vocabulary)
        if task == "pretrain" and not any(config.weights.model_dump().values()):
            return None
        if task == "pretrain" and "prompter" in inputs:
            teacher = with_words(inputs["prompter"].model.model_dump(), vocabulary)
        elif task == "pretrain" and config.needs_prompter:
            teacher_bytes = weight_bytes(Path(inputs["prompts"].prompter))
    else:
        known = start_of(step)
        if known is None:
            return None
        shape, entities = known
        shape["video"] |= {"frames": config.frames}
        labels = {"entities": entities} if task == "retrieval" else {"answers": config.answers}
    device, ranks = pick_device(resources).type, resources.processes * resources.nodes
    return Case(task, config.model_dump(mode="json"), shape, labels, teacher, teacher_bytes, device, ranks)


def with_words(shape: dict[str, Any], vocabulary: Any) -> dict[str, Any]:
    """The sizes of a model with the largest vocabulary that a trained tokenizer has; of another one, that of BERT."""
    if vocabulary.tokenizer == "train":
        shape["text"] |= {"vocab_size": vocabulary.word_pieces}
    return shape


def start_of(step: Step) -> tuple[dict[str, Any], int] | None:
    """The sizes of the model that is fine-tuned and the number of its entities. None if its folder is not readable."""
    if pretrain := step.inputs.get("model"):
        config: Any = pretrain.config
        vocabulary: Any = pretrain.inputs["vocabulary"].config
        return with_words(config.model.model_dump(), vocabulary), vocabulary.entities
    folder = Path(str(step.paths["model"]))
    with suppress(OSError, ValueError, KeyError):
        entities = folder / "entities.json"
        return read_json(folder / "config.json")["model"], len(read_json(entities)) if entities.exists() else 0
    return None


def weight_bytes(folder: Path) -> int:
    """Bytes of the weights in a folder; 0 for a name on the hub."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def plan_of(name: str, case: Case, memory: int, remembered: Path) -> Plan:
    """The plan of a stage for a device with `memory` bytes. Steps of the same case are remembered."""
    from alpro.stages.training.memory import StepMemory

    key = digest({"code": code(), "case": asdict(case)})[:24]
    known = dict[str, list[dict[str, Any]]]()
    with suppress(OSError, ValueError):
        known = read_json(remembered)
    if key not in known:
        known[key] = [asdict(step) for step in step_memories(case)]
        with suppress(OSError):  # it is only a cache
            write_json(remembered, known)
    plain, less = (StepMemory(**values) for values in known[key])
    first, second = (max(0, int(case.batch * step.scale(USABLE * memory))) for step in (plain, less))
    return Plan(name, case.batch, (plain, less), (first, second))


def step_memories(case: Case) -> "list[StepMemory]":
    """The memory of a step without and with checkpointed activations."""
    import torch

    from alpro.models.alpro import ModelConfig
    from alpro.stages.training.memory import StepMemories, batch_without_data
    from alpro.stages.training.pretrain_objective import LossWeights
    from alpro.stages.training.untrained import untrained_objective

    config, shape, labels = case.config, ModelConfig.model_validate(case.shape), case.labels
    teacher = ModelConfig.model_validate(case.teacher) if case.teacher else None
    settings: dict[str, Any] = {**labels, "negative_pool_size": config.get("negative_pool_size", 0)}
    examples: dict[str, Any] = {"answers": case.task == "qa"}
    if case.task == "pretrain":
        weights = LossWeights.model_validate(config["weights"])
        settings |= {"weights": weights, "verb_region": config["verb_region"], "teacher": teacher}
        examples |= {"mlm_probability": config["mlm_probability"], "crops": config["crops"] if teacher else 1}
        examples |= {"pseudo_labels": labels["entities"], "verb_labels": labels["verbs"]} if not teacher else {}
    build = partial(untrained_objective, case.task, shape, **settings)
    memory = StepMemories(build, torch.device(case.device), config["mixed_precision"])
    parts = config["accumulation_steps"]
    batch = partial(batch_without_data, case.batch * parts, shape, config["max_text_tokens"], **examples)
    both = [memory(batch, checkpointing, parts) for checkpointing in (False, True)]
    # DDP's buckets are as large as the gradients.
    return [step.with_more(case.teacher_bytes, step.gradients if case.ranks > 1 else 0) for step in both]


@cache
def code() -> str:
    """A digest of the code that a plan depends on."""
    sources = {
        f"{package}/{file.name}": file.read_text("utf-8")
        for package, pattern in CODE.items()
        for file in sorted(Path(str(files(package))).glob(pattern))
    }
    return digest({"torch": metadata.version("torch"), **sources})


def device_bytes(device: str, resources: Resources) -> int:
    """The memory of one process's device: that of a GPU, or its share of this machine's."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_properties(0).total_memory
    return ram_bytes() // resources.processes


def ram_bytes() -> int:
    """The memory of this machine, or of its container if that has a limit."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no limit is the word max
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory


HEADS = ("batch", "weights", "grads", "AdamW", "activations", "peak", "largest")
WIDTHS = (6, 8, 6, 6, 12, 7, 8)


def print_memory(plans: list[Plan], resources: Resources) -> None:
    """Prints the memory of training stages."""
    from alpro.stages.training.distributed import pick_device

    device = pick_device(resources).type
    print("\n".join(plan_lines(plans, device, device_bytes(device, resources), resources)))


def plan_lines(plans: list[Plan], device: str, memory: int, resources: Resources) -> list[str]:
    """The table of the plans, at most 80 columns wide. memory: bytes of a process's device."""
    unit, digits = (GIB, 2) if max(plan.memory[0].peak for plan in plans) >= GIB else (GIB // 1024, 0)
    where = "GPU" if device == "cuda" else "RAM" if resources.processes == 1 else "RAM a process"

    def cells(*sizes: int) -> list[str]:
        return [f"{size / unit:.{digits}f}" for size in sizes]

    lines = [
        "",
        f"Memory of a training step in {'GiB' if unit == GIB else 'MiB'}, estimated from shapes, for each process.",
        f"largest: the largest batch in {USABLE:.0%} of {memory / GIB:.1f} GiB ({where}).",
        "",
        row("", HEADS),
    ]
    problems = []
    for plan in plans:
        plain, less = plan.memory
        fixed = cells(plain.weights, plain.gradients, plain.optimizer)
        first, second = (f"{size:,}" for size in plan.largest)
        lines.append(row(plan.stage, [f"{plan.batch:,}", *fixed, *cells(plain.activations, plain.peak), first]))
        lines.append(row("  with checkpointing", [*[""] * 4, *cells(less.activations, less.peak), second]))
        if plan.largest[resources.checkpoint_activations] < plan.batch:
            problems.append(f"{plan.stage}: a batch of {plan.batch:,} does not fit; {advice(plan, resources)}")
    return [*lines, "", "Vocabulary, entities, verbs and answers count with their configured maximum.", *problems]


def advice(plan: Plan, resources: Resources) -> str:
    """What to change if a batch is too large."""
    if plan.largest[1] >= plan.batch and not resources.checkpoint_activations:
        return "set resources.checkpoint_activations = true"
    if plan.largest[1]:
        return f"raise {plan.stage}.accumulation_steps"
    return "the model needs a device with more memory"


def row(name: str, cells: Iterable[str]) -> str:
    return f"{name:24}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))
