import pytest
import torch

from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.defenses import Defense

VIT = "vit(image_size=8, patch_size=4, width=8, depth=2, heads=2, num_classes=5)"
CNN = "cnn(image_size=8, width=2, hidden=6, num_classes=5)"


def build(text) -> Defense:
    spec = specs.parse(text)
    return specs.build(spec, registry.defenses.get(spec.name)).eval()


@pytest.mark.parametrize("base", [VIT, CNN])
def test_dbat_doubles_another_builders_classes(base):
    torch.manual_seed(0)
    defense = build(f"dbat(base='{base}')")
    x = torch.rand(6, 3, 8, 8)
    with torch.no_grad():
        raw = defense.classifier.network(x)
        assert raw.shape == (6, 10)
        assert torch.equal(defense(x), torch.stack([raw[:, :5], raw[:, 5:]]).amax(0))
        assert torch.equal(defense.features(x), defense.classifier.network.forward_features(x))
    assert (defense.num_classes, defense.image_size) == (5, 8)


def test_dbat_hands_stochastic_depth_on():
    blocks = build(f"dbat(base='{VIT}', drop_path=0.5)").classifier.network.blocks
    assert blocks[-1].drop_path1.drop_prob == 0.5


def test_what_dbat_cannot_double(monkeypatch):
    def theirs() -> Defense:
        return Defense(torch.nn.Flatten(), num_classes=12, image_size=2)

    monkeypatch.setattr(registry.defenses, "_builders", {**registry.defenses._builders, "theirs": theirs})
    with pytest.raises(UsageError, match="theirs takes no num_classes to double"):
        build("dbat(base='theirs')")
    with pytest.raises(UsageError, match=r"dbat needs base: write dbat\(base=...\)"):
        build("dbat")
    with pytest.raises(UsageError, match="takes no argument layers"):
        build("dbat(base='vit(layers=3)')")


def test_the_small_cnns_sizes():
    defense = build(CNN)
    x = torch.rand(3, 3, 8, 8, requires_grad=True)
    assert defense(x).shape == (3, 5)
    assert defense.features(x).shape == (3, 4, 2, 2)
    defense(x).sum().backward()
    assert x.grad.abs().max() > 0
    assert [m.out_features for m in defense.modules() if isinstance(m, torch.nn.Linear)] == [6, 6, 5]
    with pytest.raises(UsageError, match="image_size=3: expected at least 4"):
        build("cnn(image_size=3)")
