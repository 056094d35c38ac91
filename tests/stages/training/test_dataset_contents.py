"""What an example contains: frames, text, masked words, crops; and how a batch is divided."""

import numpy as np
import pytest
import torch

from alpro.models.losses import box_mask
from alpro.models.word_pieces import BertTokenizer, load_tokenizer
from alpro.shards.transforms import random_box
from alpro.stages.training import dataset
from alpro.stages.training.batch import mask_words
from alpro.stages.training.dataset import ExampleSpec, TrainingDataset
from tests.stages.training.conftest import sample_rows


@pytest.mark.parametrize("sampling", ["halves", "random"])
def test_pre_training_draws_from_both_halves_of_a_clip(
    corpus_of, tmp_path, steps_of, sampling
):
    """Of 8 frames, each of a brightness of its own, always two of the first four and two of the
    last."""
    frames = np.stack([np.full((8, 8, 3), 30 * n, np.uint8) for n in range(8)])
    corpora = {"a": corpus_of(tmp_path, sample_rows(8, frames=frames))}
    data = steps_of(corpora, 6, sampling=sampling)

    clips = torch.cat([data[step].frames for step in range(6)])
    drawn = clips.float().mean(dim=(2, 3, 4)).div(30).round()
    early = (drawn < 4).sum(1)
    assert (early == 2).all() == (sampling == "halves")
    assert len({tuple(row) for row in drawn.tolist()}) > 10
    assert (drawn.diff(dim=1) > 0).all()  # in order, none twice


def test_texts_are_padded_with_the_tokenizers_own_padding(
    corpus_of, tmp_path, training
):
    """Not with the id 0, which is a word in a tokenizer that puts [PAD] elsewhere."""
    words = "a [PAD] [UNK] [CLS] [SEP] [MASK] ball red big and or so on"
    (tmp_path / "vocab.txt").write_text(words.replace(" ", "\n"))
    tokenizer = BertTokenizer(load_tokenizer(str(tmp_path / "vocab.txt")))
    long = {"id": "long", "captions": ["a red ball and a big red ball"]}
    rows = [{"id": "short", "captions": ["a"]}, long]
    corpora = {"a": corpus_of(tmp_path / "corpus", rows)}
    config = training(corpora, 1, batch_size=2)

    batch = TrainingDataset(
        config, corpora, tokenizer, ExampleSpec("sample", 4, 8, 4, 0.3)
    )[0]

    for tokens in (batch.text, batch.masked):
        assert set(tokens[batch.mask == 0].tolist()) == {1}


def test_only_words_are_masked_and_labels_are_their_ids(clips, steps_of, tokenizer):
    batch = steps_of({"clips": clips}, mlm=0.0)[0]  # none
    assert torch.equal(batch.masked, batch.text)
    assert (batch.labels == -100).all()
    assert batch.boxes.shape == (8, 4)

    ends = torch.tensor([tokenizer.token_to_id(t) for t in ("[CLS]", "[SEP]", "[PAD]")])
    data = steps_of({"clips": clips}, 4, mlm=0.9)
    for step in range(4):
        batch = data[step]
        chosen = batch.labels != -100
        assert batch.max_masked >= chosen.sum(1).max() > 8
        assert torch.equal(batch.labels[chosen], batch.text[chosen])
        assert torch.equal(batch.masked[~chosen], batch.text[~chosen])
        assert not torch.isin(batch.text[chosen], ends).any()


def test_texts_are_truncated_and_end_with_sep(clips, steps_of, tokenizer):
    batch = steps_of({"clips": clips}, max_text_tokens=6)[0]
    assert batch.text.shape == (8, 8)  # 6, rounded up so that shapes are few
    for row, mask in zip(batch.text, batch.mask, strict=True):
        words = row[mask > 0].tolist()
        assert len(words) <= 6
        assert tokenizer.id_to_token(words[0]) == "[CLS]"
        assert tokenizer.id_to_token(words[-1]) == "[SEP]"


