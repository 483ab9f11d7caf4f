"""Checkpoints as training scripts write them: names, places, values beside the weights, kinds of files and numbers."""

import argparse
import collections
import datetime
import decimal
import functools
import io
import json
import pathlib
import pickle
import tarfile
import types
import uuid
import zipfile

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from robench.core.errors import ResourceError
from robench.defenses import Defense
from robench.defenses._checkpoints import load_into, read_state, read_weights
from robench.defenses._keys import renamed
from robench.defenses.loaders._base import fill


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10)).eval()


STATE = {k: v + 0.1 if v.is_floating_point() else v for k, v in network().state_dict().items()}
OTHER = network(1).state_dict()


def prefixed(prefix, state=STATE):
    return {prefix + key: value for key, value in state.items()}


def equal(one, two=STATE):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in two)


@pytest.fixture
def saved(tmp_path):
    """Writes a file by torch.save, and loads it into the network by the way that loaders take."""

    def load(content, name="", expected=STATE):
        path = tmp_path / "saved.pth"
        torch.save(content, path)
        defense = Defense(network(2), num_classes=10, image_size=8)
        found = fill(defense, path, name)
        assert equal(defense.classifier.state_dict(), expected)
        return found.weights

    return load


# Names of tensors.

WRAPPERS = ["module.", "_orig_mod.", "model.", "net.", "classifier.", "backbone.", "_fsdp_wrapped_module."]


@given(st.lists(st.sampled_from(WRAPPERS), max_size=4).map("".join))
def test_any_chain_of_wrappers_is_taken_off(prefix):
    assert equal(renamed(prefixed(prefix), STATE))
    # The network may be wrapped where the file is not.
    assert renamed(STATE, prefixed(prefix)).keys() == prefixed(prefix).keys()


def test_a_wrapper_around_a_part():
    state = {("features.module." if k[0] in "01" else "_orig_mod.") + k: v for k, v in STATE.items()}
    wanted = {("features." if k[0] in "01" else "") + k: v for k, v in STATE.items()}
    assert equal(renamed(state, wanted), wanted)


def test_names_that_differ_by_more_are_refused(saved):
    with pytest.raises(ResourceError, match=r"lacks 0\.weight, .*#model' loads only the tensors under model"):
        saved({**prefixed("model."), "more.weight": torch.zeros(3)})
    saved({**prefixed("model."), "more.weight": torch.zeros(3)}, "model")
    with pytest.raises(ResourceError, match=r"lacks 3\.bias"):
        saved({key: value for key, value in STATE.items() if key != "3.bias"})


COUNTED = {"total_ops": torch.zeros(1), "0.total_params": torch.zeros(1), "n_averaged": torch.tensor(5)}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_counters_are_no_weights(saved, prefix):
    saved({**COUNTED, **prefixed(prefix)})
    model = network(2)
    path = pathlib.Path("old.pth")
    load_into(model, prefixed(prefix, {k: v for k, v in STATE.items() if "num_batches" not in k}), path)
    assert equal(model.state_dict(), STATE)


# Places in a file.


@pytest.mark.parametrize(
    "key",
    ["net", "model_state", "weights", "network", "params", "net_state_dict", "model.state_dict", "a.b.c"],
)
def test_weights_under_any_key(saved, key):
    content = functools.reduce(lambda inner, each: {each: inner}, reversed(key.split(".")), STATE)
    optimiser = {
        "state": {0: {"step": torch.ones(1), "exp_avg": torch.zeros(3)}},
        "param_groups": [{"lr": 0.1}],
    }
    weights = saved(
        {**content, "optimizer": optimiser, "optim_state_dict": {"a": torch.ones(2)}, "acc": torch.ones(1)}
    )
    assert weights.notes == () and weights.name == key and not weights.chosen


def test_a_file_without_weights_says_what_it_holds(saved):
    with pytest.raises(
        ResourceError, match=r"holds no table of tensors, it holds epoch \(int\), net \(nonetype\)"
    ):
        saved({"epoch": 3, "net": None})


PAIRS = [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("model", "ema"), ("model", "swa_model"),
         ("params", "params_ema"), ("net", "averaged")]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_of_two_sets_the_one_that_is_judged_is_said(saved, first, second):
    content = {second: prefixed("module."), "epoch": 3, first: OTHER}
    usual = saved(content, expected=OTHER)
    assert f"{first} is evaluated" in usual.notes[0] and f"#{second}' evaluates {second}" in usual.notes[0]
    assert f"{second} is evaluated" in (average := saved(content, second)).notes[0]
    named = saved(content, first, expected=OTHER)
    # A record tells them apart, and the usual one has the file's own digest.
    assert usual.digest("f") == named.digest("f") == "f" != average.digest("f")


