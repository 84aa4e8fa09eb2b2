"""`sonosweep data fetch hc18` against a server of our own that misbehaves as it is told."""

import errno
import io
import json
import shutil
import stat
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import pytest
from file_server import HTML, Server, md5

from datamodules import fetch
from datamodules.attribution import HC18_LICENCE
from datamodules.download import RemoteFile, RetryPolicy, download
from datamodules.errors import InputError
from datamodules.fetch import fetch_hc18, unpack
from datamodules.samples import read_hc18
from experiments.__main__ import main

QUICK = RetryPolicy(attempts=3, timeout_s=5.0, backoff_s=0.001)
CSVS = ("training_set_pixel_size_and_HC.csv", "test_set_pixel_size.csv")
ALL = (*CSVS, "training_set.zip", "test_set.zip")
BIG = "training_set.zip"


def record(server, **changes):
    """The record as Zenodo gives it."""
    entries = [
        {
            "key": name,
            "size": len(body),
            "checksum": f"md5:{md5(body)}",
            "links": {"self": f"{server.url}/api/files/{name}/content"},
        }
        | changes.get(name, {})
        for name, body in server.files.items()
        if name != "record"
    ]
    return {"id": 1327317, "files": entries}


def prefixes(server):
    return {name: md5(server.files[name])[:8] for name in ALL}


