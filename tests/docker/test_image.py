"""The image itself, run by a real engine: what is in it, and what a platform does with it.

Needs an engine and the base image named by $BASE_IMAGE. Run with `pytest -m docker tests/docker`.
"""

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.docker
REPOSITORY = Path(__file__).parents[2]
