"""Three stores, one contract: the same tests run on local files, on gs:// and on a scheme of Beam's."""

import errno
import importlib.util
import io
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.localfilesystem import LocalFileSystem
from google.auth.credentials import AnonymousCredentials

from tests.support.faulty_storage import FaultyDisk, faulty
from tests.support.gcs_server import gcs  # noqa: F401
from tests.support.planned import file_at
from tests.support.webhdfs import serve_webhdfs
from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.storage import gcs as gcs_store
from transforms.storage import local
from transforms.storage.globs import expand_braces

NAMES = [
    "a/.hidden/b.jpg",
    "a/b/c/d.jpg",
    "a/b/e.png",
    "a/x.jpg",
    "a-b/y.jpg",
    "a.txt",
    "odd/#1 50%.jpg",
    "odd/[1].jpg",
    "odd/a{1,2}.jpg",
    "odd/naïve 写.jpg",
    "odd/what?.jpg",
    ".dot.jpg",
    "shard-000.tar",
    "shard-001.tar",
    "shard-010.tar",
    "shard-100.tar",
]


class OddFileSystem(LocalFileSystem):  # type: ignore[misc]
    """`odd:///path` is the local `/path`: stands for the schemes that only Beam knows."""

    @classmethod
    def scheme(cls):
        return "odd"

    def metadata(self, path):
        info = super().metadata(path.removeprefix("odd://"))
        return FileMetadata(path, info.size_in_bytes, info.last_updated_in_seconds)

    def _list(self, dir_or_prefix):
        for info in super()._list(dir_or_prefix.removeprefix("odd://")):
            yield FileMetadata(f"odd://{info.path}", info.size_in_bytes, info.last_updated_in_seconds)

    def create(self, path, *args, **kwargs):
        return super().create(path.removeprefix("odd://"), *args, **kwargs)

    def open(self, path, *args, **kwargs):
        return super().open(path.removeprefix("odd://"), *args, **kwargs)

    def exists(self, path):
        return super().exists(path.removeprefix("odd://"))

    def mkdirs(self, path):
        super().mkdirs(path.removeprefix("odd://"))

    def rename(self, sources, targets):
        for source, target in zip(sources, targets, strict=True):
            os.rename(source.removeprefix("odd://"), target.removeprefix("odd://"))

    def delete(self, paths):
        for path in paths:
            os.remove(path.removeprefix("odd://"))


@pytest.fixture(params=["local", "gs", "beam"])
def base(request, tmp_path):
    if request.param == "gs":
        return f"gs://{request.getfixturevalue('gcs').bucket}/run"
    return f"odd://{tmp_path}" if request.param == "beam" else str(tmp_path)


@pytest.fixture
def tree(base):
    for name in NAMES:
        storage.publish(f"{base}/{name}", name.encode())
    return base


def below(base, found):
    return [info.uri.removeprefix(base + "/") for info in found]


SHOWN = sorted(name for name in NAMES if "/." not in f"/{name}")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", SHOWN),
        ("/", SHOWN),
        ("/**", SHOWN),
        ("/*", ["a.txt", *sorted(name for name in NAMES if name.startswith("shard"))]),
        ("/.*", [".dot.jpg"]),
        ("/a", ["a/b/c/d.jpg", "a/b/e.png", "a/x.jpg"]),
        ("/a/*.jpg", ["a/x.jpg"]),
        ("/a/**/*.jpg", ["a/b/c/d.jpg", "a/x.jpg"]),
        ("/**/b/**/*", ["a/b/c/d.jpg", "a/b/e.png"]),
        ("/**/**/**", SHOWN),
        ("/*/*/?.png", ["a/b/e.png"]),
        ("/a.txt", ["a.txt"]),
        ("/{a,a-b}", ["a-b/y.jpg", "a/b/c/d.jpg", "a/b/e.png", "a/x.jpg"]),
        ("/{a,a/b,a/b/e.png,a.txt}", ["a.txt", "a/b/c/d.jpg", "a/b/e.png", "a/x.jpg"]),
        ("/shard-{000..010..10}.tar", ["shard-000.tar", "shard-010.tar"]),
        ("/shard-0{00..01}*.tar", ["shard-000.tar", "shard-001.tar"]),
        ("/shard-0[!1]?.tar", ["shard-000.tar", "shard-001.tar"]),
        ("/odd/[1].jpg", ["odd/[1].jpg"]),
        ("/odd/a{1,2}.jpg", ["odd/a{1,2}.jpg"]),
        ("/odd/what?.jpg", ["odd/what?.jpg"]),
        ("/odd/#1 50%.jpg", ["odd/#1 50%.jpg"]),
        ("/odd/na*", ["odd/naïve 写.jpg"]),
        ("/missing", []),
        ("/missing/*", []),
        ("/*.nothing", []),
    ],
)
def test_pattern_lists_the_same_as_a_shell(tree, pattern, expected):
    assert below(tree, storage.list_files(tree + pattern)) == expected


