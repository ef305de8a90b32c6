"""A small stand-in for the Hugging Face Hub that its real client talks to: repositories, branches, commits."""

import base64
import hashlib
import json
import os
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test"


class Hub:
    """Repositories by name: branches and tags to commits, commits to files."""

    def __init__(self):
        self.repositories, self.objects, self.asked = {}, {}, []

    def create(self, name):
        self.repositories[name] = {"refs": {"main": "0" * 40}, "commits": {"0" * 40: {}}}

    def commit(self, name, branch, files, removed=()):
        """Put files into a branch; returns the commit."""
        held = self.repositories[name]
        content = {**held["commits"][held["refs"][branch]], **files}
        for path in removed:
            content.pop(path)
        told = "".join(f"{path}{hashlib.sha1(data).hexdigest()}" for path, data in sorted(content.items()))
        commit = hashlib.sha1(f"{held['refs'][branch]}{told}".encode()).hexdigest()
        held["commits"][commit] = content
        held["refs"][branch] = commit
        return commit

    def add(self, name, folder):
        """Serve a folder as a repository."""
        self.create(name)
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in Path(folder).rglob("*")
            if path.is_file()
        }
        return self.commit(name, "main", files)

    def found(self, name, revision):
        """Commit and files of a revision; None where there is none."""
        held = self.repositories[name]
        commit = held["refs"].get(revision, revision)
        return (commit, held["commits"][commit]) if commit in held["commits"] else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Quiet."""

    def answer(self, status, body=b"", **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_GET(self):
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        hub.asked.append(path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)(/.+)?", path):
            found = self.look(match[1], match[3])
            if found and match[4]:
                self.answer(404, {"error": "no such folder"}, X_Error_Code="EntryNotFound")
            elif found and match[2] == "revision":
                names = [{"rfilename": name} for name in found[1]]
                self.answer(200, {"id": match[1], "sha": found[0], "siblings": names, "private": False})
            elif found:
                self.answer(200, [entry(name, data) for name, data in found[1].items()])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
            if found := self.look(match[1], "main"):
                self.answer(200, {"id": match[1], "sha": found[0], "siblings": []})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            found = self.look(match[1], match[2])
            if found and match[3] in found[1]:
                data = found[1][match[3]]
                etag = f'"{hashlib.sha256(data).hexdigest()}"'
                self.answer(200, data, ETag=etag, X_Repo_Commit=found[0])
            elif found:
                self.answer(
                    404, {"error": "no such file"}, X_Error_Code="EntryNotFound", X_Repo_Commit=found[0]
                )
        else:
            self.answer(404, {"error": f"unknown: {path}"})

    do_HEAD = do_GET

    def look(self, name, revision):
        """What a revision holds; answers 404 by itself where there is none."""
        if name not in self.server.hub.repositories:
            self.answer(404, {"error": "no such repository"}, X_Error_Code="RepoNotFound")
        elif (found := self.server.hub.found(name, revision)) is not None:
            return found
        else:
            self.answer(404, {"error": "no such revision"}, X_Error_Code="RevisionNotFound")
        return None

    def do_PUT(self):
        data = self.read_chunks() if "Content-Length" not in self.headers else self.body()
        self.server.hub.objects[self.path.rpartition("/")[2]] = data
        self.answer(200)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def read_chunks(self):
        """A body of unknown length: each chunk behind a line with its size in hex, the last one empty."""
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def do_POST(self):
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        hub.asked.append(path)
        body = self.body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "no token"})
        elif path == "/api/validate-yaml":
            self.answer(200, {"warnings": [], "errors": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            status = 409 if name in hub.repositories else 200
            if status == 200:
                hub.create(name)
            self.answer(status, {"url": f"{self.server.url}/{name}", "error": "exists"})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            refs = hub.repositories[match[1]]["refs"]
            status = 409 if match[2] in refs else 200
            refs.setdefault(match[2], refs["main"])
            self.answer(status, {"error": "exists"})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            self.answer(200, {"files": [mode_of(file["path"]) for file in json.loads(body)["files"]]})
        elif re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            wanted = [
                {**each, "actions": {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": wanted})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            files = {}
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    files[line["value"]["path"]] = hub.objects[line["value"]["oid"]]
            commit = hub.commit(match[1], match[2], files)
            url = f"{self.server.url}/{match[1]}/commit/{commit}"
            self.answer(200, {"commitUrl": url, "commitOid": commit})
        else:
            self.answer(404, {"error": f"unknown: {path}"})


def mode_of(path):
    mode = "lfs" if path.endswith((".safetensors", ".pt2", ".webp")) else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False}


def entry(name, data):
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


@contextmanager
def a_hub(cache):
    """Serve a hub.

    Args:
        cache: folder for the client's cache.

    Yields:
        the hub, and the environment of a process whose client is to talk to it.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub, server.url = Hub(), f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment = kept | {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(cache),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",  # the stand-in speaks the older protocol, which the client falls back to
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    try:
        yield server.hub, environment
    finally:
        server.shutdown()
        server.server_close()
