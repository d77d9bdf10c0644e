import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratfast import config
from ratfast.errors import InputError

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
COUNT = st.integers(1, 2**31 - 1)
NAMES = st.lists(TEXT, max_size=4, unique=True)


def optional(strategy):
    return st.none() | strategy


def between(low, high, **keywords):
    return st.floats(low, high, allow_nan=False, **keywords)


@st.composite
def recipes(draw):
    steps = draw(st.integers(2, 10_000))
    return config.Recipe(
        data=config.Data(
            dir=draw(optional(TEXT)),
            test_env=draw(optional(TEXT | st.integers(0, 100))),
            aux=tuple(draw(NAMES)),
            holdout_fraction=draw(between(0, 1, exclude_min=True, exclude_max=True)),
            backend=draw(st.sampled_from(["auto", "dali", "torchvision"])),
            image_size=draw(st.integers(8, 8192)),
        ),
        model=config.Model(
            backbone=draw(st.sampled_from(["resnet18", "resnet50", "efficientnet_lite0"])),
            weights=draw(TEXT),
            aux_weights=tuple(draw(NAMES)),
        ),
        protocol=config.Protocol(
            name=draw(st.sampled_from(["ratfast", "official"])),
            validation_images=draw(st.sampled_from([None, "plain", "augmented"])),
            evaluated=draw(st.sampled_from([None, "validation", "all"])),
        ),
        train=config.Train(
            rows=tuple(draw(st.lists(st.sampled_from([*config.schema.ROWS, "all"]), min_size=1, max_size=4))),
            batch_size=draw(COUNT),
            steps=steps,
            eval_every=draw(optional(COUNT)),
            probe_steps=draw(optional(st.integers(0, steps - 1))),
            lr_scale=draw(between(0, 1e6, exclude_min=True)),
            runs=draw(COUNT),
            device=draw(st.sampled_from(["auto", "cpu", "cuda", "cuda:1"])),
            threads=draw(optional(st.integers(1, 1024))),
        ),
        hparams=config.HParams(
            lr=draw(optional(between(0, 1, exclude_min=True))),
            weight_decay=draw(optional(between(0, 1))),
            dropout=draw(optional(between(0, 1, exclude_max=True))),
        ),
        output=config.Output(dir=draw(TEXT), store=draw(optional(TEXT.map("s3://bucket/{}".format)))),
    )


@given(recipes())
def test_a_recipe_survives_toml_and_dict(tmp_path_factory, recipe):
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    again = config.load(path)
    assert again == recipe
    assert again.to_toml() == recipe.to_toml()
    assert config.from_dict(recipe.to_dict()) == recipe
    assert config.validated(recipe) == recipe
    assert config.differences(again, recipe) == []


@given(recipes())
def test_every_value_survives_as_an_override(recipe):
    for section, fields in recipe.to_dict().items():
        for name, value in fields.items():
            if isinstance(value, str | list):
                text = "[" + ", ".join(map(quoted, value)) + "]" if isinstance(value, list) else quoted(value)
            else:
                text = repr(value)
            expected = tuple(value) if isinstance(value, list) else value
            assert config.parse_override(f"{section}.{name}={text}") == (f"{section}.{name}", expected)


def quoted(text: str) -> str:
    return '"' + "".join(f"\\U{ord(c):08x}" for c in text) + '"'


def test_defaults_are_the_papers():
    recipe = config.Recipe()
    assert (recipe.model.backbone, recipe.model.weights) == ("resnet50", "default")
    assert (recipe.train.batch_size, recipe.train.steps, recipe.train.runs, recipe.train.trials) == (
        32,
        None,  # the data set's own
        20,
        1,
    )
    assert (recipe.data.holdout_fraction, recipe.data.image_size) == (0.2, 224)
    assert config.from_dict({}) == recipe


def test_all_structs_forbid_unknown_fields_and_are_frozen():
    for struct in (config.Recipe, *config.values.SECTIONS.values()):
        assert struct.__struct_config__.forbid_unknown_fields
        assert struct.__struct_config__.frozen
    with pytest.raises(AttributeError):
        config.Recipe().train.steps = 3


