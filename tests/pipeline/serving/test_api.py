"""The API of `alpro serve`: its answers are those of Python, and what it refuses."""

import base64
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from alpro import Model
from alpro.errors import InputError
from alpro.files import write_json
from alpro.inference.index import Index
from alpro.inference.index_videos import add_videos, remove_videos, settings
from alpro.inference.search import list_clips, search, similar
from alpro.pipeline.cli.options import ModelOptions as Options
from alpro.pipeline.cli.serve import load_models, token_of
from alpro.pipeline.serving.app import application
from alpro.pipeline.serving.guard import guarded
from alpro.pipeline.serving.models import ServedModels
from tests.pipeline.conftest import PROMPTER, QA, RETRIEVAL

TEXT = "a red ball moves left"
SHOT = {"text": TEXT}


def numbers(answer):
    assert answer.status_code == 200, answer.text
    return [hit["clip"] for hit in answer.json()["hits"]]


def test_a_search_has_the_hits_of_python_in_pages_and_the_options_of_the_server(client, models):
    expected = search(models.index, models.search, TEXT, 10).json()
    assert client.get("/api/search", params=SHOT).json() == expected
    pages = [client.get("/api/search", params=SHOT | {"k": 3, "offset": at}) for at in (0, 3, 6)]
    assert [n for page in pages for n in numbers(page)][:10] == [
        hit["clip"] for hit in expected["hits"]
    ][:9]
    reranked = client.get("/api/search", params=SHOT | {"rerank": 3}).json()
    assert reranked == search(models.index, models.search, TEXT, 10, rerank=3).json()
    assert reranked["matched"] == 3
    assert (
        client.get("/api/search", params={"k": 7}).json() == list_clips(models.index, 7).json()
    )  # the gallery
    assert (
        client.get(
            "/api/search", params={"filter": ["day>=2024-02-01", "kind=video"], "k": 9}
        ).json()["clips"]
        == 2
    )
    assert numbers(client.get("/api/search", params=SHOT | {"filter": "path~*.png"})) == [4]
    client = TestClient(application(models, rerank=2, nothing_below=0.999))
    found = client.get("/api/search", params=SHOT).json()
    assert (found["matched"], found["nothing_fits"]) == (2, True)
    assert client.get("/api/search", params=SHOT | {"rerank": 0}).json()["matched"] == 0
    foreign = client.get(
        "/api/search", params={"text": "a politician gives a speech in parliament"}
    ).json()
    assert {"politician", "parliament"} <= set(re.findall(r"\w+", foreign["note"]))


def test_clips_and_uploads_have_similar_clips(client, models, videos):
    found = client.post("/api/search", params={"k": 5}, content=videos[2].read_bytes()).json()[
        "hits"
    ]
    expected = similar(models.index, models.search.encode(videos[2]), 5).json()["hits"]
    assert [hit["clip"] for hit in found] == [hit["clip"] for hit in expected]
    similarities = [hit["similarity"] for hit in expected]
    assert [hit["similarity"] for hit in found] == pytest.approx(similarities, abs=1e-5)
    by_number = numbers(client.get("/api/search", params={"clip": 4, "k": 5}))
    assert by_number == [
        hit.number for hit in similar(models.index, models.index.embeddings[4], 5, without=4).hits
    ]


def test_questions_and_entities_of_clips_and_uploads(models, pretrained, videos):
    """A pre-trained model also reads the caption."""
    own = Model.load(pretrained, device="cpu")
    both = {
        "": TestClient(application(models)),
        "a ball": TestClient(application(replace(models, entities=own))),
    }
    client = both["a ball"]
    assert "text" in client.get("/api/health").json()["offers"]

    def words(ranked):
        return [{"text": text, "probability": pytest.approx(p, abs=1e-6)} for text, p in ranked]

    box = (0.5, 0.0, 0.5, 1.0)
    region = {"box": "0.5,0,0.5,1", "k": 3}
    question = {"question": "what moves?", "k": 2}
    for number, file in ((1, videos[1]), (4, videos[0].parent / "red.png")):
        answers = {
            "answers": words(models.ask.ask(file, "what moves?", 2)),
            "note": models.ask.note("what moves?"),
        }
        assert client.get("/api/ask", params=question | {"clip": number}).json() == answers
        assert client.post("/api/ask", params=question, content=file.read_bytes()).json() == answers
        for (text, naming), model in zip(both.items(), (models.entities, own), strict=True):
            named = {
                "entities": words(model.entities(file, box, 3, text=text)),
                "note": model.entities_note,
            }
            params = region | {"text": text}
            assert naming.get("/api/entities", params=params | {"clip": number}).json() == named
            assert (
                naming.post("/api/entities", params=params, content=file.read_bytes()).json()
                == named
            )
    assert (
        "parliament"
        in client.get("/api/ask", params={"clip": 1, "question": "what parliament?"}).json()["note"]
    )
    part = client.get("/api/ask", params=question | {"clip": 3}).json()
    assert part != client.get("/api/ask", params=question | {"clip": 0}).json()


