"""`sonosweep data fetch hc18` against a server of our own that misbehaves as it is told."""

import io
import json
import shutil
import stat
import zipfile
from types import SimpleNamespace

import pytest
from file_server import HTML, Server, md5

from datamodules import fetch
from datamodules.attribution import HC18_LICENCE
from datamodules.download import RemoteFile, RetryPolicy, download, locked
from datamodules.errors import InputError

QUICK = RetryPolicy(attempts=3, timeout_s=5.0, backoff_s=0.001)
CSVS = ("training_set_pixel_size_and_HC.csv", "test_set_pixel_size.csv")
BIG = "training_set.zip"
PUBLISHED = fetch.HC18_MD5[BIG]


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
    """Serves HC18's files, one archive flat and with clutter, and their record as Zenodo does."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Server()
    files = {name: (hc18_folder / name).read_bytes() for name in CSVS}
    files[BIG] = zipped(*contents(hc18_folder / "training_set", "training_set/"))
    clutter = [("test_set/", b""), ("__MACOSX/._a.png", b"x"), ("test_set/.DS_Store", b"x")]
    files["test_set.zip"] = zipped(*contents(hc18_folder / "test_set"), *clutter)
    record = [
        {"key": name, "size": len(body), "checksum": f"md5:{md5(body)}"}
        | {"links": {"self": f"{served.url}/api/files/{name}/content"}}
        for name, body in files.items()
    ]
    served.files = files | {"record": json.dumps({"files": record}).encode()}
    for name, body in files.items():
        monkeypatch.setitem(fetch.HC18_MD5, name, md5(body)[:8])
    yield served
    served.close()


def get(server, root, **more):
    return fetch.fetch_hc18(root, record_url=f"{server.url}/record", retry=QUICK, **more)


def outcome(server, root):
    """How many training images a fetch brings, or the line that refuses it."""
    try:
        return f"brings {get(server, root).n_training}"
    except InputError as error:
        return str(error)


def test_fetches_the_official_layout_and_asks_for_nothing_twice(server, tmp_path, hc18_folder):
    seen, root = [], tmp_path / "new" / "hc18"
    fetched = get(server, root, progress=lambda *told: seen.append(told))
    assert (len(fetched.files), fetched.n_training, fetched.n_test) == (4, 12, 2)
    assert {path.name for path in root.iterdir()} == {"training_set", "test_set", *CSVS}
    for name in ("training_set", "test_set"):
        assert contents(root / name) == contents(hc18_folder / name)
    size = len(server.files[BIG])
    assert (BIG, size, size) in seen
    assert stat.S_IMODE((root / "training_set").stat().st_mode) == 0o755
    server.close()
    assert (get(server, root).files, outcome(server, root)) == ((), "brings 12")
    (root / "test_set").rename(tmp_path / "away")
    assert "refused, 3 times in a row; run the same command again" in outcome(server, root)


@pytest.mark.parametrize(
    ("script", "has_ranges", "n_asked", "expected"),
    [
        # Each brings something, so more cuts than attempts are no failure.
        ({BIG: ["cut"] * 5}, True, 6, "brings 12"),
        ({BIG: ["cut", "from the middle"]}, True, 3, "brings 12"),
        ({"record": [503, 429], BIG: [500, 502]}, True, 3, "brings 12"),
        # The first brings something, two more do not.
        ({BIG: ["cut"] * 50}, False, 3, "the connection ended at"),
        ({BIG: ["zeros", "zeros"]}, True, 2, "damaged twice, its MD5 is not the record's"),
        ({BIG: [b"less"] * 3}, True, 3, ": 4 bytes on the server, "),
        # The part is longer than all that the server has, which is then asked for.
        ({BIG: ["cut", b"less", b"less"]}, True, 3, ": 4 bytes on the server, "),
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


def test_an_empty_file_is_one(server, tmp_path):
    server.files["a"] = b""
    empty = RemoteFile(name="a", size_bytes=0, md5=md5(b""), url=f"{server.url}/a")
    assert download(empty, tmp_path, retry=QUICK).read_bytes() == b""


def test_a_full_disk(tmp_path, server, monkeypatch):
    """While writing: the system's own error, at once. Known before: nothing is fetched."""
    (tmp_path / ".fetch").mkdir()
    (tmp_path / ".fetch" / f"{BIG}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        get(server, tmp_path)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert "MiB are needed, 0 MiB are free" in outcome(server, tmp_path)
    assert server.times(BIG) == 1


def test_links_of_other_kinds(server, tmp_path):
    files = json.loads(server.files["record"])["files"]
    # InvenioRDM's own way: by name, with the bytes under `content`.
    files[3]["links"] = {"self": "nowhere", "content": "file:///etc/passwd"}
    by_name = {"files": {"entries": {entry["key"]: entry for entry in files}}}
    server.script["record"] = [json.dumps(by_name).encode()]
    assert "file:///etc/passwd: not an http address" in outcome(server, tmp_path)


def test_others_work_and_files_are_left_alone(server, tmp_path):
    with locked(tmp_path):
        assert "another fetch is at work in it" in outcome(server, tmp_path)
    (tmp_path / CSVS[0]).write_text("mine")
    assert "not the official file" in outcome(server, tmp_path)
    assert (tmp_path / CSVS[0]).read_text() == "mine"
    (tmp_path / CSVS[0]).unlink()
    get(server, tmp_path)
    (tmp_path / "training_set" / "001_HC.png").unlink()
    assert "training_set: is there, but not whole (" in outcome(server, tmp_path)


LINK = zipfile.ZipInfo("set/a.png")
LINK.external_attr = (stat.S_IFLNK | 0o777) << 16
STRANGE = {
    "leads out": (zipped(("../evil.png", b"x")), "'../evil.png' is not expected there"),
    "a link": (zipped((LINK, b"/etc/passwd")), "'set/a.png' is not expected there"),
    "a program": (zipped(("set/run.sh", b"x")), "is not expected there; not unpacked"),
    "a name twice": (zipped(("set/a.png", b"x"), ("a.png", b"y")), "'a.png' is not expected there"),
    "clutter alone": (zipped(("__MACOSX/set/._a.png", b"x")), "holds no PNG file"),
    "a bomb": (zipped(("set/a.png", bytes(10_000_000))), "would unpack to 10 MiB, far more"),
    "no zip": (b"no zip", "cannot be unpacked"),
    "damaged": (zipped(("set/a.png", b"1234")).replace(b"1234", b"1235"), "Bad CRC-32"),
}


@pytest.mark.parametrize(("archive", "message"), STRANGE.values(), ids=STRANGE)
def test_strange_archives_are_not_unpacked(tmp_path, archive, message):
    (tmp_path / "set.zip").write_bytes(archive)
    with pytest.raises(InputError) as caught:
        fetch.unpack(tmp_path / "set.zip", tmp_path / "in" / "set")
    assert message in str(caught.value)
    assert not list(tmp_path.rglob("*.png"))


def test_the_command(server, tmp_path, monkeypatch, sonosweep):
    root = tmp_path / "new"
    words = ["data", "fetch", "hc18", "--to", root, "--record-url", f"{server.url}/record"]
    code, _, said = sonosweep("data", "fetch", "hc19", "--to", root)
    assert (code, said.count("\n"), root.exists()) == (2, 1, False)
    # What is not the published file is not fetched at all.
    with monkeypatch.context() as published:
        published.setitem(fetch.HC18_MD5, BIG, PUBLISHED)
        code, _, said = sonosweep(*words)
    assert (code, "the published one begins with 00eb8198" in said) == (2, True)
    assert server.asked == [("record", None)]
    code, said, _ = sonosweep(*words)
    assert (code, said.splitlines()[0]) == (0, HC18_LICENCE)
    assert f"\nnext: make demo HC18_ROOT={root}\n" in said
    assert "all there, nothing to fetch; 12 training and 2 test images" in sonosweep(*words)[1]
