"""A folder over HTTP, with requests of ranges, as object stores have them."""

import io
import re
from http.server import SimpleHTTPRequestHandler
from pathlib import Path


class RangeServer(SimpleHTTPRequestHandler):
    """Files of a folder over HTTP, whole or by range, whose connections are kept; `asked` has the
    requests."""

    protocol_version = "HTTP/1.1"

    def send_head(self):
        self.server.asked.append(
            (self.command, self.path, self.headers.get("Range", ""))
        )
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not (wanted and self.server.ranges and path.is_file()):
            return super().send_head()
        first = int(wanted[1])
        last = min(int(wanted[2]), path.stat().st_size - 1)
        data = path.read_bytes()[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{path.stat().st_size}")
        self.end_headers()
        return io.BytesIO(data)

    def log_message(self, *message) -> None:
        pass
