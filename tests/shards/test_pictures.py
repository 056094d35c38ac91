"""Pictures for inspection."""

import numpy as np

from alpro.shards.pictures import FAINT, GREEN, INK, RED, TILE, draw_entities, retrieval_picture, sheet, strip, tile

WHITE = np.full((32, 32, 3), 255, np.uint8)


def test_a_crop_that_is_wider_than_tall_stays_where_it_is():
    """Below the middle on the left: (left, top, width, height)."""
    pixels = np.asarray(draw_entities(WHITE, (0.1, 0.6, 0.7, 0.2), [], "", None))
    places = [(y, x) for y in range(5, 100, 10) for x in range(5, 100, 10)]
    bright = {(y, x) for y, x in places if pixels[y * TILE // 100, x * TILE // 100].min() > 200}
    assert bright == {(y, x) for y in (65, 75) for x in range(15, 80, 10)}


def test_entities_of_the_clip_are_green_and_others_red():
    def colors(shown, kept=True):
        picture = draw_entities(WHITE, (0, 0, 1, 1), [("ball", 0.71)], "a ball", kept, shown)
        return {tuple(p) for p in np.asarray(picture)[TILE:].reshape(-1, 3)} & {GREEN, RED, INK, FAINT}

    assert colors(["ball", "box"]) == {GREEN, INK, FAINT}
    assert colors(["box"]) == {RED, INK, FAINT}
    assert colors(None, kept=False) == {INK, FAINT}


def test_a_sheet_holds_every_strip_and_queries_show_their_results():
    rows = [strip([tile(WHITE)], [("text", RED)], TILE) for _ in range(5)]
    one, two = sheet(rows), sheet(rows, columns=2)
    assert one.height == 5 * rows[0].height
    assert (two.height, two.width) == (3 * rows[0].height, 2 * one.width)
    results = [(WHITE, "a", True), (WHITE, "b", False)]
    pixels = np.asarray(retrieval_picture([("a red ball", "came first", results)]))
    for left, border in ((0, GREEN), (TILE + 4, RED)):
        assert tuple(pixels[0, left + TILE // 2]) == tuple(pixels[TILE // 2, left + TILE - 1]) == border
        assert tuple(pixels[TILE // 2, left + TILE // 2]) == (255, 255, 255)
