"""What a pre-trained model names in regions (PEM) beside its prompter: scores on validation clips, and a picture."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alpro.files import atomic_write
from alpro.models.losses import box_mask, kept_labels
from alpro.models.word_pieces import WordPieces
from alpro.shards.pictures import draw_regions, sheet
from alpro.stages.encoding.encode import sample_frames
from alpro.stages.evaluation.retrieval import Gallery
from alpro.stages.training.pretrain_objective import PretrainObjective

PERCENT = {"pem_accuracy": "acc", "pseudo_labels_kept": "kept", "pseudo_labels_named": "named"}


@dataclass
class Regions:
    """A random crop of each clip, and its first caption: N clips, M entities, P patches.

    middle: the middle frames (H, W, 3); boxes (N, 4) in patches; text (N, L); labels (N, M): the prompter's
    probabilities for the crop; logits (N, M): those of the PEM head; fused (N, P, D): the tokens that it averages.
    """

    middle: list[np.ndarray]
    captions: list[str]
    boxes: Tensor
    text: Tensor
    labels: Tensor
    logits: Tensor
    fused: Tensor


@torch.no_grad()
def name_regions(
    objective: PretrainObjective, gallery: Gallery, words: WordPieces, length: int, batch: int = 32
) -> Iterator[Regions]:
    """The prompter and the PEM head on one crop of each clip of a gallery, batch by batch. The boxes are drawn as in
    pre-training, with a fixed seed."""
    model, device, rng = objective.model, objective.mean.device, np.random.default_rng([0, 59])
    config, prompter = model.config.video, objective.prompter
    assert prompter
    kinds = gallery.reader.column("kind").to_pylist()
    first = np.searchsorted(gallery.video_of_text, np.arange(len(gallery.numbers)))
    for kind in ("video", "image"):
        places = [place for place, number in enumerate(gallery.numbers) if kinds[number] == kind]
        for start in range(0, len(places), batch):
            some = places[start : start + batch]
            frames = np.stack([sample_frames(gallery.reader[gallery.numbers[place]], config) for place in some])
            pixels = objective.pixels(torch.from_numpy(frames).to(device))
            captions = [gallery.texts[first[place]] for place in some]
            text, mask = (tensor.to(device) for tensor in words.batch(captions, length))
            boxes = torch.tensor([objective.draw_box(config.grid, rng) for _ in some], device=device)
            fused = model.fused_patches(model.encode_text(text, mask), mask, model.encode_video(pixels))
            labels = prompter.pseudo_labels(pixels, boxes, objective.prompts_of(kind), objective.black)
            logits = model.pem_logits(fused, box_mask(boxes, config.grid)).float()
            middle = list(frames[:, frames.shape[1] // 2].transpose(0, 2, 3, 1))
            yield Regions(middle, captions, boxes, text, labels, logits, fused)


def score_regions(objective: PretrainObjective, gallery: Gallery, words: WordPieces, length: int) -> dict[str, float]:
    """The metrics of PEM on one crop of each clip of a gallery; shares in percent."""
    sums: Counter[str] = Counter()
    kept_in_all = count = 0
    for regions in name_regions(objective, gallery, words, length):
        kept = kept_labels(regions.labels, objective.threshold)
        values = objective.pem_metrics(regions.text, regions.logits, regions.labels, kept, kept.new_ones(()).float())
        kept_in_all, count = kept_in_all + int(kept.sum()), count + len(kept)
        sums.update({name: float(value) for name, value in values.items() if name != "pseudo_labels_kept"})
    means = {name: value / max(1, kept_in_all) for name, value in sums.items()}
    means["pseudo_labels_kept"] = kept_in_all / count
    return {f"validation/pem/{short}": 100 * means[name] for name, short in PERCENT.items() if name in means} | {
        "validation/pem/label_entropy": means["pseudo_label_entropy"]
    }


@torch.no_grad()
def draw_named_regions(
    objective: PretrainObjective, gallery: Gallery, words: WordPieces, length: int, entities: list[str], file: Path
) -> None:
    """Draws what the prompter and the PEM head name in a crop of each clip, and the map of the head's entities."""
    grid, rows, head, training = objective.model.config.video.grid, [], objective.model.pem_head, objective.training
    assert head
    objective.eval()

    def best(probabilities: Tensor, count: int = 2) -> list[tuple[str, float]]:
        top = probabilities.topk(min(count, len(entities)))
        return [(entities[i], p) for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)]

    for regions in name_regions(objective, gallery, words, length):
        maps = head(regions.fused).softmax(2)
        for i, caption in enumerate(regions.captions):
            box = [side / grid for side in regions.boxes[i].tolist()]
            named = {"prompter": best(regions.labels[i]), "model": best(regions.logits[i].softmax(0))}
            patches = [best(patch, 1)[0] for patch in maps[i]]
            rows.append(draw_regions(regions.middle[i], box, named, patches, caption))
    objective.train(training)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as temporary:  # tracking uploads files as soon as they appear
        sheet(rows, columns=min(4, len(rows))).save(temporary, format="png")
