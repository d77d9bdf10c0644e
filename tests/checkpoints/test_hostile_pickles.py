"""Files made to harm: nothing in them runs, and each is refused, or read, quickly and in little memory."""

import itertools
import os
import pickle
import pickletools
import random
import re
import resource
import struct
import time
import zipfile

import numpy as np
import pytest
import torch

from ratfast.checkpoints import open_checkpoint
from ratfast.errors import InputError

SECONDS = 1.0
MEBIBYTES = 200


def in_zip(path, pickled, **members):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", pickled)
        file.writestr("a/byteorder", "little")
        file.writestr("a/version", "3\n")
        for name, data in members.items():
            file.writestr(f"a/data/{name.removeprefix('k')}", data)


def in_old_format(path, pickled):
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join(head) + pickled + pickle.dumps([], 2))


def opened(path):
    """The checkpoint or the error's text; at most a second of processor time, whatever the file."""
    start = time.process_time()
    try:
        checkpoint = open_checkpoint(path)
        for name in checkpoint.names:
            checkpoint.bytes_of(name)
    except InputError as error:
        checkpoint = str(error)
    assert time.process_time() - start < SECONDS
    if isinstance(checkpoint, str):
        assert str(path) in checkpoint and "\n" not in checkpoint and len(checkpoint) < 1000
    return checkpoint


@pytest.fixture(params=[in_zip, in_old_format])
def refusal(request, tmp_path):
    """Why a file with this pickle is refused; the peak of memory may hardly grow."""

    def check(pickled):
        path = tmp_path / "a.pt"
        request.param(path, pickled)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        reason = opened(path)
        assert isinstance(reason, str), reason
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEBIBYTES << 10
        return reason

    return check


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


@pytest.mark.parametrize(
    "name",
    [
        *(
            "os.system",
            "posix.system",
            "subprocess.Popen",
            "builtins.eval",
            "builtins.exec",
            "builtins.getattr",
        ),
        *(
            "builtins.__import__",
            "__builtin__.eval",
            "__builtin__.apply",
            "functools.partial",
            "operator.attrgetter",
        ),
        *("torch.load", "torch.hub.load", "torch.storage._load_from_bytes", "torch._utils.__builtins__.eval"),
        *("torch.serialization.load", "numpy.load", "numpy.core.multiarray.fromfile", "pickle.loads"),
        *(
            "collections.OrderedDict.__init__",
            "collections.OrderedDict.fromkeys",
            "torch.nn.Module",
            "webbrowser.open",
        ),
        *(
            "codecs.encode",
            "_codecs.decode",
            "copyreg._reconstructor",
            "importlib.import_module",
            "runpy.run_path",
        ),
    ],
)
def test_names_are_only_looked_up(refusal, name):
    module, _, attribute = name.rpartition(".")
    call = b"(" + text("touch /tmp/never") + b"tR."
    for naming in (f"c{module}\n{attribute}\n".encode(), text(module) + text(attribute) + b"\x93"):
        reason = refusal(b"\x80\x04" + naming + call)
        assert "nothing in it run" in reason and name in reason


def test_names_are_shown_harmlessly(refusal):
    reason = refusal(b"\x80\x04" + text("os\x1b[2J\n") + text("system") + b"\x93.")
    assert reason.isprintable() and "os\\x1b[2J\\n.system" in reason


