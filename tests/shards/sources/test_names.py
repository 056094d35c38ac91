"""A caption goes to its video or nowhere: which file a name in a table means."""

import pytest

# Media, a name in a table, and the file that it means; None if it has none.
NAMES = {
    "a path with a folder": ("B/a.mp4 a.mp4", "B/a.mp4", "B/a.mp4"),
    "without its extension, with a dot": (
        "clip.1.mp4 clip.2.mp4",
        "clip.2",
        "clip.2.mp4",
    ),
    "without its extension, with what could be one": (
        "talk.264.mp4 talk.mp4",
        "talk.264",
        "talk.264.mp4",
    ),
    "another extension": ("a.webm b.mp4", "a.mp4", "a.webm"),
    "a video beside its picture": ("a.mp4 a.jpg", "a", "a.mp4"),
    "of Windows": ("B/a.mp4", "B\\a.mp4", "B/a.mp4"),
    "with a backslash": ("B\\a.mp4", "B\\a.mp4", "B\\a.mp4"),
    "with spaces around": ("a.mp4", " a.mp4 ", "a.mp4"),
    "by a roundabout way": ("a.mp4", "x/../a.mp4", "a.mp4"),
    "decomposed": ("cafe\u0301.mp4", "caf\u00e9", "cafe\u0301.mp4"),
    "a prefix": ("2.mp4 video1.mp4", "1", None),
    "a subfolder": ("old/a.mp4", "a.mp4", None),
    "another folder": ("B/a.mp4", "A/a.mp4", None),
    "another case": ("a.mp4", "A.mp4", None),
    "a picture of it": ("a.jpg", "a.mp4", None),
    "a placeholder of iCloud": (".a.mp4.icloud", "a.mp4", None),
}


@pytest.mark.parametrize(
    "column", ["path", "video", "file_name", "clip_id", "Video Name"]
)
@pytest.mark.parametrize("case", NAMES)
def test_a_name_means_the_file_of_its_path_under_any_header(case, column, read):
    media, name, file = NAMES[case]
    files = {f"{each}": "x" for each in media.split()}

    imported = read(
        {**files, "x.jsonl": [{column: name, "caption": "a dog"}]}, data="x.jsonl"
    )

    assert [*imported.captions] == ([file] if file else [])
    assert [reject.reason for reject in imported.rejects] == (
        [] if file else ["missing"]
    )


@pytest.mark.parametrize(
    ("media", "name", "similar"),
    [
        ("old/a.mp4", "a.mp4", "old/a.mp4"),
        ("video1.mp4 video11.mp4", "1.mp4", "video1.mp4"),
        ("A.mp4", "a", "A.mp4"),
        ("0001.mp4 10.mp4", "1", "0001.mp4"),
        ("other.mp4", "a", ""),
    ],
)
def test_a_missing_file_is_a_reject_with_the_files_of_similar_names(
    media, name, similar, read
):
    imported = read({"x.csv": f"path,caption\n{name},a dog\n"}, media)

    (reject,) = imported.rejects
    assert (reject.path, reject.reason) == (name, "missing")
    assert reject.detail.partition(": ")[2] == similar
    assert "names have no file" in imported.notes


def test_a_missing_file_of_many_records_is_one_reject(read):
    imported = read({"x.csv": "video,caption\na,a dog\na,a cat\nb,a bird\n"}, "b.mp4")

    assert imported.captions == {"b.mp4": ("a bird",)}
    assert len(imported.rejects) == 1


@pytest.mark.parametrize("media", ["a.mp4 a.webm", "a.png a.jpg"])
def test_a_name_of_two_files_is_a_reject(media, read):
    imported = read({"x.csv": "path,caption\na,a dog\n"}, media)

    assert imported.captions == {}
    assert "could mean" in imported.details[0]


