"""Decoders in processes of their own: the same pixels, what they cost when they break, and what is left of them."""

import contextlib
import importlib.util
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests.support.broken_decoders import broken
from tests.support.high_range import exr, hdr, light, rgbe
from tests.support.image_samples import GOOD, encode, picture
from transforms.images.decode import (
    DECODERS,
    IMAGE_EXTENSIONS,
    Decoder,
    ImageError,
    ImageOptions,
    decode_here,
    decode_image,
)
from transforms.images.formats import jpeg
from transforms.images.isolated import decoder_pool, decoder_process
from transforms.images.isolated import isolated_decoder as isolated
from transforms.images.isolated.decoder_pool import DecoderProcessError, Family
from transforms.images.isolated.isolated_decoder import Isolated
from transforms.images.sniff import Format, sniff


def isolated_decoder(data: bytes) -> Isolated | None:
    """What decodes a file in a process of its own; None for one that is decoded here."""
    kind = sniff(data)
    assert kind is not None
    decoder = DECODERS[kind].decode
    return decoder if isinstance(decoder, Isolated) else None


NATIVE = ImageOptions(image_size=None)
SMALL = {
    "dicom": bytes(128) + b"DICM",
    "exr": exr({"Y": np.zeros((4, 4), np.float32)}),
    "hdr": hdr(rgbe(light(4, 4)), "-Y 4 +X 4"),
}
ROOT = Path(__file__).parents[4]
TIFF = GOOD["lzw.tiff"]()
IN_PROCESSES = [name for name, make in GOOD.items() if isolated_decoder(make()) is not None]


@pytest.fixture
def pool(monkeypatch):
    """Processes of the test's own."""
    own = {family: decoder_pool._Pool(family) for family in Family}
    monkeypatch.setattr(decoder_pool, "_POOLS", own)
    return own[Family.PLAIN]


@pytest.fixture
def may_break(monkeypatch, pool):
    """TIFF is decoded by `tests.support.broken_decoders`, in little time."""
    monkeypatch.setitem(DECODERS, Format.TIFF, Decoder(Isolated("tests.support.broken_decoders:decode"), ()))
    monkeypatch.setattr(decoder_pool, "SECONDS", 2.0)
    return pool


def family_of(pool):
    """Process ids: of the idle process, and of the child that decodes."""
    pid = pool._idle.queue[-1]._process.pid
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [pid, *map(int, file.read().split())]


def wait_for_the_end(pids):
    """Until none of them is there."""
    deadline = time.monotonic() + 20
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.kill(pid, 0)
                time.sleep(0.05)
            pytest.fail(f"process {pid} is still there")


class TestPixels:
    def test_fragile_formats_are_isolated(self):
        assert {"lzw.tiff", "rgb.jp2", "rgb.avif"} < set(IN_PROCESSES)
        assert not {"rgb.jpg", "rgb.png"} & set(IN_PROCESSES)

    @pytest.mark.parametrize("size", [None, (10, 20)])
    @pytest.mark.parametrize("name", IN_PROCESSES)
    def test_pixels_equal_those_decoded_in_process(self, name, size):
        data, options = GOOD[name](), ImageOptions(size)
        there = decode_image(data, options)
        decoder = isolated_decoder(data)
        assert decoder is not None
        here = decode_here(decoder.load(), data, options)
        np.testing.assert_array_equal(there.pixels, here.pixels)
        assert (there.width, there.height) == (here.width, here.height)
        assert there.pixels.flags.c_contiguous
        assert not there.pixels.flags.writeable

    def test_processor_time_of_the_child_is_counted(self):
        data = encode(np.zeros((3000, 3000, 3), np.uint8), "JPEG2000")
        own, before = time.thread_time(), decoder_pool.thread_time()
        decode_image(data, NATIVE)
        assert decoder_pool.thread_time() - before > 2 * (time.thread_time() - own)

    def test_without_fork_images_are_decoded_in_process(self, monkeypatch, pool):
        monkeypatch.setattr("transforms.images.decode.IS_POSSIBLE", False)
        monkeypatch.setattr(jpeg, "_MOST_PIXELS_SCANNED", 0)
        for data in (TIFF, encode(picture(), "JPEG", progressive=True)):
            assert decode_image(data, NATIVE).pixels.shape == (24, 32, 3)
        assert not pool._all


