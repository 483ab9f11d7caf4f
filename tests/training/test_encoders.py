from functools import partial

import pytest
import torch
from timm.models.cait import Cait
from timm.models.convit import ConVit
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import swin_base_patch4_window7_224
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from robench.core.errors import UsageError
from robench.core.hsic import nhsic
from robench.data import load_dataset
from robench.defenses._vit_layers import VisionTransformer
from robench.training.batches import InMemory
from robench.training.encoders import ENCODERS, encoder_of, patchify, sincos_positions
from robench.training.mae import MaskedAutoencoder
from robench.training.mimir import pretraining_loss
from robench.training.pretrained import load_encoder
from robench.training.recipe import Pretraining, Recipe
from robench.training.spark import UNetAutoencoder
from robench.training.stages import pretraining_stage
from tests.training.networks import NETWORKS

CPU = torch.device("cpu")
# Each adds one number to all scores that a softmax compares, so it has no gradient, in any use of the network.
CANCELLED = ("pos_proj.bias", "proj_l.bias", "attn.k.bias")

HEADS = ("encoder.network.head.", "encoder.network.fc_norm.")


def autoencoder(kind, mask_ratio=0.75):
    torch.manual_seed(0)
    return MaskedAutoencoder(NETWORKS[kind](), 16, 1, 2, mask_ratio, image_size=32)


def stir(network):
    """Weights with which every layer counts: fresh ones are so small that attention hardly moves a token."""
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)


