"""Fill in pages that need no network: the audit's and the report's."""

import re

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def page_templates(room: str = "data") -> Environment:
    """Return the templates of a room of the package, which may include `page.css`.

    What is put in is escaped, since names of folders and files are anybody's; a forgotten fact is
    an error.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("alexmri", room), PackageLoader("alexmri", "data")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    return environment


def breakable(name: str) -> Markup:
    """Let a name be broken where its parts meet, so that no letters fall off on a telephone."""
    return Markup("<wbr>").join(re.split(r"(?<=[a-z])(?=[A-Z])|(?<=[_/])", name))