def test_a_set_inside_another_place(saved):
    content = {"model": OTHER, "ema": {"decay": 0.9, "shadow": STATE}}
    assert saved(content, "ema").name == "ema.shadow"
    with pytest.raises(ResourceError, match=r"no weights swa: it holds model and ema\.shadow"):
        saved(content, "swa")


def test_two_sets_in_one_table(saved):
    content = {
        **prefixed("model.", OTHER),
        **prefixed("model_ema.module."),
        "model_ema.n_averaged": torch.tensor(3),
    }
    assert "model is evaluated" in saved(content, expected=OTHER).notes[0]
    saved(content, "model_ema")


def test_an_average_that_is_a_list(saved):
    parameters = [value for key, value in STATE.items() if key.endswith(("weight", "bias"))]
    state = {key: OTHER[key] if key.endswith(("weight", "bias")) else value for key, value in STATE.items()}
    content = {"model": state, "ema": {"decay": 0.9, "shadow_params": parameters}}
    assert "ema.shadow_params is evaluated" in saved(content).notes[0]
    saved(content, "model", state)


def test_sets_of_which_none_is_usual_are_asked_for(saved):
    content = {"student": STATE, "teacher": OTHER}
    with pytest.raises(
        ResourceError, match=r"2 sets of weights, student and teacher: name one of them, .*#student'"
    ):
        saved(content)
    saved(content, "student")


# Values beside the weights.

VALUES = {
    "scalar": numpy.float64(71.2), "integer": numpy.int64(3), "truth": numpy.bool_(True), "array": numpy.arange(3.0),
    "texts": numpy.array(["a", "b"]), "defaultdict": collections.defaultdict(list, a=[1.0]),
    "counter": collections.Counter("ab"), "deque": collections.deque([1, 2], 3), "path": pathlib.Path("log"),
    "pure": pathlib.PureWindowsPath("log"), "date": datetime.date(2026, 1, 2), "span": datetime.timedelta(1),
    "time": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), "namespace": argparse.Namespace(lr=numpy.float32(0.1)),
    "simple": types.SimpleNamespace(a=1), "decimal": decimal.Decimal("0.1"), "uuid": uuid.UUID(int=5),
    "set": {1, 2}, "device": torch.device("cpu"), "dtype": torch.float16, "size": torch.Size([1]),
    "type": numpy.dtype("float32"),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("legacy", [False, True])
def test_plain_values_beside_the_weights(tmp_path, name, legacy):
    torch.save(
        {"state_dict": STATE, "best": VALUES[name]}, tmp_path / "a", _use_new_zipfile_serialization=not legacy
    )
    assert equal(read_state(tmp_path / "a"))


