"""FastAPI on uvicorn, a forward pass per request, as its tutorials have it."""

import json

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from serve_model import SETTINGS, Model

model = Model()
app = FastAPI()


@app.post("/invocations")
async def invocations(request: Request) -> Response:
    image = await request.body()
    if SETTINGS["thread_pool"]:
        document = await run_in_threadpool(model.answer, image)
    else:
        document = model.answer(image)
    return Response(json.dumps(document), media_type="application/json")
