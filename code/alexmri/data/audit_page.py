"""Turn the findings of an audit into one HTML page with the pictures, that needs no network."""

import base64
import io

from alexmri.data.audit import Audit
from alexmri.data.decode import read_image
from alexmri.data.pages import page_templates

# Findings of a kind that are shown, pictures per finding, and the longer side of a picture.
SHOWN, PICTURES, THUMBNAIL = 40, 4, 176


def render_page(audit: Audit, *, title: str) -> str:
    """Return the page; file and class names are escaped, pictures of findings embedded."""

    def picture(name: str) -> str:
        found = read_image(audit.paths[name])
        if isinstance(found, str):
            return ""
        image = found[1]
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        image.save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()

    environment = page_templates()
    environment.filters["picture"] = picture
    return environment.get_template("audit.html").render(
        title=title, found=audit.document, shown=SHOWN, pictures=PICTURES
    )
