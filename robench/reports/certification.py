"""Certifications as a table and a plot: certified accuracy over the radius, beside an attack on the same classifier."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robench.core.grouping import grouped
from robench.records.certification import Certification
from robench.records.store import slug
from robench.reports.plots import curves as plotted
from robench.reports.plots.style import save
from robench.reports.table import Grid
from robench.statistics.accuracy import Accuracy, interval, percent
from robench.threats.threat import Threat

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def grid(result: Certification) -> Grid:
    """Certified accuracy at each radius, and what both bounds together say at the radius of the threat."""
    threat = Threat.parse(result.threat)
    rows = tuple(
        (
            threat.text if radius == threat.eps else f"{radius:g}",
            f">= {percent(share)} {interval(share)}",
            _upper(result) if radius == threat.eps else "",
        )
        for radius, share in result.curve
    )
    return Grid(
        title=f"{result.defense.name} · {result.dataset.name} · {result.norm} · n = {result.n}",
        columns=("radius", "certified %", "attacked %"),
        groups=(rows,),
        numbers=frozenset(("radius", "certified %", "attacked %")),
        notes=notes(result),
    )


def notes(result: Certification) -> tuple[str, ...]:
    """The lines below the table: both bounds in words, the method, and the folder."""
    return (bracket(result), *_method(result))


def bracket(result: Certification) -> str:
    """What is known of the accuracy at the radius of the threat: both bounds, or the lower one alone."""
    subject = "of the majority vote " if result.of_vote else ""
    low = _share(result.certified, result.n)
    if result.attacked is None:
        return f"robust accuracy {subject}at {result.threat}: at least {low} (no attack was run)"
    high = _share(result.attacked.accuracy, result.n)
    return f"robust accuracy {subject}at {result.threat}: at least {low}, at most {high}"


def _method(result: Certification) -> list[str]:
    facts = ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                      for name, value in result.facts.items())  # fmt: skip
    wrong = f"; each image's bound is wrong with probability at most {result.alpha:g}" if result.alpha else ""
    lines = [f"certified by {result.method}{f' ({facts})' if facts else ''}{wrong}"]
    if result.abstained:
        lines.append(f"{result.abstained} of {result.n} images have no certified prediction at any radius")
    if len(result.curve) > 1:
        lines.append(f"average certified radius: {result.average_radius:.3f}")
    if result.attacked:
        attacked = result.attacked
        of_vote = f", {attacked.draws} noise draws a step" if result.of_vote else ""
        lines.append(
            f"attacked by {' + '.join(attacked.suite)}{of_vote}: {attacked.attacked} images; the others are certified "
            "at this radius, or wrong without an attack"
        )
    return lines


def grids(results: Sequence[Certification]) -> list[Grid]:
    """A table for each dataset and threat: what is proven beside what an attack found, most images first."""
    places = grouped(results, lambda result: (result.dataset.name, result.threat))
    tables = [_board(members) for members in places.values()]
    return [table for _, table in sorted(tables, key=lambda pair: pair[0])]


def flat(result: Certification) -> dict[str, Any]:
    """One row of a board for programs, with accuracies in percent."""
    shares = {"certified": result.certified} | (
        {"attacked": result.attacked.accuracy} if result.attacked else {}
    )
    figures: dict[str, Any] = {"attacked": None}
    for name, share in shares.items():
        low, high = share.interval
        figures |= {
            name: round(100 * share.value, 4),
            f"{name}_low": round(100 * low, 4),
            f"{name}_high": round(100 * high, 4),
        }
    return {
        "defense": result.defense.name,
        "dataset": result.dataset.name,
        "threat": result.threat,
        "protocol": result.protocol,
        "n": result.n,
        "method": result.method,
        "alpha": result.alpha,
        "of_vote": result.of_vote,
        "average_radius": result.average_radius,
        **figures,
    }


def _board(results: list[Certification]) -> tuple[tuple[int, str], Grid]:
    """A table with its place among the others."""
    first = max(results, key=lambda result: result.n)
    ranked = sorted(results, key=lambda result: (-result.n, -result.certified.value, result.defense.name))
    noisy = any("sigma" in result.facts for result in ranked)
    rows = tuple(
        (
            result.defense.name,
            f">= {percent(result.certified)} {interval(result.certified)}",
            _upper(result) or "not attacked",
            f"{result.average_radius:.3f}" if len(result.curve) > 1 else "",
            *([_sigma(result)] if noisy else []),
            result.method,
            f"{result.alpha:g}" if result.alpha else "proof",
            str(result.n),
        )
        for result in ranked
    )
    votes = [result.defense.name for result in ranked if result.of_vote]
    note = "both bounds are of the majority vote under noise, which the accuracies of other tables are not"
    grid = Grid(
        title=f"{first.dataset.name} · {first.threat} · certified from below, attacked from above",
        columns=(
            "defense",
            "certified %",
            "attacked %",
            "average radius",
            *(["sigma"] if noisy else []),
            "method",
            "alpha",
            "n",
        ),
        groups=(rows,),
        names=frozenset(("defense", "method")),
        numbers=frozenset(("certified %", "attacked %", "average radius", "sigma", "alpha", "n")),
        notes=(note,) if len(votes) == len(ranked) else ((f"{', '.join(votes)}: {note}",) if votes else ()),
    )
    return (-first.n, grid.title), grid


def picture(results: Sequence[Certification], folder: Path | str) -> Path:
    """Write the curves of certified accuracy as a PNG to `folder`/curves/.

    Raises:
        ResourceError: when the file cannot be written.
    """
    first = results[0]
    names = [result.defense.name for result in results]
    file = slug("-".join(["certified", first.dataset.name, first.norm, f"n{first.n}", *names, first.method]))
    return save(figure(results), Path(folder) / "curves" / f"{file}.png")


def figure(results: Sequence[Certification]) -> "Figure":
    """Certified accuracy over the radius, one curve for each defense, with the attacked accuracy as a point."""
    curves = []
    for result in results:
        points = [plotted.Point.of(radius, share) for radius, share in result.curve]
        curves.append(plotted.Curve(f"{result.defense.name}, certified (lower bound)", points))
        if result.attacked:
            eps = Threat.parse(result.threat).eps
            point = plotted.Point.of(eps, result.attacked.accuracy)
            curves.append(plotted.Curve(f"{result.defense.name}, attacked (upper bound)", [point]))
    first = results[0]
    title = f"{first.method} · {first.dataset.name} · n = {first.n}"
    return plotted.draw(curves, f"{first.norm} radius", title)


def _sigma(result: Certification) -> str:
    sigma = result.facts.get("sigma")
    return f"{sigma:.3f}" if isinstance(sigma, float) else ""


def _upper(result: Certification) -> str:
    if result.attacked is None:
        return ""
    return f"<= {percent(result.attacked.accuracy)} {interval(result.attacked.accuracy)}"


def _share(share: Accuracy, n: int) -> str:
    return f"{percent(share)} % ({share.correct} of {n})"
