"""A hub on this machine: the few endpoints that are asked for a model, with the headers and the faults of the real one.

Large files are redirected to another path, as to a content network, which serves ranges. A file may be hollow: its
first bytes and its length, so that the headers of a model of a hundred gigabytes can be read without having one.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "c0ffee" * 6 + "cafe"
LARGE = (".safetensors", ".bin", ".gguf")


@dataclass(frozen=True)
class HubFile:
    """`start` is what of the content is not zero; a file that is all there has nothing but a start."""

    start: bytes
    size: int
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.start).hexdigest()  # of hollow files, which nobody fetches whole: just a name

    @property
    def git_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % self.size + self.start).hexdigest()

    def read(self, begin: int, end: int) -> bytes:
        return self.start[begin:end] + bytes(max(0, end - max(begin, len(self.start))))


@dataclass
class HubRepository:
    files: dict[str, HubFile]
    gated: bool = False
    private: bool = False


@dataclass
class FakeHub:
    """Repositories by name, faults to be had, and what was asked: `requests` counts "METHOD path"."""

    repositories: dict[str, HubRepository] = field(default_factory=dict)
    requests: Counter = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)
    cut_after_bytes: int | None = None  # the connection breaks there ...
    cuts: int = 0  # ... this many more times
    damaged: bool = False
    truncated_by: int = 0
    serves_ranges: bool = True
    status: int | None = None  # of every answer, instead of the right one
    valid_token: str | None = None
    hold: threading.Event | None = None  # large files stop in the middle until it is set
    held: threading.Event = field(default_factory=threading.Event)

    def add(self, name: str, folder: Path, **settings: bool) -> HubRepository:
        """Serves the files of `folder` as the repository `name`."""
        files = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                large = path.name.endswith(LARGE)
                files[path.relative_to(folder).as_posix()] = HubFile(content, len(content), large)
        self.repositories[name] = HubRepository(files, **settings)
        return self.repositories[name]

    def __enter__(self) -> FakeHub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *who: None  # a client that left in the middle is what is tested
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="fake-hub", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.hold is not None:
            self.hold.set()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def downloads(self, file_name: str) -> int:
        """How often the file itself was asked for."""
        return sum(n for what, n in self.requests.items() if what.startswith("GET") and what.endswith(f"/{file_name}"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *words: object) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.hub, urlsplit(self.path).path
        hub.requests[f"{self.command} {path}"] += 1
        if hub.status is not None:
            return self._send(hub.status, b"{}")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._describe("/".join(parts[2:4]))
        if parts[0] == "network":
            return self._file("/".join(parts[1:3]), "/".join(parts[3:]))
        return self._resolve("/".join(parts[:2]), "/".join(parts[4:]))

    def _authorised(self, repository: HubRepository) -> bool:
        return (
            self.hub.valid_token is not None and self.headers.get("Authorization") == f"Bearer {self.hub.valid_token}"
        )

    def _describe(self, name: str) -> None:
        repository = self._find(name)
        if repository is None:
            return None
        siblings = []
        for file_name, file in repository.files.items():
            one = {"rfilename": file_name, "size": file.size, "blobId": file.git_id}
            if file.large:
                one["lfs"] = {"size": file.size, "sha256": file.sha256, "pointerSize": 134}
            siblings.append(one)
        body = {"id": name, "sha": COMMIT, "siblings": siblings, "gated": "manual" if repository.gated else False}
        return self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, file_name: str) -> None:
        repository = self._find(name)
        if repository is None:
            return None
        if repository.gated and not self._authorised(repository):
            return self._send(401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        file = repository.files.get(file_name)
        if file is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        if file.large:
            facts = {"X-Repo-Commit": COMMIT, "X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.sha256}"'}
            return self._send(302, b"", facts | {"Location": f"/network/{name}/{file_name}"})
        return self._file(name, file_name)

    def _find(self, name: str) -> HubRepository | None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._authorised(repository)):
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})  # as the real one answers the anonymous
            return None
        return repository

    def _file(self, name: str, file_name: str) -> None:
        hub, file = self.hub, self.hub.repositories[name].files[file_name]
        size = file.size - (hub.truncated_by if file.large else 0)
        begin, end, status, facts = 0, size, 200, {"Accept-Ranges": "bytes", "X-Repo-Commit": COMMIT}
        facts["ETag"] = f'"{file.sha256 if file.large else file.git_id}"'
        wanted = self.headers.get("Range")
        if wanted:
            hub.ranges.append(wanted)
        if wanted and hub.serves_ranges:
            first, last = wanted.removeprefix("bytes=").split("-")
            begin, end, status = int(first), min(int(last) + 1 if last else size, size), 206
            if begin >= size:
                return self._send(416, b"", {"Content-Range": f"bytes */{size}"})
            facts["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        body = file.read(begin, end)
        if hub.damaged and file.large and not wanted:
            body = body[:-1] + bytes([body[-1] ^ 1])
        return self._send(status, body, facts, may_break=file.large and (not wanted or wanted.endswith("-")))

    def _send(self, status: int, body: bytes, facts: dict[str, str] | None = None, may_break: bool = False) -> None:
        hub = self.hub
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(facts or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = hub.cut_after_bytes if may_break and hub.cuts > 0 else None
        if cut is not None:
            hub.cuts -= 1
            body = body[:cut]
        try:
            if may_break and hub.hold is not None:
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                hub.held.set()
                hub.hold.wait(30)
                body = body[len(body) // 2 :]
            self.wfile.write(body)
            self.wfile.flush()
        except OSError:  # whoever asked has left
            self.close_connection = True
            return
        if cut is not None:
            self.close_connection = True
