"""Images, labels and other arguments in every form a caller has them: attacked alike, or refused in one line."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robench.core.errors import UsageError
from robench.evaluation.attack import attack
from robench.evaluation.inputs import ROUNDING, prepare
from tests.models import images, small_net

X, Y = images(4), torch.tensor([0, 1, 2, 3])


class Own(torch.Tensor):
    """A subclass such as torchvision's images."""


def inferred(x):
    with torch.inference_mode():
        return x.clone()


IMAGES = {
    "float64": X.double(),
    "a list of tensors": list(X),
    "a tuple of arrays": tuple(X.numpy()),
    "nested lists": X.tolist(),
    "a list of mixed kinds": [X[0], X[1].numpy(), *X[2:]],
    "a flipped view": X.numpy()[:, ::-1].copy()[:, ::-1],
    "big-endian": X.numpy().astype(">f4"),
    "long doubles": X.numpy().astype(np.longdouble),
    "read-only": np.frombuffer(X.numpy().tobytes(), np.float32).reshape(X.shape),
    "channels last": X.contiguous(memory_format=torch.channels_last),
    "not contiguous": X.transpose(2, 3).contiguous().transpose(2, 3),
    "requires grad": X.clone().requires_grad_(),
    "a subclass": X.clone().as_subclass(Own),
    "a parameter": nn.Parameter(X.clone()),
    "made in inference mode": inferred(X),
}
LABELS = {
    "a list": Y.tolist(),
    "a list of tensors": list(Y),
    "big-endian": Y.numpy().astype(">i8"),
    "reversed twice": Y.numpy()[::-1].copy()[::-1],
    "uint8": Y.to(torch.uint8),
    "uint16": Y.numpy().astype(np.uint16),
    "made in inference mode": inferred(Y),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_of_any_kind_become_the_same(name):
    x = prepare(IMAGES[name], Y)[0]
    assert type(x) is torch.Tensor and x.is_contiguous() and not x.requires_grad and not x.is_inference()
    torch.testing.assert_close(x, X, rtol=0, atol=1e-7)


@pytest.mark.parametrize("threat", ["Linf:8", "L2:1e6", "L0:100"])
def test_a_radius_in_gray_levels_gives_a_hint(threat):
    with pytest.warns(
        UserWarning, match="contains every possible image: did you mean a radius for pixels"
    ) as seen:
        attack(
            "sparse-rs(queries=2)" if threat.startswith("L0") else "fgsm", small_net(), X, Y, threat=threat
        )
    assert seen[0].filename == __file__


@pytest.mark.parametrize("name", LABELS)
def test_labels_of_any_kind_become_the_same(name):
    y = prepare(X, LABELS[name])[1]
    assert y.dtype == torch.int64 and torch.equal(y, Y) and not y.is_inference()


def test_half_precision_images_are_exact():
    assert torch.equal(prepare(X.half(), Y)[0], X.half().float())


@given(excess=st.floats(0, 1e-4), above=st.booleans())
@settings(max_examples=60, deadline=None)
def test_rounding_is_clipped_and_more_is_refused_with_numbers(excess, above):
    x = X.clone()
    x[1, 0, 2, 2] = 1 + excess if above else -excess
    beyond = float(x[1, 0, 2, 2]) - 1 if above else -float(x[1, 0, 2, 2])
    try:
        taken = prepare(x, Y)[0]
    except UsageError as error:
        low, high = str(error).split("lie in [")[1].split("]")[0].split(", ")
        assert beyond > ROUNDING * 0.99 and (float(low) < 0 or float(high) > 1)
    else:
        assert beyond <= ROUNDING * 1.01 and taken.min() >= 0 and taken.max() <= 1
        assert torch.equal(taken, x.clamp(0, 1))


nan = X.clone()
nan[2, 0, 0, 0] = torch.nan
REFUSED = {
    "uint8": ({"x": (X * 255).byte()}, "divide by 255"),
    "bool": ({"x": X > 0.5}, "expected floats"),
    "0 to 255": ({"x": X * 255}, "divide 8-bit images"),
    "normalised": ({"x": X - 0.5}, "normalization"),
    "NaN": ({"x": nan}, "image 2 has NaN"),
    "empty": ({"x": X[:0], "y": Y[:0]}, "no images"),
    "a single image": ({"x": X[0]}, "x[None]"),
    "sparse": ({"x": X.to_sparse()}, ".to_dense()"),
    "meta": ({"x": X.to("meta")}, "meta device"),
    "complex": ({"x": X.to(torch.complex64)}, "complex64"),
    "text": ({"x": "images.png"}, "images are str"),
    "nothing": ({"x": None}, "images are NoneType"),
    "objects": ({"x": np.array([None, 1])}, "object"),
    "different shapes": ({"x": [X[0], X[1, :, :4]]}, "different shapes"),
    "ragged arrays": ({"x": [X[0].numpy(), X[1, :, :4].numpy()]}, "different shapes"),
    "sparse labels": ({"y": Y.to_sparse()}, ".to_dense()"),
    "meta labels": ({"y": Y.to("meta")}, "meta device"),
    "float labels": ({"y": Y.float()}, "expected integers"),
    "label -1": ({"y": Y - 1}, "expected 0 and above"),
    "one-hot labels": ({"y": torch.eye(10)[Y]}, "expected (4,)"),
    "threat as a number": ({"threat": 8 / 255}, '"Linf:0.03137'),
    "threat as a pair": ({"threat": ("L2", 0.5)}, '"L2:0.5"'),
    "no threat": ({"threat": None}, "NORM:RADIUS"),
    "no workers": ({"workers": 0}, "at least 1"),
    "negative workers": ({"workers": -1}, "at least 1"),
    "no batch": ({"batch_size": None}, "batch size"),
    "half a batch": ({"batch_size": 2.5}, "batch size"),
    "a name for a model": ({"model": "mimir-digits"}, "load_defense"),
    "a class for a model": ({"model": nn.Linear}, "instance"),
    "no model": ({"model": None}, "NoneType"),
    "an unknown device": ({"device": "meta"}, "unknown device"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(name):
    changed, mend = REFUSED[name]
    arguments = {"model": small_net(), "x": X, "y": Y, "threat": "Linf:0.03"} | changed
    with pytest.raises(UsageError) as error:
        attack("fgsm", **arguments)
    assert mend in str(error.value) and "\n" not in str(error.value)
