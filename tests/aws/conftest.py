"""An AWS on this machine's loopback: moto's, with every request written down.

What moto lacks is answered as a test says. botocore has checked each request by then: it sends
nothing that its own model of the service does not take.
"""

import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.session import Session
from click.testing import CliRunner, Result
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from alexmri.cli import cli

REGION = "us-east-1"
ACCOUNT = "123456789012"
BUCKET = "slices"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/jobs"
SECRET = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:wandb-abc"
REVISION = "0123456789abcdef0123456789abcdef01234567"
DIGEST = "sha256:" + "ab" * 32
CONFIG = f"""
region = "{REGION}"
role = "{ROLE}"
bucket = "{BUCKET}"
"""
Answer = tuple[int, dict[str, Any]]


@dataclass
class Request:
    """One request as it came: `target` is Operation of a JSON service, else METHOD /path."""

    target: str
    body: dict[str, Any]
    size: int


@dataclass
class Cloud:
    """moto behind a door that writes down, and answers in its place where a test says so."""

    requests: list[Request] = field(default_factory=list)
    answers: dict[str, Callable[[dict[str, Any]], Answer | None]] = field(default_factory=dict)
    # What SageMaker would have refused although botocore sent it.
    beyond: list[str] = field(default_factory=list)
    # What is put in place of what in moto's answers.
    renamed: dict[str, str] = field(default_factory=dict)
    # Answers as XML, of services that speak it.
    texts: dict[str, tuple[int, str]] = field(default_factory=dict)
    # Called with each target before it is answered.
    before: Callable[[str], None] = lambda target: None
    endpoint: str = ""

    def sent(self, target: str) -> list[dict[str, Any]]:
        """Return the bodies of the requests for `target`, in order."""
        return [each.body for each in self.requests if each.target == target]

    def targets(self) -> list[str]:
        return [each.target for each in self.requests]

    def reset(self) -> None:
        self.requests.clear()
        self.beyond.clear()
        self.answers.clear()
        self.texts.clear()
        self.before = lambda target: None

    def answer(self, target: str, *documents: dict[str, Any], status: int = 200) -> None:
        """Answer `target` with one document after the other; the last one stays."""
        left = list(documents)

        def reply(body: dict[str, Any]) -> Answer:
            return status, left.pop(0) if len(left) > 1 else left[0]

        self.answers[target] = reply

    def refuse(self, target: str, code: str, message: str = "no", status: int = 400) -> None:
        self.answer(target, {"__type": code, "message": message}, status=status)


# What `re` does not know of patterns, as far as our names and texts go.
UNICODE = {
    **{"L": "a-zA-Z", "Z": " ", "N": "0-9", "M": "", "S": "=+<>|~^"},
    "P": r"!-#%-*,-/:;?@\[-\]_{}",
}


@cache
def sagemaker_model() -> Any:
    return Session().get_service_model("sagemaker")


def beyond_limits(shape: Any, value: Any, place: str = "") -> Iterator[str]:
    """Yield what in a request is beyond the limits that botocore leaves to the service."""
    limits = shape.metadata
    if shape.type_name == "structure":
        for name, each in value.items():
            yield from beyond_limits(shape.members[name], each, f"{place}.{name}")
        return
    size = value if shape.type_name in ("integer", "float", "long") else None
    if shape.type_name in ("list", "map", "string"):
        size = len(value)
    if size is not None and not limits.get("min", size) <= size <= limits.get("max", size):
        yield f"{place} is {value!r}: beyond {limits.get('min')} to {limits.get('max')}"
    if shape.type_name == "list":
        for number, each in enumerate(value):
            yield from beyond_limits(shape.member, each, f"{place}[{number}]")
    elif shape.type_name == "map":
        for name, each in value.items():
            yield from beyond_limits(shape.key, name, f"{place} key")
            yield from beyond_limits(shape.value, each, f"{place}.{name}")
    elif shape.type_name == "string":
        # The pattern of metadata ends in a count behind its "$".
        pattern = re.sub(r"\$\{1,\d+\}$", "", limits.get("pattern", ""))
        for category, characters in UNICODE.items():
            pattern = pattern.replace(f"\\p{{{category}}}", characters)
        if pattern and not re.fullmatch(pattern, value, re.DOTALL):
            yield f"{place} is {value!r}: not like {pattern}"
        if shape.enum and value not in shape.enum:
            yield f"{place} is {value!r}: none of {shape.enum}"


