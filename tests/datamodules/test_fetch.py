"""`sonosweep data fetch hc18` against a server of our own that misbehaves as it is told."""

import hashlib
import http.server
import io
import json
import shutil
import stat
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from types import SimpleNamespace

import pytest

from datamodules import fetch
from datamodules.attribution import HC18_LICENCE
from datamodules.download import Patience, RemoteFile, download
from datamodules.errors import InputError
from datamodules.fetch import HC18_MD5, RECORD_URL, fetch_hc18, unpack
from datamodules.samples import read_hc18
from experiments.__main__ import main

QUICK = Patience(attempts=3, timeout_s=5.0, backoff_s=0.001)
CSVS = ("training_set_pixel_size_and_HC.csv", "test_set_pixel_size.csv")


class Server:
    """Serves files by name; `script[name]` holds what to do instead, request by request."""

    def __init__(self):
        self.files, self.script, self.asked = {}, {}, []
        self.ranges = True
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                owner.answer(self)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def record(self, **changes):
        """The record as Zenodo gives it."""
        return {
            "id": 1327317,
            "files": [
                {
                    "key": name,
                    "size": len(body),
                    "checksum": f"md5:{md5(body)}",
                    "links": {"self": f"{self.url}/api/records/1327317/files/{name}/content"},
                }
                | changes.get(name, {})
                for name, body in self.files.items()
            ],
        }

    @property
    def record_url(self):
        return f"{self.url}/record"

    def prefixes(self):
        return {name: md5(body)[:8] for name, body in self.files.items()}

    def answer(self, request):
        name = request.path.removesuffix("/content").split("/")[-1]
        wanted = request.headers.get("Range")
        self.asked.append((name, wanted))
        steps = self.script.get(name, [])
        step = steps.pop(0) if steps else "whole"
        if name == "record":
            body = json.dumps(self.record()).encode()
        elif name in self.files:
            body = self.files[name]
        else:
            step = 404
        if isinstance(step, bytes):
            body, step = step, "whole"
        if isinstance(step, int):
            request.send_response(step)
            request.send_header("Retry-After", "0")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start >= len(body) > 0 and start:
            request.send_response(416)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if step == "from the middle":
            start += 5
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        request.send_header("Content-Length", str(len(body) - start))
        request.end_headers()
        rest = body[start:]
        # Cut: half of what is left, then the line goes dead.
        request.wfile.write(rest[: len(rest) // 2] if step == "cut" else rest)
        if step == "cut":
            request.close_connection = True


def md5(body):
    return hashlib.md5(body).hexdigest()


def zipped(folder, *, top="training_set", extra=()):
    """A zip of a folder's files below `top`, with entries of (name, bytes) added."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        if top:
            archive.writestr(f"{top}/", b"")
        for path in sorted(folder.iterdir()):
            archive.write(path, f"{top}/{path.name}" if top else path.name)
        for name, body in extra:
            archive.writestr(name, body)
    return made.getvalue()


@pytest.fixture
def server(hc18_folder, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Server()
    served.files = {
        "training_set.zip": zipped(hc18_folder / "training_set"),
        "test_set.zip": zipped(hc18_folder / "test_set", top="test_set"),
        **{name: (hc18_folder / name).read_bytes() for name in CSVS},
    }
    yield served
    served.http.shutdown()
    served.http.server_close()


def get(server, root, **changes):
    settings = {
        "record_url": server.record_url,
        "known_md5": server.prefixes(),
        "patience": QUICK,
    }
    return fetch_hc18(root, **(settings | changes))


def test_fetches_the_official_layout(server, tmp_path, hc18_folder):
    seen = []
    fetched = get(server, tmp_path / "new" / "hc18", progress=lambda *told: seen.append(told))
    root = tmp_path / "new" / "hc18"
    assert fetched.files == (*CSVS, "training_set.zip", "test_set.zip")
    assert (fetched.n_training, fetched.n_test) == (12, 2)
    assert sorted(path.name for path in root.iterdir()) == sorted(
        ["training_set", "test_set", *CSVS]
    )
    for path in (hc18_folder / "training_set").iterdir():
        assert (root / "training_set" / path.name).read_bytes() == path.read_bytes()
    assert [s.sample_id for s in read_hc18(root)] == [s.sample_id for s in read_hc18(hc18_folder)]
    size = len(server.files["training_set.zip"])
    assert ("training_set.zip", size, size) in seen
    assert stat.S_IMODE((root / "training_set").stat().st_mode) == 0o755


def test_done_is_done_without_a_request(server, tmp_path):
    get(server, tmp_path)
    server.asked.clear()
    again = get(server, tmp_path)
    assert (again.files, again.n_training) == ((), 12)
    assert server.asked == []


def test_a_cut_connection_goes_on_where_it_stopped(server, tmp_path):
    # More cuts than attempts: each brings something.
    server.script["training_set.zip"] = ["cut"] * 5
    get(server, tmp_path)
    asked = [wanted for name, wanted in server.asked if name == "training_set.zip"]
    size = len(server.files["training_set.zip"])
    starts, have = [None], 0
    for _ in range(5):
        have += (size - have) // 2
        starts.append(f"bytes={have}-")
    assert asked == starts


def test_a_stopped_fetch_goes_on_in_the_next(server, tmp_path):
    server.script["training_set.zip"] = ["cut", 503, 503]
    with pytest.raises(InputError, match=r"HTTP 503 .*, 3 times in a row; run the same command"):
        get(server, tmp_path)
    half = len(server.files["training_set.zip"]) // 2
    assert (tmp_path / ".fetch" / "training_set.zip.part").stat().st_size == half
    assert not (tmp_path / "training_set").exists()
    server.asked.clear()
    assert get(server, tmp_path).files == ("training_set.zip", "test_set.zip")
    assert ("training_set.zip", f"bytes={half}-") in server.asked
    assert not {name for name, _ in server.asked} & set(CSVS)
    assert not (tmp_path / ".fetch").exists()


def test_503_then_well(server, tmp_path):
    server.script = {"record": [503, 429], "test_set.zip": [500, 502]}
    assert get(server, tmp_path).n_test == 2


def test_a_fetch_killed_while_unpacking_leaves_nothing_behind(server, tmp_path, hc18_folder):
    work = tmp_path / "new" / ".fetch"
    (work / ".training_set.abc").mkdir(parents=True)
    # Unpacked, but not yet moved to its place.
    shutil.copytree(hc18_folder / "training_set", work / "training_set")
    (work / "training_set.zip").write_bytes(server.files["training_set.zip"])
    assert get(server, tmp_path / "new").n_training == 12
    assert "training_set.zip" not in {name for name, _ in server.asked}
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == sorted(["training_set", "test_set", *CSVS])


def test_without_ranges_it_starts_again(server, tmp_path):
    server.ranges = False
    server.script["training_set.zip"] = ["cut"]
    assert get(server, tmp_path).n_training == 12
    assert [n for n, _ in server.asked].count("training_set.zip") == 2


def test_without_ranges_cuts_come_to_an_end(server, tmp_path):
    server.ranges = False
    server.script["training_set.zip"] = ["cut"] * 50
    with pytest.raises(InputError, match="the connection ended at"):
        get(server, tmp_path)
    # The first brought something, two more did not.
    assert Counter(name for name, _ in server.asked)["training_set.zip"] == 3


def test_another_part_than_asked_for_is_not_used(server, tmp_path):
    server.script["training_set.zip"] = ["cut", "from the middle"]
    assert get(server, tmp_path).n_training == 12


def part_of(server, root, body):
    (root / ".fetch").mkdir(parents=True)
    (root / ".fetch" / "training_set.zip.part").write_bytes(body)


@pytest.mark.parametrize(
    ("left", "n_asked"), [("longer", 1), ("whole", 0), ("wrong but as long", 1), ("other half", 2)]
)
def test_what_an_earlier_fetch_left(server, tmp_path, left, n_asked):
    body = server.files["training_set.zip"]
    made = {
        "longer": body + b"x" * 10,
        "whole": body,
        "wrong but as long": b"x" * len(body),
        # Resumed it has the right size and the wrong MD5; then it comes whole.
        "other half": b"x" * (len(body) // 2),
    }
    part_of(server, tmp_path, made[left])
    assert get(server, tmp_path).n_training == 12
    assert Counter(name for name, _ in server.asked)["training_set.zip"] == n_asked


def test_416_starts_again(tmp_path, server):
    # The server's file is shorter than the part, the record says longer.
    body = b"0123456789"
    server.files["a"] = body
    (tmp_path / "a.part").write_bytes(b"x" * 10)
    file = RemoteFile(name="a", size_bytes=11, md5=md5(body), url=f"{server.url}/a")
    with pytest.raises(InputError, match="10 bytes on the server, 11 in the record"):
        download(file, tmp_path, patience=QUICK)
    assert server.asked[:2] == [("a", "bytes=10-"), ("a", None)]
    server.files["a"] = b"0123456789a"
    file = RemoteFile(name="a", size_bytes=11, md5=md5(server.files["a"]), url=f"{server.url}/a")
    server.script["a"] = [416]
    (tmp_path / "a.part").write_bytes(b"01234")
    assert download(file, tmp_path, patience=QUICK).read_bytes() == b"0123456789a"


def test_an_empty_file(tmp_path, server):
    server.files["a"] = b""
    file = RemoteFile(name="a", size_bytes=0, md5=md5(b""), url=f"{server.url}/a")
    (tmp_path / "a.part").write_bytes(b"")
    assert download(file, tmp_path, patience=QUICK).read_bytes() == b""


def test_damaged_once_is_fetched_again(server, tmp_path):
    wrong = bytes(len(server.files["training_set.zip"]))
    server.script["training_set.zip"] = [wrong]
    assert get(server, tmp_path).n_training == 12
    assert [n for n, _ in server.asked].count("training_set.zip") == 2


def test_damaged_twice_is_refused(server, tmp_path):
    wrong = bytes(len(server.files["training_set.zip"]))
    server.script["training_set.zip"] = [wrong, wrong]
    with pytest.raises(InputError, match="damaged twice, its MD5 is not the record's"):
        get(server, tmp_path)
    assert not list((tmp_path / ".fetch").iterdir())
    assert not (tmp_path / "training_set").exists()


def test_404_is_refused_at_once(server, tmp_path):
    server.script["training_set_pixel_size_and_HC.csv"] = [404]
    with pytest.raises(InputError, match=r"HC.csv/content: HTTP 404 Not Found; look at it"):
        get(server, tmp_path)
    assert len(server.asked) == 2
    with pytest.raises(InputError, match="HTTP 404"):
        get(server, tmp_path, record_url=f"{server.url}/gone")


def test_nobody_answers(server, tmp_path):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(InputError, match=r"/record: .*refused, 3 times in a row") as caught:
        get(server, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"<html>log in</html>", "answers no JSON"),
        (b"[]", "not a record with files"),
        (b'{"files": [{"key": "a"}]}', "not a record with files"),
        (b'{"files": []}', "the record holds no training_set.zip"),
    ],
)
def test_a_record_that_is_none(server, tmp_path, record, message):
    server.script["record"] = [record]
    with pytest.raises(InputError, match=message):
        get(server, tmp_path)


def test_a_changed_record_is_refused_before_anything_is_fetched(server, tmp_path):
    known = server.prefixes() | {"test_set.zip": "8402af5d"}
    with pytest.raises(InputError, match="the published one begins with 8402af5d"):
        get(server, tmp_path, known_md5=known)
    assert [name for name, _ in server.asked] == ["record"]


def test_links_of_other_kinds(server, tmp_path):
    elsewhere = {"test_set.zip": {"links": {"self": "file:///etc/passwd"}}}
    server.script["record"] = [json.dumps(server.record(**elsewhere)).encode()]
    with pytest.raises(InputError, match="not an http address"):
        get(server, tmp_path)
    # InvenioRDM's own way: by name, with the bytes under `content`.
    entries = {
        entry["key"]: {**entry, "links": {"self": "nowhere", "content": entry["links"]["self"]}}
        for entry in server.record()["files"]
    }
    server.script["record"] = [json.dumps({"files": {"entries": entries}}).encode()]
    assert get(server, tmp_path).n_training == 12


def test_a_small_disk_is_refused_first(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"MiB are needed, 0 MiB are free"):
        get(server, tmp_path)
    assert [name for name, _ in server.asked] == ["record"]


def test_others_files_are_left_alone(server, tmp_path):
    (tmp_path / CSVS[0]).write_text("mine")
    with pytest.raises(InputError, match="not the official file"):
        get(server, tmp_path)
    assert (tmp_path / CSVS[0]).read_text() == "mine"
    (tmp_path / CSVS[0]).unlink()
    get(server, tmp_path)
    (tmp_path / "training_set" / "001_HC.png").unlink()
    with pytest.raises(InputError, match=r"training_set: is there, but not whole \(") as caught:
        get(server, tmp_path)
    assert "\n" not in str(caught.value)
    shutil.rmtree(tmp_path / "training_set")
    assert get(server, tmp_path).files == ("training_set.zip",)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file; give a folder"):
        get(server, tmp_path / "file")


def test_two_at_once(server, tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, os, sys; d = os.open(sys.argv[1], os.O_RDONLY); "
            "fcntl.flock(d, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()",
            str(tmp_path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another fetch is at work in it"):
            get(server, tmp_path)
    finally:
        holder.communicate("")
    assert get(server, tmp_path).n_training == 12


def write_zip(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in entries:
            archive.writestr(name, body)
    return path


def link(name):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("../evil.png", b"x")], "'../evil.png' leads out of the folder; not unpacked"),
        ([("/tmp/evil.png", b"x")], "leads out of the folder"),
        ([("set\\evil.png", b"x")], "leads out of the folder"),
        ([(link("set/a.png"), b"/etc/passwd")], "leads out of the folder"),
        ([("set/run.sh", b"x")], "is not expected there"),
        ([("other/a.png", b"x")], "is not expected there"),
        ([("set/a.png", b"x"), ("a.png", b"y")], "is there twice"),
        ([("__MACOSX/set/._a.png", b"x")], "holds no PNG file"),
        ([("set/a.png", bytes(10_000_000))], "would unpack to 10 MiB, far more"),
        ([], "holds no PNG file"),
    ],
)
def test_strange_archives_are_not_unpacked(tmp_path, entries, message):
    archive = write_zip(tmp_path / "set.zip", entries)
    with pytest.raises(InputError) as caught:
        unpack(archive, tmp_path / "in" / "set")
    assert message in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]


def test_damaged_archives(tmp_path):
    path = tmp_path / "set.zip"
    path.write_bytes(b"no zip")
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(path, tmp_path / "set")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("set/a.png", b"content of a")
    path.write_bytes(path.read_bytes().replace(b"content of a", b"content of b"))
    with pytest.raises(InputError, match="Bad CRC-32"):
        unpack(path, tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]


def test_flat_archives_and_clutter(tmp_path, hc18_folder):
    clutter = [("__MACOSX/._a.png", b"x"), ("test_set/.DS_Store", b"x"), ("Thumbs.db", b"x")]
    path = tmp_path / "test_set.zip"
    for top in ("", "test_set"):
        path.write_bytes(zipped(hc18_folder / "test_set", top=top, extra=clutter))
        unpack(path, tmp_path / f"in{top}" / "test_set")
        names = [each.name for each in (tmp_path / f"in{top}" / "test_set").iterdir()]
        assert sorted(names) == ["000_HC.png", "001_HC.png"]


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["sonosweep", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    out = capsys.readouterr()
    return ended.value.code or 0, out.out, out.err


def test_the_command(server, tmp_path, monkeypatch, capsys):
    for name, prefix in server.prefixes().items():
        monkeypatch.setitem(fetch.HC18_MD5, name, prefix)
    root = tmp_path / "new"
    words = ["data", "fetch", "hc18", "--to", root, "--record-url", server.record_url]
    code, out, _ = run(monkeypatch, capsys, *words)
    assert code == 0
    assert out.splitlines() == [
        HC18_LICENCE,
        f"{root}: fetched {', '.join((*CSVS, 'training_set.zip', 'test_set.zip'))}; "
        "12 training and 2 test images",
        f"next: make demo HC18_ROOT={root}",
    ]
    code, out, _ = run(monkeypatch, capsys, *words)
    assert code == 0
    assert "all there, nothing to fetch; 12 training and 2 test images" in out


def test_the_command_refuses_in_one_line(server, tmp_path, monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, "data", "fetch", "hc19", "--to", tmp_path / "x")
    assert (code, err.strip().count("\n")) == (2, 0)
    assert "data fetch hc19: unknown; the one set to fetch is hc18" in err
    assert not (tmp_path / "x").exists()
    # The published prefixes hold where nobody says otherwise.
    words = ["data", "fetch", "hc18", "--to", tmp_path / "x", "--record-url", server.record_url]
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == 2
    assert "the published one begins with 00eb8198; the record has changed" in err


def test_the_record_is_the_official_one():
    assert RECORD_URL == "https://zenodo.org/api/records/1327317"
    assert HC18_MD5 == {
        "training_set.zip": "00eb8198",
        "test_set.zip": "8402af5d",
        "training_set_pixel_size_and_HC.csv": "c0761518",
        "test_set_pixel_size.csv": "8476dc19",
    }
