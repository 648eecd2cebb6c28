"""A hub on a real socket, as far as huggingface_hub speaks to one: repositories, LFS, commits, and faults as told."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_ABCDEFGHIJKLMNOPQRSTUVWXYZ012345"
READ_ONLY = "hf_READONLYREADONLYREADONLYREADONLY"
LARGE = ("*.safetensors", "*.model", "*.png")
"""Names that are kept as LFS objects whatever their size."""


def blob_id(data):
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


@dataclass
class Repo:
    private: bool
    gated: bool = False
    commits: list = field(default_factory=list)
    """(id, message, files): path → bytes, or the sha256 of an LFS object as text."""

    def add(self, files, message="initial commit"):
        oid = hashlib.sha1(f"{id(self)} {len(self.commits)} {message}".encode()).hexdigest()
        self.commits.append((oid, message, dict(files)))
        return oid

    def at(self, revision):
        found = [commit for commit in self.commits if revision in ("main", commit[0])]
        return found[-1] if found else None


class Answer(Exception):  # noqa: N818
    """What is answered instead of going on."""

    def __init__(self, status, body=b"", **headers):
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


class Hub:
    """Repositories, and what was asked."""

    def __init__(self):
        self.repos, self.objects, self.requests = {}, {}, []
        self.users = {TOKEN: ("somebody", True), READ_ONLY: ("somebody", False)}
        self.namespaces = {"somebody", "team"}
        self.fault = lambda method, path, number: None
        """(method, path, number of the request) → None; a status; 'drop': not done; or 'lost': done, and not answered."""
        self.lock = threading.RLock()
        self.url = self.cdn = ""

    def files(self, name):
        """All files of a repository now, as bytes."""
        files = self.repos[name].commits[-1][2] if self.repos[name].commits else {}
        return {path: self.objects[data] if isinstance(data, str) else data for path, data in files.items()}

    def put(self, name, files, private=True):
        """A repository made by somebody else, or a commit of theirs."""
        repo = self.repos.setdefault(name, Repo(private))
        kept = {}
        for path, data in files.items():
            kept[path] = self.keep(data) if any(fnmatchcase(path, pattern) for pattern in LARGE) else data
        repo.add({**(repo.commits[-1][2] if repo.commits else {}), **kept}, "theirs")
        return repo

    def keep(self, data):
        oid = hashlib.sha256(data).hexdigest()
        self.objects[oid] = data
        return oid

    def answer(self, method, url, headers, body):
        parts = urlsplit(url)
        path, query = unquote(parts.path), parse_qs(parts.query)
        if path.startswith("/cdn/"):
            assert "Authorization" not in headers, "a token was sent to the CDN"
            raise Answer(200, self.objects[path.removeprefix("/cdn/")])
        if path.startswith("/lfs/put/"):
            return self.store(path.removeprefix("/lfs/put/"), body)
        token = headers.get("Authorization", "").removeprefix("Bearer ") or None
        if token is not None and token not in self.users:
            raise Answer(401, {"error": "Invalid credentials"}, X_Error_Message="Invalid credentials in Authorization header")
        user, writes = self.users.get(token, (None, False))
        sent = json.loads(body) if body and "ndjson" not in headers.get("Content-Type", "") else body
        if path == "/api/whoami-v2":
            return {"name": user, "type": "user", "auth": {"accessToken": {"role": "write" if writes else "read"}}}
        if path == "/api/validate-yaml":
            if "licence: [" in sent["content"]:
                raise Answer(400, {"errors": [{"message": "licence is no list"}]})
            return {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self.create(sent, user, writes)
        if path.endswith(".git/info/lfs/objects/batch"):
            repo = self.visible(path.removesuffix(".git/info/lfs/objects/batch").strip("/"), user, writes)
            return self.batch(sent)
        if path.startswith("/lfs/verify/"):
            if sent["oid"] not in self.objects:
                raise Answer(404, {"error": "no such object"})
            return {}
        if path.startswith("/api/models/"):
            namespace, name, *rest = path.removeprefix("/api/models/").split("/")
            writing = bool(rest) and rest[0] in ("preupload", "commit")
            repo = self.visible(f"{namespace}/{name}", user, writes if writing else True)
            return self.api(repo, f"{namespace}/{name}", rest, query, sent)
        namespace, name, _, revision, *rest = path.strip("/").split("/")
        return self.resolve(self.visible(f"{namespace}/{name}", user, True), revision, "/".join(rest))

    def visible(self, name, user, writes):
        repo = self.repos.get(name)
        if repo is None or (repo.private and user is None):
            raise Answer(404 if user else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if repo.gated:
            raise Answer(403, {"error": "Access is restricted"}, X_Error_Code="GatedRepo")
        if not writes:
            raise Answer(403, {"error": "this token may only read"})
        return repo

    def create(self, sent, user, writes):
        namespace = sent.get("organization") or user
        name = f"{namespace}/{sent['name']}"
        if not writes:
            raise Answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        if namespace not in self.namespaces:
            raise Answer(404, {"error": "Namespace not found"})
        if name in self.repos:
            raise Answer(409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"})
        private = sent.get("private", sent.get("visibility") == "private")
        self.repos[name] = Repo(private)
        self.repos[name].add({".gitattributes": b"*.safetensors filter=lfs\n"})
        return {"url": f"{self.url}/{name}"}

    def batch(self, sent):
        objects = []
        for one in sent["objects"]:
            actions = {"upload": {"href": f"{self.url}/lfs/put/{one['oid']}"}, "verify": {"href": f"{self.url}/lfs/verify/x"}}
            objects.append(one | ({} if one["oid"] in self.objects else {"actions": actions}))
        return {"transfer": "basic", "objects": objects}

    def store(self, oid, body):
        if hashlib.sha256(body).hexdigest() != oid:
            raise Answer(400, {"error": "the bytes are not those of this name"})
        self.objects[oid] = body
        return {}

    def api(self, repo, name, rest, query, sent):
        revision = rest[1] if len(rest) > 1 else "main"
        commit = repo.at(revision)
        if commit is None:
            raise Answer(404, {"error": "no such revision"}, X_Error_Code="RevisionNotFound")
        oid, _, files = commit
        if not rest or rest[0] == "revision":
            siblings = [self.entry(path, data, "rfilename") for path, data in files.items()]
            return {"id": name, "sha": oid, "private": repo.private, "siblings": siblings if "blobs" in query else []}
        if rest[0] == "tree":
            inside = [path for path in files if path.startswith("".join(f"{part}/" for part in rest[2:]))]
            if not inside:
                raise Answer(404, {"error": "no such folder"}, X_Error_Code="EntryNotFound")
            return [{"type": "file", **self.entry(path, files[path], "path")} for path in inside]
        if rest[0] == "preupload":
            found = []
            for file in sent["files"]:
                mode = "lfs" if any(fnmatchcase(file["path"], pattern) for pattern in LARGE) else "regular"
                old = files.get(file["path"])
                there = None if old is None else old if isinstance(old, str) else blob_id(old)
                ignored = f"ignore {file['path']}".encode() in files.get(".gitignore", b"")
                found.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": ignored, "oid": there})
            return {"files": found}
        return self.commit(repo, name, oid, files, [json.loads(line) for line in sent.splitlines()])

    def entry(self, path, data, key):
        if not isinstance(data, str):
            return {key: path, "size": len(data), "blobId": blob_id(data), "oid": blob_id(data)}
        size = len(self.objects[data])
        about = {"sha256": data, "oid": data, "size": size, "pointerSize": 130}
        return {key: path, "size": size, "blobId": blob_id(data.encode()), "oid": blob_id(data.encode()), "lfs": about}

    def commit(self, repo, name, parent, files, lines):
        header, files = lines[0]["value"], dict(files)
        if header.get("parentCommit") not in (None, parent):
            raise Answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    raise Answer(400, {"error": "an LFS object is missing"})
                files[value["path"]] = value["oid"]
            else:
                del files[value["path"]]
        oid = repo.add(files, header["summary"])
        return {"commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid}

    def resolve(self, repo, revision, path):
        commit = repo.at(revision)
        if commit is None:
            raise Answer(404, X_Error_Code="RevisionNotFound")
        oid, _, files = commit
        if path not in files:
            raise Answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
        data = files[path]
        if isinstance(data, str):
            about = {"X_Linked_Etag": f'"{data}"', "X_Linked_Size": str(len(self.objects[data]))}
            raise Answer(302, X_Repo_Commit=oid, Location=f"{self.cdn}/cdn/{data}", **about)
        raise Answer(200, data, X_Repo_Commit=oid, ETag=f'"{blob_id(data)}"')


@contextmanager
def serve():
    """A running hub."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_any(self):
            path = urlsplit(self.path).path
            if path == "/api/agent-harnesses":  # asked once in a while, for the client's own name
                return self.send(Answer(404))
            with hub.lock:
                number = len(hub.requests)
                hub.requests.append((self.command, path))
                fault = hub.fault(self.command, path, number)
            if fault == "drop":
                self.close_connection = True
                self.connection.close()
                return None
            body = self.body()
            try:
                if isinstance(fault, int):
                    raise Answer(fault, {"error": "out of order"})
                with hub.lock:
                    raise Answer(200, hub.answer(self.command, self.path, self.headers, body))
            except Answer as answer:
                if fault == "lost":
                    self.close_connection = True
                    self.connection.close()
                    return None
                return self.send(answer)

        def body(self):
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data

        def send(self, answer):
            self.send_response(answer.status)
            for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

        def log_message(self, *_):
            pass

        def handle(self):
            with suppress(OSError, ValueError):
                super().handle()

        def finish(self):
            with suppress(OSError, ValueError):
                super().finish()

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    hub.url, hub.cdn = f"http://127.0.0.1:{http.server_port}", f"http://localhost:{http.server_port}"
    try:
        yield hub
    finally:
        http.shutdown()
        http.server_close()
