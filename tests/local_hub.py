"""A Hub on 127.0.0.1: repositories in memory that the real clients create, fill, read and stream; with faults, a log.

    with LocalHub() as hub:
        token = hub.add_user("user")                        # it writes in user/...
        hub.fail("POST", "/commit/", status=429, headers={"Retry-After": "0"})
        hub.cut("GET", "model.safetensors", after=1000)     # drop the connection in the middle of a body
        ...                                                 # a client whose HF_ENDPOINT is hub.url
        assert hub.count("PUT", "/lfs/") == 2

It speaks the LFS protocol, not Xet: clients need HF_HUB_DISABLE_XET=1. What it does not know is answered with 404.
"""

import base64
import hashlib
import json
import queue
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".npz", ".parquet", ".arrow", ".png", ".jpg")
NOW = "2026-01-01T00:00:00.000Z"
CHUNK = 4096


@dataclass(frozen=True)
class Blob:
    """The content of one version of a file."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_oid(self) -> str:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        stored = pointer.encode() if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid

    def entry(self, path: str) -> dict[str, Any]:
        lfs = {"lfs": {"oid": self.sha256, "size": len(self.content), "pointerSize": 130}} if self.lfs else {}
        return {"type": "file", "path": path, "size": len(self.content), "oid": self.git_oid, **lfs}


@dataclass(frozen=True)
class Commit:
    """A snapshot of a repository's files."""

    oid: str
    message: str
    files: dict[str, Blob]
    parent: "Commit | None" = None


@dataclass
class Repository:
    """Branches, tags and pull requests of one repository, by name, and who may see it."""

    kind: str  # "models", "datasets" or "spaces"
    name: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)  # users whom the gate lets through
    refs: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", "initial commit", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", lfs=False)})

    def commit(self, ref: str, message: str, files: dict[str, Blob], parent: Commit | None = None) -> Commit:
        parent = parent or self.refs.get(ref)
        seed = f"{self.kind} {self.name} {ref} {message} {parent and parent.oid} {sorted(files)}"
        content = "".join(blob.etag for _, blob in sorted(files.items()))
        oid = hashlib.sha1((seed + content).encode()).hexdigest()
        self.refs[ref] = Commit(oid, message, dict(files), parent)
        return self.refs[ref]

    def find(self, revision: str) -> Commit | None:
        found = self.refs.get(revision) or self.tags.get(revision)
        return found or next((commit for commit in self.history() if commit.oid == revision), None)

    def history(self, ref: str | None = None) -> Iterator[Commit]:
        for commit in [self.refs[ref]] if ref else [*self.refs.values(), *self.tags.values()]:
            current: Commit | None = commit
            while current:
                yield current
                current = current.parent

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Contents by path, for a test to look at."""
        return {path: blob.content for path, blob in self.refs[revision].files.items()}


@dataclass
class Fault:
    """What happens to the next `times` requests of a method to a path: a status, a cut, or no answer at all."""

    method: str
    path: str
    times: int
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    after: int | None = None  # bytes of the body that go through before the connection is cut
    stalls: bool = False


@dataclass
class Request:
    """One line of the log; `received` and `sent` are bytes of bodies."""

    method: str
    path: str
    status: int = 0
    received: int = 0
    sent: int = 0


class Refusal(Exception):
    """An error answer, as the Hub gives it."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


class Cut(Exception):
    """The connection ends here."""


