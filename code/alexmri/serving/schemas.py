"""What clients send and get, as pydantic models; /openapi.json is made of them and of ROUTES."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel
from pydantic.json_schema import models_json_schema

from alexmri.contract.resources import installed_version
from alexmri.serving.config import TRANSFORM_MB
from alexmri.serving.decode import CONTENT_TYPES, MAX_IMAGES

JSON = "application/json"
JSON_LINES, CSV, NPY = "application/jsonlines", "text/csv", "application/x-npy"
# The first is the answer to a client that takes anything.
ACCEPT_TYPES = (JSON, JSON_LINES, CSV, NPY)

Base64 = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]
Share = Annotated[float, Field(ge=0, le=1)]
Probabilities = Annotated[
    dict[str, Share],
    Field(description="class -> calibrated probability, the most likely first; the sum is 1"),
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


# --- Requests


class EncodedImage(BaseModel):
    """A file in base64."""

    b64: Base64


class WrappedImage(BaseModel):
    """An image under its name."""

    image: Base64 | EncodedImage | list[Any]


class Image(RootModel[Base64 | EncodedImage | WrappedImage | list[Any]]):
    """A file in base64 (also as data URL), or gray values 0 to 255 as nested lists.

    Nested lists have the shape (height, width) or (height, width, 1 or 3).
    """


class ImageRequest(BaseModel):
    """One image."""

    image: Base64 | EncodedImage | list[Any]


class InstancesRequest(BaseModel):
    """One image or several, as TensorFlow Serving takes them."""

    instances: Annotated[list[Image], Field(min_length=1, max_length=MAX_IMAGES)]


class InputsRequest(BaseModel):
    """One image or several, as Hugging Face's containers take them, or one array of all."""

    inputs: Any


class InvocationRequest(RootModel[ImageRequest | InstancesRequest | InputsRequest | Image]):
    """A JSON body of /invocations."""


# --- Answers


class Error(_Model):
    """Why a request, or one record of it, was refused."""

    code: str
    message: str
    request_id: str


class ErrorDocument(_Model):
    """The body of every answer that is not 2xx."""

    error: Error


class SliceSource(_Model):
    """Which file of the request (from 0) an image is from, and which slice of a scan.

    The index counts from 0 at the foot, back or left end; the position is from the middle.
    """

    file: Annotated[int, Field(ge=0)]
    plane: str | None = None
    index: int | None = None
    position_mm: float | None = None
    png: Annotated[
        Base64 | None, Field(description="the slice itself; only with explain=gradcam")
    ] = None
    notes: Annotated[
        list[str] | None,
        Field(description="what is unusual about the scan, as missing slices"),
    ] = None


PredictionSet = Annotated[
    list[str] | None,
    Field(
        None,
        description="the classes that hold the true one as often as `coverage` in /info; only where"
        " the model was trained with `coverage`",
    ),
]
Refer = Annotated[
    bool | None,
    Field(None, description="whether a person shall decide: the set does not hold one class"),
]


class Prediction(_Model):
    """What the model says about one image."""

    label: str
    probabilities: Probabilities
    ood_percentile: Annotated[
        Share | None,
        Field(
            description="how unusual the image is, as a percentile of the validation slices; above"
            " 0.99, distrust the answer; null: the model has no such score"
        ),
    ]
    prediction_set: PredictionSet
    refer: Refer
    gradcam_png: Annotated[
        Base64 | None,
        Field(None, description="where the label was seen; only with explain=gradcam"),
    ]
    source: Annotated[
        SliceSource | None, Field(None, description="only where the request holds a scan")
    ]


class Subject(_Model):
    """All images of a request as slices of one subject: the mean of their probabilities."""

    label: str
    probabilities: Probabilities
    slices: Annotated[int, Field(ge=2)]
    prediction_set: PredictionSet
    refer: Refer


class InvocationAnswer(_Model):
    """The answer of /invocations."""

    model: Annotated[str, Field(description="the same as model_version")]
    model_version: str
    request_id: str
    predictions: Annotated[
        list[Prediction | ErrorDocument],
        Field(
            description="one per image or slice of a scan, in their order; an error only in a batch"
            " transform"
        ),
    ]
    subject: Annotated[Subject | None, Field(description="null where there is one image")]


class Limits(_Model):
    """What one request may have at most."""

    payload_mb: int
    images: int
    pixels: int
    seconds: float
    images_in_flight: int


class Info(BaseModel):
    """The model, what it takes, and its limits."""

    model_version: str
    architecture: Any = None
    classes: list[str]
    preprocessing: Any = None
    temperature: float | None = None
    metrics: Any = None
    image_size: Annotated[int, Field(ge=32)]
    channels: Literal[1, 3]
    trained_on: Annotated[dict[str, int] | None, Field(description="class -> training images")]
    slicing: Annotated[Any, Field(description="how scans are cut into slices")]
    conformal: Annotated[
        Any, Field(description="coverage, unit and calibration of prediction sets; null: none")
    ] = None
    synthetic: Annotated[bool, Field(description="whether alexmri has drawn the training images")]
    intended_use: str
    card: Annotated[str, Field(description="the model card as Markdown")]
    content_types: list[str]
    accept_types: list[str]
    limits: Limits
    milliseconds_by_batch_size: dict[int, float]


class ExecutionParameters(_Model):
    """How a batch transform should send its records (names of SageMaker)."""

    MaxConcurrentTransforms: Annotated[int, Field(ge=1)]
    BatchStrategy: Literal["SINGLE_RECORD"] = "SINGLE_RECORD"
    MaxPayloadInMB: Annotated[int, Field(ge=1, le=TRANSFORM_MB)]


