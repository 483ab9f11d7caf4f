"""Which card a checkpoint given by hand is of, by its network and its sha256."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robench import catalog
from robench.core.errors import ResourceError, UsageError
from robench.defenses import load
from tests.defenses import layouts


@pytest.fixture
def shelf(monkeypatch, tmp_path):
    """Puts cards on a shelf of one's own; gives the digest of a ViT-T/8 of one block for CIFAR-10."""
    torch.save(layouts.filled(layouts.vit(192, 1, 32, 8, 10)), tmp_path / "t.pth")
    base = replace(
        catalog.cards()["mimir-vit-t-cifar10"],
        builder="vit(image_size=32, patch_size=8, width=192, depth=1, heads=3, num_classes=10)",
    )
    monkeypatch.chdir(tmp_path)

    def fill(**digests):
        cards = {name: replace(base, name=name, sha256=digest) for name, digest in digests.items()}
        monkeypatch.setattr(catalog, "cards", lambda: cards)

    fill.digest = hashlib.sha256(Path("t.pth").read_bytes()).hexdigest()
    return fill


def test_a_network_of_two_cards_is_loaded_under_the_name_of_its_spec(shelf):
    shelf(one="", two="")
    loaded = load("mimir", "cifar10", "t.pth")
    assert loaded.name == "vit(depth=1, heads=3, image_size=32, num_classes=10, patch_size=8, width=192)"
    assert loaded.family == "mimir" and loaded.card is None
    assert loaded.notes[0] == (
        "t.pth has the network of 2 cards, one, two: name one of them to record it under that name"
    )
    assert load("two", "cifar10", "t.pth").name == "two"


def test_a_known_sha256_decides_between_them_and_needs_no_note(shelf):
    shelf(one="", two=shelf.digest, three="0" * 64)
    found = load("mimir", "cifar10", "t.pth")
    assert (found.name, found.notes) == ("two", ())


def test_a_card_that_knows_another_sha256_is_passed_over(shelf):
    shelf(one="", two="0" * 64)
    found = load("mimir", "cifar10", "t.pth")
    assert found.name == "one"
    assert found.notes == (
        f"the card one has no sha256 yet: t.pth is not verified, its sha256 is {shelf.digest}",
    )


def test_a_file_that_is_not_the_released_one_is_refused_under_its_name(shelf):
    shelf(one="0" * 64)
    said = rf"has sha256 {shelf.digest}: the card one has 0{{64}}; get the file from https.*--defense 'vit\("
    with pytest.raises(ResourceError, match=said):
        load("one", "cifar10", "t.pth")


def test_weights_in_place_of_a_cards_own_are_said_to_be(shelf, tmp_path):
    torch.save(layouts.filled(layouts.vit(64, 4, 16, 4, 10)), "d.pth")
    found = load("mimir", "digits", "d.pth")
    assert found.name == "mimir-digits"
    assert "d.pth is not the checkpoint of the card mimir-digits" in found.notes[0]


def test_weights_that_are_not_there_are_said_to_be_got_from_their_origin(shelf):
    shelf(one="")
    with pytest.raises(
        ResourceError, match=r"get them from https://drive.google.com/\S+ .*MIMIR.*--checkpoint"
    ):
        load("one", "cifar10")


def test_among_several_cards_the_one_with_weights_is_meant(monkeypatch):
    ready = catalog.cards()["mimir-digits"]
    cards = {
        name: replace(ready, name=name, checkpoint=file) for name, file in {"a": "", "b": "b.pt"}.items()
    }
    monkeypatch.setattr(catalog, "cards", lambda: cards)
    from robench.defenses import find_card

    found = find_card("mimir")
    assert found is not None and found.name == "b"
    cards["a"] = replace(ready, name="a", checkpoint="a.pt")
    with pytest.raises(UsageError, match="the family mimir has 2 cards for digits: name one of a, b"):
        find_card("mimir")