class LocalHub:
    """The server, its repositories, its users, and what tests do to it."""

    STALL_SECONDS = 600  # after which a client that waits for ever is cut off

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.users: dict[str, dict[str, str]] = {}  # token -> name and role
        self.lfs: dict[str, bytes] = {}
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.signature = ""  # of the addresses that large files are sent to and fetched from, as those of the real Hub
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.ends_of_stalls: queue.Queue[bool] = queue.Queue()  # whether the client hung up, for each stalled request
        hub = self

        class BoundHandler(Handler):
            def __init__(self, *args: Any) -> None:
                self.hub = hub
                super().__init__(*args)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), BoundHandler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def add_user(self, name: str, role: str = "write") -> str:
        """A user, or another token of one; returns the token."""
        token = "hf_" + hashlib.sha256(f"{name} {role}".encode()).hexdigest()[:34]
        self.users[token] = {"name": name, "role": role}
        return token

    def repository(self, name: str, kind: str = "models") -> Repository:
        return self.repositories[kind, name]

    def fail(self, method: str, path: str, status: int, times: int = 1, headers: dict[str, str] | None = None) -> None:
        """Answer the next requests whose path matches the regular expression with an error."""
        self.faults.append(Fault(method, path, times, status=status, headers=headers or {}))

    def cut(self, method: str, path: str, after: int, times: int = 1) -> None:
        """Drop the connection once `after` bytes of the body went through, up for PUT and POST, down for GET."""
        self.faults.append(Fault(method, path, times, after=after))

    def stall(self, method: str, path: str, times: int = 1) -> None:
        """Take the next requests and answer nothing until the client hangs up, as `ends_of_stalls` tells."""
        self.faults.append(Fault(method, path, times, stalls=True))

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def requests(self, method: str, path: str) -> list[Request]:
        return [entry for entry in self.log if entry.method == method and re.search(path, entry.path)]

    def count(self, method: str, path: str) -> int:
        return len(self.requests(method, path))


# ---- what each address answers --------------------------------------------------------------------------------------

Route = tuple[str, re.Pattern[str], Callable[..., Any]]
ROUTES: list[Route] = []
REPO = r"(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
GIT = r"/(?P<kind>datasets/|spaces/|)(?P<name>[^/]+/[^/]+?)"