def application(cloud: Cloud) -> Callable[..., Any]:
    moto = DomainDispatcherApplication(create_backend_app)
    lock = threading.Lock()

    def door(environment: dict[str, Any], start_response: Any) -> Any:
        content = environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
        if environment.get("HTTP_TRANSFER_ENCODING") == "chunked":
            content = environment["wsgi.input"].read()
        environment["wsgi.input"] = BytesIO(content)
        target = environment.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
        body: dict[str, Any] = json.loads(content) if target and content else {}
        if environment.get("HTTP_X_AMZ_TARGET", "").startswith("SageMaker."):
            shape = sagemaker_model().operation_model(target).input_shape
            cloud.beyond += [f"{target}: {each}" for each in beyond_limits(shape, body)]
        if not target:
            query = environment.get("QUERY_STRING", "")
            target = f"{environment['REQUEST_METHOD']} {environment['PATH_INFO']}"
            if b"Action=" in content:
                target = content.partition(b"Action=")[2].partition(b"&")[0].decode()
                body = {"form": content.decode()}
            elif query:
                body = {"query": query}
        if not environment["PATH_INFO"].startswith("/moto-api"):
            with lock:
                cloud.requests.append(Request(target, body, len(content)))
            cloud.before(target)
            if target in cloud.texts:
                status, text = cloud.texts[target]
                start_response(f"{status} .", [("Content-Type", "text/xml")])
                return [text.encode()]
            reply = cloud.answers.get(target)
            answered = reply(body) if reply else None
            if answered:
                status, document = answered
                answer = json.dumps(document, default=str).encode()
                kind = "application/x-amz-json-1.1"
                start_response(f"{status} .", [("Content-Type", kind)])
                return [answer]
        if not cloud.renamed:
            return moto(environment, start_response)
        return renamed(environment, start_response)

    def renamed(environment: dict[str, Any], start_response: Any) -> list[bytes]:
        started: list[Any] = []
        text = b"".join(moto(environment, lambda *given: started.extend(given))).decode()
        for old, new in cloud.renamed.items():
            text = text.replace(old, new)
        headers = [each for each in started[1] if each[0].lower() != "content-length"]
        start_response(started[0], headers)
        return [text.encode()]

    return door


@pytest.fixture(scope="session", autouse=True)
def quick_clients() -> Iterator[None]:
    """Read botocore's models once, not once for each command: a command is a process for people."""
    from botocore.loaders import JSONFileLoader

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", cache(JSONFileLoader.load_file))
        patch.setattr(JSONFileLoader, "__hash__", lambda self: 1, raising=False)
        patch.setattr(JSONFileLoader, "__eq__", lambda self, other: True, raising=False)
        yield


