"""The two layouts of published diffusion weights, name by name, and their networks as functions of such a file.

Written down from the files' description and from no module of ours. For the two released files the sums of names and
numbers were held against the authors' own networks, and so were these functions' values, through ours.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.defenses.layouts import Shapes, _linear, _norm

State = dict[str, Tensor]


def _conv(name: str, inputs: int, outputs: int, *kernel: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, *kernel), f"{name}.bias": (outputs,)}


def adm(widths: list[int], layers: int, attends: list[bool]) -> Shapes:
    """Of guided-diffusion's unconditional networks with learnt variances."""
    first, found, time = widths[0], {}, 4 * widths[0]

    def residual(name: str, inputs: int, outputs: int) -> Shapes:
        shapes = _norm(f"{name}.in_layers.0", inputs) | _conv(f"{name}.in_layers.2", inputs, outputs, 3, 3)
        shapes |= _linear(f"{name}.emb_layers.1", time, 2 * outputs) | _norm(f"{name}.out_layers.0", outputs)
        shapes |= _conv(f"{name}.out_layers.3", outputs, outputs, 3, 3)
        return shapes | (_conv(f"{name}.skip_connection", inputs, outputs, 1, 1) if inputs != outputs else {})

    def attention(name: str, width: int) -> Shapes:
        shapes = _norm(f"{name}.norm", width) | _conv(f"{name}.qkv", width, 3 * width, 1)
        return shapes | _conv(f"{name}.proj_out", width, width, 1)

    found |= _linear("time_embed.0", first, time) | _linear("time_embed.2", time, time)
    found |= _conv("input_blocks.0.0", 3, first, 3, 3)
    kept, inputs, number = [first], first, 1
    for level, (width, yes) in enumerate(zip(widths, attends, strict=True)):
        for _ in range(layers):
            found |= residual(f"input_blocks.{number}.0", inputs, width)
            found |= attention(f"input_blocks.{number}.1", width) if yes else {}
            inputs, number = width, number + 1
            kept.append(width)
        if level < len(widths) - 1:
            found |= residual(f"input_blocks.{number}.0", width, width)
            number += 1
            kept.append(width)
    found |= residual("middle_block.0", inputs, inputs) | attention("middle_block.1", inputs)
    found |= residual("middle_block.2", inputs, inputs)
    number = 0
    for level in reversed(range(len(widths))):
        for i in range(layers + 1):
            block, width = f"output_blocks.{number}", widths[level]
            found |= residual(f"{block}.0", inputs + kept.pop(), width)
            found |= attention(f"{block}.1", width) if attends[level] else {}
            if level and i == layers:
                found |= residual(f"{block}.{1 + attends[level]}", width, width)
            inputs, number = width, number + 1
    return found | _norm("out.0", first) | _conv("out.2", first, 6, 3, 3)


def ddpmpp(widths: list[int], layers: int, attends: list[bool]) -> Shapes:
    """Of score_sde_pytorch's DDPM++ networks, as its trainer saves them."""
    first, time = widths[0], 4 * widths[0]
    found: Shapes = {"module.sigmas": (1000,)}
    number = 0

    def add(shapes: Shapes) -> None:
        nonlocal number
        found.update({f"module.all_modules.{number}.{key}": shape for key, shape in shapes.items()})
        number += 1

    def residual(inputs: int, outputs: int, resampling: bool = False) -> None:
        shapes = _norm("GroupNorm_0", inputs) | _conv("Conv_0", inputs, outputs, 3, 3)
        shapes |= _linear("Dense_0", time, outputs) | _norm("GroupNorm_1", outputs)
        shapes |= _conv("Conv_1", outputs, outputs, 3, 3)
        add(shapes | (_conv("Conv_2", inputs, outputs, 1, 1) if inputs != outputs or resampling else {}))

    def attention(width: int) -> None:
        maps = [{f"NIN_{i}.W": (width, width), f"NIN_{i}.b": (width,)} for i in range(4)]
        add(_norm("GroupNorm_0", width) | maps[0] | maps[1] | maps[2] | maps[3])

    for shapes in (_linear("x", first, time), _linear("x", time, time), _conv("x", 3, first, 3, 3)):
        add({key.removeprefix("x."): shape for key, shape in shapes.items()})
    kept, inputs = [first], first
    for level, (width, yes) in enumerate(zip(widths, attends, strict=True)):
        for _ in range(layers):
            residual(inputs, width)
            if yes:
                attention(width)
            inputs = width
            kept.append(width)
        if level < len(widths) - 1:
            residual(width, width, True)
            kept.append(width)
    residual(inputs, inputs)
    attention(inputs)
    residual(inputs, inputs)
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(layers + 1):
            residual(inputs + kept.pop(), width)
            inputs = width
        if attends[level]:
            attention(width)
        if level:
            residual(width, width, True)
    for shapes in (_norm("x", first), _conv("x", first, 3, 3, 3)):
        add({key.removeprefix("x."): shape for key, shape in shapes.items()})
    return found


