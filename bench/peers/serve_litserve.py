"""LitServe, batched or not: images are decoded and answered in its inference processes."""

import json
from typing import Annotated, Any

import litserve
from fastapi import Body, Response
from serve_model import SETTINGS, Model

Image = Annotated[bytes, Body(media_type="image/png")]


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = Model(self.max_batch_size)

    # The raw body of a request: half the bytes of LitServe's usual base64 in JSON.
    def decode_request(self, request: Image) -> Any:
        return self.model.decode(request)

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, inputs: Any) -> Any:
        return self.model.forward(inputs if self.max_batch_size > 1 else [inputs])

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    # A finished answer spares FastAPI's walk over every value of a plain one.
    def encode_response(self, output: Any) -> Response:
        document = output if self.max_batch_size > 1 else output[0]
        return Response(json.dumps(document), media_type="application/json")


if __name__ == "__main__":
    api = Api(
        max_batch_size=SETTINGS["batch"],
        batch_timeout=SETTINGS["batch_timeout"],
        api_path="/invocations",
    )
    workers, fast = SETTINGS["workers"], SETTINGS["fast_queue"]
    litserve.LitServer(api, accelerator="cpu", workers_per_device=workers, fast_queue=fast).run(
        host="127.0.0.1",
        port=SETTINGS["port"],
        num_api_servers=SETTINGS["api_servers"],
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
