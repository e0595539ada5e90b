"""Endpoints: made, updated with a way back, asked, traced, removed."""

import json
from pathlib import Path

import pytest

from .conftest import BUCKET, REVISION, Cloud, Run, client, error_of, put, updates
from .test_registry import DATA, FINGERPRINT, train

AMI = "al2023-ami-sagemaker-inference-gpu-4-1"


def test_the_newest_approved_version_serves(cloud: Cloud, versions: None, run: Run) -> None:
    done = run("--data-capture-percent", "10", "deploy", "--gpu")
    (model,) = cloud.sent("CreateModel")
    assert model["PrimaryContainer"]["ModelPackageName"].endswith(":model-package/alexmri/2")
    (settings,) = cloud.sent("CreateEndpointConfig")
    (variant,) = settings["ProductionVariants"]
    assert variant["ModelName"] == model["ModelName"]
    assert variant["InstanceType"] == "ml.g4dn.xlarge"
    assert "alexmri runs on 1 x ml.g4dn.xlarge, each paid by the hour" in done.stdout
    # The driver that CUDA 13 needs; without it the container ends without a line.
    assert variant["InferenceAmiVersion"] == AMI
    assert variant["ContainerStartupHealthCheckTimeoutInSeconds"] == 900
    assert variant["ModelDataDownloadTimeoutInSeconds"] == 900
    capture = settings["DataCaptureConfig"]
    assert capture["InitialSamplingPercentage"] == 10
    assert capture["DestinationS3Uri"] == f"s3://{BUCKET}/alexmri/capture/alexmri"
    alarms = client("cloudwatch").describe_alarms()["MetricAlarms"]
    assert {alarm["AlarmName"] for alarm in alarms} == {
        "alexmri-alexmri-5xx",
        "alexmri-alexmri-latency",
    }
    assert {alarm["MetricName"] for alarm in alarms} == {"Invocation5XXErrors", "ModelLatency"}
    assert "alexmri serves. To end its costs: alexmri aws delete alexmri" in done.stdout
    # Again: nothing.
    cloud.requests.clear()
    again = run("--data-capture-percent", "10", "deploy", "--gpu")
    assert "serves version 2 already" in again.stdout
    assert not [each for each in cloud.targets() if each.startswith(("Create", "Update", "Put"))]


def test_the_default_is_a_cpu_and_what_is_paid_for_is_said_first(
    cloud: Cloud, versions: None, run: Run
) -> None:
    cloud.refuse("CreateModel", "AccessDeniedException")
    refused = run("deploy", ok=False)
    assert (
        "alexmri runs on 1 x ml.m5.large, each paid by the hour"
        " (https://aws.amazon.com/sagemaker/ai/pricing/ has the price), with requests or without"
    ) in refused.stdout
    cloud.answers.pop("CreateModel")
    run("deploy")
    (settings,) = cloud.sent("CreateEndpointConfig")
    (variant,) = settings["ProductionVariants"]
    assert variant["InstanceType"] == "ml.m5.large"
    assert "InferenceAmiVersion" not in variant
    assert "DataCaptureConfig" not in settings
    many = ("--endpoint-instance", "ml.m5.4xlarge", "--endpoint-instances", "2")
    done = run(*many, "deploy", "--endpoint", "alexmri-2")
    assert "2 x ml.m5.4xlarge, each paid by the hour" in done.stdout


def product(usage: str, usd: str) -> str:
    """Return a product of AWS's price list, as far as it matters."""
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": usd}}
    terms = {"OnDemand": {"SKU.T": {"priceDimensions": {"SKU.T.D": dimension}}}}
    return json.dumps({"product": {"attributes": {"usagetype": usage}}, "terms": terms})


def test_the_price_of_an_hour_is_that_of_the_price_list(
    cloud: Cloud, versions: None, run: Run
) -> None:
    listed = [product("USE1-Train:ml.m5.large", "9"), product("USE1-Host:ml.m5.large", "0.115")]
    cloud.answer("GetProducts", {"PriceList": listed})
    cloud.refuse("CreateModel", "AccessDeniedException")
    refused = run("deploy", ok=False)
    assert "1 x ml.m5.large, each 0.115 USD an hour, with requests or without" in refused.stdout
    (asked,) = cloud.sent("GetProducts")
    assert {each["Field"]: each["Value"] for each in asked["Filters"]} == {
        "regionCode": "us-east-1",
        "instanceName": "ml.m5.large",
    }
    # Two prices, or none that can be read: none is named.
    for other in ([*listed, product("USE1-Host:ml.m5.large", "0.2")], ["{}"], []):
        cloud.answer("GetProducts", {"PriceList": other})
        assert "each paid by the hour (https" in run("deploy", ok=False).stdout