def test_listed_sizes_and_versions_are_those_of_stat(tree):
    for info in storage.list_files(f"{tree}/a"):
        assert info == storage.stat(info.uri)
        assert info.size == len(info.uri.removeprefix(tree + "/"))


def test_overlapping_patterns_give_each_file_once_in_order(tree):
    patterns = [f"{tree}/**/*.jpg", f"{tree}/a", f"{tree}/a/x.jpg", tree]
    assert below(tree, storage.list_all(patterns)) == SHOWN


def test_list_folder_stays_at_its_level(tree):
    assert below(tree, storage.list_folder(f"{tree}/a")) == ["a/x.jpg"]
    assert list(storage.list_folder(f"{tree}/missing")) == []


def test_a_stream_reads_seeks_and_tells(base):
    data = bytes(range(256)) * 5000
    storage.publish(f"{base}/x.tfrecord.gz", data)  # A name that Beam would decompress by.
    with storage.open_read(f"{base}/x.tfrecord.gz") as stream:
        assert stream.read(10) == data[:10]
        assert stream.seek(1_000_000) == 1_000_000
        assert stream.tell() == 1_000_000
        assert stream.read(300) == data[1_000_000:1_000_300]
        assert stream.seek(5) == 5
        assert stream.read() == data[5:]
        assert stream.read(1) == b""
    assert storage.read_bytes(f"{base}/x.tfrecord.gz") == data


def test_a_file_replaced_since_it_was_listed_is_refused(base):
    uri = f"{base}/x"
    storage.publish(uri, b"old")
    old = file_at(uri)
    assert storage.read_bytes(uri, old.version) == b"old"
    storage.publish(uri, b"newer")
    with pytest.raises(storage.ReplacedError, match="x was replaced after it was listed"):
        storage.read_bytes(uri, old.version)
    with pytest.raises(storage.ReplacedError, match="replaced"):
        storage.open_read(uri, old.version)
    assert storage.read_bytes(uri, file_at(uri).version) == b"newer"


@pytest.mark.parametrize("is_known", [True, False], ids=["listed", "not listed"])
@pytest.mark.parametrize("grown", [True, False], ids=["appended to", "written over"])
def test_a_local_file_written_to_while_it_is_read_is_refused(tmp_path, is_known, grown):
    """In place, as `cp` and writers that append do: what was opened is the same file still."""
    path = tmp_path / "x"
    path.write_bytes(b"1" * (4 << 20))
    os.utime(path, (1, 1))  # Not of the same tick of the file system's clock.
    version = file_at(path).version if is_known else None
    with storage.open_read(str(path), version) as stream:
        assert stream.read(10) == b"1" * 10
        with open(path, "ab" if grown else "r+b") as writer:
            writer.write(b"2" * (4 << 20))
        with pytest.raises(storage.ReplacedError, match="x was replaced"):
            stream.read(3 << 20)


def test_a_local_file_written_to_while_it_is_read_in_one_go_is_refused(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"1" * 1000)
    os.utime(tmp_path / "x", (1, 1))
    original = io.FileIO

    class Slow(io.FileIO):
        def read(self, size=-1, /):
            first = super().read(500)
            with original(tmp_path / "x", "r+") as writer:
                writer.write(b"2" * 1000)
            return first + super().read(size)

    monkeypatch.setattr(local, "open", lambda path, mode, buffering: Slow(path, "r"), raising=False)
    with pytest.raises(storage.ReplacedError, match="x was replaced"):
        storage.read_bytes(f"{tmp_path}/x")


