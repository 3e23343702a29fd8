"""A small Hugging Face hub on loopback: what the real client libraries ask for, and nothing else.

It serves data sets and models from memory, refuses and breaks off on demand, and takes uploads.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    """A repository: its files by revision, of which "main" is one."""

    kind: str  # "dataset" or "model"
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    breaks: set[str] = field(default_factory=set)  # files whose download breaks off half-way

    def sha(self, revision: str) -> str:
        named = {self.commit(name): name for name in self.revisions}
        return self.commit(named.get(revision, revision))

    def files(self, revision: str) -> dict[str, bytes] | None:
        named = {self.commit(name): name for name in self.revisions}
        return self.revisions.get(named.get(revision, revision))

    @staticmethod
    def commit(revision: str) -> str:
        return hashlib.sha1(revision.encode()).hexdigest()


class FakeHub(ThreadingHTTPServer):
    """``with FakeHub() as hub: hub.repos["owner/name"] = Repo(…)``; ``hub.url`` is its HF_ENDPOINT."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.uploaded: dict[str, bytes] = {}  # "owner/name/path" -> contents
        self.objects: dict[str, bytes] = {}  # large files by their sha256
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._route("GET")

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def log_message(self, *args: object) -> None:
        pass

    def _route(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{method} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for pattern, answer in _ROUTES:
            if found := re.fullmatch(pattern, f"{method} {path}"):
                return answer(self, body, **found.groupdict())
        return self._error(404, "EntryNotFound", f"the fake hub knows no {method} {path}")

    def _repo(self, kind: str, name: str) -> Repo | None:
        repo = self.server.repos.get(name)
        if repo is None or repo.kind != kind:
            self._error(401 if repo is None else 404, "RepoNotFound", "Repository not found")
            return None
        return repo

    def _info(self, body: bytes, kind: str, name: str, revision: str | None = None) -> None:
        kind = kind.removesuffix("s")
        if repo := self._repo(kind, name):
            files = repo.files(revision or "main")
            if files is None:
                return self._error(404, "RevisionNotFound", f"no revision {revision}")
            siblings = [{"rfilename": path, "size": len(data)} for path, data in files.items()]
            self._json({
                "id": name, "sha": repo.sha(revision or "main"), "siblings": siblings, "private": False,
                "gated": False, "tags": [], "downloads": 0, "lastModified": "2026-01-01T00:00:00.000Z",
            })  # fmt: skip

    def _tree(self, body: bytes, kind: str, name: str, revision: str, path: str | None) -> None:
        if repo := self._repo(kind.removesuffix("s"), name):
            files = repo.files(revision) or {}
            inside = (path or "").strip("/")
            found = [self._entry(p, d) for p, d in files.items() if not inside or p.startswith(f"{inside}/")]
            self._json(found) if found else self._error(404, "EntryNotFound", f"no {path}")

    def _paths_info(self, body: bytes, kind: str, name: str, revision: str) -> None:
        if repo := self._repo(kind.removesuffix("s"), name):
            files = repo.files(revision) or {}
            wanted = (
                json.loads(body)["paths"] if body[:1] == b"{" else re.findall(r"paths=([^&]+)", body.decode())
            )
            self._json([self._entry(p, files[p]) for p in map(unquote, wanted) if p in files])

    @staticmethod
    def _entry(path: str, data: bytes) -> dict[str, object]:
        return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def _resolve(self, body: bytes, name: str, revision: str, path: str, kind: str | None = None) -> None:
        repo = self._repo("dataset" if kind else "model", name)
        if repo is None:
            return
        if repo.gated:  # what it is may be seen, what is in it may not
            return self._error(401, "GatedRepo", f"Access to {name} is restricted to those who asked.")
        data = (repo.files(revision) or {}).get(path)
        if data is None:
            missing = "RevisionNotFound" if repo.files(revision) is None else "EntryNotFound"
            return self._error(404, missing, f"no {path}")
        cut = path in repo.breaks and self.command == "GET"
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", repo.sha(revision))
        self.send_header("Accept-Ranges", "none")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True

    def _create(self, body: bytes) -> None:
        if self.headers.get("Authorization") != "Bearer hf_good":
            return self._error(401, "", "Invalid username or password.")
        asked = json.loads(body)
        owner = asked.get("organization") or "owner"
        self._json({"url": f"{self.server.url}/{owner}/{asked['name']}"})

    def _whoami(self, body: bytes) -> None:
        if self.headers.get("Authorization") != "Bearer hf_good":
            return self._error(401, "", "Invalid credentials")
        self._json({"name": "owner", "type": "user", "auth": {}, "orgs": []})

    def _validate(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def _preupload(self, body: bytes, name: str) -> None:
        if self.headers.get("Authorization") != "Bearer hf_good":
            return self._error(401, "RepoNotFound", "Repository not found")
        files = json.loads(body)["files"]
        self._json({"files": [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
             "shouldIgnore": False} for f in files
        ]})  # fmt: skip

    def _lfs(self, body: bytes, name: str) -> None:
        objects = json.loads(body)["objects"]
        self._json({"transfer": "basic", "objects": [
            {"oid": o["oid"], "size": o["size"],
             "actions": {"upload": {"href": f"{self.server.url}/objects/{o['oid']}", "header": {}}}}
            for o in objects
        ]})  # fmt: skip

    def _object(self, body: bytes, oid: str) -> None:
        self.server.objects[oid] = body
        self._json({})

    def _commit(self, body: bytes, name: str) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.server.uploaded[f"{name}/{value['path']}"] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.server.uploaded[f"{name}/{value['path']}"] = self.server.objects[value["oid"]]
        self._json(
            {"commitUrl": f"{self.server.url}/{name}/commit/1", "commitOid": "1" * 40, "success": True}
        )

    def _json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _error(self, status: int, code: str, message: str) -> None:
        data = json.dumps({"error": message}).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


_NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
_KIND = r"(?P<kind>models|datasets)"
_ROUTES = (
    (rf"(?:GET|HEAD) /api/{_KIND}/{_NAME}", _Handler._info),
    (rf"(?:GET|HEAD) /api/{_KIND}/{_NAME}/revision/(?P<revision>[^/]+)", _Handler._info),
    (rf"GET /api/{_KIND}/{_NAME}/tree/(?P<revision>[^/]+)(?P<path>/.*)?", _Handler._tree),
    (rf"POST /api/{_KIND}/{_NAME}/paths-info/(?P<revision>[^/]+)", _Handler._paths_info),
    (
        rf"(?:GET|HEAD) /(?P<kind>datasets/)?{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        _Handler._resolve,
    ),
    (r"POST /api/repos/create", _Handler._create),
    (r"GET /api/whoami-v2", _Handler._whoami),
    (r"POST /api/validate-yaml", _Handler._validate),
    (rf"POST /api/models/{_NAME}/preupload/main", _Handler._preupload),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler._lfs),
    (r"PUT /objects/(?P<oid>\w+)", _Handler._object),
    (rf"POST /api/models/{_NAME}/commit/main", _Handler._commit),
)
