"""The protocol of a command: a named one, or one defined by a dataset, a threat and a number of images."""

from collections.abc import Sequence
from dataclasses import replace

from robench.canonical import dataset_spec
from robench.catalog import Protocol, Suite, find_protocol, find_suite, protocol_name
from robench.core.errors import UsageError
from robench.core.specs import Spec
from robench.corruption.suite import corruptions
from robench.threats.threat import NO_THREAT, Threat, largest_distance

DEFAULT_PROTOCOL = "digits-linf"


def find_suites(names: Sequence[str | Suite] | None) -> list[Suite]:
    """Find suites by name; suites are returned unchanged."""
    return [name if isinstance(name, Suite) else find_suite(name) for name in names or ()]


def choose_protocol(
    name: str | None,
    dataset: str | Spec | None,
    threat: str | Threat | None,
    samples: int | None,
    suites: Sequence[str | Suite] | None = None,
) -> Protocol:
    """The protocol with this name, or one defined by a dataset, a threat and a number of samples.

    Missing arguments are taken from the default protocol. A protocol with another threat or number of samples gets
    another name.

    Args:
        suites: the suites to run; if all are corruptions, the protocol has no threat.
    """
    if name is not None and dataset is not None:
        raise UsageError("--protocol sets the dataset: give --protocol or --dataset, not both")
    spec = dataset_spec(dataset) if dataset is not None else None
    base = find_protocol(name or DEFAULT_PROTOCOL)
    if base.ends:
        raise UsageError(
            f"{base.name} is a transfer protocol with several datasets: use robench transfer with --from and --to"
        )
    assert base.dataset is not None
    base = replace(base, dataset=dataset_spec(base.dataset))
    all_suites = find_suites(suites)
    with_threats = [suite for suite in all_suites if any(rung.threats for rung in suite.rungs)]
    if with_threats and threat is not None:
        raise UsageError(f"{with_threats[0].name} sets a threat for each of its attacks: remove --threat")
    if all_suites and all(corruptions(suite.attacks) for suite in all_suites):
        return _without_threat(base, name, spec, threat, samples)
    if all_suites and all(map(sets_threats, all_suites)):
        if spec is not None and spec != base.dataset:
            return _without_threat(base, name, spec, threat, samples)
    elif spec is not None and spec != base.dataset and threat is None:
        raise UsageError(
            f"--dataset {spec} needs a threat: add --threat, such as Linf:8/255, or give a --protocol"
        )
    if base.threat is None and threat is None:
        # The protocol's suites may need no threat; `plan` raises an error for those that do.
        return _without_threat(base, name, spec, threat, samples)
    parsed_threat = None if threat is None else Threat.parse(threat)
    if base.threat is None:
        base = replace(base, threat=parsed_threat, name=f"{base.name}-{threat}")
    return with_name(_with_samples(base, spec, parsed_threat, samples), base)


def sets_threats(suite: Suite) -> bool:
    """Whether every run of the suite has a threat of its own."""
    return bool(suite.rungs) and all(rung.threats for rung in suite.rungs)


def with_name(protocol: Protocol, base: Protocol) -> Protocol:
    """`protocol` with the name of `base` if it has the same images and threat, else with the name of a shipped protocol
    that has, else with a new name."""
    same = (protocol.dataset, protocol.threat, protocol.samples) == (base.dataset, base.threat, base.samples)
    name = base.name if same else protocol_name(str(protocol.dataset), protocol.threat_name, protocol.samples)
    return replace(protocol, name=name)


def _with_samples(
    base: Protocol, dataset: Spec | None, threat: Threat | None, samples: int | None
) -> Protocol:
    protocol = replace(
        base,
        dataset=dataset or base.dataset,
        threat=threat or base.threat,
        samples=base.samples if samples is None else samples,
    )
    if protocol.samples < 1:
        raise UsageError(f"--samples {protocol.samples}: expected at least 1")
    return protocol


def _without_threat(
    base: Protocol, name: str | None, dataset: Spec | None, threat: str | Threat | None, samples: int | None
) -> Protocol:
    if threat not in (None, NO_THREAT):
        raise UsageError("corruptions have no threat: remove --threat, or run them separately from attacks")
    protocol = _with_samples(replace(base, threat=None), dataset, None, samples)
    if name and protocol.samples == base.samples:
        return protocol
    return replace(
        protocol, name=protocol_name(str(protocol.dataset), protocol.threat_name, protocol.samples)
    )


def too_large(threat: Threat, shape: Sequence[int]) -> str:
    """A hint about a radius that contains every image of a shape (C, H, W), as one in gray levels does; else empty.

    A radius equal to the largest distance may be intended.
    """
    if threat.name or threat.eps <= largest_distance(threat.norm, *shape):
        return ""
    return (
        f"{threat} contains every possible image: did you mean a radius for pixels in [0, 1]? "
        "Linf:8/255 is 8 gray levels, L0:24 is 24 pixels"
    )
