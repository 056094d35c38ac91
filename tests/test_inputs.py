"""The checks of regions and texts that every interface shares."""

import pytest

from alpro.inputs import WHOLE, check_box, check_text, parse_box, patches_of


@pytest.mark.parametrize(
    ("box", "patches"),  # of 4 x 4: left, top, width, height
    [
        (WHOLE, (0, 0, 4, 4)),
        ((0.5, 0, 0.25, 1), (2, 0, 1, 4)),
        ((0, 0.75, 0.5, 0.25), (0, 3, 2, 1)),
        ((0.99, 0.99, 0.01, 0.01), (3, 3, 1, 1)),
        ((0.33, 0.33, 0.67, 0.67), (1, 1, 3, 3)),
        ((0.67, 0, 0.3305, 1), (3, 0, 1, 4)),  # rounded numbers
    ],
)
def test_a_region_is_left_top_width_and_height(box, patches):
    assert patches_of(box, 4) == patches
    assert parse_box(", ".join(map(str, box))) == box


OUTSIDE = [(0.5, 0, 0.6, 1), (0, 0.5, 1, 0.6), (0, 0, 0, 1), (0, 0, 1, 0), (-0.1, 0, 1, 1), (0, -0.1, 1, 1)]
NO_BOX = [(0, 0, 1), (float("nan"), 0, 1, 1), (0, 0, 1, float("inf")), "abcd", None, 3, (0, 0, 1, "a")]
WRITTEN = ["0,0,1", "a,b,c,d", "", "1111", "0.5,0,0.6,1"]


@pytest.mark.parametrize(
    ("read", "boxes"), [(check_box, [*OUTSIDE, *NO_BOX]), (parse_box, WRITTEN)], ids=["values", "texts"]
)
def test_what_is_not_inside_the_frame_is_refused(read, boxes):
    for box in boxes:
        with pytest.raises(ValueError, match=r"is not a region of the frame: it takes left, top, width and height as"):
            read(box)


def test_an_empty_text_is_refused():
    assert check_text(" a dog") == " a dog"
    for text, message in {"": "question is empty", "\t \n": "question is empty", 3: "a question is a str"}.items():
        with pytest.raises(ValueError, match=message):
            check_text(text, "question")