def drawn(shapes: Shapes) -> State:
    """Random tensors that keep activations near 1."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(shape, generator=generator)
        / math.sqrt(math.prod(shape[1:]) if len(shape) > 1 else 4)
        for key, shape in shapes.items()
    }


def _waves(t: Tensor, width: int, last: int) -> Tensor:
    angles = t[:, None] * 10_000 ** (-torch.arange(width // 2) / last)
    return torch.cat([angles.sin(), angles.cos()], 1)


def _apply(state: State, name: str, x: Tensor, **options) -> Tensor:
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return F.linear(x, weight, bias) if weight.ndim == 2 else F.conv2d(x, weight, bias, **options)


def _resampled(x: Tensor, scale: float) -> Tensor:
    if scale == 2:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return F.avg_pool2d(x, 2) if scale == 0.5 else x


def adm_noise(state: State, x: Tensor, t: Tensor, layers: int, groups: int, head: int) -> Tensor:
    """The first three of the six channels that guided-diffusion's network has for x at its time t, from 0."""

    def norm(name: str, h: Tensor) -> Tensor:
        return F.group_norm(h, groups, state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def residual(name: str, h: Tensor, scale: float) -> Tensor:
        inner = _resampled(F.silu(norm(f"{name}.in_layers.0", h)), scale)
        inner = _apply(state, f"{name}.in_layers.2", inner, padding=1)
        factor, shift = _apply(state, f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None].chunk(2, 1)
        inner = norm(f"{name}.out_layers.0", inner) * (1 + factor) + shift
        inner = _apply(state, f"{name}.out_layers.3", F.silu(inner), padding=1)
        h = _resampled(h, scale)
        skip = f"{name}.skip_connection"
        return inner + (_apply(state, skip, h) if f"{skip}.weight" in state else h)

    def attention(name: str, h: Tensor) -> Tensor:
        rows = F.conv1d(
            norm(f"{name}.norm", h).flatten(2), state[f"{name}.qkv.weight"], state[f"{name}.qkv.bias"]
        )
        outs = []
        for own in rows.split(3 * head, 1):
            q, k, v = own.split(head, 1)
            weights = torch.einsum("nct,ncs->nts", q, k).div(math.sqrt(head)).softmax(-1)
            outs.append(torch.einsum("nts,ncs->nct", weights, v))
        out = F.conv1d(torch.cat(outs, 1), state[f"{name}.proj_out.weight"], state[f"{name}.proj_out.bias"])
        return h + out.view_as(h)

    def block(name: str, h: Tensor, scales: list[float]) -> Tensor:
        pieces = {key.split(".")[2] for key in state if key.startswith(f"{name}.")}
        for piece in sorted(pieces):
            place = f"{name}.{piece}"
            if f"{place}.qkv.weight" in state:
                h = attention(place, h)
            else:
                h = residual(place, h, scales[min(int(piece), 1)])
        return h

    width = state["time_embed.0.weight"].shape[1]
    sines, cosines = _waves(t, width, width // 2).chunk(2, 1)
    emb = _apply(state, "time_embed.0", torch.cat([cosines, sines], 1))
    emb = _apply(state, "time_embed.2", F.silu(emb))
    h = _apply(state, "input_blocks.0.0", x, padding=1)
    kept = [h]
    for n in range(1, 1 + max(int(key.split(".")[1]) for key in state if key.startswith("input_blocks"))):
        h = block(f"input_blocks.{n}", h, [0.5 if n % (layers + 1) == 0 else 1])
        kept.append(h)
    h = attention("middle_block.1", residual("middle_block.0", h, 1))
    h = residual("middle_block.2", h, 1)
    for n in range(len(kept)):
        h = block(f"output_blocks.{n}", torch.cat([h, kept.pop()], 1), [1, 2])
    return _apply(state, "out.2", F.silu(norm("out.0", h)), padding=1)[:, :3]


def ddpmpp_noise(
    state: State, x: Tensor, told: Tensor, layers: int, attends: list[bool], groups: int
) -> Tensor:
    """What score_sde_pytorch's network gives for x, told a time that counts to 999."""
    number = 0

    def layer() -> str:
        nonlocal number
        number += 1
        return f"module.all_modules.{number - 1}"

    def norm(name: str, h: Tensor) -> Tensor:
        return F.group_norm(h, groups, state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def residual(h: Tensor, scale: float = 1) -> Tensor:
        name = layer()
        inner = _resampled(F.silu(norm(f"{name}.GroupNorm_0", h)), scale)
        inner = _apply(state, f"{name}.Conv_0", inner, padding=1)
        inner = inner + _apply(state, f"{name}.Dense_0", F.silu(emb))[:, :, None, None]
        inner = _apply(state, f"{name}.Conv_1", F.silu(norm(f"{name}.GroupNorm_1", inner)), padding=1)
        h = _resampled(h, scale)
        skip = f"{name}.Conv_2"
        return (inner + (_apply(state, skip, h) if f"{skip}.weight" in state else h)) / 2**0.5

    def attention(h: Tensor) -> Tensor:
        name = layer()

        def mixed(i: int, rows: Tensor) -> Tensor:
            return rows @ state[f"{name}.NIN_{i}.W"] + state[f"{name}.NIN_{i}.b"]

        rows = norm(f"{name}.GroupNorm_0", h).flatten(2).transpose(1, 2)
        q, k, v = (mixed(i, rows) for i in range(3))
        out = (q @ k.transpose(1, 2) / h.shape[1] ** 0.5).softmax(-1) @ v
        return (h + mixed(3, out).transpose(1, 2).reshape(h.shape)) / 2**0.5

    width = state["module.all_modules.0.weight"].shape[1]
    emb = _apply(state, layer(), _waves(told, width, width // 2 - 1))
    emb = _apply(state, layer(), F.silu(emb))
    h = _apply(state, layer(), x, padding=1)
    kept = [h]
    for level, yes in enumerate(attends):
        for _ in range(layers):
            h = residual(h)
            h = attention(h) if yes else h
            kept.append(h)
        if level < len(attends) - 1:
            h = residual(h, 0.5)
            kept.append(h)
    h = residual(attention(residual(h)))
    for level in reversed(range(len(attends))):
        for _ in range(layers + 1):
            h = residual(torch.cat([h, kept.pop()], 1))
        h = attention(h) if attends[level] else h
        h = residual(h, 2) if level else h
    h = F.silu(norm(layer(), h))
    return _apply(state, layer(), h, padding=1)
