"""Fixtures: the guests (booted once, clean for every test) and the product (one store a module, proved at its end).

A scenario that cannot run fails; nothing here skips.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from integration import image
from integration.guest import Guest, GuestError
from integration.initiator import Initiator
from integration.product import Product

TEST_LIMIT = 600  # seconds; the first test of a fresh machine builds the image
NAMES = ("a", "b")
IQN = "iqn.2026-01.example.blockyard:host-{}"

_guests = pytest.StashKey[dict[str, Guest]]()
_products = pytest.StashKey[list[Product]]()
_remarks = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_guests] = {}
    config.stash[_products] = []
    config.stash[_remarks] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_LIMIT))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what the machines and the daemon said."""
    report = yield
    if report.failed:
        ends = [(product.log, product.log_tail()) for product in item.config.stash[_products]]
        ends += [(guest.console_log, guest.console_tail()) for guest in item.config.stash[_guests].values()]
        report.sections += [(f"{path}, its end", text) for path, text in ends if text]
    return report


# Guests


@pytest.fixture(scope="session")
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Guest]]:
    """All guests, off; those that the selected tests want are turned on, the first one ahead of the second."""
    folder = tmp_path_factory.mktemp("guests")
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():  # a build takes a minute: its progress is shown at once
        made = image.get()
    guests = request.config.stash[_guests]
    for name in NAMES:
        guests[name] = Guest(made, name, IQN.format(name), folder)
    wanted = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    with ExitStack() as stack:
        for name, guest in guests.items():
            stack.callback(guest.power_off_hard)
            if f"guest_{name}" in wanted:
                guest.power_on()
                if name == NAMES[0]:
                    guest.wait_until_ready()
        yield guests


@pytest.fixture
def guest_a(fleet: dict[str, Guest]) -> Iterator[Guest]:
    """The first host: on, clean, and clean again after the test."""
    yield from _clean(fleet["a"])


@pytest.fixture
def guest_b(fleet: dict[str, Guest]) -> Iterator[Guest]:
    """The second host, another initiator."""
    yield from _clean(fleet["b"])


def _clean(guest: Guest) -> Iterator[Guest]:
    if not guest.on:  # the test before took its power
        guest.power_off_hard()
        guest.power_on()
    guest.wait_until_ready()
    yield guest
    if guest.on:
        try:
            Initiator(guest, "").reset()
        except (GuestError, AssertionError):
            guest.power_off_hard()
            raise


# The product


@pytest.fixture(scope="module")
def serve(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Product]]:
    """Starts products; at the end of the module each must stop in time and leave a store that its check approves."""
    started = request.config.stash[_products]

    def start(**options: str | None) -> Product:
        product = Product(tmp_path_factory.mktemp("product"), **options)
        started.append(product)
        product.start()
        return product

    yield start
    while started:
        product = started[-1]
        try:
            if product.running:
                product.stop()
            product.check()
        finally:
            started.remove(product)
            product.clean_up()


@pytest.fixture(scope="module")
def module_target(serve: Callable[..., Product]) -> Product:
    """One product and store for all tests of a file."""
    return serve()


@pytest.fixture
def target(module_target: Product) -> Iterator[Product]:
    """A running product whose portal guests can reach. One that a failed test left stopped is started again, so that
    guests can log out and the file's other tests are judged by themselves."""
    yield module_target
    if not module_target.running:
        module_target.clean_up()
        module_target.start()


@pytest.fixture
def host_a(guest_a: Guest, target: Product) -> Initiator:
    """The first host in front of the target."""
    return Initiator(guest_a, target.portal)


@pytest.fixture
def host_b(guest_b: Guest, target: Product) -> Initiator:
    """The second host in front of the target."""
    return Initiator(guest_b, target.portal)


# The report


@pytest.fixture
def remark(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Say something at the end of the run that a passed test would otherwise keep to itself."""
    return request.config.stash[_remarks].append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[_remarks]:
        terminalreporter.section("remarks of passed tests")
        for line in config.stash[_remarks]:
            terminalreporter.line(line)
