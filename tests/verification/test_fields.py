"""Every field of every kind of record is held, or named as resting on trust: a forger may choose."""

import json
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from robench.core.errors import ResourceError
from robench.records import certificate_file, certificates, json_files, samples
from robench.verification import fields
from robench.verification.verify import findings, report
from tests.verification import forge
from tests.verification.conftest import KINDS


def schema_leaves(node: dict[str, Any], name: str = "") -> list[str]:
    """The names of all values that the schema describes."""
    if "$ref" in node:
        node = json_files.schema("record")["$defs"][node["$ref"].rpartition("/")[2]]
    if "properties" in node:
        return [
            leaf
            for key, value in node["properties"].items()
            for leaf in schema_leaves(value, f"{name}.{key}" if name else key)
        ]
    items = node.get("items")
    return schema_leaves(items, name) if items and node.get("type") == "array" else [name]


def every_name() -> list[str]:
    columns = [
        *samples.SCHEMA.names,
        samples.CORRUPTED.name,
        samples.ORDERED.name,
        samples.PROVEN.name,
        *(f.name for f in getattr(samples, "DRAWN", ())),
    ]
    tensors = {**certificate_file.EXACT, **certificate_file.ROUNDED}
    return [
        *schema_leaves(json_files.schema("record")),
        *(f"samples.{name}" for name in columns),
        *(f"adversarials.{name}" for name in tensors),
    ]


@pytest.mark.parametrize("name", every_name())
def test_the_table_decides_about_every_field(name):
    assert fields.known(name), f"{name}: say in robench.verification.fields whether it is held or on trust"


def test_no_line_of_the_table_speaks_of_nothing_or_twice():
    names = every_name()
    for line in fields.TABLE:
        assert any(name == line.name or name.startswith(f"{line.name}.") for name in names), line
    said = [(line.name, kind) for line in fields.TABLE for kind in line.kinds]
    assert len(said) == len(set(said))


@pytest.mark.parametrize("kind", KINDS)
def test_an_honest_record_holds_and_its_fields_are_counted(made, kind):
    one = made(kind)
    found = report(one.record.folder, one.loaded, one.images)
    assert found.broken == [] and found.failed == ()
    total = len(found.held)
    assert str(found).startswith(f"VERIFIED: all {total} checkable fields hold; ") and total > 30
    # Only a card says which family a defense belongs to.
    unexplained = ("cannot be checked here", "a field that this release does not know")
    assert {name for name, reason in found.trusted.items() if reason in unexplained} <= {"defense.family"}
    assert trusted_always(kind) <= set(found.trusted) and not {"key", "n"} & set(found.trusted)


# Values that the schema allows as well, so that only a check can refuse them.
ANOTHER = {
    "threat": "Linf:0.3",
    "knowledge": "full",
    "precision": "bf16",
    "commit": "0" * 40,
    "started": "2025-01-01T00:00:00Z",
    "finished": "2027-01-01T00:00:00Z",
    "split": "train",
    "jpeg": {"quality": 50},
}


def another(key: Any, value: Any) -> Any:
    """Something else of the same kind."""
    if key in ANOTHER and value != ANOTHER[key]:
        return ANOTHER[key]
    if key == "knowledge":
        return "surrogate:standard"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1 if key != "correct" or value < 1 else value - 1
    if isinstance(value, float):
        return value / 2 if value else 0.5
    if value is None:
        return 1
    if isinstance(value, str):
        return "0" * 64 if len(value) == 64 else f"{value}x"
    return [{"code": "made-up", "text": "a warning"}] if value == [] else type(value)()