def test_a_file_whose_version_cannot_be_told_is_closed_again(tmp_path):
    """One left open is a warning, which is an error here."""
    (tmp_path / "a").write_bytes(b"content")
    disk = FaultyDisk(1, errno.EIO, lasting=10**6, only=("fstat",))
    with faulty(disk), pytest.raises(OSError, match=os.strerror(errno.EIO)):
        storage.open_read(f"{tmp_path}/a", "7-7")
    assert disk.calls == 1


@pytest.mark.parametrize("name", ["none", "file/none", "file/none/none"])
def test_missing_file(base, name):
    """In a folder, and below a file."""
    storage.publish(f"{base}/file", b"1")
    uri = f"{base}/{name}"
    assert storage.stat(uri) is None
    assert not storage.exists(uri)
    with pytest.raises(FileNotFoundError, match="none"):
        storage.open_read(uri)
    with pytest.raises(FileNotFoundError, match="none"):
        storage.read_bytes(uri)
    with pytest.raises(FileNotFoundError, match="none"), storage.local_file(uri):
        pass
    storage.delete(uri)
    storage.remove_leftovers(uri)
    assert list(storage.list_folder(uri)) == []
    assert storage.read_bytes(f"{base}/file") == b"1"


def test_publish_overwrites_unless_told_not_to(base, tmp_path):
    uri = f"{base}/deep/er/x"
    storage.publish(uri, b"1", overwrite=False)
    with pytest.raises(FileExistsError, match="x"):
        storage.publish(uri, b"2", overwrite=False)
    assert storage.read_bytes(uri) == b"1"
    storage.publish(uri, b"3")
    assert storage.read_bytes(uri) == b"3"
    source = tmp_path / "source"
    source.write_bytes(b"4" * 100_000)
    storage.publish_file(uri, source)
    assert storage.read_bytes(uri) == b"4" * 100_000
    assert below(base, storage.list_folder(f"{base}/deep/er")) == ["deep/er/x"]
    storage.delete(uri)
    assert not storage.exists(uri)


def test_an_unknown_scheme_is_the_users_mistake():
    with pytest.raises(ImagebeamError, match="nope://x"):
        storage.stat("nope://x")


# Paths.


