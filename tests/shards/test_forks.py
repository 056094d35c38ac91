"""Loading processes are forks of a process with open connections to a store."""

import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

PROGRAM = """
import gc, os, sys
from alpro.shards.storage import read_bytes

url = sys.argv[1]
assert read_bytes(url) == b"kept"
for _ in range(2):
    child = os.fork()
    if not child:
        gc.collect()  # what the parent had is not garbage here
        assert read_bytes(url) == b"kept"
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert read_bytes(url) == b"kept"
"""


class KeepsConnections(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *message: object) -> None:
        pass


def test_a_fork_does_not_disturb_the_connections_of_its_parent(tmp_path):
    """Without the handler the parent waits without end for its next answer."""
    (tmp_path / "file").write_bytes(b"kept")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(KeepsConnections, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/file"
        status = subprocess.run([sys.executable, "-c", PROGRAM, url], timeout=120).returncode
        server.shutdown()
    assert status == 0
