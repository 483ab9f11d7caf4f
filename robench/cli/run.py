"""robench run: attack defenses and write records."""

import json
import shlex
import sys

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from robench.engine.suite import Progress as Standing
from robench.evaluate import Options, choose_protocol, default_results, run_all
from robench.specs import split


def names(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """Several names, comma-separated or repeated."""
    return [name for value in values for name in split(value)]


@click.command("run")
@click.option(
    "--defense", "defenses", multiple=True, required=True, callback=names, help="Card, family, .toml or spec."
)
@click.option("--attack", "attacks", multiple=True, callback=names, help="Suite, spec, or specs joined by +.")
@click.option("--protocol", help="Data set, images, threat and suites by one name.")
@click.option("--dataset", help="A data set, when no protocol is named.")
@click.option("--threat", help="Norm and radius, such as Linf:8/255.")
@click.option("--samples", type=int, help="How many images, the first of the test split.")
@click.option(
    "--knowledge",
    multiple=True,
    callback=names,
    help="full, bpda, oblivious, transfer:NAME or surrogate:NAME.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Decides every random number."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--batch-size", default="auto", show_default=True, help="Images a network call.")
@click.option(
    "--precision", default="auto", show_default=True, help="auto, fp32 or bf16; verdicts are always fp32."
)
@click.option("--checkpoint", help="Weights in place of the card's.")
@click.option("--data-dir", help="Where data sets with files lie.")
@click.option("--results", help="Folder of all records.  [default: results]")
@click.option("--fresh", is_flag=True, help="Start over, whatever record is there.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, and nothing else.")
def command(
    defenses: list[str],
    attacks: list[str],
    protocol: str | None,
    dataset: str | None,
    threat: str | None,
    samples: int | None,
    knowledge: list[str],
    seed: int,
    device: str,
    batch_size: str,
    precision: str,
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
    """
    errors = Console(stderr=True)
    with Bar(errors) as bar:
        options = Options(
            seed=seed,
            device=device,
            batch_size=batch_size,
            precision=precision,
            data_dir=data_dir,
            results=results or default_results(),
            fresh=fresh,
            checkpoint=checkpoint,
            command=shlex.join(["robench", *sys.argv[1:]]),
            progress=bar.update,
            note=bar.note,
        )
        chosen = choose_protocol(protocol, dataset, threat, samples)
        records = []
        for record in run_all(defenses, attacks or None, chosen, knowledge or None, options):
            records.append(record)
            bar.done()
    if as_json:
        json.dump({"records": [record.to_dict() for record in records]}, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    from robench.results.table import run_table

    console = Console()
    console.print(run_table(records))
    for record in records:
        console.print(f"record: {record.folder}", soft_wrap=True, highlight=False)


class Bar:
    """What a run shows on stderr: a moving bar on a terminal, a line an attack elsewhere."""

    def __init__(self, console: Console):
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"),
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
        self.console.print(f"robench: {text}", soft_wrap=True, highlight=False)

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
                self.note(f"{label}: {standing.survivors} of {standing.samples} survive so far")
        assert self.task is not None
        seconds = self.bar.get_time() - self.passes[1]
        speed = (standing.passes - self.passes[0]) / seconds if seconds > 0 else 0.0
        facts = f"{standing.survivors}/{standing.samples} survive, {speed:,.0f} passes/s"
        self.bar.update(self.task, completed=standing.share, facts=facts)