# The bytes that a Range header asks for; None: it is ignored, and the whole file is sent.
RANGES = {
    "bytes=10-19": (10, 20),
    "bytes=-7": (-7, None),
    "BYTES=5-": (5, None),
    "bytes= 3-5, 4-9": (3, 10),
    f"bytes=0-{'9' * 30}": (0, None),
    "items=0-9": None,
    "bytes=a-9": None,
    "bytes=+1-2": None,
    "bytes=1_0-2_0": None,
    "bytes": None,
    "bytes=,": None,
    f"bytes={'9' * 5000}-": None,
}


@pytest.mark.parametrize("header", RANGES)
def test_a_range_is_the_bytes_that_it_asks_for_or_is_ignored(header, client, videos):
    whole = videos[1].read_bytes()
    expected = RANGES[header]
    part = client.get("/api/clip/1", headers={"Range": header})
    start, end = expected or (0, None)
    assert (part.status_code, part.content) == (206 if expected else 200, whole[start:end])


def test_a_range_beyond_the_end_is_refused_and_one_of_another_version_is_ignored(client, videos):
    size = videos[1].stat().st_size
    refused = client.get("/api/clip/1", headers={"Range": f"bytes={size}-"})
    assert (refused.status_code, refused.headers["content-range"]) == (416, f"bytes */{size}")
    changed = client.get("/api/clip/1", headers={"Range": "bytes=0-9", "If-Range": '"other"'})
    assert (changed.status_code, len(changed.content)) == (200, size)


def test_every_address_has_a_head(client, videos):
    for address in ("/", "/page.js", "/api/health", "/api/search?k=1", "/api/clip/1"):
        head = client.head(address)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == client.get(address).headers["content-length"]
    assert client.head("/api/clip/99").status_code == 404
    part = client.head("/api/clip/1", headers={"Range": "bytes=0-9"})
    assert (part.status_code, part.headers["content-length"]) == (206, "10")


