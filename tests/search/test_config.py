"""Settings are checked once, at the edge; every mistake gets one line that names what would do."""

import tomllib

import pytest
import tomli_w

from autocompress.search.config import DEFAULT_TIME_S, Settings, from_document, load_settings, override, to_document
from autocompress.vocabulary.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("trails = 3", "unknown key 'trails': did you mean 'trials'?"),
        ("[fine_tuning]\nlearning_rat = 1", "unknown key 'fine_tuning.learning_rat': did you mean 'learning_rate'?"),
        ('sampler = "nsga"', "sampler: 'nsga' is not known: did you mean 'nsga2'?"),
        ('decisions = ["prun"]', "'prun' is not known: did you mean 'prune'?"),
        ("trials = -1", "trials = -1: input should be greater than or equal to 0"),
        ('time_s = "soon"', "time_s = 'soon': input should be a valid number"),
        ("time_s = nan", "time_s = nan: input should be a finite number"),
        ("budget_ms = 1\nspeedup = 2", "give one of them"),
        ("[shares]\nsetup = 0.9", "the shares add up to 1.8; they must add up to 1"),
        ("[shares]\nsetup = 1.5", "shares.setup = 1.5: input should be less than or equal to 1"),
        ("shares = 1", "shares = 1: input should be"),
        ("trials = ", "is not TOML"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path, text, told):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(tmp_path / "run.toml")
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert "run.toml" in str(caught.value)


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"can't read the configuration '.*none.toml'"):
        load_settings(tmp_path / "none.toml")


def test_what_is_given_overrides_the_file_and_none_means_not_given(tmp_path):
    (tmp_path / "run.toml").write_text("trials = 5\nseed = 3\n[samples]\nsubset = 7\n")
    settings = load_settings(tmp_path / "run.toml", trials=9, seed=None, profile="mine")
    assert (settings.trials, settings.seed, settings.samples.subset, settings.profile) == (9, 3, 7, ("mine",))
    assert override(settings, seed=4, trials=None) == settings.model_copy(update={"seed": 4})
    with pytest.raises(ConfigError, match="unknown key 'sead': did you mean 'seed'"):
        override(settings, sead=4)


def test_a_profile_may_be_a_name_a_path_or_several(tmp_path):
    for given in (str(tmp_path), tmp_path, [tmp_path], (str(tmp_path),)):
        assert load_settings(None, profile=given).profile == (str(tmp_path),)


def test_settings_survive_their_document():
    settings = load_settings(None, trials=5, budget_ms=0.3, profile=["a"], fine_tuning={"candidates": 2})
    document = tomllib.loads(tomli_w.dumps(to_document(settings)))
    assert from_document(document, "run.toml") == settings


def test_the_document_holds_every_default():
    assert to_document(Settings())["shares"] == {"setup": 0.1, "trials": 0.25, "fine_tuning": 0.55, "measuring": 0.1}


def test_a_search_without_limits_has_one():
    assert Settings().limit_s == DEFAULT_TIME_S
    assert Settings(trials=3).limit_s is None
    assert Settings(trials=3, time_s=5).limit_s == 5
