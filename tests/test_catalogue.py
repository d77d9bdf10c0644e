"""The table of data sets against the numbers of papers and official code, and finding folders by name."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratfast import catalogue, config, protocol
from ratfast.errors import InputError

# Totals as papers print them (DomainBed's and those after it), and the number of classes.
TOTALS = {
    "PACS": (9991, 7),
    "VLCS": (10729, 5),
    "OfficeHome": (15588, 65),
    "TerraIncognita": (24330, 10),
    "DomainNet": (586575, 345),
    "RotatedMNIST": (70000, 10),
    "ColoredMNIST": (70000, 2),
}
# The official code's domains are the first letters, in order.
INITIALS = {
    "VLCS": "C L S V",
    "PACS": "A C P S",
    "DomainNet": "clip info paint quick real sketch",
    "OfficeHome": "A C P R",
    "TerraIncognita": "location_100 location_38 location_43 location_46",
    "SVIRO": "aclass escape hilux i3 lexus tesla tiguan tucson x5 zoe",
    "RotatedMNIST": "0 15 30 45 60 75",
}


@pytest.mark.parametrize("name", TOTALS)
def test_published_numbers(name):
    entry = catalogue.find(name)
    assert (entry.images, entry.class_count) == TOTALS[name]


def test_older_terra_incognita_and_domain_net_as_it_is_downloaded():
    assert catalogue.find("TerraIncognita").editions[1].total == 24788
    assert catalogue.find("DomainNet").editions[1].total == 596006
    entry = catalogue.find("TerraIncognita")
    assert entry.edition([4741, 9736, 3970, 5883]) is entry.editions[0]
    assert entry.edition([4879, 9767, 4020, 6122]).name == "the download of older papers"
    assert entry.edition([1, 2, 3, 4]) is None


@pytest.mark.parametrize("name", INITIALS)
def test_domains_are_the_official_codes(name):
    initials = INITIALS[name].split()
    domains = catalogue.find(name).domains
    assert len(domains) == len(initials)
    for domain, initial in zip(domains, initials, strict=True):
        assert domain.lower().startswith(initial.lower())


@pytest.mark.parametrize("entry", catalogue.CATALOGUE, ids=lambda entry: entry.name)
def test_entries_hold_together(entry):
    assert list(entry.domains) == sorted(set(entry.domains))
    assert list(entry.classes) == sorted(set(entry.classes))
    assert not entry.classes or len(entry.classes) == entry.class_count
    assert all(len(edition.images) == len(entry.domains) for edition in entry.editions)
    assert protocol.training_steps(entry.name) == protocol.training_steps(entry.folder) == entry.steps
    assert protocol.evaluation_interval(entry.folder) == entry.interval


def test_the_papers_five():
    assert {entry.name for entry in catalogue.CATALOGUE if entry.paper} == {
        *("PACS", "VLCS", "OfficeHome", "TerraIncognita", "DomainNet")
    }
    assert protocol.evaluation_interval("SVIRO") == 300


def test_any_other_data_set_has_the_defaults():
    assert (protocol.training_steps("Mine"), protocol.evaluation_interval("Mine")) == (5001, 100)


@given(st.text(max_size=12))
def test_any_name_is_either_known_or_kept(name):
    entry = catalogue.find(name)
    assert catalogue.canonical_name(name) == (name if entry is None else entry.name)


@pytest.mark.parametrize("spelling", ["OfficeHome", "office_home", "Office-Home", "OFFICEHOME"])
@pytest.mark.parametrize("folder", ["office_home", "OfficeHome", "office-home"])
def test_every_spelling_finds_every_folder(tmp_path, spelling, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / "PACS").mkdir()
    assert catalogue.find_folder(tmp_path, spelling) == tmp_path / folder


def test_a_folder_that_is_not_there_is_expected_under_domainbeds_name(tmp_path):
    assert catalogue.find_folder(tmp_path, "TerraIncognita") == tmp_path / "terra_incognita"
    assert catalogue.find_folder(tmp_path / "nowhere", "PACS") == tmp_path / "nowhere" / "PACS"
    (tmp_path / "PACS").write_text("a file")
    assert catalogue.find_folder(tmp_path, "pacs") == tmp_path / "PACS"


def test_other_names_are_folders_as_they_are(tmp_path):
    (tmp_path / "Mine").mkdir()
    assert catalogue.find_folder(tmp_path, "Mine") == tmp_path / "Mine"
    assert catalogue.find_folder(tmp_path, "mine") == tmp_path / "mine"


def test_two_folders_of_one_data_set(tmp_path):
    (tmp_path / "office_home").mkdir()
    (tmp_path / "OfficeHome").symlink_to(tmp_path / "office_home")
    assert catalogue.find_folder(tmp_path, "OfficeHome").name == "OfficeHome"
    (tmp_path / "Office-Home").mkdir()
    with pytest.raises(InputError, match="OfficeHome has two folders"):
        catalogue.find_folder(tmp_path, "OfficeHome")


def test_a_recipe_has_the_names_that_seed_the_runs():
    recipe = config.from_dict({"data": {"target": "office_home", "aux": ["domain_net", "Mine", "pacs"]}})
    assert (recipe.data.target, recipe.data.aux) == ("OfficeHome", ("DomainNet", "Mine", "PACS"))
    with pytest.raises(InputError, match="names the target"):
        config.from_dict({"data": {"target": "PACS", "aux": ["pacs"]}})


def test_the_module_needs_the_standard_library_alone():
    tree = ast.parse(Path(catalogue.__file__).read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"__future__", "collections.abc", "dataclasses", "pathlib", "ratfast.errors"}
