"""Plain Flask, a forward pass per request."""

from flask import Flask, Response, jsonify, request
from serve_model import Model

model = Model()
app = Flask(__name__)


@app.post("/invocations")
def invocations() -> Response:
    return jsonify(model.answer(request.get_data()))