def test_file_and_overrides(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[data]\ntarget = "PACS"\naux = ["VLCS"]\n[train]\nsteps = 10\nlr_scale = 2\n')
    recipe = config.load(path, ["train.steps=20", "train.steps = 30", "data.aux=VLCS, OfficeHome"])
    assert recipe.train.steps == 30
    assert recipe.train.lr_scale == 2.0
    assert recipe.data.aux == ("VLCS", "OfficeHome")
    assert config.differences(recipe, config.load(path)) == ["data.aux", "train.steps"]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("output.dir=2024", "2024"),
        ("output.dir=2024-01-31", "2024-01-31"),
        ("output.dir=a=b", "a=b"),
        ("output.dir='x y'", "x y"),
        ("data.test_env=2", 2),
        ("data.test_env=sketch", "sketch"),
        ('data.test_env="2"', "2"),
        ("data.aux=A,B", ("A", "B")),
        ('data.aux=["A,B"]', ("A,B",)),
        ("data.aux=7", ("7",)),
        ("data.aux=", ()),
        ("hparams.lr=1e-4", 1e-4),
        ("hparams.weight_decay=0", 0.0),
        ('output.dir=x"\nsteps=1', 'x"\nsteps=1'),
        ("output.dir=1\nother=2", "1\nother=2"),
    ],
)
def test_overrides_are_toml_or_bare_strings(override, value):
    assert config.parse_override(override) == (override.partition("=")[0], value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.stpes=3", "train.stpes is not a key of a recipe; did you mean 'train.steps'?"),
        ("steps=3", "did you mean 'train.steps'?"),
        ("data.backbone=resnet18", "did you mean 'model.backbone'?"),
        ("hparam.lr=0.1", "did you mean 'hparams.lr'?"),
        ("train.steps", "expected section.key=value"),
        ("=3", "not a key"),
        ("a.b.c=3", "not a key"),
        ("train.steps=0", "train.steps is 0, expected an integer of at least 1"),
        ("train.steps=-5", "train.steps is -5"),
        ("train.steps=abc", "train.steps is 'abc', expected an integer"),
        ("train.steps=1.5", "train.steps is 1.5, expected an integer"),
        ("train.steps=true", "train.steps is True, expected an integer"),
        ("train.steps=", "train.steps is '', expected an integer"),
        ("train.steps=[1]", r"train.steps is \[1\], expected an integer"),
        ("train.steps=1" + "0" * 40, "expected an integer"),
        ("train.lr_scale=nan", "expected a number above 0"),
        ("train.lr_scale=inf", "expected a number above 0"),
        ("hparams.lr=0", "expected a number above 0 and at most 1"),
        ("hparams.lr=-1e-5", "above 0"),
        ("hparams.dropout=1", "of at least 0 and below 1"),
        ("hparams.dropout=nan", "of at least 0 and below 1"),
        ("data.holdout_fraction=1", "above 0 and below 1"),
        ("data.image_size=4", "of at least 8"),
        ("data.test_env=-1", "data.test_env is -1, expected an integer of at least 0"),
        ("data.aux=[1, 2]", "expected a list of strings"),
        ("data.aux={a=1}", "expected a list of strings"),
        ("data.dir=", "expected a non-empty string"),
        ("data.backend=dail", "expected one of auto, dali, torchvision; did you mean 'dali'?"),
        ("train.precision=float16", "expected one of auto, float32, bfloat16"),
        ("train.device=gpu", "expected auto, cpu, cuda or cuda:N"),
        ("train.device=cuda:-1", "expected auto, cpu, cuda or cuda:N"),
        ("train.threads=0", "expected an integer of at least 1"),
        ("output.dir=" + "[" * 3000, "output.dir"),
    ],
)
def test_impossible_overrides_are_one_sentence(override, words):
    if override.startswith("output.dir"):
        assert config.parse_override(override)[1] == "[" * 3000
        return
    with pytest.raises(InputError, match=words.replace("?", r"\?")) as error:
        config.parse_override(override)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[trian]\nsteps = 3", r"there is no section \[trian\].*did you mean 'train'"),
        ("steps = 3", "steps is not a key of a recipe; did you mean 'train.steps'"),
        ("train = 3", r"train is 3, expected a section \[train\]"),
        ("[[train]]\nsteps = 3", r"expected a section \[train\]"),
        ("[train]\nstep = 3", "train.step is not a key of a recipe; did you mean 'train.steps'"),
        ("[train.steps]\na = 3", "train.steps is {'a': 3}, expected an integer"),
        ("[train]\nsteps = '3'", "train.steps is '3', expected an integer"),
        ("[train]\nsteps = ", "is not a TOML file"),
        ("[train]\nsteps = 1\nsteps = 2", "is not a TOML file"),
        ("[model]\nbackbone = 'resnet-50'", "model.backbone: .*did you mean 'resnet50'"),
        ("[data]\naux = 'A'", "expected a list of strings"),
        ("[data]\naux = ['A', 'A']", "data.aux names 'A' twice"),
        ("[data]\ntarget = 'A'\naux = ['A']", "data.aux names the target 'A'"),
        ("[train]\nsteps = 10\nprobe_steps = 10", "train.probe_steps is 10, expected fewer than train.steps"),
        ('[data]\ndir = "a\\u0000b"', "expected a non-empty string"),
    ],
)
def test_bad_files_are_one_sentence_with_the_file(tmp_path, text, words):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as error:
        config.load(path)
    assert "bad.toml" in str(error.value)
    assert "\n" not in str(error.value)


