"""What every room uses: complete files, errors in one line, checks of regions and texts, URLs
without credentials, and the log: lines of progress with the time left, and none with -q."""

import io
import sys
from importlib.metadata import version

import pytest

import alpro.log
from alpro import errors
from alpro.errors import MAX_REASON, InputError
from alpro.files import atomic_write
from alpro.inference.inputs import check_texts
from alpro.inference.model import WHOLE, region_to_patches
from alpro.shards.credentials import find_credentials, redact, refuse_credentials
from alpro.shards.sources.scan import scan_source
from alpro.shards.storage import resolve
from tests.conftest import one_line, write_lines


def test_a_file_is_replaced_when_it_is_complete_and_a_failure_leaves_nothing(tmp_path):
    path = tmp_path / "a.json"
    for fails in (False, True):
        try:
            with atomic_write(path) as temporary:
                temporary.write_text("new" if fails else "old")
                assert path.exists() == fails
                assert not fails or 1 / 0
        except ZeroDivisionError:
            assert fails
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with (
        pytest.raises(FileNotFoundError),
        atomic_write(tmp_path / "gone" / "a.json") as temporary,
    ):
        temporary.touch()


# An error in one line.


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("", "OSError"),
        (" \n\t\n", "OSError"),
        ("\nMissing keys:\n\t'a'\r\n", "Missing keys: 'a'"),
        ("a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g", "a b c d e f g"),
        ("x" * MAX_REASON, "x" * MAX_REASON),
        ("x" * (MAX_REASON + 1), "x" * (MAX_REASON - 1) + "…"),
    ],
)
def test_an_error_is_one_line_of_bounded_length(message, line):
    assert errors.one_line(OSError(message)) == line


# Regions and texts.


def test_a_terminal_that_is_gone_ends_nothing_and_the_log_file_has_the_lines(
    tmp_path, monkeypatch
):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError

        def isatty(self):
            return True

    file = tmp_path / "log"
    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setenv(alpro.log.FILE, str(file))

    with alpro.log.progress("decoding", 2, "items"):
        alpro.log.log.info("a line")

    assert "a line" in file.read_text()


def test_a_region_is_left_top_width_and_height():
    for box, patches in (  # in a grid of 4 x 4: left, top, width, height
        (WHOLE, (0, 0, 4, 4)),
        ((0.5, 0, 0.25, 1), (2, 0, 1, 4)),
        ((0, 0.75, 0.5, 0.25), (0, 3, 2, 1)),
        ((0.99, 0.99, 0.01, 0.01), (3, 3, 1, 1)),
        ((0.33, 0.33, 0.67, 0.67), (1, 1, 3, 3)),
        ((0.3752, 0, 0.6254, 1), (2, 0, 2, 4)),  # rounded numbers
    ):
        assert region_to_patches(box, 4) == [*patches]
        assert region_to_patches(", ".join(map(str, box)), 4) == [*patches]


@pytest.mark.parametrize(
    "box",
    [
        (0.5, 0, 0.6, 1),
        (0, 0, 0, 1),
        (-0.1, 0, 1, 1),
        (0, 0, 1),
        (float("nan"), 0, 1, 1),
        "abcd",
    ],
)
def test_what_is_not_inside_the_frame_is_no_region(box):
    with pytest.raises(
        InputError, match="is not a region of the frame: it takes left, top, "
    ):
        region_to_patches(box, 4)


@pytest.mark.parametrize(
    ("text", "message"), [("\t \n", "text is empty"), (3, "a text is a str")]
)
def test_what_is_no_text_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        check_texts(text)


# URLs with passwords and signatures are refused where they come in: nothing has to be removed
# later.

