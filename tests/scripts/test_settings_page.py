"""scripts/build_settings_page.py: the page of all settings is up to date, and every key has a text."""

import build_settings_page
import pytest

from lab_utils import WorkshopError


def test_the_page_is_up_to_date():
    build_settings_page.main(["--check"])


def test_a_key_without_a_text_is_an_error(monkeypatch):
    monkeypatch.delitem(build_settings_page.TEXTS, "beta")
    monkeypatch.setitem(build_settings_page.TEXTS, "betta", {"meaning": "", "from": ""})
    with pytest.raises(WorkshopError, match="beta, betta. Correct scripts/settings.yaml"):
        build_settings_page.page()