class TestBroken:
    @pytest.mark.parametrize(
        ("way", "reason"),
        [
            ("abort", "its decoder crashes"),
            ("crash", "its decoder crashes"),
            ("exit", "its decoder crashes"),
            ("loop", "takes too long"),
            ("grow", "more memory"),
        ],
    )
    def test_broken_decoder_costs_one_image_and_no_process(self, may_break, way, reason):
        decode_image(TIFF, NATIVE)
        (process, _) = family_of(may_break)
        with pytest.raises(ImageError, match=reason) as caught:
            decode_image(broken(way), ImageOptions(max_image_pixels=1000))
        assert caught.value.error_type == ("too_many_pixels" if way == "grow" else "undecodable")
        assert decode_image(TIFF, NATIVE).pixels.shape == (24, 32, 3)
        assert family_of(may_break)[0] == process

    def test_memory_limit_follows_the_size_in_the_header(self, may_break):
        with pytest.raises(ImageError, match="more memory"):
            decode_image(broken("much memory"), NATIVE)
        with pytest.raises(ImageError, match="has no page"):
            decode_image(broken("little memory"), NATIVE)

    def test_images_are_decoded_where_proc_is_not_mounted(self, monkeypatch):
        def missing(name, **_):
            raise FileNotFoundError(name)

        monkeypatch.setattr(decoder_process, "open", missing, raising=False)
        before = resource.getrlimit(resource.RLIMIT_DATA)
        decoder_process._limit_memory(1 << 20)
        assert resource.getrlimit(resource.RLIMIT_DATA) == before

    def test_sleeping_decoder_is_ended_with_its_process(self, monkeypatch, may_break):
        decode_image(TIFF, NATIVE)
        pids = family_of(may_break)
        with monkeypatch.context() as patch:
            patch.setattr(decoder_pool, "WAIT", 0.5)
            with pytest.raises(ImageError, match="never comes to an end") as caught:
                decode_image(broken("sleep"), ImageOptions(max_image_pixels=1000))
        assert caught.value.error_type == "undecodable"
        wait_for_the_end(pids)
        assert decode_image(TIFF, NATIVE).pixels.shape == (24, 32, 3)

    def test_killed_decoder_is_the_machines_fault(self, may_break):
        with pytest.raises(DecoderProcessError):
            decode_image(broken("killed"), NATIVE)
        decode_image(TIFF, NATIVE)

    def test_decoder_killed_between_images_costs_none(self, may_break):
        for number in (signal.SIGKILL, signal.SIGSEGV):
            decode_image(TIFF, NATIVE)
            process = may_break._idle.queue[-1]
            os.kill(family_of(may_break)[1], number)
            while process.is_quiet:
                time.sleep(0.01)
            assert decode_image(TIFF, NATIVE).pixels.shape == (24, 32, 3)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_signal_to_all_processes_fails_no_image(self, may_break, number):
        decode_image(TIFF, NATIVE)
        for pid in family_of(may_break):
            os.kill(pid, number)
        assert decode_image(TIFF, NATIVE).pixels.shape == (24, 32, 3)

    def test_other_threads_get_their_own_pixels(self, may_break):
        flat = [encode(np.full((8, 8, 3), index, np.uint8), "TIFF") for index in range(32)]

        def decode(index):
            if index % 8 == 7:
                with pytest.raises(ImageError):
                    decode_image(broken("abort"), NATIVE)
            return decode_image(flat[index], NATIVE).pixels[0, 0, 0]

        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(decode, range(32))) == list(range(32))

    def test_damaged_reply_is_the_images_fault(self, monkeypatch, may_break):
        monkeypatch.setattr(decoder_pool, "_most_pixels", lambda options: 1)
        with pytest.raises(ImageError, match="its decoder crashes"):
            decode_image(TIFF, NATIVE)

    def test_process_that_does_not_start_is_the_machines_fault(self, monkeypatch, pool):
        for program in ("/bin/false", "/there/is/no/such/program"):
            monkeypatch.setattr(sys, "executable", program)
            with pytest.raises(DecoderProcessError):
                decode_image(TIFF, NATIVE)


class TestSuspicious:
    """JPEGs of thousands of scans, each of which goes through the whole image."""

    def bomb(self, side, scans):
        data = encode(PIL.Image.new("RGB", (side, side), (90, 120, 60)), "JPEG", progressive=True)
        last = data[data.rindex(b"\xff\xda") : -2]
        return data[:-2] + last * scans + data[-2:]

    def test_jpeg_of_thousands_of_scans_is_ended(self, monkeypatch, pool):
        monkeypatch.setattr(decoder_pool, "SECONDS", 1.0)
        with pytest.raises(ImageError, match="takes too long"):
            decode_image(self.bomb(1000, 5000), ImageOptions(max_image_pixels=1_000_000))

    def test_many_scans_of_few_pixels_are_not_isolated(self, pool):
        with pytest.raises(ImageError, match="Inconsistent progression"):
            decode_image(self.bomb(8, 100), NATIVE)
        assert not pool._all

    def test_sound_jpeg_gives_the_same_pixels(self, monkeypatch, pool):
        data = encode(picture(60, 70), "JPEG", progressive=True)
        expected = decode_image(data, NATIVE).pixels
        assert not pool._all
        monkeypatch.setattr(jpeg, "_MOST_PIXELS_SCANNED", 0)
        np.testing.assert_array_equal(decode_image(data, NATIVE).pixels, expected)
        assert pool._all


