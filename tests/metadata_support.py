"""A stand-in for EC2's instance metadata service, its second version: a token first, then a spot notice or none."""

import json
import sys
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "a-token"


class Metadata(BaseHTTPRequestHandler):
    """Answers as https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html says."""

    def do_PUT(self):
        given = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer(200 if given else 400, TOKEN)

    def do_GET(self):
        if self.headers["X-aws-ec2-metadata-token"] != TOKEN:
            self._answer(401, "")
        elif self.path == "/latest/meta-data/local-ipv4":
            self._answer(200, self.server.address)
        elif self.path == "/latest/meta-data/spot/instance-action" and self.server.notice is not None:
            self._answer(200, self.server.notice)
        else:
            self._answer(404, "")

    def _answer(self, code, text):
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *words):
        pass


def service(port=0, notice=None, address="127.0.0.1"):
    """A server that waits to be served; `notice` is what it says of this node's end, None for nothing."""
    server = ThreadingHTTPServer(("127.0.0.1", port), Metadata)
    server.notice, server.address = notice, address
    return server


def notice_in(seconds):
    """EC2's words for an end in so many seconds."""
    end = datetime.now(UTC) + timedelta(seconds=seconds)
    return json.dumps({"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")})


if __name__ == "__main__":  # python tests/metadata_support.py PORT SECONDS ADDRESS: a notice at once
    service(int(sys.argv[1]), notice_in(float(sys.argv[2])), sys.argv[3]).serve_forever()
