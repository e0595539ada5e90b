"""From probabilities to the bytes of an answer, in the type the client accepts."""

import base64
import csv
import functools
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from alexmri.serving.request_error import RequestError

JSON_TYPE = "application/json"
# The first is the answer to those who take anything.
ACCEPT_TYPES = (JSON_TYPE, "application/jsonlines", "text/csv", "application/x-npy")


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the model says about N pictures."""

    probabilities_NK: NDArray[np.float64]
    """Calibrated; classes in the order of the model."""
    ood_percentile_N: NDArray[np.float64] | None = None
    """How unusual each image is, 0 to 1; None where the model has no score (see model/ood.py)."""

    @classmethod
    def of_nothing(cls, classes: int) -> "Forecast":
        """Return the forecast for no picture."""
        return cls(np.empty((0, classes)))

    def __len__(self) -> int:
        return len(self.probabilities_NK)

    def __getitem__(self, rows: slice) -> "Forecast":
        ood = self.ood_percentile_N
        return Forecast(self.probabilities_NK[rows], None if ood is None else ood[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A request answered: every record has its row of the forecast, or its error."""

    model_version: str
    request_id: str
    classes: Sequence[str]
    forecast: Forecast
    errors: Sequence[RequestError | None]
    overlays: Sequence[bytes] = ()
    """A PNG for each row of the forecast, where they were asked for."""

    def predictions(self) -> list[dict[str, Any]]:
        """Return one object per record, in their order: label and probabilities, or `error`."""
        good = iter(self._good())
        return [
            next(good) if error is None else error.document(self.request_id)
            for error in self.errors
        ]

    def labels(self) -> list[str]:
        """Return the label of every picture that has one."""
        return [self.classes[i] for i in self.forecast.probabilities_NK.argmax(axis=1)]

    def document(self) -> dict[str, Any]:
        """Return the answer as JSON tells it."""
        return {
            "model": self.model_version,
            "model_version": self.model_version,
            "request_id": self.request_id,
            "predictions": self.predictions(),
            "subject": self._subject(),
        }

    def encode(self, media: str) -> bytes:
        """Return the answer in one of ACCEPT_TYPES."""
        if media == JSON_TYPE:
            return json.dumps(self.document()).encode()
        if media == "application/jsonlines":
            return "".join(json.dumps(each) + "\n" for each in self.predictions()).encode()
        if media == "text/csv":
            return self._csv()
        return self._npy()

    def _good(self) -> list[dict[str, Any]]:
        ood_N = self.forecast.ood_percentile_N
        good = [
            {
                "label": self.classes[int(row_K.argmax())],
                "probabilities": _ranked(self.classes, row_K),
                "ood_percentile": None if ood_N is None else float(ood_N[i]),
            }
            for i, row_K in enumerate(self.forecast.probabilities_NK)
        ]
        for prediction, png in zip(good, self.overlays, strict=False):
            prediction["gradcam_png"] = base64.b64encode(png).decode()
        return good

    def _subject(self) -> dict[str, Any] | None:
        """Several slices as one person: the mean of their probabilities, as `alexmri evaluate`."""
        if len(self.forecast) < 2:
            return None
        mean_K = self.forecast.probabilities_NK.mean(axis=0)
        return {
            "label": self.classes[int(mean_K.argmax())],
            "probabilities": _ranked(self.classes, mean_K),
            "slices": len(self.forecast),
        }

    def _csv(self) -> bytes:
        """One line per record: label, a probability per class in the model's order, the score.

        The line of a bad record has no label and its reason in the last field.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        good = iter(range(len(self.forecast)))
        ood_N = self.forecast.ood_percentile_N
        for error in self.errors:
            if error is not None:
                writer.writerow(["", *[""] * len(self.classes), error.message])
                continue
            i = next(good)
            row_K = self.forecast.probabilities_NK[i]
            score = "" if ood_N is None else float(ood_N[i])
            writer.writerow([self.classes[int(row_K.argmax())], *row_K.tolist(), score])
        return text.getvalue().encode()

    def _npy(self) -> bytes:
        """Float64 (N, K), classes in the model's order; the row of a bad record is NaN."""
        array_NK = np.full((len(self.errors), len(self.classes)), np.nan)
        array_NK[[error is None for error in self.errors]] = self.forecast.probabilities_NK
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, array_NK, allow_pickle=False)
        return buffer.getvalue()


@functools.lru_cache(maxsize=256)
def choose_type(accept: str, default: str) -> str:
    """Return the type to answer in, by the Accept header; empty and `*/*` take the default.

    Raises:
        RequestError: 406, none of ours is accepted.
    """
    offered = [default, *(media for media in ACCEPT_TYPES if media != default)]
    if default not in ACCEPT_TYPES:
        offered = list(ACCEPT_TYPES)
    if not accept.strip():
        return offered[0]
    wanted = parse_accept_header(accept, MIMEAccept)
    # Without parameters as charset: what is offered has none.
    plain = MIMEAccept([(media.partition(";")[0].strip(), quality) for media, quality in wanted])
    best = plain.best_match(offered)
    if best is None:
        raise RequestError(
            406, "not_acceptable", f"the answer can be {', '.join(ACCEPT_TYPES)} and nothing else"
        )
    return best


def _ranked(classes: Sequence[str], probabilities_K: NDArray[np.float64]) -> dict[str, float]:
    """Return class -> probability, the most likely first."""
    named = zip(classes, probabilities_K.tolist(), strict=True)
    return dict(sorted(named, key=lambda pair: -pair[1]))