def test_absolute_uri(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("x/../y") == f"{tmp_path}/y"
    assert storage.absolute("file:///data/x") == "/data/x"
    assert storage.absolute("gs://b/x/../y") == "gs://b/x/../y"


@pytest.mark.parametrize(
    ("folder", "uri", "expected"),
    [
        ("/data", "x/y.jpg", "/data/x/y.jpg"),
        ("/data", "../x.jpg", "/x.jpg"),
        ("/", "./x.jpg", "/x.jpg"),
        ("/data", "/x.jpg", "/x.jpg"),
        ("/data", "gs://b/x.jpg", "gs://b/x.jpg"),
        ("gs://b/lists", "../x y#.jpg", "gs://b/x y#.jpg"),
        ("gs://b", "x.jpg", "gs://b/x.jpg"),
    ],
)
def test_resolve_relative_uri(folder, uri, expected):
    assert storage.resolve(folder, uri) == expected


@pytest.mark.parametrize(
    ("uri", "parent", "name"),
    [
        ("/a/b.jpg", "/a", "b.jpg"),
        ("/b.jpg", "/", "b.jpg"),
        ("gs://b/a/c.jpg", "gs://b/a", "c.jpg"),
        ("gs://b/c.jpg", "gs://b", "c.jpg"),
        ("gs://b/a/", "gs://b", "a"),
    ],
)
def test_parent_and_basename(uri, parent, name):
    assert (storage.parent(uri), storage.basename(uri)) == (parent, name)
    assert storage.join(parent, name) == uri.rstrip("/")


def test_braces_are_expanded_as_bash_does():
    pattern = "x{a,b{1..3}}{08..10}y"
    bash = subprocess.run(["bash", "-c", f"echo {pattern}"], capture_output=True, text=True, check=True)
    assert expand_braces(pattern) == bash.stdout.split()
    with pytest.raises(ImagebeamError, match=r"1,000,000.*\{0\.\.9999999\}"):
        expand_braces("x{0..9999999}")


# Local files.


def test_braces_may_be_longer_than_a_name(base):
    names = [f"shard-{number:05}" for number in range(0, 300, 3)]
    for name in names:
        storage.publish(f"{base}/{name}.tar", b"1")
    pattern = f"{base}/{{{','.join(names)}}}.tar"
    assert [storage.basename(info.uri) for info in storage.list_files(pattern)] == [f"{name}.tar" for name in names]


def test_listing_equals_find(tmp_path):
    for i in range(300):
        path = tmp_path / f"{i % 7}" / f"d{i % 3}.x" / f"f{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "link").symlink_to(tmp_path / "3")
    found = subprocess.run(["find", "-L", tmp_path, "-type", "f"], capture_output=True, text=True, check=True)
    assert [info.uri for info in storage.list_files(str(tmp_path))] == sorted(found.stdout.splitlines())


def test_links_are_followed_once_and_a_broken_one_is_not_lost(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").touch()
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    found = list(storage.list_files(str(tmp_path)))
    assert below(str(tmp_path), found) == ["a/x.jpg", "broken.jpg", "circle.jpg"]
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(found[1].uri, found[1].version)


def test_existing_folder_with_glob_characters_is_literal(tmp_path):
    (tmp_path / "2019 [best]").mkdir()
    (tmp_path / "2019 [best]" / "x.jpg").touch()
    assert below(str(tmp_path), storage.list_files(f"{tmp_path}/2019 [best]/*.jpg")) == ["2019 [best]/x.jpg"]


def test_non_unicode_name_is_listed_unchanged(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg"))
    path.write_bytes(b"x")
    (found,) = storage.list_files(str(tmp_path))
    assert found.uri == str(path)
    assert storage.read_bytes(found.uri, found.version) == b"x"


def test_named_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert list(storage.list_files(f"{tmp_path}/*")) == []
    with pytest.raises(OSError, match="Not a regular file"):
        storage.open_read(f"{tmp_path}/pipe.jpg")


def test_a_full_disk_leaves_nothing_and_names_the_file(tmp_path):
    uri = f"{tmp_path}/part"
    storage.publish(uri, b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # The kernel refuses the write, as a full disk does.
    try:
        with pytest.raises(OSError, match="part") as caught:
            storage.publish(uri, b"x" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, uri)
    assert os.listdir(tmp_path) == ["part"]
    assert storage.read_bytes(uri) == b"before"


def test_killed_writer_leaves_no_file_and_its_temporary_one_is_removed(tmp_path):
    uri = f"{tmp_path}/part"
    code = "import os, sys\nfrom transforms import storage\nos.fsync = lambda _: os.kill(os.getpid(), 9)\n"
    code += "storage.publish(sys.argv[1], b'x')"
    assert subprocess.run([sys.executable, "-c", code, uri], check=False).returncode == -9
    assert list(storage.list_files(str(tmp_path))) == []
    (rest,) = tmp_path.iterdir()
    storage.remove_leftovers(str(tmp_path))
    assert rest.exists(), "it may still be being written"
    os.utime(rest, (time.time() - 7200,) * 2)
    storage.remove_leftovers(str(tmp_path))
    assert not rest.exists()


def test_readers_never_see_half_a_file(tmp_path):
    uri = f"{tmp_path}/x"
    values = [bytes([i]) * 300_000 for i in range(4)]
    storage.publish(uri, values[0])
    done = threading.Event()

    def write(data):
        while not done.is_set():
            storage.publish(uri, data)

    writers = [threading.Thread(target=write, args=[value]) for value in values]
    for writer in writers:
        writer.start()
    try:
        assert all(storage.read_bytes(uri) in values for _ in range(200))
    finally:
        done.set()
        for writer in writers:
            writer.join()
    assert os.listdir(tmp_path) == ["x"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    storage.publish(f"{tmp_path}/x", b"")
    (tmp_path / "y").touch()
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


@pytest.mark.slow
def test_many_files_are_listed_in_little_memory(tmp_path):
    """All in one folder, the worst case; `benchmarks.scale files` lists 10 million."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(200_000):
        os.mknod(folder / f"{i:07}.jpg")
    code = (
        "import resource\nfrom transforms import storage\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"print(sum(1 for _ in storage.list_files({str(folder)!r})))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    shutil.rmtree(folder)
    assert int(found[0]) == 200_000
    assert int(found[1]) < 30_000, "KiB"


# gs://


@pytest.fixture
def uri(gcs):  # noqa: F811
    return f"gs://{gcs.bucket}/x"


def test_an_object_replaced_while_it_is_read_is_refused(uri):
    storage.publish(uri, b"1" * (gcs_store.READ_CHUNK + 100))
    with storage.open_read(uri) as stream:
        stream.read(10)
        storage.publish(uri, b"2" * (gcs_store.READ_CHUNK + 100))
        stream.seek(gcs_store.READ_CHUNK + 50)
        with pytest.raises(storage.ReplacedError, match="x was replaced"):
            stream.read(50)


# The client library leaves the socket of a refused download to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_requests_are_repeated_when_the_service_falters(gcs, uri):  # noqa: F811
    for act in (
        lambda: storage.publish(uri, b"1"),
        lambda: storage.read_bytes(uri),
        lambda: storage.open_read(uri).read(),
        lambda: storage.stat(uri),
        lambda: list(storage.list_files(f"gs://{gcs.bucket}")),
        lambda: storage.delete(uri),
    ):
        gcs.faults.append(503)
        act()
        assert not gcs.faults


def test_an_upload_whose_answer_was_lost_is_not_an_error(gcs, uri):  # noqa: F811
    """The first attempt arrives but its answer does not; the second finds the name taken, by its own bytes."""
    storage.publish(uri, b"same")
    generation = file_at(uri).version
    storage.publish(uri, b"same", overwrite=False)
    assert file_at(uri).version == generation


def test_concurrent_writers_leave_one_whole_file(uri):
    values = [bytes([i]) * 1000 for i in range(4)]
    writers = [threading.Thread(target=storage.publish, args=[uri, value]) for value in values]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert storage.read_bytes(uri) in values


LINKED = [
    # pattern, where the file is to be, whether links out of a folder are followed; whether it would be listed
    ("p", "q/x.jpg", False, True),
    ("q", "p/cat/x.jpg", False, True),
    ("p/cat", "q/deep/x.jpg", False, True),
    ("p", "p/out/x.jpg", False, True),
    ("p", "p/out/x.jpg", True, True),
    ("p", "away/x.jpg", False, False),  # A link that leaves the folder.
    ("p", "away/x.jpg", True, True),
    ("p/**", "away/x.jpg", False, True),
    ("p/*/*.jpg", "away/x.jpg", False, True),
    ("p/*/*.jpg", "q/x.jpg", False, True),
    ("p/*/*.jpg", "q/deep/x.jpg", False, False),
    ("p/*/*.png", "away/x.jpg", False, False),
    ("p/*.jpg", "away/x.jpg", False, False),
    ("{p,away}/cat", "q/x.jpg", False, True),
    ("p/one.jpg", "away/file.jpg", False, True),
    ("away", "q/x.jpg", True, False),
]


@pytest.mark.parametrize(("pattern", "uri", "follow_links", "expected"), LINKED)
def test_links_lead_to_a_file(tmp_path, pattern, uri, follow_links, expected):
    for name in ("p/cat/deep", "away/cat"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "away" / "file.jpg").write_bytes(b"")
    (tmp_path / "q").symlink_to("p/cat")
    (tmp_path / "p" / "out").symlink_to(tmp_path / "away")
    (tmp_path / "p" / "circle").symlink_to(tmp_path / "p")
    (tmp_path / "p" / "one.jpg").symlink_to("../away/file.jpg")
    found = storage.may_match(f"{tmp_path}/{pattern}", [f"{tmp_path}/{uri}"], follow_links=follow_links)
    assert found == expected


def test_a_pipe_is_no_local_file(tmp_path):
    """Opening one waits for its writer, for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"Not a regular file: .*pipe"), storage.local_file(str(tmp_path / "pipe")):
        pass
    with pytest.raises(FileNotFoundError), storage.local_file(str(tmp_path / "none")):
        pass


def test_a_missing_bucket_is_named(gcs):  # noqa: F811
    with pytest.raises(FileNotFoundError, match="gs://no-such-bucket"):
        list(storage.list_files("gs://no-such-bucket/*"))


def test_a_missing_bucket_is_told_from_a_missing_object(gcs):  # noqa: F811
    """An output that is new does not exist either."""
    with pytest.raises(
        FileNotFoundError, match="gs://no-such-bucket/out does not exist: there is no bucket 'no-such-b"
    ):
        list(storage.list_below("gs://no-such-bucket/out", "*.json"))
    with pytest.raises(FileNotFoundError, match=r"/none does not exist$"):
        storage.read_bytes(f"gs://{gcs.bucket}/none")


def test_requests_to_a_requester_pays_bucket_name_who_pays(gcs, uri, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "file").write_bytes(b"2")
    gcs.readers_pay = True
    uses = [
        lambda: storage.publish(uri, b"1"),
        lambda: storage.publish_file(uri, tmp_path / "file"),
        lambda: storage.read_bytes(uri),
        lambda: storage.open_read(uri).read(),
        lambda: list(storage.list_files(f"gs://{gcs.bucket}/*")),
        lambda: list(storage.list_files(f"gs://{gcs.bucket}")),
        lambda: storage.exists(uri),
        lambda: storage.modified(uri),
        lambda: storage.delete(uri),
    ]
    for use in uses:
        with pytest.raises(PermissionError, match="whose readers pay: set GOOGLE_CLOUD_QUOTA_PROJECT=PROJECT"):
            use()
    monkeypatch.setenv("GOOGLE_CLOUD_QUOTA_PROJECT", "payer")
    gcs.requests.clear()
    for use in uses:
        use()
    asked = [path for _, path in gcs.requests if f"/b/{gcs.bucket}/o" in path]  # The library asks for the bucket, too.
    assert len(asked) >= len(uses)
    assert all("userProject=payer" in path for path in asked)


def test_a_bucket_cannot_be_a_pattern(gcs):  # noqa: F811
    with pytest.raises(ImagebeamError, match=r"one bucket.*gs://b\*/x"):
        list(storage.list_files("gs://b*/x"))


@pytest.mark.parametrize("bucket", ["a_", "-a", "Test_Bucket!", "a b", "a:b", "a%", "ä"])
@pytest.mark.parametrize(
    "use",
    [
        storage.stat,
        storage.read_bytes,
        storage.open_read,
        storage.delete,
        storage.modified,
        lambda uri: storage.publish(uri, b""),
        lambda uri: list(storage.list_files(uri)),
        lambda uri: list(storage.list_folder(uri)),
    ],
)
def test_a_bucket_that_cannot_be_is_named(gcs, bucket, use):  # noqa: F811
    with pytest.raises(ImagebeamError, match=re.escape(f"'gs://{bucket}'")):
        use(f"gs://{bucket}/x")
    assert not gcs.requests


def test_listing_asks_for_no_more_than_the_prefix(gcs, tree_gs):  # noqa: F811
    gcs.requests.clear()
    assert len(list(storage.list_files(f"{tree_gs}/shard-0*.tar"))) == 3
    listings = [path for _, path in gcs.requests if "prefix=run%2Fshard-0&" in path + "&"]
    assert len(listings) == 1


@pytest.fixture
def tree_gs(gcs):  # noqa: F811
    for name in NAMES:
        storage.publish(f"gs://{gcs.bucket}/run/{name}", b"x")
    return f"gs://{gcs.bucket}/run"


def test_no_credentials_means_anonymous_and_at_once(monkeypatch, tmp_path):
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    begin = time.monotonic()
    credentials, project = gcs_store._find_credentials()
    assert isinstance(credentials, AnonymousCredentials)
    assert project is None
    assert time.monotonic() - begin < 5


def test_credentials_that_cannot_be_used_are_told(monkeypatch, tmp_path):
    """They are not taken for none: public buckets alone could be read then."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    for content in (None, "{}"):
        if content is not None:
            (tmp_path / "key.json").write_text(content)
        with pytest.raises(PermissionError, match=rf"GOOGLE_APPLICATION_CREDENTIALS .*{tmp_path}/key.json"):
            storage.exists("gs://bucket/x")


def test_who_is_not_signed_in_is_told_how_to(gcs, uri):  # noqa: F811
    """Of a private bucket the service says 401 then, upon which the library renews the credentials."""
    with (
        pytest.raises(PermissionError, match=f"{uri} .*no credentials were found; run `gcloud auth"),
        gcs_store._errors_named(uri),
    ):
        AnonymousCredentials().refresh(None)


@pytest.mark.parametrize(
    ("uri", "module", "extra"), [("s3://b/x", "boto3", "s3"), ("azfs://a/c/x", "azure.storage.blob", "azure")]
)
def test_a_file_system_whose_extra_is_missing_names_the_extra(monkeypatch, uri, module, extra):
    """Beam registers s3:// without boto3, and says "Missing boto3 requirement" once a file is asked for."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))
    for ask in (storage.exists, storage.stat, lambda uri: list(storage.list_files(uri))):
        with pytest.raises(ImagebeamError, match=rf"imagebeam\[{extra}\]"):
            ask(uri)


@pytest.mark.parametrize("denials", [1, 2, 3])
def test_listing_resumes_after_a_denial(gcs, uri, denials):  # noqa: F811
    folder = uri.rpartition("/")[0]
    names = [f"{folder}/{number:02d}.jpg" for number in range(8)]
    for name in names:
        storage.publish(name, b"x")
    listing = storage.list_files(f"{folder}/*.jpg")
    found = [next(listing).uri, next(listing).uri]
    gcs.faults.extend([403] * denials)
    if denials <= 2:
        found += [info.uri for info in listing]
        assert found == names
    else:
        with pytest.raises(PermissionError, match="may not be accessed"):
            list(listing)
    gcs.faults.clear()


@pytest.fixture
def hdfs(monkeypatch):
    """A stand-in for WebHDFS that Beam's file system speaks to."""
    pytest.importorskip("hdfs", reason="no hdfs package: the extra hdfs")
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    with serve_webhdfs() as server:
        at = ["--hdfs_host=127.0.0.1", f"--hdfs_port={server.port}", "--hdfs_user=me"]
        monkeypatch.setattr(FileSystems, "_pipeline_options", PipelineOptions(at))
        yield server


def test_hdfs_lists_nested_folders_and_empty_files(hdfs):
    names = ["a.jpg", "b/c.jpg", "b/d/e.jpg", "b/d/empty.jpg", "f.png"]
    for name in names:
        hdfs.files[f"/in/{name}"] = b"" if "empty" in name else b"x"
    assert [info.uri for info in storage.list_files("hdfs://in")] == [f"hdfs://in/{name}" for name in names]
    assert [info.uri for info in storage.list_files("hdfs://in/b/**/*.jpg")] == [
        f"hdfs://in/{name}" for name in names[1:4]
    ]
    assert list(storage.list_folder("hdfs://in/missing")) == []
    assert storage.read_bytes("hdfs://in/b/c.jpg") == b"x"


def test_hdfs_writes_are_atomic(hdfs):
    seen = []
    original = type(hdfs).status

    def watch(self, path, suffix=""):
        seen.append((path, self.files.get("/out/part")))
        return original(self, path, suffix)

    type(hdfs).status = watch
    try:
        for data in (b"1" * 100_000, b"2" * 100_000):
            storage.publish("hdfs://out/part", data)
            assert storage.read_bytes("hdfs://out/part") == data
    finally:
        type(hdfs).status = original
    assert {data for _, data in seen} <= {None, b"1" * 100_000, b"2" * 100_000}
    assert [name for name in hdfs.files if name.startswith("/out")] == ["/out/part"]
    with pytest.raises(FileExistsError):
        storage.publish("hdfs://out/part", b"3", overwrite=False)
    storage.delete("hdfs://out/part")
    assert not storage.exists("hdfs://out/part")


def test_missing_hdfs_flags_are_named():
    pytest.importorskip("hdfs", reason="no hdfs package: the extra hdfs")
    code = "from transforms import storage\nstorage.exists('hdfs://in/x')"
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "--hdfs_host" in run.stderr
