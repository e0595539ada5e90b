"""From predictions to the bytes of an answer, in the type the client accepts."""

import base64
import csv
import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from alexmri.data.slicing import as_png
from alexmri.model.conformal import Conformal
from alexmri.serving.engine import Predictions
from alexmri.serving.request_error import RequestError
from alexmri.serving.scans import Source
from alexmri.serving.schemas import (
    ACCEPT_TYPES,
    CSV,
    JSON,
    JSON_LINES,
    ErrorDocument,
    InvocationAnswer,
    Prediction,
    SliceSource,
    Subject,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A request answered: every record has its row of the predictions, or its error."""

    model_version: str
    request_id: str
    classes: Sequence[str]
    predictions: Predictions
    errors: Sequence[RequestError | None]
    conformal: Conformal | None = None
    """What makes prediction sets, where the model has them."""
    sources: Sequence[Source] = ()
    """Where each record is from, where one of them is a scan."""
    overlays: Sequence[bytes] = ()
    """A PNG for each row of the predictions, where they were asked for."""

    def labels(self) -> list[str]:
        """Return the label of every image that has one."""
        return [self.classes[i] for i in self.predictions.probabilities_NK.argmax(axis=1)]

    def document(self) -> InvocationAnswer:
        """Return the answer as JSON tells it."""
        return InvocationAnswer(
            model=self.model_version,
            model_version=self.model_version,
            request_id=self.request_id,
            predictions=self._records(),
            subject=self._subject(),
        )

    def encode(self, media: str, *, newline_at_end: bool = True) -> bytes:
        """Return the answer in one of ACCEPT_TYPES.

        A batch transform puts a newline behind each answer itself.
        """
        if media == JSON:
            return _dumped(self.document()).encode()
        if media not in (JSON_LINES, CSV):
            return self._npy()
        text = (
            self._csv()
            if media == CSV
            else "".join(f"{_dumped(record)}\n" for record in self._records())
        )
        return (text if newline_at_end else text.removesuffix("\n")).encode()

    def _records(self) -> list[Prediction | ErrorDocument]:
        """Return one model per record, in their order."""
        rows = iter(range(len(self.predictions.probabilities_NK)))
        return [
            self._prediction(next(rows), number)
            if error is None
            else ErrorDocument.model_validate(error.document(self.request_id))
            for number, error in enumerate(self.errors)
        ]

    def _prediction(self, row: int, number: int) -> Prediction:
        row_K, ood_N = self.predictions.probabilities_NK[row], self.predictions.ood_percentile_N
        more: dict[str, Any] = {}
        if self.conformal:
            more |= _set(self.classes, self.conformal.sets(row_K[None])[0])
        if self.overlays:
            more["gradcam_png"] = base64.b64encode(self.overlays[row]).decode()
        if self.sources:
            more["source"] = self._source(self.sources[number])
        return Prediction(
            label=self.classes[int(row_K.argmax())],
            probabilities=_ranked(self.classes, row_K),
            ood_percentile=None if ood_N is None else float(ood_N[row]),
            **more,
        )

    def _source(self, source: Source) -> SliceSource:
        pixels_HW = source.pixels_HW
        if pixels_HW is None:
            return SliceSource(file=source.file)
        more: dict[str, Any] = {"notes": list(source.notes)} if source.notes else {}
        if self.overlays:
            more["png"] = base64.b64encode(as_png(pixels_HW)).decode()
        return SliceSource(
            file=source.file,
            plane=source.plane,
            index=source.index,
            position_mm=source.position_mm,
            **more,
        )

    def _subject(self) -> Subject | None:
        """Several slices as one subject: the mean of their probabilities, as `alexmri evaluate`."""
        slices = len(self.predictions.probabilities_NK)
        if slices < 2:
            return None
        mean_K = self.predictions.probabilities_NK.mean(axis=0)
        sets_1K = self.conformal.subject_sets(mean_K[None]) if self.conformal else None
        return Subject(
            label=self.classes[int(mean_K.argmax())],
            probabilities=_ranked(self.classes, mean_K),
            slices=slices,
            **({} if sets_1K is None else _set(self.classes, sets_1K[0])),
        )

    def _csv(self) -> str:
        """One line per record: label, a probability per class in the model's order, the score.

        The line of a bad record has no label and its reason in the last field.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        rows = iter(range(len(self.predictions.probabilities_NK)))
        ood_N = self.predictions.ood_percentile_N
        for error in self.errors:
            if error is not None:
                writer.writerow(["", *[""] * len(self.classes), error.message])
                continue
            row = next(rows)
            row_K = self.predictions.probabilities_NK[row]
            score = "" if ood_N is None else float(ood_N[row])
            writer.writerow([self.classes[int(row_K.argmax())], *row_K.tolist(), score])
        return text.getvalue()

    def _npy(self) -> bytes:
        """Float64 (N, K), classes in the model's order; the row of a bad record is NaN."""
        array_NK = np.full((len(self.errors), len(self.classes)), np.nan)
        array_NK[[error is None for error in self.errors]] = self.predictions.probabilities_NK
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
            406, "not_acceptable", f"the answer can only be {', '.join(ACCEPT_TYPES)}"
        )
    return best


def _dumped(model: InvocationAnswer | Prediction | ErrorDocument) -> str:
    # An overlay that was not asked for is not set, and left out.
    return model.model_dump_json(exclude_unset=True)


def _set(classes: Sequence[str], inside_K: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the classes of a prediction set, and whether it is referred to a person."""
    held = [name for name, inside in zip(classes, inside_K, strict=True) if inside]
    return {"prediction_set": held, "refer": len(held) != 1}


def _ranked(classes: Sequence[str], probabilities_K: NDArray[np.float64]) -> dict[str, float]:
    """Return class -> probability, the most likely first."""
    named = zip(classes, probabilities_K.tolist(), strict=True)
    return dict(sorted(named, key=lambda pair: -pair[1]))
