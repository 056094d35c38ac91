"""The arms of the silent study, and the objective that they share: pre-training with other labels of PEM."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alpro.inference.encoding import load_model
from alpro.inference.prompts import read_entities, read_prompts
from alpro.models.alpro import Alpro, mean_inside
from alpro.models.folder import ModelFolder
from alpro.models.losses import box_mask, kept_labels
from alpro.shards.reader import ShardReader
from alpro.stages import pretrain
from alpro.stages.execution.interface import Outcome, Resources
from alpro.stages.training.batch import Batch
from alpro.stages.training.objective import Counts, Metrics
from alpro.stages.training.pretrain_objective import PretrainObjective
from alpro.stages.training.stage import Training, train, with_vocab_size

Labels = Literal["prompter", "permuted", "true"]
Things = list[dict[str, Any]]  # each with `kind`, and `x`, `y`, `radius` as fractions of the frame


@dataclass(frozen=True)
class Arm:
    """One way to pre-train. labels: of PEM; prompter: which of PROMPTERS names them; start: the weights
    before training, the common start or those of another arm with the same seed; only_head: nothing but PEM's head is
    trained. every_patch: PEM's loss is the mean of those of the patches of a crop, not that of their mean. power: of
    the labels, before they are normalized again; above 1 they are sharper, as with a temperature of their own. changes:
    further keys of `[pretrain]`."""

    labels: Labels = "prompter"
    prompter: str = "prompter"
    start: str = "start"
    only_head: bool = False
    every_patch: bool = False
    power: float = 1.0
    changes: dict[str, Any] = field(default_factory=dict)


# The teachers by name, each with further keys of `[train_prompter]`.
CROPS = {"share": 0.5, "area": [0.2, 0.6]}
PROMPTERS: dict[str, dict[str, Any]] = {
    "prompter": {},
    "crops": {"crops": CROPS, "optimizer": "muon", "lr": 1.5e-3},
}
WITHOUT_PEM = {"weights": {"pem": 0}}
ARMS = {
    "none": Arm(changes=WITHOUT_PEM),
    "prompter": Arm(),
    "true": Arm("true"),
    "permuted": Arm("permuted"),
    # The same with a prompter that was trained on crops, and what may make more of its labels.
    "crops": Arm(prompter="crops"),
    "crops, all kept": Arm(prompter="crops", changes={"threshold": 0.0}),
    "crops, sharper": Arm(prompter="crops", power=4.0, changes={"threshold": 0.0}),
    "crops, every patch": Arm(prompter="crops", every_patch=True, changes={"threshold": 0.0}),
    # Whether places are in the patches without PEM: a head on the frozen model of `none`.
    "head on none": Arm(
        start="none", only_head=True, changes={"weights": {"vtc": 0, "vtm": 0, "mlm": 0}}
    ),
}


class SilentObjective(PretrainObjective):
    """Pre-training where PEM has the labels of an arm.

    true: the share of each entity in the area of the things that a crop shows; things: those of each still, by id.
    permuted: each crop has the prompter's label of another sample of the batch, in the loss and not in pictures of the
    labels.
    """

    arm = Arm()

    def use(self, arm: Arm, entities: list[str], things: dict[str, Things]) -> "SilentObjective":
        self.arm, self.known, self.things = (
            arm,
            {name: i for i, name in enumerate(entities)},
            things,
        )
        return self

    def labeled(self, batch: Batch) -> Batch:
        if self.arm.labels != "true" or "pem" not in self.losses or batch.pseudo_labels is not None:
            return super().labeled(batch)
        assert batch.boxes is not None
        grid, boxes = self.model.config.video.grid, batch.boxes.tolist()
        labels = [
            true_labels(self.things[i], box, grid, self.known)
            for i, box in zip(batch.ids, boxes, strict=True)
        ]
        return replace(
            batch, pseudo_labels=torch.from_numpy(np.stack(labels)).to(batch.boxes.device)
        )

    def entities(self, batch: Batch, patches: Tensor, counts: Counts) -> tuple[Tensor, Metrics]:
        labels = batch.pseudo_labels
        assert labels is not None
        if self.arm.labels == "permuted":
            labels = labels.roll(1, 0)
        if self.arm.power != 1:
            labels = F.normalize(labels**self.arm.power, p=1, dim=1)
        loss, metrics = super().entities(replace(batch, pseudo_labels=labels), patches, counts)
        if self.arm.every_patch:
            assert self.model.pem_head is not None
            assert batch.boxes is not None
            inside = box_mask(batch.boxes, self.model.config.video.grid)
            of_patches = -(
                self.model.pem_head(patches).float().log_softmax(2) @ labels[:, :, None]
            ).squeeze(2)
            each = mean_inside(of_patches[:, :, None], inside).squeeze(1)
            loss = (each * kept_labels(labels, self.threshold)).sum() / counts["pem"]
        return loss, metrics


def true_labels(things: Things, box: list[int], grid: int, entities: dict[str, int]) -> np.ndarray:
    """The share (M,) of each entity in the area of the things that a crop shows; zeros if it shows none.

    Each thing counts as a square. box: left, top, width, height in patches. entities: their positions by name.
    """
    start, size = np.array(box).reshape(2, 2) / grid
    labels = np.zeros(len(entities), np.float32)
    for thing in things:
        if thing["kind"] in entities:
            place = np.array([thing["x"], thing["y"]])
            sides = np.minimum(place + thing["radius"], start + size) - np.maximum(
                place - thing["radius"], start
            )
            labels[entities[thing["kind"]]] += np.maximum(sides, 0).prod()
    return labels / (labels.sum() or 1)


def things_of(corpus: Path, split: str) -> dict[str, Things]:
    """The things of each still of a split, by its id."""
    reader = ShardReader(corpus, split, "image")
    return {
        about["id"]: about["meta"]["things"]
        for about in (reader[n].about for n in range(len(reader)))
    }


def pretrain_arm(
    arm: Arm, config: pretrain.Config, inputs: dict[str, Path], out: Path, resources: Resources
) -> Outcome:
    """Pre-trains with the labels of an arm; config, inputs and results are those of `pretrain.run`."""
    entities = read_entities(inputs["vocabulary"])
    things = {
        name: of
        for corpus in config.corpora
        for name, of in things_of(inputs[corpus], "train").items()
    }

    def build(device: torch.device) -> Training:
        prompter, tokenizer, preprocessing = pretrain.load_teacher(config, inputs, device)
        prompts = {
            kind: value.to(device) for kind, value in read_prompts(inputs["prompts"]).items()
        }
        model = Alpro(with_vocab_size(config.model, tokenizer), entities=len(entities)).to(device)
        folder = ModelFolder("pretrain", model, tokenizer, preprocessing, entities)
        pretrain.copy_start(folder, load_model(Path(config.start), device))
        if arm.only_head:
            assert model.pem_head
            model.requires_grad_(False)
            model.pem_head.requires_grad_(True)
        teacher = prompter.normalized(device) if prompter else None
        norm, losses = (preprocessing.mean, preprocessing.std), (config.weights, config.threshold)
        masking = {"mlm_probability": config.mlm_probability}
        objective = SilentObjective(
            model, *norm, teacher, prompts, *losses, config.negative_pool_size, **masking
        )
        objective.to(device).use(arm, entities, things)
        return Training(folder, objective, None)

    return train(build, config, inputs, out, resources)
