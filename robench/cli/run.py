"""robench run: attack defenses and write records."""

import shlex
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from robench.catalog import Protocol, find_protocol, find_suite
from robench.cli import common
from robench.cli.transfer import Asked, print_json, transfer
from robench.core.errors import UsageError
from robench.core.sanitize import plain
from robench.core.specs import split
from robench.engine.progress import Progress as Standing
from robench.evaluation import security_curve, sweep
from robench.evaluation.protocol import choose_protocol
from robench.evaluation.run import Options, default_results, run_all
from robench.records.record import Record
from robench.reports import security_curve as security
from robench.reports import sweep as sweep_report
from robench.reports.table import Grid, render


def names(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """Several names, comma-separated or repeated."""
    return [name for value in values for name in split(value)]


@click.command("run")
@click.option(
    "--defense", "defenses", multiple=True, required=True, callback=names, help="Card, family, .toml or spec."
)
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    callback=names,
    help="Suite, spec, or specs joined by +; several by commas.",
)
@click.option("--protocol", help="Data set, images, threat and suites by one name.")
@click.option("--dataset", help="A data set, when no protocol is named.")
@click.option("--threat", help="Norm or transformation and radius: Linf:8/255, fog:0.4.")
@click.option("--samples", type=int, help="How many images, the first of the test split.")
@click.option(
    "--knowledge",
    multiple=True,
    callback=names,
    help="full, bpda, oblivious, transfer:NAME or surrogate:NAME; several by commas.",
)
@click.option(
    "--from",
    "sources",
    multiple=True,
    callback=names,
    help="Transfer: data sets that the purifiers are trained on.",
)
@click.option(
    "--to", "targets", multiple=True, callback=names, help="Transfer: data sets that they are tested on."
)
@click.option(
    "--finetune", help="Transfer: a purifier for each number of images of --to that it learns from: 0,10,50."
)
@click.option("--sweep", "swept", help="A run for each value: sigma=0:140:20, or attack.steps=10,50,200.")
@click.option("--curve", "radii", help="Accuracy over the radius, START:STOP:COUNT: 0:16/255:9.")
@common.seed
@common.device
@common.batch_size
@click.option(
    "--precision", default="auto", show_default=True, help="auto, fp32 or bf16; verdicts are always fp32."
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes, on a CPU.  [default: one a core]")
@common.checkpoint
@common.data_dir
@common.results
@click.option("--fresh", is_flag=True, help="Start over, whatever record is there.")
@common.as_json
@common.trust
def command(
    defenses: list[str],
    attacks: list[str],
    protocol: str | None,
    dataset: str | None,
    threat: str | None,
    samples: int | None,
    knowledge: list[str],
    sources: list[str],
    targets: list[str],
    finetune: str | None,
    swept: str | None,
    radii: str | None,
    seed: int,
    device: str,
    batch_size: str,
    precision: str,
    workers: int | None,
    checkpoint: str | None,
    data_dir: str | None,
    results: str | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Attack defenses and write records.

    A run repeated resumes, or answers from its record.

    \b
    robench run --defense mimir --attack autoattack
    robench run --defense mimir,pgd-at --attack 'pgd(steps=50)' --threat Linf:0.05 --samples 200
    robench run --defense maep --protocol transfer --from digits,cifar10 --to digits,cifar10
    robench run --defense mimir --curve 0:16/255:9
    """
    errors = Console(stderr=True)
    with Bar(errors) as bar:
        options = Options(
            seed=seed,
            device=device,
            batch_size=batch_size,
            precision=precision,
            workers=workers,
            data_dir=data_dir,
            results=results or default_results(),
            fresh=fresh,
            checkpoint=checkpoint,
            command=shlex.join(["robench", *sys.argv[1:]]),
            progress=bar.update,
            note=bar.note,
        )
        if sources or targets or finetune or (protocol and find_protocol(protocol).ends):
            if dataset or knowledge or swept or radii or checkpoint:
                raise UsageError(
                    "a protocol of transfer goes without --dataset, --knowledge, --sweep, --curve and --checkpoint"
                )
            asked = Asked(
                defenses, attacks, protocol or "transfer", sources, targets, threat, samples, finetune
            )
            transfer(asked, options, bar, as_json)
            return
        if radii is not None:
            if swept is not None:
                raise UsageError("--curve is a sweep over the radius: give --curve or --sweep, not both")
            over = security_curve.Radii.parse(radii)
            levels = security_curve.protocols(over, protocol, dataset, threat, samples)
            _curve(over, levels, defenses, attacks, knowledge, options, bar, as_json)
            return
        chosen = choose_protocol(protocol, dataset, threat, samples, attacks or None)
        records: list[Record] = []
        if swept is not None:
            _sweep(swept, defenses, attacks, chosen, knowledge, options, bar, as_json)
            return
        for record in run_all(defenses, attacks or None, chosen, knowledge or None, options):
            records.append(record)
            bar.done()
    if as_json:
        print_json(records)
        return
    from robench.reports.plots import corruption_heatmap
    from robench.reports.run_summary import run_table
    from robench.reports.unforeseen import unforeseen

    console = Console()
    console.print(run_table(records))
    for suite in map(find_suite, dict.fromkeys(attacks or chosen.suites)):
        # What a ladder of threats is for is their mean.
        if suite.rungs and all(rung.threats for rung in suite.rungs):
            for table in unforeseen(records, suite):
                sys.stdout.write("\n" + render(table, "text", console.width))
    for record in records:
        if record.corrupted and record.folder:
            made = corruption_heatmap.write(
                corruption_heatmap.of_record(record), record.folder / corruption_heatmap.FILE
            )
            console.print(Text(plain(f"picture: {made}")), soft_wrap=True)
        console.print(Text(plain(f"record: {record.folder}")), soft_wrap=True)


def _sweep(
    text: str,
    defenses: list[str],
    attacks: list[str],
    protocol: Protocol,
    knowledge: list[str],
    options: Options,
    bar: "Bar",
    as_json: bool,
) -> None:
    """A table and a picture of one setting."""
    from robench.records.store import slug

    asked = sweep.Sweep.parse(text)
    if len(defenses) != 1 or len(attacks) > 1:
        raise UsageError("--sweep takes one defense and one attack")
    found = []
    for pair in sweep.sweep(asked, defenses[0], next(iter(attacks), None), protocol, knowledge, options):
        found.append(pair)
        bar.done()
    if as_json:
        print_json([record for _, record in found])
        return
    name = f"sweep-{slug(defenses[0])}-{slug(found[0][1].job.suite.name.partition('(')[0])}-{slug(asked.name)}.png"
    folder = Path(options.results) / slug(protocol.name)
    _show(sweep_report.grid(asked, found), sweep_report.picture(asked, found, folder / name))


def _curve(
    radii: security_curve.Radii,
    levels: list[Protocol],
    defenses: list[str],
    attacks: list[str],
    knowledge: list[str],
    options: Options,
    bar: "Bar",
    as_json: bool,
) -> None:
    """A table and a picture of accuracy over the radius."""
    records = []
    for record in security_curve.runs(defenses, attacks, levels, knowledge, options):
        records.append(record)
        bar.done()
    found = security.curves(radii.texts, records)
    made = security.picture(found, options.results)
    if as_json:
        print_json(records, curves=[each.to_dict() for each in found], picture=str(made))
        return
    _show(security.grid(found), made)


def _show(table: Grid, picture: Path) -> None:
    sys.stdout.write(render(table, "text", Console().width))
    Console().print(Text(plain(f"picture: {picture}")), soft_wrap=True)


class Bar:
    """What a run shows on stderr: a moving bar on a terminal, a line an attack elsewhere."""

    def __init__(self, console: Console):
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task: TaskID | None = None
        self.last: Standing | None = None
        self.passes = (0, 0.0)

    def __enter__(self) -> "Bar":
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def note(self, text: str) -> None:
        """A line for the user that stays."""
        self.console.print(Text(plain(f"robench: {text}")), soft_wrap=True)

    def done(self) -> None:
        """A record is there: the next one gets a bar of its own."""
        if self.task is not None:
            self.bar.remove_task(self.task)
        self.task, self.last, self.passes = None, None, (0, 0.0)

    def update(self, standing: Standing) -> None:
        """Show where a run stands."""
        fresh = self.last is None or self.last.index != standing.index
        self.last = standing
        if fresh and self.task is not None:
            self.bar.remove_task(self.task)
        if fresh:
            label = f"{standing.index + 1}/{standing.attacks} {standing.attack}"
            self.task = self.bar.add_task(label, total=1.0, facts="")
            self.passes = (standing.passes, self.bar.get_time())
            if not self.console.is_terminal:
                self.note(f"{label}: {standing.survivors} of {standing.samples} are left to it")
        assert self.task is not None
        seconds = self.bar.get_time() - self.passes[1]
        speed = (standing.passes - self.passes[0]) / seconds if seconds > 0 else 0.0
        facts = f"{standing.survivors}/{standing.samples} survive, {speed:,.0f} passes/s"
        self.bar.update(self.task, completed=standing.share, facts=facts)
