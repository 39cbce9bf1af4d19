from __future__ import annotations

from headrace.domain.catalog import Endpoint, Key, Route, Target
from headrace.ports.catalogue import Entry
from headrace.router.configured import ConfiguredCatalogue, NoRegistry
from tests.support.router_fakes import AT, FakeCatalogue, endpoint

OF_SETTINGS = Route(
    tenant="default", name="r", targets=(Target(model="m"),), created_at=AT, updated_at=AT
)


def configured(registry: FakeCatalogue | NoRegistry, *endpoints: Endpoint) -> ConfiguredCatalogue:
    return ConfiguredCatalogue(registry, endpoints=endpoints, routes=[OF_SETTINGS])


def test_a_route_of_the_settings_is_every_tenants() -> None:
    catalogue = configured(NoRegistry())
    assert catalogue.entry(("blue", "r")) == Entry(route=OF_SETTINGS)
    assert catalogue.entry(("blue", "other")) is None
    assert list(catalogue.names()) == [("default", "r")]


def test_what_a_tenant_has_registered_itself_goes_before() -> None:
    registry = FakeCatalogue()
    own = registry.entries["blue", "r"] = Entry(aliases={"champion": "1"})
    catalogue = configured(registry)
    assert catalogue.entry(("blue", "r")) is own
    assert catalogue.entry(("green", "r")) == Entry(route=OF_SETTINGS)
    assert sorted(catalogue.names()) == [("blue", "r"), ("default", "r")]


def test_a_name_that_the_registry_has_too_is_told_once() -> None:
    registry = FakeCatalogue()
    registry.entries["default", "r"] = Entry()
    assert list(configured(registry).names()) == [("default", "r")]


def test_of_two_endpoints_with_one_name_the_settings_one_is_obeyed() -> None:
    registry = FakeCatalogue()
    registered, set_, off = endpoint(0), endpoint(0, weight=2.0), endpoint(1, enabled=False)
    registry.endpoints[registered.key] = registered
    found = configured(registry, set_, off).every_endpoint()
    assert {each.key: each for each in found} == {set_.key: set_}


def test_changes_of_the_registry_are_heard() -> None:
    registry, heard = FakeCatalogue(), list[frozenset[tuple[str, Key]]]()
    configured(registry).on_change(heard.append)
    registry.changed(("route", ("blue", "r")))
    assert heard == [{("route", ("blue", "r"))}]


def test_the_registrys_trouble_is_told() -> None:
    registry = FakeCatalogue()
    registry.problem = "the store cannot be read"
    catalogue = configured(registry)
    assert (catalogue.problem, catalogue.revision) == ("the store cannot be read", 1)
