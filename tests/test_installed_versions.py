"""A package that is not installed has no version, and stops nothing."""

import pytest

from alexmri.contract.resources import installed_version
from alexmri.training import provenance


def test_a_missing_package_has_an_unknown_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "LIBRARIES", ("numpy", "nowhere"))
    versions = provenance.library_versions()
    assert versions["nowhere"] == "unknown"
    assert versions["numpy"] == installed_version("numpy") != "unknown"
