"""Load third-party models as defenses by the name `scheme:target`, wherever a defense is named.

| scheme | target |
|---|---|
| `timm` | a model of timm, with its published weights or those of --checkpoint |
| `hf-hub` | OWNER/NAME, a timm model on the Hugging Face hub |
| `torchvision` | a classifier of torchvision |
| `robustbench` | NAME[@dataset/threat], a model of RobustBench's zoo |
| `onnx` | a file |
| `torchscript` | a file |
| `python` | module.function of your own, which returns a Defense or a module |

A scheme is a function `(source: Source, **arguments) -> Found`, registered in `robench.core.registry.loaders`, or
by a package under the entry point `robench.loaders`. The arguments are those of the spec.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.core.lazy import lazily
from robench.core.trust import admit

if TYPE_CHECKING:
    from robench.defenses.loaders._base import Found, Source

__all__ = ["Found", "Source", "open_spec", "scheme_of"]

__getattr__ = lazily(__name__, {"Found": "_base", "Source": "_base"})


def scheme_of(name: str) -> str | None:
    """The scheme of a name such as `timm:resnet50`; None without a known scheme."""
    scheme, colon, _ = name.partition(":")
    return scheme if colon and scheme in registry.loaders else None


def open_spec(
    spec: specs.Spec,
    checkpoint: Path | None = None,
    bare: bool = False,
    weights: str = "",
    image_size: int | None = None,
) -> "tuple[Found, str]":
    """Open the defense of a spec whose name has a scheme; returns it with the spec's canonical form.

    Args:
        checkpoint, bare, weights, image_size: see Source.

    Raises:
        UsageError: for arguments that the loader does not accept, or an unknown target.
        Untrusted: for a name that was read from a file: every loader runs code, fetches a model or opens a file.
        ResourceError: if a file, a package or the network is missing.
    """
    from robench.defenses.loaders._base import Found, Source

    scheme, _, target = spec.name.partition(":")
    admit(spec.name, "runs code, fetches a model or opens a file")
    source = Source(scheme, target, checkpoint, bare, weights, image_size)
    loader = partial(registry.loaders.get(scheme), source)
    opened = specs.build(spec, loader)
    if not isinstance(opened, Found):
        raise UsageError(f"loader {scheme} returned a {type(opened).__name__}: expected a Found")
    return opened, str(specs.canonical(spec, loader))