@pytest.fixture(params=sorted(NETWORKS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def digits():
    images = load_dataset("digits", "train")
    return F.interpolate(images.x[:128], scale_factor=2), images.y[:128]


def hidden_pixels(model, order):
    """The pixels whose patches are hidden, (N, 1, 32, 32)."""
    side = model.encoder.side
    mask = torch.zeros(order.shape).scatter(1, order[:, model.visible :], 1.0)
    return F.interpolate(mask.view(-1, 1, side, side), scale_factor=model.patch).bool()


def test_every_encoder_is_tried():
    # Our own ViT has the same weights and attributes as timm's.
    assert {type(make()) for make in NETWORKS.values()} == set(ENCODERS) - {VisionTransformer}


def test_hidden_patches_cannot_reach_the_encoder(kind):
    model = autoencoder(kind)
    x = torch.rand(3, 3, 32, 32)
    order = model.draw(3, CPU)
    hidden = hidden_pixels(model, order)
    assert float(hidden.float().mean()) == pytest.approx(1 - model.visible / model.patches) == 0.75
    latent = model.encode(x, order)
    assert torch.equal(latent, model.encode(torch.where(hidden, torch.nan, x), order))
    assert torch.equal(latent, model.encode(torch.where(hidden, 1 - x, x), order))
    x.requires_grad_(True)
    latent = model.encode(x, order)
    (latent * torch.randn_like(latent)).sum().backward()
    reached = x.grad.abs().amax(1, keepdim=True) > 0
    assert torch.equal(reached, ~hidden)


def test_with_nothing_hidden_it_is_the_network(kind):
    """In any order of the patches: Swin's windows and their shift, ConvNeXt's zeros; a ConViT needs the grid's."""
    model = autoencoder(kind, mask_ratio=0.0).eval()
    network, x = model.encoder.network, torch.rand(2, 3, 32, 32)
    stir(network)
    order = model.draw(2, CPU)
    if kind == "convit":
        order = torch.arange(16).expand(2, -1)
    expected = network.forward_features(x)
    if kind == "convnext":
        expected = expected.permute(0, 2, 3, 1)
    if kind in ("vit", "convnext"):
        expected = model.encoder.norm(expected)
    expected = expected.reshape(2, -1, expected.shape[-1])
    prefix = model.encoder.prefix
    rows = expected[:, prefix:].gather(1, order[:, :, None].expand(-1, -1, expected.shape[2]))
    expected = torch.cat([expected[:, :prefix], rows], 1)
    torch.testing.assert_close(model.encode(x, order), expected, atol=1e-4, rtol=1e-4)


def test_the_order_of_the_visible_patches_does_not_matter(kind):
    if kind == "convit":
        pytest.skip("positional attention takes the visible patches for a grid in their order, as published")
    model = autoencoder(kind).eval()
    x, order, v = torch.rand(2, 3, 32, 32), model.draw(2, CPU), model.visible
    shuffled = torch.cat([order[:, :v].flip(1), order[:, v:].roll(3, 1)], 1)
    torch.testing.assert_close(
        model.decode(model.encode(x, order), order), model.decode(model.encode(x, shuffled), shuffled)
    )


def test_the_decoder_knows_every_patchs_place(kind):
    """With nothing to say but positions, what its first block gets is the grid's: no class token, no zero row."""
    model = autoencoder(kind)
    for parameter in (model.decoder_embed.weight, model.decoder_embed.bias, model.mask_token):
        torch.nn.init.zeros_(parameter)
    seen = []
    model.decoder_blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    order = model.draw(1, CPU)
    model.decode(model.encode(torch.rand(1, 3, 32, 32), order), order)
    grid = sincos_positions(16, model.encoder.side)
    decodes_token = model.encoder.prefix and model.encoder.decodes_prefix
    assert torch.equal(seen[0], grid if decodes_token else grid[:, 1:])


def test_gradients_reach_every_parameter_that_is_used(kind):
    model = autoencoder(kind)
    x = torch.rand(4, 3, 32, 32)
    loss, _ = model(x, x, model.draw(4, CPU))
    loss.backward()
    still = {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and not name.endswith(CANCELLED) and (p.grad is None or not p.grad.abs().any())
    }
    heads = {name for name, _ in model.named_parameters() if name.startswith(HEADS)}
    assert still == heads != set()


def test_the_penalty_takes_the_tokens_after_the_last_norm(kind):
    model = autoencoder(kind)
    x = torch.rand(8, 3, 32, 32)
    _, latent = model(x, x, model.draw(8, CPU))
    assert latent.shape == (8, model.encoder.prefix + model.visible, model.encoder.width)
    # A LayerNorm with its first weights leaves no mean and unit variance.
    torch.testing.assert_close(latent.mean(2), torch.zeros(latent.shape[:2]), atol=1e-4, rtol=0)
    torch.testing.assert_close(latent.var(2, correction=0), torch.ones(latent.shape[:2]), atol=0.02, rtol=0)
    nhsic(latent, x).backward()
    first = next(p for p in model.encoder.network.parameters() if p.grad is not None and p.dim() > 3)
    assert first.grad.abs().max() > 0


@pytest.mark.slow
def test_a_few_hundred_steps_lower_the_loss_and_the_classifier_starts_there(kind, digits):
    x, y = digits
    config = Pretraining(
        epochs=16, warmup=2, batch_size=16, lr=3e-3, decoder_width=32, decoder_depth=1, decoder_heads=2
    )
    torch.manual_seed(0)
    network = NETWORKS[kind]()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    stage = pretraining_stage(network, config, CPU, image_size=32)
    losses = list(stage.run(InMemory(x, y), Recipe(pretraining=config)))
    assert losses[-1] < 0.65 * losses[0]
    trained = network.state_dict()
    fresh = NETWORKS[kind]()
    load_encoder(trained, fresh)
    handed = fresh.state_dict()
    for key, value in handed.items():
        if not key.startswith(("head.", "fc_norm.")):
            assert torch.equal(value, trained[key]), key
    # Pre-training gives a ConViT biases of queries, keys and values, which its classifier does not have.
    kept = {key for key, p in network.named_parameters() if p.requires_grad} & set(before)
    moved = {key for key in kept if not torch.equal(trained[key], before[key])}
    assert kept - moved <= {
        key for key in before if key.startswith(("head.", "fc_norm.")) or key.endswith(CANCELLED)
    }


def test_one_mask_a_batch_where_windows_are_grouped():
    model = autoencoder("swin")
    order = model.draw(5, CPU)
    assert torch.equal(order, order[:1].expand(5, -1))
    other = autoencoder("convnext").draw(5, CPU)
    assert not torch.equal(other, other[:1].expand(5, -1))
    with pytest.raises(ValueError, match="the same mask for all images"):
        model.encode(torch.rand(2, 3, 32, 32), torch.stack([order[0], order[0].roll(1)]))


def test_sparse_convolution_is_the_dense_one_with_zeros_at_hidden_positions():
    """SparK's own way: every layer on the whole map, hidden positions set to zero after each."""
    model = autoencoder("convnext").eval()
    network, x = model.encoder.network, torch.rand(2, 3, 32, 32)
    stir(network)
    order = model.draw(2, CPU)
    hidden = hidden_pixels(model, order).float()

    def visible(y):
        return y * (1 - F.interpolate(hidden, size=y.shape[2:]))

    y = visible(network.stem[1](visible(network.stem[0](visible(x)))))
    for stage in network.stages:
        for layer in stage.downsample if isinstance(stage.downsample, torch.nn.Sequential) else ():
            y = visible(layer(y))
        for block in stage.blocks:
            z = visible(block.conv_dw(y))
            z = block.mlp(block.norm(z.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
            y = visible(y + z * block.gamma.view(1, -1, 1, 1))
    rows = patchify(y, 1).gather(1, order[:, : model.visible, None].expand(-1, -1, y.shape[1]))
    torch.testing.assert_close(model.encode(x, order), model.encoder.norm(rows), atol=1e-4, rtol=1e-4)


def flops(run):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("kind", "share"),
    # A quarter, the class token (and fused attention, which some releases of torch do not count) and all of the
    # depthwise convolution, which weighs most in so narrow a network.
    [("vit", 0.3), ("convit", 0.26), ("cait", 0.28), ("swin", 0.25), ("convnext", 0.4)],
)
def test_hidden_patches_are_not_paid_for(kind, share):
    model = autoencoder(kind).eval().requires_grad_(False)
    x = torch.rand(2, 3, 32, 32)
    order = model.draw(2, CPU)
    masked = flops(lambda: model.encode(x, order))
    assert masked < share * flops(lambda: model.encoder.network.forward_features(x))


def test_swin_b_saves_three_quarters():
    """The published network at 224 pixels, shapes alone: nothing is computed."""
    with torch.device("meta"):
        network = swin_base_patch4_window7_224()
        x = torch.empty(2, 3, 224, 224)
    encoder = encoder_of(network)
    assert (encoder.patch, encoder.side) == (32, 7)
    torch.manual_seed(0)
    keep = torch.randperm(49)[:12].expand(2, -1)
    assert encoder(x, keep).shape == (2, 12, 1024)
    share = flops(lambda: encoder(x, keep)) / flops(lambda: network.forward_features(x))
    assert 12 / 49 * 0.95 < share < 12 / 49 * 1.05


def test_a_network_that_cannot_be_masked():
    config = Pretraining(decoder_width=16, decoder_heads=2)
    with pytest.raises(
        UsageError, match="does not support Linear: expected one of timm's VisionTransformer, ConVit"
    ):
        pretraining_stage(torch.nn.Linear(2, 2), config, CPU)
    with pytest.raises(UsageError, match="the side of the images"):
        pretraining_stage(NETWORKS["convnext"](), config, CPU)
    with pytest.raises(UsageError, match="multiple of 8 pixels for this ConvNeXt: got 30"):
        pretraining_stage(NETWORKS["convnext"](), config, CPU, image_size=30)
    with pytest.raises(UsageError, match="got 8 of 16, change mask_ratio"):
        pretraining_stage(NETWORKS["convit"](), Pretraining(mask_ratio=0.5), CPU)
    with pytest.raises(UsageError, match="does not overlap"):
        pretraining_stage(NETWORKS["convnext"](patch_size=4, stem_type="overlap"), config, CPU, image_size=32)
    with pytest.raises(UsageError, match="global response norm"):
        pretraining_stage(NETWORKS["convnext"](use_grn=True), config, CPU, image_size=32)


def test_the_whole_loss_of_mimir_runs_on_every_encoder(kind):
    model = autoencoder(kind)
    loss = pretraining_loss(model, torch.rand(4, 3, 32, 32), 8 / 255, 10 / 255, 1e-5)
    assert torch.isfinite(loss)


def waves(model, rename):
    """Fill the parameters with numbers that depend on their names."""
    for name, parameter in model.named_parameters():
        name = rename(name)
        count = torch.arange(parameter.numel(), dtype=torch.float64)
        values = torch.sin(count * (0.37 + len(name) * 0.013) + sum(map(ord, name)) % 97)
        if parameter.dim() > 1:
            values = values / parameter[0].numel() ** 0.5 * 1.5
        else:
            values = 0.1 * values if name.endswith("bias") else 1 + 0.3 * values
        parameter.data.copy_(values.view(parameter.shape))


# Loss, mean size of the latents and norm of the gradient of the official code (MIMIR at b5bc401), of
# MaskedAutoencoderConVit and MaskedAutoencoderCait with these sizes and weights.
OFFICIAL = {
    "convit": (1.527596354484558, 0.8083884430038512, 2.656580261032833),
    "cait": (1.7088433504104614, 0.7515107853598916, 11.720507717677764),
}


@pytest.mark.parametrize("kind", sorted(OFFICIAL))
def test_pretraining_of_convit_and_cait_is_the_official_codes(kind):
    sizes = {"convit": {"embed_dim": 8, "depth": 4, "num_heads": 4, "local_up_to_layer": 3}}
    sizes["cait"] = {"embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 0.1}
    network = {"convit": ConVit, "cait": Cait}[kind](32, 4, num_classes=10, **sizes[kind])
    model = MaskedAutoencoder(network, 32, 2, 4, 0.75)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert numbers(model) == pytest.approx(OFFICIAL[kind], rel=1e-5)


def test_pretraining_of_swin_is_the_official_code_with_tokens_in_their_places():
    """The numbers of GreenMIM at b981012, once its visible patches are drawn in row-major order: in any other order its
    decoder puts their tokens in other places, which gives a loss of 3.034348."""
    network = NETWORKS["swin"](norm_layer=partial(torch.nn.LayerNorm, eps=1e-6))
    model = MaskedAutoencoder(network, 16, 1, 2, 0.75, image_size=32)
    official = (3.036287307739258, 0.9051597497420213, 43.770138654775444)
    assert numbers(model) == pytest.approx(official, rel=1e-5)


def numbers(model):
    """Loss, mean size of the latents and norm of the gradient, with weights and images that depend on no generator."""
    waves(model, lambda name: name.removeprefix("encoder.network."))
    for parameter in (
        model.decoder_pred.weight,
        model.decoder_pred.bias,
    ):  # the official pixels are channel last
        side = int((len(parameter) // 3) ** 0.5)
        parameter.data.copy_(
            parameter.data.view(side, side, 3, -1).permute(2, 0, 1, 3).reshape(parameter.shape)
        )
    count = torch.arange(3 * 3 * 32 * 32, dtype=torch.float64)
    x = (0.5 + 0.5 * torch.sin(count * 0.7123 + torch.cos(count * 0.013) * 3)).float().view(3, 3, 32, 32)
    torch.manual_seed(5)
    loss, latent = model(x, x.flip(0), model.draw(3, CPU))
    loss.backward()
    gradients = [p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]
    return loss.item(), latent.detach().double().abs().mean().item(), float(sum(gradients)) ** 0.5


def test_a_convits_pretrained_biases_are_dropped_and_its_attention_starts_local():
    model = autoencoder("convit")
    pretrained = model.encoder.network
    assert pretrained.blocks[0].attn.qk.bias is not None
    network = NETWORKS["convit"]()
    load_encoder(pretrained.state_dict(), network, head_std=2e-5)
    assert network.blocks[0].attn.qk.bias is None
    assert torch.equal(network.blocks[0].attn.qk.weight, pretrained.blocks[0].attn.qk.weight)
    assert 1e-5 < float(network.head.weight.detach().std()) < 3e-5
    for block in (pretrained.blocks[0], model.decoder_blocks[0]):
        assert torch.equal(block.attn.v.weight, torch.eye(len(block.attn.v.weight)))


@pytest.mark.parametrize("kind", ["swin", "cait"])
def test_linear_layers_start_by_xavier(kind):
    model = autoencoder(kind)
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and ".head" not in name and layer.weight.numel() > 64:
            bound = (6 / sum(layer.weight.shape)) ** 0.5
            assert 0.9 * bound < float(layer.weight.detach().abs().max()) <= bound
            assert layer.bias is None or not layer.bias.any()


def test_the_unet_decoder_is_sparks():
    """The loss of the official code (SparK at a63e386) with these sizes and weights."""
    network = ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 16, 16, 32), ls_init_value=0.1, num_classes=10)
    model = UNetAutoencoder(network, 64, 0.6, 128)
    assert (model.patches, model.visible) == (16, 6)
    waves(model, lambda name: name.removeprefix("encoder.network.").removeprefix("encoder."))
    count = torch.arange(3 * 3 * 128 * 128, dtype=torch.float64)
    x = (0.5 + 0.5 * torch.sin(count * 0.7123 + torch.cos(count * 0.013) * 3)).float().view(3, 3, 128, 128)
    torch.manual_seed(5)
    order = model.draw(3, CPU)
    loss, latent = model(x, x, order)
    assert loss.item() == pytest.approx(1.2393556833267212, rel=1e-5)
    assert latent.shape == (3, 6, 32)
    hidden = torch.zeros(3, 16).scatter(1, order[:, 6:], 1.0).view(3, 1, 4, 4)
    hidden = F.interpolate(hidden, scale_factor=32).bool()
    model.eval()
    (expected, _), (same, _) = model(x, x, order), model(torch.where(hidden, torch.nan, x), x, order)
    assert torch.equal(expected, same)
    config = Pretraining(decoder="unet", decoder_width=64, mask_ratio=0.6, mi_weight=0.0)
    assert isinstance(pretraining_stage(network, config, CPU, 128).model, UNetAutoencoder)
    with pytest.raises(UsageError, match="needs a ConvNeXt for a U-shaped decoder"):
        pretraining_stage(NETWORKS["vit"](), config, CPU)
    with pytest.raises(UsageError, match="a multiple of 32 for this ConvNeXt: got 40"):
        pretraining_stage(network, Pretraining(decoder="unet", decoder_width=40), CPU, 128)