@pytest.fixture(scope="session")
def cloud_server() -> Iterator[Cloud]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    cloud = Cloud()
    server = make_server("127.0.0.1", 0, application(cloud), threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    cloud.endpoint = f"http://127.0.0.1:{server.server_port}"
    yield cloud
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cloud(cloud_server: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cloud]:
    """An empty account with a bucket; the working directory holds an alexmri.toml."""
    for name, value in {
        "AWS_ENDPOINT_URL": cloud_server.endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "very-secret-key",
        "AWS_DEFAULT_REGION": REGION,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("alexmri.aws.client.POLL_SECONDS", 0.01)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "alexmri.toml").write_text(CONFIG, encoding="utf-8")
    client("s3").create_bucket(Bucket=BUCKET)
    cloud_server.reset()
    cloud_server.answers["UpdateModelPackage"] = keep_metadata
    yield cloud_server
    beyond = list(cloud_server.beyond)
    cloud_server.reset()
    reset_moto(cloud_server.endpoint)
    assert beyond == []


@cache
def client(service: str) -> Any:
    """Return a client of the tests' own, made once: that takes as long as a test."""
    return boto3.client(service)


def keep_metadata(body: dict[str, Any]) -> Answer | None:
    """Have moto keep a version's metadata, which it forgets when the version is approved."""
    if "CustomerMetadataProperties" in body:
        return None
    name = body["ModelPackageArn"]
    known = client("sagemaker").describe_model_package(ModelPackageName=name)
    metadata = known.get("CustomerMetadataProperties", {})
    client("sagemaker").update_model_package(**body, CustomerMetadataProperties=metadata)
    return 200, {"ModelPackageArn": name}


def reset_moto(endpoint: str) -> None:
    import urllib.request

    request = urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")
    urllib.request.urlopen(request).read()


Run = Callable[..., Result]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `alexmri aws …` as a person would; what it raises for people is the error's text."""

    def call(*arguments: object, ok: bool = True, **more: Any) -> Result:
        result = CliRunner().invoke(cli, ["aws", *map(str, arguments)], **more)
        if ok:
            assert result.exit_code == 0, (result.output, result.exception)
        return result

    return call


def error_of(result: Result) -> str:
    """Return the sentence that `alexmri` would print for a mistake."""
    from alexmri.errors import UserError

    assert isinstance(result.exception, UserError), (result.output, result.exception)
    text = str(result.exception)
    assert "\n" not in text
    return text


@pytest.fixture
def image(cloud: Cloud) -> str:
    """An image in ECR, tagged with REVISION; return its name with its digest."""
    ecr = client("ecr")
    made = ecr.create_repository(repositoryName="alexmri", imageTagMutability="IMMUTABLE")
    layer = {"mediaType": "x", "size": 1, "digest": DIGEST}
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = {"schemaVersion": 2, "mediaType": kind, "config": layer, "layers": [layer]}
    put = ecr.put_image(
        repositoryName="alexmri", imageManifest=json.dumps(manifest), imageTag=REVISION
    )
    cloud.requests.clear()
    digest = put["image"]["imageId"]["imageDigest"]
    return f"{made['repository']['repositoryUri']}@{digest}"


def put(key: str, body: bytes | str) -> str:
    """Put an object into the bucket and return its address."""
    data = body.encode() if isinstance(body, str) else body
    client("s3").put_object(Bucket=BUCKET, Key=key, Body=data)
    return f"s3://{BUCKET}/{key}"


def keys(prefix: str = "") -> list[str]:
    found = client("s3").list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    return [each["Key"] for each in found.get("Contents", [])]


@pytest.fixture(scope="session")
def valid() -> Callable[[dict[str, Any]], None]:
    """Check a step of a plan against botocore's own model of the service."""
    from botocore import xform_name
    from botocore.validate import ParamValidator

    session, models = Session(), dict[str, Any]()

    def check(step: dict[str, Any]) -> None:
        name = step["service"]
        model = models.setdefault(name, session.get_service_model(name))
        operations = {xform_name(each): each for each in model.operation_names}
        shape = model.operation_model(operations[step["call"]]).input_shape
        request = dict(step["request"])
        if isinstance(request.get("PipelineDefinition"), dict):
            request["PipelineDefinition"] = json.dumps(request["PipelineDefinition"])
        report = ParamValidator().validate(request, shape)
        assert not report.has_errors(), report.generate_report()

    return check


@pytest.fixture
def here(cloud: Cloud) -> None:
    """moto knows no newer GPU than this one's."""
    text = Path("alexmri.toml").read_text()
    Path("alexmri.toml").write_text(f'{text}endpoint_gpu_instance = "ml.g4dn.xlarge"\n')


@pytest.fixture
def versions(cloud: Cloud, here: None, image: str, run: Run) -> None:
    """Three versions, of which the first two are approved."""
    from alexmri.aws.config import read_config
    from alexmri.aws.registry import facts_of
    from alexmri.aws.requests.registry import group_request, package_request

    from .test_registry import results_in, train

    config = read_config(None, {})
    client("sagemaker").create_model_package_group(**group_request(config))
    for number in (1, 2, 3):
        job = train(image, f"alexmri-{number}")
        described = client("sagemaker").describe_training_job(TrainingJobName=job)
        facts = facts_of(described, results_in(Path(f"results-{number}")))
        request = package_request(
            config,
            image=image,
            model=described["ModelArtifacts"]["S3ModelArtifacts"],
            statistics=None,
            metadata=facts | {"git_revision": REVISION},
        )
        status = "Approved" if number < 3 else "PendingManualApproval"
        client("sagemaker").create_model_package(**request | {"ModelApprovalStatus": status})
    cloud.requests.clear()


def updates(cloud: Cloud) -> None:
    """Stand in for UpdateEndpoint, which moto lacks, by what moto has."""
    sagemaker = client("sagemaker")

    def update(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        found = sagemaker.describe_endpoint(EndpointName=body["EndpointName"])
        tags = sagemaker.list_tags(ResourceArn=found["EndpointArn"])["Tags"]
        sagemaker.delete_endpoint(EndpointName=body["EndpointName"])
        sagemaker.create_endpoint(
            EndpointName=body["EndpointName"],
            EndpointConfigName=body["EndpointConfigName"],
            Tags=tags,
        )
        return 200, {"EndpointArn": found["EndpointArn"]}

    cloud.answers["UpdateEndpoint"] = update
