"""A package that is not installed has no version, and stops nothing."""

import pytest

from alexmri.training import provenance
from alexmri.versions import installed_version


def test_a_missing_package_has_an_unknown_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "LIBRARIES", ("numpy", "nowhere"))
    versions = provenance.library_versions()
    assert versions["nowhere"] == "unknown"
    assert versions["numpy"] == installed_version("numpy") != "unknown"