class Trap:
    """What would run if anything of a file ran."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize(
    "function",
    [print, eval, getattr, __import__, numpy.load, pathlib.Path.cwd, functools.partial, torch.load],
)
def test_nothing_that_can_be_called_is_called(tmp_path, capsys, function):
    torch.save({"model": STATE, "more": Trap(function, "executed")}, tmp_path / "a")
    with pytest.raises(ResourceError, match="not unpickled"):
        read_state(tmp_path / "a")
    assert capsys.readouterr().out == ""


def test_no_value_is_made_of_what_a_file_says(tmp_path):
    """The stand-ins keep nothing, whatever they are called with: a forged NumPy array is never made."""
    forged = Trap(numpy.dtype, "O8", False, True)
    torch.save(
        {"model": STATE, "a": forged, "b": Trap(pathlib.Path, {}), "c": Trap(datetime.date, b"")},
        tmp_path / "a",
    )
    assert equal(read_state(tmp_path / "a"))


# Kinds of files.


def write_index(folder, **shards):
    folder.mkdir(exist_ok=True)
    for name, state in shards.items():
        save_file(state, folder / f"{name}.safetensors")
    weight_map = {key: f"{name}.safetensors" for name, state in shards.items() for key in state}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


HALVES = {
    "one": {k: v for k, v in STATE.items() if k < "2"},
    "two": {k: v for k, v in STATE.items() if k > "2"},
}


@pytest.mark.parametrize("name", ["a.bin", "a.SAFETENSORS", "a.safetensors", "0a1b2c", "a.pt", "a.json"])
def test_the_content_says_the_kind(tmp_path, name):
    path = tmp_path / name
    for write in (
        save_file,
        torch.save,
        functools.partial(torch.save, _use_new_zipfile_serialization=False),
        lambda state, path: torch.save({"model": state, "best": numpy.float64(1)}, path),
    ):
        write(STATE, path)
        assert equal(read_state(path))


def test_shards_are_read_beside_their_index(tmp_path):
    assert equal(read_state(write_index(tmp_path, **HALVES)))
    for name, half in HALVES.items():
        torch.save(half, tmp_path / f"{name}.safetensors")
    assert equal(read_state(tmp_path / "model.safetensors.index.json"))
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(ResourceError, match=r"needs two\.safetensors in its folder, which is missing"):
        read_state(tmp_path / "model.safetensors.index.json")


@pytest.mark.parametrize(
    "name", ["../a", "/etc/passwd", "sub/a", "..", "", ".", "C:a", "a\\b", "a\0b", 3, None, [1]]
)
def test_an_index_reads_nothing_elsewhere(tmp_path, name):
    index = tmp_path / "in" / "m.json"
    index.parent.mkdir()
    save_file(STATE, tmp_path / "a")
    index.write_text(json.dumps({"weight_map": {"0.weight": name}}))
    with pytest.raises(ResourceError, match="expected file names in its own folder"):
        read_state(index)


def test_the_digest_of_an_index_is_over_its_shards(tmp_path):
    from robench.defenses._checkpoints import sha256_of

    index = write_index(tmp_path, **HALVES)
    before = sha256_of(index)
    save_file({key: value + 1 for key, value in HALVES["two"].items()}, tmp_path / "two.safetensors")
    assert sha256_of(index) != before


def zipped(name="model.pth"):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"")
    return content.getvalue()


def tarred():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"))
    return content.getvalue()


def npz():
    content = io.BytesIO()
    numpy.savez(content, a=numpy.ones(2))
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file: get it again"),
        (b"<!DOCTYPE html><html></html>", "a page in HTML"),
        (b"\n <HTML lang='en'>", "a page in HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer.*git lfs pull"),
        (zipped(), r"a zip archive of model\.pth: unpack it"),
        (zipped("net/archive_format"), "a program of torch.export: load it in a function"),
        (zipped()[:-30], "a zip archive that is damaged or cut off: get it again"),
        (tarred(), "a tar archive: unpack it"),
        (b"\x1f\x8b\x08", "a gzip archive: unpack it"),
        (npz(), "a NumPy archive"),
        (pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
        (b'{"a": 1}', "a JSON file, but not an index of shards"),
        (b"Access denied\n", 'a text that begins "Access denied"'),
        (b"\x00\x01\x02\xff" * 99, "get it again"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    ],
)
@pytest.mark.parametrize("name", ["d.pt", "d.safetensors"])
def test_what_is_no_checkpoint_is_named(tmp_path, content, words, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ResourceError, match=words) as caught:
        read_state(tmp_path / name)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=300))
def test_no_content_ends_in_another_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "a"
    for start in (b"", b"PK\x03\x04", b"\x80\x02", b"{", len(content).to_bytes(8, "little") + b"{"):
        path.write_bytes(start + content)
        with pytest.raises(ResourceError):
            read_state(path)


# Kinds of numbers.


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_another_precision_is_said(saved, kind):
    stored = {key: value.to(kind) if value.is_floating_point() else value for key, value in STATE.items()}
    expected = {key: value.float() if value.is_floating_point() else value for key, value in stored.items()}
    assert str(kind).removeprefix("torch.") in saved(stored, expected=expected).notes[0]


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_whole_numbers_are_not_cast(saved, kind):
    with pytest.raises(
        ResourceError, match=r"has 0\.weight in \w+, the network in float32: quantized or boolean"
    ):
        saved({key: value.to(kind) for key, value in STATE.items()})


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions")
def test_quantised_complex_and_empty_tensors_are_refused(saved):
    for change, words in (
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "is quantized"),
        (lambda t: t.to(torch.complex64), "is complex"),
        (lambda t: t.to("meta"), "is without data"),
    ):
        with pytest.raises(ResourceError, match=words):
            saved({key: change(v) if v.is_floating_point() else v for key, v in STATE.items()})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_none_are_refused(saved, value):
    with pytest.raises(ResourceError, match=r"NaN or infinite numbers in 3\.bias"):
        saved({**STATE, "3.bias": torch.full((10,), value)})


def test_masks_and_indices_keep_their_numbers():
    model = nn.Module()
    model.register_buffer("mask", torch.tensor([True, False]))
    model.register_buffer("index", torch.tensor([3, 1]))
    path = pathlib.Path("a.pth")
    load_into(
        model, {"mask": torch.tensor([0, 1], dtype=torch.uint8), "index": torch.tensor([1.0, 2.0])}, path
    )
    masked = model.state_dict()
    assert masked["mask"].tolist() == [False, True] and masked["index"].tolist() == [1, 2]
    with pytest.raises(ResourceError, match=r"has index in float32, the network in int64"):
        load_into(model, {"mask": torch.tensor([0, 1]), "index": torch.tensor([1.5, 2.0])}, path)


def test_read_weights_names_the_place_of_safetensors(tmp_path):
    save_file(STATE, tmp_path / "a")
    assert read_weights(tmp_path / "a").name == ""
