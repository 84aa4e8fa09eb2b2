"""`sonosweep data fetch hc18` against a server of our own that misbehaves as it is told."""

import errno
import io
import json
import shutil
import stat
import sys
import zipfile
from types import SimpleNamespace

import pytest
from file_server import HTML, Server, md5

from datamodules import fetch
from datamodules.attribution import HC18_LICENCE
from datamodules.download import RemoteFile, RetryPolicy, download, locked
from datamodules.errors import InputError
from datamodules.fetch import fetch_hc18, unpack
from datamodules.samples import read_hc18
from experiments.__main__ import main

QUICK = RetryPolicy(attempts=3, timeout_s=5.0, backoff_s=0.001)
CSVS = ("training_set_pixel_size_and_HC.csv", "test_set_pixel_size.csv")
ALL = (*CSVS, "training_set.zip", "test_set.zip")
BIG = "training_set.zip"


def record(server):
    """The record's files as Zenodo lists them."""
    return [
        {
            "key": name,
            "size": len(server.files[name]),
            "checksum": f"md5:{md5(server.files[name])}",
            "links": {"self": f"{server.url}/api/files/{name}/content"},
        }
        for name in ALL
    ]


def prefixes(server):
    return {name: md5(server.files[name])[:8] for name in ALL}


def zipped(*entries):
    """A zip of (name, bytes); a few bytes stand in it as they are."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, body in entries:
            archive.writestr(name, body, zipfile.ZIP_DEFLATED if len(body) > 99 else None)
    return made.getvalue()


def contents(folder, top=""):
    return [(f"{top}{path.name}", path.read_bytes()) for path in sorted(folder.iterdir())]


@pytest.fixture
def server(hc18_folder, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Server()
    served.files = {name: (hc18_folder / name).read_bytes() for name in CSVS}
    for name in ("training_set", "test_set"):
        served.files[f"{name}.zip"] = zipped(*contents(hc18_folder / name, f"{name}/"))
    served.files["record"] = json.dumps({"files": record(served)}).encode()
    yield served
    served.close()


def get(server, root, **more):
    known = prefixes(server)
    return fetch_hc18(root, record_url=f"{server.url}/record", known_md5=known, retry=QUICK, **more)


def outcome(server, root):
    """How many training images a fetch brings, or the line that refuses it."""
    try:
        return f"brings {get(server, root).n_training}"
    except InputError as error:
        return str(error)


def test_fetches_the_official_layout(server, tmp_path, hc18_folder):
    seen, root = [], tmp_path / "new" / "hc18"
    fetched = get(server, root, progress=lambda *told: seen.append(told))
    assert (fetched.files, fetched.n_training, fetched.n_test) == (ALL, 12, 2)
    assert {path.name for path in root.iterdir()} == {"training_set", "test_set", *CSVS}
    assert contents(root / "training_set") == contents(hc18_folder / "training_set")
    assert [s.sample_id for s in read_hc18(root)] == [s.sample_id for s in read_hc18(hc18_folder)]
    size = len(server.files[BIG])
    assert (BIG, size, size) in seen
    assert stat.S_IMODE((root / "training_set").stat().st_mode) == 0o755
    server.asked.clear()
    again = get(server, root)
    assert (again.files, again.n_training, server.asked) == ((), 12, [])


@pytest.mark.parametrize(
    ("script", "has_ranges", "n_asked", "expected"),
    [
        # Each brings something, so more cuts than attempts are no failure.
        ({BIG: ["cut"] * 5}, True, 6, "brings 12"),
        ({BIG: ["cut", "from the middle"]}, True, 3, "brings 12"),
        ({BIG: ["cut", 416]}, True, 3, "brings 12"),
        ({BIG: ["zeros"]}, True, 2, "brings 12"),
        ({"record": [503, 429], BIG: [500, 502]}, True, 3, "brings 12"),
        # The first brings something, two more do not.
        ({BIG: ["cut"] * 50}, False, 3, "the connection ended at"),
        ({BIG: ["zeros", "zeros"]}, True, 2, "damaged twice, its MD5 is not the record's"),
        ({BIG: [b"less"] * 3}, True, 3, ": 4 bytes on the server, "),
        ({BIG: ["html"]}, True, 1, "answers with a web page; look at it in a browser"),
        ({"record": [HTML]}, True, 0, "answers no JSON"),
        ({"record": [b'{"files": []}']}, True, 0, "the record holds no "),
    ],
)
def test_a_server_that_misbehaves(server, tmp_path, script, has_ranges, n_asked, expected):
    server.script = {name: list(steps) for name, steps in script.items()}
    server.has_ranges = has_ranges
    found = outcome(server, tmp_path)
    assert expected in found
    assert "\n" not in found
    assert server.times(BIG) == n_asked
    is_there = {path.name for path in tmp_path.iterdir()} - {"hc18"}
    assert ("training_set" in is_there) == (found == "brings 12")
    assert found != "brings 12" or ".fetch" not in is_there


def test_a_server_that_does_not_answer(server, tmp_path):
    server.close()
    assert "refused, 3 times in a row; run the same command again" in outcome(server, tmp_path)


def test_a_stopped_fetch_goes_on_in_the_next(server, tmp_path):
    server.script[BIG] = ["cut", 503, 503]
    assert "HTTP 503 Service Unavailable, 3 times in a row" in outcome(server, tmp_path)
    half = len(server.files[BIG]) // 2
    assert (tmp_path / ".fetch" / f"{BIG}.part").stat().st_size == half
    server.asked.clear()
    assert get(server, tmp_path).files == (BIG, "test_set.zip")
    assert (BIG, f"bytes={half}-") in server.asked
    assert not {name for name, _ in server.asked} & set(CSVS)


@pytest.mark.parametrize(
    ("name", "left", "n_asked"),
    [
        (f"{BIG}.part", lambda body: body + b"x" * 10, 1),
        (f"{BIG}.part", lambda body: body, 0),
        # Resumed it has the right size and the wrong MD5; then it comes whole.
        (f"{BIG}.part", lambda body: b"x" * (len(body) // 2), 2),
        (BIG, lambda body: body, 0),
    ],
)
def test_what_a_killed_fetch_left(server, tmp_path, hc18_folder, name, left, n_asked):
    work = tmp_path / ".fetch"
    (work / ".training_set.abc").mkdir(parents=True)
    # Unpacked, but not yet moved to its place.
    shutil.copytree(hc18_folder / "training_set", work / "training_set")
    (work / name).write_bytes(left(server.files[BIG]))
    assert (outcome(server, tmp_path), server.times(BIG)) == ("brings 12", n_asked)
    assert not work.exists()


def one_file(server, body, **changes):
    server.files["a"] = body
    facts = {"name": "a", "size_bytes": len(body), "md5": md5(body), "url": f"{server.url}/a"}
    return RemoteFile(**(facts | changes))


def test_a_server_without_the_part_is_asked_for_all_and_an_empty_file_is_one(tmp_path, server):
    # The server's file is shorter than the part, the record says longer.
    (tmp_path / "a.part").write_bytes(b"x" * 10)
    with pytest.raises(InputError, match="10 bytes on the server, 11 in the record"):
        download(one_file(server, b"0123456789", size_bytes=11), tmp_path, retry=QUICK)
    assert server.asked[:2] == [("a", "bytes=10-"), ("a", None)]
    assert download(one_file(server, b""), tmp_path, retry=QUICK).read_bytes() == b""


def test_a_full_disk(tmp_path, server, monkeypatch):
    """Known before: nothing is fetched. While writing: the system's own error, at once."""
    (tmp_path / "a.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        download(one_file(server, b"0123456789"), tmp_path, retry=QUICK)
    assert (caught.value.errno, server.times("a")) == (errno.ENOSPC, 1)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert "MiB are needed, 0 MiB are free" in outcome(server, tmp_path)
    assert server.asked[1:] == [("record", None)]


def test_links_of_other_kinds(server, tmp_path):
    files = record(server)
    # InvenioRDM's own way: by name, with the bytes under `content`.
    files[3]["links"] = {"self": "nowhere", "content": "file:///etc/passwd"}
    by_name = {"files": {"entries": {entry["key"]: entry for entry in files}}}
    server.script["record"] = [json.dumps(by_name).encode()]
    assert "file:///etc/passwd: not an http address" in outcome(server, tmp_path)
    assert outcome(server, tmp_path) == "brings 12"


def test_others_files_are_left_alone(server, tmp_path):
    (tmp_path / CSVS[0]).write_text("mine")
    assert "not the official file" in outcome(server, tmp_path)
    assert (tmp_path / CSVS[0]).read_text() == "mine"
    (tmp_path / CSVS[0]).unlink()
    get(server, tmp_path)
    (tmp_path / "training_set" / "001_HC.png").unlink()
    assert "training_set: is there, but not whole (" in outcome(server, tmp_path)


def test_two_at_once(server, tmp_path):
    with locked(tmp_path):
        assert "another fetch is at work in it" in outcome(server, tmp_path)
    assert outcome(server, tmp_path) == "brings 12"


def link(name):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


STRANGE = {
    "leads out": (zipped(("../evil.png", b"x")), "'../evil.png' is not expected there"),
    "a link": (zipped((link("set/a.png"), b"/etc/passwd")), "'set/a.png' is not expected there"),
    "a program": (zipped(("set/run.sh", b"x")), "is not expected there; not unpacked"),
    "a name twice": (zipped(("set/a.png", b"x"), ("a.png", b"y")), "'a.png' is not expected there"),
    "clutter alone": (zipped(("__MACOSX/set/._a.png", b"x")), "holds no PNG file"),
    "a bomb": (zipped(("set/a.png", bytes(10_000_000))), "would unpack to 10 MiB, far more"),
    "no zip": (b"no zip", "cannot be unpacked"),
    "damaged": (zipped(("set/a.png", b"1234")).replace(b"1234", b"1235"), "Bad CRC-32"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_strange_archives_are_not_unpacked(tmp_path, what):
    archive, message = STRANGE[what]
    (tmp_path / "set.zip").write_bytes(archive)
    with pytest.raises(InputError) as caught:
        unpack(tmp_path / "set.zip", tmp_path / "in" / "set")
    assert message in str(caught.value)
    assert not list(tmp_path.rglob("*.png"))


def test_flat_archives_and_clutter(tmp_path):
    clutter = [("test_set/", b""), ("__MACOSX/._a.png", b"x"), ("test_set/.DS_Store", b"x")]
    path, folder = tmp_path / "test_set.zip", tmp_path / "in" / "test_set"
    path.write_bytes(zipped(("000_HC.png", b"image"), *clutter))
    unpack(path, folder)
    assert contents(folder) == [("000_HC.png", b"image")]


def test_the_command(server, tmp_path, monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["sonosweep", "data", "fetch", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out = capsys.readouterr()
        return ended.value.code or 0, out.out.splitlines(), out.err.splitlines()

    root = tmp_path / "new"
    words = ["hc18", "--to", root, "--record-url", f"{server.url}/record"]
    code, _, err = run("hc19", "--to", root)
    assert (code, len(err), root.exists()) == (2, 1, False)
    # The published prefixes hold where nothing else is given, before anything is fetched.
    code, _, err = run(*words)
    assert (code, "the published one begins with 00eb8198" in err[-1]) == (2, True)
    assert server.asked == [("record", None)]
    for name, prefix in prefixes(server).items():
        monkeypatch.setitem(fetch.HC18_MD5, name, prefix)
    code, out, _ = run(*words)
    assert (code, out[0]) == (0, HC18_LICENCE)
    assert out[2] == f"next: make demo HC18_ROOT={root}"
    assert "all there, nothing to fetch; 12 training and 2 test images" in run(*words)[1][1]
