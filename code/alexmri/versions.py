"""Say which version of a package is installed."""

from importlib import metadata


def installed_version(package: str) -> str:
    """Return the version of an installed package, or `unknown` where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
