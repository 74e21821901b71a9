"""For all tests: hypothesis judges outcomes, not how long a loaded machine took for them."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("outcomes", deadline=None)
settings.load_profile("outcomes")
