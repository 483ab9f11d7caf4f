"""The result of `robench.attack`, which prints a table and saves a record."""

import base64
import html
import io
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from robench.core.formatting import count, duration, latex
from robench.defenses import Defense
from robench.engine.outcome import Outcome, ResultWarning
from robench.engine.setup import Setup
from robench.evaluation.saving import forgotten, model_name, save
from robench.records.certificates import is_attacked
from robench.records.record import Record
from robench.statistics.accuracy import Accuracy, interval, percent
from robench.threats.threat import Threat

# Number of pictures in a notebook and their side in pixels.
_PICTURES, _SIDE = 6, 96
_COLUMNS = ("attack", "attacked", "survive", "forward", "backward", "time")


@dataclass(frozen=True)
class Attacked:
    """The inputs of an attack.

    Attributes:
        setup: model, device, seed and batch size.
        x, y: images (N, C, H, W) and labels (N,), on the CPU.
        suite: name of the suite.
        specs: canonical specs of the attacks in the suite.
        started, finished: times in UTC.
    """

    setup: Setup
    x: Tensor
    y: Tensor
    threat: Threat
    suite: str
    specs: tuple[str, ...]
    started: datetime
    finished: datetime = field(default_factory=lambda: datetime.now(UTC))

    def without_model(self) -> "Attacked":
        """A copy for pickling: the model is large and may not be picklable."""
        return replace(self, setup=replace(self.setup, model=forgotten))


@dataclass(frozen=True, repr=False, eq=False)
class Result(Outcome):
    """The result of `robench.attack`: an `Outcome` with the inputs of the attack.

    It prints as a table of the attacks. A notebook also shows some adversarial examples.

    Attributes:
        attacked: the model, images, threat model and suite. A pickled result does not contain the model.
    """

    attacked: Attacked = field(kw_only=True)

    @classmethod
    def of(cls, outcome: Outcome, attacked: Attacked) -> "Result":
        """Create a result from an outcome and the inputs of the attack."""
        return cls(**{f.name: getattr(outcome, f.name) for f in fields(Outcome)}, attacked=attacked)

    @property
    def warnings(self) -> list[ResultWarning]:
        """Reasons why the evaluation may have failed; empty if there are none."""
        return self.health

    @property
    def clean(self) -> Accuracy:
        """Clean accuracy with its 95 % confidence interval (Wilson)."""
        return Accuracy.of(sum(name != "clean" for name in self.fooled_by), len(self.fooled_by))

    @property
    def under_attack(self) -> Accuracy:
        """Robust accuracy with its 95 % confidence interval (Wilson)."""
        return Accuracy.of(int(self.robust.sum()), len(self.fooled_by))

    def save(
        self, folder: Path | str, *, defense: str = "", dataset: str = "", data_dir: str | None = None
    ) -> Record:
        """Save a record with the adversarial examples; `robench verify FOLDER` classifies them again.

        Args:
            folder: folder for `record.json`, `samples.parquet` and `adversarials.safetensors`.
            defense: a name that loads the same model, such as "python:my_module.build" or a card. Without it, the
                record identifies the model by its weights, and verification needs `--defense NAME`.
            dataset: the dataset whose first N test images were attacked, such as "cifar10". Without it, the images
                are saved next to the record in `images.npz`.
            data_dir: folder with the files of the dataset.

        Raises:
            UsageError: if `defense` loads another model, `dataset` has other images, the folder contains other images,
                or the model has changed since the attack.
            ResourceError: if the folder cannot be written.
        """
        return save(self, self.attacked, Path(folder), (defense, dataset, data_dir))

    def to_latex(self, name: str = "") -> str:
        """A LaTeX table (booktabs) with one row: accuracy in %, clean and after each attack of the suite in turn.

        Args:
            name: name of the model; by default that of a loaded defense, or the class of the model.
        """
        n, model = len(self.fooled_by), self.attacked.setup.model
        name = name or (isinstance(model, Defense) and model.name) or model_name(model)
        accuracies = [
            percent(self.clean),
            *(percent(Accuracy.of(cost.survivors, n)) for cost in self.attacks),
        ]
        headers = ["model", "clean", *(cost.spec.partition("(")[0] for cost in self.attacks)]
        accuracies[-1] += f" {interval(self.under_attack)}"
        lines = [
            f"% {self.attacked.suite}, {self.attacked.threat}, n = {n}: accuracy in % after each attack in turn",
            rf"\begin{{tabular}}{{l{'r' * len(accuracies)}}}",
            r"\toprule",
            " & ".join(map(latex, headers)) + r" \\",
            r"\midrule",
            " & ".join([latex(name), *accuracies]) + r" \\",
            r"\bottomrule",
            r"\end{tabular}",
        ]
        return "\n".join(lines) + "\n"

    def __repr__(self) -> str:
        rows = [_COLUMNS, *self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        warnings = [f"warning: {warning.code}: {warning.text}" for warning in self.health]
        return "\n".join([*self._headline(), "", *table, *([""] if warnings else []), *warnings])

    def _repr_html_(self) -> str:
        def line(cells: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        warnings = [
            f"<p><b>warning</b> {html.escape(f'{warning.code}: {warning.text}')}</p>"
            for warning in self.health
        ]
        body = "".join(line(row, "td") for row in self._rows())
        return "".join(
            [
                "<div>",
                f"<p>{'<br>'.join(map(html.escape, self._headline()))}</p>",
                f"<table><thead>{line(_COLUMNS, 'th')}</thead><tbody>{body}</tbody></table>",
                *warnings,
                self._pictures(),
                "</div>",
            ]
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "attacked": self.attacked.without_model()}

    def _headline(self) -> tuple[str, str]:
        n = len(self.fooled_by)
        figures = ", ".join(
            f"{name} {percent(accuracy)} % {interval(accuracy)}"
            for name, accuracy in (("clean", self.clean), ("robust", self.under_attack))
        )
        return f"{self.attacked.suite}, {self.attacked.threat}, {n:,} image{'s' * (n != 1)}", figures

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                cost.spec,
                f"{cost.attacked:,}",
                f"{cost.survivors:,}",
                count(cost.forward),
                count(cost.backward),
                duration(cost.seconds),
            )
            for cost in self.attacks
        ]

    def _pictures(self) -> str:
        """Some adversarial examples: clean images, adversarial images and amplified differences in three rows."""
        rows = [i for i, name in enumerate(self.fooled_by) if is_attacked(name)][:_PICTURES]
        if not rows or self.attacked.x.shape[1] not in (1, 3):
            return ""
        clean, adversarial = self.attacked.x[rows], self.x_adv[rows]
        difference = adversarial - clean
        scale = 0.5 / max(float(difference.abs().max()), 1e-9)
        pictures = torch.cat([clean, adversarial, 0.5 + scale * difference])
        classes = ", ".join(f"{self.attacked.y[i]} as {self.prediction[i]}" for i in rows)
        caption = html.escape(
            f"{len(rows)} images, their adversarial examples and the difference (× {scale:.0f}): {classes}"
        )
        return f'<p>{caption}</p><img alt="{caption}" src="{_png(pictures, len(rows))}">'


def _png(images: Tensor, columns: int) -> str:
    """Images (M, C, H, W) in a grid, as a data URI."""
    # Imported here, because only notebooks need them.
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    factor = max(1, round(_SIDE / images.shape[-1]))
    grid = make_grid(interpolate(images, scale_factor=factor), nrow=columns, padding=4, pad_value=1.0)
    buffer = io.BytesIO()
    to_pil_image(grid.clamp(0, 1)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
