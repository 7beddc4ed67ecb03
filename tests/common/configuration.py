"""Tests that every configuration passes: documented fields, round trips, parts, refused values.

A test file declares a `config_class` and values for its fields. Values of a type that the field does not have are
refused by the library (`StrictDataclassError`); values that make no sense are refused by us (`ValueError`).
"""

import copy
import inspect
import json
import logging
import re

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, BertConfig, PreTrainedConfig


class ConfigurationTests:
    """Declarations of a test class, and its tests."""

    config_class: type[PreTrainedConfig]
    # Field -> a value that is not its default, for every field of the class; a part is given as a dictionary.
    other_values: dict[str, object] = {}
    # Arguments that do not fit and a pattern of the message, which names the value.
    bad_values: list[tuple[dict, str]] = []
    # Arguments of a wrong type.
    wrong_types: list[dict] = []
    # Named sizes: name -> arguments.
    published_sizes: dict[str, dict] = {}

    def pytest_generate_tests(self, metafunc):
        if "bad_value" in metafunc.fixturenames:
            bad_values = self.bad_values
            if "set_later" in metafunc.function.__name__:  # parts are replaced as a whole, and checked as at first
                bad_values = [
                    case for case in bad_values if len(case[0]) == 1 and not set(case[0]) & set(self.parts())
                ]
            names = [", ".join(f"{key}={value}" for key, value in choices.items()) for choices, _ in bad_values]
            metafunc.parametrize("bad_value", bad_values, ids=names)
        if "wrong_type" in metafunc.fixturenames:
            metafunc.parametrize("wrong_type", self.wrong_types, ids=str)
        if "size" in metafunc.fixturenames:
            metafunc.parametrize("size", self.published_sizes)

    def own_classes(self) -> list[type]:
        """The class and those of ours that it is made from, the first one first."""
        return [base for base in reversed(self.config_class.__mro__) if base.__module__.startswith("hf_vlp.")]

    def own_fields(self) -> list[str]:
        """Fields that these classes declare, in order."""
        return [
            name
            for base in self.own_classes()
            for name, kind in inspect.get_annotations(base).items()
            if "ClassVar" not in str(kind)
        ]

    def other_config(self) -> PreTrainedConfig:
        """A configuration in which nothing has its default value."""
        return self.config_class(**copy.deepcopy(self.other_values))

    def parts(self) -> list[str]:
        return [name for name in self.config_class.sub_configs_defaults if name in self.own_fields()]

    def test_every_field_is_documented_in_order(self):
        text = "\n".join(inspect.getdoc(base) for base in self.own_classes())
        paragraphs = re.findall(r"^\s*(\w+(?:, \w+)*):", text, re.MULTILINE)
        documented = [name for names in paragraphs for name in names.split(", ")]
        assert [name for name in documented if name in self.own_fields()] == self.own_fields()

    def test_defaults_need_no_arguments_and_are_not_shared(self):
        first, second = self.config_class(), self.config_class()
        assert first.to_dict() == second.to_dict()
        for name in self.parts():
            assert getattr(first, name) is not getattr(second, name)

    def test_other_values_are_kept_field_by_field(self):
        assert set(self.other_values) == set(self.own_fields())
        config, default = self.other_config(), self.config_class()
        for name, value in self.other_values.items():
            found = getattr(config, name)
            if name in self.parts():
                assert {key: getattr(found, key) for key in value} == value
            else:
                assert found == value
            assert found != getattr(default, name), f"the test gives {name} its default value"

    def test_json_text_gives_an_equal_configuration(self):
        config = self.other_config()
        again = self.config_class.from_dict(json.loads(config.to_json_string(use_diff=False)))
        assert again.to_dict() == config.to_dict()
        changed_only = self.config_class.from_dict(json.loads(config.to_json_string()))
        assert changed_only.to_dict() == config.to_dict()

    def test_from_dict_inverts_to_dict_and_leaves_it_alone(self):
        config = self.other_config()
        values = config.to_dict()
        before = copy.deepcopy(values)
        assert self.config_class.from_dict(values).to_dict() == before
        assert values == before

    def test_saved_configuration_loads_equal(self, tmp_path):
        config = self.other_config()
        config.save_pretrained(tmp_path)
        for loaded in (self.config_class.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
            assert type(loaded) is self.config_class
            assert {**loaded.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
        loaded.save_pretrained(tmp_path / "again")
        assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "config.json").read_bytes()

    def test_defaults_of_the_parts_survive_saving(self, tmp_path):
        """What a part has by default is left out of no file in which our own default differs."""
        config = self.config_class(**{name: {} for name in self.parts()})
        config.save_pretrained(tmp_path)
        assert self.config_class.from_pretrained(tmp_path).to_dict() == config.to_dict()
        default = self.config_class()
        default.save_pretrained(tmp_path)
        assert self.config_class.from_pretrained(tmp_path).to_dict() == default.to_dict()

    def test_copies_are_equal_and_separate(self):
        config = self.other_config()
        other = copy.deepcopy(config)
        assert other.to_dict() == config.to_dict()
        for name in self.parts():
            assert getattr(other, name) is not getattr(config, name)

    def test_part_as_object_equals_part_as_dictionary(self):
        config = self.other_config()
        objects = {name: copy.deepcopy(getattr(config, name)) for name in self.parts()}
        assert self.config_class(**{**self.other_values, **objects}).to_dict() == config.to_dict()

    def test_part_loads_itself_from_the_file_of_the_whole(self, tmp_path):
        config = self.other_config()
        config.save_pretrained(tmp_path)
        for name in self.parts():
            part = getattr(config, name)
            loaded = type(part).from_pretrained(tmp_path)
            # The version is written into the file of the whole only.
            assert {**loaded.to_dict(), "transformers_version": None} == {
                **part.to_dict(),
                "transformers_version": None,
            }

    def test_part_given_at_loading_changes_only_what_it_names(self, tmp_path):
        config = self.other_config()
        config.save_pretrained(tmp_path)
        for name in self.parts():
            key = next(key for key, value in self.other_values[name].items() if type(value) is int)
            value = 2 * self.other_values[name][key]
            loaded = self.config_class.from_pretrained(tmp_path, **{name: {key: value}})
            expected = config.to_dict()
            expected[name][key] = value
            assert loaded.to_dict() == expected

    def test_attention_choice_reaches_the_parts(self):
        config = self.config_class(attn_implementation="eager")
        assert {getattr(config, name)._attn_implementation for name in self.parts()} <= {"eager"}
        assert config._attn_implementation == "eager"

    def test_text_part_is_found(self):
        config = self.other_config()
        if "text_config" in self.parts():
            assert config.get_text_config() is config.text_config
            assert config.get_text_config(decoder=True) is config.text_config
        if "vocab_size" in self.own_fields() or self.parts():
            assert config.get_text_config().vocab_size > 0

    def test_bad_value_is_refused_by_name(self, bad_value):
        choices, message = bad_value
        with pytest.raises(ValueError, match=message):
            self.config_class(**copy.deepcopy(choices))

    def test_bad_value_set_later_is_refused_when_saving(self, bad_value, tmp_path):
        choices, message = bad_value
        config = self.config_class()
        for name, value in choices.items():
            setattr(config, name, value)
        with pytest.raises((ValueError, StrictDataclassError), match=message):
            config.save_pretrained(tmp_path)
        assert not (tmp_path / "config.json").exists()

    def test_wrong_type_is_refused_by_name(self, wrong_type):
        (name, value) = next(iter(wrong_type.items()))
        with pytest.raises((StrictDataclassError, TypeError, ValueError), match=name):
            self.config_class(**wrong_type)
        if name not in self.parts():
            with pytest.raises((StrictDataclassError, TypeError, ValueError), match=name):
                setattr(self.config_class(), name, value)

    def test_unknown_field_warns(self, warned):
        """A misspelt field would otherwise be kept in silence while its default rules."""
        name = f"{self.own_fields()[-1]}_misspelt"
        self.config_class(**{name: 3})
        assert [message for message in warned() if name in message]

    def test_known_fields_do_not_warn(self, warned, tmp_path):
        self.other_config().save_pretrained(tmp_path)
        options = {"attn_implementation": "eager", "output_attentions": True, "dtype": "bfloat16"}
        self.config_class.from_pretrained(tmp_path, **options)
        assert warned() == []

    @pytest.fixture
    def warned(self, caplog, recwarn):
        """What was warned of so far, as a Python warning or in a log."""
        return lambda: [
            *(str(warning.message) for warning in recwarn if issubclass(warning.category, UserWarning)),
            *(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING),
        ]

    def test_configuration_of_another_architecture_is_refused(self, tmp_path):
        BertConfig().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="bert"):
            self.config_class.from_pretrained(tmp_path)

    def test_published_size_is_valid(self, size):
        assert (
            self.config_class(**copy.deepcopy(self.published_sizes[size])).model_type == self.config_class.model_type
        )
