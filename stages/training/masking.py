"""Random inputs of the objectives, sampled by the loader: masked tokens for MLM, crops for PEM (paper, section 3.2),
and patches to keep."""

import numpy as np


def mask_words(
    ids: np.ndarray, special: np.ndarray, mask_id: int, vocab_size: int, probability: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """BERT's masking: 80 % of the chosen tokens become [MASK], 10 % a random token, 10 % are unchanged.

    ids (L,); special (L,), boolean: tokens that are never chosen. Returns masked ids (L,) and labels (L,), -100 = not
    chosen.
    """
    chosen = (rng.random(ids.shape) < probability) & ~special
    action = rng.random(ids.shape)
    random_ids = rng.integers(0, vocab_size, ids.shape)
    masked = np.where(chosen & (action < 0.8), mask_id, ids)
    masked = np.where(chosen & (action >= 0.8) & (action < 0.9), random_ids, masked)
    return masked.astype(ids.dtype), np.where(chosen, ids, -100)


def random_box(
    grid: int,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.3, 0.5),
    aspect: tuple[float, float] = (0.3, 3.3),
) -> tuple[int, int, int, int]:
    """A crop (left, top, width, height) in patches, of `area` (share of the grid) and `aspect` (width : height).

    Boxes are sampled as in random resized cropping and rounded to the patch grid; one that rounds to an area
    outside the range is sampled again. After 100 failures (a grid too coarse): the most central half.
    """
    for _ in range(100):
        target = rng.uniform(*area) * grid * grid
        ratio = np.exp(rng.uniform(np.log(aspect[0]), np.log(aspect[1])))
        height, width = round(float(np.sqrt(target / ratio))), round(float(np.sqrt(target * ratio)))
        inside = 1 <= height <= grid and 1 <= width <= grid
        if inside and area[0] <= height * width / grid**2 <= area[1]:
            top, left = int(rng.integers(0, grid - height + 1)), int(rng.integers(0, grid - width + 1))
            return left, top, width, height
    return 0, grid // 4, grid, max(1, grid // 2)


def keep_patches(grid: int, dropped: float, rng: np.random.Generator) -> np.ndarray:
    """Indices (K,), ascending, of the patches that remain if the fraction `dropped` of all is dropped at random, at
    least one."""
    count = max(1, round((1 - dropped) * grid**2))
    return np.sort(rng.permutation(grid**2)[:count])
