"""robench certify: lower bounds on robust accuracy, and upper bounds by an attack on the same classifier."""

import sys
from collections.abc import Callable

import click

from robench.cli import common
from robench.cli.completion import names_of
from robench.cli.running import GroupedCommand, Running, Selection, running
from robench.core import registry, specs
from robench.core.errors import UsageError, unknown_name
from robench.evaluation.protocol import choose_protocol
from robench.reports.table import render


@click.command("certify", cls=GroupedCommand)
@common.defenses
@click.option(
    "--method",
    metavar="SPEC",
    default="smoothing",
    show_default=True,
    shell_complete=names_of("certifier"),
    help="Certifier: smoothing(draws=10000), or crown for ReLU networks.",
)
@click.option(
    "--draws", metavar="N", type=int, help="Number of noise draws per image.  [default: the method's]"
)
@click.option(
    "--alpha",
    metavar="P",
    type=float,
    help="Probability that the bound of an image is wrong.  [default: the method's]",
)
@common.protocol
@common.dataset
@click.option(
    "--threat",
    metavar="NORM:EPS",
    shell_complete=names_of("threat"),
    help="Norm and radius of both bounds.  [default: the protocol's; without --protocol, L2:0.5 for smoothing and "
    "Linf:0.13 for crown and ibp]",
)
@click.option(
    "--samples",
    metavar="N",
    type=int,
    help="Number of images, the first of the test split.  [default: the protocol's]",
)
@click.option(
    "--attack",
    metavar="SPEC",
    shell_complete=names_of("attack"),
    help='Attack on the images that are not certified, or "none".  [default: apgd(loss="ce", steps=40)]',
)
@common.device
@running("precision", "device", precision="fp32")
def command(
    running: Running,
    defenses: list[str],
    method: str,
    draws: int | None,
    alpha: float | None,
    samples: int | None,
    attack: str | None,
    **named: str | None,
) -> Callable[[], None]:
    """Certify lower bounds on robust accuracy, and attack for upper bounds.

    Randomized smoothing (arXiv 1902.02918) certifies the majority vote of a defense that first adds Gaussian noise to
    the image: de3 with statistics="predicted" or "noisy", diffpure, and smoothed(sigma=0.25)+NAME for any classifier.
    CROWN (arXiv 1811.00866) certifies the predictions of ReLU networks. A repeated command resumes.

    \b
    robench certify --defense 'de3-digits(sigma=140, statistics="predicted")' --samples 100
    robench certify --defense 'smoothed(sigma=0.25)+pgd-at-digits' --draws 10000 --threat L2:0.25
    robench certify --defense standard-cifar10 --method crown --threat Linf:0.5/255 --samples 100
    """
    spec = specs.parse(method)
    if spec.name not in registry.certifiers:
        raise unknown_name("certifier", spec.name, registry.certifiers)
    given = {name: value for name, value in (("draws", draws), ("alpha", alpha)) if value is not None}
    if twice := sorted(given.keys() & spec.arguments.keys()):
        raise UsageError(f"{twice[0]} is given twice, by --{twice[0]} and in --method")
    Selection(defenses, [], **{**named, "threat": None}, samples=samples).check()
    from robench.evaluation.certify import ATTACK, certify_all, default_threat
    from robench.reports import certification as report

    options = running.options
    threat = named["threat"] or default_threat(method, named["protocol"])
    protocol = choose_protocol(named["protocol"], named["dataset"], threat, samples)
    attacks = None if attack == "none" else attack or ATTACK
    results = []
    for result in certify_all(defenses, str(spec.replaced(**given)), protocol, options, attacks):
        results.append(result)
        running.bar.done()
    picture = report.picture(results, options.results)

    def show() -> None:
        if running.as_json:
            content = [{**result.to_dict(), "folder": str(result.folder)} for result in results]
            common.print_json({"certifications": content, "picture": str(picture)})
            return
        width = common.console().width
        sys.stdout.write("\n".join(render(report.grid(result), "text", width) for result in results))
        for result in results:
            common.say(f"certification: {result.folder}")
        common.say(f"plot: {picture}")

    return show
