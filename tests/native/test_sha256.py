"""SHA-256 of several streams at once, against hashlib: by the processor's SHA instructions, and without."""

import hashlib
import mmap
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratfast import native
from ratfast.checkpoints import hashing

core = native.load_core()
NATIVE = getattr(core, "Sha256Streams", None)
KINDS = {"hashlib": hashing._HashlibStreams} | ({} if NATIVE is None else {"native": NATIVE})
RANDOM = np.random.default_rng(0).bytes(3 << 20)
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())


def has_instructions() -> bool:
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:
        return False
    return {"sha_ni", "avx"} <= set(flags)


def wanted(messages):
    return [hashlib.sha256(message).digest() for message in messages]


def found(make, messages, threads):
    streams = make(len(messages))
    streams.update(messages, threads)
    return streams.digests()


@pytest.mark.skipif(core is None, reason="the module _core is not built")
@pytest.mark.skipif(
    os.environ.get("RATFAST_CPU_CAPABILITY") == "default", reason="the environment forbids it"
)
def test_offered_where_the_processor_has_the_instructions():
    assert (NATIVE is not None) == has_instructions()


@kinds
def test_published_digests(make):
    """The examples of FIPS 180, and the empty message."""
    long = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"
    assert [digest.hex() for digest in found(make, [b"abc", b"", long, b"a" * 1_000_000], 2)] == [
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
    ]


@kinds
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_short_length(make, threads):
    messages = [RANDOM[7 * n : 8 * n] for n in range(301)]  # also at any address
    assert found(make, messages, threads) == wanted(messages)


@kinds
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 11, 15, 16, 17, 20, 35, 70])
def test_number_of_streams(make, count):
    messages = [RANDOM[n : n + 100_000 + 64 * (n % 3)] for n in range(count)]
    for threads in (1, 2, 3, 40):
        assert found(make, messages, threads) == wanted(messages)


@kinds
@pytest.mark.parametrize("threads", [-1, 0, 1, 2, 3])
def test_lengths_far_apart(make, threads):
    """From nothing to several turns of a thread."""
    sizes = (
        3 << 20,
        0,
        1,
        63,
        64,
        65,
        1 << 19,
        (1 << 19) + 1,
        (1 << 19) - 1,
        2_000_000,
        55,
        56,
        119,
        120,
        700,
    )
    messages = [RANDOM[:size] for size in sizes]
    assert found(make, messages, threads) == wanted(messages)


@kinds
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces(make, data):
    """Messages that come in pieces of any lengths are hashed as if they came at once."""
    count = data.draw(st.integers(0, 8))
    sizes = st.one_of(st.integers(0, 200), st.sampled_from([64, 128, 4096, 70_000, 600_000]))
    rounds = data.draw(st.lists(st.lists(sizes, min_size=count, max_size=count), max_size=5))
    streams, messages = make(count), [b""] * count
    for number, lengths in enumerate(rounds):
        start = data.draw(st.integers(0, 100))
        pieces = [RANDOM[start + n : start + n + length] for n, length in enumerate(lengths)]
        streams.update(pieces, 1 + number % 3)
        messages = [message + piece for message, piece in zip(messages, pieces, strict=True)]
        if number % 2:
            assert streams.digests() == wanted(messages)  # in between
    assert streams.digests() == streams.digests() == wanted(messages)


@kinds
def test_kinds_of_memory(make, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(RANDOM[:10_000])
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    array = np.frombuffer(RANDOM, np.uint8)
    messages = [mapped, memoryview(mapped)[3:], array[1:5000], bytearray(b"abc"), np.empty(0, np.uint8)]
    assert found(make, messages, 2) == wanted([bytes(message) for message in messages])


@kinds
@pytest.mark.parametrize(
    "buffers",
    [
        [b"a"],
        [b"a", b"b", b"c"],
        [b"a", np.zeros(4, np.float32)],
        [b"a", np.zeros((2, 2), np.uint8)],
        [b"a", np.zeros(4, np.uint8)[::2]],
    ],
    ids=["too few", "too many", "floats", "two dimensions", "gaps"],
)
def test_refusals_change_nothing(make, buffers):
    streams = make(2)
    streams.update([b"x", b"y"], 1)
    with pytest.raises(ValueError, match="buffer"):
        streams.update(buffers, 1)
    assert streams.digests() == wanted([b"x", b"y"])


@kinds
def test_other_threads_run_meanwhile(make):
    """Many callers at once, each with an object of its own and one that they share."""
    shared = make(1)
    results = {}

    def work(n):
        results[n] = found(make, [RANDOM[n:], RANDOM[: 1_000_000 + n], RANDOM[:n]], 2)
        shared.update([b"same piece"], 1)

    callers = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for n, digests in results.items():
        assert digests == wanted([RANDOM[n:], RANDOM[: 1_000_000 + n], RANDOM[:n]])
    assert shared.digests() == wanted([b"same piece" * 6])


@pytest.mark.skipif(core is None, reason="the module _core is not built")
def test_the_lowest_capability_has_none():
    code = "from ratfast import native; print(hasattr(native.load_core(), 'Sha256Streams'))"
    environment = os.environ | {"RATFAST_CPU_CAPABILITY": "default"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"


@pytest.mark.skipif(NATIVE is None, reason="there are no instructions")
@pytest.mark.parametrize("capability", ["avx2", "avx512"])
def test_narrow_and_wide_vectors(capability):
    """Each way, where this machine has it, of enough messages for the wide one, by lengths far apart."""
    code = (
        "import hashlib; from ratfast import native; core = native.load_core()\n"
        "messages = [bytes([n]) * (n * n * 997) for n in range(40)]\n"
        "streams = core.Sha256Streams(40); streams.update(messages, 2)\n"
        "assert streams.digests() == [hashlib.sha256(message).digest() for message in messages]"
    )
    subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"RATFAST_CPU_CAPABILITY": capability}, check=True
    )
