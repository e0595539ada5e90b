"""The lines on standard output that log readers and SageMaker's metric definitions parse."""

from collections.abc import Mapping


def metric_line(metrics: Mapping[str, float | int | None]) -> str:
    """Return `name=value; name=value;` in the given order; values without a number are left out.

    >>> metric_line({"epoch": 3, "val_macro_f1": 0.79123456, "images_per_second": 12345.6})
    'epoch=3; val_macro_f1=0.791235; images_per_second=12346;'
    """
    return " ".join(
        f"{name}={_number(name, value)};" for name, value in metrics.items() if value is not None
    )


def _number(name: str, value: float | int) -> str:
    if isinstance(value, int) or name.endswith("_per_second"):
        return f"{value:.0f}"
    return f"{value:.6g}"
