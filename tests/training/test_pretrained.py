"""Fine-tuning from an encoder that somebody else has pre-trained."""

import pytest
import torch
from safetensors.torch import load_file

from robench.core import registry, specs
from robench.core.errors import ResourceError
from robench.training import train, trainer
from robench.training.pretrained import read_encoder

CARD = """
builder = "vit(image_size=16, patch_size=4, width=16, depth=2, heads=2, num_classes=10)"
dataset = "digits"
[recipe]
threads = 1
evaluation = "Linf:0.1"
[recipe.pretraining]
epochs = 400
[recipe.finetuning]
epochs = 1
warmup = 0
batch_size = 256
lr = 1e-9
min_lr = 1e-9
steps = 0
drop_path = 0.0
"""


def network(width=16):
    text = f"vit(image_size=16, patch_size=4, width={width}, depth=2, heads=2, num_classes=10)"
    spec = specs.parse(text)
    return specs.build(spec, registry.defenses.get(spec.name)).classifier


def autoencoder(width=16):
    """A checkpoint as masked pre-training leaves it: the encoder's keys, its norm, mask token and decoder."""
    state = {k: torch.randn_like(v) for k, v in network(width).state_dict().items() if "head" not in k}
    state = {k.replace("fc_norm", "norm"): v for k, v in state.items()}
    return state | {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, width)}


@pytest.fixture
def file(tmp_path):
    torch.save({"model": autoencoder(), "epoch": 799}, tmp_path / "pre.pth")
    (tmp_path / "own.toml").write_text(CARD)
    return tmp_path / "pre.pth"


def test_the_encoder_is_taken_and_the_rest_left(file):
    state, classifier = torch.load(file, weights_only=True)["model"], network()
    found = read_encoder(file, classifier)
    assert set(found) == {k for k in classifier.state_dict() if not k.startswith(("head", "fc_norm"))}
    assert all(torch.equal(found[key], state[key]) for key in found)


def test_training_starts_from_it(file):
    result = train(
        str(file.with_name("own.toml")),
        pretrained=file,
        output=file.with_name("a.safetensors"),
        progress=False,
    )

    trained, given = load_file(result.path), read_encoder(file, network())
    # A learning rate of 1e-9 leaves the weights where they were.
    torch.testing.assert_close(
        trained["blocks.1.mlp.fc1.weight"], given["blocks.1.mlp.fc1.weight"], rtol=0, atol=1e-6
    )


def test_another_file_is_another_training(file, monkeypatch):
    place, card = file.with_name("a.safetensors"), str(file.with_name("own.toml"))
    monkeypatch.setattr(trainer, "SAVE_EVERY_SECONDS", 0.0)
    save = trainer._Run.save

    def save_and_stop(self, stage):
        save(self, stage)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(trainer._Run, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(card, pretrained=file, output=place, progress=False)
    other = file.with_name("other.pth")
    torch.save(autoencoder(), other)
    with pytest.raises(
        ResourceError, match="interrupted training with another recipe, network, data or seed"
    ):
        train(card, pretrained=other, output=place, progress=False)


# The class token or the average of all tokens is normalized by the encoder's own norm.
OWN_NORM = {
    "vit": 'vit(image_size=16, patch_size=4, width=16, depth=1, heads=2, num_classes=10, pool="token")',
    "convit": "convit(image_size=16, patch_size=4, width=16, depth=2, heads=4, local=1, num_classes=10)",
    "cait": "cait(image_size=16, patch_size=4, width=16, depth=1, heads=2, num_classes=10)",
    "swin": "swin(image_size=16, patch_size=2, width=8, depths=(1, 1), heads=(1, 2), window=4, num_classes=10)",
}


def built(name):
    spec = specs.parse(OWN_NORM[name])
    return specs.build(spec, registry.defenses.get(spec.name)).classifier


@pytest.mark.parametrize("name", OWN_NORM)
def test_an_encoders_own_norm_is_taken_too(name, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "measure", lambda *_, **__: (1, 1))
    state = {key: torch.rand_like(value) + 0.5 for key, value in built(name).state_dict().items()}
    torch.save({"model": state}, tmp_path / "pre.pth")
    text = CARD.replace("[recipe]", "[recipe]\nsamples = 16")
    text = "\n".join([f"builder = '{OWN_NORM[name]}'", *text.splitlines()[2:]])
    (tmp_path / "own.toml").write_text(text)
    place = tmp_path / "a.safetensors"
    train(str(tmp_path / "own.toml"), pretrained=tmp_path / "pre.pth", output=place, progress=False)
    trained = load_file(place)
    changed = [k for k in state if not torch.allclose(trained[k], state[k], rtol=0, atol=1e-6)]
    assert "norm.weight" in state and all(key.startswith("head.") for key in changed)


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_a_swin_in_simmims_layout_is_taken(prefix, tmp_path):
    """With a head after fine-tuning; below `encoder.` and without a head after masked pre-training."""
    network = built("swin")
    ours = {key: torch.rand_like(value) for key, value in network.state_dict().items()}
    theirs = {
        prefix + k.replace("layers.1.down", "layers.0.down").replace("head.fc", "head"): v
        for k, v in ours.items()
    }
    if prefix:
        theirs = {k: v for k, v in theirs.items() if "head" not in k} | {"mask_token": torch.zeros(1)}
    torch.save({"model": theirs}, tmp_path / "pre.pth")
    found = read_encoder(tmp_path / "pre.pth", network)
    assert found.keys() == {key for key in ours if not key.startswith("head")}
    assert all(torch.equal(value, ours[key]) for key, value in found.items())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (autoencoder(24), r"has cls_token of shape \(1, 1, 24\)"),
        ({"blocks.0.attn.qkv.weight": torch.zeros(1)}, "has no tensor cls_token"),
    ],
)
def test_another_network_is_refused(tmp_path, content, said):
    torch.save(content, tmp_path / "pre.pth")
    with pytest.raises(ResourceError, match=said):
        read_encoder(tmp_path / "pre.pth", network())


def test_a_missing_file_is_said(file):
    with pytest.raises(ResourceError, match="nowhere"):
        train(str(file.with_name("own.toml")), pretrained="nowhere.pth", progress=False)
