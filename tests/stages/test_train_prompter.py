"""How the frames of a model from scratch are normalized."""

import json

import pytest

from alpro.errors import InputError
from alpro.models.folder import Preprocessing
from alpro.stages.train_prompter import Config
from alpro.stages.training.stage import measure_preprocessing


@pytest.fixture
def corpora(tmp_path):
    """Three corpora of unlike statistics."""
    actual = {}
    for name, mean, std in (("dark", 0.1, 0.05), ("bright", 0.7, 0.25), ("other", 0.9, 0.9)):
        actual[name] = tmp_path / name
        actual[name].mkdir()
        statistics = {"mean": [mean, mean + 0.01, mean + 0.02], "std": [std] * 3}
        (actual[name] / "statistics.json").write_text(json.dumps(statistics))
    return actual


def config(**values: object) -> Config:
    phases = [{"corpora": ["dark"], "steps": 1}, {"corpora": ["dark", "bright"], "steps": 1}]
    return Config.model_validate({"phases": phases, "max_text_tokens": 17} | values)


def test_several_corpora_are_normalized_by_the_mean_of_their_statistics(corpora):
    """Each corpus of the phases once, however often it is in them; another one does not count."""
    measured = measure_preprocessing(config(normalization="corpus"), corpora)
    assert measured.mean == pytest.approx((0.4, 0.41, 0.42))
    assert measured.std == pytest.approx((0.15, 0.15, 0.15))
    assert measured.max_text_tokens == 17


def test_the_papers_normalization_needs_no_corpus():
    measured = measure_preprocessing(config(), {})
    assert (measured.mean, measured.std) == (Preprocessing().mean, Preprocessing().std)


def test_a_corpus_without_statistics_is_an_error(corpora):
    (corpora["bright"] / "statistics.json").unlink()
    with pytest.raises(InputError, match=r"bright: statistics.json is missing"):
        measure_preprocessing(config(normalization="corpus"), corpora)