def test_nothing_runs_by_any_way(refusal, tmp_path):
    """What an ordinary unpickler would run: __reduce__, __setstate__, inst, obj, extensions, persistent ids."""
    trace = tmp_path / "trace"

    class Reduced:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    class Stated:
        def __setstate__(self, state):
            trace.mkdir()

        def __reduce__(self):
            return Stated, (), {"a": 1}

    pickles = [pickle.dumps(Reduced(), protocol) for protocol in range(6)]
    pickles += [pickle.dumps({"a": [Reduced()]}, protocol) for protocol in range(6)]
    pickles += [b"(ios\nmkdir\nV" + str(trace).encode() + b"\n.", b"(cos\nmkdir\n" + text(str(trace)) + b"o."]
    for pickled in pickles:
        refusal(pickled)
    assert not trace.exists()
    pickle.loads(pickles[2])
    assert trace.exists()  # or the test would prove nothing


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (b"", "ends before its end mark|not one of torch.save"),
        (b"\x80\x02", "ends before"),
        (b"\x80\x06N.", "of protocol 6"),
        (b"\x80\x02.", "takes a value that is not there"),
        (b"\x80\x02\xff.", "the byte ff"),
        (b"\x82\x01.", "uses EXT1"),
        (b"Pstorage\n.", "uses PERSID"),
        (b"\x97.", "uses NEXT_BUFFER"),
        (b"N.", "holds no state dict"),
        (b"}N}s.", "holds no state dict"),
        (b"(N.", "holds no state dict"),
        (b"(0N(1.", "no state dict"),
        (b"}]Ns.", "a list as a key"),
        (b"}}Ns.", "a dict as a key"),
        (b"](Ne" + b"N\x85" * 2 + b"Ns.", "no dict"),
        (b"}" + b"(NNNNNt" + b"Ns.", "a tuple as a key"),
        (b"}" + b"\x8a\x05\x00\x00\x00\x00\x01\x85" + b"Ns.", "a tuple as a key"),
        (b"}" + b"\x8a\x09" + b"\xff" * 8 + b"\x00" + b"Ns.", "a int as a key"),
        (b"h\x05.", "recalls value 5"),
        (b"\x80\x02Nr\xff\xff\xff\xff.", "no state dict"),
        (b"Np99999999999999999999999\n.", "under a number that none has"),
        (b"\x80\x02Np-1\n.", "under a number that none has"),
        (b"\x8a\xffab.", "damaged"),
        (b"\x8b\xff\xff\xff\x7fab.", "damaged"),
        (b"\x8b\xff\xff\xff\xffab.", "damaged"),
        (b"B\xff\xff\xff\xffab.", "damaged"),
        (b"\x8e" + b"\xff" * 7 + b"\x7fab.", "damaged"),
        (b"\x8e" + b"\xff" * 8 + b"ab.", "damaged"),
        (b"\x8d" + b"\xff" * 7 + b"\x7fab.", "damaged"),
        (b"\x96" + b"\xff" * 7 + b"\x7fab.", "damaged"),
        (b"X\xff\xff\xff\xffab.", "damaged"),
        (b"T\xff\xff\xff\xffab.", "damaged"),
        (b"I" + b"9" * 6000 + b"\n.", "damaged|no state dict"),
        (b"L" + b"9" * 400_000 + b"L\n.", "damaged"),
        (b"F1e999x\n.", "damaged"),
        (b"V\\ud800\\uZZZZ\n.", "damaged"),
        (b"S'abc'\n.", "uses STRING"),
        (b"Q.", "takes a value|uses BINPERSID"),
        (b"NQ.", "storage in it|outside itself|not known"),
        (b"(X\x07\x00\x00\x00storageNNNN" + b"tQ.", "not known"),
        (b"ctorch.FloatStorage\n\n.", "besides tensors"),
        (b"ctorch\nFloatStorage\n)R.", "no function"),
        (b"cbuiltins\nset\nNR.", "other than a tuple"),
        (b"cbuiltins\nset\n(]N\x85atR.", "takes|set|state"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "tensor in it is damaged"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR.", "no storage"),
        (b"cnumpy\ndtype\n(X\x03\x00\x00\x00f,fI0\nI1\ntR.", "no state dict"),
        (
            b"\x80\x02cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\x00\x00\x00O8tRC\x00tR.",
            "neither a number",
        ),
    ],
)
def test_malformed(refusal, pickled, reason):
    found = refusal(pickled)
    assert re.search(reason, found), found


def test_nesting_is_no_limit(refusal):
    for pickled in (
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        b"\x80\x02" + b"N" + b"\x85" * 100_000 + b".",
        b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
        b"\x80\x02}" + b"".join([text("state_dict"), b"}", text("a"), b"]" * 100_000, b"a" * 99_999, b"ss."]),
        b"\x80\x02}" + text("x") + b"]" * 50_000 + b"a" * 49_999 + b"s" + text("state_dict") + b"}s.",
        b"\x80\x02}" + b"N" + b"\x85" * 100_000 + b"Ns.",  # a key whose hash is that of all its parts
    ):
        refusal(pickled)