def test_files_are_played_in_ranges_and_stay_private(client, models, videos):
    whole = client.get("/api/clip/1")
    assert (whole.content, whole.headers["content-type"]) == (videos[1].read_bytes(), "video/mp4")
    part = client.get("/api/clip/1", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    last = len(models.index) - 1  # a sample of the corpus
    for clip in (0, 3, 4, last):
        for view in ("still", "moving"):
            picture = client.get(f"/api/clip/{clip}", params={"view": view})
            assert (picture.status_code, picture.content[8:12]) == (200, b"WEBP")
            assert (b"ANMF" in picture.content) is (view == "moving" and clip != 4)
            assert picture.headers["cache-control"].startswith("private")
    assert whole.headers["cache-control"].startswith("private")
    assert [client.get(f"/api/clip/{clip}").status_code for clip in (4, last, last + 1, -1)] == [
        404,
        404,
        404,
        422,
    ]


def test_what_the_server_does_is_known_without_a_model_and_what_it_has_no_model_for_is_refused(
    client, app, models
):
    health = client.get("/api/health").json()
    assert health["model"].startswith("finetune_retrieval ")
    assert "duration" in health["columns"]
    assert client.get("/redoc").status_code == client.get("/docs").status_code == 404
    assert (health["status"], health["clips"]) == ("ok", len(models.index))
    assert health["offers"] == ["search", "ask", "entities"]
    captions = set(models.index.items["caption"].to_pylist())
    assert len(set(health["examples"]) & captions) == 3
    routes = set(app.openapi()["paths"])
    assert routes == {
        f"/api/{name}" for name in ("search", "ask", "entities", "clip/{clip}", "health")
    }
    client = TestClient(application(ServedModels(ask=models.ask)))
    assert client.get("/api/health").json()["offers"] == ["ask"]
    paths = ("search?text=a", "ask?clip=0&question=a", "entities?clip=0", "clip/0")
    assert [client.get(f"/api/{path}").status_code for path in paths] == [404] * 4


def test_what_is_offered_follows_from_the_models(models, trained, pretrained, monkeypatch):
    """Whatever a model can do it does, and it is loaded once."""
    options = Options(device="cpu", workspace=trained)
    loaded = []
    load = Model.load
    monkeypatch.setattr(Model, "load", lambda *a, **more: loaded.append(a) or load(*a, **more))
    for index, own, ask, entities, expected in (
        (models.index.folder, RETRIEVAL, "", "", (True, False, "")),
        (models.index.folder, "", QA, PROMPTER, (True, True, "prompter")),
        (None, "", QA, str(pretrained), (False, True, "pretrain")),
        (None, "", "", PROMPTER, (False, False, "prompter")),
        (None, "", "", "", None),
        (None, RETRIEVAL, QA, "", None),
        (None, "", PROMPTER, "", None),
        (None, "", "", QA, None),
    ):
        loaded.clear()
        with pytest.raises(InputError) if expected is None else nullcontext():
            found = load_models(index, own, ask, entities, options)
            naming = found.entities.folder.task if found.entities else ""
            assert (bool(found.search), bool(found.ask), naming) == expected
        assert len(loaded) == len(set(loaded))


REFUSED = {
    400: [
        "search?text=+",
        "search?text=a&filter==x",
        "search?text=a&filter=color=red",
        "search?text=a&clip=1",
    ],
    404: ["search?clip=999999999999999999999999", "clip/..%2f..%2fetc%2fpasswd", "other"],
    422: [f"search?text=a&k={k}" for k in ("0", "101", "1e999", "NaN", "-1", "")],
    200: [
        "search?text=%ed%a0%80",
        "search?text=%00%ff",
        "search?text=a&filter=kind=%ed%a0%80",
        "search?text=a&k=100",
    ],
}

REFUSED[400] += ["ask?question=a", "ask?question=&clip=1"]

REFUSED[400] += [f"entities?clip=1&box={box}" for box in ("1,2,3,4", "nan,0,1,1", "%ff")]

REFUSED[422] += [
    "search?text=a&offset=99999999999999999999",
    "search?text=a&limit=3",
    "search?id=red",
]

REFUSED[422] += ["search?text=" + "a" * 501, "clip/1?view=all", "clip/1e999"]

REFUSED[200] += ["search?text=a&filter=start>1e999", "search?text=" + "a" * 500]


def test_a_wrong_request_is_refused_and_no_request_is_an_error(client):
    for path, status in ((path, status) for status, paths in REFUSED.items() for path in paths):
        assert client.get(f"/api/{path}").status_code == status, path
    for path in ("search", "ask?question=a", "entities"):
        for body in (
            b"no video",
            b'{"text": "a", "k": 1e999}',
            b'"\\ud800"',
            b"\x89PNG",
            b"\xff\xd8\xff",
        ):
            answer = client.post(
                f"/api/{path}", content=body, headers={"Content-Type": "application/json"}
            )
            assert (answer.status_code, "cannot be decoded" in answer.json()["detail"]) == (
                400,
                True,
            )


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:7860"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-site"}, 403),  # another port or subdomain
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://127.0.0.1:8000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "\xe9"}, 403),
        ({"Host": "evil.example"}, 400),  # a name that resolves to this machine
        ({"Host": "localhost:7860"}, 200),
        ({"Authorization": "Basic \xe9"}, 200),
    ],
)
def test_pages_of_other_sites_do_not_reach_the_api(client, headers, status):
    raw = [(name, value.encode("latin-1")) for name, value in headers.items()]
    answer = client.get("/api/health", headers=raw)
    assert answer.status_code == status
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert ("default-src 'self'" in answer.headers.get("content-security-policy", "")) == (
        status != 400
    )
    assert client.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200  # a link


