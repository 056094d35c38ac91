"""The API of `alpro serve`: its answers are those of Python, and what it refuses."""

import base64
import json
import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient

from alpro.errors import InputError
from alpro.inference.index import Index
from alpro.inference.index_videos import remove_videos
from alpro.inference.search import Searcher
from alpro.pipeline.cli.options import ModelOptions as Options
from alpro.pipeline.cli.serve import load_models, open_port, read_token
from alpro.pipeline.serving.app import application
from alpro.pipeline.serving.guard import guarded, serve
from alpro.pipeline.serving.models import ServedModels
from alpro.shards.storage import identities
from tests.pipeline.conftest import PROMPTER, QA, RETRIEVAL

TEXT = "a red ball moves left"


def get(client, path, **params):
    answer = client.get(f"/api/{path}", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def clip_keys(answer):
    return [hit["key"] for hit in answer["hits"]]


def as_json(result):
    return json.loads(json.dumps(result.json()))


def test_a_search_has_the_hits_of_python(client, models):
    assert get(client, "search", text=TEXT) == as_json(models.search.search(TEXT, 10))
    assert get(client, "search", k=7) == as_json(models.search.all(7))


def test_a_condition_chooses_clips(client, keys):
    found = get(client, "search", where="day >= '2024-02-01' AND kind = 'video'")
    assert (clip_keys(found), found["clips"]) == (keys[1:3], 2)


def test_as_many_clips_are_matched_as_the_request_says(client, models):
    expected = models.search.search(TEXT, 10, rerank=2)
    assert get(client, "search", text=TEXT, rerank=2) == as_json(expected)
    assert [hit.match is None for hit in expected][:3] == [False, False, True]


def test_an_upload_has_similar_clips(client, models, videos):
    answer = client.post(
        "/api/search", params={"k": 5}, content=videos[2].read_bytes()
    ).json()

    assert answer == as_json(models.search.similar(videos[2], 5))


def test_a_clip_has_similar_clips(client, models, keys):
    embedding = models.search.index.embedding(keys[4])
    expected = models.search.similar(embedding, without=keys[4])
    answer = client.post("/api/search", params={"clip": keys[4]})  # no file
    assert answer.json() == as_json(expected)


def words(ranked):
    return [
        {"text": text, "probability": pytest.approx(p, abs=1e-6)} for text, p in ranked
    ]


@pytest.mark.parametrize("number", [1, 4])
def test_questions_and_entities_of_clips_and_uploads(number, client, models, keys):
    file = Path(models.item(keys[number])["path"])

    def ask(path, query):
        """Return the answer about the clip, which is that about its file."""
        answer = get(client, path, **query, clip=keys[number])
        upload = client.post(f"/api/{path}", params=query, content=file.read_bytes())
        assert upload.json() == answer
        return answer

    answered = ask("ask", {"question": "what moves?", "k": 2})
    assert answered["answers"] == words(models.ask.ask(file, "what moves?", 2))
    named = ask("entities", {"box": "0.5,0,0.5,1", "k": 3})
    entities = models.entities.entities(file, (0.5, 0.0, 0.5, 1.0), 3)
    assert named["entities"] == words(entities)
    assert named["note"].endswith("always named")


def test_files_are_played_in_ranges_and_stay_private(client, videos, keys):
    whole = client.get(f"/api/clip/{keys[1]}")
    assert (whole.content, whole.headers["content-type"]) == (
        videos[1].read_bytes(),
        "video/mp4",
    )
    assert whole.headers["cache-control"].startswith("private")
    assert client.head(f"/api/clip/{keys[1]}").headers == whole.headers
    part = client.get(f"/api/clip/{keys[1]}", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    for key in (keys[4], keys[-1]):  # an image, a member
        assert client.get(f"/api/clip/{key}").status_code == 404


def test_every_clip_has_pictures(client, keys):
    for key in (keys[0], keys[3], keys[4], keys[-1]):
        for view in ("still", "moving"):
            picture = client.get(f"/api/clip/{key}", params={"view": view})
            assert picture.content[8:12] == b"WEBP"
            assert (b"ANMF" in picture.content) is (view == "moving" and key != keys[4])
            assert picture.headers["cache-control"].startswith("private")


def test_what_the_server_does_is_known_without_a_model(client, models):
    health = get(client, "health")
    assert {"duration", "day"} <= {*health["columns"]}
    assert health["clips"] == len(models.search.index)
    assert health["offers"] == ["search", "ask", "entities"]
    assert client.head("/api/health").status_code == 200


@pytest.mark.parametrize(
    ("own", "ask", "entities", "offered"),
    [
        (RETRIEVAL, "", "", ["search"]),
        ("", QA, PROMPTER, ["search", "ask", "entities"]),
        (None, QA, "", ["ask"]),
    ],
)
def test_what_is_offered_follows_from_the_models(
    own, ask, entities, offered, models, trained
):
    """own: name of the model of an index; None without an index."""
    index = "" if own is None else models.search.index.place
    options = Options(device="cpu", workspace=trained)

    served = load_models(index, own or "", ask, entities, options)

    client = TestClient(application(served))
    assert get(client, "health")["offers"] == offered
    questions = {"entities": "entities?clip=0", "search": "clip/0"}
    for name in questions.keys() - offered:
        assert client.get(f"/api/{questions[name]}").status_code == 404


@pytest.mark.parametrize(("ask", "entities"), [(PROMPTER, ""), ("", QA)])
def test_models_that_can_do_nothing_that_is_asked_are_refused(ask, entities, trained):
    with pytest.raises(InputError):
        load_models("", "", ask, entities, Options(device="cpu", workspace=trained))


REFUSED = {
    400: [
        "search?text=+",
        "search?text=a&clip=1",
        "search?where=kind=%ed%a0%80",
        "search?where=color='red'",
        "ask?question=a",
        "ask?question=&clip=KEY",
        "entities?clip=KEY&box=nan,0,1,1",
    ],
    404: ["search?clip=none", "clip/..%2f..%2fetc%2fpasswd", "clip/' OR 1=1 --"],
    422: [
        "search?k=0",
        "search?k=1e999",
        "search?offset=99999999999999999999",
        "search?limit=3",
        "search?text=" + "a" * 501,
        "clip/KEY?view=all",
    ],
    200: ["search?text=%ed%a0%80", "search?text=%00%ff", "search?where=start>1e999"],
}


@pytest.mark.parametrize(
    ("path", "status"),
    [(path, status) for status, paths in REFUSED.items() for path in paths],
)
def test_a_wrong_request_is_refused(path, status, client, keys):
    answer = client.get(f"/api/{path.replace('KEY', keys[1])}")
    assert answer.status_code == status
    # No folder of the server, such as that of the index.
    assert status == 200 or "/" not in answer.text.replace("//", "")


@pytest.mark.parametrize("path", ["search", "ask?question=a"])
@pytest.mark.parametrize("body", [b"no video", b"\x89PNG", b""])
def test_an_upload_that_is_no_video_is_refused(body, path, client):
    answer = client.post(f"/api/{path}", content=body)

    detail = answer.json()["detail"]
    assert (answer.status_code, "cannot be decoded" in detail) == (400, True)
    assert "/" not in detail  # no path of the server


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:7860"}, 200),
        ({"Sec-Fetch-Site": "same-site"}, 403),  # another port or subdomain
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://127.0.0.1:8000"}, 403),
        ({"Origin": "\xe9"}, 403),
        ({"Host": "evil.example"}, 400),  # a name that resolves to this machine
        ({"Host": "localhost:7860"}, 200),
    ],
)
def test_pages_of_other_sites_do_not_reach_the_api(client, headers, status):
    raw = [(name, value.encode("latin-1")) for name, value in headers.items()]
    answer = client.get("/api/health", headers=raw)
    assert answer.status_code == status
    assert not [name for name in answer.headers if name.startswith("access-control")]
    policy = answer.headers.get("content-security-policy", "")
    assert ("default-src 'self'" in policy) == (status != 400)
    # A link.
    assert client.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


