"""A W&B server for tests: as much of one as its real client asks for."""

import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENTITY = "team"


class WandbServer:
    """Answers on a free port of this machine, and keeps what it was sent."""

    def __init__(self) -> None:
        self.operations: list[tuple[str, dict]] = []
        """GraphQL operations with their variables."""
        self.history: dict[str, list[dict]] = {}
        """Rows of history by run id."""
        self.files: list[str] = []
        """Paths of uploaded files."""
        self.unknown: list[str] = []
        """Requests that nothing here answers."""
        handler = type("Handler", (_Handler,), {"fake": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self) -> dict[str, str]:
        """Variables under which the client talks to this server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "x" * 40}

    def sent(self, name: str) -> list[dict]:
        """Variables of each operation of a name, in order."""
        return [variables for operation, variables in self.operations if operation == name]

    @property
    def runs(self) -> dict[str, dict]:
        """What was said of each run when it was made, by run id."""
        found: dict[str, dict] = {}
        for variables in self.sent("UpsertBucket"):
            said = {key: value for key, value in variables.items() if value is not None}
            found.setdefault(variables["name"], {}).update(said)
        return found

    @property
    def artifacts(self) -> list[str]:
        """Names of the artifacts that were made, in order."""
        return [v["input"]["artifactCollectionName"] for v in self.sent("CreateArtifact")]

    @property
    def used(self) -> list[tuple[str, str]]:
        """Run and name of each artifact that was used."""
        said = [variables["input"] for variables in self.sent("UseArtifact")]
        return [(use["runName"], use["artifactID"]) for use in said]

    def answer(self, name: str, variables: dict) -> dict:
        """The data of an operation; what the client can do without is null."""
        said = variables.get("input", variables)
        project = {"id": "P", "internalId": "1", "name": "sonosweep", "entityName": ENTITY}
        project |= {"entity": {"id": "E", "name": ENTITY}}
        viewer = {"id": "U", "entity": ENTITY, "username": ENTITY, "flags": "{}", "name": ENTITY}
        viewer |= {"teams": {"edges": []}, "email": "", "admin": False}
        if name == "UpsertBucket":
            run = {"id": "R", "name": said["name"], "displayName": said.get("displayName")}
            run |= {"description": None, "config": None, "sweepName": None, "project": project}
            return {"upsertBucket": {"bucket": {**run, "historyLineCount": 0}, "inserted": True}}
        if name == "CreateRunFiles":
            uploads = [self._upload(path) for path in said["files"]]
            return {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": uploads}}
        if name in ("UpsertView2", "upsertView"):
            view = {key: said.get(key) for key in ("type", "displayName", "description", "spec")}
            view |= {"id": f"V-{said['type']}", "name": said.get("name"), "project": project}
            view |= {"updatedAt": None, "createdAt": None}
            return {"upsertView": {"view": view, "inserted": True}}
        if name == "GetProjects":
            extra = {"createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False, "user": None}
            page = {"endCursor": None, "hasNextPage": False}
            return {"models": {"pageInfo": page, "edges": [{"node": project | extra}]}}
        if "Artifact" in name:
            return self._artifact(name, said)
        if name in ("ServerFeaturesQuery", "OrganizationCoreWeaveOrganizationID"):
            return {"serverInfo": None, "entity": None}
        if name not in ("Viewer", "RunResumeStatus", "RunStoppedStatus", "ProjectInternalId"):
            self.unknown.append(name)
        status = {"model": {**project, "bucket": None}}
        return {**status, "viewer": viewer, "serverInfo": None, "project": project}

    def _artifact(self, name: str, said: dict) -> dict:
        if name == "CreateArtifact":
            made = {"id": said["artifactCollectionName"], "state": "PENDING"}
            made |= {"artifactSequence": {"id": "S", "latestArtifact": None}}
            return {"createArtifact": {"artifact": made}}
        if name == "CreateArtifactManifest":
            file = {**self._upload(f"{said['artifactID']}/manifest.json"), "id": "F"}
            return {"createArtifactManifest": {"artifactManifest": {"id": "M", "file": file}}}
        if name == "CreateArtifactFiles":
            edges = [{"node": self._artifact_file(spec)} for spec in said["artifactFiles"]]
            return {"createArtifactFiles": {"files": {"edges": edges}}}
        if name == "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": said["artifactID"], "digest": "d"}}}
        if name == "UseArtifact":
            return {"useArtifact": {"artifact": {"id": said["artifactID"]}}}
        # Nothing is found by its name.
        return {"project": {"artifact": None}, "artifact": None}

    def _upload(self, path: str) -> dict:
        url = f"{self.url}/upload/{path}"
        return {"name": path, "uploadUrl": url, "uploadHeaders": []}

    def _artifact_file(self, spec: dict) -> dict:
        upload = self._upload(f"{spec['artifactID']}/{spec['name']}")
        extra = {"id": "F", "displayName": spec["name"], "storagePath": spec["name"]}
        extra |= {"uploadMultipartUrls": None, "artifact": {"id": spec["artifactID"]}}
        return {**upload, **extra}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing where the client has gone away, as it does when it ends."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    fake: WandbServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """GraphQL, and the stream of a run's history."""
        body = self._body()
        if self.path.endswith("/graphql"):
            content = json.loads(body)
            found = re.search(r"(?:query|mutation)\s+(\w+)", content["query"])
            name = found[1] if found else "?"
            variables = content.get("variables") or {}
            self.fake.operations.append((name, variables))
            self._send({"data": self.fake.answer(name, variables)})
        elif self.path.endswith("/file_stream"):
            run_id = self.path.split("/")[-2]
            lines = (
                json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            )
            rows = self.fake.history.setdefault(run_id, [])
            rows += [json.loads(line) for line in lines]
            self._send({})
        else:
            # The client's own measurements of itself.
            if not self.path.startswith("/sdk/otel/"):
                self.fake.unknown.append(self.path)
            self._send({})

    def do_PUT(self) -> None:
        """A file."""
        self._body()
        self.fake.files.append(self.path.removeprefix("/upload/"))
        self._send({})

    def do_GET(self) -> None:
        """Nothing that is needed."""
        self.fake.unknown.append(self.path)
        self._send({})

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, content: dict) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
