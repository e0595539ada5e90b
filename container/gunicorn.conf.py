"""What `serve` gives to gunicorn; `alexmri serve` uses the same values."""

from alexmri.serving.gunicorn_conf import *  # noqa: F403