def test_an_update_has_a_way_back(cloud: Cloud, versions: None, run: Run) -> None:
    updates(cloud)
    run("deploy", "1")
    run("deploy", "2")
    (request,) = cloud.sent("UpdateEndpoint")
    first, second = (each["EndpointConfigName"] for each in cloud.sent("CreateEndpointConfig"))
    assert request["EndpointConfigName"] == second
    deployment = request["DeploymentConfig"]
    assert deployment["AutoRollbackConfiguration"] == {
        "Alarms": [{"AlarmName": "alexmri-alexmri-5xx"}, {"AlarmName": "alexmri-alexmri-latency"}]
    }
    assert deployment["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]["Type"] == (
        "ALL_AT_ONCE"
    )
    assert f"goes back from {second} to {first}" in run("rollback").stdout
    # Again: the version that was bad stays away.
    assert f"went back from {second} to {first} already" in run("rollback").stdout
    assert len(cloud.sent("UpdateEndpoint")) == 2
    assert len(cloud.sent("CreateEndpointConfig")) == 2
    # A deployment of either is a new start.
    run("deploy", "2")
    run("deploy", "1")
    assert f"goes back from {first} to {second}" in run("rollback").stdout


@pytest.mark.parametrize("command", ["deploy", "rollback"])
def test_after_ctrl_c_the_same_command_waits_again(
    cloud: Cloud, versions: None, run: Run, command: str
) -> None:
    """While an update is in progress DescribeEndpoint tells where it leads."""
    updates(cloud)
    run("deploy", "1")
    run("deploy", "2")
    first, second = (each["EndpointConfigName"] for each in cloud.sent("CreateEndpointConfig"))
    if command == "deploy":
        run("deploy", "1")
    sagemaker = client("sagemaker")
    before = sagemaker.describe_endpoint(EndpointName="alexmri")
    after = {key: value for key, value in before.items() if isinstance(value, str)}
    target = second if command == "deploy" else first
    arguments = ("deploy", "2") if command == "deploy" else ("rollback",)
    cloud.answer("UpdateEndpoint", {"EndpointArn": before["EndpointArn"]})
    run(*arguments, "--detach")
    updating = after | {
        "EndpointStatus": "Updating",
        "PendingDeploymentSummary": {"EndpointConfigName": target},
    }
    cloud.answer("DescribeEndpoint", updating, updating, after | {"EndpointConfigName": target})
    sent = len(cloud.sent("UpdateEndpoint"))
    assert "alexmri serves. To end its costs" in run(*arguments).stdout
    assert len(cloud.sent("UpdateEndpoint")) == sent


def test_an_update_that_alarms_undid_is_told(cloud: Cloud, versions: None, run: Run) -> None:
    run("deploy", "1")
    # It rolls back: in the end the endpoint serves what it served.
    cloud.answer(
        "UpdateEndpoint", {"EndpointArn": "arn:aws:sagemaker:us-east-1:1:endpoint/alexmri"}
    )
    told = error_of(run("deploy", "2", ok=False))
    assert told.startswith("alexmri serves what it served before: the update was undone")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("deploy", "3"), "version 3 is PendingManualApproval; `alexmri aws approve 3`"),
        (("deploy", "9"), "there is no version 9 of alexmri; `alexmri aws versions` lists"),
        (("rollback",), "there is no endpoint alexmri in us-east-1; `alexmri aws deploy`"),
        (("trace", "alexmri"), "there is no endpoint alexmri in us-east-1"),
        (
            ("--cuda", "cu118", "deploy", "1", "--gpu"),
            "option --cuda is 'cu118': input should be 'cpu', 'cu126' or 'cu130'",
        ),
    ],
)
def test_a_mistake_is_one_sentence(
    cloud: Cloud, versions: None, run: Run, arguments: tuple[str, ...], words: str
) -> None:
    assert words in error_of(run(*arguments, ok=False))
    assert not [each for each in cloud.targets() if each.startswith("Create")]


def test_unapproved_only_when_told(cloud: Cloud, versions: None, run: Run) -> None:
    run("deploy", "3", "--unapproved", "--detach")
    (model,) = cloud.sent("CreateModel")
    assert model["PrimaryContainer"]["ModelPackageName"].endswith("/3")


def test_nothing_approved_nothing_deployed(cloud: Cloud, here: None, image: str, run: Run) -> None:
    run("register", train(image))
    assert "alexmri has no approved version; " in error_of(run("deploy", ok=False))


def test_an_endpoint_that_changes_is_left_alone(cloud: Cloud, versions: None, run: Run) -> None:
    state = {
        "EndpointName": "alexmri",
        "EndpointArn": "arn:aws:sagemaker:us-east-1:1:endpoint/alexmri",
        "EndpointConfigName": "c",
        "EndpointStatus": "Updating",
    }
    cloud.answer("DescribeEndpoint", state)
    for command in ("deploy", "rollback"):
        told = error_of(run(command, ok=False))
        assert told.startswith(
            "alexmri is Updating and cannot be changed now; run the same command"
        )