# --- The description


@dataclass(frozen=True)
class Route:
    """An address of the server: what it answers by status, None where the body is empty."""

    method: str
    path: str
    summary: str
    answers: dict[int, type[BaseModel] | str | None]


# Status -> what it means, and the codes that an error with this status may have.
ERRORS = {
    400: ("the request is malformed", "bad_request"),
    404: ("there is no such address", "not_found"),
    405: ("the address does not take this method", "method_not_allowed"),
    406: ("no type of the Accept header is offered", "not_acceptable"),
    408: ("the body did not arrive in time, or not completely", "request_timeout"),
    413: ("over a limit: bytes, images, pixels, or the length of a side", "payload_too_large"),
    415: ("unknown content type", "unsupported_media_type"),
    422: ("an image cannot be read, or costs too much to parse", "unreadable_image"),
    429: ("the queue is full, or too many requests are in flight", "too_many_requests"),
    500: ("a fault of the server; its log names the request_id", "internal_error"),
    503: ("loading, draining, or no answer in time", "not_ready", "draining", "deadline_exceeded"),
}
RETRY_AFTER = (429, 503)
ROUTES = (
    Route("get", "/", "A page for people", {200: "text/html"}),
    Route("get", "/ping", "Whether the server can answer", {200: None, 503: None}),
    Route(
        "post",
        "/invocations",
        "Classify one slice, the slices of one subject, or a scan (DICOM, NIfTI)",
        {
            200: InvocationAnswer,
            **dict.fromkeys((400, 406, 408, 413, 415, 422, 429, 500, 503), ErrorDocument),
        },
    ),
    Route(
        "get",
        "/execution-parameters",
        "How a batch transform should send its records",
        {200: ExecutionParameters},
    ),
    Route(
        "get", "/info", "The model, what it takes, and its limits", {200: Info, 503: ErrorDocument}
    ),
    Route("get", "/metrics", "Metrics for Prometheus", {200: "text/plain"}),
    Route("get", "/openapi.json", "This description", {200: JSON}),
)
_BINARY = {"type": "string", "format": "binary"}
_OTHER_ANSWERS = {
    JSON_LINES: {"type": "string", "description": "one prediction per line"},
    CSV: {
        "type": "string",
        "description": "label, a probability per class in the order of /info, ood_percentile; no"
        " header",
    },
    NPY: {
        **_BINARY,
        "description": "float64 (images, classes), classes in the order of /info",
    },
}
_PARAMETERS = [
    {
        "name": "explain",
        "in": "query",
        "description": "also show where each label was seen; X-Amzn-SageMaker-Custom-Attributes may"
        " say explain=gradcam too",
        "schema": {"type": "string", "enum": ["gradcam"]},
    },
    {
        "name": "X-Amzn-SageMaker-Custom-Attributes",
        "in": "header",
        "description": "sent back with the answer",
        "schema": {"type": "string", "maxLength": 1024},
    },
    {
        "name": "X-Amzn-SageMaker-Inference-Id",
        "in": "header",
        "description": "logged with the request, 64 characters of it",
        "schema": {"type": "string"},
    },
]


def openapi() -> dict[str, Any]:
    """Return the description of the server (OpenAPI 3.1)."""
    models = (InvocationRequest, InvocationAnswer, ErrorDocument, Info, ExecutionParameters)
    _, schemas = models_json_schema(
        [(model, "validation") for model in models],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, Any] = {}
    for route in ROUTES:
        answers = {**route.answers, 404: ErrorDocument, 405: ErrorDocument}
        operation: dict[str, Any] = {
            "summary": route.summary,
            "responses": {
                str(status): _response(status, body) for status, body in sorted(answers.items())
            },
        }
        if route.path == "/invocations":
            operation |= {"parameters": _PARAMETERS, "requestBody": _request_body()}
            operation["responses"]["200"]["content"] |= {
                media: {"schema": schema} for media, schema in _OTHER_ANSWERS.items()
            }
        paths.setdefault(route.path, {})[route.method] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "alexmri",
            "version": installed_version("alexmri"),
            "description": "Brain-MRI slices in, calibrated probabilities out. Research software,"
            " not a diagnostic device.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }


def _response(status: int, body: type[BaseModel] | str | None) -> dict[str, Any]:
    meaning, *codes = ERRORS.get(status, ("the answer",))
    response: dict[str, Any] = {"description": meaning}
    if isinstance(body, str):
        response["content"] = {body: {"schema": {"type": "object" if body == JSON else "string"}}}
    elif body is not None:
        schema: dict[str, Any] = {"$ref": f"#/components/schemas/{body.__name__}"}
        if codes:
            schema["properties"] = {"error": {"properties": {"code": {"enum": codes}}}}
        response["content"] = {JSON: {"schema": schema}}
    response["headers"] = {"X-Request-Id": {"schema": {"type": "string"}}}
    if status in RETRY_AFTER and body is not None:
        response["headers"]["Retry-After"] = {
            "description": "seconds after which the same request may succeed",
            "schema": {"type": "integer", "minimum": 1},
        }
    return response


def _request_body() -> dict[str, Any]:
    content: dict[str, Any] = {media: {"schema": _BINARY} for media in CONTENT_TYPES}
    content[JSON] = {"schema": {"$ref": "#/components/schemas/InvocationRequest"}}
    content[JSON_LINES] = {
        "schema": {"type": "string", "description": "one image per line, each as JSON"}
    }
    content["multipart/form-data"] = {"schema": {"type": "object", "additionalProperties": _BINARY}}
    return {"required": True, "content": content}