TOKEN = "0123456789abcdef"


def basic(password):
    return b"Basic " + base64.b64encode(f"me:{password}".encode())


AUTHORIZATIONS = {
    b"": 401,
    b"Bearer \xe9": 401,
    f"Bearer {TOKEN}x".encode(): 401,
    basic("x"): 401,
    b"Basic \xe9": 401,
    f"bearer {TOKEN}".encode(): 200,
    basic(TOKEN): 200,
}


@pytest.mark.parametrize("path", ["/", "/api/health", "/api/openapi.json"])
def test_a_token_is_required_everywhere(path, app):
    client = TestClient(guarded(app, TOKEN), base_url="http://videos.example:7860")
    for value, status in AUTHORIZATIONS.items():
        assert (
            client.get(path, headers=[("Authorization", value)]).status_code == status
        )
    assert client.get("/none").headers["www-authenticate"].startswith("Basic")


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("search.example.com", "https://search.example.com", 200),
        ("search.example.com:8443", "https://search.example.com:8443", 200),
        # A proxy that does not pass on Host.
        ("127.0.0.1:7860", "https://search.example.com", 403),
        ("search.example.com", "https://search.example.com.evil.com", 403),
    ],
)
def test_only_requests_of_the_page_of_the_proxy_are_taken(host, origin, status, app):
    client = TestClient(guarded(app, TOKEN))
    headers = {"Host": host, "Origin": origin, "Authorization": f"Bearer {TOKEN}"}
    assert client.get("/api/health", headers=headers).status_code == status