def test_a_failed_endpoint_says_why(cloud: Cloud, versions: None, run: Run) -> None:
    run("deploy", "1", "--detach")
    found = client("sagemaker").describe_endpoint(EndpointName="alexmri")
    state = {key: value for key, value in found.items() if isinstance(value, str)}
    failed = state | {"EndpointStatus": "Failed", "FailureReason": "no ping"}
    creating = state | {"EndpointStatus": "Creating"}
    cloud.answer("DescribeEndpoint", creating, creating, failed)
    told = error_of(run("deploy", "1", ok=False))
    assert told == "alexmri is Failed: no ping"
    told = error_of(run("deploy", "1", ok=False))
    assert told.startswith("alexmri has failed (no ping) and cannot be updated; remove it with")


def test_invoke_prints_an_answer_for_each_file(cloud: Cloud, versions: None, run: Run) -> None:
    run("deploy", "1", "--detach")
    for name in ("a.png", "b.JPG"):
        Path(name).write_bytes(b"picture")
    cloud.requests.clear()
    printed = [json.loads(line) for line in run("invoke", "a.png", "b.JPG").stdout.splitlines()]
    assert [each["file"] for each in printed] == ["a.png", "b.JPG"]
    # What moto answers.
    assert printed[0]["answer"] == "body"
    asked = [each for each in cloud.requests if "invocations" in each.target]
    assert [each.size for each in asked] == [7, 7]
    assert "has a type that the endpoint does not take" in error_of(
        run("invoke", "alexmri.toml", ok=False)
    )


def test_transform_asks_about_a_prefix_once(cloud: Cloud, versions: None, run: Run) -> None:
    told = error_of(run("transform", f"s3://{BUCKET}/pictures", ok=False))
    assert "there is nothing at" in told
    put("pictures/a.png", b"x")
    command = ("transform", f"s3://{BUCKET}/pictures", "--content-type", "image/png")
    cloud.requests.clear()
    done = run(*command)
    (request,) = cloud.sent("CreateTransformJob")
    assert request["BatchStrategy"] == "SingleRecord"
    assert request["TransformInput"]["ContentType"] == "image/png"
    assert request["TransformInput"]["SplitType"] == "None"
    assert request["ModelName"] == cloud.sent("CreateModel")[0]["ModelName"]
    answers = f"s3://{BUCKET}/alexmri/transform/{request['TransformJobName']}"
    assert f"answers: {answers}" in done.stdout
    run(*command)
    assert len(cloud.sent("CreateTransformJob")) == 1


@pytest.mark.parametrize(
    ("cuda", "instance"), [("cu126", "p3"), ("cu130", "g4dn"), ("cu130", "g5")]
)
def test_a_transform_on_a_gpu_gets_the_newest_driver_and_is_marked_untried(
    cloud: Cloud, versions: None, run: Run, cuda: str, instance: str
) -> None:
    put("pictures/a.png", b"x")
    name_cuda_of_versions(cuda)
    instance = f"ml.{instance}.2xlarge"
    done = run("--transform-instance", instance, "transform", f"s3://{BUCKET}/pictures")
    assert f"a batch transform on a GPU with {cuda} is not tested yet" in done.stdout
    (request,) = cloud.sent("CreateTransformJob")
    assert request["TransformResources"] == {
        "InstanceType": instance,
        "InstanceCount": 1,
        "TransformAmiVersion": "al2-ami-sagemaker-batch-gpu-535",
    }


def test_a_transform_without_a_driver_is_refused(cloud: Cloud, versions: None, run: Run) -> None:
    put("pictures/a.png", b"x")
    command = ("transform", f"s3://{BUCKET}/pictures")
    wrong = run("--transform-instance", "ml.p4d.24xlarge", *command, ok=False)
    assert "has no driver for an image of CUDA 13 (cu130) in a batch transform" in error_of(wrong)
    assert not [each for each in cloud.targets() if each.startswith("Create")]


def name_cuda_of_versions(cuda: str) -> None:
    """Register the versions anew as made of images for `cuda`."""
    sagemaker = client("sagemaker")
    tag = REVISION if cuda == "cu130" else f"{REVISION}-{cuda}"
    for each in sagemaker.list_model_packages(ModelPackageGroupName="alexmri")[
        "ModelPackageSummaryList"
    ]:
        arn = each["ModelPackageArn"]
        known = sagemaker.describe_model_package(ModelPackageName=arn)
        metadata = known["CustomerMetadataProperties"] | {"git_revision": tag}
        sagemaker.update_model_package(
            ModelPackageArn=arn,
            CustomerMetadataProperties=metadata,
            ModelApprovalStatus=known["ModelApprovalStatus"],
        )