def places(content: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where each value of a record.json stands."""
    if isinstance(content, dict | list) and content:
        items = content.items() if isinstance(content, dict) else enumerate(content)
        return [leaf for key, value in items for leaf in places(value, (*place, key))]
    return [place]


def accepted(folder, one) -> set[str] | None:
    """The fields named on trust, where the record passes; None where it is refused."""
    try:
        if not all(each.held for each in findings(folder, one.loaded.defense, one.images, loaded=one.loaded)):
            return None
        return set(report(folder, one.loaded, one.images).trusted)
    except ResourceError:
        return None


def named(name: str, trusted: set[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in trusted)


def trusted_always(kind: str) -> set[str]:
    """What the table trusts in such a record, and the output of an honest one therefore names."""
    found = {"randomized": fields.RANDOMIZED, "corrupted": fields.CORRUPTED}.get(kind, fields.PLAIN)
    names = {line.name for line in fields.TABLE if line.trust and found in line.kinds}
    # A search in fp32 on a CPU and a run without a certifier have no such fields.
    return {name for name in names if not name.startswith(("search.", "proven."))}


@pytest.mark.parametrize("kind", KINDS)
def test_every_edit_of_record_json_is_refused_or_its_field_is_named(made, kind, tmp_path):
    one = made(kind)
    folder = forge.copied(one.record, tmp_path / "forged")
    honest = forge.read(folder)
    always = trusted_always(kind)
    passed = []
    for place in places(honest):
        name = ".".join(part for part in place if isinstance(part, str))
        if named(name, always):
            continue
        content = json.loads(json.dumps(honest))
        inside = content
        for part in place[:-1]:
            inside = inside[part]
        inside[place[-1]] = another(place[-1], inside[place[-1]])
        if place[0] == "suite":
            # The attacks that were run and those that were asked for are the same list.
            for cost, spec in zip(content["attacks"], content["suite"]["attacks"], strict=True):
                cost["spec"] = spec
        try:
            forge.write(folder, content, tuple({"files", "key"} - {place[0]}))
        except ResourceError:
            continue  # the schema refuses it
        trusted = accepted(folder, one)
        if trusted is not None and not named(name, trusted):
            passed.append(name)
    assert passed == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_field_is_named(made, kind, tmp_path):
    one = made(kind)
    folder = forge.copied(one.record, tmp_path / "forged")
    forge.write(folder, forge.read(folder) | {"certified_accuracy": 0.9})
    assert "certified_accuracy" in (accepted(folder, one) or ())
    content = forge.read(folder)
    content["defense"]["licence"] = "none"
    (folder / forge.JSON).write_text(json.dumps(content))
    assert accepted(folder, one) is None


def other_row(kind: str, name: str, value: Any, rows: dict[str, list[Any]]) -> Any:
    if name == "fooled_by":
        return "" if value else rows["fooled_by"][0] or "pgd(steps=3)"
    if isinstance(value, str):
        return "0" * 64
    if isinstance(value, list):
        return [*value[:-1], (value[-1] + 1) % 10]
    if name in ("prediction", "clean_prediction", "label"):
        return (value + 1) % 10
    return value * 2 + 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_edit_of_a_row_is_refused_or_its_column_is_named(made, kind, tmp_path):
    one = made(kind)
    rows = samples.read_samples(one.record.folder).to_pydict()
    # A row of each fate.
    chosen = {name: i for i, name in enumerate(rows["fooled_by"])}.values()
    passed = []
    for name in rows:
        if named(f"samples.{name}", trusted_always(kind)):
            continue
        for row in chosen:
            folder = forge.copied(one.record, tmp_path / "forged")
            forge.set_rows(folder, {name: {row: other_row(kind, name, rows[name][row], rows)}})
            trusted = accepted(folder, one)
            if trusted is not None and not named(f"samples.{name}", trusted):
                passed.append((name, row))
    assert passed == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "corrupted"])
def test_every_edit_of_a_certificate_is_refused(made, kind, tmp_path):
    one = made(kind)
    path = one.record.folder / certificates.FILE
    for name, tensor in load_file(path).items():
        if not tensor.numel():
            continue
        folder = forge.copied(one.record, tmp_path / "forged")
        changed = tensor * 0 if name in ("delta", "grains") else tensor * 2 + 1
        save_file(load_file(path) | {name: changed.to(tensor.dtype)}, folder / certificates.FILE)
        forge.write(folder, forge.read(folder))
        assert accepted(folder, one) is None, name
