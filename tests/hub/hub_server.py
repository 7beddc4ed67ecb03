"""A stand-in for the Hub on the standard library's HTTP server: what the unmodified client needs to push and to load.

Repositories live in memory. Text goes into a commit as it is, binary files through LFS, as on the Hub. Writing needs
the token `TOKEN`. Clients read their settings at import, so that they run in processes of their own:

    with HubServer() as hub:
        subprocess.run([...], env={**os.environ, **hub.environment(home)})
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test_token"
_LFS_SUFFIXES = (".safetensors", ".png", ".bin", ".parquet")


@dataclass
class Commit:
    """A commit: its message, all files of the repository behind it, and those it wrote."""

    sha: str
    message: str
    files: dict[str, bytes]
    written: list[str]


@dataclass
class Repository:
    """Branches and commits of a repository; branches hold the sha of their last commit."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def add_commit(self, branch: str, message: str, files: dict[str, bytes], written: list[str]) -> Commit:
        sha = hashlib.sha1(f"{branch}{message}{len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = Commit(sha, message, files, written)
        self.branches[branch] = sha
        return self.commits[sha]

    def find(self, revision: str) -> Commit | None:
        return self.commits.get(self.branches.get(revision, revision))


class HubServer:
    """The server; `repositories` {id: Repository} can be looked at, `requests` lists what was asked."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []
        hub = self

        class Handler(_Handler):
            server_version = "hub"

            def setup(self):
                self.hub = hub
                super().setup()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home, *, token: str | None = TOKEN) -> dict[str, str]:
        """Variables with which the client talks to this server and to nobody else."""
        variables = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
        }
        return {**variables, "HF_TOKEN": token or ""}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    # What the routes need

    def _answer(self, content=None, status: int = 200, **headers):
        body = content if isinstance(content, bytes) else json.dumps({} if content is None else content).encode()
        self.send_response(status)
        headers.setdefault("Content_Type", "application/octet-stream" if content is body else "application/json")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str):
        self._answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _route(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self.body = self._read()
        writes = self.command in ("POST", "PUT", "DELETE") and not path.endswith("/paths-info/main")
        if writes and not path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, "Unauthorized")
        for methods, pattern, action in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods:
                return action(self, **match.groupdict())
        return self._refuse(404, "EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = _route

    def _find(self, repo: str, revision: str = "main") -> Commit | None:
        """The commit, or None after a refusal."""
        repository = self.hub.repositories.get(repo)
        if repository is None:
            return self._refuse(404, "RepoNotFound")
        commit = repository.find(revision)
        return commit if commit is not None else self._refuse(404, "RevisionNotFound")

    # Routes

    def whoami(self):
        self._answer({"type": "user", "name": "me", "auth": {"accessToken": {"role": "write"}}})

    def create(self):
        request = json.loads(self.body)
        repo = "/".join([request.get("organization") or "me", request["name"].split("/")[-1]])
        exists = repo in self.hub.repositories
        if not exists:
            private = request.get("private") is True or request.get("visibility") == "private"
            self.hub.repositories[repo] = Repository(private=private)
            self.hub.repositories[repo].add_commit("main", "initial commit", {}, [])
        self._answer({"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo}, 409 if exists else 200)

    def validate_yaml(self):
        self._answer({"errors": [], "warnings": []})

    def preupload(self, repo, revision):
        files = json.loads(self.body)["files"]
        modes = ["lfs" if file["path"].endswith(_LFS_SUFFIXES) else "regular" for file in files]
        if (commit := self._find(repo, revision)) is not None:
            answers = [
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}
                for file, mode in zip(files, modes)
            ]
            self._answer({"files": answers, "commitOid": commit.sha})

    def lfs_batch(self, repo):
        objects = []
        for item in json.loads(self.body)["objects"]:
            url = f"{self.hub.url}/lfs/{item['oid']}"
            known = item["oid"] in self.hub.large_files
            actions = {} if known else {"actions": {"upload": {"href": url}, "verify": {"href": f"{url}/verify"}}}
            objects.append({"oid": item["oid"], "size": item["size"], **actions})
        self._answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._refuse(400, "WrongHash")
        self.hub.large_files[oid] = self.body
        self._answer()

    def lfs_verify(self, oid):
        self._answer() if oid in self.hub.large_files else self._refuse(404, "EntryNotFound")

    def commit(self, repo, revision):
        if (parent := self._find(repo, revision)) is None:
            return
        files, written, message = dict(parent.files), [], ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, parent.sha):
                    return self._refuse(412, "PreconditionFailed")
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
            else:
                is_large = entry["key"] == "lfsFile"
                content = self.hub.large_files[value["oid"]] if is_large else base64.b64decode(value["content"])
                files[value["path"]] = content
                written.append(value["path"])
        commit = self.hub.repositories[repo].add_commit(revision, message, files, written)
        self._answer({"commitUrl": f"{self.hub.url}/{repo}/commit/{commit.sha}", "commitOid": commit.sha})

    def branch(self, repo, branch):
        if (commit := self._find(repo)) is None:
            return
        branches = self.hub.repositories[repo].branches
        if branch in branches:
            return self._answer({"error": "exists"}, 409)
        branches[branch] = commit.sha
        self._answer()

    def info(self, repo, revision="main"):
        if (commit := self._find(repo, revision)) is not None:
            siblings = [{"rfilename": name} for name in sorted(commit.files)]
            private = self.hub.repositories[repo].private
            self._answer({"id": repo, "sha": commit.sha, "private": private, "siblings": siblings, "tags": []})

    def refs(self, repo):
        if self._find(repo) is not None:
            branches = self.hub.repositories[repo].branches.items()
            entries = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in branches]
            self._answer({"branches": entries, "converts": [], "tags": []})

    def tree(self, repo, revision, folder=None):
        if (commit := self._find(repo, revision)) is None:
            return
        prefix = f"{folder}/" if folder else ""
        names = [name for name in sorted(commit.files) if name.startswith(prefix)]
        if folder and not names:
            return self._refuse(404, "EntryNotFound")
        self._answer([{"type": "file", "path": name, **self._describe(commit.files[name], name)} for name in names])

    @staticmethod
    def _describe(content: bytes, name: str) -> dict:
        oid = hashlib.sha256(content).hexdigest()
        large = {"lfs": {"oid": oid, "size": len(content), "pointerSize": 100}} if name.endswith(_LFS_SUFFIXES) else {}
        return {"size": len(content), "oid": oid[:40], **large}

    def resolve(self, repo, revision, file):
        if (commit := self._find(repo, revision)) is None:
            return
        if file not in commit.files:
            return self._answer(
                {"error": "EntryNotFound"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit.sha
            )
        content = commit.files[file]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        # Large files too are served here: a client that is redirected misses the commit.
        large = {"X_Linked_Etag": etag, "X_Linked_Size": len(content)} if file.endswith(_LFS_SUFFIXES) else {}
        self._answer(content, ETag=etag, X_Repo_Commit=commit.sha, **large)


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_REVISION = r"(?P<revision>[^/]+)"
_API = f"/api/models/{_REPO}"
_ROUTES = [
    (("GET",), r"/api/whoami-v2", _Handler.whoami),
    (("POST",), r"/api/repos/create", _Handler.create),
    (("POST",), r"/api/validate-yaml", _Handler.validate_yaml),
    (("POST",), rf"{_API}/preupload/{_REVISION}", _Handler.preupload),
    (("POST",), rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("PUT",), r"/lfs/(?P<oid>\w+)", _Handler.lfs_put),
    (("POST",), r"/lfs/(?P<oid>\w+)/verify", _Handler.lfs_verify),
    (("POST",), rf"{_API}/commit/{_REVISION}", _Handler.commit),
    (("POST",), rf"{_API}/branch/(?P<branch>[^/]+)", _Handler.branch),
    (("GET",), rf"{_API}/refs", _Handler.refs),
    (("GET",), rf"{_API}/tree/{_REVISION}(/(?P<folder>.+))?", _Handler.tree),
    (("GET",), rf"{_API}/revision/{_REVISION}", _Handler.info),
    (("GET",), _API, _Handler.info),
    (("GET", "HEAD"), rf"/{_REPO}/resolve/{_REVISION}/(?P<file>.+)", _Handler.resolve),
]