def test_the_driver_is_that_of_the_cuda_of_the_version(
    cloud: Cloud, versions: None, run: Run
) -> None:
    """An image for CUDA 12 stays in Creating on the driver for CUDA 13."""
    name_cuda_of_versions("cu126")
    run("deploy", "1", "--gpu", "--detach")
    (settings,) = cloud.sent("CreateEndpointConfig")
    (variant,) = settings["ProductionVariants"]
    assert variant["InferenceAmiVersion"] == "al2-ami-sagemaker-inference-gpu-3-1"


def test_delete_lists_what_costs_and_removes_all_of_it(
    cloud: Cloud, versions: None, run: Run
) -> None:
    updates(cloud)
    run("deploy", "1")
    run("deploy", "2")
    run("deploy", "1", "--endpoint", "alexmri-other", "--detach")
    sagemaker = client("sagemaker")
    refused = run("delete", "alexmri", input="n\n", ok=False)
    assert refused.exit_code == 1
    assert "endpoint alexmri: 1 x ml.m5.large by the hour" in refused.stdout
    assert len(sagemaker.list_endpoints()["Endpoints"]) == 2
    done = run("delete", "alexmri", "--yes")
    # The other endpoint serves the model of version 1, which stays.
    assert done.stdout.count("removed ") == 5
    (model,) = sagemaker.list_models()["Models"]
    name = sagemaker.describe_endpoint(EndpointName="alexmri-other")["EndpointConfigName"]
    served = sagemaker.describe_endpoint_config(EndpointConfigName=name)
    assert served["ProductionVariants"][0]["ModelName"] == model["ModelName"]
    assert f"what remains: s3://{BUCKET}/alexmri/capture/alexmri" in done.stdout
    (left,) = sagemaker.list_endpoints()["Endpoints"]
    assert left["EndpointName"] == "alexmri-other"
    (settings,) = sagemaker.list_endpoint_configs()["EndpointConfigs"]
    assert settings["EndpointConfigName"].startswith("alexmri-other-")
    alarms = client("cloudwatch").describe_alarms()["MetricAlarms"]
    assert {each["AlarmName"].rpartition("-")[0] for each in alarms} == {"alexmri-alexmri-other"}
    assert (
        run("delete", "alexmri", "--yes").stdout == "alexmri does not exist, and nothing"
        " of it is left\n"
    )


@pytest.mark.parametrize(
    "cut", ["DeleteEndpoint", "DeleteAlarms", "DeleteModel", "DeleteEndpointConfig"]
)
def test_a_removal_that_was_cut_off_goes_on(
    cloud: Cloud, versions: None, run: Run, cut: str
) -> None:
    run("deploy", "1", "--detach")
    if cut == "DeleteAlarms":
        refused = "<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>"
        cloud.texts[cut] = 403, refused
    else:
        cloud.refuse(cut, "AccessDeniedException")
    assert "do not allow" in error_of(run("delete", "alexmri", "--yes", ok=False))
    cloud.texts.clear()
    cloud.answers.pop(cut, None)
    run("delete", "alexmri", "--yes")
    sagemaker = client("sagemaker")
    assert sagemaker.list_endpoints()["Endpoints"] == []
    assert sagemaker.list_models()["Models"] == []
    assert sagemaker.list_endpoint_configs()["EndpointConfigs"] == []
    assert client("cloudwatch").describe_alarms()["MetricAlarms"] == []


# --- trace


def test_from_an_endpoint_to_the_data_in_one_command(
    cloud: Cloud, versions: None, image: str, run: Run
) -> None:
    run("deploy", "1", "--detach")
    found = json.loads(run("trace", "alexmri", "--json").stdout)
    assert found["image_digest"] == image.partition("@")[2]
    assert found["git_revision"] == REVISION
    assert found["data_fingerprint"] == FINGERPRINT
    assert found["data"] == DATA
    assert found["data_upload"] == "0123456789abcdef"
    assert found["training_job"] == "alexmri-1"
    assert found["version"].endswith("model-package/alexmri/1 (Approved)")
    assert found["test_macro_f1"] == "0.9000 from 0.8800 to 0.9200"
    assert found["doubts"] == {}
    lines = run("trace", "alexmri").stdout.splitlines()
    assert f"git revision            {REVISION}" in lines


def test_a_link_that_does_not_hold_is_said(
    cloud: Cloud, versions: None, image: str, run: Run
) -> None:
    run("deploy", "1", "--detach")
    run("reject", "1")
    client("ecr").batch_delete_image(
        repositoryName="alexmri", imageIds=[{"imageDigest": image.partition("@")[2]}]
    )
    result = run("trace", "alexmri", ok=False)
    assert result.exit_code == 1
    assert "! it serves, but is Rejected" in result.stdout
    assert "! the image is gone from ECR: only the registry tells it" in result.stdout