def route(method: str, pattern: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register what answers a method and path: JSON, None for an empty answer, or `Blob` and headers for a file."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


@route("GET", "/api/whoami-v2")
def whoami(call: "Handler") -> Any:
    user = call.user()
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    token = {"role": user["role"], "displayName": "test"}
    return {"type": "user", "name": user["name"], "orgs": [], "auth": {"type": "access_token", "accessToken": token}}


@route("POST", "/api/repos/create")
def create(call: "Handler") -> Any:
    body, user = call.json(), call.user()
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    kind, owner = f"{body.get('type', 'model')}s", body.get("organization") or user["name"]
    key = (kind, f"{owner}/{body['name']}")
    url = f"{call.hub.url}/{'' if kind == 'models' else kind + '/'}{key[1]}"
    if key in call.hub.repositories and owner == user["name"]:
        raise Refusal(409, "You already created this repo", body=json.dumps({"url": url, "error": "exists"}))
    if owner != user["name"] or user["role"] == "read":
        raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
    call.hub.repositories[key] = Repository(kind, key[1], private=body.get("visibility") == "private")
    return {"url": url, "id": key[1], "name": key[1]}


@route("POST", "/api/validate-yaml")
def validate_yaml(call: "Handler") -> Any:
    front = re.match(r"---\n(.*?)\n---\n", call.json()["content"], re.S)
    errors = []
    try:
        data = yaml.safe_load(front[1]) if front else {}
        wrong = [key for key in ("license", "library_name", "pipeline_tag") if not isinstance(data.get(key, ""), str)]
        wrong += [key for key in ("tags", "datasets") if not isinstance(data.get(key, []), (list, str))]
        if not LICENSE_ID.fullmatch(str(data.get("license", "unknown"))):
            raise ValueError(f'"license" must be one of the ids of the Hub, and is {data["license"]!r}')
        for key in ("datasets", "base_model"):
            ids = data.get(key, [])
            for repo_id in [ids] if isinstance(ids, str) else ids:
                if not REPO_ID.fullmatch(str(repo_id)):
                    raise ValueError(f'"{key}" must be ids of repositories, and holds {repo_id!r}')
        for index in data.get("model-index", []):
            for result in index["results"]:
                assert result["task"]["type"], "a result has a task"
                assert result["dataset"]["type"], "a result has a data set"
                assert all("type" in metric and "value" in metric for metric in result["metrics"]), "type and value"
        errors = [{"message": f"{key} has the wrong type"} for key in wrong]
    except (yaml.YAMLError, ValueError, KeyError, AssertionError, AttributeError) as error:
        errors = [{"message": f"{type(error).__name__}: {error}"}]
    if errors:
        raise Refusal(400, "invalid card", body=json.dumps({"errors": errors, "warnings": []}))
    return {"errors": [], "warnings": []}


@route("GET", f"/api/{REPO}(?:/revision/(?P<revision>[^/]+))?")
def info(call: "Handler", kind: str, name: str, revision: str | None) -> Any:
    repository, commit = call.commit(kind, name, revision or "main")
    siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
    for sibling in siblings if "blobs" in call.query else []:
        blob = commit.files[sibling["rfilename"]]
        lfs = {"sha256": blob.sha256, "size": len(blob.content), "pointerSize": 130} if blob.lfs else None
        sibling.update(size=len(blob.content), blobId=blob.git_oid, lfs=lfs)
    seen = {"private": repository.private, "gated": "auto" if repository.gated else False, "disabled": False}
    dates = {"lastModified": NOW, "createdAt": NOW, "downloads": 0, "likes": 0}
    return {"id": name, "_id": name, "sha": commit.oid, "siblings": siblings, "tags": [], **seen, **dates}


@route("GET", f"/api/{REPO}/auth-check(?P<write>/write)?")
def auth_check(call: "Handler", kind: str, name: str, write: str | None) -> Any:
    call.repository(kind, name, write=bool(write), content=True)
    return {}


@route("GET", f"/api/{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
def tree(call: "Handler", kind: str, name: str, revision: str, folder: str | None) -> Any:
    _, commit = call.commit(kind, name, revision)
    inside = f"{folder}/" if folder else ""
    paths = [path for path in sorted(commit.files) if path.startswith(inside)]
    if folder and not paths:
        raise Refusal(404, f"{folder} does not exist", "EntryNotFound", **{"X-Repo-Commit": commit.oid})
    deep = call.query.get("recursive", ["false"])[0].lower() in ("true", "1")
    entries = [commit.files[path].entry(path) for path in paths if deep or "/" not in path.removeprefix(inside)]
    parents = {inside + "/".join(path.removeprefix(inside).split("/")[:depth]) for path in paths
               for depth in range(1, path.removeprefix(inside).count("/") + 1) if deep or depth == 1}  # fmt: skip
    return [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(parents)] + entries


@route("POST", f"/api/{REPO}/paths-info/(?P<revision>[^/]+)")
def paths_info(call: "Handler", kind: str, name: str, revision: str) -> Any:
    _, commit = call.commit(kind, name, revision)
    form = parse_qs(call.body.decode())
    paths = form["paths"] if "paths" in form else call.json()["paths"]
    found = [commit.files[path].entry(path) for path in paths if path in commit.files]
    folders = [path for path in paths if any(file.startswith(f"{path}/") for file in commit.files)]
    return found + [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders]


@route("GET", f"/api/{REPO}/refs")
def refs(call: "Handler", kind: str, name: str) -> Any:
    repository = call.repository(kind, name)
    as_ref = lambda prefix, names: [  # noqa: E731
        {"name": name, "ref": prefix + name, "targetCommit": commit.oid} for name, commit in names.items()
    ]
    branches = {name: commit for name, commit in repository.refs.items() if not name.startswith("refs/")}
    return {"branches": as_ref("refs/heads/", branches), "tags": as_ref("refs/tags/", repository.tags), "converts": []}


@route("GET", f"/api/{REPO}/commits/(?P<revision>[^/]+)")
def commits(call: "Handler", kind: str, name: str, revision: str) -> Any:
    repository, _ = call.commit(kind, name, revision)
    return [
        {"id": commit.oid, "title": commit.message, "message": "", "authors": [], "date": NOW}
        for commit in repository.history(revision if revision in repository.refs else "main")
    ]


@route("POST", f"/api/{REPO}/(?P<what>branch|tag)/(?P<ref>.+)")
def add_ref(call: "Handler", kind: str, name: str, what: str, ref: str) -> Any:
    repository, body = call.repository(kind, name, write=True), call.json()
    start, ref = (body.get("startingPoint", "main"), ref) if what == "branch" else (ref, body["tag"])
    names = repository.refs if what == "branch" else repository.tags
    if ref in names:
        raise Refusal(409, f"Reference already exists: {ref}")
    names[ref] = call.commit(kind, name, start)[1]
    return {}


@route("POST", f"/api/{REPO}/preupload/(?P<revision>[^/]+)")
def preupload(call: "Handler", kind: str, name: str, revision: str) -> Any:
    _, commit = call.commit(kind, name, revision, write="create_pr" not in call.query)
    answer = []
    for file in call.json()["files"]:
        lfs, stored = file["path"].endswith(LFS_SUFFIXES), commit.files.get(file["path"])
        oid = {"oid": stored.etag} if stored else {}
        answer.append({"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, **oid})
    return {"files": answer}


@route("POST", rf"{GIT}\.git/info/lfs/objects/batch")
def lfs_batch(call: "Handler", kind: str, name: str) -> Any:
    call.repository(kind.rstrip("/") or "models", name, content=True)
    objects = []
    for wanted in call.json()["objects"]:
        upload = {"upload": {"href": f"{call.hub.url}/lfs/{wanted['oid']}?{call.hub.signature}", "header": {}}}
        verify = {"verify": {"href": f"{call.hub.url}/lfs-verify"}}
        objects.append({**wanted, **({} if wanted["oid"] in call.hub.lfs else {"actions": {**upload, **verify}})})
    return {"transfer": "basic", "objects": objects}


@route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
def lfs_put(call: "Handler", oid: str) -> Any:
    if hashlib.sha256(call.body).hexdigest() != oid:
        raise Refusal(400, "the content does not have this SHA-256")
    call.hub.lfs[oid] = call.body
    return None


@route("POST", "/lfs-verify")
def lfs_verify(call: "Handler") -> Any:
    body = call.json()
    if len(call.hub.lfs.get(body["oid"], b"")) != body["size"]:
        raise Refusal(404, "not stored")
    return {}


@route("POST", f"/api/{REPO}/commit/(?P<revision>[^/]+)")
def commit_files(call: "Handler", kind: str, name: str, revision: str) -> Any:
    to_pull_request = "create_pr" in call.query
    repository, head = call.commit(kind, name, revision, write=not to_pull_request)
    if revision not in repository.refs:
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    files, header = dict(head.files), {}
    for line in call.body.splitlines():
        item = json.loads(line)
        value = item["value"]
        match item["key"]:
            case "header":
                header = value
            case "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
            case "lfsFile":
                if value["oid"] not in call.hub.lfs:
                    raise Refusal(400, f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = Blob(call.hub.lfs[value["oid"]], lfs=True)
            case "deletedFile":
                del files[value["path"]]
            case "deletedFolder":
                files = {path: blob for path, blob in files.items() if not path.startswith(value["path"])}
    if header.get("parentCommit", head.oid) != head.oid:
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    number = sum(ref.startswith("refs/pr/") for ref in repository.refs) + 1
    target = f"refs/pr/{number}" if to_pull_request else revision
    commit = repository.commit(target, header["summary"], files, parent=head)
    answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{call.hub.url}/{name}/commit/{commit.oid}"}
    return {**answer, **({"pullRequestUrl": f"{call.hub.url}/{name}/discussions/{number}"} if to_pull_request else {})}


@route("GET", f"{GIT}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(call: "Handler", kind: str, name: str, revision: str, path: str) -> Any:
    _, commit = call.commit(kind.rstrip("/") or "models", name, revision, content=True)
    headers = {"X-Repo-Commit": commit.oid}
    if path not in commit.files:
        raise Refusal(404, "Entry not found", "EntryNotFound", **headers)
    blob = commit.files[path]
    linked = {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content))} if blob.lfs else {}
    if blob.lfs and call.hub.signature and not call.query:
        there = f"{call.hub.url}{urlsplit(call.path).path}?{call.hub.signature}"
        raise Refusal(302, "it lies elsewhere", Location=there, ETag=f'"{blob.etag}"', **headers, **linked)
    return blob, {**headers, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes", **linked}


# ---- HTTP -----------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Reads a request with its body, applies faults, finds the route and sends the answer."""

    hub: LocalHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass  # the log is hub.log

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def answer(self) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query, keep_blank_values=True)
        self.entry = Request(self.command, unquote(parts.path))
        self.hub.log.append(self.entry)
        self.fault = self.hub.take_fault(self.command, self.entry.path)
        try:
            self.body = b"".join(self.read_body())
            if self.fault and self.fault.stalls:
                self.hub.ends_of_stalls.put(self.wait_for_hang_up())
                raise Cut
            if self.fault and self.fault.status:
                raise Refusal(self.fault.status, "injected", **self.fault.headers)
            self.send_result(*self.find_result(parts.path))
        except Refusal as refusal:
            body = refusal.headers.pop("body", json.dumps({"error": refusal.message}))
            self.send_result(refusal.status, body.encode(), refusal.headers)
        except (Cut, ConnectionError):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def wait_for_hang_up(self) -> bool:
        """Whether the client gave up by itself."""
        deadline = time.monotonic() + self.hub.STALL_SECONDS
        while time.monotonic() < deadline and not self.hub.closing.is_set():
            readable, _, _ = select.select([self.connection], [], [], 0.05)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                return True
        return False

    def find_result(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        method = "GET" if self.command == "HEAD" else self.command
        for verb, pattern, function in ROUTES:
            match = pattern.fullmatch(path) if verb == method else None
            if match:
                arguments = {name: value and unquote(value) for name, value in match.groupdict().items()}
                result = function(self, **arguments)
                if isinstance(result, tuple):
                    return self.cut_range(*result)
                return 200, b"" if result is None else json.dumps(result).encode(), {"Content-Type": "application/json"}
        raise Refusal(404, f"no such address: {path}")

    def cut_range(self, blob: Blob, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        size = len(blob.content)
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked or not (asked[1] or asked[2]):
            return 200, blob.content, headers
        first = int(asked[1]) if asked[1] else max(size - int(asked[2]), 0)
        last = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
        if first >= size:
            raise Refusal(416, "range not satisfiable", **{"Content-Range": f"bytes */{size}"})
        return 206, blob.content[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{size}"}

    def read_body(self) -> Iterator[bytes]:
        """The body, chunked or of a given length, counted; cut where a fault says so."""
        limit = self.fault.after if self.fault and self.fault.after is not None and self.command != "GET" else None
        chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
        left = int(self.headers.get("Content-Length") or 0)
        while chunked or left:
            size = int(self.rfile.readline(), 16) if chunked else min(left, CHUNK)
            part = self.rfile.read(size)
            if chunked:
                self.rfile.readline()
            if not part:
                return
            left -= len(part)
            self.entry.received += len(part)
            if limit is not None and self.entry.received > limit:
                raise Cut
            yield part

    def send_result(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.entry.status = status
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.fault.after if self.fault and self.fault.after is not None else len(body)
        self.wfile.write(body[:limit])
        self.wfile.flush()
        self.entry.sent = min(limit, len(body))
        if limit < len(body):
            raise Cut

    # who asks, and what they may see

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def user(self) -> dict[str, str] | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def repository(self, kind: str, name: str, *, write: bool = False, content: bool = False) -> Repository:
        user = self.user()
        repository = self.hub.repositories.get((kind, name))
        owner = user is not None and name.startswith(user["name"] + "/")
        if repository is None or (repository.private and not owner):
            # the code stands for what clients conclude from a 401 of an https address
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and not (owner and user and user["role"] == "write"):
            raise Refusal(403, "Forbidden: you must have write access to this repository")
        if content and repository.gated and not (user and (owner or user["name"] in repository.granted)):
            raise Refusal(403 if user else 401, f"Access to {kind[:-1]} {name} is restricted", "GatedRepo")
        return repository

    def commit(self, kind: str, name: str, revision: str, **needed: bool) -> tuple[Repository, Commit]:
        repository = self.repository(kind, name, **needed)
        found = repository.find(revision)
        if found is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, found