def test_a_token_is_required_everywhere(app):
    token = "0123456789abcdef"
    basic = [b"Basic " + base64.b64encode(b"me:" + password.encode()) for password in (token, "x")]
    wrong = [
        b"",
        b"Bearer ",
        f"Bearer {token}x".encode(),
        b"Bearer \xe9",
        basic[1],
        b"Basic !",
        b"Basic \xe9",
    ]
    client = TestClient(guarded(app, "0.0.0.0", token), base_url="http://videos.example:7860")
    for path in ("/", "/page.js", "/api/health", "/api/clip/0", "/api/openapi.json", "/none"):
        for value in wrong:
            answer = client.get(path, headers=[("Authorization", value)])
            assert (answer.status_code, answer.headers["www-authenticate"][:5]) == (401, "Basic")
        for value in (f"Bearer {token}".encode(), f"bearer {token}".encode(), basic[0]):
            assert client.get(path, headers=[("Authorization", value)]).status_code == (
                404 if path == "/none" else 200
            )


def test_other_machines_need_a_token(tmp_path, monkeypatch):
    for host, content, variable, expected in (
        ("127.0.0.1", None, "", ""),
        ("127.0.0.1", None, "v" * 16, "v" * 16),
        ("0.0.0.0", b"f" * 16 + b"\nsecond line", "v" * 16, "f" * 16),
        ("192.0.2.1", None, "", None),
        ("0.0.0.0", None, "short", None),
        ("127.0.0.1", b"", "v" * 16, None),
        ("127.0.0.1", b"\xff", "v" * 16, None),
    ):
        monkeypatch.setenv("ALPRO_TOKEN", variable)
        (tmp_path / "token").write_bytes(content or b"")
        with pytest.raises(InputError, match=r"(?i)token") if expected is None else nullcontext():
            assert token_of(host, None if content is None else tmp_path / "token") == expected
    with pytest.raises(InputError, match=r"(?i)token"):
        token_of("127.0.0.1", tmp_path / "none")


def test_a_changed_index_is_noticed(models, videos, tmp_path):
    """And a clip of a page from before is not another one; a removed index is served on."""
    index = shutil.copytree(models.index.folder, tmp_path / "index")
    served = ServedModels(Index.open(index), models.search)
    client = TestClient(application(served))
    before = client.get("/api/search").json()["hits"]
    remove_videos(index, [str(videos[0])])
    after = client.get("/api/search").json()
    assert after["total"] == len(models.index) - 2
    assert client.get("/api/health").json()["clips"] == after["total"]
    old = before[0]
    new = after["hits"][0]
    assert (old["clip"], old["path"] == new["path"]) == (new["clip"], False)
    for path in ("search?k=3&", "clip/0?view=still&", "clip/0?"):
        path = path.replace("search?", "search?clip=0&")
        assert client.get(f"/api/{path}key={old['key']}").status_code == 404
        assert client.get(f"/api/{path}key={new['key']}").status_code == 200

    shutil.rmtree(index)
    assert client.get("/api/search").json()["total"] == after["total"]
    index.mkdir()
    write_json(index / "index.json", served.index.about.model_dump() | {"digest": "other"})
    assert client.get("/api/search", params=SHOT).status_code == 200


def test_a_file_that_took_the_place_of_a_clip_is_not_sent(models, videos, tmp_path):
    """Neither as a link nor as a copy, played or as a picture; a missing one says so."""
    folder = tmp_path / "videos"
    folder.mkdir()
    clip = Path(shutil.copy(videos[0], folder / "a.mp4"))
    secret = Path(shutil.copy(videos[1], tmp_path / "secret.mp4"))
    about = settings(tmp_path / "index", Path(models.index.about.model))
    add_videos(tmp_path / "index", models.search, about, folder)
    client = TestClient(
        application(ServedModels(Index.open(tmp_path / "index"), models.search, models.ask))
    )
    addresses = [f"/api/clip/0?view={view}" for view in ("file", "still", "moving")]
    addresses.append("/api/ask?clip=0&question=what")
    assert {client.get(address).status_code for address in addresses} == {200}
    clip.unlink()
    for replace_clip, reason in (
        (lambda: clip.symlink_to(secret), "changed"),
        (lambda: shutil.copy(secret, clip), "changed"),
        (lambda: None, "missing"),
    ):
        replace_clip()
        for address in addresses:
            answer = client.get(address)
            assert (answer.status_code, reason in answer.json()["detail"]) == (404, True)
        clip.unlink(missing_ok=True)
