"""Image datasets in the parquet format of Hugging Face."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from robench.core.errors import ResourceError, UsageError
from robench.data import load_dataset
from robench.data._names import synsets
from tests.data.real import REAL, needs


def png(seed, size=(8, 8)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write(path, contents, labels, *, names=None, columns=("image", "label"), paths=None, group=2):
    """A file as written by the library `datasets`, with names of classes in the schema."""
    image, label = columns
    paths = paths or [None] * len(contents)
    rows = [{"bytes": content, "path": name} for content, name in zip(contents, paths, strict=True)]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {image: pa.array(rows, struct), label: pa.array(labels), "more": pa.array(range(len(labels)))}
    )
    if names:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def decoded(content):
    return torch.from_numpy(np.array(Image.open(io.BytesIO(content)))).permute(2, 0, 1).float() / 255


@pytest.fixture
def shards(tmp_path):
    """Two shards of a test part and one of a train part; five and one rows of three classes."""
    folder = tmp_path / "set" / "data"
    names = ["ant", "bee", "cat"]
    write(folder / "test-00000-of-00002.parquet", [png(k) for k in range(3)], [2, 2, 0], names=names)
    write(folder / "test-00001-of-00002.parquet", [png(k) for k in (3, 4)], [0, 2], names=names)
    write(folder / "train-00000-of-00001.parquet", [png(9)], [1], names=names)
    return folder


def test_rows_are_images_and_the_schema_names_the_classes(shards):
    images = load_dataset(f"parquet:{shards.parent}")
    # Classes alternate; an id is the number of the row over both shards.
    assert images.ids.tolist() == [2, 0, 3, 1, 4]
    assert images.y.tolist() == [0, 2, 0, 2, 2]
    assert images.classes == ("ant", "bee", "cat")
    for place, row in enumerate(images.ids.tolist()):
        assert torch.equal(images.x[place], decoded(png(row)))
    few = load_dataset("parquet:set", samples=2, data_dir=str(shards.parent.parent))
    assert few.digest == images.first(2).digest
    assert load_dataset(f"parquet:{shards.parent}", "train").classes[1] == "bee"


@pytest.mark.parametrize(
    ("test", "train", "classes"),
    [(["ant", "cat"], ["cat", "bee", "ant"], ("ant", "bee", "cat")), ([0, 1], [2, 0, 1], ("0", "1", "2"))],
)
def test_a_class_that_a_part_does_not_have_is_counted(tmp_path, test, train, classes):
    """Otherwise the same name would be another label in the train and the test split."""
    write(tmp_path / "test-00000-of-00001.parquet", [png(k) for k in range(2)], test)
    write(tmp_path / "train-00000-of-00001.parquet", [png(k) for k in range(3)], train)
    for split, given in (("test", test), ("train", train)):
        images = load_dataset(f"parquet:{tmp_path}", split)
        assert images.classes == classes
        named = [classes[images.y[images.ids.tolist().index(row)]] for row in range(len(given))]
        assert named == [str(label) for label in given]


@pytest.mark.parametrize(
    ("place", "part"),
    [("validation-00000-of-00001-0a1b2c3d.parquet", ""), ("default/validation/0000.parquet", ""),
     ("anything.parquet", ""), ("extra-00000-of-00001.parquet", "extra")],
)  # fmt: skip
def test_parts_are_recognised_by_name(tmp_path, place, part):
    write(tmp_path / place, [png(0)], [0], columns=("img", "fine_label"))
    name = f"parquet:{tmp_path}" + (f'(part="{part}")' if part else "")
    images = load_dataset(name)
    assert (images.name, images.classes, len(images)) == (name, ("0",), 1)
    if part:
        with pytest.raises(UsageError, match="it has extra; set part="):
            load_dataset(f"parquet:{tmp_path}")


def test_string_labels_and_plain_bytes(tmp_path):
    table = pa.table({"picture": pa.array([png(0), png(1)]), "kind": ["dog", "cat"]})
    pq.write_table(table, tmp_path / "test.parquet")
    with pytest.raises(UsageError, match=r"no unique image column .* has columns picture, kind"):
        load_dataset(f"parquet:{tmp_path}")
    images = load_dataset(f'parquet:{tmp_path}(image="picture", label="kind")')
    assert images.classes == ("cat", "dog") and images.ids.tolist() == [1, 0] and images.y.tolist() == [0, 1]
    with pytest.raises(UsageError, match="is string: expected encoded images"):
        load_dataset(f'parquet:{tmp_path}(image="kind", label="kind")')


def test_missing_and_damaged_files_are_counted_and_listed(shards):
    def refused(match, kind=ResourceError, name=f"parquet:{shards.parent}"):
        with pytest.raises(kind, match=match) as caught:
            load_dataset(name)
        assert "\n" not in str(caught.value)

    second = shards / "test-00001-of-00002.parquet"
    whole = second.read_bytes()
    second.unlink()
    refused(r"1 files of .* are missing: .*test-00001-of-00002\.parquet")
    second.write_bytes(whole[: len(whole) // 2])
    refused(r"1 of 2 files .* cannot be read as parquet: .*test-00001")
    write(second, [png(3)[:40], None], [0, 2])
    refused(r"2 of 5 images .*test-00001-of-00002\.parquet row 0, .* row 1 \(damaged")
    write(second, [png(3)], [-1])
    refused(r"1 of 4 rows .* outside 0 \.\. 2, the first is -1")
    write(second, [png(3)], ["ant"])
    refused(r"1 files .* other columns than test-00000-of-00002\.parquet")
    write(second, [png(3)], pa.array([None], pa.int64()))
    refused("1 of 4 rows .* have no label")
    write(second, [png(3, (8, 9))], [1])
    refused("several sizes", UsageError)
    refused("is not a folder", name="parquet:nowhere")
    refused('no part "dev": it has test, train', UsageError, f'parquet:{shards.parent}(part="dev")')


def test_a_damaged_page_is_reported(shards):
    file = shards / "test-00000-of-00002.parquet"
    content = bytearray(file.read_bytes())
    content[4:60] = b"\xff" * 56
    file.write_bytes(content)
    with pytest.raises(ResourceError, match=r"test-00000-of-00002\.parquet"):
        load_dataset(f"parquet:{shards.parent}")


def hub(folder, numbers, labels, contents, wrong=()):
    paths = [
        f"ILSVRC2012_val_{number:08d}_{synsets()[label + (number in wrong)]}.JPEG"
        for number, label in zip(numbers, labels, strict=True)
    ]
    place = folder / "imagenet-1k" / "data" / "validation-00000-of-00001.parquet"
    return write(place, contents, labels, names=list(synsets()), paths=paths)


def test_imagenet_of_the_hub_is_in_the_order_of_the_numbers(tmp_path):
    hub(tmp_path, [7, 3, 12], [5, 900, 0], [png(7), png(3), png(12)])
    images = load_dataset('imagenet(preprocessing="none")', data_dir=str(tmp_path))
    assert (images.ids.tolist(), images.y.tolist()) == ([2, 6, 11], [900, 5, 0])
    assert torch.equal(images.x[1], decoded(png(7)))
    hub(tmp_path, [7, 3, 12], [5, 900, 0], [png(7)] * 3, wrong=[3])
    with pytest.raises(ResourceError, match=r"1 of 3 rows .* row 1, ILSVRC2012_val_00000003_.* label 900"):
        load_dataset("imagenet", data_dir=str(tmp_path))


@needs("imagenet")
def test_real_images_are_the_same_from_files_and_from_parquet(tmp_path):
    name = 'imagenet(preprocessing="none")'
    files = load_dataset(name, samples=40, data_dir=str(REAL))
    val = REAL / "imagenet" / "val"
    numbers = [number + 1 for number in files.ids.tolist()]
    contents = [
        (val / synsets()[label] / f"ILSVRC2012_val_{number:08d}.JPEG").read_bytes()
        for number, label in zip(numbers, files.y.tolist(), strict=True)
    ]
    order = np.random.default_rng(0).permutation(40).tolist()
    labels = files.y.tolist()
    hub(tmp_path, [numbers[i] for i in order], [labels[i] for i in order], [contents[i] for i in order])
    assert load_dataset(name, data_dir=str(tmp_path)).digest == files.digest