def test_a_form_may_find_a_file_anywhere_and_a_note_counts_it(read):
    table = "path,caption\na,a dog\nb,a cat\nc,a bird\nd.mov,a cow\n"
    media = "A/a.mp4 A/b.mp4 B/b.mp4 c.mp4 A/d.mov A/d.mp4"

    imported = read({"x.csv": table}, media, columns={"anywhere": True})

    assert imported.captions == {
        "A/a.mp4": ("a dog",),
        "c.mp4": ("a bird",),
        "A/d.mov": ("a cow",),
    }
    assert "could mean A/b.mp4 or B/b.mp4" in imported.details[0]
    assert "names were found in a subfolder (2): a (A/a.mp4)" in imported.notes


def test_a_video_is_meant_rather_than_its_picture(read):
    table = {"x.csv": "image,caption,video_id\na.jpg,a dog,a\n"}

    assert [*read(table, "a.mp4 a.jpg").captions] == ["a.mp4"]


def test_prefixes_belong_to_a_form(read):
    table = {"x.csv": "path,caption\n1,a dog\nv_2,a cat\n"}

    imported = read(table, "v_1.mp4 1.jpg 2.mp4", columns={"prefixes": "v_"})

    assert imported.captions == {"v_1.mp4": ("a dog",), "2.mp4": ("a cat",)}


@pytest.mark.parametrize(
    "name", ["../b.mp4", "/etc/passwd", "x/../../b.mp4", "file:///etc/b.mp4"]
)
def test_a_name_outside_of_the_data_is_a_reject(name, read):
    imported = read(
        {"x.jsonl": [{"path": name, "caption": "x"}, {"path": "a", "caption": "x"}]},
        "a.mp4",
    )

    assert [*imported.captions] == ["a.mp4"]
    assert "outside the data folder" in imported.details[0]


def test_a_root_is_the_folder_that_corresponds_to_the_data(read, tmp_path):
    table = {"x.csv": "image,caption\n/export/cc3m/a.jpg,a dog\nb.jpg,a cat\n"}

    imported = read(
        table,
        "a.jpg b.jpg",
        annotations={"train": "x.csv"},
        root=tmp_path / "/export/cc3m",
    )

    assert imported.captions == {"a.jpg": ("a dog",), "b.jpg": ("a cat",)}


def test_urls_that_differ_in_their_query_are_two_items(read):
    urls = ["https://host.example/watch?v=1", "https://host.example/watch?v=2"]

    imported = read(
        {"x.jsonl": [{"url_of": url, "caption": "a dog"} for url in urls]},
        columns={"file": "url_of"},
    )

    assert [row.path for row in imported.rows] == urls
    assert len({row.id for row in imported.rows}) == 2


def test_files_of_a_url_are_used_if_the_folder_has_none(read):
    columns = {"file": "name", "url": "address"}
    table = {"x.csv": "name,address,caption\na,https://host.example/a.mp4,a dog\n"}

    assert read(table, columns=columns).rows[0].path == "https://host.example/a.mp4"
    assert read(table, "b.mp4", columns=columns).rejects[0].reason == "missing"


DOG = "a dog runs"
CAT = "a cat sits"
# Files, videos, and the text of each video that has one.
TEXTS = {
    "one in two folders": (
        {"captions/a.txt": DOG, "captions/b.txt": CAT},
        "1/a.mp4 2/a.mp4 1/b.mp4",
        {"1/b.mp4": CAT},
    ),
    "the nearest folder": (
        {"captions/a.txt": DOG, "2/captions/a.txt": CAT},
        "2/a.mp4",
        {"2/a.mp4": CAT},
    ),
    "names that differ in case": (
        {"a.txt": DOG, "b.txt": CAT},
        "a.mp4 A.mp4 B.mp4",
        {"a.mp4": DOG},
    ),
    "a video and its picture": ({"a.txt": DOG}, "a.mp4 a.jpg", {"a.mp4": DOG}),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_is_of_the_nearest_video_of_its_name_or_of_none(case, read):
    files, media, expected = TEXTS[case]

    captions = read(files, media).captions

    assert {file: texts[0] for file, texts in captions.items() if texts} == expected
