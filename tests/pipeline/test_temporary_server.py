"""The server that a command starts for itself: on a busy machine it fails with one line, and leaves no process."""

import os
import socket
import subprocess
import sys

import pytest

from alpro.errors import InputError
from alpro.pipeline.servers import temporary as temporary_server
from alpro.pipeline.servers.temporary import STARTUP_SECONDS, TEMPORARY, TemporaryServer, start_temporary_server

# Programs in the place of the server. They inherit the socket that listens.
ANSWERS = """
import socket, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Health(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()
    log_message = lambda *_: None
server = HTTPServer(("127.0.0.1", 0), Health, bind_and_activate=False)
server.socket = socket.socket(fileno=int(sys.argv[1]))
server.serve_forever()
"""
IS_SILENT, ENDS = "import sys; sys.stdin.read()", "import sys; sys.exit(3)"


@pytest.fixture
def start(monkeypatch, tmp_path):
    """start(*programs): the server of a command, as these programs, one after the other; the last one repeats."""
    monkeypatch.setattr(os, "environ", {**os.environ, "PREFECT_HOME": str(tmp_path)})
    started = []

    def run(*programs: str) -> TemporaryServer:
        left = list(programs)

        def start_program(self, listening: socket.socket) -> subprocess.Popen:
            number, program = listening.fileno(), left.pop(0) if len(left) > 1 else left[0]
            command = [sys.executable, "-c", program, str(number)]
            return subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[number])

        monkeypatch.setattr(TemporaryServer, "_program", start_program)
        started.append(TemporaryServer())
        return started[-1]

    yield run
    for server in started:
        server.stop()


def test_a_server_is_awaited_and_ended(start):
    server = start(ANSWERS)
    assert os.environ["PREFECT_API_URL"] == f"{os.environ[TEMPORARY]}/api"
    server.wait()
    assert server.process.poll() is None
    server.stop()
    assert server.process.poll() is not None
    assert not {"PREFECT_API_URL", TEMPORARY} & os.environ.keys()


def test_a_server_that_does_not_answer_is_ended(start, monkeypatch):
    monkeypatch.setattr(temporary_server, "answers", lambda url: False)
    os.environ[STARTUP_SECONDS] = "0"
    server = start(IS_SILENT)
    with pytest.raises(InputError, match="did not answer within 0 s: this machine is busy") as caught:
        server.wait()
    assert STARTUP_SECONDS in str(caught.value)
    assert server.process.poll() is not None


def test_a_server_that_ends_is_started_again_at_the_same_address(start):
    """Another command has created the database in the meantime."""
    server = start(ENDS, ANSWERS)
    address = os.environ["PREFECT_API_URL"]
    server.wait()
    assert os.environ["PREFECT_API_URL"] == address
    assert server.process.poll() is None


def test_a_server_that_always_ends_is_one_line(start):
    server = start(ENDS)
    with pytest.raises(InputError) as caught:
        server.wait()
    assert str(caught.value).startswith("Prefect's server ended with status 3; PREFECT_SERVER_LOGGING_LEVEL=ERROR")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["home/profiles.toml", "prefect.toml", ".env", "pyproject.toml"])
def test_a_server_in_any_of_prefects_settings_is_used(file, tmp_path, monkeypatch):
    """A new process, since Prefect reads its settings once."""
    address = "http://server.example.com:4200/api"
    content = {
        "home/profiles.toml": f'active = "team"\n[profiles.team]\nPREFECT_API_URL = "{address}"\n',
        "prefect.toml": f'[api]\nurl = "{address}"\n',
        ".env": f"PREFECT_API_URL={address}\n",
        "pyproject.toml": f'[tool.prefect.api]\nurl = "{address}"\n',
    }[file]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    environment["PREFECT_HOME"] = str(tmp_path / "home")

    def asked() -> str:
        code = "import sys; from alpro.pipeline.servers.temporary import uses_server\n"
        code += "print(uses_server(), 'prefect' in sys.modules)"
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout

    assert asked() == "False False\n"  # without importing Prefect
    (tmp_path / file).write_text(content)
    assert asked() == "True True\n"


@pytest.mark.parametrize(("setting", "said"), [("", True), ("PREFECT_SERVER_DATABASE_CONNECTION_URL", False)])
def test_the_wait_for_a_new_database_is_explained(setting, said, tmp_path, monkeypatch, capsys):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    elsewhere = {setting: "sqlite+aiosqlite:///elsewhere.db"} if setting else {}
    monkeypatch.setattr(os, "environ", {**environment, "PREFECT_HOME": str(tmp_path), **elsewhere})
    monkeypatch.setattr(temporary_server, "TemporaryServer", lambda: None)
    monkeypatch.chdir(tmp_path)
    start_temporary_server()
    assert ("creating Prefect's database" in capsys.readouterr().err) is said
    (tmp_path / "prefect.db").touch()
    start_temporary_server()
    assert capsys.readouterr().err == ""