def test_unreadable_files(tmp_path):
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "absent.toml", tmp_path, binary, tmp_path / "a\0b"):
        with pytest.raises(InputError, match="the recipe"):
            config.load(path)


def test_recipes_made_in_python_can_be_checked():
    with pytest.raises(InputError, match=r"train\.steps is 0"):
        config.validated(config.Recipe(train=config.Train(steps=0)))


def test_what_an_error_expects_is_said_for_every_key():
    for key in config.key_names():
        assert config.values.expected(key)
        if not isinstance(config.default(key), tuple | msgspec.UnsetType) and config.default(key) is not None:
            assert config.values.check(key, config.default(key)) == config.default(key)


def test_the_protocol_may_be_its_name_alone(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('protocol = "official"\n[data]\ntarget = "PACS"\n')
    expected = config.Recipe(data=config.Data(target="PACS"), protocol=config.Protocol(name="official"))
    assert config.load(path) == expected
    assert config.load(path, ["protocol=ratfast"]).protocol.name == "ratfast"
    path.write_text('protocol = "offical"\n')
    with pytest.raises(
        InputError, match=r"protocol\.name is 'offical', expected one of .*did you mean 'official'"
    ):
        config.load(path)


def test_every_switch_of_the_protocol_has_two_values_and_a_default_by_name():
    ours, theirs = (config.Protocol(name=name).settled() for name in ("ratfast", "official"))
    assert set(config.schema.PROTOCOL_SWITCHES) == set(config.Protocol.__struct_fields__) - {"name"}
    for switch, values in config.schema.PROTOCOL_SWITCHES.items():
        assert (getattr(ours, switch), getattr(theirs, switch)) == values
        assert config.values.check(f"protocol.{switch}", values[0]) == values[0]
    mixed = config.Protocol(name="official", evaluated="validation").settled()
    assert (mixed.evaluated, mixed.validation_images) == ("validation", "augmented")


def test_unknown_rows_are_refused_with_the_known():
    with pytest.raises(InputError, match=r"train\.rows is .*expected a list of .*ratatouille"):
        config.from_dict({"train": {"rows": ["soup"]}})


def test_initial_weights(tmp_path):
    assert config.Model().initial_weights() == "default"
    assert config.Model(weights="none").initial_weights() is None
    assert config.Model(weights="a.pt").initial_weights().name == "a.pt"


def test_demonstration_is_a_valid_recipe():
    recipe = config.demo_recipe("somewhere")
    assert config.validated(recipe) == recipe
    assert recipe.data.dir == "somewhere"
    assert recipe.data.target not in recipe.data.aux


def test_config_does_not_import_torch():
    subprocess.run(
        [sys.executable, "-c", "import sys, ratfast.config; assert 'torch' not in sys.modules"], check=True
    )
