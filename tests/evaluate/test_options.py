"""Options of data sets that an evaluation's config has."""

import dataclasses

import pytest

from configs import evaluate as configs
from kvpacket_jax import data
from kvpacket_jax.data.own import corpus, everyday
from kvpacket_jax.data.published import wikipedia
from kvpacket_jax.data.synthetic import biography, niah, ruler

OPTIONS = {
    "biography": biography.BiographyConfig,
    "niah": niah.NiahConfig,
    "ruler": ruler.RulerConfig,
    "wikipedia": wikipedia.WikipediaConfig,
    "everyday": everyday.EverydayConfig,
    "corpus": corpus.CorpusConfig,
}


@pytest.mark.parametrize("name", configs.SETS)
def test_options_that_are_not_set_are_the_data_sets_own(name):
    """Runs from before an option could be set go on."""
    config = configs.get_config(name)
    assert data.options(config.dataset) == configs.SETS[name][1]
    for option, kind in configs.FURTHER.get(config.dataset.name, {}).items():
        if config.dataset.name in OPTIONS:
            fields = dataclasses.fields(OPTIONS[config.dataset.name])
            assert option in {field.name for field in fields}
        with pytest.raises(TypeError):
            config.dataset.options[option] = object()
        given = kind(("a", "b")) if kind is tuple else kind(1)
        config.dataset.options[option] = given
        assert data.options(config.dataset)[option] == given


def test_lists_fit_their_answers():
    """A digit is a token; so is a comma with its blank, and the line feed at the end."""
    for split in ("train", "test"):
        for i in range(20):
            asked = ruler.generate(split, i, ruler.RulerConfig()).questions
            numbers = [q for q in asked if q.info["kind"] == "multi_query"]
            assert all(len(q.answers[0]) + 2 <= configs.LISTS for q in numbers)