HARMLESS = [
    "https://host/a.mp4",
    "https://host/@me/a.mp4",
    "http://[::1]:80/@me",
    "https://host/watch?v=7",
    "https://host/a.mp4?session=winter_2024&policy=open&key=clips/a.mp4&sign=left",
    "https://host/a.mp4?design=7&max_tokens=7&monkey=7&key_frame=1&config=x",
    "s3://bucket/what?.mp4",
    "abfs://box@account.host/a.mp4",
    "zip://a.mp4::https://host/b@c.zip",
    "https://host/?of=https%3A%2F%2Fother%2Fa.mp4",
    "hf://datasets/user/name@main/a.mp4",
    "/a/b?c@d",
    "a text, sig=a",
    "see https://host: mail me@host",
]
PASSWORDS = [
    "https://me:pw@host/a.mp4",
    "http:/me:pw@host/a.mp4",  # as Path writes it
    "sftp://me:pw@host/a.mp4",
    "s3://k:a/b@bucket/v.mp4",
    "https://u:p?a#x@h/v.mp4",
    "filecache::https://me:pw@host/a.mp4",
    "zip://a.mp4::https://me:pw@host/b.zip",
    "https://host/a.mp4::s3://k:s@b/c",
    "https://host/?of=https%3A%2F%2Fu%3Apw%40h%2Fv.mp4",
]
USERS = [
    "https://me@host:8080/a.mp4",
    "HTTPS://token@[::1]:80/a.mp4",
    "s3://secret@bucket/v.mp4",
]
SECRETS = {
    "https://host/a.mp4?id=7&X-Amz-Signature=x": "X-Amz-Signature",
    "https://host/a.mp4#access_token=x": "access_token",
    "https://host?AWSAccessKeyId=x": "AWSAccessKeyId",
    "https://h/v.mp4;jsessionid=x?y=1": "jsessionid",
    "az://box/a.mp4?sv=1&sig=x%2F": "sig",
    "https://host/a.mp4?name=x::y&%73ig=x": "sig",
    **{
        f"https://host/a.mp4?{name}=3f9Kq": name
        for name in (
            "authtoken",
            "clientsecret",
            "apiKey",
            "private_key",
            "userpassword",
            "PHPSESSID",
        )
    },
}


@pytest.mark.parametrize(
    ("urls", "found"),
    [
        *((url, "") for url in HARMLESS),
        *((url, "a password") for url in PASSWORDS),
        *((url, "a user name") for url in USERS),
        *((url, f"the parameter {name}") for url, name in SECRETS.items()),
    ],
)
def test_credentials_in_urls_are_found_and_said(urls, found):
    assert find_credentials(urls) == found
    assert find_credentials({"pages": [{"url": urls}]}) == found


URL = "https://me:hush@host/a.mp4"


def test_a_long_text_of_links_is_searched_in_little_time():
    text = "a://b:c" * 500_000

    assert find_credentials(text) == ""


@pytest.mark.parametrize("url", ["https://me:hush@host/a.mp4", "s3://b/a.mp4?sig=hush"])
def test_a_setting_with_credentials_is_refused_without_repeating_it(url, tmp_path):
    with one_line("corpora.a.data: this URL contains ") as setting:
        refuse_credentials("corpora.a.data", url)
    with one_line() as path:
        resolve(tmp_path, url)

    assert "hush" not in f"{setting.value} {path.value}"


@pytest.mark.parametrize(
    "column",
    [
        {"path": URL},
        {"id": URL},
        {"page": URL},
        {"urls": ["https://h/a.mp4", URL]},
        {"of": {"page": [{"url": URL}]}},
    ],
)
def test_a_row_with_credentials_is_refused_unless_they_are_in_a_text(column, tmp_path):
    rows = [
        {"path": "a.mp4", "caption": f"{URL} stays"},
        {"path": "b.mp4", "caption": "a"} | column,
    ]
    manifest = write_lines(tmp_path / "m.jsonl", rows)

    with one_line(f"line 2: {next(iter(column))}") as row:
        list(scan_source(manifest)[1])

    assert "hush" not in str(row.value)


@pytest.mark.parametrize(
    "message",
    [
        "401: no Basic bmV0dXNlcjpodXNoIQ==",
        "Bearer hush. is not valid",
        "see https://me:hush@host/a.mp4 or s3://b/a.mp4?x=1&sig=a,hush",
        "user=me password: hush",
    ],
)
def test_messages_of_other_programs_lose_the_credentials_that_they_repeat(message):
    shown = redact(message)

    assert "***" in shown
    assert "hush" not in shown
    assert "bmV0" not in shown


def test_a_message_without_credentials_stays():
    message = "No such file: https://host/videos/internationalization.mp4?id=7"

    assert redact(message) == message


# The public face of the package.


def test_the_package_has_its_version_and_no_other_names():
    assert alpro.__version__ == version("alpro-pipeline")
    with pytest.raises(AttributeError, match="modle"):
        _ = alpro.modle


@pytest.mark.parametrize("name", ["Index", "Model", "Searcher"])
def test_what_the_public_classes_do_not_document_begins_with_an_underscore(name):
    public = [
        item
        for item in vars(getattr(alpro, name)).items()
        if not item[0].startswith("_")
    ]

    assert [key for key, value in public if not value.__doc__] == []