def test_the_token_is_that_of_the_file_or_the_environment(monkeypatch, tmp_path):
    file = tmp_path / "token"
    file.write_text("f" * 16 + "\nsecond line")
    monkeypatch.delenv("ALPRO_TOKEN", raising=False)
    assert read_token("127.0.0.1", None) == ""
    monkeypatch.setenv("ALPRO_TOKEN", "v" * 16 + "\n")
    assert read_token("0.0.0.0", None) == "v" * 16
    assert read_token("0.0.0.0", file) == "f" * 16


@pytest.mark.parametrize(
    ("host", "variable", "file", "source"),
    [
        ("192.0.2.1", None, None, "--host 192.0.2.1: "),
        ("0.0.0.0", "short", None, "ALPRO_TOKEN: "),
        ("127.0.0.1", "", None, "ALPRO_TOKEN: "),
        ("127.0.0.1", "v" * 16, Path(os.devnull), os.devnull),  # an empty file
    ],
)
def test_other_machines_need_a_token(host, variable, file, source, monkeypatch):
    monkeypatch.delenv("ALPRO_TOKEN", raising=False)
    if variable is not None:
        monkeypatch.setenv("ALPRO_TOKEN", variable)
    with pytest.raises(InputError, match=f"{source}.*token"):
        read_token(host, file)


@pytest.mark.skipif(
    not any(file.read_text() for file in Path("/proc/net").glob("if_inet6")),
    reason="no IPv6",
)
def test_the_page_is_at_the_address_that_is_printed(app, monkeypatch, capsys):
    monkeypatch.setattr("uvicorn.Server.run", list)
    with open_port("--port", 0, "::1") as listening:
        serve(app, listening)
    assert urlsplit(capsys.readouterr().out.split()[4]).hostname == "::1"


@pytest.fixture
def copied(models, tmp_path):
    """A copy of the index, which a test changes, and its server."""
    index = Index.open(shutil.copytree(models.search.index.place, tmp_path / "index"))
    searcher = Searcher(index, models.search.model)
    return index, TestClient(application(ServedModels(searcher)))


def test_a_removed_clip_is_not_another_one(copied, videos):
    index, client = copied
    removed = clip_keys(get(client, "search", where=f"path LIKE '%{videos[0].name}'"))[
        0
    ]

    remove_videos(index.place, [str(videos[0])])

    assert removed not in clip_keys(get(client, "search", k=100))
    for path in (f"search?clip={removed}", f"clip/{removed}"):
        assert client.get(f"/api/{path}").status_code == 404


def test_an_index_of_another_model_or_none_is_the_servers_fault(copied):
    index, client = copied
    index.change_settings(digest="other")
    for reason in ("another model", "on the server"):
        for path in ("search", "health"):
            answer = client.get(f"/api/{path}", params={"text": TEXT})
            assert (answer.status_code, reason in answer.text) == (503, True)
            assert index.place not in answer.text
        shutil.rmtree(index.place, ignore_errors=True)


@pytest.mark.parametrize(
    ("replace", "reason"),
    [(os.symlink, "changed"), (shutil.copy, "changed"), (None, "missing")],
)
def test_a_file_that_took_the_place_of_a_clip_is_not_sent(
    replace, reason, models, videos, add, tmp_path
):
    """Neither the file nor what is computed of it."""
    folder = tmp_path / "videos"
    folder.mkdir()
    clip = Path(shutil.copy(videos[0], folder))
    add(tmp_path / "index", folder)
    searcher = Searcher(Index.open(tmp_path / "index"), models.search.model)
    client = TestClient(application(ServedModels(searcher, models.ask)))
    (hit,) = get(client, "search")["hits"]
    key = hit["key"]
    addresses = [f"/api/clip/{key}?view={view}" for view in ("file", "still", "moving")]
    addresses.append(f"/api/ask?clip={key}&question=what")
    for address in addresses:
        assert client.get(address).status_code == 200

    clip.unlink()
    if replace:
        replace(videos[1], clip)

    for address in addresses:
        answer = client.get(address)
        assert answer.status_code == 404
        assert reason in answer.json()["detail"]

    # A picture has it in its address, as browsers keep pictures for an hour.
    assert hit["identity"] != next(identities([clip]))
