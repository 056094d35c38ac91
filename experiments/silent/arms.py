"""The arms of the silent study, and their objective: pre-training with other labels of PEM."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alpro.inference.encoding import load_model
from alpro.inference.prompts import read_entities, read_prompts
from alpro.models.alpro import Alpro, mean_inside
from alpro.models.folder import ModelBundle
from alpro.models.losses import box_mask, kept_labels
from alpro.stages import pretrain
from alpro.stages.execution.interface import Outcome, Resources
from alpro.stages.training.batch import Batch
from alpro.stages.training.objective import Counts, Metrics
from alpro.stages.training.pretrain_objective import PretrainObjective
from alpro.stages.training.stage import Training, train, with_vocab_size
from experiments.silent.labels import (
    Labels,
    Things,
    TrueLabels,
    arm_labels,
    kept_by_mixture,
    things_of,
)


@dataclass(frozen=True)
class Arm:
    """One way to pre-train.

    labels: of PEM. prompter: the name of the teacher that labels crops. start: the weights before
    training, the common start or those of another arm with the same seed. only_head: nothing but
    PEM's head is trained. every_patch: PEM's loss is the mean of those of the patches of a crop,
    not that of their mean. power: of the labels, before they are normalized again; above 1 they
    are sharper. share: of the true labels that a mixture keeps. changes: further keys of
    `[pretrain]`.
    """

    labels: Labels = "prompter"
    prompter: str = "prompter"
    start: str = "start"
    only_head: bool = False
    every_patch: bool = False
    power: float = 1.0
    share: float = 1.0
    changes: dict[str, Any] = field(default_factory=dict)


# The teachers by name, each with further keys of `[train_prompter]`.
CROPS = {"share": 0.5, "area": [0.2, 0.6]}
PROMPTERS: dict[str, dict[str, Any]] = {
    "prompter": {},
    "crops": {"crops": CROPS, "optimizer": "muon", "lr": 1.5e-3},
}
WITHOUT_PEM = {"weights": {"pem": 0}}
ALL_KEPT = {"threshold": 0.0}
ARMS = {
    "none": Arm(changes=WITHOUT_PEM),
    "prompter": Arm(),
    "true": Arm("true"),
    "permuted": Arm("permuted"),
    # The same with a prompter that was trained on crops, and what may make more of its labels.
    "crops": Arm(prompter="crops"),
    "crops, all kept": Arm(prompter="crops", changes=ALL_KEPT),
    "crops, sharper": Arm(prompter="crops", power=4.0, changes=ALL_KEPT),
    "crops, every patch": Arm(prompter="crops", every_patch=True, changes=ALL_KEPT),
    # Whether places are in the patches without PEM: a head on the frozen model of `none`.
    "head on none": Arm(
        start="none", only_head=True, changes={"weights": {"vtc": 0, "vtm": 0, "mlm": 0}}
    ),
}


class SilentObjective(PretrainObjective):
    """Pre-training where PEM has the labels of an arm.

    Permuted labels are used in the loss and not in pictures of the labels. Further arguments are
    those of `PretrainObjective`, by name.
    """

    def __init__(self, arm: Arm, truth: TrueLabels, **arguments: Any):
        super().__init__(**arguments)
        self.arm = arm
        self.truth = truth

    def with_pseudo_labels(self, batch: Batch) -> Batch:
        """The batch with the labels of the arm, unless it has labels or PEM is off."""
        if "pem" not in self.losses or batch.pseudo_labels is not None:
            return batch
        if self.arm.labels in ("prompter", "permuted"):
            return super().with_pseudo_labels(batch)

        assert batch.boxes is not None
        true = self.truth.of(batch.ids, batch.boxes)
        kept = kept_by_mixture(batch.ids, batch.boxes, self.arm.share)

        # The prompter is asked only where its labels count.
        of_prompter = true
        if self.arm.labels == "errors":
            asked = super().with_pseudo_labels(batch).pseudo_labels
            assert asked is not None
            of_prompter = asked
        return replace(batch, pseudo_labels=arm_labels(self.arm.labels, true, of_prompter, kept))

    def entities(self, batch: Batch, patches: Tensor, counts: Counts) -> tuple[Tensor, Metrics]:
        labels = batch.pseudo_labels
        assert labels is not None
        if self.arm.labels == "permuted":
            labels = labels.roll(1, 0)
        if self.arm.power != 1:
            labels = F.normalize(labels**self.arm.power, p=1, dim=1)

        loss, metrics = super().entities(replace(batch, pseudo_labels=labels), patches, counts)
        if self.arm.every_patch:
            loss = self.loss_of_patches(batch, patches, labels) / counts["pem"]
        return loss, metrics

    def loss_of_patches(self, batch: Batch, patches: Tensor, labels: Tensor) -> Tensor:
        """The sum over the kept samples of the mean loss of the patches (B, P, D) of a crop."""
        assert self.model.pem_head is not None
        assert batch.boxes is not None
        inside = box_mask(batch.boxes, self.model.config.video.grid)

        log_probabilities = self.model.pem_head(patches).float().log_softmax(2)  # (B, P, M)
        of_patches = -(log_probabilities @ labels[:, :, None])  # (B, P, 1)
        of_samples = mean_inside(of_patches, inside).squeeze(1)
        return (of_samples * kept_labels(labels, self.threshold)).sum()


def pretrain_arm(
    arm: Arm, config: pretrain.Config, inputs: pretrain.Inputs, out: Path, resources: Resources
) -> Outcome:
    """Pre-trains with the labels of an arm. Arguments and results are those of `pretrain.run`."""
    entities = read_entities(inputs.vocabulary)
    things: dict[str, Things] = {}
    for corpus in config.corpora:
        things |= things_of(inputs.corpora[corpus], "train")

    def build(device: torch.device) -> Training:
        prompter, tokenizer, preprocessing = pretrain.load_teacher(config, inputs, device)
        prompts = read_prompts(inputs.prompts) if prompter and inputs.prompts else {}

        model = Alpro(with_vocab_size(config.model, tokenizer), entities=len(entities)).to(device)
        bundle = ModelBundle("pretrain", model, tokenizer, preprocessing, entities)
        pretrain.copy_start(bundle, load_model(Path(config.start), device))
        if arm.only_head:
            assert model.pem_head
            model.requires_grad_(False)
            model.pem_head.requires_grad_(True)

        objective = SilentObjective(
            arm,
            TrueLabels(entities, things, model.config.video.grid),
            model=model,
            mean=preprocessing.mean,
            std=preprocessing.std,
            prompter=prompter.normalized(device) if prompter else None,
            prompts={kind: features.to(device) for kind, features in prompts.items()},
            settings=config.objective,
        )
        return Training(bundle, objective.to(device), None)

    return train(build, config, inputs.corpora, out, resources)