def with_tensor(value):
    """A pickle of a state dict with one tensor, and this value beside it."""
    identity = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x01tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + b"K\x00K\x01\x85K\x01\x85\x89NtR"
    return b"\x80\x02}" + text("x") + value + b"s" + text("state_dict") + b"}" + text("t") + tensor + b"ss."


def test_a_tensor_by_hand(tmp_path):
    """The frame of the tests below is itself well formed."""
    in_zip(tmp_path / "a.pt", with_tensor(b"K\x05"), k0=np.float32(3).tobytes())
    checkpoint = opened(tmp_path / "a.pt")
    assert checkpoint.metadata == {"x": 5}
    assert np.frombuffer(checkpoint.bytes_of("t"), np.float32).tolist() == [3]
    assert torch.load(tmp_path / "a.pt")["state_dict"]["t"].tolist() == [3]


@pytest.mark.parametrize(
    ("start", "size", "expected"), [(1, 2, [2.0, 3.0]), (0, 4, [1.0, 2.0]), (3, 2, None), (1, 1, None)]
)
def test_views_of_storages_in_the_old_format(tmp_path, start, size, expected):
    """As torch wrote them before 0.4: the elements from `start` of a storage that is saved once."""
    view = b"(" + text("v") + bytes([75, start, 75, size]) + b"t"
    identity = (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("k") + text("cpu") + b"K\x04" + view + b"tQ"
    )
    tensor = b"ctorch._utils\n_rebuild_tensor\n(" + identity + b"K\x00K\x02\x85K\x01\x85tR"
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    data = struct.pack("<q4f", 4, 1, 2, 3, 4)
    path = tmp_path / "a.pt"
    path.write_bytes(
        b"".join(head) + b"\x80\x02}" + text("a") + tensor + b"s." + pickle.dumps(["k"], 2) + data
    )
    found = opened(path)
    if expected is None:
        assert "beyond its storage" in found or "shorter than" in found
    else:
        assert np.frombuffer(found.bytes_of("a").tobytes(), np.float32).tolist() == expected


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"]q\x01" + b"](h\x01h\x01eq\x01" * 60, id="laughs"),  # 2^60 leaves
        pytest.param(b")q\x01" + b"0h\x01h\x01\x86q\x01" * 60, id="tuples"),
        pytest.param(b")2\x86" + b"2\x86" * 60, id="dup"),
        pytest.param(b"]q\x01h\x01a", id="itself"),
        pytest.param(
            b"](" + b"N" * 20_000 + b"eq\x010](" + b"cbuiltins\nset\nh\x01\x85R" * 20_000 + b"e", id="sets"
        ),
        pytest.param(
            b"}q\x01(" + b"".join(b"M" + struct.pack("<H", n) + b"N" for n in range(50_000)) + b"u0]("
            b"ccollections\nOrderedDict\nq\x020" + b"h\x02h\x01\x85R" * 50_000 + b"e",
            id="dicts",
        ),
        pytest.param(
            b"X\x00\x00\x08\x00" + b"a" * 0x80000 + b"q\x010]("
            b"c_codecs\nencode\nq\x020" + b"h\x02h\x01X\x06\x00\x00\x00latin1\x86R" * 20_000 + b"e",
            id="bytes",
        ),
        pytest.param(
            b"X\x00\x00\x08\x00"
            + b"a" * 0x80000
            + b"q\x010cpathlib\nPosixPath\n("
            + b"h\x01" * 200_000
            + b"tR",
            id="paths",
        ),
    ],
)
def test_bombs(tmp_path, value):
    """Small files that would unfold to something huge."""
    path = tmp_path / "a.pt"
    in_zip(path, with_tensor(value), k0=bytes(4))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert isinstance(opened(path), str)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEBIBYTES << 10


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "reason"),
    [
        (0, (1 << 40,), (0,), "larger than"),
        (0, (1 << 61, 1 << 61), (0, 0), "larger than"),
        (0, (1 << 40, 0), (1, 1), None),
        (0, (3,), (1,), "beyond its storage"),
        (0, (2,), (2,), "beyond its storage"),
        (2, (1,), (1,), "beyond its storage"),
        (1 << 61, (1,), (1,), "beyond its storage"),
        (1 << 62, (2,), (1 << 62,), "beyond its storage"),
        (-1, (1,), (1,), "sizes that are none"),
        (0, (-1,), (1,), "sizes that are none"),
        (0, (1,), (-1,), "sizes that are none"),
        (0, (1,) * 65, (1,) * 65, "sizes that are none"),
        (0, (2,), (1, 1), "strides do not fit"),
        (0, (True,), (1,), "sizes that are none"),
    ],
)
def test_places_outside_the_storage(tmp_path, offset, shape, strides, reason):
    def number(value):
        return (
            {True: b"\x88"}.get(value)
            if value is True
            else b"\x8a\x09" + value.to_bytes(9, "little", signed=True)
        )

    def sizes(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    identity = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x02tQ"
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + number(offset) + sizes(shape) + sizes(strides)
    )
    in_zip(tmp_path / "a.pt", b"\x80\x02}" + text("t") + tensor + b"\x89NtRs.", k0=bytes(8))
    found = opened(tmp_path / "a.pt")
    if reason is None:
        assert found.layout["t"].shape == shape
    else:
        assert isinstance(found, str) and reason in found, found


