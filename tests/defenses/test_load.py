import argparse
import hashlib

import pytest
import torch
from safetensors.torch import save_file

from robench import catalog
from robench.canonical import defense_name
from robench.catalog import Card
from robench.core import registry
from robench.core.errors import ResourceError, UsageError
from robench.defenses import Defense, find_card, load, load_defense
from robench.defenses.vit import vit

BUILDER = "vit(image_size=8, patch_size=4, width=8, depth=1, heads=2, num_classes=10)"


@pytest.fixture
def network():
    torch.manual_seed(0)
    return vit(image_size=8, patch_size=4, width=8, depth=1, heads=2, num_classes=10).classifier.eval()


@pytest.fixture
def card(tmp_path, network):
    """The path of a card whose checkpoint lies beside it."""
    save_file(network.state_dict(), tmp_path / "small.safetensors")
    digest = hashlib.sha256((tmp_path / "small.safetensors").read_bytes()).hexdigest()
    path = tmp_path / "small.toml"
    path.write_text(
        f"builder = '{BUILDER}'\ndataset = 'digits'\ncheckpoint = 'small.safetensors'\nsha256 = '{digest}'\n"
    )
    return path


def test_a_card_by_its_path(card, network):
    loaded = load(str(card))
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(loaded.defense(x), network(x))
    assert not loaded.defense.training
    assert not any(p.requires_grad for p in loaded.defense.parameters())
    assert loaded.name == "small"
    assert loaded.card_digest == hashlib.sha256(card.read_bytes()).hexdigest()
    assert (
        loaded.checkpoint_sha256
        == hashlib.sha256((card.parent / "small.safetensors").read_bytes()).hexdigest()
    )


@pytest.mark.parametrize("name", ["mimir", "pgd-at", "mae-at", "standard"])
def test_shipped_families_pick_the_card_of_the_data_set(name):
    chosen = find_card(name)
    assert isinstance(chosen, Card)
    assert chosen.name == f"{name}-digits"
    with pytest.raises(UsageError, match=f"{name}-digits"):
        find_card(name, dataset="mnist")


@pytest.mark.parametrize("name", ["mimir", "pgd-at"])
def test_of_several_trained_cards_of_a_family_the_one_of_its_name_is_meant(name):
    several = [
        card
        for card in catalog.cards().values()
        if (card.family, card.dataset) == (name, "cifar10") and card.checkpoint and not card.download_page
    ]
    chosen = find_card(name, dataset="cifar10")
    assert len(several) > 1 and isinstance(chosen, Card) and chosen.name == f"{name}-cifar10"
    assert defense_name(name, "cifar10") == f"{name}-cifar10"
    assert defense_name(f"{name}(depth=3)", "cifar10") == f"{name}-cifar10(depth=3)"


def test_unknown_names_show_the_nearest():
    with pytest.raises(UsageError, match=r'unknown defense "mimr": did you mean mimir'):
        load_defense("mimr")


def test_tampered(card):
    path = card.parent / "small.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        ResourceError, match=f"has sha256 {hashlib.sha256(data).hexdigest()}: the card small has"
    ):
        load(str(card))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("keep", [0, 5, 300, -40])
def test_truncated(tmp_path, card, network, suffix, keep):
    path = tmp_path / f"cut{suffix}"
    if suffix == ".pt":
        torch.save(network.state_dict(), path)
    else:
        save_file(network.state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ResourceError, match="get it again") as caught:
        load(str(card), checkpoint=path)
    assert "\n" not in str(caught.value)


def test_missing_file(card):
    (card.parent / "small.safetensors").unlink()
    with pytest.raises(ResourceError, match=r"small\.safetensors is missing.*--checkpoint"):
        load(str(card))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("head.bias"), r"lacks head\.bias, of shape \(10\)"),
        (lambda s: s.update({"norm.weight": torch.ones(8)}), r"has norm\.weight, of shape \(8\), which"),
        (
            lambda s: s.update({"head.weight": torch.ones(7, 8)}),
            r"head\.weight of shape \(7, 8\): the network needs of shape \(10, 8\)",
        ),
        (lambda s: s["head.bias"].fill_(torch.nan), "NaN or infinite numbers in head.bias"),
    ],
)
def test_another_networks_weights(tmp_path, card, network, change, said):
    state = {key: value.clone() for key, value in network.state_dict().items()}
    change(state)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(ResourceError, match=said):
        load(str(card), checkpoint=tmp_path / "other.safetensors")


def test_half_precision_becomes_single(tmp_path, card, network):
    save_file(
        {key: value.half() for key, value in network.state_dict().items()}, tmp_path / "half.safetensors"
    )
    defense = load_defense(str(card), checkpoint=tmp_path / "half.safetensors")
    assert all(p.dtype == torch.float32 for p in defense.parameters())
    torch.testing.assert_close(defense.classifier.state_dict(), network.state_dict(), atol=1e-3, rtol=1e-3)


def test_a_checkpoint_as_mimirs_code_writes_it(tmp_path, card, network):
    path = tmp_path / "checkpoint-49.pth"
    torch.save({"model": network.state_dict(), "epoch": 49, "args": argparse.Namespace(lr=0.1)}, path)
    defense = load_defense(str(card), checkpoint=path)
    assert torch.equal(defense.classifier.head.weight, network.head.weight)


class _Trap:
    def __reduce__(self):
        return print, ("executed",)


def test_nothing_in_a_checkpoint_is_executed(tmp_path, card, capsys):
    torch.save({"model": _Trap()}, tmp_path / "trap.pt")
    with pytest.raises(ResourceError, match="not unpickled"):
        load(str(card), checkpoint=tmp_path / "trap.pt")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("location", "said"),
    [("hf://owner/name", "expected hf://owner/name/file"), ("http://host/file.pt", "nor an https URL")],
)
def test_locations_of_no_known_kind(card, location, said):
    with pytest.raises(UsageError, match=said):
        load(str(card), checkpoint=location)


def test_a_builder_without_a_card(monkeypatch):
    def theirs(bias: float = 0.0) -> Defense:
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        torch.nn.init.constant_(network[1].weight, 0.5)
        torch.nn.init.constant_(network[1].bias, bias)
        return Defense(network, num_classes=2, image_size=2)

    monkeypatch.setattr(registry.defenses, "_builders", {**registry.defenses._builders, "theirs": theirs})
    loaded = load("theirs(bias=0.0)")
    assert loaded.card is None
    assert loaded.checkpoint is None
    # Without a file the digest is that of the weights.
    assert loaded.checkpoint_sha256 == load("theirs").checkpoint_sha256
    assert loaded.checkpoint_sha256 != load("theirs(bias=1.0)").checkpoint_sha256
    # The digest is of the canonical spec: a default written out changes nothing.
    assert loaded.card_digest == load("theirs").card_digest != load("theirs(bias=1.0)").card_digest
    with pytest.raises(UsageError, match="takes no argument depth"):
        load("theirs(depth=1)")


def test_our_own_builders_need_weights():
    with pytest.raises(UsageError, match="without trained weights"):
        load(BUILDER)


def test_a_builder_that_gives_something_else(monkeypatch):
    monkeypatch.setattr(registry.defenses, "_builders", {"odd": lambda: torch.nn.Identity()})
    with pytest.raises(UsageError, match="odd returns a Identity"):
        load("odd")