def zipped(folder, *, top, extra=()):
    """A zip of a folder's files below `top`, with entries of (name, bytes) added."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()) if folder else ():
            archive.write(path, f"{top}{path.name}")
        for name, body in extra:
            archive.writestr(name, body)
    return made.getvalue()


@pytest.fixture
def server(hc18_folder, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Server()
    served.files = {name: (hc18_folder / name).read_bytes() for name in CSVS} | {
        f"{name}.zip": zipped(hc18_folder / name, top=f"{name}/")
        for name in ("training_set", "test_set")
    }
    served.files["record"] = json.dumps(record(served)).encode()
    yield served
    served.close()


def get(server, root, **changes):
    settings = {"record_url": f"{server.url}/record", "known_md5": prefixes(server)}
    return fetch_hc18(root, **(settings | {"retry": QUICK} | changes))


def one_file(server, body, **changes):
    server.files["a"] = body
    facts = {"name": "a", "size_bytes": len(body), "md5": md5(body), "url": f"{server.url}/a"}
    return RemoteFile(**(facts | changes))


def test_fetches_the_official_layout(server, tmp_path, hc18_folder):
    seen, root = [], tmp_path / "new" / "hc18"
    fetched = get(server, root, progress=lambda *told: seen.append(told))
    assert (fetched.files, fetched.n_training, fetched.n_test) == (ALL, 12, 2)
    assert {path.name for path in root.iterdir()} == {"training_set", "test_set", *CSVS}
    for path in (hc18_folder / "training_set").iterdir():
        assert (root / "training_set" / path.name).read_bytes() == path.read_bytes()
    assert [s.sample_id for s in read_hc18(root)] == [s.sample_id for s in read_hc18(hc18_folder)]
    size = len(server.files[BIG])
    assert (BIG, size, size) in seen
    assert stat.S_IMODE((root / "training_set").stat().st_mode) == 0o755
    server.asked.clear()
    again = get(server, root)
    assert (again.files, again.n_training, server.asked) == ((), 12, [])


@pytest.mark.parametrize(
    ("script", "has_ranges", "n_asked"),
    [
        # More cuts than attempts: each brings something.
        ({BIG: ["cut"] * 5}, True, 6),
        ({BIG: ["cut", "from the middle"]}, True, 3),
        ({"record": [503, 429], BIG: [500, 502]}, True, 3),
        ({BIG: ["cut", 416]}, True, 3),
        # Damaged once.
        ({BIG: ["zeros"]}, True, 2),
    ],
)
def test_what_goes_wrong_and_then_well(server, tmp_path, script, has_ranges, n_asked):
    server.script = {name: list(steps) for name, steps in script.items()}
    server.has_ranges = has_ranges
    assert get(server, tmp_path).n_training == 12
    assert server.times(BIG) == n_asked
    assert not (tmp_path / ".fetch").exists()
    if n_asked == 6:
        have, size = [0], len(server.files[BIG])
        while len(have) < n_asked:
            have.append(have[-1] + (size - have[-1]) // 2)
        wanted = [None, *(f"bytes={n}-" for n in have[1:])]
        assert [asked for name, asked in server.asked if name == BIG] == wanted


def test_a_stopped_fetch_goes_on_in_the_next(server, tmp_path):
    server.script[BIG] = ["cut", 503, 503]
    with pytest.raises(InputError, match=r"HTTP 503 .*, 3 times in a row; run the same command"):
        get(server, tmp_path)
    half = len(server.files[BIG]) // 2
    assert (tmp_path / ".fetch" / f"{BIG}.part").stat().st_size == half
    assert not (tmp_path / "training_set").exists()
    server.asked.clear()
    assert get(server, tmp_path).files == (BIG, "test_set.zip")
    assert (BIG, f"bytes={half}-") in server.asked
    assert not {name for name, _ in server.asked} & set(CSVS)


@pytest.mark.parametrize(
    ("script", "has_ranges", "message", "n_asked"),
    [
        # The first brings something, two more do not.
        ({BIG: ["cut"] * 50}, False, "the connection ended at", 3),
        ({BIG: ["zeros", "zeros"]}, True, "damaged twice, its MD5 is not the record's", 2),
        ({BIG: [b"less"] * 3}, True, r"4 bytes on the server, \d+ in the record", 3),
        ({BIG: ["html"]}, True, "answers with a web page; look at it in a browser", 1),
        ({"record": [HTML]}, True, "answers no JSON", 0),
        ({"record": [b'{"files": []}']}, True, r"the record holds no \w+\.csv", 0),
    ],
)
def test_what_is_refused_in_one_line(server, tmp_path, script, has_ranges, message, n_asked):
    server.script = {name: list(steps) for name, steps in script.items()}
    server.has_ranges = has_ranges
    with pytest.raises(InputError, match=message) as caught:
        get(server, tmp_path)
    assert "\n" not in str(caught.value)
    assert server.times(BIG) == n_asked
    assert not (tmp_path / "training_set").exists()


def test_a_server_that_does_not_answer(server, tmp_path):
    server.close()
    with pytest.raises(InputError, match=r"/record: .*refused, 3 times in a row") as caught:
        get(server, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_fetch_killed_while_unpacking_leaves_nothing_behind(server, tmp_path, hc18_folder):
    work = tmp_path / ".fetch"
    (work / ".training_set.abc").mkdir(parents=True)
    # Unpacked, but not yet moved to its place.
    shutil.copytree(hc18_folder / "training_set", work / "training_set")
    (work / BIG).write_bytes(server.files[BIG])
    assert (get(server, tmp_path).n_training, server.times(BIG)) == (12, 0)
    assert not (tmp_path / ".fetch").exists()


@pytest.mark.parametrize(
    ("left", "n_asked"),
    [
        (lambda body: body + b"x" * 10, 1),
        (lambda body: body, 0),
        # Resumed it has the right size and the wrong MD5; then it comes whole.
        (lambda body: b"x" * (len(body) // 2), 2),
    ],
)
def test_what_an_earlier_fetch_left(server, tmp_path, left, n_asked):
    (tmp_path / ".fetch").mkdir()
    (tmp_path / ".fetch" / f"{BIG}.part").write_bytes(left(server.files[BIG]))
    assert (get(server, tmp_path).n_training, server.times(BIG)) == (12, n_asked)


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
    with pytest.raises(InputError, match=r"MiB are needed, 0 MiB are free"):
        get(server, tmp_path)
    assert server.asked[1:] == [("record", None)]


def test_a_changed_record_is_refused_before_anything_is_fetched(server, tmp_path):
    known = prefixes(server) | {"test_set.zip": "8402af5d"}
    with pytest.raises(InputError, match="the published one begins with 8402af5d"):
        get(server, tmp_path, known_md5=known)
    assert [name for name, _ in server.asked] == ["record"]


def test_links_of_other_kinds(server, tmp_path):
    elsewhere = {"test_set.zip": {"links": {"self": "file:///etc/passwd"}}}
    server.script["record"] = [json.dumps(record(server, **elsewhere)).encode()]
    with pytest.raises(InputError, match="not an http address"):
        get(server, tmp_path)
    # InvenioRDM's own way: by name, with the bytes under `content`.
    entries = {
        entry["key"]: {**entry, "links": {"self": "nowhere", "content": entry["links"]["self"]}}
        for entry in record(server)["files"]
    }
    server.script["record"] = [json.dumps({"files": {"entries": entries}}).encode()]
    assert get(server, tmp_path).n_training == 12


def test_others_files_are_left_alone(server, tmp_path):
    (tmp_path / CSVS[0]).write_text("mine")
    with pytest.raises(InputError, match="not the official file"):
        get(server, tmp_path)
    assert (tmp_path / CSVS[0]).read_text() == "mine"
    (tmp_path / CSVS[0]).unlink()
    get(server, tmp_path)
    (tmp_path / "training_set" / "001_HC.png").unlink()
    with pytest.raises(InputError, match=r"training_set: is there, but not whole \(.*\)"):
        get(server, tmp_path)


def test_two_at_once(server, tmp_path):
    code = (
        "import fcntl, os, sys; d = os.open(sys.argv[1], os.O_RDONLY); "
        "fcntl.flock(d, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another fetch is at work in it"):
            get(server, tmp_path)
        holder.communicate("")
    assert get(server, tmp_path).n_training == 12


def link(name):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("../evil.png", b"x")], "'../evil.png' is not expected there; not unpacked"),
        ([(link("set/a.png"), b"/etc/passwd")], "is not expected there"),
        ([("set/run.sh", b"x")], "is not expected there"),
        ([("set/a.png", b"x"), ("a.png", b"y")], "'a.png' is not expected there"),
        ([("__MACOSX/set/._a.png", b"x")], "holds no PNG file"),
        ([("set/a.png", bytes(10_000_000))], "would unpack to 10 MiB, far more"),
        (b"no zip", "cannot be unpacked"),
        (b"damaged", "Bad CRC-32"),
    ],
)
def test_strange_archives_are_not_unpacked(tmp_path, entries, message):
    archive = tmp_path / "set.zip"
    if entries == b"damaged":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as made:
            made.writestr("set/a.png", b"content of a")
        entries = archive.read_bytes().replace(b"content of a", b"content of b")
    is_list = isinstance(entries, list)
    archive.write_bytes(zipped(None, top="", extra=entries) if is_list else entries)
    with pytest.raises(InputError) as caught:
        unpack(archive, tmp_path / "in" / "set")
    assert message in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] in (["set.zip"], ["set.zip", "in"])


def test_flat_archives_and_clutter(tmp_path, hc18_folder):
    clutter = [("test_set/", b""), ("__MACOSX/._a.png", b"x"), ("test_set/.DS_Store", b"x")]
    path, folder = tmp_path / "test_set.zip", tmp_path / "in" / "test_set"
    path.write_bytes(zipped(hc18_folder / "test_set", top="", extra=clutter))
    unpack(path, folder)
    assert {each.name for each in folder.iterdir()} == {"000_HC.png", "001_HC.png"}


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
    # The published prefixes hold where nothing else is given.
    code, _, err = run(*words)
    assert (code, "the published one begins with 00eb8198" in err[-1]) == (2, True)
    for name, prefix in prefixes(server).items():
        monkeypatch.setitem(fetch.HC18_MD5, name, prefix)
    code, out, _ = run(*words)
    assert (code, out[0]) == (0, HC18_LICENCE)
    assert out[2] == f"next: make demo HC18_ROOT={root}"
    assert "all there, nothing to fetch; 12 training and 2 test images" in run(*words)[1][1]