def good_files(folder):
    base = torch.arange(12.0).reshape(3, 4)
    content = {
        "model_dict": {
            "a": base,
            "b": base.t(),
            "alias": base,
            "h": torch.ones(3).half(),
            "n": torch.tensor(3),
        },
        "hparams": {"lr": np.float64(1e-3), "n": np.int64(3), "array": np.arange(3)},
        "args": {"names": ["x", "y"], "set": {1, 2}, "shape": torch.Size([1]), "dtype": torch.float32},
    }
    for number, zipped in enumerate((True, True, False, False)):
        path = folder / f"good{number}.pt"
        torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=2 + 2 * (number % 2))
        assert opened(path).metadata["hparams"] == {"lr": 1e-3, "n": 3, "array": [0, 1, 2]}
        yield path.read_bytes()


def test_mutated_bytes(tmp_path):
    """Thousands of files of torch.save with a few bytes changed, cut out, doubled or moved."""
    generator = random.Random(0)
    path = tmp_path / "a.pt"
    outcomes = {True: 0, False: 0}
    for whole in good_files(tmp_path):
        # The data between are of no interest, the pickle and the zip directory are.
        for _ in range(600):
            content = bytearray(whole)
            for _ in range(generator.randint(1, 4)):
                at = generator.randrange(len(content))
                kind = generator.randrange(4)
                if kind == 0:
                    content[at] = generator.randrange(256)
                elif kind == 1:
                    content[at : at + 4] = generator.choice([b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff"])
                elif kind == 2:
                    del content[at : at + generator.randint(1, 40)]
                else:
                    piece = content[at : at + generator.randint(1, 40)]
                    to = generator.randrange(len(content))
                    content[to:to] = piece
            path.write_bytes(content)
            outcomes[isinstance(opened(path), str)] += 1
    assert outcomes[True] > 800 and outcomes[False] > 100, outcomes


def test_mutated_instructions(tmp_path):
    """Thousands of pickles whose instructions are dropped, doubled, exchanged, or have another's argument."""
    generator = random.Random(1)
    source, path = tmp_path / "s.pt", tmp_path / "a.pt"
    source.write_bytes(next(good_files(tmp_path)))
    with zipfile.ZipFile(source) as file:
        members = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    pickled = members.pop("data.pkl")
    starts = [position for _, _, position in pickletools.genops(pickled)] + [len(pickled)]
    instructions = [pickled[begin:end] for begin, end in itertools.pairwise(starts)]
    data = {
        f"k{name.partition('/')[2]}": value for name, value in members.items() if name.startswith("data/")
    }
    refused = 0
    for _ in range(1600):
        changed = list(instructions)
        for _ in range(generator.randint(1, 6)):
            one, other = generator.randrange(len(changed)), generator.randrange(len(changed))
            kind = generator.randrange(5)
            if kind == 0:
                del changed[one]
            elif kind == 1:
                changed.insert(one, changed[other])
            elif kind == 2:
                changed[one], changed[other] = changed[other], changed[one]
            elif kind == 3:
                changed[one] = changed[one][:1] + changed[other][1:]
            else:
                changed.insert(
                    one, generator.choice([b"2", b"0", b"(", b"t", b"R", b"b", b"s", b"Q", b"\x81", b"h\x01"])
                )
        in_zip(path, b"".join(changed), **data)
        refused += isinstance(opened(path), str)
    assert refused > 800