SCRIPT = """
import os, signal, sys, threading, time, warnings
from tests.support.broken_decoders import broken
from tests.support.image_samples import GOOD
from transforms.images.isolated import decoder_pool
from transforms.images.decode import DECODERS, Decoder, ImageOptions, decode_image
from transforms.images.isolated.isolated_decoder import Isolated
from transforms.images.sniff import Format

DECODERS[Format.TIFF] = Decoder(Isolated("tests.support.broken_decoders:decode"), ())
TIFF = GOOD["lzw.tiff"]()

def decode():
    return decode_image(TIFF, ImageOptions(None)).pixels.mean()

def pids():
    for process in decoder_pool._POOLS["plain"]._all:
        pid = process._process.pid
        yield pid
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            yield from map(int, file.read().split())

def drop_pools():
    decoder_pool._POOLS = {family: decoder_pool._Pool(family) for family in decoder_pool.Family}
"""


def run(code):
    """The output of a process; it must end well within seconds and write no error."""
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", SCRIPT + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stderr == ""
    return done.stdout, done.returncode


class TestEnd:
    def test_decoders_end_with_their_process(self):
        output, status = run("decode(); print(*pids())")
        assert status == 0
        assert len(output.split()) == 2
        wait_for_the_end(map(int, output.split()))

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_sleeping_decoders_end_when_their_process_is_killed(self, number):
        output, status = run(
            f"""
            decode()
            found = list(pids())
            threading.Thread(target=decode_image, args=(broken("sleep"), ImageOptions())).start()
            time.sleep(0.5)
            print(*found, flush=True)
            os.kill(os.getpid(), {int(number)})
            """
        )
        assert status == -number
        wait_for_the_end(map(int, output.split()))

    def test_works_from_a_folder_that_holds_the_package(self, monkeypatch, pool):
        monkeypatch.setattr(sys, "path", ["", *(path for path in sys.path if path != str(ROOT))])
        assert decode_image(TIFF, NATIVE).pixels.shape == (24, 32, 3)

    def test_dropped_pool_leaves_no_zombie(self):
        output, status = run(
            """
            decode()
            drop_pools()
            try:
                print(os.waitpid(-1, os.WNOHANG))
            except ChildProcessError:
                print("none", decode())
            """
        )
        assert (output.split()[0], status) == ("none", 0)

    def test_process_in_use_ends_with_its_pool(self):
        """A thread may bring it back when nobody has the pool any more; warnings are errors here."""
        pool = decoder_pool._Pool(Family.PLAIN)
        with pool.lend() as process:
            pid = process._process.pid
            del pool
        del process
        wait_for_the_end([pid])

    @pytest.mark.slow
    def test_nothing_stays_open_where_no_more_files_can_be_opened(self):
        output, status = run(
            """
            import gc, resource

            def opened():
                gc.collect()
                return set(os.listdir("/proc/self/fd"))

            decode(), drop_pools()  # Imports everything.
            before, hard, failed = opened(), resource.getrlimit(resource.RLIMIT_NOFILE)[1], 0
            for room in range(20):
                resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, before)) + room, hard))
                try:
                    decode()
                except decoder_pool.DecoderProcessError:
                    failed += 1
                drop_pools()
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
                assert opened() == before, room
            print(failed)
            """
        )
        assert status == 0
        assert 4 < int(output) < 20

    def test_forked_process_has_its_own_decoders(self):
        output, status = run(
            """
            expected, parents = decode(), set(pids())
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            child = os.fork()
            if not child:
                ok = decode() == expected and len(set(pids())) == 2 and not parents & set(pids())
                drop_pools()
                os._exit(0 if ok else 1)
            print(os.waitpid(child, 0)[1], decode() == expected, parents == set(pids()))
            """
        )
        assert (output.split(), status) == (["0", "True", "True"], 0)


class TestMissing:
    @pytest.mark.parametrize("kind", SMALL)
    @pytest.mark.parametrize("package", isolated.PACKAGES)
    def test_missing_package_names_the_extra(self, monkeypatch, kind, package):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImageError, match=r"pip install 'imagebeam\[tfio\]'") as caught:
            decode_image(SMALL[kind], NATIVE)
        assert caught.value.error_type == f"unsupported_{kind}"

    @pytest.mark.skipif(importlib.util.find_spec("tensorflow_io") is not None, reason="tensorflow-io works here")
    def test_incompatible_versions_name_the_extra(self, monkeypatch, pool):
        monkeypatch.setattr(isolated, "PACKAGES", ())
        with pytest.raises(ImageError, match=r"does not work here.*imagebeam\[tfio\]") as caught:
            decode_image(SMALL["hdr"], NATIVE)
        assert caught.value.error_type == "unsupported_hdr"

    def test_folders_list_these_extensions(self):
        assert {".dcm", ".dicom", ".exr", ".hdr"} <= IMAGE_EXTENSIONS
