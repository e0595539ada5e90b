"""The lines on standard output that log readers and SageMaker's metric definitions parse."""

from collections.abc import Mapping
from decimal import Decimal


def metric_line(metrics: Mapping[str, float | int | None]) -> str:
    """Return `name=value; name=value;` in the given order; values without a number are left out.

    Six significant digits, never an exponent: not every regular expression for a number knows them.

    >>> metric_line({"epoch": 3, "train_loss": 8.137082e-07, "images_per_second": 12345.6})
    'epoch=3; train_loss=0.000000813708; images_per_second=12346;'
    """
    return " ".join(
        f"{name}={_number(name, value)};" for name, value in metrics.items() if value is not None
    )


def _number(name: str, value: float | int) -> str:
    if isinstance(value, int) or name.endswith("_per_second"):
        return f"{value:.0f}"
    return format(Decimal(f"{value:.6g}"), "f")