def test_augmentation_reads_the_question_and_its_answer(clips, steps_of, monkeypatch):
    """A clip whose answer is a direction is not mirrored."""
    texts = []

    def note_text(frames, text, rng):
        texts.append(text)
        return frames

    monkeypatch.setattr(dataset, "augment_video", note_text)

    steps_of({"clips": clips}, 3, "question", augmentation="official")[0]

    assert {text.split("? ")[-1] for text in texts} & {"left", "right", "up", "down"}


def test_images_of_any_shape_make_a_batch(corpus_of, tmp_path, steps_of):
    """They are stored with their aspect ratio, and resized as they are read; the crop is a share of
    both sides."""
    images = sample_rows(3, kind="image")
    for row, (height, width) in zip(images, [(40, 60), (90, 30), (8, 8)], strict=True):
        frame = np.zeros((1, height, width, 3), np.uint8)
        frame[:, : height // 2, :, 0] = 255  # red above
        frame[:, :, : width // 2, 2] = 255  # blue on the left
        row["frames"] = frame
    corpora = {"a": corpus_of(tmp_path, images)}
    batch = steps_of(corpora, 1, batch_size=3, random_crop=1.0)[0]
    assert batch.frames.shape == (3, 4, 3, 8, 8)
    # A pixel of each quarter.
    red, _, blue = batch.frames[:, :, :, 1::4, 1::4].unbind(2)
    above = torch.tensor([[True, True], [False, False]])
    assert torch.equal(red > 128, above.expand(3, 4, 2, 2))
    assert torch.equal(blue > 128, above.T.expand(3, 4, 2, 2))
    for how in ({"random_crop": 0.5}, {"augmentation": "official"}):
        other = steps_of(corpora, 1, batch_size=3, **how)[0]
        assert other.frames.shape == batch.frames.shape


def test_words_are_masked_at_the_rates_of_bert():
    vocab = 30_000
    mask_id = 3
    length = 200_000
    rng = np.random.default_rng(0)
    ids = rng.integers(5, vocab, length)
    special = np.isin(np.arange(length), [0, length - 1])
    masked, labels = mask_words(ids, mask_id, vocab, 0.15, rng)
    chosen = labels != -100
    to_mask = masked == mask_id
    changed = masked != ids
    # Tolerances are five standard deviations or more: sqrt(.15 * .85 / 180k) = .0008, sqrt(.8 * .2
    # / 27k) = .0024.
    assert chosen[~special].mean() == pytest.approx(0.15, abs=0.005)
    assert to_mask[chosen].mean() == pytest.approx(0.8, abs=0.013)
    assert (changed & ~to_mask)[chosen].mean() == pytest.approx(0.1, abs=0.01)
    # Random words are of the whole vocabulary.
    assert len(set(masked[changed & ~to_mask])) > 1000


@pytest.mark.parametrize("grid", [4, 14])
def test_boxes_have_their_share_of_the_area_and_are_tall_and_wide_and_everywhere_inside(
    grid,
):
    rng = np.random.default_rng(0)
    boxes = torch.tensor([random_box(grid, rng) for _ in range(500)])
    left, top, width, height = boxes.unbind(1)
    share = width * height / grid**2
    assert share.min() >= 0.3
    assert share.max() <= 0.5
    margins = torch.stack([left, top, grid - left - width, grid - top - height])
    assert margins.amin(dim=1).tolist() == [0, 0, 0, 0]
    assert width.max() == height.max() == grid
    assert 0.25 < (height > width).float().mean() < 0.75
    assert box_mask(boxes, grid).any(dim=0).all()  # every patch is in some box
    # 2 x 2 patches: a share of 0.3 to 0.4 is no whole number of patches.
    assert random_box(2, rng, area=(0.3, 0.4)) == (0, 0, 2, 1)
